"""Delivery: from an accepted record to a settled batch.

Holds the queue, the buffer, the sender and the retry policy. May import `_http`, `_spool`, `_encoding`, `_runtime` and
`_model`. Start reading at `queue.py` for the way in and at `sender.py` for the way out.
"""
