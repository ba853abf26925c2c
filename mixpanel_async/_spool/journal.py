"""The thread that writes: one commit for all that came while the last one was under way.

Everything that touches the database happens here, in the order in which it was asked for. The connection is a local
variable of the thread, so that a forked child, in which this thread does not exist, can neither use nor close it.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable
from typing import Final

from .._backlog import Entry
from .._errors import MixpanelException, SpoolError
from .._runtime import Runtime
from .database import is_damage, is_full
from .files import Claim
from .session import Session
from .work import Group, Reports, Settings, Work

_log = logging.getLogger("mixpanel_async")
# Seconds between two looks for what others have left, and between tries when the disk fails.
_LOOK_EVERY: Final = 10.0
_TRY_AGAIN_AFTER: Final = 1.0


class Journal:
    """Owns the thread.

    Args:
        settings: where and how.
        reports: who is told.
        runtime: clocks.
    """

    def __init__(self, settings: Settings, reports: Reports, runtime: Runtime) -> None:
        self._settings = settings
        self._reports = reports
        self._runtime = runtime
        self.forget()

    def forget(self) -> None:
        """Begin anew: in a forked child, the thread, its connection and its claims are the parent's."""
        for claim in getattr(self, "_claims", {}).values():
            claim.forget()
        self.mutex = threading.Lock()
        """Held while a record gets its place in a group."""
        self._bell = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._group_number = 1
        self._work = Work(Group(1))
        self._has_said = False
        self._claims: dict[int, Claim] = {}

    @property
    def group(self) -> Group:
        """The group that the next record joins. Hold `mutex`."""
        return self._work.group

    def ring(self) -> None:
        """Have what was asked for looked at."""
        if self._thread is None:
            self.begin()
        if not self._bell.is_set():
            self._bell.set()

    def ask(self, change: Callable[[Work], None]) -> Group:
        """Have something done with the next commit."""
        with self.mutex:
            change(self._work)
            group = self._work.group
        self.ring()
        return group

    def begin(self) -> Group:
        """Start the thread, which opens the database.

        Returns:
            A group whose end says whether that went well.
        """
        with self.mutex:
            if self._thread is None and not self._stop.is_set():
                self._thread = threading.Thread(target=self._run, name="mixpanel spool", daemon=True)
                self._thread.start()
            return self._work.group

    def close(self, timeout: float) -> bool:
        """Write what waits and give up every claim. From any thread but the journal's.

        Returns:
            Whether the thread ended within this many seconds.
        """
        with self.mutex:
            thread = self._thread
        self._stop.set()
        self._bell.set()
        if thread is None:
            return True
        thread.join(timeout)
        return not thread.is_alive()

    def _take(self) -> Work:
        self._bell.clear()
        with self.mutex:
            self._group_number += 1
            work, self._work = self._work, Work(Group(self._group_number))
        return work

    def _give_back(self, work: Work, entries: list[Entry]) -> None:
        """Ask again for what could not be done."""
        with self.mutex:
            mine = self._work
            mine.group.entries[:0] = entries
            mine.ended[:0] = work.ended
            mine.marks[:0] = work.marks
            mine.loads[:0] = work.loads
            mine.evictions[:0] = work.evictions

    def _run(self) -> None:
        session = Session(self._settings, self._reports, self._runtime, self._claims)
        looked = 0.0
        clock = self._runtime.monotonic
        try:
            while True:
                closing = self._stop.is_set()
                work = self._take()
                try:
                    if not session.is_open:
                        session.open()
                        looked = clock()
                    session.do(work, work.group.number)
                    if clock() - looked >= _LOOK_EVERY:
                        looked = clock()
                        session.look()
                    self._has_said = False
                except Exception as error:  # noqa: BLE001  whatever happens here, nobody else can tell of it
                    self._failed(session, work, error)
                    self._stop.wait(_TRY_AGAIN_AFTER)
                if closing:
                    return
                self._bell.wait(_LOOK_EVERY)
        finally:
            session.leave()

    def _failed(self, session: Session, work: Work, error: Exception) -> None:
        full = is_full(error)
        told = (
            error if isinstance(error, MixpanelException) else SpoolError(f"the spool could not be written ({error})")
        )
        if not self._has_said:
            self._has_said = True
            _log.error("%s", told)
        if work.group.is_done:
            # All but its readings has been done.
            self._give_back(Work(work.group, loads=work.loads), [])
        else:
            self._give_back(work, self._reports.not_written(work.group.entries, full=full))
            work.group.finish(self._reports.refusal(told, full=full))
        if session.is_open and (is_damage(error) or session.is_replaced()):
            session.drop()
        elif full and session.is_open:
            self._make_room(session)

    def _make_room(self, session: Session) -> None:
        """Take out what has ended although nothing can be added."""
        with self.mutex:
            mine = self._work
            # What was not written stays unsent: no group is on disk by this.
            work = Work(Group(0), mine.ended, mine.marks, [], mine.evictions)
            mine.ended, mine.marks, mine.evictions = [], [], []
        try:
            session.do(work, 0)
        except sqlite3.Error:
            self._give_back(work, [])
