"""Staging buffer for events tracked from the client's own event loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextvars import ContextVar
from threading import get_ident
from typing import Any, Final

from .._encoding.clock import Moment, ServerClock
from .._encoding.fast_event import FastEventEncoder, insert_id_fragment, time_fragment
from .._runtime.environment import Environment, WallClock
from .._runtime.fork import ForkMarker

IN_REQUEST: Final = ContextVar("mixpanel_async_in_request", default=False)
"""Whether the current code runs inside a request of this package."""
IN_CALLBACK: Final = ContextVar("mixpanel_async_in_callback", default=False)
"""Whether the current code runs inside `on_drop` or `on_delivered`."""
# A lower bound for the size of a record: the fields of every event take more.
MIN_RECORD_BYTES: Final = 128
# About one millisecond of validation and encoding.
YIELD_AFTER_BYTES: Final = 96 * 1024
# Cost of a record that is enqueued individually, relative to a staged one. It doubles while requests are in flight,
# because writing a request and reading its response takes several turns of the event loop.
_UNSTAGED_COST_FACTOR: Final = 4
# Number of digits of an `$insert_id` that count within a millisecond. The others are random.
_COUNTER_DIGITS: Final = 2
_INSERT_ID_ENDINGS: Final = tuple(
    insert_id_fragment(f"{number:0{_COUNTER_DIGITS}x}") for number in range(16**_COUNTER_DIGITS)
)


class StagingBuffer:
    """Lock-free list of encoded events. Only the loop's thread appends; any thread may drain it.

    It accepts an event while the open batch and the queue's limits have room for it. The queue moves the staged records
    to its buffer, many at a time, before it does anything else. Another thread closes it with
    `close_from_other_thread` before it changes the queue.

    Args:
        wake_sender: called for the first event of a batch, so that the sender moves it to the buffer.
    """

    __slots__ = (
        "_current_loop",
        "_encoder",
        "_environment",
        "_loop",
        "_new_id",
        "_wake_sender",
        "_wall_clock",
        "bytes_until_yield",
        "clock",
        "cost_factor",
        "fork_marker",
        "insert_id_endings",
        "millisecond_end",
        "millisecond_start",
        "opens_batch",
        "records",
        "records_left",
        "thread_id",
        "timestamp_prefix",
        "yield_budget",
    )

    def __init__(self, wake_sender: Callable[[], None]) -> None:
        self._wake_sender = wake_sender
        self._encoder: FastEventEncoder | None = None
        self._environment: Environment
        self._wall_clock: WallClock
        self._new_id: Callable[[], str]
        self.records: list[bytes] = []
        """Staged records, oldest first."""
        self.bytes_until_yield = 0
        """Bytes that may be staged before the next event takes the general path, which lets other tasks run."""
        self.records_left = 0
        """Number of records that fit into the open batch, including the staged ones."""
        self.opens_batch = False
        """Whether no batch is open, so that the next event opens one."""
        self.thread_id = 0
        """Thread of the client's event loop."""
        self._current_loop: Callable[[], object] = object
        self._loop: object = None
        self.fork_marker = ForkMarker()
        self.clock = ServerClock()
        """Model of this machine's clock, which corrects the times of new records."""
        self.yield_budget = YIELD_AFTER_BYTES
        """Bytes until other tasks must run: a coroutine that never waits would block the event loop."""
        self.cost_factor = _UNSTAGED_COST_FACTOR
        """Factor for the bytes of records that are enqueued individually."""
        self.millisecond_start = self.millisecond_end = 0.0
        """The current millisecond, by this machine's clock."""
        self.timestamp_prefix = b""
        """Fragment of a record with the current millisecond and the common prefix of its `$insert_id`s."""
        self.insert_id_endings: Iterator[bytes] = iter(())
        """Unused endings of `$insert_id`s of the current millisecond."""

    def use_encoder(self, encoder: FastEventEncoder | None, environment: Environment) -> None:
        """Set the encoder of plain events. With None, no event is staged."""
        self._encoder = encoder
        self._environment, self._wall_clock = environment, environment.wall_clock
        self._new_id = environment.new_id

    def now(self) -> float:
        """Return the wall clock in seconds, corrected if Mixpanel's responses show that it is wrong.

        Mixpanel overwrites a `time` in its future. Two attempts to send one event could then count as two events.
        """
        wall = self._wall_clock.time()
        return wall - self._ahead(wall)

    def _ahead(self, wall: float) -> float:
        correction = self.clock.correction
        if (correction.ahead or wall < correction.measured.wall) and not self._environment.is_wall_time_replaced():
            return correction.at(Moment(wall, self._environment.monotonic()))
        return 0.0

    def try_append(self, distinct_id: object, event_name: object, properties: Any) -> bool:
        """Encode a plain event that happens now, and stage it.

        Returns:
            False if the event must take the general path: it is not plain, there is no room, or the caller does not
            run in the client's own event loop.
        """
        encoder = self._encoder
        if (
            self.bytes_until_yield <= 0
            or encoder is None
            or (type(properties) is not dict and properties is not None)
            or get_ident() != self.thread_id
            or not self.fork_marker.is_current
            # An event about our own request must not cause a request, which would cause the next event.
            # One of a callback may cause the next call of the callback.
            or (self.opens_batch and (IN_REQUEST.get() or IN_CALLBACK.get()))
        ):
            return False
        now = self._wall_clock.time()
        if not (self.millisecond_start <= now < self.millisecond_end and (ending := next(self.insert_id_endings, b""))):
            # Once per millisecond: finding the running loop costs 5 % of the call on Python 3.11. An event that is
            # staged for an abandoned loop of the same thread is sent when the client binds to the next loop.
            if not self._is_own_loop():
                return False
            ending = self.start_millisecond(now, self._new_id())
        record = encoder.encode(distinct_id, event_name, properties, self.timestamp_prefix, ending)
        size = 0 if record is None else len(record)
        if record is None or size > self.bytes_until_yield:
            return False
        # No call between the check and the append: another thread may set the limit to 0 at any call.
        self.bytes_until_yield -= size
        self.records.append(record)
        if self.opens_batch:
            # In this order, so that the next event wakes the sender if a signal handler raises here.
            self._wake_sender()
            self.opens_batch = False
        return True

    def _is_own_loop(self) -> bool:
        try:
            return self._current_loop() is self._loop
        except RuntimeError:
            return False

    def start_millisecond(self, now: float, fresh_id: str) -> bytes:
        """Start a new millisecond: a new time, and a new random prefix of `$insert_id`s.

        It has at most as many ids as records fit into the open batch. The record that fills the batch takes the general
        path, so that the batch is sent.

        Args:
            now: wall clock in seconds.
            fresh_id: a random id.

        Returns:
            The ending of the first id.
        """
        ahead = self._ahead(now)
        stamp = int((now - ahead) * 1000)
        # Until the end of this method, no millisecond has begun: a signal handler may raise at any call.
        self.millisecond_end = 0.0
        self.timestamp_prefix = time_fragment(stamp) + fresh_id[:-_COUNTER_DIGITS].encode()
        left = self.records_left - len(self)
        if left <= 1:
            self.bytes_until_yield = 0
        self.insert_id_endings = iter(_INSERT_ID_ENDINGS[1 : max(1, left - 1)])
        self.millisecond_start, self.millisecond_end = stamp / 1000 + ahead, (stamp + 1) / 1000 + ahead
        return _INSERT_ID_ENDINGS[0]

    def set_yield_budget(self, size: int) -> None:
        """Set the bytes of events that may be enqueued until other tasks run."""
        self.yield_budget = size

    def bind_loop(self, current_loop: Callable[[], object]) -> None:
        """Accept events from the calling loop.

        Args:
            current_loop: returns the object that identifies the running loop; raises RuntimeError outside of one.
        """
        self._current_loop = current_loop
        self._loop = current_loop()
        self.thread_id = get_ident()

    def unbind_loop(self) -> None:
        """Reject events until the next `bind_loop`: the loop, or the client's main task in it, has ended."""
        self._loop = None
        self.bytes_until_yield = 0

    def close_from_other_thread(self) -> None:
        """Reject events until the loop's thread updates the limits.

        Another thread cannot open the buffer again: it does not know how many events the loop's thread is staging.
        """
        if get_ident() != self.thread_id:
            self.bytes_until_yield = 0

    def reset_after_fork(self) -> None:
        """Drop the parent's records and its prefix of `$insert_id`s in a forked child."""
        self.records.clear()
        self.unbind_loop()
        self.millisecond_end = 0.0
        self.fork_marker = ForkMarker()

    def update_limits(self, bytes_left: int, records_left: int, *, opens_batch: bool, is_busy: bool) -> None:
        """Set the limits.

        Args:
            bytes_left: bytes that fit into the queue and the open batch, including the staged ones.
            records_left: records that fit into the open batch, including the staged ones.
            opens_batch: whether no batch is open.
            is_busy: whether requests are in flight.
        """
        self.opens_batch = opens_batch
        self.cost_factor = 2 * _UNSTAGED_COST_FACTOR if is_busy else _UNSTAGED_COST_FACTOR
        self.records_left, self.millisecond_end = records_left, 0.0
        if get_ident() == self.thread_id:
            self.bytes_until_yield = min(bytes_left - sum(map(len, self.records)), self.yield_budget)

    def charge(self, size: int) -> None:
        """Charge a record that was enqueued individually and used room that the limits include."""
        self.bytes_until_yield -= size
        self.records_left -= 1
        self.millisecond_end = 0.0

    def must_yield(self, size: int) -> bool:
        """Charge an individually enqueued record to the yield budget. Return whether other tasks must run now."""
        self.yield_budget -= self.cost_factor * size
        return self.yield_budget <= 0

    def __len__(self) -> int:
        return len(self.records)

    def join(self, max_records: int) -> tuple[bytes, int]:
        """Return the oldest records, joined with a comma before each, and their number."""
        records = self.records[:max_records]
        return b",".join((b"", *records)), len(records)

    def charge_drained(self, size: int) -> None:
        """Charge records that have left the buffer to the yield budget."""
        self.yield_budget -= size
