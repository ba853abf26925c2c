"""`MemoryOutbox`: a queue in the memory of this process, with the behaviour of `RedisOutbox`, for tests."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Collection, Sequence
from math import inf
from typing import Final

from .._model.config import check_count, check_switch
from .._model.errors import ConfigurationError, OutboxError
from .._runtime.environment import real_environment
from .._runtime.event_loop import yield_to_loop
from .._runtime.timers import move_on_after, sleep
from .lanes import check_kinds, check_partitions, entries_lost_with, lane_names
from .memory_state import MemoryState
from .protocol import BeginResult, DeadEntry, Entry, EntryId, Held, PutResult, StoredEntry

# Seconds between two looks for entries: the first one, and the longest.
_FIRST_PAUSE: Final = 0.01
_LONGEST_PAUSE: Final = 0.25


class MemoryOutbox:
    """Queue in the memory of this process, for tests of producers and workers without a server.

    All writers and inboxes of one object share one queue. They may belong to different threads and event loops, and
    run on asyncio and trio. The queue ends with the object.

    Example:
        ```python
        import asyncio

        from mixpanel_async import AsyncMixpanel
        from mixpanel_async.outbox import MemoryOutbox
        from mixpanel_async.worker import Worker


        async def main() -> None:
            outbox = MemoryOutbox()
            async with AsyncMixpanel("PROJECT_TOKEN", outbox=outbox) as mp:
                await mp.track("user-1", "Order placed", {"amount": 19.99})
            async with Worker.from_env(outbox, token="PROJECT_TOKEN") as worker:
                await worker.drain(timeout=10.0)
                print(worker.stats().delivered, "delivered")


        asyncio.run(main())
        ```

    Args:
        partitions: number of lanes for profile updates, and of lanes for group updates; 1 to 256, default 8.
        max_bytes: largest sum of the packed bodies of the waiting entries in bytes; at least 1, default 64 MiB.
        max_records: largest number of waiting records; at least 1. None, the default, sets no limit.
        keep_dead: number of newest dead letters to keep, 0 to 1,000,000, default 10,000.
        confirm: whether tracking calls return only once the queue has their records; default False.
        compress: whether producers compress the bodies of entries; default True.
        clock: returns the seconds since 1970, for leases, pauses and the times of dead letters. A test can pass a
            clock that it sets. None, the default, uses the machine's clock.

    Raises:
        ConfigurationError: if a value is out of bounds.
    """

    def __init__(
        self,
        *,
        partitions: int = 8,
        max_bytes: int = 64 * 1024 * 1024,
        max_records: int | None = None,
        keep_dead: int = 10_000,
        confirm: bool = False,
        compress: bool = True,
        clock: Callable[[], float] | None = None,
    ) -> None:
        check_partitions(partitions)
        check_count("max_bytes", max_bytes)
        if max_records is not None:
            check_count("max_records", max_records)
        check_count("keep_dead", keep_dead, minimum=0, maximum=1_000_000)
        check_switch("confirm", confirm)
        check_switch("compress", compress)
        environment = real_environment()
        self._new_id = environment.new_id
        self._confirm = confirm
        self._compress = compress
        self._shared = _Shared(
            MemoryState(
                partitions=partitions,
                max_bytes=max_bytes,
                max_records=max_records,
                keep_dead=keep_dead,
                clock=clock or environment.machine_time,
            ),
            partitions,
        )

    @property
    def confirm(self) -> bool:
        """Whether tracking calls return only once the queue has their records."""
        return self._confirm

    @property
    def compress(self) -> bool:
        """Whether producers compress the bodies of entries."""
        return self._compress

    def writer(self, token: str, producer: str | None = None) -> MemoryWriter:
        """Return a connection for a producer; see `Outbox.writer`."""
        return MemoryWriter(self._shared, token, producer or self._new_id())

    def inbox(self, token: str, worker: str, *, kinds: Collection[str] | None = None) -> MemoryInbox:
        """Return a connection for a worker; see `Outbox.inbox`.

        Raises:
            ConfigurationError: if `kinds` is empty or has an unknown kind.
        """
        check_kinds(kinds)
        return MemoryInbox(self._shared, token, f"{worker}#{self._new_id()[:8]}", kinds)


class _Shared:
    """Queue, and the lock that its connections hold while they use it."""

    def __init__(self, state: MemoryState, partitions: int) -> None:
        self.lock = threading.Lock()
        self.state = state
        self.partitions = partitions
        self._project = b""

    def check_project(self, token: str) -> None:
        project = hashlib.sha256(token.encode()).digest()
        with self.lock:
            self._project = self._project or project
            if project != self._project:
                raise ConfigurationError(
                    "the queue holds records of another project: use a separate outbox for each token"
                )


class _Connection:
    """Base class of writers and inboxes."""

    def __init__(self, shared: _Shared, token: str) -> None:
        self._shared = shared
        self._token = token
        self._is_open = False

    @property
    def partitions(self) -> int:
        """See `EntryWriter.partitions`."""
        return self._shared.partitions

    async def _open(self) -> None:
        await yield_to_loop()
        self._shared.check_project(self._token)
        self._is_open = True

    async def _enter(self) -> MemoryState:
        await yield_to_loop()
        if not self._is_open:
            raise OutboxError("the connection to the outbox is not open: call open() first")
        return self._shared.state

    def forget(self) -> None:
        """See `EntryWriter.forget`."""
        self._is_open = False

    async def aclose(self) -> None:
        """See `EntryWriter.aclose`."""
        self._is_open = False
        await yield_to_loop()


class MemoryWriter(_Connection):
    """Implementation of `EntryWriter`."""

    def __init__(self, shared: _Shared, token: str, producer: str) -> None:
        super().__init__(shared, token)
        self._producer = producer

    async def open(self) -> None:
        """See `EntryWriter.open`."""
        await self._open()

    async def put(self, entries: Sequence[Entry]) -> list[PutResult]:
        """See `EntryWriter.put`."""
        state = await self._enter()
        check_entries(entries, self.partitions)
        with self._shared.lock:
            return [state.put(self._producer, entry) for entry in entries]


class MemoryInbox(_Connection):
    """Implementation of `Inbox`."""

    def __init__(self, shared: _Shared, token: str, worker: str, kinds: Collection[str] | None) -> None:
        super().__init__(shared, token)
        self._worker = worker
        self._kinds = None if kinds is None else frozenset(kinds)
        self._known: set[EntryId] = set()

    async def open(self) -> None:
        """See `Inbox.open`."""
        await self._open()
        with self._shared.lock:
            self._shared.state.announce(self._worker, self._kinds)

    async def read(self, lanes: Collection[str], *, max_records: int, wait: float) -> list[StoredEntry]:
        """See `Inbox.read`."""
        state = await self._enter()
        taken: list[StoredEntry] = []
        pause = _FIRST_PAUSE
        with move_on_after(None if wait == inf else wait):
            while not (taken := self._take(state, lanes, max_records)) and wait > 0:
                await sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
        return taken

    def _take(self, state: MemoryState, lanes: Collection[str], max_records: int) -> list[StoredEntry]:
        with self._shared.lock:
            taken = state.take(self._worker, lanes, self._known, max_records)
            self._known.update(one.id for one in taken)
        return taken

    async def begin(self, ids: Sequence[EntryId]) -> list[BeginResult]:
        """See `Inbox.begin`."""
        state = await self._enter()
        with self._shared.lock:
            results = [state.begin(self._worker, one) for one in ids]
            gone = {one for one, result in zip(ids, results, strict=True) if result is BeginResult.GONE}
            self._known -= entries_lost_with(gone, self._known)
        return results

    async def settle(self, ended: Sequence[EntryId], dead: Sequence[DeadEntry] = ()) -> int:
        """See `Inbox.settle`."""
        state = await self._enter()
        letters = dead_by_entry(ended, dead)
        with self._shared.lock:
            count = sum(state.settle(self._worker, one, found) for one, found in letters.items())
            self._known.difference_update(ended)
        return count

    async def pause(self, endpoint: str, seconds: float) -> None:
        """See `Inbox.pause`."""
        state = await self._enter()
        with self._shared.lock:
            state.pause(endpoint, seconds)

    async def heartbeat(self) -> Held:
        """See `Inbox.heartbeat`."""
        state = await self._enter()
        with self._shared.lock:
            held = state.heartbeat(self._worker, self._kinds, self._known)
            self._known -= held.gone
        return held

    async def release(self, not_begun: Collection[EntryId] = ()) -> None:
        """See `Inbox.release`."""
        state = await self._enter()
        with self._shared.lock:
            state.release(self._worker, not_begun)
            self._known.clear()

    def forget(self) -> None:
        """See `Inbox.forget`."""
        super().forget()
        self._known.clear()


def check_entries(entries: Sequence[Entry], partitions: int) -> None:
    """Check entries of a caller.

    Raises:
        ValueError: if a lane does not exist, or an entry has no records.
    """
    lanes = frozenset(lane_names(partitions))
    for entry in entries:
        if entry.lane not in lanes:
            raise ValueError(f"no lane {entry.lane!r} in a queue with {partitions} partitions")
        if entry.records < 1:
            raise ValueError("an entry needs at least one record")


def dead_by_entry(ended: Sequence[EntryId], dead: Sequence[DeadEntry]) -> dict[EntryId, list[DeadEntry]]:
    """Return the dead letters of each ended entry.

    Raises:
        ValueError: if a dead letter belongs to another entry.
    """
    found: dict[EntryId, list[DeadEntry]] = {one: [] for one in ended}
    for one in dead:
        if one.id not in found:
            raise ValueError("a dead letter belongs to an entry that is not in `ended`")
        found[one.id].append(one)
    return found
