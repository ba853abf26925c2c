"""Writer thread of the spool: the only thread of a client that uses the database.

All records that arrive during one commit share the next one (group commit). The thread carries out requests in order,
reports to a `WriterListener`, and runs maintenance every ten seconds. `session.py` has the database operations.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Final

from .._model.errors import ConfigurationError, SpoolError
from .._runtime.environment import Environment
from .._runtime.log_events import log_event
from .files import OwnerLock
from .fork_guard import ForkGuard
from .messages import CommitGroup, Eviction, PendingWork, PendingWrite, SpoolSettings, WriterListener
from .pacing import CommitPacer
from .schema import is_damage, is_full
from .session import SpoolSession

# Seconds between searches for orphaned records.
_MAINTENANCE_INTERVAL: Final = 10.0
# Seconds between checks of the files while no work is pending.
_CHECK_INTERVAL: Final = 1.0
# Seconds before the next attempt after a disk error.
_RETRY_DELAY: Final = 1.0
# The same if the disk is full: the next record should be written soon after there is room again.
_FULL_RETRY_DELAY: Final = 0.1
# Seconds between checks of the rows on trial while no work is pending.
_TRIAL_CHECK_INTERVAL: Final = 1.0
# Seconds between two steps of shrinking the file while no work is pending.
_SHRINK_PAUSE: Final = 0.01
# Maximum of seconds for which a commit waits for further records.
_LINGER: Final = 0.002
# Approximate maximum of one commit: SQLite's log grows to the size of the largest commit.
_MAX_GROUP_BYTES: Final = 4 * 1024 * 1024


class SpoolWriter:
    """Writer thread and its queue of requests. The thread starts with the first request.

    Args:
        settings: settings of the spool and of the client.
        listener: receives reports in the writer thread.
        environment: clocks.
    """

    def __init__(self, settings: SpoolSettings, listener: WriterListener, environment: Environment) -> None:
        self._settings = settings
        self._listener = listener
        self._environment = environment
        self._fork_guard = ForkGuard(self.reset_after_fork, self._wake_thread)
        self._locks: dict[int, OwnerLock] = {}
        self._reset()

    def reset_after_fork(self) -> None:
        """Reset the state in a forked child. The thread and the owner locks belong to the parent."""
        self._fork_guard.reset_in_child()
        for lock in self._locks.values():
            lock.close_without_unlock()
        self._reset()

    def _reset(self) -> None:
        # Reentrant: a signal handler may track while this thread holds the lock.
        self.group_lock: AbstractContextManager[bool] = threading.RLock()
        """Guards the pending work. Hold it while a record is added to `group`."""
        self._wakeup = threading.Event()
        self._stop = threading.Event()
        self._pacer = CommitPacer()
        # Set when the commit that waits for further records need not wait any longer.
        self._is_group_ready = threading.Event()
        self._wanted = 1
        self._thread: threading.Thread | None = None
        self._works = deque([PendingWork(CommitGroup())])
        """Pending work, one entry for each commit. Never empty: the last entry accepts requests."""
        self._current = PendingWork(CommitGroup())
        self._error_logged = self._is_full = False
        self._last_maintenance = 0.0
        self._has_loaded = self._is_shrinking = self._must_measure = False
        self._last_measured = 0.0
        self._locks = {}

    def _wake_thread(self) -> None:
        self._wakeup.set()

    @property
    def group(self) -> CommitGroup:
        """Group for the next record. Hold `group_lock`."""
        group = self._works[-1].group
        if group.size < _MAX_GROUP_BYTES:
            return group
        return self._add_work().group

    def _add_work(self) -> PendingWork:
        self._works.append(PendingWork(CommitGroup()))
        return self._works[-1]

    def wake(self, group: CommitGroup | None = None) -> None:
        """Wake the thread, or start it, as a record was added to this group, or something else changed."""
        if self._thread is None:
            self.start()
        elif not self._wakeup.is_set():
            self._wakeup.set()
        elif group is not None and len(group.entries) >= self._wanted and not self._is_group_ready.is_set():
            self._is_group_ready.set()

    def measure(self) -> None:
        """Have the size of the file reported soon: others may have made room in it."""
        self._must_measure = True
        self.wake()

    def submit(self, change: Callable[[PendingWork], None]) -> CommitGroup:
        """Add a change to the next commit. Return its group."""
        with self.group_lock:
            change(self._works[-1])
            group = self._works[-1].group
        self._is_group_ready.set()
        self.wake()
        return group

    def start(self) -> CommitGroup:
        """Start the thread, which opens the database.

        Returns:
            Group that finishes once the database is open, or fails with the error.

        Raises:
            SpoolError: if the process can start no thread now. The next call tries again.
        """
        with self.group_lock:
            if self._thread is None and not self._stop.is_set():
                thread = threading.Thread(target=self._run, name="mixpanel spool", daemon=True)
                try:
                    self._fork_guard.watch(thread)
                    thread.start()
                    self._thread = thread
                except RuntimeError as error:
                    self._fork_guard.thread_ended()
                    has_records = any(work.group.entries for work in self._works)
                    text = f"{self._settings.path}: cannot start the thread that writes the spool ({error})"
                    raise SpoolError(text, uncertain=has_records or None) from error
                except BaseException:
                    # Also raised by a signal handler.
                    self._fork_guard.thread_ended()
                    raise
            group = self._works[-1].group
        # A running thread would process an empty group only together with other work.
        self._wakeup.set()
        return group

    def rows_to_delete(self) -> set[int]:
        """Return the settled rows that are not deleted yet. Call it in the writer thread."""
        with self.group_lock:
            works = [self._current, *self._works]
            return {row for work in works for settled in work.settled for row in settled.ids}

    def pending(self) -> tuple[list[PendingWrite], set[int]]:
        """Return the records on their way to the disk, and the codes of the lanes to be read. Hold `group_lock`."""
        works = [self._current, *self._works]
        entries = [entry for work in works for entry in work.group.entries]
        return entries, {lane for work in works for lane, _ in work.loads}

    def discard_reads(self) -> list[Eviction]:
        """Cancel pending loads and evictions because the file was replaced. Call it in the writer thread.

        Returns:
            The cancelled evictions.
        """
        cancelled = []
        with self.group_lock:
            for work in (self._current, *self._works):
                work.loads.clear()
                for eviction in work.evictions:
                    cancelled.append(replace(eviction))
                    eviction.cancel()
        return cancelled

    def close(self, timeout: float) -> bool:
        """Write pending records and release all owner locks.

        Callable from any thread. In the writer thread itself it does not wait.

        Args:
            timeout: seconds to wait for the thread.

        Returns:
            Whether the thread has ended.
        """
        with self.group_lock:
            thread = self._thread
        self._stop.set()
        self._wakeup.set()
        self._is_group_ready.set()
        if thread is None:
            # If it could not be started, records may wait for it.
            self.discard_pending()
            return True
        # The garbage collector may finalize an unreferenced client in any thread, also in this one.
        if thread is threading.current_thread():
            return False
        thread.join(timeout)
        return not thread.is_alive()

    def give_up(self) -> None:
        """Report records that are not written as lost, as the client ends before the thread. From any thread.

        A commit that has begun may still succeed: its records are then delivered by the next client, too.
        """
        with self.group_lock:
            works = [self._current, *self._works]
        self._discard([work.group for work in works])

    def _discard(self, groups: Sequence[CommitGroup]) -> None:
        self._listener.on_discarded(groups)
        for group in groups:
            error = SpoolError(f"{self._settings.path}: the spool was closed before the record was written")
            group.finish(error, marks_written=False)

    def _linger(self) -> None:
        """Wait until as many records share the next commit as usual."""
        with self.group_lock:
            work, self._wanted = self._works[0], self._pacer.wanted
            waits = 0 < len(work.group.entries) < self._wanted and work.has_only_records and len(self._works) == 1
            if waits:
                self._is_group_ready.clear()
        if waits and not self._stop.is_set():
            self._is_group_ready.wait(_LINGER)

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

    def _requeue(self, work: PendingWork, entries: Sequence[PendingWrite]) -> None:
        """Put failed work back in front, with these of its records."""
        with self.group_lock:
            self._works[0].put_back(work, entries)
            self._current = PendingWork(CommitGroup())

    def _run(self) -> None:
        with self.group_lock:
            if self._thread is not threading.current_thread():
                # An error cut off `start`, which starts another thread at its next call.
                return
        session = self.new_session()
        try:
            while True:
                is_closing = self._stop.is_set()
                self._linger()
                succeeded = self.step(session)
                if not succeeded:
                    self._stop.wait(_FULL_RETRY_DELAY if self._is_full else _RETRY_DELAY)
                    if self._is_full:
                        self._listener.on_attempt_allowed()
                has_more = self._has_more()
                if is_closing and not (succeeded and has_more):
                    return
                if not has_more:
                    self._wakeup.wait(self._idle_time(session))
        finally:
            session.close()
            self._fork_guard.thread_ended()
            self.discard_pending()

    def _idle_time(self, session: SpoolSession) -> float:
        """Return the seconds until the next step if no work arrives."""
        if not session.is_open:
            return _RETRY_DELAY
        if session.has_trials:
            return _TRIAL_CHECK_INTERVAL
        if self._must_measure:
            return _FULL_RETRY_DELAY
        return _SHRINK_PAUSE if self._is_shrinking else _CHECK_INTERVAL

    def new_session(self) -> SpoolSession:
        """Return a session for the thread, with its database still closed."""
        return SpoolSession(self._settings, self._listener, self._environment, self._locks)

    def step(self, session: SpoolSession) -> bool:
        """Carry out the next pending work in one commit. Return whether it succeeded."""
        clock = self._environment.monotonic
        work = self._take_work()
        try:
            # Checked after `_take_work` cleared the wake-up flag, which a fork sets.
            if self._fork_guard.must_pause:
                self._fork_guard.pause_while_forking(session.pause)
            if not session.is_open:
                session.open()
                self._last_maintenance = clock()
            if work.loads:
                self._has_loaded, self._is_shrinking = True, False
            has_records = bool(work.group.entries)
            self._execute(session, work)
            if has_records or not self._is_full:
                # On a full disk, deletions succeed between the failures of records.
                self._error_logged = self._is_full = False
            if clock() - self._last_maintenance >= _MAINTENANCE_INTERVAL:
                self._last_maintenance = clock()
                session.maintain()
                # While a backlog is loaded the file empties by itself: pages moved now would be deleted soon after.
                self._is_shrinking, self._has_loaded = not self._has_loaded, False
            if session.has_trials:
                session.end_old_trials()
            if self._must_measure and clock() - self._last_measured >= _FULL_RETRY_DELAY:
                self._must_measure, self._last_measured = False, clock()
                session.report_size()
            if self._is_shrinking:
                self._is_shrinking = session.shrink()
        except Exception as error:  # noqa: BLE001  the thread must survive; the error is reported to the listener
            self._is_shrinking = False
            self._handle_failure(session, work, error)
            return False
        return True

    def _execute(self, session: SpoolSession, work: PendingWork) -> None:
        """Carry out work. If the files were harmed, write the records in memory to a new file first."""
        if records := len(work.group.entries):
            self._pacer.begin_commit(records)
        try:
            if work.is_empty:
                session.check_files()
            session.execute(work)
        except Exception as error:
            if work.group.is_done or not is_damage(error):
                raise
            path, reason = self._settings.path, str(error)
            self._listener.on_error(f"{path}: {reason}")
            session.abandon_file(is_damaged=not session.is_replaced())
            session.open()
            text = "%s: %s; the records in memory were written to a new file"
            log_event(logging.ERROR, "spool_harmed", text, path, reason, path=str(path), error=reason)
            session.execute(work)

    def discard_pending(self) -> None:
        """Report records that will not be written because the spool is closed."""
        with self.group_lock:
            works = [*self._works]
            self._works.clear()
            self._add_work()
        self._discard([work.group for work in works])

    def _handle_failure(self, session: SpoolSession, work: PendingWork, error: Exception) -> None:
        self._is_full = full = is_full(error, self._settings.path)
        public = self._public_error(error)
        self._listener.on_error(public.args[0])
        if not self._error_logged:
            self._error_logged = True
            log_event(logging.ERROR, "spool_failed", "%s", public.args[0], error=public.args[0])
        if work.group.is_done:
            # The commit succeeded; only its loads failed.
            self._requeue(PendingWork(work.group, loads=work.loads), [])
        else:
            has_records = bool(work.group.entries)
            self._requeue(work, self._listener.on_write_failed(work.group, full=full))
            # A request that must not be repeated may start only if its mark is on disk.
            marks_written = full and session.is_open and self._make_room(session)
            shown = self._listener.error_for_callers(public, full=full, has_records=has_records)
            work.group.finish(shown, marks_written=marks_written)
        if session.is_open and (session.is_replaced() or is_damage(error)):
            session.abandon_file(is_damaged=not session.is_replaced())

    def _public_error(self, error: Exception) -> ConfigurationError | SpoolError:
        """Return the error for callers and logs. It names the file."""
        path = self._settings.path
        if isinstance(error, ConfigurationError):
            return ConfigurationError(f"{path}: {error}")
        message = error.message if isinstance(error, SpoolError) else f"cannot write the spool ({error})"
        return SpoolError(f"{path}: {message}")

    def _make_room(self, session: SpoolSession) -> bool:
        """Delete settled rows in a full spool without adding records. Return whether that succeeded."""
        with self.group_lock:
            # The new group has no records, so that no waiting record counts as written.
            self._current = work = self._works[0].split_off_deletions()
        try:
            session.execute(work)
        except Exception:  # noqa: BLE001  retried with the next commit, which reports the error
            self._requeue(work, [])
            return False
        return True
