"""Staging buffer for records from the client's own event loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextvars import ContextVar
from itertools import repeat
from operator import add
from threading import get_ident
from typing import Any, Final

from .._encoding.clock import Moment, ServerClock
from .._encoding.size_check import MAX_RECORD_BYTES
from .._encoding.timestamps import time_fragment
from .._model.records import Record
from .._runtime.environment import Environment, WallClock
from .._runtime.fork import ForkMarker

IN_REQUEST: Final = ContextVar("mixpanel_async_in_request", default=False)
"""Whether the current code runs inside a request of this package."""
IN_CALLBACK: Final = ContextVar("mixpanel_async_in_callback", default=False)
"""Whether the current code runs inside `on_drop` or `on_delivered`."""
# A lower bound for the size of a record: the fields of every profile update take more.
MIN_RECORD_BYTES: Final = 48
# About one millisecond of validation and encoding.
YIELD_AFTER_BYTES: Final = 96 * 1024
# Cost of a record that is enqueued individually, relative to a staged one. It doubles while requests are in flight,
# because writing a request and reading its response takes several turns of the event loop.
_UNSTAGED_COST_FACTOR: Final = 4
# Number of digits of an `$insert_id` that count within a millisecond. The others are random.
_COUNTER_DIGITS: Final = 2
_INSERT_ID_ENDINGS: Final = tuple(b"%0*x" % (_COUNTER_DIGITS, number) for number in range(16**_COUNTER_DIGITS))
Encode = Callable[[Any, Any, Any, bytes, bytes | None], bytes | None]
"""Encodes a record from three arguments of a call, a `time` and `$insert_id` from `time_fragment` on, and constants."""


class Stage:
    """Staged records of one lane.

    Attributes:
        records: the records, oldest first.
        records_left: number of records that fit into the open batch, including the staged ones.
        opens_batch: whether no batch is open, so that the next record opens one.
    """

    __slots__ = ("opens_batch", "records", "records_left")

    def __init__(self) -> None:
        self.records: list[bytes] = []
        self.records_left = 0
        self.opens_batch = False

    def update(self, records_left: int, *, opens_batch: bool) -> None:
        """Set the attributes."""
        self.records_left, self.opens_batch = records_left, opens_batch

    def charge(self) -> None:
        """Charge a record that was enqueued individually and used room that the limit includes."""
        self.records_left -= 1


class StagingBuffer:
    """Lock-free lists of encoded records, one for each lane. Only the loop's thread appends; any thread may drain them.

    It accepts a record while the limits of the queue have room for it. The queue moves the staged records to its
    buffer, many at a time, before it does anything else. Another thread closes the staging buffer with
    `close_from_other_thread` before it changes the queue.

    Args:
        wake_sender: called for the first record of a batch, and when it is full, so that the sender moves the records
            to the buffer.
    """

    __slots__ = (
        "_current_loop",
        "_environment",
        "_loop",
        "_new_id",
        "_stages",
        "_wake_sender",
        "_wall_clock",
        "bytes_until_yield",
        "clock",
        "cost_factor",
        "fork_marker",
        "millisecond_end",
        "millisecond_start",
        "stamps",
        "thread_id",
        "yield_budget",
    )

    def __init__(self, wake_sender: Callable[[], None]) -> None:
        self._wake_sender = wake_sender
        self._environment: Environment
        self._wall_clock: WallClock
        self._new_id: Callable[[], str]
        self._stages: list[Stage] = []
        self.bytes_until_yield = 0
        """Bytes that may be staged before the next record takes the general path, which lets other tasks run."""
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
        self.stamps: Iterator[bytes] = iter(())
        """Unused fragments of records with the current millisecond and an `$insert_id`."""

    def new_stage(self) -> Stage:
        """Add the stage of one lane."""
        stage = Stage()
        self._stages.append(stage)
        return stage

    def use_environment(self, environment: Environment) -> None:
        """Set the clocks and the source of ids."""
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

    def try_append(
        self, stage: Stage, encode: Encode, first: Any, second: Any, third: Any, shared: bytes | None = None
    ) -> bytes | bool:
        """Encode a record and stage it.

        Args:
            stage: stage of the lane.
            encode: encodes the record. It returns None if it cannot.
            first: argument of `encode`, as `second`, `third` and `shared`.

        Returns:
            True if the record is staged. False if it is not encoded: `encode` cannot, it is too large, or the caller
            does not run in the client's own event loop. The record itself if there is no room for it.
        """
        if (
            self.bytes_until_yield <= 0
            or get_ident() != self.thread_id
            or not self.fork_marker.is_current
            # An event about our own request must not cause a request, which would cause the next event.
            # One of a callback may cause the next call of the callback.
            or (stage.opens_batch and (IN_REQUEST.get() or IN_CALLBACK.get()))
        ):
            return False
        now = self._wall_clock.time()
        if not (self.millisecond_start <= now < self.millisecond_end and (stamp := next(self.stamps, b""))):
            # Once per millisecond: finding the running loop costs 5 % of the call on Python 3.11. An event that is
            # staged for an abandoned loop of the same thread is sent when the client binds to the next loop.
            if not self._is_own_loop():
                return False
            stamp = self.start_millisecond(now, self._new_id())
        record = encode(first, second, third, stamp, shared)
        if record is None:
            return False
        size = len(record)
        if size > self.bytes_until_yield:
            return size < MAX_RECORD_BYTES and Record(record)
        # No call between the check and the append: another thread may set the limit to 0 at any call.
        self.bytes_until_yield -= size
        records = stage.records
        records.append(record)
        if stage.opens_batch or len(records) >= stage.records_left:
            # In this order, so that the next event wakes the sender if a signal handler raises here.
            self._wake_sender()
            stage.update(stage.records_left, opens_batch=False)
        return True

    def _is_own_loop(self) -> bool:
        try:
            return self._current_loop() is self._loop
        except RuntimeError:
            return False

    def start_millisecond(self, now: float, fresh_id: str) -> bytes:
        """Start a new millisecond, or its next ids: a new time, and a new random prefix of `$insert_id`s.

        Args:
            now: wall clock in seconds.
            fresh_id: a random id.

        Returns:
            The first stamp.
        """
        ahead = self._ahead(now)
        stamp = int((now - ahead) * 1000)
        # Until the end of this method, no millisecond has begun: a signal handler may raise at any call.
        self.millisecond_end = 0.0
        prefix = time_fragment(stamp) + fresh_id[:-_COUNTER_DIGITS].encode()
        stamps: Iterator[bytes] = map(add, repeat(prefix), _INSERT_ID_ENDINGS)
        self.stamps = stamps
        self.millisecond_start, self.millisecond_end = stamp / 1000 + ahead, (stamp + 1) / 1000 + ahead
        return next(stamps)

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
        self.millisecond_end = 0.0
        self.thread_id = get_ident()

    def unbind_loop(self) -> None:
        """Reject events until the next `bind_loop`: the loop, or the client's main task in it, has ended."""
        self._loop = None
        self.bytes_until_yield = 0

    def close_from_other_thread(self) -> None:
        """Reject events until the loop's thread updates the limits.

        Another thread cannot open the buffer again: it does not know how many events the loop's thread is staging.
        """
        if self._stages and get_ident() != self.thread_id:
            self.bytes_until_yield = 0

    def reset_after_fork(self) -> None:
        """Drop the parent's records and its prefix of `$insert_id`s in a forked child."""
        for stage in self._stages:
            stage.records.clear()
        self.unbind_loop()
        self.millisecond_end = 0.0
        self.fork_marker = ForkMarker()

    def update_limits(self, bytes_left: int, *, is_busy: bool) -> None:
        """Set the limits.

        Args:
            bytes_left: bytes that fit into the queue, including the staged ones.
            is_busy: whether requests are in flight.
        """
        self.cost_factor = 2 * _UNSTAGED_COST_FACTOR if is_busy else _UNSTAGED_COST_FACTOR
        if get_ident() == self.thread_id:
            staged = sum(len(record) for stage in self._stages for record in stage.records)
            self.bytes_until_yield = min(bytes_left - staged, self.yield_budget)

    def charge(self, size: int) -> None:
        """Charge a record that was enqueued individually and used room that the limit includes."""
        self.bytes_until_yield -= size

    def must_yield(self, size: int) -> bool:
        """Charge an individually enqueued record to the yield budget. Return whether other tasks must run now.

        False in threads other than that of the client's event loop.
        """
        if get_ident() != self.thread_id:
            return False
        self.yield_budget -= self.cost_factor * size
        return self.yield_budget <= 0

    def __len__(self) -> int:
        return sum(len(stage.records) for stage in self._stages)

    def charge_drained(self, size: int) -> None:
        """Charge records that have left the buffer to the yield budget."""
        self.yield_budget -= size
