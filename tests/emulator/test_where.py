"""Tests of the expressions of the parameter `where`."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Mapping
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixpanel_async.emulator.project.where import MAX_DEPTH, MAX_LENGTH, WhereError, parse_where

PROPERTIES: Final[dict[str, Any]] = {
    "plan": "pro",
    "amount": 12.5,
    "count": 3,
    "beta": True,
    "tags": ["a", 2],
    "city": None,
    "at": 1_700_000_000,
    "seen": "2023-11-14T22:13:20",
    'a"b': 1,
    "digits": "7",
}
USER: Final = {"$email": "ada@example.com"}


@pytest.mark.parametrize(
    ("where", "selected"),
    [
        ('properties["plan"] == "pro"', True),
        ("properties['plan']=='pro'", True),
        ('properties["plan"] != "pro"', False),
        ('properties["plan"] == "Pro"', False),
        ('properties["amount"] > 12 and properties["amount"] <= 12.5', True),
        ('properties["amount"] < -1', False),
        ('properties["amount"] >= 1.25e1', True),
        ('properties["count"] == 3.0', True),
        ('properties["plan"] >= "p"', True),
        ('"ro" in properties["plan"]', True),
        ('not "ro" in properties["plan"]', False),
        ('properties["plan"] in ["free", "pro"]', True),
        ('properties["count"] in [1,2,3]', True),
        ('properties["count"] in ["3", true, -3, null]', False),
        ('properties["count"] in []', False),
        ('properties["tags"] in ["a"]', False),
        ('"a" in properties["tags"] and 2 in properties["tags"]', True),
        ('"2" in properties["tags"]', False),
        ('2 in properties["count"]', False),
        ('1 in properties["plan"]', False),
        # Missing and null.
        ('defined(properties["plan"]) and not defined (properties["none"])', True),
        ('defined(properties["city"])', False),
        ('properties["none"] == null', True),
        ('properties["none"] != "pro"', True),
        ('properties["none"] < 1 or properties["none"] >= 1', False),
        # Booleans.
        ('properties["beta"]', True),
        ('properties["beta"] == true', True),
        ('properties["beta"] == 1', False),
        ('properties["count"]', False),
        ("true", True),
        ("not true", False),
        ("not not true", True),
        ('not not properties["count"]', False),
        # `and` binds more tightly than `or`, and `not` more tightly than both.
        ("true or false and false", True),
        ("(true or false) and false", False),
        ("not false and false", False),
        # Types.
        ('properties["count"] == "3"', False),
        ('properties["plan"] > 1', False),
        ('number(properties["digits"]) == 7 and number(true) == 1 and number(2) == 2', True),
        ('number(properties["plan"]) == null and number(properties["tags"]) == null and number("nan") == null', True),
        ('string(properties["count"]) == "3" and string(2.0) == "2" and string(true) == "true"', True),
        ('string(properties["tags"]) == null and string("x") == "x" and string(properties["amount"]) == "12.5"', True),
        ('(boolean(properties["beta"]) == true)', True),
        ('boolean(properties["none"]) or boolean(0) or boolean("")', False),
        # Times.
        ('properties["at"]>=datetime(1700000000)', True),
        ('datetime(properties["at"]) < datetime(1700000000001)', True),
        ('properties["seen"] == datetime(1700000000)', True),
        ('properties["seen"] == datetime("2023-11-14T23:13:20+01:00")', True),
        ('properties["seen"] == datetime("2023-11-14T22:13:20Z")', True),
        ('properties["seen"] < datetime("2023-11-14")', False),
        ('properties["plan"] < datetime(1)', False),
        ('properties["plan"] == datetime(1)', False),
        ('datetime("9999999999999999-01-01") == null', True),
        ('datetime("x") == datetime("y")', True),
        # Users and names.
        ('user["$email"] == "ada@example.com" and not defined(user["plan"])', True),
        (r'properties["a\"b"] == 1', True),
        (r'properties["pl\u0061n"] == "\pro"', True),
        (r'"\ud83d\ude00" == "😀" and "\ud83d" == "\ufffd"', True),
        (' ( ( properties [ "plan" ] == "pro" ) ) ', True),
        ("not " * 101 + "true", False),
        ("(" * MAX_DEPTH + "true" + ")" * MAX_DEPTH, True),
        (" or ".join(["false"] * 1_000 + ["true"]), True),
    ],
)
def test_expression_selects(where: str, selected: bool) -> None:
    assert parse_where(where).matches(PROPERTIES, USER) is selected


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("", "incomplete"),
        ("properties", "the name 'properties'"),
        ('properties["a"', "']' is missing"),
        ('properties["a"] ==', "incomplete"),
        ("properties[1] == 1", "a property name must be a string"),
        ('properties["a"]["b"] == 1', "values inside a property"),
        ('event["a"] == 1', "event[...] in where, at character 1, is not supported"),
        ('properties["a"] + 1 == 2', "the operator '+' in where, at character 17, is not supported"),
        ('properties["a"] % 2 == 0', "the operator '%'"),
        ('-properties["a"] == 1', "unexpected 'properties'"),
        ('properties["a"] == 1 && true', "the operator '&&'"),
        ('!defined(properties["a"])', "the operator '!'"),
        ("1 < 2 < 3", "a chain of comparisons"),
        ('floor(properties["a"]) == 1', "the function 'floor'"),
        ('any(properties["a"] == 1)', "the function 'any'"),
        ('x == "secret"', "the name 'x'"),
        ("AND", "the name 'AND'"),
        ('properties["a"] == "secret', "a string without end, from character 20"),
        ('properties["a"] in [1 2]', "',' is missing"),
        ('properties["a"] in [properties["b"]]', "only literals"),
        ("1 in [-true]", "unexpected 'true'"),
        ("1 in [1", "incomplete"),
        ("true false", "unexpected 'false'"),
        ('true "secret"', "unexpected a string"),
        ("(true", "incomplete: ')' is missing"),
        ("(true]", "invalid at character 6: ')' is missing"),
        ("a" * 40, "'" + "a" * 30 + "'"),
        ("1e999 == 1", "too large"),
        ("(" * 51 + "true" + ")" * 51, "more than 50 levels"),
        ("defined(" * 51 + "true" + ")" * 51, "more than 50 levels"),
        ("true" + " " * MAX_LENGTH, "10004 characters"),
        ("\ud800", "unexpected '\\ud800'"),
    ],
)
def test_unsupported_expression_is_refused(where: str, words: str) -> None:
    with pytest.raises(WhereError) as caught:
        parse_where(where)
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)


def test_use_of_profiles_is_known() -> None:
    assert parse_where('true or user["x"] == 1').uses_user
    assert not parse_where('properties["user"] == "user"').uses_user


# Random expressions, each with its meaning as a Python function.

Meaning = Callable[[Mapping[str, Any]], bool]
Expression = tuple[str, Meaning]
NAMES: Final = ("a", "b", "c d", 'e"f', "")
ORDERS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
texts = st.text(st.characters(codec="utf-8"), max_size=5)
scalars = st.one_of(st.integers(0, 9), st.floats(0, 9), texts, st.booleans(), st.none())
records = st.dictionaries(st.sampled_from(NAMES), scalars)


def is_same(left: Any, right: Any) -> bool:
    numbers = [type(value) in {int, float} for value in (left, right)]
    return bool((all(numbers) or type(left) is type(right)) and left == right)


def compared(name: str, sign: str, value: Any) -> Expression:
    def meaning(record: Mapping[str, Any]) -> bool:
        found = record.get(name)
        if sign == "==":
            return is_same(found, value)
        if sign == "!=":
            return not is_same(found, value)
        if sign == "in":
            return any(is_same(found, item) for item in value)
        kinds = {"number" if type(one) in {int, float} else type(one).__name__ for one in (found, value)}
        return kinds in ({"number"}, {"str"}) and ORDERS[sign](found, value)

    return f"properties[{json.dumps(name)}]{sign} {json.dumps(value)}", meaning


def joined(parts: list[Expression], word: str) -> Expression:
    choose = all if word == "and" else any
    text = f" {word} ".join(f"({part})" for part, _ in parts)
    return text, lambda record: choose(meaning(record) for _, meaning in parts)


def negated(part: Expression) -> Expression:
    return f"not ({part[0]})", lambda record: not part[1](record)


comparisons = st.one_of(
    st.builds(compared, st.sampled_from(NAMES), st.sampled_from(["==", "!=", *ORDERS]), scalars),
    st.builds(compared, st.sampled_from(NAMES), st.just("in"), st.lists(scalars, max_size=3)),
)
expressions = st.recursive(
    comparisons,
    lambda inner: st.one_of(
        st.builds(joined, st.lists(inner, min_size=1, max_size=3), st.sampled_from(["and", "or"])),
        st.builds(negated, inner),
    ),
    max_leaves=5,
)


@given(expressions, records)
def test_random_expression_has_its_meaning(expression: Expression, record: Mapping[str, Any]) -> None:
    text, meaning = expression
    assert parse_where(text).matches(record, {}) is meaning(record)


fragments = st.sampled_from(
    ['properties["a"]', "properties", "[", "]", "(", ")", "and", "not", "in", "==", "<", "-", "1", '"x"', '"', "null"]
)  # fmt: skip


@given(st.one_of(st.text(), st.lists(fragments, max_size=12).map(" ".join)), records)
def test_any_text_is_evaluated_or_refused(text: str, record: Mapping[str, Any]) -> None:
    try:
        where = parse_where(text)
    except WhereError as error:
        assert str(error).isprintable()  # noqa: PT017  most texts are refused, some are not
    else:
        assert where.matches(record, record) in {True, False}
