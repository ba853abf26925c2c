"""Reader of one kind of records: reads entries while the queue has room, unpacks them and claims their records."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from .._delivery.claimed import ClaimedQueue
from .._model.errors import OutboxError, count_of
from .._model.records import DropReason, RecordKind
from .._runtime.environment import Environment
from ..outbox.lanes import is_ordered
from ..outbox.packing import SpoiledBodyError, stored_form, unpack
from ..outbox.protocol import Inbox, StoredEntry
from .claims import Claims
from .fence import Fence
from .outage import Outage
from .signals import Signals, wait_for

# Deliveries of an entry after which it is not sent any more. Each but the last one ended with the death of its worker.
# A worker may also be killed from outside, and then everything that it has counts one more. Measured with a kill every
# three seconds for three minutes: a limit of 5 was reached by sound entries.
MAX_DELIVERIES: Final = 20
# Seconds that one command waits for an entry.
_WAIT: Final = 1.0
# Full batches that wait for a request while more are read.
_BATCHES_HELD: Final = 2
# Bytes of records that wait for a request while more are read.
_BYTES_HELD: Final = 16 * 1024 * 1024
# Age in seconds from which events are checked for the limit of `/track`. It covers the differences of clocks.
_OLD_AFTER: Final = 60.0


class Reader:
    """Reads the entries of one kind.

    Args:
        kind: kind of the records.
        lanes: lanes of this kind.
        inbox: the outbox.
        queue: takes the records.
        claims: table of entries.
        fence: whether the worker still holds its leases.
        outage: failures of the outbox.
        signals: changes of the queue.
        token: token of the project.
        batch_records: records of a full batch.
        environment: clocks.
    """

    def __init__(
        self,
        kind: RecordKind,
        lanes: Collection[str],
        *,
        inbox: Inbox,
        queue: ClaimedQueue,
        claims: Claims,
        fence: Fence,
        outage: Outage,
        signals: Signals,
        token: str,
        batch_records: int,
        environment: Environment,
    ) -> None:
        self._kind = kind
        self._lanes = lanes
        self._inbox = inbox
        self._queue = queue
        self._claims = claims
        self._fence = fence
        self._outage = outage
        self._signals = signals
        self._token = token
        self._most = _BATCHES_HELD * batch_records
        self._wall_time = environment.wall_time

    async def run(self, *, until_empty: bool) -> None:
        """Read until cancelled, or until the outbox returns no entry.

        Args:
            until_empty: end with the first answer without an entry.
        """
        command = f"read {self._kind.value}"
        while True:
            changed = self._signals.changed
            records, size = self._queue.waiting(self._kind)
            room = self._most - records
            if room <= 0 or size >= _BYTES_HELD or not self._fence.is_open:
                await wait_for(changed, _WAIT)
                continue
            try:
                entries = await self._inbox.read(self._lanes, max_records=room, wait=0.0 if until_empty else _WAIT)
            except OutboxError as error:
                await self._outage.wait(command, error)
                continue
            self._outage.ended(command)
            for stored in entries:
                self._claim(stored)
            if until_empty and not entries:
                self._queue.end_linger()
                return

    def _claim(self, stored: StoredEntry) -> None:
        """Claim an entry. One that cannot or must not be sent becomes a dead letter."""
        try:
            if stored.deliveries > MAX_DELIVERIES:
                died = count_of(stored.deliveries - 1, "worker")
                self._bury(stored, DropReason.CRASHED, stored_form(stored.entry), f"{died} died with this entry")
                return
            items = unpack(stored.entry, self._token)
        except SpoiledBodyError as error:
            self._bury(stored, DropReason.SPOILED, [], str(error))
            return
        first = self._claims.add(stored)
        rows: Sequence[int] = range(first, first + len(items))
        erased = frozenset(stored.erased)
        if erased:
            gone = [at for at in range(len(items)) if at in erased]
            kept = [at for at in range(len(items)) if at not in erased]
            self._queue.discard_claimed(self._kind, [items[at] for at in gone], [rows[at] for at in gone])
            items, rows = [items[at] for at in kept], [rows[at] for at in kept]
        lane, is_repeated = stored.id.lane, stored.deliveries > 1
        repeated = lane if is_repeated and is_ordered(lane) else None
        self._queue.claim(self._kind, items, rows, is_old=self._is_old(stored), repeated=repeated)
        if is_repeated and repeated is None:
            # The longer it waits here, the more innocent records are blamed for the death of the next worker.
            self._queue.end_linger()

    def _is_old(self, stored: StoredEntry) -> bool:
        return self._wall_time() - stored.entry.accepted_at >= _OLD_AFTER

    def _bury(self, stored: StoredEntry, reason: DropReason, records: list[bytes], message: str) -> None:
        self._claims.bury(stored, reason, records, message)
        self._queue.count_dead(self._kind, records, stored.entry.records - len(records), reason, message)
