"""Encoding: call arguments to records, records to requests, responses to outcomes.

Pure: no I/O, no clock, no randomness. May import `_runtime` and `_model`. Start reading at `records.py`, then
`requests.py` and `responses.py`.
"""
