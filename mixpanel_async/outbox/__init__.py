"""Outbox: a queue outside of the process, which many hosts share. Workers deliver its records to Mixpanel.

May import `_encoding`, `_runtime` and `_model`. It does not know `_delivery`: clients and workers talk to an engine
through the protocols in `protocol.py`.

Start reading at `protocol.py`. `memory.py` is an engine in the process, for tests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
from .queue_status import QueueCount, QueuedRecord, QueuePurged, QueueServer, QueueStatus, QueueWorker

if TYPE_CHECKING:
    from .redis import RedisOutbox
    from .redis_admin import QueueAdmin

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
    "QueueAdmin",
    "QueueCount",
    "QueuePurged",
    "QueueServer",
    "QueueStatus",
    "QueueWorker",
    "QueuedRecord",
    "RedisOutbox",
    "StoredEntry",
]


def __getattr__(name: str) -> Any:
    # The options of Redis are not needed by an engine of another package.
    if name == "RedisOutbox":
        from .redis import RedisOutbox  # noqa: PLC0415

        return RedisOutbox
    if name == "QueueAdmin":
        from .redis_admin import QueueAdmin  # noqa: PLC0415

        return QueueAdmin
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
