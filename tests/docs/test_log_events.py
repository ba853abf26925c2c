"""The README lists every log event of the client with its level and its data, as the code has them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import mixpanel_async

PACKAGE = Path(mixpanel_async.__file__).parent
README = (PACKAGE.parent / "README.md").read_text(encoding="utf-8")
LEVELS = {"DEBUG", "INFO", "WARNING", "ERROR"}
# They share nothing with the client, or print for the user of a command.
OTHER_PROGRAMS = {"cli", "emulator"}
# Owns the logger, and takes the event from its callers.
OWNER = "_runtime/log_events.py"
EXTRA = re.compile(r"\{'mixpanel': \{'event': '(\w+)'\}\}")


class LogEvent(NamedTuple):
    """Log event; no level if the code computes it."""

    name: str
    level: str | None
    data: frozenset[str]


def sources() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(PACKAGE)
        if relative.parts[0] not in OTHER_PROGRAMS:
            yield relative.as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def logged_events(tree: ast.Module) -> Iterator[LogEvent]:
    """Return the events of calls of `log_event`, and in the integrations also of `_warn` and of the logger."""
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call):
            continue
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        args = call.args
        if name == "partial" and ast.unparse(args[0]) == "log_event":
            name, args = "log_event", args[1:]
        if name == "log_event":
            level, event = args[:2]
            assert isinstance(event, ast.Constant), ast.unparse(call)
            assert isinstance(event.value, str)
            data = frozenset(keyword.arg or "" for keyword in call.keywords)
            yield LogEvent(event.value, level.attr if isinstance(level, ast.Attribute) else None, data)
        elif name == "_warn":
            event = call.args[0]
            assert isinstance(event, ast.Constant), ast.unparse(call)
            yield LogEvent(str(event.value), "WARNING", frozenset())
        for keyword in call.keywords:
            if keyword.arg == "extra" and (found := EXTRA.fullmatch(ast.unparse(keyword.value))):
                yield LogEvent(found[1], name.upper(), frozenset())


def documented_events() -> dict[str, tuple[set[str], frozenset[str]]]:
    """Return the levels and the data of each event in the table of the README."""
    start = README.index("| event | level | data |")
    table = README[start : README.index("\n\n", start)].splitlines()[2:]
    found: dict[str, tuple[set[str], frozenset[str]]] = {}
    for row in table:
        event, levels, data = (cell.strip() for cell in row.strip("|").split(" | ", 2))
        # Names in the explanation come after a colon.
        names = frozenset(re.findall(r"`([a-z_]+)`", data.partition(":")[0]))
        assert event.strip("`") not in found, event
        found[event.strip("`")] = set(re.findall(r"[A-Z]+", levels)), names
    return found


def test_every_log_event_is_in_the_readme_with_level_and_data() -> None:
    documented = documented_events()
    logged = {event for _, tree in sources() for event in logged_events(tree)}
    assert {event.name for event in logged} == set(documented)
    for name, (levels, data) in documented.items():
        lines = [event for event in logged if event.name == name]
        # Lines of one event may differ in their level, and leave out a fact that they do not know.
        assert data == frozenset().union(*(line.data for line in lines)), name
        computed = any(line.level is None for line in lines)
        assert levels <= LEVELS
        assert len(levels) > 1 if computed else levels == {line.level for line in lines}, name


def test_every_line_of_the_client_is_a_log_event() -> None:
    other = [
        f"{path}:{call.lineno}"
        for path, tree in sources()
        if path != OWNER
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and ast.unparse(call.func.value) in {"_log", "logging", "logger", "log"}
        and call.func.attr in {"debug", "info", "warning", "error", "exception", "critical", "log"}
        and not any(keyword.arg == "extra" for keyword in call.keywords)
    ]
    assert other == []
