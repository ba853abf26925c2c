"""CONTRIBUTING.md names files, packages, markers and extras that exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "mixpanel_async"
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
FILE = re.compile(r"(?<![\w.-])[\w./-]+\.(?:py|md)\b")


def section(title: str) -> str:
    """Return the text below a heading, up to the next heading of the same level."""
    level, _, _ = title.partition(" ")
    (text,) = re.findall(rf"^{re.escape(title)}\n(.*?)(?=^{level} |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return str(text)


def paths() -> Iterator[str]:
    """Yield all file names, and all code spans that name a folder of the repository."""
    yield from FILE.findall(PAGE)
    yield from re.findall(r"`((?:mixpanel_async|tests|\.ci)/[\w./-]+)`", PAGE)


def exists(path: str) -> bool:
    """Return whether a path exists in the repository, in the package, or, for a bare name, in any package."""
    return any((root / path).exists() for root in (ROOT, PACKAGE)) or ("/" not in path and any(PACKAGE.rglob(path)))


@pytest.mark.parametrize("path", sorted(set(paths())))
def test_named_path_exists(path: str) -> None:
    assert exists(path)


def test_every_package_has_a_paragraph() -> None:
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert set(re.findall(r"^- `mixpanel_async/(\w+)`:", section("## Architecture"), re.MULTILINE)) == packages


@pytest.mark.parametrize("title", ["## Add an endpoint", "## Add a profile operation"])
def test_addition_takes_three_files(title: str) -> None:
    assert len(re.findall(r"^\d\. ", section(title), re.MULTILINE)) == 3


def test_markers_and_extras_are_defined() -> None:
    markers = set(re.findall(r"pytest -m (\w+)", PAGE))
    assert markers == set(re.findall(r'^    "(\w+): ', PROJECT, re.MULTILINE))
    for extra in re.findall(r'pip install -e "\.\[(\w+)\]"', PAGE):
        assert re.search(rf"^{extra} = \[", PROJECT, re.MULTILINE)


def test_setup_commands_equal_those_of_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = [
        shlex.join(shlex.split(line, comments=True)) for line in section("## Setup").splitlines() if "-e" in line
    ]
    assert len(commands) == 2
    known = {shlex.join(shlex.split(line, comments=True)) for line in readme.splitlines() if line.startswith("pip ")}
    assert set(commands) <= known


def test_page_is_short() -> None:
    assert len(PAGE.splitlines()) <= 250
