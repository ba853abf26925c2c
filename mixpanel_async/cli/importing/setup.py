"""What an import is to do, by the options of the command, and the objects that do it."""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mixpanel_async import AsyncMixpanel, BatchPolicy, Overflow, RetryPolicy

from .checkpoint import PROJECT_ID, Checkpoint, CheckpointError, CheckpointStore, fingerprint, path_of
from .column_mapping import ColumnMapping, ImportKind, InsertIds, Operation, column_types, constants, pairs
from .file_import import FileImport
from .importer import BATCH, BATCH_BYTES, ImportLimits, OnDelivered, OnDrop
from .inputs import REJECTS_SUFFIX, STDIN, Format, Input
from .open_source import Reading
from .rejects import Rejects
from .times import Clock, zone

_REQUEST_TIMEOUT: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnOptions:
    """The options that decide what is sent, as they were given. A checkpoint holds for one set of them."""

    kind: ImportKind
    format: Format
    map: Sequence[str]
    set: Sequence[str]
    drop: Sequence[str]
    type: Sequence[str]
    infer_types: bool
    time_format: str
    timezone: str | None
    operation: Operation
    insert_ids: InsertIds
    delimiter: str | None
    encoding: str

    def reading(self) -> Reading:
        """How files are read.

        Raises:
            ValueError: if the delimiter or the encoding is of no use.
        """
        if self.delimiter is not None and len(self.delimiter) != 1:
            raise ValueError("--delimiter must be one character")
        try:
            is_by_byte = codecs.encode("\n", self.encoding) == b"\n"
        except (LookupError, TypeError, ValueError):
            is_by_byte = False
        if not is_by_byte:
            raise ValueError("--encoding must be one that extends ASCII, such as utf-8 or cp1252")
        return Reading(format=self.format, delimiter=self.delimiter, encoding=self.encoding)

    def shape(self) -> ColumnMapping:
        """What the columns of the files mean.

        Raises:
            ValueError: naming the option that is malformed.
        """
        try:
            clock = Clock(self.time_format, None if self.timezone is None else zone(self.timezone))
        except ValueError as error:
            raise ValueError(f"--time-format or --timezone: {error}") from None
        return ColumnMapping(
            kind=self.kind,
            columns=pairs(self.map, "--map", "NAME=COLUMN"),
            constants=constants(self.set, self.kind),
            dropped=frozenset(self.drop),
            types=column_types(self.type),
            infer=self.infer_types,
            clock=clock,
            operation=self.operation,
            insert_ids=self.insert_ids,
        )

    def decisive(self) -> dict[str, str]:
        """A fingerprint of each by its name, as a checkpoint keeps them: what they say may be personal."""
        return {name.replace("_", "-"): fingerprint(repr(getattr(self, name))) for name in self.__slots__}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectOptions:
    """Where it goes, as `AsyncMixpanel.from_env` reads it.

    Args:
        environ: the `MIXPANEL_*` variables.
        allow_http: as the client's.
    """

    environ: Mapping[str, str]
    allow_http: bool

    def fingerprint(self) -> str:
        """Tells it from other projects."""
        return fingerprint(*map(self._given, ("TOKEN", "REGION", "API_HOST")))

    def account(self) -> dict[str, str]:
        """A fingerprint of the service account's project, if one is given, as `Columns.decisive` has them.

        With a service account Mixpanel goes by this id, and nobody here can tell whether it is the token's project.
        """
        project_id = self._given("PROJECT_ID")
        return {PROJECT_ID: fingerprint(project_id)} if project_id else {}

    def _given(self, name: str) -> str:
        return self.environ.get(f"MIXPANEL_{name}", "").strip()

    def connect(self, limits: ImportLimits, on_drop: OnDrop, on_delivered: OnDelivered) -> AsyncMixpanel:
        """The client of the import.

        Raises:
            ConfigurationError: if the project or its account is not given, or not in full.
        """
        return AsyncMixpanel.from_env(
            self.environ,
            events_endpoint="import",
            allow_http=self.allow_http,
            overflow=Overflow.WAIT,
            batching=BatchPolicy(
                max_events=BATCH,
                max_bytes=BATCH_BYTES,
                linger=0.25,
                max_in_flight=limits.concurrency,
                # What is handed over is bounded before it is; these leave room for one chunk more.
                max_pending_events=(limits.concurrency + 2) * BATCH,
                max_pending_bytes=(limits.concurrency + 8) * BATCH_BYTES,
                wait_timeout=3_600.0,
                at_least_once=limits.at_least_once,
            ),
            retry=RetryPolicy(),
            identity_retry=RetryPolicy(attempts=1, total_timeout=_REQUEST_TIMEOUT),
            timeout=_REQUEST_TIMEOUT,
            # What can be delivered is flushed before; the rest is to stay undelivered.
            shutdown_timeout=0.0,
            # It has checkpoints of its own.
            spool=None,
            on_drop=on_drop,
            on_delivered=on_delivered,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportPaths:
    """Where checkpoints and rejected records are kept.

    Args:
        directory: for all files; None for beside each.
        rejects: one file for what is rejected; None for one a file.
        keeps_checkpoints: whether imports can be resumed.
        restart: forget what earlier imports left.
    """

    directory: Path | None
    rejects: Path | None
    keeps_checkpoints: bool
    restart: bool

    def jobs(self, inputs: Sequence[Input], project: str, options: Mapping[str, str]) -> list[FileImport]:
        """What is to be done with each file, by what earlier imports left. Nothing is changed.

        Raises:
            CheckpointError: if a checkpoint does not belong to what is asked for.
        """
        shared = None if self.rejects is None else Rejects(self.rejects)
        jobs = []
        for one in inputs:
            store = checkpoint = None
            if self.keeps_checkpoints and one.identity is not None:
                fresh = Checkpoint(identity=one.identity, project=project, options=options)
                store = CheckpointStore(path_of(one, self.directory), fresh)
                checkpoint = store.load(restart=self.restart)
            rejects = shared or Rejects(self._rejects_of(one))
            jobs.append(FileImport(input=one, rejects=rejects, store=store, checkpoint=checkpoint))
        return jobs

    def begin(self, jobs: Sequence[FileImport]) -> None:
        """Make ready what the import of these files writes, or leave everything as it was.

        Raises:
            CheckpointError: if a checkpoint, or what is rejected, cannot be written.
            OSError: if the rejected records of an earlier import cannot be read.
        """
        kept = [(job.store, job.checkpoint) for job in jobs if job.store is not None and job.checkpoint is not None]
        with ExitStack() as undoing:
            if self.directory is not None:
                _made(self.directory, undoing)
            _check(jobs)
            for store, checkpoint in kept:
                undoing.callback(store.forget)
                _written(store, checkpoint)
            undoing.pop_all()
        for store, _ in kept:
            store.put()
        _prune(jobs)

    def dry(self, inputs: Sequence[Input]) -> list[FileImport]:
        """What a dry run looks at. It leaves nothing but the file of rejects, if one is asked for.

        Raises:
            CheckpointError: if that file cannot be written.
            OSError: if it is there and cannot be read.
        """
        rejects = Rejects(self.rejects)
        jobs = [FileImport(input=one, rejects=rejects) for one in inputs]
        _check(jobs)
        _prune(jobs)
        return jobs

    def _rejects_of(self, one: Input) -> Path:
        if one.identity is None:
            name = "stdin" if one.name == STDIN else Path(one.name).name
            return (self.directory or Path()) / f"{name}{REJECTS_SUFFIX}"
        return path_of(one, self.directory, REJECTS_SUFFIX)


def _written(store: CheckpointStore, checkpoint: Checkpoint) -> None:
    """Find out that a checkpoint cannot be kept before there is anything to keep."""
    try:
        store.write(checkpoint)
    except OSError as error:
        raise CheckpointError(
            f"cannot write {store.path}: {error.strerror or error}; choose a directory with --state-dir, or do without "
            "with --no-checkpoint"
        ) from None


def _made(directory: Path, undoing: ExitStack) -> None:
    """Make a directory, which is taken away again if nothing comes of it."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        undoing.callback(_unmade, path)


def _unmade(path: Path) -> None:
    with suppress(OSError):
        path.rmdir()


def _check(jobs: Sequence[FileImport]) -> None:
    """Find out that what is rejected cannot be written down before there is anything to write."""
    for rejects in dict.fromkeys(job.rejects for job in jobs):
        try:
            rejects.check()
        except OSError as error:  # noqa: PERF203  one or a few files
            raise CheckpointError(
                f"cannot write what is rejected to {rejects.path}: {error.strerror}; choose another file with --rejects"
            ) from None


def _prune(jobs: Sequence[FileImport]) -> None:
    """Take out of the rejects what will be found again."""
    kept: dict[Rejects, dict[str, int]] = {}
    for job in jobs:
        if job.input.identity is not None and not job.is_complete:
            kept.setdefault(job.rejects, {})[job.input.path] = job.start.line
    for rejects, lines in kept.items():
        rejects.prune(lines)
