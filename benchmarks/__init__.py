"""Benchmarks of the client, compared with a lower bound and with other SDKs: `python -m benchmarks`."""
