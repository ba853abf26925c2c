"""Durable spool: accepted records in one SQLite file, committed before `track()` returns.

May import `_encoding`, `_runtime` and `_model`. It does not know `_delivery`: the queue talks to the writer thread
through the types in `messages.py` and receives reports through `WriterListener`.

Start reading at `spool.py` for the public class `SqliteSpool`, at `writer.py` for the thread that owns the database,
and at `admin.py` for inspection and repair from outside.
"""
