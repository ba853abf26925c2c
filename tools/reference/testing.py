"""Page of the assertions and of the pytest plugin."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from typing import Any, Final

from mixpanel_async import _pytest_plugin, testing

from .api import Group, directive, names_table
from .markdown import code, page, section, table

MODULE: Final = testing.__name__


def fixtures() -> Iterator[tuple[str, str]]:
    """Yield each public fixture with its docstring."""
    for statement in ast.parse(inspect.getsource(_pytest_plugin)).body:
        if not isinstance(statement, ast.FunctionDef) or statement.name.startswith("_"):
            continue
        if "pytest.fixture" in map(ast.unparse, statement.decorator_list):
            yield statement.name, ast.get_docstring(statement) or ""


class _Recorder:
    """Stand-in for the parser and the configuration of pytest that keeps what the plugin declares."""

    def __init__(self) -> None:
        self.settings: list[tuple[str, str]] = []
        self.markers: list[tuple[str, str]] = []

    def addini(self, name: str, text: str, **_: Any) -> None:
        self.settings.append((name, text))

    def addinivalue_line(self, _: str, line: str) -> None:
        marker, _, text = line.partition(": ")
        self.markers.append((marker, text))


def declared() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return the settings and the markers of the plugin, each with its description."""
    recorder: Any = _Recorder()
    _pytest_plugin.pytest_addoption(recorder)
    _pytest_plugin.pytest_configure(recorder)
    return recorder.settings, recorder.markers


def testing_page() -> str:
    """Return the page of the assertions and of the pytest plugin."""
    names = tuple(testing.__all__)
    settings, markers = declared()
    found = "\n\n".join(section(code(name), text, level=4) for name, text in fixtures())
    return page(
        "Testing",
        "The guide is [Testing](../guides/testing.md). The pytest plugin is active in every environment in which the "
        "package is installed.",
        section(
            "Pytest plugin",
            section("Fixtures", found, level=3),
            section("Markers", table(("Marker", "Meaning"), ((code(one), text) for one, text in markers)), level=3),
            section("Settings", table(("Setting", "Meaning"), ((code(one), text) for one, text in settings)), level=3),
        ),
        section(
            "Assertions",
            f"Import from `{MODULE}`. They check data that has arrived: call `await client.flush()` first.",
            names_table(Group("", MODULE, names)),
            "\n\n".join(directive(MODULE, name, 3) for name in names),
        ),
    )
