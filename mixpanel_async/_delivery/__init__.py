"""Delivery: from an accepted record to a settled batch.

Contains the queue, the buffer and the sender. May import `_http`, `_spool`, `_encoding`, `_runtime` and `_model`.

Start reading at `intake.py` for records that come in and at `sender.py` for batches that go out. `buffer.py` decides
when a batch is sent and what its outcome means. The class `Buffer` owns
`Accounting` and `DiskBacklog`.
"""
