"""The generated pages."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from .api import API_PAGES, api_page
from .commands import commands_page
from .emulator_http import emulator_http_page
from .environment import environment_page
from .errors import errors_page
from .index import index_page
from .log_events import log_events_page
from .metrics import metrics_page
from .reasons import reasons_page
from .testing import testing_page

FOLDER: Final = Path(__file__).parents[2] / "docs" / "reference"
"""Folder of the generated pages, which are committed."""

PAGES: Final[dict[str, Callable[[], str]]] = {
    "index.md": index_page,
    **{name: partial(api_page, name) for name in API_PAGES},
    "errors.md": errors_page,
    "testing.md": testing_page,
    "commands.md": commands_page,
    "environment.md": environment_page,
    "metrics.md": metrics_page,
    "log-events.md": log_events_page,
    "reasons.md": reasons_page,
    "emulator-http.md": emulator_http_page,
}
"""Functions that make the pages, by file name."""


def outdated() -> list[str]:
    """Return the names of the pages that differ from what the code declares."""
    return [name for name, make in PAGES.items() if not _has(FOLDER / name, make())]


def write() -> list[str]:
    """Write the pages that differ, and return their names."""
    changed = outdated()
    for name in changed:
        (FOLDER / name).write_text(PAGES[name](), encoding="utf-8")
    return changed


def _has(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text
