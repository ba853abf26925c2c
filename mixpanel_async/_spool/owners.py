"""Owners whose rows one client reads and writes, and the ids of these rows in the open file."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from .._encoding.stored_records import hide_token
from .._model.errors import SpoolError
from .._model.records import NonIdempotentRecord
from .._runtime.environment import Environment
from .._runtime.log_events import log_event
from .database import OWNER_SHIFT, Database, Row
from .files import OwnerLock
from .messages import ONCE, REPEATABLE, SENDING, PendingWrite, RowInMemory, SpoolSettings

_ROWS_PER_OWNER: Final = 1 << OWNER_SHIFT


class Owners:
    """Owners whose rows one client reads and writes: its own, and those it has taken over. Fills `locks`."""

    def __init__(
        self, settings: SpoolSettings, token: bytes, environment: Environment, locks: dict[int, OwnerLock]
    ) -> None:
        self._settings = settings
        self._token = token
        self._environment = environment
        self._locks = locks
        self.own = 0
        """Owner number of this client; 0 before its first registration."""
        self.previously_locked: set[int] = set()
        """Owners that were locked before the last `release_all`."""
        self.highest_known = 0
        """Largest owner number seen. A new file must not assign it again."""
        self._unlockable: set[int] = set()
        # Owner of a previous file -> owner of its rows in this file.
        self._new_owner_of: dict[int, int] = {}

    def note(self, owner: int) -> None:
        """Remember an owner number found in the file."""
        self.highest_known = max(self.highest_known, owner)

    def try_lock(self, owner: int) -> OwnerLock | None:
        """Lock an owner. Return None if its client is alive or its lock file cannot be opened."""
        try:
            return OwnerLock.acquire(self._settings.path, owner)
        except SpoolError as error:
            # One bad lock file must not stop the client; the rows stay in the file.
            if owner not in self._unlockable:
                self._unlockable.add(owner)
                text = "%s: cannot take over the records of spool owner %d: %s"
                log_event(
                    logging.WARNING, "spool_takeover_failed", text, self._settings.path, owner, error.message,
                    owner=owner, error=error.message,
                )  # fmt: skip
            return None

    def release_all(self) -> None:
        """Release every lock. The next client takes over remaining rows."""
        self.previously_locked |= {*self._locks}
        for lock in self._locks.values():
            lock.release(remove=False)
        self._locks.clear()

    def register(self, db: Database, held: Sequence[RowInMemory]) -> None:
        """Become an owner in this file and insert the rows that are already in memory.

        Rows inherited through a previous file get new owners here.

        Raises:
            sqlite3.Error: if the file cannot be written.
            SpoolError: if a lock file cannot be opened.
        """
        locks: dict[int, OwnerLock] = {}
        new_owner_of: dict[int, int] = {}
        try:
            with db.transaction():
                for previous in sorted({row.number >> OWNER_SHIFT for row in held} | {0}):
                    owner, lock = self._add_owner(db)
                    locks[owner], new_owner_of[previous] = lock, owner
                db.insert([self._held_row(new_owner_of, row) for row in held])
        except BaseException:
            for lock in locks.values():
                lock.release(remove=True)
            raise
        self.own = new_owner_of.pop(0)
        self._new_owner_of = new_owner_of
        self._locks.update(locks)
        self.previously_locked.clear()

    def _add_owner(self, db: Database) -> tuple[int, OwnerLock]:
        project = db.project_key(self._settings.token)
        while True:
            owner = db.add_owner(project, self._environment.wall_time(), above=self.highest_known)
            self.highest_known = owner
            # Locked before the transaction makes the owner visible.
            lock = OwnerLock.acquire(self._settings.path, owner)
            if lock is not None:
                return owner, lock
            # A client still uses a deleted file in which it has this number.
            db.remove_owner(owner)

    def new_rows(self, entries: Sequence[PendingWrite]) -> list[Row]:
        """Return new rows of this client in their stored form."""
        first, token = self.own << OWNER_SHIFT, self._token
        return [(row % _ROWS_PER_OWNER + first, _state(item), hide_token(item, token)) for _, row, item, _ in entries]

    def _held_row(self, new_owner_of: Mapping[int, int], row: RowInMemory) -> Row:
        owner = new_owner_of[row.number >> OWNER_SHIFT]
        state = SENDING if row.is_sending and _state(row.item) else _state(row.item)
        return row.number % _ROWS_PER_OWNER + (owner << OWNER_SHIFT), state, hide_token(row.item, self._token)

    def row_ids(self, rows: Iterable[int]) -> list[int]:
        """Return the ids of rows in this file. Leave out rows of a previous file that are not in this one."""
        rows = [*rows]
        distances = {owner: self._distance(owner) for owner in {row >> OWNER_SHIFT for row in rows}}
        return [row + distance for row in rows if (distance := distances[row >> OWNER_SHIFT]) is not None]

    def _distance(self, owner: int) -> int | None:
        """Return how far the rows of an owner have moved in this file; None if they are not in it."""
        here = self._new_owner_of.get(owner, owner) if owner else self.own
        is_here = here in self._locks or here in self.previously_locked
        return (here - owner) << OWNER_SHIFT if is_here else None


def _state(item: bytes) -> int:
    return ONCE if isinstance(item, NonIdempotentRecord) else REPEATABLE
