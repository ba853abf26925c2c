"""Every row of the fault catalogue names tests that exist."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest
from fault_rows import CATALOGUE, ROWS

TESTS = Path(__file__).parent.parent


@cache
def functions_of(path: str) -> frozenset[str]:
    """Return the names of the functions of a test file. Rows share files, so each file is parsed once."""
    tree = ast.parse((TESTS / path).read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def test_every_row_of_the_catalogue_has_tests() -> None:
    assert set(ROWS) == set(CATALOGUE)
    assert len(CATALOGUE) == len(set(CATALOGUE))
    assert all(ROWS.values())


@pytest.mark.parametrize("row", CATALOGUE)
def test_tests_of_a_row_exist(row: str) -> None:
    for one in ROWS[row]:
        path, _, name = one.partition("::")
        assert name in functions_of(path), one
