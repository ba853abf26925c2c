"""Checkpoint and reject files of an import: where they are, and how they are prepared before anything is sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from .checkpoint import Checkpoint, CheckpointError, CheckpointStore, state_path
from .file_import import FileImport
from .inputs import REJECTS_SUFFIX, STDIN, InputFile
from .rejects_file import RejectsFile


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportPaths:
    """Locations of checkpoints and rejected records.

    Args:
        directory: directory for all of them; None for the directory of each input file.
        rejects: one file for all rejected records; None for one per input file.
        use_checkpoints: whether imports can be resumed.
        restart: ignore checkpoints of earlier imports.
    """

    directory: Path | None
    rejects: Path | None
    use_checkpoints: bool
    restart: bool

    def file_imports(self, inputs: Sequence[InputFile], project: str, options: Mapping[str, str]) -> list[FileImport]:
        """Return the import of each file, with the checkpoint of an earlier run. Changes nothing on disk.

        Args:
            inputs: the input files.
            project: fingerprint of the project.
            options: fingerprint of each option by name.

        Raises:
            CheckpointError: if a checkpoint does not match the file, project or options.
        """
        shared = None if self.rejects is None else RejectsFile(self.rejects)
        files = []
        for input_file in inputs:
            store = checkpoint = None
            if self.use_checkpoints and input_file.identity is not None:
                initial = Checkpoint(identity=input_file.identity, project=project, options=options)
                store = CheckpointStore(state_path(input_file, self.directory), initial)
                checkpoint = store.load(restart=self.restart)
            rejects = shared or RejectsFile(self._rejects_path(input_file))
            files.append(FileImport(input=input_file, rejects=rejects, store=store, checkpoint=checkpoint))
        return files

    def prepare(self, files: Sequence[FileImport]) -> None:
        """Create directories and checkpoints and prune reject files. On failure, undo every change.

        Raises:
            CheckpointError: if a checkpoint or a reject file cannot be written.
            OSError: if the reject file of an earlier import cannot be read.
        """
        initial = [
            (file.store, file.checkpoint) for file in files if file.store is not None and file.checkpoint is not None
        ]
        with ExitStack() as undo:
            if self.directory is not None:
                _create_directory(self.directory, undo)
            _ensure_rejects_writable(files)
            for store, checkpoint in initial:
                undo.callback(store.discard_temporary)
                _write_temporary(store, checkpoint)
            undo.pop_all()
        for store, _ in initial:
            store.replace()
        _prune_rejects(files)

    def prepare_dry_run(self, inputs: Sequence[InputFile]) -> list[FileImport]:
        """Return the import of each file for a dry run. It writes no file except `rejects`, if that is set.

        Raises:
            CheckpointError: if `rejects` cannot be written.
            OSError: if `rejects` exists and cannot be read.
        """
        rejects = RejectsFile(self.rejects)
        files = [FileImport(input=input_file, rejects=rejects) for input_file in inputs]
        _ensure_rejects_writable(files)
        _prune_rejects(files)
        return files

    def _rejects_path(self, input_file: InputFile) -> Path:
        if input_file.identity is None:
            name = "stdin" if input_file.name == STDIN else Path(input_file.name).name
            return (self.directory or Path()) / f"{name}{REJECTS_SUFFIX}"
        return state_path(input_file, self.directory, REJECTS_SUFFIX)


def _write_temporary(store: CheckpointStore, checkpoint: Checkpoint) -> None:
    """Write the first checkpoint early, so that an unwritable location is reported before anything is sent."""
    try:
        store.write_temporary(checkpoint)
    except OSError as error:
        raise CheckpointError(
            f"cannot write {store.path}: {error.strerror or error}; set --state-dir to a writable directory or use "
            "--no-checkpoint"
        ) from None


def _create_directory(directory: Path, undo: ExitStack) -> None:
    """Create a directory and its parents. `undo` removes those that did not exist."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        undo.callback(_remove_directory, path)


def _remove_directory(path: Path) -> None:
    with suppress(OSError):
        path.rmdir()


def _ensure_rejects_writable(files: Sequence[FileImport]) -> None:
    """Check the reject files before they are pruned, which rewrites them.

    Raises:
        CheckpointError: if one cannot be written, is an input file, or has other content.
    """
    for file in files:
        path = file.rejects.path
        if path is not None and path.is_file() and file.input.size is not None and path.samefile(file.input.path):
            raise CheckpointError(f"{path} is the input file; choose another file with --rejects")
    for rejects in dict.fromkeys(file.rejects for file in files):
        try:
            rejects.ensure_writable()
            has_other_content = rejects.has_other_content()
        except OSError as error:
            raise CheckpointError(
                f"cannot write rejected records to {rejects.path}: {error.strerror}; choose another file with --rejects"
            ) from None
        if has_other_content:
            raise CheckpointError(
                f"{rejects.path} has other content than rejected records; choose another file with --rejects"
            )


def _prune_rejects(files: Sequence[FileImport]) -> None:
    """Remove entries of records that this run reads again."""
    kept_lines: dict[RejectsFile, dict[str, int]] = {}
    for file in files:
        if file.input.identity is not None and not file.is_complete:
            kept_lines.setdefault(file.rejects, {})[file.input.path] = file.start.line
    for rejects, lines in kept_lines.items():
        rejects.prune(lines)
