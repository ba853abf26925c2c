"""The package is not published, so no file may tell people to install it by its name. A line may say that it fails."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# The name as an argument of an installer, with or without extras. `&&` begins another command.
BY_NAME = re.compile(r"""\b(?:install|add)\b[^&;|#\n`]*[\s"']mixpanel[-_]async(?=\[|["'`\s,]|$)""", re.MULTILINE)
# Files of other tools, virtual environments and builds.
SKIPPED = {".cache", ".git", ".venv", "__pycache__", "build", "dist", "node_modules", "site", "venv"}


@pytest.mark.parametrize(
    ("text", "is_found"),
    [
        ('pip install "mixpanel-async[fastapi]" uvicorn', True),
        ("pip install mixpanel-async litestar", True),
        ("uv add mixpanel-async", True),
        ("run `python -m pip install -U mixpanel-async`", True),
        ('pip install -e ".[demo]" && mixpanel-async demo', False),
        ('pip install ".[fastapi]"     # in a clone of mixpanel-async', False),
    ],
)
def test_pattern_finds_the_name(text: str, is_found: bool) -> None:
    assert bool(BY_NAME.search(text)) is is_found


def test_no_file_installs_the_package_by_name() -> None:
    wrong = []
    for path in ROOT.rglob("*"):
        parts = path.relative_to(ROOT).parts
        if not path.is_file() or SKIPPED.intersection(parts) or path == Path(__file__):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        lines = [line for line in text.splitlines() if "not published" not in line and BY_NAME.search(line)]
        wrong += [f"{'/'.join(parts)}: {line}" for line in lines]
    assert wrong == []
