"""What the spool's thread does with an open database: whose rows are whose, what is written, read and given up."""

from __future__ import annotations

import logging
import sqlite3
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import orjson

from .._model.errors import SpoolError
from .._model.records import DropReason, NonIdempotentRecord, RecordKind
from .._runtime.clock import Environment
from . import files
from .connection import open_database
from .database import LANES, Damaged, Database, DeadLetter, Row, hide_token, is_damage, lane_start, show_token
from .files import OwnerLock, inode_of
from .messages import (
    LANE_CODES,
    LOAD_RECORDS,
    ONCE,
    REPEATABLE,
    SEQUENCE_BITS,
    Eviction,
    PendingWork,
    RowInMemory,
    SettledRows,
    SpoolSettings,
    WriterListener,
)
from .owners import OwnerRegistry
from .recovery import is_record, recover, recover_remaining

_log = logging.getLogger("mixpanel_async")
_LOAD_BYTES: Final = 4 * 1024 * 1024
_IMPORTS: Final = LANE_CODES[RecordKind.IMPORTS, False]
_SECRET_IMPORTS: Final = LANE_CODES[RecordKind.IMPORTS, True]


class SpoolSession:
    """One client's dealings with the database, in the thread that owns it.

    Args:
        settings: where and how.
        reports: who is told.
        runtime: clocks.
        claims: filled with the owners whose rows are this client's to send.

    Raises (every method):
        sqlite3.Error, Damaged: if the database cannot be used.
        ConfigurationError, SpoolError: if its place cannot.
    """

    def __init__(
        self, settings: SpoolSettings, listener: WriterListener, environment: Environment, locks: dict[int, OwnerLock]
    ) -> None:
        self._settings = settings
        self._listener = listener
        self._environment = environment
        self._owners = OwnerRegistry(settings, environment, locks)
        self._locks = locks
        self._token: bytes = orjson.dumps(settings.token)
        # The file that was open last, and the same if there was damage in it.
        self._last_inode = self._damaged_inode = 0
        self._inherited_ranges: dict[int, deque[list[int]]] = {lane: deque() for lane in range(LANES)}
        self._read_position = [0] * LANES
        self._other_projects_logged = False
        self._database: Database | None = None
        self._paused_inode: int | None = None

    @property
    def is_open(self) -> bool:
        return self._database is not None

    @property
    def _db(self) -> Database:
        assert self._database is not None
        return self._database

    def maintain(self) -> None:
        """Take over what others have left."""
        self._refuse_if_replaced()
        self._take_over_orphans()
        self._listener.on_written((), self._db.used_bytes(), 0)

    def shrink(self) -> bool:
        """Give some of what is not used back to the disk. Returns whether to go on."""
        return self._db.shrink()

    def is_replaced(self) -> bool:
        """Whether the path leads to another file than the one that is open."""
        return inode_of(self._settings.path) != self._db.inode

    def _refuse_if_replaced(self) -> None:
        if self.is_replaced():
            raise Damaged("the file of the spool was taken away")

    def close_replaced(self, *, is_damaged: bool) -> None:
        """Close the database, so that it is opened anew; one in which damage was found is not used again."""
        self._last_inode = self._db.inode
        self._damaged_inode = self._last_inode if is_damaged else 0
        self._db.close()
        self._database = None

    def pause(self) -> None:
        """Close the database for a moment. What is claimed stays claimed, and `open` goes on with it."""
        if self._database is not None:
            self._paused_inode = self._db.inode
            self._db.close()
            self._database = None

    def _resume(self) -> bool:
        """Open again what `rest` has closed. False if it is another file by now, or damaged."""
        if self._paused_inode is None:
            return False
        try:
            db = self._open_file()
        except Exception as error:
            if not is_damage(error):
                raise
        else:
            if db.inode == self._paused_inode and any(owner == self._owners.own for owner, *_ in db.owners()):
                self._database = db
            else:
                db.close()
        self._paused_inode = None
        return self.is_open

    def _open_file(self) -> Database:
        settings = self._settings
        if self._damaged_inode and self._damaged_inode == inode_of(settings.path):
            raise Damaged("damage was found while it was in use")
        return open_database(
            settings.path,
            max_bytes=settings.max_bytes,
            wait=settings.timeout,
            fsync=settings.fsync,
            erase=settings.erase,
        )

    def open(self) -> None:
        """Open the database, register there and take over what others have left.

        A damaged one is set aside, and what can be read of it is saved.
        """
        if self._resume():
            return
        owners = self._owners
        held: list[RowInMemory] = []
        ended: set[int] = set()
        is_again = owners.own > 0
        if is_again:
            held, ended = self._listener.rows_in_memory()
        leave = {*owners.row_ids([row.number for row in held]), *owners.row_ids(ended)}
        owners.release_all()
        for sources in self._inherited_ranges.values():
            sources.clear()
        has_mended = False
        try:
            db = self._open_file()
        except Exception as error:
            if not is_damage(error):
                raise
            db, has_mended = self._recover_file(leave)
        try:
            if is_again and not has_mended and (aside := files.find_set_aside(self._settings.path, self._last_inode)):
                # Another process has mended the file, and left out what belongs to a client that lives.
                recover_remaining(
                    aside,
                    db,
                    self._settings.path,
                    skip=leave,
                    above_owner=owners.highest_known,
                    only_owners=owners.previously_claimed,
                )
            owners.register(db, held)
        except BaseException:
            db.close()
            raise
        self._database = db
        self._damaged_inode = 0
        self._read_position = [0] * LANES
        if is_again:
            self._listener.on_reopened()
        self._take_over_orphans()

    def _recover_file(self, leave: set[int]) -> tuple[Database, bool]:
        """Set a damaged file aside, but for these rows save what can be read, and open the new one.

        Returns:
            The new one, and whether it was not another process that did all this.
        """
        path = self._settings.path
        # No owner has this number. Who comes second finds a sound file.
        alone = OwnerLock.acquire(path, 0)
        if alone is None:
            raise SpoolError("another process is mending the spool")
        try:
            try:
                return self._open_file(), False
            except Exception as error:
                if not is_damage(error):
                    raise
            self._damaged_inode = 0
            db, saved = recover(
                path,
                int(self._environment.wall_time()),
                self._open_file,
                skip=leave,
                above_owner=self._owners.highest_known,
            )
        finally:
            alone.release(remove=True)
        _log.error(
            "the spool was damaged and has been set aside as %s; %d rows were saved, %d places could not be read",
            saved.aside.name,
            saved.rows,
            saved.unreadable,
        )
        return db, True

    def execute(self, work: PendingWork) -> None:
        """Carry out what was asked for, in one transaction."""
        entries = work.group.entries
        if entries or work.settled or work.marks or work.evictions:
            with self._restoring_positions(), self._db.transaction():
                self._db.insert([self._owners.row(entry.row, entry.item) for entry in entries])
                for ids, state in work.marks:
                    self._db.mark(self._owners.row_ids(ids), state)
                for end in work.settled:
                    self._delete_settled(end)
                evicted = [(eviction.lane, self._evict(eviction)) for eviction in work.evictions]
                used = self._db.used_bytes()
            freed = sum(end.size for end in work.settled) + sum(eviction.size for eviction in work.evictions)
            self._listener.on_written(entries, used, freed)
            for lane, items in evicted:
                if items:
                    self._listener.on_evicted(lane, items)
        work.group.finish()
        while work.loads:
            self._load(*work.loads[0])
            del work.loads[0]

    def _evict(self, eviction: Eviction) -> list[bytes]:
        items: list[bytes] = []
        while left := eviction.count - len(items):
            rows = self._first_rows(eviction.lane, eviction.first_own_row, left)
            if not rows:
                break
            self._db.delete(self._owners.row_ids([number for number, _ in rows]))
            items += [item for _, item in rows]
        return items

    def _load(self, lane: int, own: int) -> None:
        with self._restoring_positions():
            rows = self._first_rows(lane, own, LOAD_RECORDS)
            spoiled = [row for row in rows if not is_record(row[1])]
            if spoiled:
                # A server would refuse all that travels with it.
                ids = self._owners.row_ids([number for number, _ in spoiled])
                letters = [(row, ONCE, item) for row, (_, item) in zip(ids, spoiled, strict=True)]
                with self._db.transaction():
                    self._move_to_dead_letters(letters, DropReason.SPOOL_FAILED, "damaged on disk")
        sound = [row for row in rows if row not in spoiled] if spoiled else rows
        self._listener.on_loaded(lane, sound, len(spoiled))

    @contextmanager
    def _restoring_positions(self) -> Iterator[None]:
        """Read again, after a failure, what was read in vain."""
        sources = {lane: deque([*span] for span in spans) for lane, spans in self._inherited_ranges.items()}
        own_at = [*self._read_position]
        try:
            yield
        except BaseException:
            self._inherited_ranges, self._read_position = sources, own_at
            raise

    def _delete_settled(self, end: SettledRows) -> None:
        ids = self._owners.row_ids(end.ids)
        # What was purged meanwhile must not come back as a dead letter.
        there = set() if end.loss is None else self._db.present(ids)
        self._db.delete(ids)
        if end.loss is not None:
            letters = [
                DeadLetter(
                    lane=number >> SEQUENCE_BITS & (LANES - 1),
                    state=ONCE if isinstance(item, NonIdempotentRecord) else REPEATABLE,
                    reason=end.loss.reason.value,
                    message=message,
                    body=hide_token(item, self._token),
                )
                for number, item, message in zip(ids, end.loss.items, end.loss.messages(), strict=True)
                if number in there
            ]
            self._add_dead_letters(letters)

    def _first_rows(self, lane: int, own: int, count: int) -> list[tuple[int, bytes]]:
        """The oldest rows of a lane that are not in memory: those of others first, then this client's own."""
        sources = self._inherited_ranges[lane]
        while sources:
            source = sources[0]
            rows = self._db.read(source[0], source[1], max_records=count, max_bytes=_LOAD_BYTES)
            if rows:
                source[0] = rows[-1][0]
                return [(number, self._item(state, body)) for number, state, body in rows]
            sources.popleft()
        if not own:
            return []
        base = lane_start(self._owners.own, 0)
        after = max(base + own - 1, self._read_position[lane])
        rows = self._db.read(after, lane_start(self._owners.own, lane + 1), max_records=count, max_bytes=_LOAD_BYTES)
        if rows:
            self._read_position[lane] = rows[-1][0]
        return [(number - base, self._item(state, body)) for number, state, body in rows]

    def _item(self, state: int, body: bytes) -> bytes:
        item = show_token(body, self._token)
        return NonIdempotentRecord(item) if state else item

    def _take_over_orphans(self) -> None:
        """Take over what clients of this project have left that live no more."""
        project = self._db.project_key(self._settings.token)
        others = 0
        for owner, theirs, _ in self._db.owners():
            self._owners.highest_known = max(self._owners.highest_known, owner)
            if theirs != project:
                others += 1
            elif owner not in self._locks:
                if claim := self._owners.claim(owner):
                    self._claim(owner, claim)
            elif owner != self._owners.own:
                self._remove_owner_if_empty(owner)
        if others and not self._other_projects_logged:
            self._other_projects_logged = True
            _log.warning("the spool holds records of %d clients of other projects; they are kept", others)

    def _claim(self, owner: int, claim: OwnerLock) -> None:
        """Take over from an owner, or leave it as it was."""
        self._locks[owner] = claim
        try:
            # Whoever takes the file away moves these rows.
            self._refuse_if_replaced()
            self._take_over_owner(owner)
        except BaseException:
            self._locks.pop(owner).release(remove=False)
            raise

    def _remove_owner_if_empty(self, owner: int) -> None:
        if not any(self._db.sizes(owner, lane)[0] for lane in range(LANES)):
            self._remove_owner(owner)

    def _take_over_owner(self, owner: int) -> None:
        unsure: dict[int, list[bytes]] = {}
        with self._db.transaction():
            sending = self._db.sending(owner)
            if self._settings.at_least_once:
                self._db.mark([row[0] for row in sending], ONCE)
            else:
                for number, state, body in sending:
                    unsure.setdefault(number >> SEQUENCE_BITS & (LANES - 1), []).append(self._item(state, body))
                self._move_to_dead_letters(sending, DropReason.UNCERTAIN, "the process ended during a request")
            # Rows of no lane that there is stay where they are.
            left = {lane: sizes for lane in LANE_CODES.values() if (sizes := self._db.sizes(owner, lane))[0]}
        # What a project secret was to sign, which is not kept, is signed as other imports are.
        signed = {lane: _IMPORTS if lane == _SECRET_IMPORTS else lane for lane in left}
        counts: dict[int, tuple[int, int]] = {}
        for lane, (records, size) in left.items():
            self._inherited_ranges[signed[lane]].append([lane_start(owner, lane), lane_start(owner, lane + 1)])
            sum_records, sum_bytes = counts.get(signed[lane], (0, 0))
            counts[signed[lane]] = sum_records + records, sum_bytes + size
        if counts or unsure:
            self._listener.on_taken_over(counts, unsure)
        if not left:
            self._remove_owner_if_empty(owner)

    def _move_to_dead_letters(self, rows: Sequence[Row], reason: DropReason, message: str) -> None:
        letters = [
            DeadLetter(
                lane=number >> SEQUENCE_BITS & (LANES - 1),
                state=min(state, ONCE),
                reason=reason.value,
                message=message,
                body=body,
            )
            for number, state, body in rows
        ]
        if letters:
            self._db.delete([row[0] for row in rows])
            self._add_dead_letters(letters)

    def _add_dead_letters(self, letters: Sequence[DeadLetter]) -> None:
        self._db.add_dead_letters(
            self._db.project_key(self._settings.token), letters, self._environment.wall_time(), self._settings.keep_dead
        )

    def _remove_owner(self, owner: int) -> None:
        with self._db.transaction():
            self._db.remove_owner(owner)
        self._locks.pop(owner).release(remove=True)

    def close(self) -> None:
        """Close the database and give up every claim; rows that are left are for the next to take over."""
        try:
            if self._database is not None:
                for owner in [*self._locks]:
                    self._remove_owner_if_empty(owner)
                self._db.close()
        except sqlite3.Error as error:
            _log.warning("the spool could not be tidied (%s)", error)
        finally:
            self._owners.release_all()
