"""Entries that a worker has read and not settled yet: a pure table.

A row is the number of a claim, then the position of a record in its entry. A claim ends when its last record has ended.
Dead letters are kept until then, so that the outbox stores them in one step with the removal of the entry. A worker
that is killed before leaves neither.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from .._model.records import DropReason, Loss, NonIdempotentRecord
from ..outbox.lanes import entries_lost_with
from ..outbox.packing import hide_token, positions_of_non_idempotent
from ..outbox.protocol import DeadEntry, EntryId, StoredEntry

# A body of 64 MB, the most that is unpacked, has fewer records: none is shorter than `{}` and a line end.
_POSITION_BITS: Final = 25
_claim_of: Final[Callable[[int], int]] = _POSITION_BITS.__rrshift__


class Settlement(NamedTuple):
    """Entries that have ended, and the dead letters of their records."""

    ended: list[EntryId]
    dead: list[DeadEntry]


@dataclass(slots=True)
class _Claim:
    """Claim of one entry.

    Args:
        id: the entry.
        left: records that have not ended.
        since: when the entry was accepted or put, in seconds since 1970.
        is_withdrawn: some of its records left unsent, so this worker never ends the entry.
        is_asked: the outbox may know that this worker begins a request with its non-idempotent records.
        is_begun: the outbox has confirmed this.
        requests: such requests that have begun, without those that were certainly not applied.
        dead: records that became dead letters, by reason and message.
    """

    id: EntryId
    left: int
    since: float
    is_withdrawn: bool = False
    is_asked: bool = False
    is_begun: bool = False
    requests: int = 0
    dead: dict[tuple[DropReason, str], list[bytes]] = field(default_factory=dict)

    def end(self, count: int) -> bool:
        """Note that so many records have ended. Return whether no record is left."""
        self.left -= count
        return not self.left

    def withdraw(self) -> None:
        """Note that records left unsent."""
        self.is_withdrawn = True

    def ask(self) -> None:
        """Note that the outbox is about to learn of the start of a request."""
        self.is_asked = True

    def begin(self) -> None:
        """Note that the outbox knows of the start of a request with the non-idempotent records."""
        self.is_begun = True

    def count_request(self, by: int) -> None:
        """Note that a request begins (1), or was certainly not applied (-1)."""
        self.requests += by

    def retract(self) -> bool:
        """Forget the start of the requests if none may have been applied. Return whether the outbox may know of one."""
        if not self.is_asked or self.requests or self.is_withdrawn:
            return False
        self.is_asked = self.is_begun = False
        return True


class Claims:
    """Table of claimed entries. It is the `ClaimLedger` of the worker's queue.

    Args:
        token: token of the project, which dead letters do not contain.
        on_ended: called when an entry has ended.
    """

    def __init__(self, token: str, on_ended: Callable[[], None]) -> None:
        self._token = token
        self._on_ended = on_ended
        self._claims: dict[int, _Claim] = {}
        self._numbers: dict[EntryId, int] = {}
        self._last = 0
        self._settlement = Settlement([], [])
        self._gone: set[int] = set()
        # Entries with a request that this worker began before it lost them.
        self._lost_after_begin: set[EntryId] = set()
        self._is_erased: Callable[[bytes, float], bool] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether every claim has ended, and the outbox knows."""
        return not (self._claims or self._settlement.ended)

    @property
    def entries(self) -> int:
        """Number of entries that have not ended."""
        return len(self._claims)

    @property
    def has_gone(self) -> bool:
        """Whether records of entries that belong to another worker may still wait here."""
        return bool(self._gone)

    def add(self, stored: StoredEntry) -> int:
        """Claim an entry and return the row of its first record."""
        self._last += 1
        self._claims[self._last] = _Claim(stored.id, stored.entry.records, stored.since)
        self._numbers[stored.id] = self._last
        return self._last << _POSITION_BITS

    def bury(self, stored: StoredEntry, reason: DropReason, records: Sequence[bytes], message: str) -> None:
        """End an entry that cannot or must not be sent.

        Args:
            stored: the entry.
            reason: reason of its dead letters.
            records: its records, without the token; empty if they cannot be read.
            message: the cause.
        """
        unreadable = stored.entry.records - len(records)
        once_only = () if unreadable else stored.entry.non_idempotent
        self._settlement.dead.append(
            DeadEntry(
                id=stored.id,
                reason=reason,
                records=records,
                non_idempotent=once_only,
                unreadable=unreadable,
                message=message,
            )
        )
        self._settlement.ended.append(stored.id)
        self._on_ended()

    # Ledger

    def delivered(self, rows: Sequence[int]) -> None:
        """See `ClaimLedger`."""
        for number, count in Counter(map(_claim_of, rows)).items():
            self._end_records(number, count)

    def lost(self, rows: Sequence[int], loss: Loss) -> None:
        """See `ClaimLedger`."""
        for row, item, message in zip(rows, loss.items, loss.messages(), strict=True):
            self._claims[_claim_of(row)].dead.setdefault((loss.reason, message), []).append(item)
        self.delivered(rows)

    def withdrawn(self, rows: Sequence[int]) -> None:
        """See `ClaimLedger`."""
        counts = Counter(map(_claim_of, rows))
        for number in counts:
            self._claims[number].withdraw()
        self.delivered(rows)

    def _end_records(self, number: int, count: int) -> None:
        claim = self._claims[number]
        if not claim.end(count):
            return
        del self._claims[number]
        self._gone.discard(number)
        if self._numbers.get(claim.id) == number:
            del self._numbers[claim.id]
        if not claim.is_withdrawn:
            # Also if the entry is gone: the outbox knows better whether it still belongs to this worker.
            self._settlement.ended.append(claim.id)
            self._settlement.dead.extend(
                DeadEntry(
                    id=claim.id,
                    reason=reason,
                    records=[hide_token(item, self._token) for item in items],
                    non_idempotent=positions_of_non_idempotent(items),
                    message=message,
                )
                for (reason, message), items in claim.dead.items()
            )
        self._on_ended()

    def take_ended(self) -> Settlement:
        """Return the entries that have ended since the last call."""
        ended, self._settlement = self._settlement, Settlement([], [])
        return ended

    def put_back(self, settlement: Settlement) -> None:
        """Keep what the outbox did not take."""
        self._settlement.ended[:0] = settlement.ended
        self._settlement.dead[:0] = settlement.dead

    # Ownership

    def lose(self, ids: Iterable[EntryId]) -> None:
        """Note entries that belong to another worker now."""
        for entry in ids:
            if (number := self._numbers.get(entry)) is not None:
                self._gone.add(number)
                if self._claims[number].is_begun:
                    self._lost_after_begin.add(entry)

    def lose_all(self) -> None:
        """Note that all entries were given back, or will be taken over by other workers."""
        self.lose([*self._numbers])

    def lose_with(self, gone: Collection[EntryId]) -> set[EntryId]:
        """Note entries that belong to another worker now, and return them with all that are lost with them."""
        lost = entries_lost_with(gone, self._numbers)
        self.lose(lost)
        return lost

    def lose_other_lanes(self, held: Collection[str], ordered: Collection[str]) -> None:
        """Note the entries of those ordered lanes that are not held any more."""
        self.lose([entry for entry in self._numbers if entry.lane in ordered and entry.lane not in held])

    def is_gone(self, row: int) -> bool:
        """Return whether the entry of this row belongs to another worker."""
        return _claim_of(row) in self._gone

    # Persons whose data was erased

    def note_erased(self, is_erased: Callable[[bytes, float], bool] | None) -> None:
        """Take the newest `Held.erased`."""
        self._is_erased = is_erased

    def erased(self, rows: Sequence[int], items: Iterable[bytes]) -> set[int]:
        """Return the positions of the records of a batch that name a person who was erased after they were read."""
        is_erased = self._is_erased
        if is_erased is None:
            return set()
        return {at for at, item in enumerate(items) if is_erased(item, self._claims[_claim_of(rows[at])].since)}

    # Requests with records that must not be sent twice

    def once_only(self, rows: Sequence[int], items: Iterable[bytes]) -> dict[EntryId, list[int]]:
        """Return the positions of the records of a batch that must not be sent twice, by entry."""
        positions: dict[EntryId, list[int]] = {}
        for at, item in enumerate(items):
            if isinstance(item, NonIdempotentRecord):
                positions.setdefault(self._claims[_claim_of(rows[at])].id, []).append(at)
        return positions

    def positions(self, rows: Sequence[int], entry: EntryId) -> list[int]:
        """Return the positions of all records of an entry in a batch."""
        number = self._numbers.get(entry)
        return [at for at, row in enumerate(rows) if _claim_of(row) == number]

    def ask(self, ids: Iterable[EntryId]) -> None:
        """Note that the outbox is about to learn that requests with records of these entries begin."""
        for entry in ids:
            if (number := self._numbers.get(entry)) is not None:
                self._claims[number].ask()

    def begin(self, entry: EntryId) -> bool:
        """Note that the outbox knows of a request of this worker. Return whether it may be made.

        It may not if the worker began one before it lost the entry, and has got it back.
        """
        number = self._numbers.get(entry)
        if number is None or (entry in self._lost_after_begin and not self._claims[number].is_begun):
            return False
        self._claims[number].begin()
        return True

    def start_request(self, rows: Sequence[int], items: Iterable[bytes]) -> set[int]:
        """Note that a request with these records begins. Return the claims with records that must not be sent twice."""
        numbers = {
            _claim_of(row) for row, item in zip(rows, items, strict=True) if isinstance(item, NonIdempotentRecord)
        }
        for number in numbers:
            self._claims[number].count_request(1)
        return numbers

    def not_applied(self, numbers: Iterable[int]) -> None:
        """Note that a request with records of these claims was certainly not applied."""
        for number in numbers:
            self._claims[number].count_request(-1)

    def take_not_begun(self) -> list[EntryId]:
        """Return the entries that the outbox may count as begun, although no request with them may have been applied.

        They count as not begun from then on. Call it when no request is in flight.
        """
        return [
            claim.id
            for number, claim in self._claims.items()
            if number not in self._gone and claim.id not in self._lost_after_begin and claim.retract()
        ]
