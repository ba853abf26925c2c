"""Plan file: text that people read and compare, with a hash of itself and of the files it was made from.

    mixpanel-async identity plan, format 1
    project original, at most 500 ids per person
    events since 2026-10-02
    input pairs "/home/ann/pairs.csv" 118 sha256-...
    # 3 pairs: 2 calls, 1 left out
    send merge "user-1" "user-2" < "pairs.csv:2"
    skip fails alias "user-1" "x" < "pairs.csv:4" # errAliasAlreadyExists: this alias was used already
    person "user-1" "user-2"
    sha256 ...

Ids are JSON strings, with every character that cannot be printed escaped, so that a line shows all of an id. The calls
of one person are one paragraph.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Final

from mixpanel_async import IdMerge

from ...importing.checkpoint import sync_directory
from .calls import CallKind, PlannedPair, Skip
from .profiles import ProfileFinding

_HEAD: Final = "mixpanel-async identity plan, format 1"
_STRING: Final = r'"(?:[^"\\]|\\.)*"'
_PAIR: Final = re.compile(
    rf"(?P<skip>send|skip [a-z-]+) (?P<kind>[a-z]+) (?P<first>{_STRING}) (?P<second>{_STRING}) < (?P<source>{_STRING})"
    r"(?: # (?P<reason>.*))?"
)
_PROJECT: Final = re.compile(r"project (legacy|original|simplified)(?:, at most (\d+) ids per person)?")
_EVENT: Final = re.compile(rf"event ({_STRING})")
_SHOWN_SINCE: Final = re.compile(r"events since (\d{4}-\d{2}-\d{2})")
_INPUT: Final = re.compile(rf"input ([a-z]+) ({_STRING}) (\d+) sha256-([0-9a-f]{{64}})")
_SHOWN_IDS: Final = 20
_SHOWN_VALUE: Final = 60
_BLOCK: Final = 1024 * 1024


class PlanError(Exception):
    """A plan cannot be read or used. The message says what to do."""


@dataclass(frozen=True, slots=True)
class PlanInput:
    """File that a plan was made from.

    Args:
        role: `pairs`, `history` or `profiles`.
        path: absolute path.
        size: size in bytes.
        sha256: hash of its content, in hexadecimal digits.
    """

    role: str
    path: str
    size: int
    sha256: str

    def difference(self) -> str | None:
        """Return how the file differs now, or None if it is the same or is no longer there."""
        try:
            now = describe_input(self.role, self.path)
        except FileNotFoundError:
            return None
        except OSError as error:
            return f"{self.path} cannot be read: {error.strerror or error}"
        return None if now == self else f"{self.path} has changed since the plan was made"


def describe_input(role: str, path: str) -> PlanInput:
    """Return the size and hash of a file.

    Raises:
        OSError: if it cannot be read.
    """
    digest, size = hashlib.sha256(), 0
    with Path(path).open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            size += len(block)
    return PlanInput(role, os.path.abspath(path), size, digest.hexdigest())


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Content of a plan file.

    Args:
        id_merge: ID merge system of the project.
        cluster_limit: maximum number of ids of one person, in Original.
        event: name of the event that links a device to a user, in Simplified.
        inputs: files that the plan was made from.
        groups: pairs for which a call is sent, in order, by person.
        left_out: the other pairs.
        shown_since: day since which all ids of the calls have events, less one day for the project's time zone; None if
            an id has none.
        notes: lines for the reader.
        persons: ids of each person that the calls form.
        findings: what happens to user profiles.
    """

    id_merge: IdMerge
    cluster_limit: int
    event: str
    inputs: tuple[PlanInput, ...]
    groups: tuple[tuple[PlannedPair, ...], ...]
    left_out: tuple[PlannedPair, ...]
    shown_since: date | None = None
    notes: tuple[str, ...] = ()
    persons: Sequence[Sequence[str]] = field(default=())
    findings: Sequence[ProfileFinding] = field(default=())

    @property
    def calls(self) -> list[PlannedPair]:
        """Pairs for which a call is sent, in order."""
        return [pair for group in self.groups for pair in group]

    @property
    def is_simplified(self) -> bool:
        return self.id_merge is IdMerge.SIMPLIFIED

    @property
    def needs_attention(self) -> int:
        """Number of pairs whose ids stay apart."""
        return sum(pair.skip is not None and pair.skip.needs_attention for pair in self.left_out)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPlan:
    """Plan as read from a file.

    Args:
        plan: the plan, without notes, persons and findings.
        sha256: hash of the content without its last line.
        is_unchanged: whether the last line has this hash.
    """

    plan: Plan
    sha256: str
    is_unchanged: bool


def quote(text: str) -> str:
    """Return text as a JSON string in which everything that cannot be printed is escaped."""
    return json.dumps(text, ensure_ascii=not text.isprintable())


def write_plan(plan: Plan, path: Path) -> None:
    """Write a plan. The file appears as a whole, and replaces an earlier one, also behind a symbolic link.

    Raises:
        OSError: if it cannot be written.
    """
    digest = hashlib.sha256()
    path = Path(os.path.realpath(path))
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            for line in _lines(plan):
                data = f"{line}\n".encode()
                digest.update(data)
                file.write(data)
            file.write(f"sha256 {digest.hexdigest()}\n".encode())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def _lines(plan: Plan) -> Iterator[str]:
    yield _HEAD
    limit = f", at most {plan.cluster_limit} ids per person" if plan.id_merge is IdMerge.ORIGINAL else ""
    yield f"project {plan.id_merge.value}{limit}"
    if plan.is_simplified:
        yield f"event {quote(plan.event)}"
    if plan.shown_since is not None:
        yield f"events since {plan.shown_since}"
    yield from (f"input {one.role} {quote(one.path)} {one.size} sha256-{one.sha256}" for one in plan.inputs)
    yield from (f"# {note}" for note in plan.notes)
    yield ""
    yield f"# Calls, in the order in which they are sent: {len(plan.calls)}"
    for group in plan.groups:
        yield from map(_pair_line, group)
        yield ""
    yield f"# Pairs that are left out: {len(plan.left_out)}"
    yield from map(_pair_line, plan.left_out)
    yield ""
    yield f"# People after the calls: {len(plan.persons)}"
    yield from map(_person_line, plan.persons)
    yield ""
    yield f"# Properties of user profiles that conflict or are left behind: {len(plan.findings)}"
    if not all(one.left_behind for one in plan.findings):
        yield "# Mixpanel does not document which of the values of a conflict remains: set the property after the join"
    yield from map(_finding_line, plan.findings)


def _pair_line(pair: PlannedPair) -> str:
    decision = "send" if pair.skip is None else f"skip {pair.skip.value}"
    reason = f" # {_printable(pair.reason)}" if pair.reason else ""
    return f"{decision} {pair.kind} {quote(pair.first)} {quote(pair.second)} < {quote(pair.source)}{reason}"


def _person_line(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _SHOWN_IDS} more" if len(ids) > _SHOWN_IDS else ""
    return f"person {' '.join(map(quote, ids[:_SHOWN_IDS]))}{more}"


def _finding_line(finding: ProfileFinding) -> str:
    word = "left-behind" if finding.left_behind else "conflict"
    values = " ".join(f"{quote(one)}={_value(value)}" for one, value in finding.values.items())
    return f"{word} {quote(finding.person)} {quote(finding.name)}: {values}"


def _value(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= _SHOWN_VALUE else f"{text[: _SHOWN_VALUE - 3]}..."


def _printable(text: str) -> str:
    return text if text.isprintable() else json.dumps(text)[1:-1]


def read_plan(path: Path) -> StoredPlan:
    """Read a plan.

    Raises:
        PlanError: if it cannot be read, or a line cannot be understood.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PlanError(f"cannot read {path}: {error.strerror or error}") from None
    body, separator, last = data.rstrip(b"\n").rpartition(b"\nsha256 ")
    content = body + b"\n" if separator else data
    digest = hashlib.sha256(content).hexdigest()
    is_unchanged = bool(separator) and last == digest.encode() and data.endswith(b"\n") and not data.endswith(b"\n\n")
    try:
        lines = content.decode().split("\n")
    except UnicodeDecodeError:
        raise PlanError(f"{path} is not a plan: it is not UTF-8 text") from None
    if lines[0] != _HEAD:
        raise PlanError(f"{path} is not a plan of this version: its first line must be {_HEAD!r}")
    try:
        plan = _parse(lines)
    except ValueError as error:
        raise PlanError(f"{path}: {error}") from None
    return StoredPlan(plan=plan, sha256=digest, is_unchanged=is_unchanged)


def _parse(lines: Iterable[str]) -> Plan:
    """Return the plan in the lines of a file.

    Raises:
        ValueError: naming the line that cannot be understood.
    """
    given: dict[str, Any] = {"event": ""}
    inputs: list[PlanInput] = []
    groups: list[list[PlannedPair]] = [[]]
    left_out: list[PlannedPair] = []
    for number, line in enumerate(lines, start=1):
        if match := _PAIR.fullmatch(line):
            pair = _pair(match.groupdict(), number)
            (groups[-1] if pair.skip is None else left_out).append(pair)
        elif not line:
            groups.append([])
        elif match := _INPUT.fullmatch(line):
            inputs.append(PlanInput(match[1], json.loads(match[2]), int(match[3]), match[4]))
        elif match := _PROJECT.fullmatch(line):
            given |= {"id_merge": IdMerge(match[1]), "cluster_limit": int(match[2] or 0)}
        elif match := _EVENT.fullmatch(line):
            given["event"] = json.loads(match[1])
        elif match := _SHOWN_SINCE.fullmatch(line):
            given["shown_since"] = date.fromisoformat(match[1])
        elif number > 1 and not line.startswith(("#", "person ", "conflict ", "left-behind ")):
            raise ValueError(f"line {number} cannot be understood: {line[:60]!r}")
    if "id_merge" not in given:
        raise ValueError("the line that begins with 'project' is missing")
    calls = tuple(tuple(group) for group in groups if group)
    return Plan(**given, inputs=tuple(inputs), groups=calls, left_out=tuple(left_out))


def _pair(fields: Mapping[str, str | None], number: int) -> PlannedPair:
    decision, kind = fields["skip"] or "", fields["kind"] or ""
    try:
        skip = None if decision == "send" else Skip(decision.removeprefix("skip "))
        if skip is None:
            kind = CallKind(kind).value
        texts = [json.loads(fields[name] or "") for name in ("first", "second", "source")]
    except ValueError as error:
        raise ValueError(f"line {number} cannot be understood: {error}") from None
    first, second, source = texts
    return PlannedPair(kind, first, second, source, skip, fields["reason"] or "")
