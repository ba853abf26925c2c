"""How far a file has been imported, in a file beside it that is written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Final

import orjson

from .inputs import STATE_SUFFIX, FileIdentity, Input
from .source import Position

_VERSION: Final = 1
PROJECT_ID: Final = "project-id"


class CheckpointError(Exception):
    """A checkpoint does not belong to what is asked for, or cannot be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Records of a file.

    Args:
        read: that were read, blank lines not counted.
        rejected: not imported, by this program or by Mixpanel.
        uncertain: updates that may have been applied and are not sent again.
    """

    read: int = 0
    rejected: int = 0
    uncertain: int = 0

    @property
    def imported(self) -> int:
        return self.read - self.refused

    @property
    def refused(self) -> int:
        return self.rejected + self.uncertain

    def plus(self, *, read: int = 0, rejected: int = 0, uncertain: int = 0) -> Counts:
        return Counts(read=self.read + read, rejected=self.rejected + rejected, uncertain=self.uncertain + uncertain)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What is known of a file.

    Args:
        identity: of the file.
        project: fingerprint of the project that it goes to.
        options: a fingerprint of each that decides what is sent, by its name.
        position: everything before it is imported, or rejected and written down.
        counts: of the records before it.
        sending: line up to which updates of profiles may have been sent; 0 if none are under way.
        complete: whether the file is done.
    """

    identity: FileIdentity
    project: str
    options: Mapping[str, str]
    position: Position = field(default_factory=Position)
    counts: Counts = field(default_factory=Counts)
    sending: int = 0
    complete: bool = False


def fingerprint(*parts: str | None) -> str:
    """Tells projects apart, and gives away neither token nor account."""
    return blake2b("\0".join(part or "" for part in parts).encode(), digest_size=16).hexdigest()


def path_of(one: Input, directory: Path | None, suffix: str = STATE_SUFFIX) -> Path:
    """Where a file's checkpoint, or its rejects, are: beside it, or in a directory for all."""
    path = Path(one.path)
    if directory is None:
        return path.with_name(path.name + suffix)
    # Files of one name from two directories.
    return directory / f"{path.name}.{fingerprint(one.path)[:8]}{suffix}"


class CheckpointStore:
    """The checkpoint of one file.

    Args:
        path: where it is.
        fresh: what it is if there is none, or it is to be forgotten.
    """

    def __init__(self, path: Path, fresh: Checkpoint) -> None:
        self.path = path
        self._fresh = fresh

    def load(self, *, restart: bool) -> Checkpoint:
        """What an earlier import left, or a fresh one.

        Args:
            restart: forget what there is.

        Raises:
            CheckpointError: if it belongs to another file, project or set of options, or cannot be read.
        """
        if restart:
            return self._fresh
        try:
            found = _parsed(self.path.read_bytes())
        except FileNotFoundError:
            return self._fresh
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"{self.path} cannot be read ({type(error).__name__}); {_AGAIN}") from None
        if not (found.position.line or found.sending):
            # Nothing came of that import, so nothing has to fit to it.
            return self._fresh
        problem = _difference(found, self._fresh)
        if problem is not None:
            raise CheckpointError(f"{self.path} is of an import that {problem}; {_AGAIN}")
        return found

    def save(self, checkpoint: Checkpoint) -> None:
        """Put a checkpoint in the place of the last, whatever may happen meanwhile.

        Raises:
            OSError: if it cannot be written; the last one is still there.
        """
        self.write(checkpoint)
        self.put()

    @property
    def _new(self) -> Path:
        return self.path.with_name(self.path.name + ".new")

    def write(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint beside the last. `put` or `forget` must follow.

        Raises:
            OSError: if it cannot be written.
        """
        descriptor = os.open(self._new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(orjson.dumps({"version": _VERSION, **asdict(checkpoint)}, option=orjson.OPT_INDENT_2))
            file.flush()
            os.fsync(file.fileno())

    def put(self) -> None:
        """Put what was written in the place of the last.

        Raises:
            OSError: if that fails.
        """
        self._new.replace(self.path)
        _sync_directory(self.path.parent)

    def forget(self) -> None:
        """Take away what was written."""
        with suppress(OSError):
            self._new.unlink()


_AGAIN: Final = "begin anew with --restart, or give what it was begun with"


def _parsed(data: bytes) -> Checkpoint:
    found = orjson.loads(data)
    if found.pop("version") != _VERSION:
        raise ValueError("another version")
    return Checkpoint(
        **{
            **found,
            "identity": FileIdentity(**found["identity"]),
            "position": Position(**found["position"]),
            "counts": Counts(**found["counts"]),
        }
    )


def _difference(found: Checkpoint, wanted: Checkpoint) -> str | None:
    """What keeps an import from going on where another stopped."""
    if found.project != wanted.project:
        return "went to another project or host"
    if found.identity.size != wanted.identity.size:
        return f"had a file of {found.identity.size} bytes, which now has {wanted.identity.size}"
    if found.identity != wanted.identity:
        return "had this file before it was changed"
    names = {*found.options, *wanted.options}
    differing = sorted(name for name in names if found.options.get(name) != wanted.options.get(name))
    if differing == [PROJECT_ID]:
        return "had the same token and host, but another project id of a service account, or none"
    return f"had other options: {', '.join(differing)}" if differing else None


def _sync_directory(path: Path) -> None:
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
