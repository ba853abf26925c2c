"""`SqliteSpool`: public options and inspection methods of the durable spool."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NoReturn

from .._model.config import check_count, check_number, check_switch
from .._model.errors import raise_configuration_error
from .._model.records import DropReason
from .._runtime.environment import Environment
from .messages import SpoolSettings, WriterListener, WriterProtocol
from .report import Purged, SpooledRecord, SpoolStatus

if TYPE_CHECKING:
    from .admin import SpoolAdmin


@dataclass(frozen=True, slots=True)
class SqliteSpool:
    """SQLite file that keeps accepted records until Mixpanel has accepted them, also after the process dies.

    `await track()` and the other tracking methods return once the record is on disk; concurrent callers share one
    commit. A client that starts takes over the records that ended clients of the same project left, with the same
    `time` and `$insert_id`. Several processes may share a file; each sends its own records, and takes over those of an
    ended process within about ten seconds. A process stopped during a write (`SIGSTOP`, a paused container) blocks the
    writes of the others until it continues. The client does not touch the disk before it starts.

    With a spool, `max_pending_events` and `max_pending_bytes` of the `BatchPolicy` limit the records that are not on
    disk yet, and the limits here apply to the records on disk. A record being written cannot be withdrawn: if these
    limits are reached or the disk is full, `Overflow.DROP_OLDEST` drops the new record too.

    A damaged file is set aside as `*.corrupt-<time>`, and its readable records are copied to a new file.

    The spool needs a POSIX system and a local disk.

    The methods inspect and repair a file, also while clients use it; the command `mixpanel-async spool` calls them.
    They create no file and block while they wait for the disk; call them in a thread from async code. Each raises
    `ConfigurationError` if the path holds no spool, and `SpoolError` if the spool cannot be used: with `is_damaged` if
    its contents are damaged, otherwise because it was locked for longer than `timeout` or the disk failed. A change of
    more than 10,000 records or 16 MiB takes several transactions, so that no client waits long. If it is interrupted,
    each record is either unchanged or completely changed.

    Example:
        ```python
        import asyncio

        from mixpanel_async import AsyncMixpanel, SqliteSpool


        async def main() -> None:
            spool = SqliteSpool("mixpanel.db")
            async with AsyncMixpanel("PROJECT_TOKEN", spool=spool) as mp:
                await mp.track("user-1", "Order placed", {"amount": 19.99})
            print(spool.status().waiting, "records left")


        asyncio.run(main())
        ```

    Args:
        path: spool file. The file and its directory are created if they are missing, readable by this user only; the
            parent of the directory must exist. SQLite adds files with the suffixes `-wal` and `-shm`, and each client
            adds one with the suffix `-owner-N`.
        max_bytes: maximum size of the file in bytes, for all clients and dead letters together; at least 1,000,000,
            default 4 GiB. Beyond it, the `overflow` policy applies. SQLite's log needs about 8 MB more.
        max_records: maximum number of waiting records of one client; at least 1. None, the default, sets no limit
            other than `max_bytes`.
        keep_dead: number of newest dead letters to keep, 0 to 1,000,000, default 10,000. Dead letters are records
            that Mixpanel rejected, or that may have been applied and must not be sent twice.
        timeout: seconds to wait for the disk or a write of another process; 0.1 to 600, default 5. A call whose commit
            fails raises `SpoolError`, at the latest after twice this time plus one second if it also waited for the
            previous commit.
        fsync: whether each commit also survives a power failure; default True. All calls that wait for a commit share
            the cost.
        erase: whether all deleted data is overwritten; default False, which overwrites it only where that needs no
            extra writes.

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
            raise_configuration_error("the path of SqliteSpool must be a non-empty string or path object")
        if isinstance(os.fspath(self.path), bytes) or "\0" in os.fspath(self.path):
            raise_configuration_error("the path of SqliteSpool must be text without NUL characters")
        if os.fspath(self.path).startswith(":memory:"):
            raise_configuration_error('SqliteSpool needs a file path; ":memory:" is not durable')
        check_count("max_bytes", self.max_bytes, minimum=1_000_000)
        if self.max_records is not None:
            check_count("max_records", self.max_records)
        check_count("keep_dead", self.keep_dead, minimum=0, maximum=1_000_000)
        check_number("timeout", self.timeout, minimum=0.1, maximum=600.0)
        check_switch("fsync", self.fsync)
        check_switch("erase", self.erase)

    @property
    def file(self) -> Path:
        """Absolute path of the spool file."""
        return Path(os.fspath(self.path)).absolute()

    def status(self, *, check: bool | None = None) -> SpoolStatus:
        """Return the contents of the spool at one moment.

        Args:
            check: whether SQLite checks the whole file, which takes seconds for each GB. None, the default, checks
                files up to 256 MiB.
        """
        return self._admin().status(check=check)

    def records(self, *, waiting: bool = True, dead: bool = True) -> Iterator[SpooledRecord]:
        """Iterate over the waiting records, by client and kind in the order of acceptance, then the dead letters.

        Records are read in chunks; those sent during the iteration may be missing. Errors are raised by the iteration.

        Args:
            waiting: whether to include waiting records.
            dead: whether to include dead letters.
        """
        return self._admin().records(waiting=waiting, dead=dead)

    def dead_letters(self, *, reasons: Collection[str | DropReason] | None = None) -> Iterator[SpooledRecord]:
        """Iterate over the dead letters, the oldest first. Errors are raised by the iteration.

        Dead letters are not sent again unless `retry` puts them back.

        Args:
            reasons: only dead letters with one of these reasons; None for all.
        """
        return self._admin().dead_letters(reasons)

    def retry(self, *, reasons: Collection[str | DropReason] | None = None, ids: Collection[int] | None = None) -> int:
        """Put dead letters back to the waiting records. A running client sends them within ten seconds.

        Args:
            reasons: only dead letters with one of these reasons. None, the default, selects all except `uncertain`:
                those may have been applied already and must be selected explicitly.
            ids: only dead letters with one of these ids; None for all.

        Returns:
            Number of records put back.
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
        """Delete records permanently. Their space on disk, including SQLite's log, is overwritten or freed.

        Damaged files that were set aside are not changed; delete them yourself.

        Args:
            dead: delete dead letters. `reasons`, `older_than` and `ids` select some of them and imply `dead`.
            reasons: only dead letters with one of these reasons.
            older_than: only dead letters that died at least this many seconds ago. Not allowed with `waiting`.
            ids: only dead letters with one of these ids.
            waiting: delete the waiting records of clients that have ended, of all projects.
            distinct_id: delete all records of this person, waiting and dead, of all clients and projects: those with
                this `distinct_id`, `$user_id` or `$device_id` (also with the prefix `$device:`), and identity events
                that contain it. Not allowed with other arguments. A live client still sends the records that it holds
                in memory (up to 20,000 records or 16 MiB); stop it first to delete those too. It counts the other
                deleted records as dropped (`purged`).

        Returns:
            Number of records deleted.

        Raises:
            ConfigurationError: also if no argument selects records.
        """
        if distinct_id is not None:
            if dead or waiting or any(one is not None for one in (reasons, older_than, ids)):
                raise_configuration_error("distinct_id deletes all records of a person; do not combine it with others")
            return self._admin().purge_person(distinct_id)
        return self._admin().purge(dead=dead, reasons=reasons, older_than=older_than, ids=ids, waiting=waiting)

    def export(self, to: str | os.PathLike[str] | BinaryIO, *, waiting: bool = True, dead: bool = True) -> int:
        """Write records as JSON lines with the fields of `SpooledRecord`. The records stay in the spool.

        Args:
            to: path of a new file, readable by this user only; or a binary stream, which is left open.
            waiting: whether to include waiting records.
            dead: whether to include dead letters.

        Returns:
            Number of records written.

        Raises:
            ConfigurationError: also if the file exists or cannot be created.
            OSError: if the file or stream cannot be written. An incomplete file is removed.
        """
        return self._admin().export(to, waiting=waiting, dead=dead)

    def _admin(self) -> SpoolAdmin:
        try:
            from .admin import SpoolAdmin  # noqa: PLC0415  clients do not need it
        except ImportError as error:
            _raise_unsupported(error)
        return SpoolAdmin(self.file, self.timeout)


def make_writer(settings: SpoolSettings, listener: WriterListener, environment: Environment) -> WriterProtocol:
    """Return a writer thread, not started yet.

    Raises:
        ConfigurationError: if this system lacks sqlite3 or file locks.
    """
    try:
        # Imported here so that clients without a spool do not load sqlite3.
        from .writer import SpoolWriter  # noqa: PLC0415
    except ImportError as error:
        _raise_unsupported(error)
    return SpoolWriter(settings, listener, environment)


def _raise_unsupported(error: ImportError) -> NoReturn:
    raise_configuration_error(f"SqliteSpool is not supported on this system: the module {error.name} is missing")
