"""Durable spool: accepted records in one SQLite file.

May import `_encoding`, `_runtime` and `_model`; it knows nothing of the queue, which talks to it through `messages.py`.
Start reading at `spool.py` for the public class and at `writer.py` for the writer thread.
"""
