"""What the spool's thread does with an open database: whose rows are whose, what is written, read and given up."""

from __future__ import annotations

import logging
import sqlite3
from collections import deque
from collections.abc import Sequence
from typing import Final

import orjson

from .._backlog import LOAD_RECORDS
from .._errors import SpoolError
from .._lanes import LANE_CODES, SEQUENCE_BITS, Loss
from .._ledger import Ended
from .._records import DropReason, Kind, OnceOnly
from .._runtime import Runtime
from .database import (
    LANES,
    OWNER_SHIFT,
    Damaged,
    Database,
    DeadLetter,
    Row,
    first_of,
    hide_token,
    is_damage,
    open_database,
    show_token,
)
from .files import Claim
from .salvage import salvage
from .work import ONCE, REPEATABLE, Reports, Settings, Work

_log = logging.getLogger("mixpanel_async")
_OWN_ROWS: Final = 1 << OWNER_SHIFT
_LOAD_BYTES: Final = 4 * 1024 * 1024
_IMPORTS: Final = LANE_CODES[Kind.IMPORTS, False]
_SECRET_IMPORTS: Final = LANE_CODES[Kind.IMPORTS, True]


class Session:
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

    def __init__(self, settings: Settings, reports: Reports, runtime: Runtime, claims: dict[int, Claim]) -> None:
        self._settings = settings
        self._reports = reports
        self._runtime = runtime
        self._claims = claims
        self._token: bytes = orjson.dumps(settings.token)
        self._owner = 0
        self._sources: dict[int, deque[list[int]]] = {lane: deque() for lane in range(LANES)}
        self._own_at = [0] * LANES
        self._has_told_others = False
        self._open: Database | None = None

    @property
    def is_open(self) -> bool:
        return self._open is not None

    @property
    def _db(self) -> Database:
        assert self._open is not None
        return self._open

    def look(self) -> None:
        """Take over what others have left, and give back what is not used."""
        if self.is_replaced():
            raise Damaged("the file of the spool was taken away")
        self._adopt()
        self._db.shrink()
        self._reports.written((), 0, self._db.used_bytes(), 0)

    def is_replaced(self) -> bool:
        """Whether the path leads to another file than the one that is open."""
        try:
            return self._settings.path.stat().st_ino != self._db.inode
        except OSError:
            return True

    def drop(self) -> None:
        """Close the database, so that it is opened anew."""
        self._db.close()
        self._open = None

    def _open_file(self) -> Database:
        settings = self._settings
        return open_database(
            settings.path,
            max_bytes=settings.max_bytes,
            wait=settings.wait,
            fsync=settings.fsync,
            erase=settings.erase,
        )

    def open(self) -> None:
        """Open the database, register there and take over what others have left.

        A damaged one is set aside, and what can be read of it is saved.
        """
        own, self._owner = self._owner, 0
        held = self._reports.held() if own else []
        for claim in self._claims.values():
            claim.release(remove=False)
        self._claims.clear()
        for sources in self._sources.values():
            sources.clear()
        try:
            db = self._open_file()
        except Exception as error:
            if not is_damage(error):
                raise
            base = own << OWNER_SHIFT
            in_memory = {number + base if number < _OWN_ROWS else number for number, _ in held}
            stamp = int(self._runtime.wall())
            db, saved = salvage(self._settings.path, stamp, self._open_file, leave=in_memory)
            _log.error(
                "the spool was damaged and has been set aside as %s; %d rows were saved, %d places could not be read",
                saved.aside.name,
                saved.rows,
                saved.holes,
            )
        try:
            self._register(db, [row for row in held if row[0] < _OWN_ROWS])
        except BaseException:
            self._owner = own
            db.close()
            raise
        self._open = db
        if own:
            self._reports.reopened()
        self._adopt()

    def _register(self, db: Database, held: list[tuple[int, bytes]]) -> None:
        with db.transaction():
            owner = db.add_owner(db.project(self._settings.token), self._runtime.wall())
            # Locked before anybody else can see it.
            claim = Claim.take(self._settings.path, owner)
            if claim is None:
                raise SpoolError("a lock file of the spool is held by another process")
            db.insert([self._row(owner, number, item) for number, item in held])
        self._owner = owner
        self._claims[owner] = claim
        self._own_at = [0] * LANES

    def _row(self, owner: int, number: int, item: bytes) -> Row:
        state = ONCE if isinstance(item, OnceOnly) else REPEATABLE
        return number + (owner << OWNER_SHIFT), state, hide_token(item, self._token)

    def _absolute(self, ids: Sequence[int]) -> list[int]:
        base = self._owner << OWNER_SHIFT
        return [number + base if number < _OWN_ROWS else number for number in ids]

    def do(self, work: Work, committed: int) -> None:
        """Carry out what was asked for, in one transaction; `committed` is the group that is then on disk."""
        entries = work.group.entries
        if entries or work.ended or work.marks or work.evictions:
            with self._db.transaction():
                self._db.insert([self._row(self._owner, entry.row, entry.item) for entry in entries])
                for ids, state in work.marks:
                    self._db.mark(self._absolute(ids), state)
                for end in work.ended:
                    self._end(end)
                evicted = [self._evict(*eviction) for eviction in work.evictions]
                used = self._db.used_bytes()
            freed = sum(end.size for end in work.ended) + sum(size for *_, size in work.evictions)
            self._reports.written(entries, committed, used, freed)
            for lane, items in evicted:
                self._reports.evicted(lane, items)
        work.group.finish()
        for lane, own in work.loads:
            self._reports.loaded(lane, self._first_rows(lane, own, LOAD_RECORDS), work.group.number)

    def _evict(self, lane: int, own: int, count: int, _: int) -> tuple[int, list[bytes]]:
        items: list[bytes] = []
        while len(items) < count and (rows := self._first_rows(lane, own, count - len(items))):
            self._db.delete(self._absolute([number for number, _ in rows]))
            items += [item for _, item in rows]
        return lane, items

    def _end(self, end: Ended) -> None:
        ids = self._absolute(end.ids)
        self._db.delete(ids)
        if end.loss is not None:
            letters = [
                DeadLetter(
                    lane=number >> SEQUENCE_BITS & (LANES - 1),
                    state=ONCE if isinstance(item, OnceOnly) else REPEATABLE,
                    reason=end.loss.reason.value,
                    message=message,
                    body=hide_token(item, self._token),
                )
                for number, item, message in zip(ids, end.loss.items, _messages(end.loss), strict=True)
            ]
            self._bury(letters)

    def _first_rows(self, lane: int, own: int, count: int) -> list[tuple[int, bytes]]:
        """The oldest rows of a lane that are not in memory: those of others first, then this client's own."""
        sources = self._sources[lane]
        while sources:
            source = sources[0]
            rows = self._db.read(source[0], source[1], max_records=count, max_bytes=_LOAD_BYTES)
            if rows:
                source[0] = rows[-1][0]
                return [(number, self._item(state, body)) for number, state, body in rows]
            sources.popleft()
        if not own:
            return []
        base = self._owner << OWNER_SHIFT
        after = max(base + own - 1, self._own_at[lane])
        rows = self._db.read(after, first_of(self._owner, lane + 1), max_records=count, max_bytes=_LOAD_BYTES)
        if rows:
            self._own_at[lane] = rows[-1][0]
        return [(number - base, self._item(state, body)) for number, state, body in rows]

    def _item(self, state: int, body: bytes) -> bytes:
        item = show_token(body, self._token)
        return OnceOnly(item) if state else item

    def _adopt(self) -> None:
        """Take over what clients of this project have left that live no more."""
        project = self._db.project(self._settings.token)
        others = 0
        for owner, theirs, _ in self._db.owners():
            if theirs != project:
                others += 1
            elif owner not in self._claims:
                claim = Claim.take(self._settings.path, owner)
                if claim is not None:
                    self._claims[owner] = claim
                    self._take_over(owner)
            elif owner != self._owner and not any(self._db.sizes(owner, lane)[0] for lane in range(LANES)):
                self._dismiss(owner)
        if others and not self._has_told_others:
            self._has_told_others = True
            _log.warning("the spool holds what %d clients of other projects have left; it is kept", others)

    def _take_over(self, owner: int) -> None:
        unsure: dict[int, list[bytes]] = {}
        with self._db.transaction():
            sending = self._db.sending(owner)
            if self._settings.at_least_once:
                self._db.mark([row[0] for row in sending], ONCE)
            else:
                for number, state, body in sending:
                    unsure.setdefault(number >> SEQUENCE_BITS & (LANES - 1), []).append(self._item(state, body))
                self._bury_unsure(sending)
            left = {lane: sizes for lane in range(LANES) if (sizes := self._db.sizes(owner, lane))[0]}
        if not left:
            self._dismiss(owner)
        # What a project secret was to sign, which is not kept, is signed as other imports are.
        signed = {lane: _IMPORTS if lane == _SECRET_IMPORTS else lane for lane in left}
        counts: dict[int, tuple[int, int]] = {}
        for lane, (records, size) in left.items():
            self._sources[signed[lane]].append([first_of(owner, lane), first_of(owner, lane + 1)])
            sum_records, sum_bytes = counts.get(signed[lane], (0, 0))
            counts[signed[lane]] = sum_records + records, sum_bytes + size
        if counts or unsure:
            self._reports.adopted(counts, unsure)

    def _bury_unsure(self, rows: Sequence[Row]) -> None:
        letters = [
            DeadLetter(
                lane=number >> SEQUENCE_BITS & (LANES - 1),
                state=ONCE,
                reason=DropReason.UNCERTAIN.value,
                message="the process ended during a request",
                body=body,
            )
            for number, _, body in rows
        ]
        if letters:
            self._db.delete([row[0] for row in rows])
            self._bury(letters)

    def _bury(self, letters: Sequence[DeadLetter]) -> None:
        self._db.bury(self._db.project(self._settings.token), letters, self._runtime.wall(), self._settings.keep_dead)

    def _dismiss(self, owner: int) -> None:
        with self._db.transaction():
            self._db.remove_owner(owner)
        self._claims.pop(owner).release(remove=True)

    def leave(self) -> None:
        """Close the database and give up every claim; rows that are left are for the next to take over."""
        try:
            if self._open is not None:
                for owner in [*self._claims]:
                    if not any(self._db.sizes(owner, lane)[0] for lane in range(LANES)):
                        self._dismiss(owner)
                self._db.close()
        except sqlite3.Error as error:
            _log.warning("the spool could not be tidied (%s)", error)
        finally:
            for claim in self._claims.values():
                claim.release(remove=False)
            self._claims.clear()


def _messages(loss: Loss) -> list[str]:
    if len(loss.details) == len(loss.items):
        return [detail.message for detail in loss.details]
    return [loss.message] * len(loss.items)
