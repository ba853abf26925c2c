"""Journal of a plan: one line before and one after each call, on disk before the next step.

A process can end at any moment. What the journal says then is true: a call without a line was not sent, one with
`accepted` or `failed` is settled, and one that is only `started` may have been applied or not.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from ...importing.checkpoint import sync_directory

SUFFIX: Final = ".journal"
_VERSION: Final = 1
# The year 2286.
_MAX_TIME: Final = 1e10
_HEAD_PART: Final = re.compile(rb"""(?:\{[\w":,. -]*)?""")
_MALFORMED: Final = (ValueError, KeyError, TypeError, OverflowError)


class JournalError(Exception):
    """The journal cannot be read, or belongs to another plan or project. The message says what to do."""


class CallState(str, Enum):
    """State of a call in the journal."""

    STARTED = "started"
    """It may have been applied."""
    ACCEPTED = "accepted"
    """Mixpanel took it."""
    FAILED = "failed"
    """It was not applied."""
    UNCERTAIN = "uncertain"
    """It got no conclusive answer, and may have been applied."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Latest line about a call.

    Args:
        state: state after this line.
        reason: why it failed or is uncertain, or an empty string.
    """

    state: CallState
    reason: str = ""


def journal_path(plan: Path) -> Path:
    """Return the path of the journal of a plan. All symbolic links to a plan have one journal."""
    real = Path(os.path.realpath(plan))
    return real.with_name(real.name + SUFFIX)


class Journal:
    """Journal of one plan and project. As a context manager, it is open for writing.

    Args:
        path: path of the file. It is created when the journal is opened, if it does not exist.
        plan: hash of the plan.
        project: fingerprint of the project and host.
        now: current time, in seconds since the epoch, for a new journal.
        calls: number of calls of the plan.

    Raises:
        JournalError: if the file cannot be read, or belongs to another plan or project.
    """

    def __init__(self, path: Path, plan: str, project: str, now: float, *, calls: int) -> None:
        self.path = path
        self._head = {"journal": _VERSION, "plan": plan, "project": project, "created": now}
        created, entries, length = _read(path, self._head, calls)
        self.created = created
        """Time of the first run, in seconds since the epoch."""
        self.entries: dict[int, Entry] = entries
        """Latest entry by number of the call, from 1."""
        self._length = length
        self._descriptor = -1

    def __enter__(self) -> Journal:  # noqa: PYI034  `Self` needs another dependency before Python 3.11
        """Open the journal for writing.

        Raises:
            OSError: if it cannot be written.
        """
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)
        try:
            # What a killed process wrote of its last line is no entry.
            self._drop_rest()
            if not self._length:
                self._append(self._head)
                sync_directory(self.path.parent)
        except BaseException:
            os.close(self._descriptor)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    def write(self, call: int, state: CallState, reason: str = "") -> None:
        """Add a line and wait until it is on disk.

        Args:
            call: number of the call, from 1.
            state: new state.
            reason: why it failed or is uncertain.

        Raises:
            OSError: if it cannot be written.
        """
        self._append({"call": call, "state": state.value, **({"reason": reason} if reason else {})})
        self.entries[call] = Entry(state, reason)

    def _append(self, line: Mapping[str, Any]) -> None:
        data = json.dumps(line).encode() + b"\n"
        length = self._length + len(data)
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
            os.fsync(self._descriptor)
        except OSError:
            # A later line must not continue the part of this one that was written.
            with suppress(OSError):
                self._drop_rest()
            raise
        self._length = length

    def _drop_rest(self) -> None:
        os.ftruncate(self._descriptor, self._length)
        os.lseek(self._descriptor, self._length, os.SEEK_SET)


def journal_created(path: Path) -> float | None:
    """Return the time of the first run in a journal, in seconds since the epoch; None if there is no journal.

    Raises:
        JournalError: if it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return _time(json.loads(file.readline()))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise JournalError(f"cannot read {path}: {error.strerror or error}") from None
    except _MALFORMED:
        raise JournalError(f"{path} is damaged; name the first day to read with --from-date") from None


def _time(head: Mapping[str, Any]) -> float:
    """Return the time in the first line of a journal.

    Raises:
        ValueError: if there is no possible time. Other errors of `_MALFORMED` are possible too.
    """
    created = float(head["created"])
    if not 0 <= created < _MAX_TIME:
        raise ValueError("the time of the first run is impossible")
    return created


def _read(path: Path, head: Mapping[str, Any], calls: int) -> tuple[float, dict[int, Entry], int]:
    """Return the time in the first line of a file, its entries, and the length of its complete lines.

    Raises:
        JournalError: if it is damaged, or has another first line than `head`.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return head["created"], {}, 0
    except OSError as error:
        raise JournalError(f"cannot read {path}: {error.strerror or error}") from None
    length = data.rfind(b"\n") + 1
    lines = data[:length].splitlines()
    entries: dict[int, Entry] = {}
    try:
        # Nothing is sent before the first line is complete, so that a part of one is as good as none.
        if not lines and not _HEAD_PART.fullmatch(data.rstrip(b"\0")):
            raise ValueError("the first line is not the start of a journal")
        found = json.loads(lines[0]) if lines else dict(head)
        created = _time(found)
        for line in lines[1:]:
            fields = json.loads(line)
            number = int(fields["call"])
            if not 0 < number <= calls and found.get("plan") == head["plan"]:
                raise ValueError("the plan has no call with this number")
            entries[number] = Entry(CallState(fields["state"]), str(fields.get("reason", "")))
    except _MALFORMED:
        raise JournalError(f"{path} is damaged; move it away only if none of its calls was sent") from None
    for name, what in (("plan", "another version of the plan"), ("project", "another project, token or host")):
        if found.get(name) != head[name]:
            raise JournalError(
                f"{path} was written for {what}; use that one to resume, or move the journal away to begin again"
            )
    return created, entries, length
