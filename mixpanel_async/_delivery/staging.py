"""The shortest way into the queue."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Final

from .._encoding.fast_event import FRAGMENTS_PER_RECORD, insert_id_fragment, join_records, time_fragment
from .._runtime.fork import ForkMarker

# No record is smaller: what every event carries takes more.
MIN_RECORD_BYTES: Final = 128
# About a millisecond of checking and encoding.
YIELD_AFTER_BYTES: Final = 96 * 1024
# What a record costs that is entered by itself, in records that come by the stage. While requests are under way it
# counts twice: what a request needs to reach the wire, and its answer to be read, are several turns of the event loop.
_UNSTAGED_COST_FACTOR: Final = 4
# How many digits of an `$insert_id` count within a millisecond; the others are random.
_COUNTER_DIGITS: Final = 2
_INSERT_ID_ENDINGS: Final = tuple(
    insert_id_fragment(f"{number:0{_COUNTER_DIGITS}x}") for number in range(16**_COUNTER_DIGITS)
)


class StagingBuffer:
    """Where the client's own event loop lays down events whose batch is open and far from every bound.

    That takes a `list.extend` each, and no lock. What is on the stage is entered in the buffer, many at a time, before
    anything else happens there. Other threads may only take it off, and say with `shut` that there is no room.
    """

    __slots__ = (
        "_current_loop",
        "_loop",
        "bytes_reserved",
        "bytes_until_yield",
        "clock_offset",
        "cost_factor",
        "fork_marker",
        "fragments",
        "insert_id_endings",
        "millisecond_end",
        "millisecond_start",
        "records_left",
        "thread_id",
        "timestamp_prefix",
        "yield_budget",
    )

    def __init__(self) -> None:
        self.fragments: list[bytes] = []
        """What lies there: the shares of each record, which come and go together."""
        self.bytes_until_yield = 0
        """How many bytes more may lie there before others are let run."""
        self.bytes_reserved = 0
        """How many there is room for beyond that."""
        self.records_left = 0
        """How many records may lie there in all before their batch is full."""
        self.thread_id = 0
        """The thread of the event loop in which the client lives."""
        self._current_loop: Callable[[], object] = object
        self._loop: object = None
        self.fork_marker = ForkMarker()
        self.clock_offset = 0.0
        """Seconds by which this machine's clock is ahead of Mixpanel's, according to the last response."""
        self.yield_budget = YIELD_AFTER_BYTES
        """A coroutine that never waits keeps the loop to itself; after so many bytes others are let run."""
        self.cost_factor = _UNSTAGED_COST_FACTOR
        """How often a byte counts of what comes by itself."""
        self.millisecond_start = self.millisecond_end = 0.0
        """When the millisecond began that events are stamped with now, and when it ends, by this machine's clock."""
        self.timestamp_prefix = b""
        """The share of a record that says when, up to the end of its `$insert_id`."""
        self.insert_id_endings: Iterator[bytes] = iter(())
        """The ends of further ids of this millisecond."""

    def start_millisecond(self, now: float, fresh_id: str) -> bytes:
        """Stamp events with this time from now on, and give their ids the same random beginning.

        There are ids for no more of them than may lie here without filling their batch. The one that fills it gives way
        to others, so that the batch is sent.

        Args:
            now: wall clock in seconds.
            fresh_id: a random id.

        Returns:
            The end of the first id.
        """
        ahead = self.clock_offset
        stamp = int((now - ahead) * 1000)
        self.millisecond_start, self.millisecond_end = stamp / 1000 + ahead, (stamp + 1) / 1000 + ahead
        self.timestamp_prefix = time_fragment(stamp) + fresh_id[:-_COUNTER_DIGITS].encode()
        left = self.records_left - len(self)
        if left <= 1:
            self.bytes_until_yield, self.bytes_reserved = 0, self.bytes_until_yield + self.bytes_reserved
        self.insert_id_endings = iter(_INSERT_ID_ENDINGS[1 : max(1, left - 1)])
        return _INSERT_ID_ENDINGS[0]

    def set_clock_offset(self, ahead: float) -> None:
        """Set the seconds by which this machine's clock is ahead of Mixpanel's."""
        self.clock_offset = ahead

    def bind_loop(self, current_loop: Callable[[], object]) -> None:
        """Accept events from the calling loop.

        Args:
            current_loop: returns the object that identifies the running loop; raises RuntimeError outside of one.
        """
        self._current_loop = current_loop
        self._loop = current_loop()
        self.thread_id = threading.get_ident()

    def unbind_loop(self) -> None:
        """Be used no more: the loop has ended, or the main task in it."""
        self._loop = None
        self.bytes_until_yield = self.bytes_reserved = 0

    def is_own_loop(self) -> bool:
        """Return whether the caller runs in the bound loop."""
        try:
            return self._current_loop() is self._loop
        except RuntimeError:
            return False

    def close_from_other_thread(self) -> None:
        """Let nothing more be laid down until the thread of the loop measures again.

        Only that thread may say that there is room: what it lays down meanwhile another one cannot know.
        """
        if threading.get_ident() != self.thread_id:
            self.bytes_until_yield = self.bytes_reserved = 0

    def reset_after_fork(self) -> None:
        """Begin anew in a forked child: what lies here, and what ids begin with, is the parent's."""
        self.fragments.clear()
        self.unbind_loop()
        self.millisecond_end = 0.0
        self.fork_marker = ForkMarker()

    def update_limits(self, bytes_left: int, records_left: int, *, is_busy: bool) -> None:
        """Note how many bytes and records there is room for in all, and whether requests are under way."""
        self.cost_factor = 2 * _UNSTAGED_COST_FACTOR if is_busy else _UNSTAGED_COST_FACTOR
        self.records_left, self.millisecond_end = records_left, 0.0
        if threading.get_ident() == self.thread_id:
            bytes_left -= sum(map(len, self.fragments))
            self.bytes_until_yield = min(bytes_left, self.yield_budget)
            self.bytes_reserved = bytes_left - self.bytes_until_yield

    def charge(self, size: int) -> None:
        """Note that a record of this size, which did not lie here, may have taken the place of one that was to."""
        self.bytes_until_yield -= size
        self.records_left -= 1
        self.millisecond_end = 0.0

    def __len__(self) -> int:
        """How many records lie there."""
        return len(self.fragments) // FRAGMENTS_PER_RECORD

    def drain(self, max_records: int) -> tuple[bytes, int]:
        """Take the first records off the stage, no more than `most`. Whatever is laid down meanwhile stays.

        Returns:
            The records, `together`, and how many they are.
        """
        shares = self.fragments[: max_records * FRAGMENTS_PER_RECORD]
        count = len(shares)
        del self.fragments[:count]
        return (join_records(shares), count // FRAGMENTS_PER_RECORD) if shares else (b"", 0)
