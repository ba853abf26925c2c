"""Inspection and repair of a spool while clients use it: count, list, retry, purge and export.

Transactions are short, so that no client waits long. A change of more than `ROWS_PER_TRANSACTION` records takes several
transactions; after each one, every record is either unchanged or completely changed.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from math import inf
from pathlib import Path
from typing import Any, BinaryIO, Final

import orjson

from .._encoding.stored_records import DEVICE_PREFIX, persons_of, stored_payload
from .._encoding.timestamps import payload_time
from .._model.config import check_number
from .._model.errors import ConfigurationError, raise_configuration_error
from .._model.records import DropReason
from .._runtime.environment import real_environment
from . import files
from .database import Row, lane_of, lane_start
from .inspection import ROWS_PER_TRANSACTION, AdminConnection, DeadLetterFilter, open_admin_connection, pause
from .messages import LANE_CODES, ONCE, REPEATABLE, SENDING
from .report import Purged, SpoolCount, SpooledRecord, SpoolStatus

_KINDS: Final = {code: kind.value for (kind, _), code in LANE_CODES.items()}
_MAX_ROW_ID: Final = (1 << 63) - 1
_BYTES_PER_TRANSACTION: Final = 16 * 1024 * 1024
# The check of a larger file takes seconds.
_CHECK_UP_TO_BYTES: Final = 256 * 1024 * 1024


class SpoolAdmin:
    """Implementation of the methods of `SqliteSpool`, which documents them.

    Args:
        path: spool file.
        timeout: seconds to wait for a transaction of another process.
    """

    def __init__(self, path: Path, timeout: float) -> None:
        self._path = path
        self._timeout = timeout

    def status(self, *, check: bool | None) -> SpoolStatus:
        with open_admin_connection(self._path, self._timeout) as db, db.snapshot():
            waiting: dict[str, SpoolCount] = {}
            held: dict[str, SpoolCount] = {}
            owners = {owner: (project, born) for owner, project, born in db.owners()}
            is_held = {owner: files.OwnerLock.is_held(self._path, owner) for owner in owners}
            projects = db.dead_projects()
            sending = 0
            now = real_environment().wall_time()
            for owner, lane in db.owner_lanes():
                kind = _kind(lane)
                project, born = owners.get(owner, (b"", 0.0))
                records, size, begun, first = db.count(owner, lane)
                count = SpoolCount(records=records, bytes=size, oldest=_accepted_at(first, born, now))
                waiting[kind] = waiting.get(kind, SpoolCount()) + count
                if is_held.get(owner):
                    held[kind] = held.get(kind, SpoolCount()) + count
                projects.add(project)
                sending += begun
            if check is None:
                check = db.file_bytes <= _CHECK_UP_TO_BYTES
            return SpoolStatus(
                waiting=waiting,
                held=held,
                sending=sending,
                dead=db.dead_counts(),
                is_in_use=any(is_held.values()),
                projects=len(projects),
                file_bytes=_size(self._path),
                used_bytes=db.used_bytes(),
                log_bytes=_size(files.with_log_files(self._path)[1]),
                schema=db.schema,
                integrity=db.check() if check else "not checked",
                set_aside=_set_aside_files(self._path),
            )

    def records(self, *, waiting: bool, dead: bool) -> Iterator[SpooledRecord]:
        return self._records(waiting=waiting, dead=DeadLetterFilter() if dead else None)

    def dead_letters(self, reasons: Collection[str] | None) -> Iterator[SpooledRecord]:
        return self._records(waiting=False, dead=DeadLetterFilter(reasons=reasons))

    def _records(self, *, waiting: bool, dead: DeadLetterFilter | None) -> Iterator[SpooledRecord]:
        with open_admin_connection(self._path, self._timeout) as db:
            after = 0
            while waiting and (
                rows := db.read(after, _MAX_ROW_ID, max_records=1_000, max_bytes=_BYTES_PER_TRANSACTION)
            ):
                after = rows[-1][0]
                yield from map(_waiting, rows)
            for chunk in _chunks([] if dead is None else db.select_dead_letters(dead)):
                yield from map(_dead, db.dead_letters(chunk))

    def retry(self, *, reasons: Collection[str] | None, ids: Collection[int] | None) -> int:
        choice = DeadLetterFilter(reasons=reasons, except_reasons={DropReason.UNCERTAIN.value}, ids=ids)
        with open_admin_connection(self._path, self._timeout) as db:
            count = 0
            for chunk in _chunks(db.select_dead_letters(choice)):
                with db.transaction():
                    count += _put_back(db, chunk)
                pause()
            return count

    def purge(
        self,
        *,
        dead: bool,
        reasons: Collection[str] | None,
        older_than: float | None,
        ids: Collection[int] | None,
        waiting: bool,
    ) -> Purged:
        dead = dead or any(one is not None for one in (reasons, older_than, ids))
        if not (dead or waiting):
            raise_configuration_error("nothing to purge: pass dead, reasons, older_than, ids, waiting or distinct_id")
        if older_than is not None:
            check_number("older_than", older_than, minimum=0.0)
            if waiting:
                raise_configuration_error(
                    "older_than applies only to dead letters, because the age of waiting records is unknown; purge dead"
                    " letters and waiting records in separate calls"
                )
        died_before = inf if older_than is None else real_environment().wall_time() - older_than
        choice = DeadLetterFilter(reasons=reasons, ids=ids, died_before=died_before)
        with open_admin_connection(self._path, self._timeout, erase=True) as db:
            dead_count = _remove(db, "dead", db.select_dead_letters(choice)) if dead else 0
            waiting_count = self._remove_orphans(db) if waiting else 0
            db.vacuum()
            return Purged(waiting=waiting_count, dead=dead_count)

    def _remove_orphans(self, db: AdminConnection) -> int:
        """Delete the records of clients that have ended."""
        count = 0
        for owner, *_ in db.owners():
            # While the lock is held here, no client takes over and sends these records.
            lock = files.OwnerLock.acquire(self._path, owner)
            if lock is None:
                continue
            is_empty = False
            try:
                count += _remove_owner_rows(db, owner)
                with db.transaction():
                    db.remove_owner(owner)
                is_empty = True
            finally:
                lock.release(remove=is_empty)
        return count

    def purge_person(self, distinct_id: str) -> Purged:
        if not isinstance(distinct_id, str) or not distinct_id:
            raise_configuration_error("distinct_id must be a non-empty string")
        with open_admin_connection(self._path, self._timeout, erase=True) as db:
            # In this order: between the two calls, a client may move a rejected record from `records` to `dead`.
            waiting = _remove(db, "records", _find_person(db, "records", distinct_id))
            dead = _remove(db, "dead", _find_person(db, "dead", distinct_id))
            db.vacuum()
            return Purged(waiting=waiting, dead=dead)

    def export(self, to: str | os.PathLike[str] | BinaryIO, *, waiting: bool, dead: bool) -> int:
        found = self.records(waiting=waiting, dead=dead)
        if not isinstance(to, (str, os.PathLike)):
            return _write(found, to)
        try:
            handle = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigurationError(f"cannot create the export file {os.fspath(to)} ({error.strerror})") from None
        try:
            with open(handle, "wb") as file:
                return _write(found, file)
        except BaseException:
            # An incomplete export must not be mistaken for a complete one.
            os.unlink(to)
            raise


def _kind(lane: int) -> str:
    return _KINDS.get(lane, "unknown")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _set_aside_files(path: Path) -> tuple[str, ...]:
    names = (one.name for one in path.parent.iterdir() if one.name.startswith(f"{path.name}.corrupt-"))
    return tuple(sorted(name for name in names if not name.endswith(("-wal", "-shm", "-journal"))))


def _accepted_at(body: bytes, born: float, now: float) -> float | None:
    """Return about when a record was accepted, from its own time: rows have no timestamp."""
    time = payload_time(stored_payload(body) or {})
    return (born or None) if time is None else max(born, min(time, now))


def _waiting(row: Row) -> SpooledRecord:
    number, state, body = row
    return SpooledRecord(
        id=number,
        state="sending" if state == SENDING else "waiting",
        kind=_kind(lane_of(number)),
        payload=stored_payload(body),
        is_once_only=state != REPEATABLE,
    )


def _dead(letter: tuple[Any, ...]) -> SpooledRecord:
    number, _, lane, state, reason, message, died, body = letter
    return SpooledRecord(
        id=number,
        state="dead",
        kind=_kind(lane),
        payload=stored_payload(body),
        is_once_only=state != REPEATABLE,
        reason=reason,
        message=message,
        died=died,
    )


def _chunks(found: Iterable[tuple[int, int]]) -> Iterator[list[int]]:
    """Group ids into chunks with bounded rows and bytes."""
    chunk: list[int] = []
    total = 0
    for number, size in found:
        if chunk and (len(chunk) >= ROWS_PER_TRANSACTION or total + size > _BYTES_PER_TRANSACTION):
            yield chunk
            chunk, total = [], 0
        chunk.append(number)
        total += size
    if chunk:
        yield chunk


def _put_back(db: AdminConnection, ids: list[int]) -> int:
    """Move dead letters back to the waiting records. Call it within a transaction."""
    # Some may have been deleted before this transaction got the write lock.
    letters = db.dead_letters(ids)
    owner_of: dict[bytes, int] = {}
    for _, project, *_ in letters:
        if project not in owner_of:
            # A new owner in each transaction: a client counts the rows of an owner once, when it takes them over.
            owner_of[project] = db.add_owner(project, real_environment().wall_time())
    rows = [
        (lane_start(owner_of[project], lane) + at, REPEATABLE if state == REPEATABLE else ONCE, body)
        for at, (_, project, lane, state, *_, body) in enumerate(letters, start=1)
    ]
    db.remove("dead", ids)
    db.insert(rows)
    return len(rows)


def _remove(db: AdminConnection, table: str, found: Iterable[tuple[int, int]]) -> int:
    count = 0
    for chunk in _chunks(found):
        with db.transaction():
            count += db.remove(table, chunk)
        pause()
    return count


def _remove_owner_rows(db: AdminConnection, owner: int) -> int:
    count = 0
    while True:
        with db.transaction():
            removed = db.remove_first(lane_start(owner, 0), lane_start(owner + 1, 0))
        if not removed:
            return count
        count += removed
        pause()


def _find_person(db: AdminConnection, table: str, distinct_id: str) -> list[tuple[int, int]]:
    # The bodies were written by the same encoder, so they contain the id in this form.
    text = orjson.dumps(distinct_id.removeprefix(DEVICE_PREFIX))[1:-1]
    return [(number, len(body)) for number, body in db.candidates(table, text) if _is_about(body, distinct_id)]


def _is_about(body: bytes, distinct_id: str) -> bool:
    payload = stored_payload(body)
    if payload is None:
        # Unreadable, but it contains the id.
        return True
    return distinct_id in persons_of(payload)


def _write(found: Iterable[SpooledRecord], file: BinaryIO) -> int:
    count = 0
    for record in found:
        file.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
        count += 1
    return count
