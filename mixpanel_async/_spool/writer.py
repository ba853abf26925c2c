"""The thread that writes: one commit for all that came while the last one was under way.

Everything that touches the database happens here, in the order in which it was asked for. While the process forks, the
thread rests with the database closed: SQLite remembers within the process which locks its connections hold, and a child
that inherits such a memory would believe locks to be its own that are its parent's.
https://www.sqlite.org/howtocorrupt.html section 2.6, read 2026-11-22.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Final

from .._model.errors import ConfigurationError, SpoolError
from .._runtime.clock import Environment
from .database import is_damage, is_full
from .files import OwnerLock
from .fork_guard import ForkGuard
from .messages import CommitGroup, Eviction, PendingWork, PendingWrite, Settings, WriterListener
from .session import Session

_log = logging.getLogger("mixpanel_async")
# Seconds between two looks for what others have left, and between tries when the disk fails.
_LOOK_EVERY: Final = 10.0
_TRY_AGAIN_AFTER: Final = 1.0
# Seconds between two portions that are given back to the disk, if nothing is asked for.
_BREATH: Final = 0.01
# What one commit holds, about: SQLite's log grows with the largest.
_MOST_GROUP_BYTES: Final = 4 * 1024 * 1024


class SpoolWriter:
    """Owns the thread.

    Args:
        settings: where and how.
        reports: who is told.
        runtime: clocks.
    """

    def __init__(self, settings: Settings, reports: WriterListener, runtime: Environment) -> None:
        self._settings = settings
        self._reports = reports
        self._runtime = runtime
        self._gate = ForkGuard(self.forget, self._wake_thread)
        self._claims: dict[int, OwnerLock] = {}
        self._begin_anew()

    def forget(self) -> None:
        """Begin anew in a forked child: the thread and its claims are the parent's."""
        self._gate.forked()
        for claim in self._claims.values():
            claim.forget()
        self._begin_anew()

    def _begin_anew(self) -> None:
        # A signal handler may track while this very thread holds it.
        self.group_lock: AbstractContextManager[bool] = threading.RLock()
        """Held while a record gets its place in a group."""
        self._wakeup = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._works = deque([PendingWork(CommitGroup())])
        """What has been asked for, as one commit each. There is always one that takes more."""
        self._under_way = PendingWork(CommitGroup())
        self._has_said = False
        self._looked = 0.0
        self._has_read = self._is_shrinking = False
        self._claims = {}

    def _wake_thread(self) -> None:
        self._wakeup.set()

    @property
    def group(self) -> CommitGroup:
        """The group that the next record joins. Hold `mutex`."""
        group = self._works[-1].group
        if group.size < _MOST_GROUP_BYTES:
            return group
        return self._add_work().group

    def _add_work(self) -> PendingWork:
        self._works.append(PendingWork(CommitGroup()))
        return self._works[-1]

    def wake(self) -> None:
        """Have what was asked for looked at."""
        if self._thread is None:
            self.begin()
        elif not self._wakeup.is_set():
            self._wakeup.set()

    def submit(self, change: Callable[[PendingWork], None]) -> CommitGroup:
        """Have something done with the next commit."""
        with self.group_lock:
            change(self._works[-1])
            group = self._works[-1].group
        self.wake()
        return group

    def begin(self) -> CommitGroup:
        """Start the thread, which opens the database.

        Returns:
            A group whose end says whether that went well.
        """
        with self.group_lock:
            if self._thread is None and not self._stop.is_set():
                self._thread = threading.Thread(target=self._run, name="mixpanel spool", daemon=True)
                self._gate.watch(self._thread)
                self._thread.start()
            group = self._works[-1].group
        # A thread that runs already would look at an empty group only when there is something else to do.
        self._wakeup.set()
        return group

    def settled_rows(self) -> set[int]:
        """The rows that are to be taken out and still there. In the journal's thread."""
        with self.group_lock:
            works = [self._under_way, *self._works]
            return {row for work in works for end in work.settled for row in end.ids}

    def discard_reads(self) -> list[Eviction]:
        """Forget what was to be read: the file is another one. In the journal's thread.

        Returns:
            What was to be dropped unread.
        """
        dropped = []
        with self.group_lock:
            for work in (self._under_way, *self._works):
                work.loads.clear()
                for eviction in work.evictions:
                    dropped.append(replace(eviction))
                    eviction.count = eviction.own = 0
        return dropped

    def close(self, timeout: float) -> bool:
        """Write what waits and give up every claim. From any thread; the journal's own does so later.

        Returns:
            Whether the thread ended within this many seconds.
        """
        with self.group_lock:
            thread = self._thread
        self._stop.set()
        self._wakeup.set()
        if thread is None:
            return True
        # The garbage collector runs in any thread, and so does the end of a client that nobody holds.
        if thread is threading.current_thread():
            return False
        thread.join(timeout)
        return not thread.is_alive()

    def _take(self) -> PendingWork:
        self._wakeup.clear()
        with self.group_lock:
            self._under_way = work = self._works.popleft()
            if not self._works:
                self._add_work()
        return work

    def _has_more(self) -> bool:
        with self.group_lock:
            return any(not work.is_empty for work in self._works)

    def _give_back(self, work: PendingWork, entries: list[PendingWrite]) -> None:
        """Ask again for what could not be done."""
        with self.group_lock:
            mine = self._works[0]
            mine.group.entries[:0] = entries
            mine.group.size += sum(len(entry.item) for entry in entries)
            mine.settled[:0] = work.settled
            mine.marks[:0] = work.marks
            mine.loads[:0] = work.loads
            later, mine.evictions = mine.evictions, work.evictions
            for eviction in later:
                mine.evict(eviction)
            self._under_way = PendingWork(CommitGroup())

    def _run(self) -> None:
        session = self.session()
        try:
            while True:
                is_closing = self._stop.is_set()
                is_well = self.step(session)
                if not is_well:
                    self._stop.wait(_TRY_AGAIN_AFTER)
                has_more = self._has_more()
                if is_closing and not (is_well and has_more):
                    return
                if not has_more:
                    self._wakeup.wait(_BREATH if self._is_shrinking else _LOOK_EVERY)
        finally:
            session.leave()
            self._gate.leave()
            self.give_up()

    def session(self) -> Session:
        """What the thread works with."""
        return Session(self._settings, self._reports, self._runtime, self._claims)

    def step(self, session: Session) -> bool:
        """Do what has been asked for, as far as it fits one commit. Returns whether that went well."""
        clock = self._runtime.monotonic
        work = self._take()
        try:
            # After the bell was cleared, which a fork rings.
            self._gate.pause_while_forking(session.rest)
            if not session.is_open:
                session.open()
                self._looked = clock()
            if work.loads:
                self._has_read, self._is_shrinking = True, False
            session.do(work)
            if clock() - self._looked >= _LOOK_EVERY:
                self._looked = clock()
                session.look()
                # While a backlog is read the file empties by itself: what would be moved is deleted soon after.
                self._is_shrinking, self._has_read = not self._has_read, False
            if self._is_shrinking:
                self._is_shrinking = session.shrink()
        except Exception as error:  # noqa: BLE001  whatever happens here, nobody else can tell of it
            self._is_shrinking = False
            self._failed(session, work, error)
            return False
        self._has_said = False
        return True

    def give_up(self) -> None:
        """Account for what will not be written any more."""
        with self.group_lock:
            works = [*self._works]
            self._works.clear()
            self._add_work()
        self._reports.given_up([entry for work in works for entry in work.group.entries])
        for work in works:
            error = SpoolError(f"{self._settings.path}: the spool was closed before it could be written")
            work.group.finish(error, is_noted=False)

    def _failed(self, session: Session, work: PendingWork, error: Exception) -> None:
        full = is_full(error)
        told = self._told(error)
        self._reports.failed(told.args[0])
        if not self._has_said:
            self._has_said = True
            _log.error("%s", told.args[0])
        if work.group.is_done:
            # All but its readings has been done.
            self._give_back(PendingWork(work.group, loads=work.loads), [])
        else:
            self._give_back(work, self._reports.not_written(work.group.entries, full=full))
            # A request that must not be made twice may begin only if that has been noted.
            is_noted = full and session.is_open and self._make_room(session)
            work.group.finish(self._reports.refusal(told, full=full), is_noted=is_noted)
        if session.is_open and (session.is_replaced() or is_damage(error)):
            session.drop(is_damaged=not session.is_replaced())

    def _told(self, error: Exception) -> ConfigurationError | SpoolError:
        """What is said of an error."""
        path = self._settings.path
        if isinstance(error, ConfigurationError):
            return ConfigurationError(f"{path}: {error}")
        words = error.message if isinstance(error, SpoolError) else f"the spool could not be written ({error})"
        return SpoolError(f"{path}: {words}")

    def _make_room(self, session: Session) -> bool:
        """Take out what has ended although nothing can be added. Returns whether that could be done."""
        with self.group_lock:
            mine = self._works[0]
            # What was not written stays unsent: no group is on disk by this.
            self._under_way = work = PendingWork(CommitGroup(), mine.settled, mine.marks, [], mine.evictions)
            mine.settled, mine.marks, mine.evictions = [], [], []
        try:
            session.do(work)
        except Exception:  # noqa: BLE001  it is tried again, and then told
            self._give_back(work, [])
            return False
        return True
