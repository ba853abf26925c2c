"""The pure core of the wire: arguments to bytes, bytes to requests, replies to outcomes."""
