"""Whose rows are whose: the numbers that a client's records have in the file that is open, and who may send them.

In memory a row of this client's own has a small number; one that was left by others has the number with which it was
read. If the file has to be opened anew, both stay as they are in memory, and this module knows what has become of them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Final

import orjson

from .._model.errors import SpoolError
from .._model.records import NonIdempotentRecord
from .._runtime.clock import Environment
from .database import OWNER_SHIFT, Database, Row, hide_token
from .files import OwnerLock
from .messages import ONCE, REPEATABLE, SENDING, RowInMemory, SpoolSettings

_log = logging.getLogger("mixpanel_async")
_OWN_ROWS: Final = 1 << OWNER_SHIFT


class OwnerRegistry:
    """The owners in whose name one client reads and writes.

    Args:
        settings: where and how.
        runtime: clocks.
        claims: filled with the owners whose rows are this client's to send.
    """

    def __init__(self, settings: SpoolSettings, environment: Environment, locks: dict[int, OwnerLock]) -> None:
        self._settings = settings
        self._environment = environment
        self._locks = locks
        self._token: bytes = orjson.dumps(settings.token)
        self.own = 0
        """The owner that this client is; 0 before it has been registered for the first time."""
        self.previously_claimed: set[int] = set()
        """Whose rows were this client's to send when it last let go."""
        self.highest_known = 0
        """The largest number that is known: a file that is opened anew must not give it to somebody else."""
        self._unclaimable: set[int] = set()
        # Who has the rows now that an owner had in a file before.
        self._new_owner_of: dict[int, int] = {}

    def claim(self, owner: int) -> OwnerLock | None:
        """The right to send what another client left; None if somebody has it, or it cannot be had."""
        try:
            return OwnerLock.acquire(self._settings.path, owner)
        except SpoolError as error:
            # One file that cannot be opened must not stop everybody; its rows stay.
            if owner not in self._unclaimable:
                self._unclaimable.add(owner)
                text = "%s: what client %d left in the spool cannot be taken over: %s"
                _log.warning(text, self._settings.path, owner, error.message)
            return None

    def release_all(self) -> None:
        """Give up every claim; rows that are left are for the next to take over."""
        self.previously_claimed |= {*self._locks}
        for claim in self._locks.values():
            claim.release(remove=False)
        self._locks.clear()

    def register(self, db: Database, held: Sequence[RowInMemory]) -> None:
        """Become an owner in this file, and put in what is in memory already.

        What others had left in the file before, and is in memory now, gets owners of its own here.

        Raises:
            sqlite3.Error: if that cannot be written.
            SpoolError: if a lock cannot be taken.
        """
        claims: dict[int, OwnerLock] = {}
        heirs: dict[int, int] = {}
        try:
            with db.transaction():
                for was in sorted({row.number >> OWNER_SHIFT for row in held} | {0}):
                    owner, claim = self._new_owner(db)
                    claims[owner], heirs[was] = claim, owner
                db.insert([self._row(heirs[row.number >> OWNER_SHIFT], *row) for row in held])
        except BaseException:
            for claim in claims.values():
                claim.release(remove=True)
            raise
        self.own = heirs.pop(0)
        self._new_owner_of = heirs
        self._locks.update(claims)
        self.previously_claimed.clear()

    def _new_owner(self, db: Database) -> tuple[int, OwnerLock]:
        while True:
            owner = db.add_owner(
                db.project_key(self._settings.token), self._environment.wall_time(), above=self.highest_known
            )
            self.highest_known = owner
            # Locked before anybody else can see it.
            claim = OwnerLock.acquire(self._settings.path, owner)
            if claim is not None:
                return owner, claim
            # Somebody still uses a file that was taken away, in which he has this number.
            db.remove_owner(owner)

    def row(self, number: int, item: bytes) -> Row:
        """A new row of this client's own, as it is stored."""
        return self._row(self.own, number, item)

    def _row(self, owner: int, number: int, item: bytes, is_sending: bool = False) -> Row:  # noqa: FBT001, FBT002
        state = (SENDING if is_sending else ONCE) if isinstance(item, NonIdempotentRecord) else REPEATABLE
        return number % _OWN_ROWS + (owner << OWNER_SHIFT), state, hide_token(item, self._token)

    def row_ids(self, rows: Iterable[int]) -> list[int]:
        """The numbers that rows have in the file; those of a file before that are not in this one are left out."""
        found = []
        for row in rows:
            owner, rest = divmod(row, _OWN_ROWS)
            owner = self._new_owner_of.get(owner, owner) if owner else self.own
            if owner in self._locks or owner in self.previously_claimed:
                found.append(rest + (owner << OWNER_SHIFT))
        return found
