"""`QueueAdmin`: inspection and repair of a queue while clients and workers use it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import inf
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from .._encoding.stored_records import persons_of, stored_payload
from .._model.config import check_number
from .._model.errors import OutboxError, raise_configuration_error
from .._model.records import DropReason
from .._runtime.environment import real_environment
from .counters import COUNTERS
from .erasure import hash_of
from .lanes import kind_of
from .packing import SpoiledBodyError, stored_form
from .queue_status import QueueCount, QueuedRecord, QueuePurged, QueueStatus
from .redis_admin_scripts import COUNT_DEAD, DROP_DEAD, DROP_WAITING, ERASE, META, PUT_BACK, READ, STATUS
from .redis_connection import RedisConnection
from .redis_keys import Keys, entry_from, fields_of
from .redis_queue import RedisSettings, check_version
from .redis_status import lane_count, pairs, read_server, workers_of

if TYPE_CHECKING:
    from typing_extensions import Self

# An entry may have megabytes, a dead letter rarely more than a kilobyte.
_ENTRIES_PER_PAGE: Final = 20
_LETTERS_PER_PAGE: Final = 500
_LETTERS_PER_COUNT: Final = 2_000
_BYTES_PER_ENTRY: Final = 1024 * 1024


class QueueAdmin:
    """Connection for inspection and repair, which `RedisOutbox.admin` makes. Use it with `async with`, on asyncio.

    It needs no token, and creates nothing: a queue exists once a producer or worker has connected. Its methods may be
    called while producers and workers run. A change of many records takes several steps; after each one, every record
    is either unchanged or completely changed.

    All methods raise `ConfigurationError` if there is no queue of this name, or one of another version, and
    `OutboxError` if Redis cannot be reached or refuses.

    Example:
        ```python
        import asyncio

        from mixpanel_async import AsyncMixpanel
        from mixpanel_async.outbox import RedisOutbox


        async def main() -> None:
            outbox = RedisOutbox("redis://queue:6379/0")
            async with AsyncMixpanel("PROJECT_TOKEN", outbox=outbox) as mp:
                await mp.track("user-1", "Order placed", {"amount": 19.99})
            async with outbox.admin() as queue:
                print((await queue.status()).records, "records wait for a worker")


        asyncio.run(main())
        ```

    Args:
        settings: options of the outbox.
    """

    def __init__(self, settings: RedisSettings) -> None:
        self._settings = settings
        self._connection: RedisConnection | None = None

    async def __aenter__(self) -> Self:
        self._connection = self._settings.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.aclose()

    async def _open(self) -> _OpenQueue:
        if self._connection is None:
            raise_configuration_error("use a QueueAdmin in an async with block")
        name = self._settings.name
        found = await self._connection.script(META, Keys(name, 1)("meta"), [])
        version, epoch, partitions, salt = ((one or b"").decode() for one in found)
        if not version:
            raise_configuration_error(
                f"there is no queue {name!r} in this Redis: no producer or worker has connected yet, or the name or the"
                " number of the database is another one"
            )
        check_version(name, version)
        return _OpenQueue(self._connection, Keys(name, int(partitions)), epoch, salt)

    async def status(self) -> QueueStatus:
        """Return what the queue holds, who serves it, and how its server is set up. Reads each dead letter."""
        queue = await self._open()
        keys = queue.keys.all_lanes("meta", "workers", "leases", "pauses", "forget")
        meta, workers, leases, pauses, erased, *lanes = await queue.run(STATUS, keys, queue.keys.lanes)
        fields = {name: value.decode() for name, value in fields_of(meta).items()}
        rows = {
            name: tuple(lanes[4 * at : 4 * at + 4]) for at, name in enumerate(queue.keys.lanes) if int(lanes[4 * at])
        }
        waiting = {name: lane_count(name, row, fields) for name, row in rows.items()}
        return QueueStatus(
            name=self._settings.name,
            format=int(fields["v"]),
            partitions=int(fields["partitions"]),
            records=int(fields.get("records", 0)),
            bytes=int(fields.get("bytes", 0)),
            oldest=min((one.oldest for one in waiting.values() if one.oldest is not None), default=None),
            waiting=waiting,
            dead=await self._count_dead(queue),
            counters={name: int(fields.get(name, 0)) for name in COUNTERS},
            workers=workers_of(workers, leases, [one[3] for one in rows.values()]),
            pauses={path.decode(): int(left) / 1000 for path, left in pairs(pauses)},
            erased=int(erased),
            newer_lanes=tuple(name for name, row in rows.items() if row[2] != b"1"),
            server=await read_server(queue.connection, *queue.keys("meta")),
        )

    async def _count_dead(self, queue: _OpenQueue) -> dict[str, QueueCount]:
        counts: dict[str, QueueCount] = {}
        after: bytes | str | None = "-"
        while after:
            last, *found = await queue.run(COUNT_DEAD, queue.keys("meta", "dead"), [after, _LETTERS_PER_COUNT])
            for name, records, size, died in zip(found[::4], found[1::4], found[2::4], found[3::4], strict=True):
                had = counts.get(name.decode(), QueueCount(oldest=int(died) / 1000))
                counts[name.decode()] = replace(had, records=had.records + records, bytes=had.bytes + size)
            after = last and b"(" + last
        return counts

    async def records(self, *, waiting: bool = True, dead: bool = True) -> AsyncIterator[QueuedRecord]:
        """Yield records: those that wait, lane by lane in their order, then dead letters, the oldest first.

        Args:
            waiting: include waiting records. Default True.
            dead: include dead letters. Default True.
        """
        queue = await self._open()
        for lane in queue.keys.lanes if waiting else ():
            keys = queue.keys("meta", lane, f"begun:{lane}")
            async for number, fields, is_begun in queue.pages(keys, _ENTRIES_PER_PAGE):
                for record in _waiting_records(lane, number, fields, is_begun=is_begun):
                    yield record
        if dead:
            async for record in self.dead_letters():
                yield record

    async def dead_letters(self, *, reasons: Collection[str | DropReason] | None = None) -> AsyncIterator[QueuedRecord]:
        """Yield dead letters, the oldest first.

        Args:
            reasons: only dead letters with one of these reasons; None, the default, for all.

        Raises:
            ConfigurationError: if a reason is unknown.
        """
        choice = _Choice(reasons=reasons)
        async for letter in self._letters(await self._open()):
            if choice.includes(letter):
                yield letter.record()

    async def _letters(self, queue: _OpenQueue) -> AsyncIterator[_StoredLetter]:
        async for number, fields, _ in queue.pages(queue.keys("meta", "dead", "none"), _LETTERS_PER_PAGE):
            yield _StoredLetter(
                id=number,
                lane=fields["l"].decode(),
                reason=fields["r"].decode(),
                message=fields["m"].decode(errors="replace"),
                died=int(fields["t"]) / 1000,
                is_once_only=fields["o"] == b"1",
                body=fields["b"],
            )

    async def retry(
        self, *, reasons: Collection[str | DropReason] | None = None, ids: Collection[str] | None = None
    ) -> int:
        """Put dead letters back into their lanes, behind the records that wait there.

        An update of a profile that is put back may overwrite one that was made later.

        Args:
            reasons: only dead letters with one of these reasons. None, the default, for all except `uncertain`: these
                may have been applied already.
            ids: only dead letters with one of these ids; None, the default, for all.

        Returns:
            Number of records that wait again.

        Raises:
            ConfigurationError: if a reason is unknown.
        """
        choice = _Choice(reasons=reasons, except_reasons=(DropReason.UNCERTAIN.value,), ids=ids)
        queue = await self._open()
        found = [(one.lane, one.id, len(one.body)) async for one in self._letters(queue) if choice.includes(one)]
        count = 0
        for lane, chunk in _chunks(found):
            (moved,) = await queue.run(PUT_BACK, queue.keys("meta", "dead", lane), [lane, *chunk])
            count += int(moved)
        return count

    async def purge(
        self,
        *,
        dead: bool = False,
        reasons: Collection[str | DropReason] | None = None,
        older_than: float | None = None,
        ids: Collection[str] | None = None,
        waiting: bool = False,
        distinct_id: str | None = None,
    ) -> QueuePurged:
        """Delete records permanently.

        Args:
            dead: delete dead letters: all, or those that `reasons`, `older_than` and `ids` select. Each of these
                implies it.
            reasons: only dead letters with one of these reasons.
            older_than: only dead letters that died more than so many seconds ago; at least 0.
            ids: only dead letters with one of these ids.
            waiting: delete waiting records, except those that a live worker has read.
            distinct_id: erase this person: delete the dead letters that name this id, and let workers drop the records
                that were accepted until now. Producers and workers may hold records of the person for a moment. Cannot
                be combined with other arguments.

        Returns:
            Number of deleted records.

        Raises:
            ConfigurationError: if nothing is selected, or arguments do not fit together.
        """
        dead = dead or any(one is not None for one in (reasons, older_than, ids))
        if distinct_id is not None:
            if dead or waiting:
                raise_configuration_error("distinct_id erases a person and cannot be combined with other arguments")
            return await self._erase(distinct_id)
        if not (dead or waiting):
            raise_configuration_error("nothing to purge: pass dead, reasons, older_than, ids, waiting or distinct_id")
        if older_than is not None:
            check_number("older_than", older_than, minimum=0.0)
        died_before = inf if older_than is None else real_environment().wall_time() - older_than
        choice = _Choice(reasons=reasons, ids=ids, died_before=died_before)
        queue = await self._open()
        dead_count = await self._drop_letters(queue, choice.includes) if dead else 0
        return QueuePurged(waiting=await _drop_waiting(queue) if waiting else 0, dead=dead_count)

    async def _erase(self, distinct_id: str) -> QueuePurged:
        if not isinstance(distinct_id, str) or not distinct_id:
            raise_configuration_error("distinct_id must be a non-empty string")
        queue = await self._open()
        # In this order: from now on, workers count the person's records as purged and do not make dead letters of them.
        await queue.run(ERASE, queue.keys("none", "meta", "forget"), [hash_of(distinct_id, queue.salt)])
        return QueuePurged(waiting=None, dead=await self._drop_letters(queue, lambda one: one.names(distinct_id)))

    async def _drop_letters(self, queue: _OpenQueue, is_chosen: Callable[[_StoredLetter], bool]) -> int:
        ids = [letter.id async for letter in self._letters(queue) if is_chosen(letter)]
        count = 0
        for at in range(0, len(ids), _LETTERS_PER_PAGE):
            chunk = ids[at : at + _LETTERS_PER_PAGE]
            (removed,) = await queue.run(DROP_DEAD, queue.keys("none", "meta", "dead"), chunk)
            count += int(removed)
        return count

    async def remove(self) -> None:
        """Delete the whole queue: all records, dead letters and counters. Does nothing if it does not exist.

        A producer or worker that uses it creates it again, and logs `outbox_lost`. Looks at all keys of the database to
        find those of producers; without the right to do so, these few expire after seven days instead.
        """
        if self._connection is None:
            raise_configuration_error("use a QueueAdmin in an async with block")
        name = self._settings.name
        (_, _, partitions, _) = await self._connection.script(META, Keys(name, 1)("meta"), [])
        keys = Keys(name, int(partitions or 1))
        begun = keys(*(f"begun:{lane}" for lane in keys.lanes))
        names = keys.all_lanes("meta", "workers", "leases", "pauses", "dead", "forget")
        await self._connection.call("DEL", *names, *begun)
        with suppress(OutboxError):
            prefix, meta = keys("from:", "meta")
            async for found in _scan(self._connection, meta, _literal(prefix) + "*"):
                await self._connection.call("DEL", *found)


@dataclass(frozen=True, slots=True)
class _OpenQueue:
    """Queue whose metadata were read.

    Args:
        connection: connection to its server.
        keys: its keys.
        epoch: random name of its content.
        salt: key of the hashes in it.
    """

    connection: RedisConnection
    keys: Keys
    epoch: str
    salt: str

    async def run(self, source: str, keys: Sequence[str], args: Sequence[str | bytes | int]) -> list[Any]:
        """Run a script whose first argument is the epoch."""
        return await self.connection.script(source, keys, [self.epoch, *args])

    async def pages(self, keys: Sequence[str], size: int) -> AsyncIterator[tuple[str, dict[str, bytes], bool]]:
        """Yield id and fields of each entry of a stream, and whether a request with it has begun."""
        after = "-"
        while found := await self.run(READ, keys, [after, size]):
            for number, fields, is_begun in zip(found[::3], found[1::3], found[2::3], strict=True):
                yield number.decode(), fields_of(fields), bool(is_begun)
            after = f"({found[-3].decode()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _StoredLetter:
    """Dead letter as it is stored."""

    id: str
    lane: str
    reason: str
    message: str
    died: float
    is_once_only: bool
    body: bytes

    def record(self) -> QueuedRecord:
        return QueuedRecord(
            id=self.id,
            state="dead",
            kind=kind_of(self.lane),
            payload=stored_payload(self.body),
            is_once_only=self.is_once_only,
            reason=self.reason,
            message=self.message,
            died=self.died,
        )

    def names(self, distinct_id: str) -> bool:
        """Return whether the record is about a person. An unreadable one may be, if it contains the id."""
        payload = stored_payload(self.body)
        if payload is None:
            return distinct_id.encode("utf-8", "surrogatepass") in self.body
        return distinct_id in persons_of(payload)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    """Selection of dead letters; see `QueueAdmin.purge`."""

    reasons: Collection[str] | None = None
    except_reasons: Collection[str] = ()
    ids: Collection[str] | None = None
    died_before: float = inf

    def __post_init__(self) -> None:
        if isinstance(self.reasons, str) or isinstance(self.ids, (str, bytes)):
            raise_configuration_error("reasons and ids must be collections such as lists, not single values")
        known = {one.value for one in DropReason}
        if unknown := {str(getattr(one, "value", one)) for one in self.reasons or ()} - known:
            raise_configuration_error(
                f"unknown reason {min(unknown)!r}; use one of DropReason: {', '.join(sorted(known))}"
            )

    def includes(self, letter: _StoredLetter) -> bool:
        """Return whether a dead letter is selected."""
        is_named = letter.reason not in self.except_reasons if self.reasons is None else letter.reason in self.reasons
        return is_named and letter.died <= self.died_before and (self.ids is None or letter.id in self.ids)


async def _scan(connection: RedisConnection, key: str, pattern: str) -> AsyncIterator[Sequence[bytes]]:
    """Yield the keys that match a pattern on the server with a key, some at a time."""
    cursor: Any = 0
    while True:
        cursor, found = await connection.call_server_of(key, "SCAN", cursor, "MATCH", pattern, "COUNT", 1_000)
        if isinstance(cursor, dict):
            # A client of a cluster names the node.
            (cursor,) = cursor.values()
        if found:
            yield found
        if not int(cursor):
            return


def _literal(text: str) -> str:
    """Return a pattern that only this text matches."""
    return "".join(f"\\{char}" if char in "*?[]^\\" else char for char in text)


async def _drop_waiting(queue: _OpenQueue) -> int:
    count = 0
    for lane in queue.keys.lanes:
        after: bytes | str | None = "-"
        keys = queue.keys("none", "meta", "workers", lane, f"begun:{lane}")
        while after:
            removed, last = await queue.run(DROP_WAITING, keys, [lane, after, _LETTERS_PER_PAGE])
            count += int(removed)
            after = last and b"(" + last
    return count


def _waiting_records(lane: str, id: str, fields: Mapping[str, bytes], *, is_begun: bool) -> Iterator[QueuedRecord]:
    entry = entry_from(lane, fields)
    bodies: Sequence[bytes | None]
    try:
        bodies = stored_form(entry)
    except SpoiledBodyError:
        bodies = [None] * entry.records
    once_only = frozenset(entry.non_idempotent)
    for position, body in enumerate(bodies):
        yield QueuedRecord(
            id=f"{lane}/{id}/{position}",
            state="sending" if is_begun and position in once_only else "waiting",
            kind=kind_of(lane),
            payload=None if body is None else stored_payload(body),
            is_once_only=position in once_only,
        )


def _chunks(letters: Sequence[tuple[str, str, int]]) -> Iterator[tuple[str, list[str]]]:
    """Group dead letters into entries of one lane, with bounded records and bytes."""
    by_lane: dict[str, list[tuple[str, int]]] = {}
    for lane, number, size in letters:
        by_lane.setdefault(lane, []).append((number, size))
    for lane, found in by_lane.items():
        chunk: list[str] = []
        total = 0
        for number, size in found:
            if chunk and (len(chunk) >= _LETTERS_PER_PAGE or total + size > _BYTES_PER_ENTRY):
                yield lane, chunk
                chunk, total = [], 0
            chunk.append(number)
            total += size
        yield lane, chunk
