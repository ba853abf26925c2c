"""Checkpoint of a file: how far it has been imported. Stored in a small file that is replaced atomically."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Final

import orjson

from .inputs import STATE_SUFFIX, FileIdentity, InputFile
from .record_source import Position

PROJECT_ID: Final = "project-id"

_VERSION: Final = 1
_ADVICE: Final = "Use --restart to start over, or the file and options of the earlier import to resume"


class CheckpointError(Exception):
    """A checkpoint cannot be read or written, or does not match the file, project or options."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordCounts:
    """Counts of records of one file.

    Args:
        read: records read; blank lines do not count.
        rejected: records not imported, rejected by this program or by Mixpanel.
        uncertain: updates that may have been applied and are not resent.
    """

    read: int = 0
    rejected: int = 0
    uncertain: int = 0

    @property
    def imported(self) -> int:
        return self.read - self.not_imported

    @property
    def not_imported(self) -> int:
        return self.rejected + self.uncertain

    def plus(self, *, read: int = 0, rejected: int = 0, uncertain: int = 0) -> RecordCounts:
        return RecordCounts(
            read=self.read + read, rejected=self.rejected + rejected, uncertain=self.uncertain + uncertain
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Progress of the import of one file. Field names are part of the file format.

    Args:
        identity: identity of the file.
        project: fingerprint of the destination project.
        options: fingerprint of each option that affects the records sent, by option name.
        position: position up to which every record is imported, or rejected and in the rejects file.
        counts: counts of the records before `position`.
        sending: line up to which profile updates may have been sent; 0 if none are in flight.
        complete: whether the whole file is imported.
    """

    identity: FileIdentity
    project: str
    options: Mapping[str, str]
    position: Position = field(default_factory=Position)
    counts: RecordCounts = field(default_factory=RecordCounts)
    sending: int = 0
    complete: bool = False


def fingerprint(*parts: str | None) -> str:
    """Return a hash that identifies the parts without revealing them."""
    return blake2b("\0".join(part or "" for part in parts).encode(), digest_size=16).hexdigest()


def state_path(input_file: InputFile, directory: Path | None, suffix: str = STATE_SUFFIX) -> Path:
    """Return the path of a file's checkpoint or rejects.

    Args:
        input_file: the input file.
        directory: directory of the result; None for the directory of the input file.
        suffix: file name suffix.
    """
    path = Path(input_file.path)
    if directory is None:
        return path.with_name(path.name + suffix)
    # The hash separates files of the same name from different directories.
    return directory / f"{path.name}.{fingerprint(input_file.path)[:8]}{suffix}"


class CheckpointStore:
    """Storage of the checkpoint of one file.

    Args:
        path: path of the checkpoint.
        initial: checkpoint to use if no stored one exists or it is ignored.
    """

    def __init__(self, path: Path, initial: Checkpoint) -> None:
        self.path = path
        self._initial = initial

    def load(self, *, restart: bool) -> Checkpoint:
        """Return the stored checkpoint, or the initial one.

        Args:
            restart: ignore the stored checkpoint.

        Raises:
            CheckpointError: if it cannot be read, or does not match the file, project or options.
        """
        if restart:
            return self._initial
        try:
            stored = _parse(self.path.read_bytes())
        except FileNotFoundError:
            return self._initial
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"cannot read checkpoint {self.path} ({type(error).__name__}). {_ADVICE}") from None
        if not (stored.position.line or stored.sending):
            # Nothing was sent, so nothing has to match.
            return self._initial
        difference = _difference(stored, self._initial)
        if difference is not None:
            raise CheckpointError(f"checkpoint {self.path} was written {difference}. {_ADVICE}")
        return stored

    def save(self, checkpoint: Checkpoint) -> None:
        """Replace the stored checkpoint atomically.

        Raises:
            OSError: if it cannot be written. The previous checkpoint is unchanged.
        """
        self.write_temporary(checkpoint)
        self.replace()

    @property
    def _temporary_path(self) -> Path:
        return self.path.with_name(self.path.name + ".new")

    def write_temporary(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint to a temporary file. Call `replace` or `discard_temporary` afterwards.

        Raises:
            OSError: if it cannot be written.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0)
        descriptor = os.open(self._temporary_path, flags, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(orjson.dumps({"version": _VERSION, **asdict(checkpoint)}, option=orjson.OPT_INDENT_2))
            file.flush()
            os.fsync(file.fileno())

    def replace(self) -> None:
        """Replace the stored checkpoint with the temporary file.

        Raises:
            OSError: if that fails.
        """
        self._temporary_path.replace(self.path)
        sync_directory(self.path.parent)

    def discard_temporary(self) -> None:
        """Delete the temporary file."""
        with suppress(OSError):
            self._temporary_path.unlink()


def _parse(data: bytes) -> Checkpoint:
    fields = orjson.loads(data)
    if fields.pop("version") != _VERSION:
        raise ValueError("unknown version")
    return Checkpoint(
        **{
            **fields,
            "identity": FileIdentity(**fields["identity"]),
            "position": Position(**fields["position"]),
            "counts": RecordCounts(**fields["counts"]),
        }
    )


def _difference(stored: Checkpoint, requested: Checkpoint) -> str | None:
    """Return the reason why an import cannot resume from a checkpoint, or None if it can."""
    if stored.project != requested.project:
        return "for another project or host"
    if stored.identity.size != requested.identity.size:
        return f"when the file had {stored.identity.size} bytes (now {requested.identity.size})"
    if stored.identity != requested.identity:
        return "before the file was changed"
    names = {*stored.options, *requested.options}
    differing = sorted(name for name in names if stored.options.get(name) != requested.options.get(name))
    if differing == [PROJECT_ID]:
        return "for the same token and host, but with another --project-id or without one"
    return f"with different options: {', '.join(f'--{name}' for name in differing)}" if differing else None


def sync_directory(path: Path) -> None:
    """Wait until the names of new and replaced files in a directory are on disk, where that is possible."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
