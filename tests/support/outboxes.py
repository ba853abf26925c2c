"""Outboxes for tests of producers: a queue in memory whose answers a test decides, and what is in a queue."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import anyio
import orjson

from mixpanel_async import OutboxError
from mixpanel_async.outbox import Entry, EntryWriter, Inbox, MemoryOutbox, Outbox, PutResult, StoredEntry
from mixpanel_async.outbox.lanes import lane_names
from mixpanel_async.outbox.packing import unpack

AWAY = OutboxError("connection refused")
LOST_ANSWER = OutboxError("the connection was lost", uncertain=True)
REFUSED = OutboxError("WRONGPASS invalid username-password pair", refused=True)
Fault = Exception | Callable[[], Any] | None
"""Error that a put raises before it stores anything, or a coroutine function that runs first; None for no fault."""


class ScriptedOutbox:
    """Queue in memory. `open_faults` and `faults` are used up by calls of `open` and `put`, one by one.

    A fault with `uncertain=True` is raised after the entries were stored, as a lost answer is.

    Args:
        options: options of `MemoryOutbox`.
    """

    def __init__(self, **options: Any) -> None:
        self.memory = MemoryOutbox(**options)
        self.faults: list[Fault] = []
        self.open_faults: list[Fault] = []
        self.puts: list[list[Entry]] = []
        self.producers: list[str | None] = []
        self.open_writers = 0

    @property
    def confirm(self) -> bool:
        return self.memory.confirm

    @property
    def compress(self) -> bool:
        return self.memory.compress

    def writer(self, token: str, producer: str | None = None) -> EntryWriter:
        self.producers.append(producer)
        return ScriptedWriter(self, self.memory.writer(token, producer))

    def inbox(self, token: str, worker: str, *, kinds: Collection[str] | None = None) -> Inbox:
        return self.memory.inbox(token, worker, kinds=kinds)


class ScriptedWriter:
    """Writer of a `ScriptedOutbox`."""

    def __init__(self, outbox: ScriptedOutbox, inner: EntryWriter) -> None:
        self._outbox = outbox
        self._inner = inner
        self._is_open = False

    @property
    def partitions(self) -> int:
        return self._inner.partitions

    async def open(self) -> None:
        await _run(self._outbox.open_faults)
        await self._inner.open()
        self._outbox.open_writers += 1
        self._is_open = True

    async def put(self, entries: Sequence[Entry]) -> Sequence[PutResult]:
        self._outbox.puts.append([*entries])
        fault = self._outbox.faults[0] if self._outbox.faults else None
        if isinstance(fault, OutboxError) and fault.uncertain:
            del self._outbox.faults[0]
            await self._inner.put(entries)
            raise fault
        await _run(self._outbox.faults)
        return await self._inner.put(entries)

    def forget(self) -> None:
        self._inner.forget()

    async def aclose(self) -> None:
        self._outbox.open_writers -= self._is_open
        self._is_open = False
        await self._inner.aclose()


async def _run(faults: list[Fault]) -> None:
    fault = faults.pop(0) if faults else None
    if isinstance(fault, Exception):
        raise fault
    if fault is not None:
        await fault()


async def entries(outbox: Outbox, token: str = "token", *, is_settled: bool = False) -> list[StoredEntry]:
    """Return the waiting entries, in order within each lane, and leave them in the queue unless they are settled."""
    inbox = outbox.inbox(token, "reader")
    await inbox.open()
    await inbox.heartbeat()
    try:
        found: list[StoredEntry] = []
        for lane in lane_names(inbox.partitions):
            while some := await inbox.read([lane], max_records=1_000_000, wait=0):
                found += some
        if is_settled:
            await inbox.settle([one.id for one in found])
        await inbox.release()
        return found
    finally:
        await inbox.aclose()


async def stored(outbox: Outbox, token: str = "token", *, is_settled: bool = False) -> dict[str, list[dict[str, Any]]]:
    """Return the waiting records by lane."""
    records: dict[str, list[dict[str, Any]]] = {}
    for one in await entries(outbox, token, is_settled=is_settled):
        lane = records.setdefault(one.id.lane, [])
        lane += [orjson.loads(memoryview(item)) for item in unpack(one.entry, token)]
    return records


async def count_stored(outbox: Outbox, token: str = "token") -> int:
    """Return the number of waiting records."""
    return sum(map(len, (await stored(outbox, token)).values()))


async def until(condition: Callable[[], object]) -> None:
    """Wait until a condition holds, which other tasks make true."""
    with anyio.fail_after(20):
        while not condition():  # noqa: ASYNC110  the condition has no event
            await anyio.sleep(0.001)
