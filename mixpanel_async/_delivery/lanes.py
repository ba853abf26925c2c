"""Data of the buffer: results and lanes. Only their own methods change them."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Collection, Iterable
from itertools import accumulate
from math import inf
from typing import Final, NamedTuple

from .._encoding.batch_body import Compressor
from .._encoding.identity_records import identity_kind
from .._model.config import BatchPolicy
from .._model.credentials import Secret
from .._model.records import RecordKind
from .._spool.messages import LANE_CODES
from .batch import Batch, IdentityTurn

_MAX_LANES: Final = 50
_COMPRESSED_KINDS: Final = frozenset({RecordKind.EVENTS, RecordKind.IMPORTS})


class WaitUntil(NamedTuple):
    """Nothing can be sent before this moment of the monotonic clock."""

    at: float


class Idle:
    """Nothing can be sent until a record comes or a request ends."""


IDLE: Final = Idle()


class Lane:
    """Records for one endpoint with one authentication.

    After a failure the lane sends one probe at a time, and none before `paused_until`. A flush shortens that pause, but
    never below `retry_after_until`.

    Args:
        kind: endpoint.
        secret: project secret that signs the requests; None without one.
        limit: requests in flight at once.
        max_bytes: largest request body.
        mixes_identity: identity records share requests with events, because both go to `/track` with the token.
    """

    __slots__ = (
        "code",
        "failed_at",
        "failures",
        "kind",
        "leased",
        "limit",
        "max_bytes",
        "merge_secret",
        "mixes_identity",
        "open",
        "paused_until",
        "ready",
        "retry_after_until",
        "secret",
        "single_requests",
        "size_limit_seen_at",
    )

    def __init__(
        self, kind: RecordKind, secret: Secret | None, limit: int, max_bytes: int, *, mixes_identity: bool = False
    ) -> None:
        self.kind = kind
        self.mixes_identity = mixes_identity
        self.code = LANE_CODES[kind, secret is not None]
        self.secret = secret
        self.merge_secret: Secret | None = None
        self.limit = limit
        self.max_bytes = max_bytes
        self.open: Batch | None = None
        self.ready: deque[Batch] = deque()
        # In lease order, which is restored when the event loop ends.
        self.leased: dict[Batch, None] = {}
        # Records of awaited calls. They bypass the queue and do not count against `limit`.
        self.single_requests: dict[Batch, None] = {}
        # When a 413 response last reduced `max_bytes`.
        self.size_limit_seen_at = 0.0
        self.failures = 0
        self.failed_at = 0.0
        self.paused_until = 0.0
        self.retry_after_until = 0.0

    def clear(self) -> None:
        """Remove every batch."""
        self.open = None
        self.ready.clear()
        self.leased.clear()
        self.single_requests.clear()

    def use_secret(self, secret: Secret | None) -> None:
        """Sign requests with this project secret from now on."""
        self.secret = secret

    def use_merge_secret(self, secret: Secret) -> None:
        """Sign queued merges with this project secret from now on. A spool stores no secret."""
        self.merge_secret = secret

    def fail(self, failure_epoch: int, now: float, delay: float) -> None:
        """Pause after a failed request.

        Args:
            failure_epoch: failures in a row when the request began.
            now: monotonic seconds.
            delay: seconds to pause.
        """
        # Requests that were in flight together fail together: they count as one failure of the lane.
        self.failures = max(self.failures, failure_epoch + 1)
        self.failed_at = now
        self.paused_until = max(self.paused_until, now + delay)

    def hold_until(self, moment: float) -> None:
        """Set the time before which nothing may be sent, even if a flush waits."""
        self.retry_after_until = max(self.retry_after_until, moment)

    def pause_until(self, moment: float) -> None:
        """Pause without a failed request."""
        self.paused_until = max(self.paused_until, moment)

    def recover(self) -> None:
        """Note that a request got a usable response."""
        self.failures = 0
        self.paused_until = self.retry_after_until

    def shorten_backoff(self, interval: float) -> None:
        """Reduce the pause to `interval` seconds after the last failure, unless Mixpanel asked for a longer one."""
        if self.failures:
            self.paused_until = min(self.paused_until, max(self.retry_after_until, self.failed_at + interval))

    def reduce_max_bytes(self, limit: int, now: float) -> None:
        """Remember that a larger request body was rejected."""
        self.max_bytes = min(self.max_bytes, limit)
        self.size_limit_seen_at = now

    def restore_max_bytes(self, limit: int) -> None:
        """Forget the size limit that a 413 response showed."""
        self.max_bytes = limit

    def route(self, kind: RecordKind | None) -> RecordKind | None:
        """Return the kind that selects another endpoint for a record than that of the lane, or None.

        Args:
            kind: result of `identity_kind`.
        """
        return None if self.mixes_identity and kind is RecordKind.IDENTITY else kind

    def open_batch(self, batch: Batch) -> None:
        """Set the batch that new records join."""
        self.open = batch

    def joinable(self, route: RecordKind | None) -> Batch | None:
        """Return the last batch if identity records of this route may join it. The caller checks its size."""
        last = self.open
        if last is None and route is not None and self.ready and self.ready[-1].first_try is None:
            last = self.ready[-1]
        return last if last is not None and last.route is route else None

    def make_room(self, sizes: array[int]) -> int:
        """Close the open batch if a record of the first size does not fit, and return how many of these sizes fit."""
        if self.open is not None and self.open.size + sizes[0] + 1 > self.max_bytes:
            self.close_open()
        size = 1 if self.open is None else self.open.size
        if size + sum(sizes) + len(sizes) <= self.max_bytes:
            return len(sizes)
        ends = accumulate((one + 1 for one in sizes), initial=size)
        # A record that is too large for every batch is sent alone.
        return max(1, sum(end <= self.max_bytes for end in ends) - 1)

    def close_open(self) -> None:
        """Move the open batch to the batches that are ready to be sent."""
        if self.open is not None:
            self.open.items.finish()
            self.ready.append(self.open)
            self.open = None

    def due(self, linger: float) -> float:
        """Return when the first batch is to be sent: a full one at once, an open one after the linger time.

        A full batch of events that were tracked inside requests waits for other records, like an open one.
        """
        if self.ready and (self.ready[0].opened != inf or self.ready[0].attempts):
            return -inf
        opened = [batch.opened for batch in self.ready]
        return min([*opened, self.open.opened] if self.open else opened, default=inf) + linger

    @property
    def head(self) -> Batch | None:
        """The batch to be sent next."""
        return self.ready[0] if self.ready else self.open

    @property
    def newest(self) -> Batch:
        """The batch of the record that was accepted last; the lane must not be empty."""
        return self.ready[-1] if self.open is None else self.open

    def lease(self, now: float) -> Batch:
        """Lease the first ready batch to a new request."""
        batch = self.ready[0]
        batch.begin_attempt(now)
        # No call between these two, so that no signal handler can run between them.
        self.leased[batch] = None
        del self.ready[0]
        return batch

    def return_lease(self, batch: Batch) -> None:
        """End a lease for which nothing was sent."""
        self.ready.appendleft(batch.salvage())
        del self.leased[batch]

    def salvage(self, *, has_rows: bool) -> None:
        """Make the lane consistent after an error has cut off a change of it.

        Args:
            has_rows: each record of the open batch must have a row in the spool.
        """
        if self.open is not None:
            self.open = None if self.open in self.ready else self.open.salvage(has_rows=has_rows)
        # A change affects only the first batch, or appends one.
        for at in {0, len(self.ready) - 1} if self.ready else ():
            self.ready[at] = self.ready[at].salvage()
        if self.open is not None and not self.open.items:
            self.open = None
        self.ready = deque(batch for batch in self.ready if batch.items)

    def replace(self, batch: Batch, other: Batch) -> None:
        """Exchange a waiting batch for another, or remove it if the other is empty."""
        if self.open is batch:
            self.open = other if other.items else None
        elif other.items:
            self.ready[self.ready.index(batch)] = other
        else:
            self.ready.remove(batch)

    def batches(self) -> Iterable[Batch]:
        """Return every batch, oldest first."""
        yield from self.leased
        yield from self.single_requests
        yield from self.ready
        if self.open is not None:
            yield self.open


class LaneTable(dict[tuple[RecordKind, Secret | None], Lane]):
    """Every lane of a buffer, by kind and secret. Creates their batches.

    Args:
        policy: requests in flight and size of batches.
        new_compressor: creates the gzip stream for events, which are compressed as they come; None disables this.
        mixes_identity: identity records share requests with events.
    """

    def __init__(
        self, policy: BatchPolicy, new_compressor: Callable[[], Compressor] | None, *, mixes_identity: bool
    ) -> None:
        super().__init__()
        self._policy = policy
        self._new_compressor = new_compressor
        self._mixes_identity = mixes_identity
        self._last_turn: IdentityTurn | None = None

    def reset(self) -> None:
        """Remove every batch."""
        for lane in self.values():
            lane.clear()
        self._last_turn = None

    def find(self, kind: RecordKind, key: Secret | None, secret: Secret | None, used: Collection[Lane]) -> Lane:
        """Return the lane of this kind and key, and sign its requests with `secret`. Create it at its first use.

        Args:
            kind: endpoint.
            key: secret that distinguishes the lane; None without one.
            secret: project secret that signs the requests from now on.
            used: lanes that hold records.
        """
        lane = self.get((kind, key))
        if lane is None:
            if len(self) > _MAX_LANES:
                # A process that serves many projects would otherwise collect lanes of unused secrets.
                for name, other in [*self.items()]:
                    if not (other.secret is None or other.failures or other in used):
                        del self[name]
            limit = self._policy.max_in_flight if kind in {RecordKind.EVENTS, RecordKind.IMPORTS} else 1
            mixes_identity = self._mixes_identity and kind is RecordKind.EVENTS
            lane = Lane(kind, secret, limit, self._policy.max_bytes, mixes_identity=mixes_identity)
            self[kind, key] = lane
        lane.use_secret(secret)
        return lane

    def new_batch(self, lane: Lane, items: list[bytes], now: float, route: RecordKind | None = None) -> Batch:
        """Return a new batch, which waits for the identity records that other lanes hold."""
        # Incremental compression loses the type of a record, which profile updates need. Their endpoints take no gzip.
        new_compressor = self._new_compressor if lane.kind in _COMPRESSED_KINDS else None
        return Batch(lane, items, now, new_compressor=new_compressor, route=route, after=self._last_turn)

    def append_identity(self, lane: Lane, item: bytes, now: float, row: int | None, used: Iterable[Lane]) -> None:
        """Append an identity record to the last batch of its lane, or to a new one.

        Args:
            lane: lane of events.
            item: encoded record.
            now: as in `Buffer.offer`.
            row: spool row; None without a spool.
            used: lanes that hold records.
        """
        route = lane.route(identity_kind(item))
        batch, policy = lane.joinable(route), self._policy
        if batch is None or len(batch.items) >= policy.max_events or batch.size + len(item) + 1 > lane.max_bytes:
            lane.close_open()
            batch = self.new_batch(lane, [], now, route)
            lane.open_batch(batch)
        if batch.turn is None or batch.turn is not self._last_turn:
            # No batch of another lane may have records from before and from after this one.
            for other in used:
                if other is not lane:
                    other.close_open()
        batch.append(item, now)
        self._last_turn = batch.begin_turn()
        if row is not None:
            batch.ids.append(row)
        if now != inf:
            batch.make_due()
        if route is not None or len(batch.items) >= policy.max_events:
            lane.close_open()
