"""Test of the import direction between the sub-packages of the emulator."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest

import mixpanel_async.emulator

PACKAGE: Final = Path(mixpanel_async.emulator.__file__).parent
ALLOWED: Final[Mapping[str, frozenset[str]]] = {
    "project": frozenset(),
    "flags": frozenset({"project"}),
    "storage": frozenset({"project"}),
    "page": frozenset({"project"}),
    "http": frozenset({"flags", "page", "project", "storage"}),
}


def imported_packages(source: str, package: str) -> Iterator[str]:
    """Return the other sub-packages that a module of a sub-package imports, type-only imports excluded."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom) and node.level == 2 and node.module is not None:
            name = node.module.partition(".")[0]
            if name != package:
                yield name


@pytest.mark.parametrize("package", ALLOWED)
def test_sub_package_imports_only_allowed_sub_packages(package: str) -> None:
    modules = list((PACKAGE / package).glob("*.py"))
    imports = {name for path in modules for name in imported_packages(path.read_text(), package)}
    assert len(modules) > 1
    assert imports <= ALLOWED[package]


def test_every_sub_package_has_a_rule() -> None:
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(ALLOWED)


def test_upward_import_is_found() -> None:
    assert list(imported_packages("from ..http.app import X\nfrom .identity import Y", "project")) == ["http"]
