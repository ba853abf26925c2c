"""Values that are nested deeper than an import accepts are turned into text, left out or refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixpanel_async import ConfigurationError, ValidationError, limit_depth

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
)
KEYS = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=3)


def container(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.dictionaries(KEYS, values, max_size=3) | st.lists(values, max_size=3)


LEVELS = container(LEAVES)
for _ in range(5):
    LEVELS = container(LEAVES | LEVELS)
TREES = st.dictionaries(KEYS, LEAVES | LEVELS, max_size=4)


def depth(value: Any) -> int:
    if not isinstance(value, (dict, list)):
        return 0
    return 1 + max(map(depth, value.values() if isinstance(value, dict) else value), default=0)


def restored(value: Any, like: Any) -> Any:
    """Return a value in which each text that takes the place of a container is parsed again."""
    if isinstance(value, str) and isinstance(like, (dict, list)):
        return json.loads(value)
    if isinstance(value, dict):
        return {key: restored(entry, like[key]) for key, entry in value.items()}
    return [restored(*pair) for pair in zip(value, like, strict=True)] if isinstance(value, list) else value


def without_deep(value: Any, levels: int) -> Any:
    if isinstance(value, dict):
        pairs = value.items()
        return {key: without_deep(one, levels - 1) for key, one in pairs if levels or not isinstance(one, (dict, list))}
    if isinstance(value, list):
        return [without_deep(one, levels - 1) for one in value if levels or not isinstance(one, (dict, list))]
    return value


@given(tree=TREES)
@settings(max_examples=200, deadline=None, derandomize=True, database=None)
def test_depth_is_limited_to_three_levels(tree: dict[str, Any]) -> None:
    before, fits = copy.deepcopy(tree), depth(tree) <= 4
    as_text, cut = limit_depth(tree, "text"), limit_depth(tree, "cut")
    assert max(depth(as_text), depth(cut)) <= 4
    assert (as_text is tree, cut is tree) == (fits, fits)
    assert restored(as_text, tree) == tree
    assert cut == without_deep(tree, 3)
    if fits:
        assert limit_depth(tree, "reject") is tree
    else:
        with pytest.raises(ValidationError, match="more than 3 levels deep"):
            limit_depth(tree, "reject")
    assert tree == before


def test_rejected_value_is_named_by_its_path() -> None:
    with pytest.raises(ValidationError) as caught:
        limit_depth({"a": [1, {"b": ({},)}]}, "reject")
    assert caught.value.path == "properties.a[1].b[0]"


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "list": lambda value: [value],
    "tuple": lambda value: (value,),
    "dict": lambda value: {"k": value},
    "tuple in list": lambda value: [(value,)],
    "tuple in dict": lambda value: {"k": (value,)},
    "twice": lambda value: (value, value),
}


@pytest.mark.parametrize("levels", [200, 3_000, 100_000])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_value_of_too_many_levels_is_refused_as_text(wrapper: str, levels: int) -> None:
    hostile: Any = []
    for _ in range(levels):
        hostile = WRAPPERS[wrapper](hostile)
    with pytest.raises(ValidationError, match="nested too deeply") as caught:
        limit_depth({"a": {"b": {"c": {"d": hostile}}}}, "text")
    assert caught.value.path == "properties.a.b.c.d"
    assert limit_depth({"a": {"b": {"c": {"d": hostile}}}}, "cut") == {"a": {"b": {"c": {}}}}


def test_value_that_expands_to_millions_is_refused_as_text() -> None:
    value: Any = [0]
    for _ in range(60):
        value = [value, value]
    with pytest.raises(ValidationError, match="too many values"):
        limit_depth({"a": {"b": {"c": {"d": value}}}}, "text")


@pytest.mark.parametrize("value", [object(), {1, 2}, 2**64, "\ud800", {1: 2}])
def test_deep_value_that_is_not_json_is_refused(value: Any) -> None:
    with pytest.raises(ValidationError, match="not JSON") as caught:
        limit_depth({"a": {"b": {"c": {"d": [value]}}}}, "text")
    assert caught.value.path == "properties.a.b.c.d"


def test_mode_must_be_known() -> None:
    with pytest.raises(ConfigurationError, match="'text', 'cut' or 'reject', not 'keep'"):
        limit_depth({}, "keep")  # type: ignore[arg-type]
