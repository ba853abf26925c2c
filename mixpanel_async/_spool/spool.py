"""The durable spool: what was accepted outlives the process."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NoReturn

from .._model.config import check_count, check_number, check_switch
from .._model.errors import raise_configuration_error
from .._model.records import DropReason
from .._runtime.clock import Environment
from .messages import SpoolSettings, WriterListener, WriterProtocol
from .report import Purged, SpooledRecord, SpoolStatus

if TYPE_CHECKING:
    from .admin import SpoolAdmin


@dataclass(frozen=True, slots=True)
class SqliteSpool:
    """A file that keeps accepted records until Mixpanel has taken them, so that the death of the process loses nothing.

    `await track()` and its like return once the record is on disk; many callers share one commit. A client that starts
    takes over what others of the same project have left, with the same `time` and `$insert_id`. Several processes may
    share a file, each sending its own; what one leaves behind another takes over within ten seconds or so. One that is
    stopped in the midst of a write (`SIGSTOP`, a paused container) keeps the others from writing until it goes on.
    Nothing touches the disk before the client starts.

    The bounds `max_pending_events` and `max_pending_bytes` of the `BatchPolicy` then hold for what is on its way to the
    disk, and what waits there is bounded here. Nothing that is on its way is taken back: if there is no room for more,
    or if the disk itself is full, `Overflow.DROP_OLDEST` drops the new record as well.

    A file that is found damaged is set aside as `*.corrupt-<time>`, and what can be read of it goes on in a new one.

    Needs a POSIX system, and a disk of this machine.

    Its methods look after a file, also while clients use it: the command `mixpanel-async spool` stands on them. They
    make no file, wait for the disk and block meanwhile; from async code, call them in a thread. Each raises
    `ConfigurationError` if there is no spool at the path, and `SpoolError` if it cannot be used: with `is_damaged` if
    the file holds something else than it should, otherwise because it is locked for longer than `timeout`, or the disk
    fails. What concerns more than 10,000 records or 16 MiB is done in several transactions, so that no client waits
    long; if it is cut short, each record is either as it was or as it was to be.

    Args:
        path: the file; made with its folder, if that is the only one missing, and readable by this user alone. Beside
            it SQLite keeps `-wal` and `-shm`, and each client a file `-owner-N`.
        max_bytes: size of the file in bytes, all clients and dead letters together; at least 1,000,000. Above it, the
            `overflow` policy holds. SQLite's log comes on top, some 8 MB. Default 4 GiB.
        max_records: records of one client that may wait; at least 1. None for no bound but `max_bytes`.
        keep_dead: dead letters that are kept, the newest; 0 to 1,000,000. What Mixpanel refused, or what may have been
            applied and must not be sent twice, is kept for `mixpanel-async spool`.
        timeout: seconds that the disk, or another process's write, may take; 0.1 to 600. A call whose commit fails
            raises `SpoolError`; one that has to wait for the commit before its own as well, after twice this and a
            second at the latest.
        fsync: each commit survives a power failure, too, and not only the death of the process. It costs what the disk
            takes for it, shared by all calls that wait.
        erase: overwrite what is deleted wherever it lay. Off, it is overwritten where that costs nothing.

    Raises:
        ConfigurationError: if a value is out of bounds.
    """

    path: str | os.PathLike[str]
    _: KW_ONLY
    max_bytes: int = 4 * 1024**3
    max_records: int | None = None
    keep_dead: int = 10_000
    timeout: float = 5.0
    fsync: bool = True
    erase: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.path, (str, os.PathLike)) or not os.fspath(self.path):
            raise_configuration_error("the path of the spool must be a string or a path that is not empty")
        if isinstance(os.fspath(self.path), bytes) or "\0" in os.fspath(self.path):
            raise_configuration_error("the path of the spool must be text without a zero in it")
        if os.fspath(self.path).startswith(":memory:"):
            raise_configuration_error("a spool in memory would outlive nothing")
        check_count("max_bytes", self.max_bytes, minimum=1_000_000)
        if self.max_records is not None:
            check_count("max_records", self.max_records)
        check_count("keep_dead", self.keep_dead, minimum=0, maximum=1_000_000)
        check_number("timeout", self.timeout, minimum=0.1, maximum=600.0)
        check_switch("fsync", self.fsync)
        check_switch("erase", self.erase)

    @property
    def file(self) -> Path:
        """The path, made absolute."""
        return Path(os.fspath(self.path)).absolute()

    def status(self, *, check: bool | None = None) -> SpoolStatus:
        """What the spool holds, at one moment.

        Args:
            check: whether SQLite checks the whole file, which takes seconds for each GB. None, the default, for a file
                of up to 256 MiB.
        """
        return self._admin().status(check=check)

    def records(self, *, waiting: bool = True, dead: bool = True) -> Iterator[SpooledRecord]:
        """What waits, kind by kind of each client and in the order of its acceptance, then the dead letters.

        Read in portions: what is sent meanwhile may be missing. Raises when it is iterated.

        Args:
            waiting: whether what waits is wanted.
            dead: whether dead letters are.
        """
        return self._admin().records(waiting=waiting, dead=dead)

    def dead_letters(self, *, reasons: Collection[str | DropReason] | None = None) -> Iterator[SpooledRecord]:
        """What will not be sent again by itself, the oldest first. Raises when it is iterated.

        Args:
            reasons: only those with one of these reasons; None for all.
        """
        return self._admin().dead_letters(reasons)

    def retry(self, *, reasons: Collection[str | DropReason] | None = None, ids: Collection[int] | None = None) -> int:
        """Put dead letters back among what waits; a client of their project sends them, within ten seconds if one runs.

        Args:
            reasons: only those with one of these reasons. None for all but `uncertain`: those may have been applied
                already, and are put back only if they are asked for by name.
            ids: only those with one of these numbers; None for all.

        Returns:
            How many were put back.
        """
        return self._admin().retry(reasons=reasons, ids=ids)

    def purge(
        self,
        *,
        dead: bool = False,
        reasons: Collection[str | DropReason] | None = None,
        older_than: float | None = None,
        ids: Collection[int] | None = None,
        waiting: bool = False,
        distinct_id: str | None = None,
    ) -> Purged:
        """Delete for good. The place on the disk is overwritten or given back, SQLite's log included.

        Files that were set aside as damaged are not touched: delete them yourself.

        Args:
            dead: delete dead letters, all of them unless `reasons`, `older_than` or `ids` narrow it, each of which
                implies it.
            reasons: only dead letters with one of these reasons.
            older_than: only dead letters that died at least so many seconds ago. Not together with `waiting`.
            ids: only dead letters with one of these numbers.
            waiting: delete what clients have left that live no more, of every project.
            distinct_id: delete what names this person, waiting or dead, of every client and project: as `distinct_id`,
                `$user_id`, `$device_id` (also with `$device:` in front), or in an identity event. Not to be combined
                with the others. What a live client holds in memory at that moment (up to 20,000 records or 16 MiB) it
                still sends; to be sure of those, stop it first. It counts what it then misses as dropped (`purged`).

        Returns:
            How many records were deleted.

        Raises:
            ConfigurationError: also if nothing was asked for.
        """
        if distinct_id is not None:
            if dead or waiting or any(one is not None for one in (reasons, older_than, ids)):
                raise_configuration_error("distinct_id goes alone: it deletes whatever names the person")
            return self._admin().purge_person(distinct_id)
        return self._admin().purge(dead=dead, reasons=reasons, older_than=older_than, ids=ids, waiting=waiting)

    def export(self, to: str | os.PathLike[str] | BinaryIO, *, waiting: bool = True, dead: bool = True) -> int:
        """Write records as JSON, one a line, with the fields of `SpooledRecord`. They stay in the spool.

        Args:
            to: a file, which must not exist and which this user alone may read; or a binary stream, left open.
            waiting: whether what waits is wanted.
            dead: whether dead letters are.

        Returns:
            How many were written.

        Raises:
            ConfigurationError: also if the file exists or cannot be made.
            OSError: if it, or the stream, cannot be written. What was written of the file is removed.
        """
        return self._admin().export(to, waiting=waiting, dead=dead)

    def _admin(self) -> SpoolAdmin:
        try:
            from .admin import SpoolAdmin  # noqa: PLC0415  nobody who only sends needs it
        except ImportError as error:
            _refuse_system(error)
        return SpoolAdmin(self.file, self.timeout)


def make_writer(settings: SpoolSettings, listener: WriterListener, environment: Environment) -> WriterProtocol:
    """The thread that writes.

    Raises:
        ConfigurationError: if this system has no locks that a spool can stand on.
    """
    try:
        # Nobody who has no spool pays for SQLite.
        from .writer import SpoolWriter  # noqa: PLC0415
    except ImportError as error:
        _refuse_system(error)
    return SpoolWriter(settings, listener, environment)


def _refuse_system(error: ImportError) -> NoReturn:
    raise_configuration_error(f"a spool cannot be had on this system: {error.name} is missing")
