"""Database operations of one client, in its writer thread: open, write, load, evict and take over.

Row numbers: in memory, a row of this client has a small number and an inherited row has its id in the file it was read
from. Both keep their numbers when the file is replaced. `owners.Owners` translates them to ids in the open file.
"""

from __future__ import annotations

import logging
import sqlite3
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Final

import orjson

from .._encoding.stored_records import hide_token, show_token
from .._model.records import DropReason, NonIdempotentRecord, RecordKind
from .._runtime.environment import Environment
from .._runtime.log_events import log_event
from .database import (
    LANES,
    Database,
    DeadLetter,
    Row,
    lane_of,
    lane_start,
    open_database,
)
from .files import OwnerLock, find_set_aside, inode_of
from .messages import (
    LANE_CODES,
    LOAD_RECORDS,
    ONCE,
    REPEATABLE,
    EndedRows,
    Eviction,
    PendingWork,
    RowInMemory,
    SettledRows,
    SpoolSettings,
    WriterListener,
)
from .owners import Owners
from .recovery import is_record, recover, recover_remaining
from .schema import Damaged, is_damage
from .trials import Trials

_LOAD_BYTES: Final = 4 * 1024 * 1024
_IMPORTS: Final = LANE_CODES[RecordKind.IMPORTS, False]
_SECRET_IMPORTS: Final = LANE_CODES[RecordKind.IMPORTS, True]


class SpoolSession:
    """Database operations of one client. Use it in one thread.

    Args:
        settings: settings of the spool and of the client.
        listener: receives reports.
        environment: clocks.
        locks: filled with the locks of the owners whose rows this client sends, by owner.

    Raises (every method):
        sqlite3.Error, Damaged: if the database cannot be used.
        ConfigurationError, SpoolError: if its directory or files cannot be used.
    """

    def __init__(
        self, settings: SpoolSettings, listener: WriterListener, environment: Environment, locks: dict[int, OwnerLock]
    ) -> None:
        self._settings = settings
        self._listener = listener
        self._environment = environment
        self._token: bytes = orjson.dumps(settings.token)
        self._owners = Owners(settings, self._token, environment, locks)
        self._locks = locks
        # Inode of the file that was open last, and of a damaged file that must not be used again; 0 without one.
        self._last_inode = self._damaged_inode = 0
        # By lane: id ranges of other owners that are still to be read. A range starts after the last row read.
        self._inherited_ranges: dict[int, deque[list[int]]] = {lane: deque() for lane in range(LANES)}
        # By lane: id of the last row of this client that was read.
        self._read_position = [0] * LANES
        self._trials = Trials()
        self._other_projects_logged = False
        self._database: Database | None = None
        self._paused_inode: int | None = None
        # Rows of the last transaction while it is unknown whether it was committed.
        self._uncertain_rows: list[int] = []

    @property
    def is_open(self) -> bool:
        return self._database is not None

    @property
    def _db(self) -> Database:
        assert self._database is not None
        return self._database

    def maintain(self) -> None:
        """Take over orphaned records and report the size of the file."""
        self._db.check_files()
        self._db.watch_again()
        self._take_over_orphans()
        self.report_size()

    def check_files(self) -> None:
        """Raise `Damaged` if another program has harmed the files."""
        self._db.check_files()

    @property
    def has_trials(self) -> bool:
        """Whether rows are on trial."""
        return self._trials.is_running

    def end_old_trials(self) -> None:
        """End the trials of rows whose requests take long."""
        if old := self._trials.old(self._environment.monotonic()):
            with self._db.transaction():
                self._trials.change(self._db, self._owners.own, old, None)

    def shrink(self) -> bool:
        """Return some unused pages to the file system. Return whether more can be returned."""
        return self._db.shrink()

    def is_replaced(self) -> bool:
        """Return whether the path now names another file than the open one."""
        return inode_of(self._settings.path) != self._db.inode

    def abandon_file(self, *, is_damaged: bool) -> None:
        """Close the database so that the next step opens it again. A damaged file is not used again."""
        self._last_inode = self._db.inode
        self._damaged_inode = self._last_inode if is_damaged else 0
        self._close_database()

    def pause(self) -> None:
        """Close the database for a short time. Keep the owner locks; the next `open` resumes the session."""
        if self._database is not None:
            self._paused_inode = self._db.inode
            self._close_database()

    def _close_database(self) -> None:
        self._db.close()
        self._database = None

    def _resume(self) -> bool:
        """Reopen the file closed by `pause`. Return False if it was replaced or damaged since."""
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
                db.expect(self._expected_rows)
            else:
                db.close()
        self._paused_inode = None
        return self.is_open

    def _open_file(self) -> Database:
        settings = self._settings
        if self._damaged_inode and self._damaged_inode == inode_of(settings.path):
            raise Damaged("damage was detected during use")
        return open_database(
            settings.path,
            max_bytes=settings.max_bytes,
            timeout=settings.timeout,
            fsync=settings.fsync,
            erase=settings.erase,
        )

    def _open_new_file(self) -> Database:
        self._damaged_inode = 0
        return self._open_file()

    def open(self) -> None:
        """Open the database, register this client as an owner and take over orphaned records.

        A damaged file is set aside and its readable rows are copied to a new file.
        """
        if self._resume():
            return
        path, owners = self._settings.path, self._owners
        held: list[RowInMemory] = []
        settled: set[int] = set()
        is_reopening = owners.own > 0
        if is_reopening:
            held, settled = self._listener.rows_in_memory()
        skip = {*owners.row_ids([row.number for row in held]), *owners.row_ids(settled), *self._uncertain_rows}
        owners.release_all()
        for ranges in self._inherited_ranges.values():
            ranges.clear()
        has_recovered = False
        try:
            db = self._open_file()
        except Exception as error:
            if not is_damage(error):
                raise
            stamp = int(self._environment.wall_time())
            db, has_recovered = recover(
                path, stamp, self._open_file, self._open_new_file, skip=skip, above_owner=owners.highest_known
            )
        try:
            if is_reopening and not has_recovered and (aside := find_set_aside(path, self._last_inode)):
                # Another process recovered the file and left out the rows of live clients.
                above, only = owners.highest_known, owners.previously_locked
                recover_remaining(aside, db, path, skip=skip, above_owner=above, only_owners=only)
            owners.register(db, held)
        except BaseException:
            db.close()
            raise
        self._database = db
        db.expect(self._expected_rows)
        self._damaged_inode = 0
        self._read_position = [0] * LANES
        self._trials = Trials()
        if is_reopening:
            self._listener.on_reopened()
        self._take_over_orphans()
        self.report_size()

    def _expected_rows(self) -> list[int]:
        held, _ = self._listener.rows_in_memory()
        return self._owners.row_ids([row.number for row in held])

    def report_size(self) -> None:
        self._listener.on_written(None, self._db.used_bytes(), 0, self._db.dead_letter_count())

    def execute(self, work: PendingWork) -> None:
        """Carry out the changes in one transaction, then the loads."""
        entries = work.group.entries
        if entries or work.settled or work.marks or work.trials or work.evictions:
            rows = self._owners.new_rows(entries)
            self._uncertain_rows = [row[0] for row in rows]
            restoring = self._restoring_positions() if work.evictions else nullcontext()
            with restoring, self._db.transaction():
                self._db.insert(rows)
                for ids, state in work.marks:
                    self._db.mark(self._owners.row_ids(ids), state)
                for settled in work.settled:
                    self._delete_settled(settled)
                for ids, began in work.trials:
                    self._trials.change(self._db, self._owners.own, self._owners.row_ids(ids), began)
                evicted = [(eviction.lane, self._evict(eviction)) for eviction in work.evictions]
                used = self._db.used_bytes()
            freed = sum(settled.size for settled in work.settled) + sum(eviction.size for eviction in work.evictions)
            dead = self._db.dead_letter_count() if any(settled.loss for settled in work.settled) else None
            self._uncertain_rows = []
            self._listener.on_written(work.group, used, freed, dead)
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
            rows = self._read_next(eviction.lane, eviction.first_own_row, left)
            if not rows:
                break
            self._db.delete(self._owners.row_ids([number for number, _ in rows]))
            items += [item for _, item in rows]
        return items

    def _load(self, lane: int, first_own_row: int) -> None:
        with self._restoring_positions():
            rows = self._read_next(lane, first_own_row, LOAD_RECORDS)
            unreadable = [row for row in rows if not is_record(row[1])]
            if unreadable:
                # Mixpanel would reject the whole batch that contains one.
                ids = self._owners.row_ids([number for number, _ in unreadable])
                found = [(row, ONCE, item) for row, (_, item) in zip(ids, unreadable, strict=True)]
                with self._db.transaction():
                    self._move_to_dead_letters(found, DropReason.SPOOL_FAILED, "damaged on disk")
        readable = [row for row in rows if row not in unreadable] if unreadable else rows
        levels = self._trials.suspects
        suspects = {row: levels[row] for row, _ in readable if row in levels} if levels else {}
        self._listener.on_loaded(lane, readable, len(unreadable), suspects)

    @contextmanager
    def _restoring_positions(self) -> Iterator[None]:
        """Restore the read positions on failure, so that the same rows are read again."""
        ranges = {lane: deque([*one] for one in found) for lane, found in self._inherited_ranges.items()}
        read_position = [*self._read_position]
        try:
            yield
        except BaseException:
            self._inherited_ranges, self._read_position = ranges, read_position
            raise

    def _delete_settled(self, settled: SettledRows) -> None:
        ids = self._owners.row_ids(settled.ids)
        # A row purged by another process must not return as a dead letter.
        present = set() if settled.loss is None else self._db.present(ids)
        self._db.delete(ids)
        if settled.loss is not None:
            letters = [
                DeadLetter(
                    lane=lane_of(number),
                    state=ONCE if isinstance(item, NonIdempotentRecord) else REPEATABLE,
                    reason=settled.loss.reason.value,
                    message=message,
                    body=hide_token(item, self._token),
                )
                for number, item, message in zip(ids, settled.loss.items, settled.loss.messages(), strict=True)
                if number in present
            ]
            self._add_dead_letters(letters)

    def _read_next(self, lane: int, first_own_row: int, count: int) -> list[tuple[int, bytes]]:
        """Return the oldest rows of a lane that are not in memory: inherited rows first, then own rows."""
        ranges = self._inherited_ranges[lane]
        while ranges:
            span = ranges[0]
            rows = self._db.read(span[0], span[1], max_records=count, max_bytes=_LOAD_BYTES)
            if rows:
                span[0] = rows[-1][0]
                return [(number, self._item(state, body)) for number, state, body in rows]
            ranges.popleft()
        if not first_own_row:
            return []
        base = lane_start(self._owners.own, 0)
        after = max(base + first_own_row - 1, self._read_position[lane])
        rows = self._db.read(after, lane_start(self._owners.own, lane + 1), max_records=count, max_bytes=_LOAD_BYTES)
        if rows:
            self._read_position[lane] = rows[-1][0]
        return [(number - base, self._item(state, body)) for number, state, body in rows]

    def _item(self, state: int, body: bytes) -> bytes:
        item = show_token(body, self._token)
        return NonIdempotentRecord(item) if state else item

    def _take_over_orphans(self) -> None:
        """Take over the records of this project's clients that have ended."""
        project = self._db.project_key(self._settings.token)
        others = 0
        orphans: list[int] = []
        for owner, theirs, _ in self._db.owners():
            self._owners.note(owner)
            if theirs != project:
                others += 1
            elif owner not in self._locks:
                if lock := self._owners.try_lock(owner):
                    self._locks[owner] = lock
                    orphans.append(owner)
            elif owner != self._owners.own:
                self._remove_owner_if_empty(owner)
        if orphans:
            self._take_over(orphans)
        if others and not self._other_projects_logged:
            self._other_projects_logged = True
            text = "%s: the spool keeps records of other projects (clients: %d); only their clients send them"
            log_event(logging.WARNING, "spool_shared", text, self._settings.path, others, clients=others)

    def _take_over(self, owners: list[int]) -> None:
        """Take over the rows of locked owners. Release the locks of the others on failure."""
        left = [*owners]
        try:
            # The process that replaces the file also moves these rows.
            self._db.check_files()
            self._trials.take_over(self._db, owners)
            while left:
                self._inherit_rows(left[0])
                del left[0]
        except BaseException:
            for owner in left:
                self._locks.pop(owner).release(remove=False)
            raise

    def _inherit_rows(self, owner: int) -> None:
        ended: list[EndedRows] = []
        with self._db.transaction():
            sending = self._db.sending(owner)
            if self._settings.at_least_once:
                self._db.mark([row[0] for row in sending], ONCE)
            else:
                ended += self._end(sending, DropReason.UNCERTAIN, "the process ended during a request")
            convicted = self._trials.convicted(lane_start(owner, 0), lane_start(owner + 1, 0))
            message = "the process ended again and again while this record was being sent, twice when it was sent alone"
            ended += self._end(self._db.rows(convicted), DropReason.CRASHED, message)
            # Rows with an unknown lane code stay in the file.
            found = {lane: sizes for lane in LANE_CODES.values() if (sizes := self._db.sizes(owner, lane))[0]}
        # Project secrets are not stored, so these imports are signed like the others.
        target = {lane: _IMPORTS if lane == _SECRET_IMPORTS else lane for lane in found}
        counts: dict[int, tuple[int, int]] = {}
        for lane, (records, size) in found.items():
            self._inherited_ranges[target[lane]].append([lane_start(owner, lane), lane_start(owner, lane + 1)])
            sum_records, sum_bytes = counts.get(target[lane], (0, 0))
            counts[target[lane]] = sum_records + records, sum_bytes + size
        if counts or ended:
            self._listener.on_taken_over(counts, ended)
        if not found:
            self._remove_owner_if_empty(owner)

    def _end(self, rows: Sequence[Row], reason: DropReason, message: str) -> list[EndedRows]:
        """Turn rows into dead letters. Return them by lane."""
        by_lane: dict[int, list[bytes]] = {}
        for number, state, body in rows:
            by_lane.setdefault(lane_of(number), []).append(self._item(state, body))
        self._move_to_dead_letters(rows, reason, message)
        return [EndedRows(lane, reason, message, items) for lane, items in by_lane.items()]

    def _move_to_dead_letters(self, rows: Sequence[Row], reason: DropReason, message: str) -> None:
        letters = [
            DeadLetter(lane=lane_of(number), state=min(state, ONCE), reason=reason.value, message=message, body=body)
            for number, state, body in rows
        ]
        if letters:
            self._db.delete([row[0] for row in rows])
            self._add_dead_letters(letters)

    def _add_dead_letters(self, letters: Sequence[DeadLetter]) -> None:
        project = self._db.project_key(self._settings.token)
        self._db.add_dead_letters(project, letters, self._environment.wall_time(), self._settings.keep_dead)

    def _remove_owner_if_empty(self, owner: int) -> None:
        if not any(self._db.sizes(owner, lane)[0] for lane in range(LANES)):
            with self._db.transaction():
                self._db.remove_owner(owner)
            self._locks.pop(owner).release(remove=True)

    def close(self) -> None:
        """Close the database and release all owner locks. The next client takes over remaining rows."""
        try:
            if self._database is not None:
                self._trials.end_all(self._db, self._owners.own)
                for owner in [*self._locks]:
                    self._remove_owner_if_empty(owner)
                self._db.close()
        except sqlite3.Error as error:
            text = "%s: could not clean up the spool (%s)"
            log_event(logging.WARNING, "spool_not_cleaned", text, self._settings.path, error, error=str(error))
        finally:
            self._owners.release_all()
