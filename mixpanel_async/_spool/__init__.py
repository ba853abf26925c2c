"""The durable spool: what was accepted outlives the process."""

from __future__ import annotations

import os
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from .._config import check_count, check_number, check_switch
from .._errors import refuse
from .._runtime import Runtime
from .work import Reports, Settings, Writer


@dataclass(frozen=True, slots=True)
class SqliteSpool:
    """A file that keeps accepted records until Mixpanel has taken them, so that the death of the process loses nothing.

    `await track()` and its like return once the record is on disk; many callers share one commit. A client that starts
    takes over what others of the same project have left, with the same `time` and `$insert_id`. Several processes may
    share a file, each sending its own; what one leaves behind another takes over within ten seconds or so. Nothing
    touches the disk before the client starts.

    The bounds `max_pending_events` and `max_pending_bytes` of the `BatchPolicy` then hold for what is on its way to the
    disk, and what waits there is bounded here. Nothing that is on its way is taken back: if there is no room for more,
    or if the disk itself is full, `Overflow.DROP_OLDEST` drops the new record as well.

    A file that is found damaged is set aside as `*.corrupt-<time>`, and what can be read of it goes on in a new one.

    Needs a POSIX system, and a disk of this machine.

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
            refuse("the path of the spool must be a string or a path that is not empty")
        if isinstance(os.fspath(self.path), bytes) or "\0" in os.fspath(self.path):
            refuse("the path of the spool must be text without a zero in it")
        if os.fspath(self.path).startswith(":memory:"):
            refuse("a spool in memory would outlive nothing")
        check_count("max_bytes", self.max_bytes, least=1_000_000)
        if self.max_records is not None:
            check_count("max_records", self.max_records)
        check_count("keep_dead", self.keep_dead, least=0, most=1_000_000)
        check_number("timeout", self.timeout, least=0.1, most=600.0)
        check_switch("fsync", self.fsync)
        check_switch("erase", self.erase)

    @property
    def file(self) -> Path:
        """The path, made absolute."""
        return Path(os.fspath(self.path)).absolute()


def journal_of(settings: Settings, reports: Reports, runtime: Runtime) -> Writer:
    """The thread that writes.

    Raises:
        ConfigurationError: if this system has no locks that a spool can stand on.
    """
    try:
        # Nobody who has no spool pays for SQLite.
        from .journal import Journal  # noqa: PLC0415
    except ImportError as error:
        refuse(f"a spool cannot be had on this system: {error.name} is missing")
    return Journal(settings, reports, runtime)
