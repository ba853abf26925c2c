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
from .messages import CommitGroup, Eviction, PendingWork, PendingWrite, SpoolSettings, WriterListener
from .session import SpoolSession

_log = logging.getLogger("mixpanel_async")
# Seconds between two looks for what others have left, and between tries when the disk fails.
_MAINTENANCE_INTERVAL: Final = 10.0
_RETRY_DELAY: Final = 1.0
# Seconds between two portions that are given back to the disk, if nothing is asked for.
_SHRINK_PAUSE: Final = 0.01
# What one commit holds, about: SQLite's log grows with the largest.
_MAX_GROUP_BYTES: Final = 4 * 1024 * 1024


class SpoolWriter:
    """Owns the thread.

    Args:
        settings: where and how.
        reports: who is told.
        runtime: clocks.
    """

    def __init__(self, settings: SpoolSettings, listener: WriterListener, environment: Environment) -> None:
        self._settings = settings
        self._listener = listener
        self._environment = environment
        self._fork_guard = ForkGuard(self.reset_after_fork, self._wake_thread)
        self._locks: dict[int, OwnerLock] = {}
        self._reset()

    def reset_after_fork(self) -> None:
        """Begin anew in a forked child: the thread and its claims are the parent's."""
        self._fork_guard.reset_in_child()
        for claim in self._locks.values():
            claim.close_without_unlock()
        self._reset()

    def _reset(self) -> None:
        # A signal handler may track while this very thread holds it.
        self.group_lock: AbstractContextManager[bool] = threading.RLock()
        """Held while a record gets its place in a group."""
        self._wakeup = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._works = deque([PendingWork(CommitGroup())])
        """What has been asked for, as one commit each. There is always one that takes more."""
        self._current = PendingWork(CommitGroup())
        self._error_logged = False
        self._last_maintenance = 0.0
        self._has_loaded = self._is_shrinking = False
        self._locks = {}

    def _wake_thread(self) -> None:
        self._wakeup.set()

    @property
    def group(self) -> CommitGroup:
        """The group that the next record joins. Hold `mutex`."""
        group = self._works[-1].group
        if group.size < _MAX_GROUP_BYTES:
            return group
        return self._add_work().group

    def _add_work(self) -> PendingWork:
        self._works.append(PendingWork(CommitGroup()))
        return self._works[-1]

    def wake(self) -> None:
        """Have what was asked for looked at."""
        if self._thread is None:
            self.start()
        elif not self._wakeup.is_set():
            self._wakeup.set()

    def submit(self, change: Callable[[PendingWork], None]) -> CommitGroup:
        """Have something done with the next commit."""
        with self.group_lock:
            change(self._works[-1])
            group = self._works[-1].group
        self.wake()
        return group

    def start(self) -> CommitGroup:
        """Start the thread, which opens the database.

        Returns:
            A group whose end says whether that went well.
        """
        with self.group_lock:
            if self._thread is None and not self._stop.is_set():
                self._thread = threading.Thread(target=self._run, name="mixpanel spool", daemon=True)
                self._fork_guard.watch(self._thread)
                self._thread.start()
            group = self._works[-1].group
        # A thread that runs already would look at an empty group only when there is something else to do.
        self._wakeup.set()
        return group

    def rows_to_delete(self) -> set[int]:
        """The rows that are to be taken out and still there. In the journal's thread."""
        with self.group_lock:
            works = [self._current, *self._works]
            return {row for work in works for end in work.settled for row in end.ids}

    def discard_reads(self) -> list[Eviction]:
        """Forget what was to be read: the file is another one. In the journal's thread.

        Returns:
            What was to be dropped unread.
        """
        dropped = []
        with self.group_lock:
            for work in (self._current, *self._works):
                work.loads.clear()
                for eviction in work.evictions:
                    dropped.append(replace(eviction))
                    eviction.count = eviction.first_own_row = 0
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

    def _take_work(self) -> PendingWork:
        self._wakeup.clear()
        with self.group_lock:
            self._current = work = self._works.popleft()
            if not self._works:
                self._add_work()
        return work

    def _has_more(self) -> bool:
        with self.group_lock:
            return any(not work.is_empty for work in self._works)

    def _requeue(self, work: PendingWork, entries: list[PendingWrite]) -> None:
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
            self._current = PendingWork(CommitGroup())

    def _run(self) -> None:
        session = self.new_session()
        try:
            while True:
                is_closing = self._stop.is_set()
                is_well = self.step(session)
                if not is_well:
                    self._stop.wait(_RETRY_DELAY)
                has_more = self._has_more()
                if is_closing and not (is_well and has_more):
                    return
                if not has_more:
                    self._wakeup.wait(_SHRINK_PAUSE if self._is_shrinking else _MAINTENANCE_INTERVAL)
        finally:
            session.close()
            self._fork_guard.thread_ended()
            self.discard_pending()

    def new_session(self) -> SpoolSession:
        """What the thread works with."""
        return SpoolSession(self._settings, self._listener, self._environment, self._locks)

    def step(self, session: SpoolSession) -> bool:
        """Do what has been asked for, as far as it fits one commit. Returns whether that went well."""
        clock = self._environment.monotonic
        work = self._take_work()
        try:
            # After the bell was cleared, which a fork rings.
            self._fork_guard.pause_while_forking(session.pause)
            if not session.is_open:
                session.open()
                self._last_maintenance = clock()
            if work.loads:
                self._has_loaded, self._is_shrinking = True, False
            session.execute(work)
            if clock() - self._last_maintenance >= _MAINTENANCE_INTERVAL:
                self._last_maintenance = clock()
                session.maintain()
                # While a backlog is read the file empties by itself: what would be moved is deleted soon after.
                self._is_shrinking, self._has_loaded = not self._has_loaded, False
            if self._is_shrinking:
                self._is_shrinking = session.shrink()
        except Exception as error:  # noqa: BLE001  whatever happens here, nobody else can tell of it
            self._is_shrinking = False
            self._handle_failure(session, work, error)
            return False
        self._error_logged = False
        return True

    def discard_pending(self) -> None:
        """Account for what will not be written any more."""
        with self.group_lock:
            works = [*self._works]
            self._works.clear()
            self._add_work()
        self._listener.on_discarded([entry for work in works for entry in work.group.entries])
        for work in works:
            error = SpoolError(f"{self._settings.path}: the spool was closed before it could be written")
            work.group.finish(error, marks_written=False)

    def _handle_failure(self, session: SpoolSession, work: PendingWork, error: Exception) -> None:
        full = is_full(error)
        told = self._describe(error)
        self._listener.on_error(told.args[0])
        if not self._error_logged:
            self._error_logged = True
            _log.error("%s", told.args[0])
        if work.group.is_done:
            # All but its readings has been done.
            self._requeue(PendingWork(work.group, loads=work.loads), [])
        else:
            self._requeue(work, self._listener.on_write_failed(work.group.entries, full=full))
            # A request that must not be made twice may begin only if that has been noted.
            is_noted = full and session.is_open and self._make_room(session)
            work.group.finish(self._listener.error_for_callers(told, full=full), marks_written=is_noted)
        if session.is_open and (session.is_replaced() or is_damage(error)):
            session.close_replaced(is_damaged=not session.is_replaced())

    def _describe(self, error: Exception) -> ConfigurationError | SpoolError:
        """What is said of an error."""
        path = self._settings.path
        if isinstance(error, ConfigurationError):
            return ConfigurationError(f"{path}: {error}")
        words = error.message if isinstance(error, SpoolError) else f"the spool could not be written ({error})"
        return SpoolError(f"{path}: {words}")

    def _make_room(self, session: SpoolSession) -> bool:
        """Take out what has ended although nothing can be added. Returns whether that could be done."""
        with self.group_lock:
            mine = self._works[0]
            # What was not written stays unsent: no group is on disk by this.
            self._current = work = PendingWork(CommitGroup(), mine.settled, mine.marks, [], mine.evictions)
            mine.settled, mine.marks, mine.evictions = [], [], []
        try:
            session.execute(work)
        except Exception:  # noqa: BLE001  it is tried again, and then told
            self._requeue(work, [])
            return False
        return True
