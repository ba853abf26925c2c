"""The shortest way into the queue."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, Final

from .._encoding.fast_event import SHARES, id_of, moment_of, together
from .._runtime.fork import birthmark

# No record is smaller: what every event carries takes more.
LEAST_RECORD_BYTES: Final = 128
# About a millisecond of checking and encoding.
YIELD_AFTER_BYTES: Final = 96 * 1024
# What a record costs that is entered by itself, in records that come by the stage. While requests are under way it
# counts twice: what a request needs to reach the wire, and its answer to be read, are several turns of the event loop.
_TIMES_OFF_STAGE: Final = 4
# How many digits of an `$insert_id` count within a millisecond; the others are random.
_COUNTED: Final = 2
_ENDS: Final = tuple(id_of(f"{number:0{_COUNTED}x}") for number in range(16**_COUNTED))


class _Nobody:
    _thread_id = None


class Stage:
    """Where the client's own event loop lays down events whose batch is open and far from every bound.

    That takes a `list.extend` each, and no lock. What is on the stage is entered in the buffer, many at a time, before
    anything else happens there. Other threads may only take it off, and say with `shut` that there is no room.
    """

    __slots__ = (
        "ids",
        "mark",
        "moment",
        "reserve",
        "room",
        "runner",
        "seconds_ahead",
        "shares",
        "since",
        "thread",
        "until",
        "until_yield",
        "vacancies",
        "weight",
    )

    def __init__(self) -> None:
        self.shares: list[bytes] = []
        """What lies there: the shares of each record, which come and go together."""
        self.room = 0
        """How many bytes more may lie there before others are let run."""
        self.reserve = 0
        """How many there is room for beyond that."""
        self.vacancies = 0
        """How many records may lie there in all before their batch is full."""
        self.thread = 0
        """The thread of the event loop in which the client lives."""
        self.runner: Any = _Nobody
        """Says in which thread that loop runs, as long as the client's main task does; none if it is not asyncio's."""
        self.mark = birthmark()
        self.seconds_ahead = 0.0
        """How far this machine's clock is ahead of Mixpanel's, as the last answer showed."""
        self.until_yield = YIELD_AFTER_BYTES
        """A coroutine that never waits keeps the loop to itself; after so many bytes others are let run."""
        self.weight = _TIMES_OFF_STAGE
        """How often a byte counts of what comes by itself."""
        self.since = self.until = 0.0
        """When the millisecond began that events are stamped with now, and when it ends, by this machine's clock."""
        self.moment = b""
        """The share of a record that says when, up to the end of its `$insert_id`."""
        self.ids: Iterator[bytes] = iter(())
        """The ends of further ids of this millisecond."""

    def begin_moment(self, now: float, fresh_id: str) -> bytes:
        """Stamp events with this time from now on, and give their ids the same random beginning.

        There are ids for no more of them than may lie here without filling their batch. The one that fills it gives way
        to others, so that the batch is sent.

        Args:
            now: wall clock in seconds.
            fresh_id: a random id.

        Returns:
            The end of the first id.
        """
        ahead = self.seconds_ahead
        stamp = int((now - ahead) * 1000)
        self.since, self.until = stamp / 1000 + ahead, (stamp + 1) / 1000 + ahead
        self.moment = moment_of(stamp) + fresh_id[:-_COUNTED].encode()
        left = self.vacancies - len(self)
        if left <= 1:
            self.room, self.reserve = 0, self.room + self.reserve
        self.ids = iter(_ENDS[1 : max(1, left - 1)])
        return _ENDS[0]

    def settle_in(self, runner: object | None) -> None:
        """Be used in the asyncio loop that calls, as long as this says that it runs; without that nowhere."""
        self.runner = runner or _Nobody
        self.thread = threading.get_ident()

    def leave(self) -> None:
        """Be used no more: the loop has ended, or the main task in it."""
        self.runner = _Nobody
        self.room = self.reserve = 0

    def shut(self) -> None:
        """Let nothing more be laid down until the thread of the loop measures again.

        Only that thread may say that there is room: what it lays down meanwhile another one cannot know.
        """
        if threading.get_ident() != self.thread:
            self.room = self.reserve = 0

    def forget(self) -> None:
        """Begin anew in a forked child: what lies here, and what ids begin with, is the parent's."""
        self.shares.clear()
        self.leave()
        self.until = 0.0
        self.mark = birthmark()

    def measured(self, room: int, vacancies: int, *, is_busy: bool) -> None:
        """Note how many bytes and records there is room for in all, and whether requests are under way."""
        self.weight = 2 * _TIMES_OFF_STAGE if is_busy else _TIMES_OFF_STAGE
        self.vacancies, self.until = vacancies, 0.0
        if threading.get_ident() == self.thread:
            room -= sum(map(len, self.shares))
            self.room = min(room, self.until_yield)
            self.reserve = room - self.room

    def entered(self, size: int) -> None:
        """Note that a record of this size, which did not lie here, may have taken the place of one that was to."""
        self.room -= size
        self.vacancies -= 1
        self.until = 0.0

    def __len__(self) -> int:
        """How many records lie there."""
        return len(self.shares) // SHARES

    def take(self, most: int) -> tuple[bytes, int]:
        """Take the first records off the stage, no more than `most`. Whatever is laid down meanwhile stays.

        Returns:
            The records, `together`, and how many they are.
        """
        shares = self.shares[: most * SHARES]
        count = len(shares)
        del self.shares[:count]
        return (together(shares), count // SHARES) if shares else (b"", 0)
