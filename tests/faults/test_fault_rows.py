"""Every row of the fault catalogue is held by a test that exists."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from fault_rows import CATALOGUE, ROWS

TESTS = Path(__file__).parent.parent


def test_every_row_is_covered_and_no_other() -> None:
    assert set(ROWS) == set(CATALOGUE)
    assert len(CATALOGUE) == len(set(CATALOGUE))
    assert all(ROWS.values())


@pytest.mark.parametrize("row", CATALOGUE)
def test_each_test_of_a_row_exists(row: str) -> None:
    for one in ROWS[row]:
        path, _, name = one.partition("::")
        tree = ast.parse((TESTS / path).read_text(encoding="utf-8"))
        functions = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
        assert name in {function.name for function in functions}, one
