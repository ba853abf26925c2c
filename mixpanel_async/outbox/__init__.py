"""Outbox: a queue outside of the process, which many hosts share. Workers deliver its records to Mixpanel.

May import `_encoding`, `_runtime` and `_model`. It does not know `_delivery`: clients and workers talk to an engine
through the protocols in `protocol.py`.

Start reading at `protocol.py`. `memory.py` is an engine in the process, for tests.
"""

from .memory import MemoryOutbox
from .protocol import (
    BeginResult,
    DeadEntry,
    Entry,
    EntryId,
    EntryWriter,
    Held,
    Inbox,
    Outbox,
    PutResult,
    StoredEntry,
)

__all__ = [
    "BeginResult",
    "DeadEntry",
    "Entry",
    "EntryId",
    "EntryWriter",
    "Held",
    "Inbox",
    "MemoryOutbox",
    "Outbox",
    "PutResult",
    "StoredEntry",
]
