"""Rules of feature flags: JsonLogic (https://jsonlogic.com) with Mixpanel's two operators.

Decisions where Mixpanel's documents are silent
    - Operators work as on jsonlogic.com: comparisons convert types as JavaScript does, and `and`, `or` and `if` stop
      early.
    - Text comparison ignores case by Unicode case folding, in rules and in properties. So does the lookup of property
      names.
    - `some`, `all`, `none`, `map`, `filter` and `reduce` are supported, because Mixpanel's UI creates rules over lists.
      Neither the official Python SDK nor this package supports them in local evaluation.
    - An unknown operator, or operands of an unsupported type, make the whole rule false.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from typing import Any, Final

_MAX_DEPTH: Final = 100
_RFC3339: Final = re.compile(r"(\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d)(?:\.\d+)?(?:[Zz]|([+-])(\d\d):(\d\d))")
_SYMBOLS: Final[Mapping[str, Callable[[Any, Any], Any]]] = {
    "===": operator.eq,
    "!==": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_PLAIN_NUMBER: Final = re.compile(r"0|[1-9][0-9]*")
_IDENTIFIER: Final = re.compile(r"[0-9A-Za-z-]+")


class RuleFailedError(Exception):
    """The rule cannot be evaluated."""


def rule_matches(rule: object, properties: Mapping[str, Any]) -> bool:
    """Return whether a rule matches the properties of a person.

    Args:
        rule: rule of a flag definition.
        properties: `custom_properties` of the context.
    """
    try:
        return _is_truthy(_Evaluation(_fold_case(properties, names=True)).evaluate(_fold_case(rule, names=False), 0))
    except (RuleFailedError, RecursionError, TypeError, ValueError, OverflowError, ZeroDivisionError):
        return False


def _fold_case(value: Any, *, names: bool) -> Any:
    if isinstance(value, str):
        return value.casefold()
    if isinstance(value, Mapping):
        return {name.casefold() if names else name: _fold_case(inner, names=names) for name, inner in value.items()}
    if isinstance(value, list):
        return [_fold_case(inner, names=names) for inner in value]
    return value


class _Evaluation:
    """Evaluator of rules over one data object.

    Args:
        data: source of the variables.
    """

    def __init__(self, data: Any) -> None:
        self._data = data

    def evaluate(self, rule: Any, depth: int) -> Any:
        if isinstance(rule, list):
            return [self.evaluate(item, depth) for item in rule]
        if not isinstance(rule, dict) or len(rule) != 1:
            return rule
        if depth > _MAX_DEPTH:
            raise RuleFailedError
        ((name, given),) = rule.items()
        operands = given if isinstance(given, list) else [given]
        if name in _LAZY:
            return _LAZY[name](self, operands, depth + 1)
        function = _EAGER.get(name)
        if function is None:
            raise RuleFailedError
        return function(*[self.evaluate(operand, depth + 1) for operand in operands])

    def variable(self, name: Any, default: Any = None) -> Any:
        """Return the variable with a dotted name. An empty name returns the whole data object."""
        found = self._data
        for part in str(name).split(".") if name not in ("", None) else ():
            if isinstance(found, Mapping) and part in found:
                found = found[part]
            elif isinstance(found, Sequence) and part.isdecimal() and int(part) < len(found):
                found = found[int(part)]
            else:
                return default
        return default if found is None else found

    def var(self, operands: Sequence[Any], depth: int) -> Any:
        return self.variable(*[self.evaluate(operand, depth) for operand in operands[:2]] or [""])

    def conditional(self, operands: Sequence[Any], depth: int) -> Any:
        for at in range(0, len(operands) - 1, 2):
            if _is_truthy(self.evaluate(operands[at], depth)):
                return self.evaluate(operands[at + 1], depth)
        return self.evaluate(operands[-1], depth) if len(operands) % 2 else None

    def all_truthy(self, operands: Sequence[Any], depth: int) -> Any:
        found = None
        for operand in operands:
            found = self.evaluate(operand, depth)
            if not _is_truthy(found):
                break
        return found

    def any_truthy(self, operands: Sequence[Any], depth: int) -> Any:
        found = None
        for operand in operands:
            found = self.evaluate(operand, depth)
            if _is_truthy(found):
                break
        return found

    def missing(self, operands: Sequence[Any], depth: int) -> list[Any]:
        names = [self.evaluate(operand, depth) for operand in operands]
        names = names[0] if names and isinstance(names[0], list) else names
        return [name for name in names if self.variable(name) in (None, "")]

    def missing_some(self, operands: Sequence[Any], depth: int) -> list[Any]:
        needed, names = (self.evaluate(operand, depth) for operand in operands)
        absent = self.missing([names], depth)
        return [] if len(names) - len(absent) >= needed else absent

    def some(self, operands: Sequence[Any], depth: int) -> bool:
        return any(map(_is_truthy, self._each(operands, depth)))

    def every(self, operands: Sequence[Any], depth: int) -> bool:
        results = self._each(operands, depth)
        return bool(results) and all(map(_is_truthy, results))

    def none(self, operands: Sequence[Any], depth: int) -> bool:
        return not self.some(operands, depth)

    def filtered(self, operands: Sequence[Any], depth: int) -> list[Any]:
        items = self._items(operands, depth)
        return [item for item in items if _is_truthy(_Evaluation(item).evaluate(operands[1], depth))]

    def mapped(self, operands: Sequence[Any], depth: int) -> list[Any]:
        return self._each(operands, depth)

    def reduced(self, operands: Sequence[Any], depth: int) -> Any:
        total = self.evaluate(operands[2], depth) if len(operands) > 2 else None
        for item in self._items(operands, depth):
            total = _Evaluation({"current": item, "accumulator": total}).evaluate(operands[1], depth)
        return total

    def _items(self, operands: Sequence[Any], depth: int) -> list[Any]:
        if len(operands) < 2:
            raise RuleFailedError
        items = self.evaluate(operands[0], depth)
        return items if isinstance(items, list) else []

    def _each(self, operands: Sequence[Any], depth: int) -> list[Any]:
        return [_Evaluation(item).evaluate(operands[1], depth) for item in self._items(operands, depth)]


_LAZY: Final[Mapping[str, Callable[[_Evaluation, Sequence[Any], int], Any]]] = {
    "var": _Evaluation.var,
    "if": _Evaluation.conditional,
    "?:": _Evaluation.conditional,
    "and": _Evaluation.all_truthy,
    "or": _Evaluation.any_truthy,
    "missing": _Evaluation.missing,
    "missing_some": _Evaluation.missing_some,
    "some": _Evaluation.some,
    "all": _Evaluation.every,
    "none": _Evaluation.none,
    "filter": _Evaluation.filtered,
    "map": _Evaluation.mapped,
    "reduce": _Evaluation.reduced,
}


def _is_truthy(value: Any) -> bool:
    return not (isinstance(value, float) and math.isnan(value)) and bool(value)


def _number(value: Any) -> float:
    """Convert a value to a number as JavaScript does. Return NaN if it is not a number."""
    if isinstance(value, str):
        try:
            return float(value.strip() or "0")
        except ValueError:
            return math.nan
    if value is None or isinstance(value, (bool, int, float)):
        return float(value or 0)
    return math.nan


def _equal(first: Any, second: Any) -> bool:
    if first is None or second is None:
        return first is second
    kinds = (type(first), type(second))
    if kinds == (str, str) or list in kinds or dict in kinds:
        return bool(first == second)
    return _number(first) == _number(second)


def _identical(first: Any, second: Any) -> bool:
    return _javascript_type(first) is _javascript_type(second) and bool(first == second)


def _javascript_type(value: Any) -> type:
    """Return the type of a value as JavaScript distinguishes types: integers and floats are the same."""
    return float if isinstance(value, int) and not isinstance(value, bool) else type(value)


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[..., bool]:
    def holds(*values: Any) -> bool:
        pairs = list(pairwise(values))
        return bool(pairs) and all(
            compare(*pair) if all(isinstance(one, str) for one in pair) else compare(*map(_number, pair))
            for pair in pairs
        )

    return holds


def _contains(item: Any, container: Any) -> bool:
    if isinstance(container, str):
        return isinstance(item, str) and item in container
    return isinstance(container, list) and any(_identical(item, one) for one in container)


def _merge_lists(*values: Any) -> list[Any]:
    return [item for value in values for item in (value if isinstance(value, list) else [value])]


def _semver_compare(actual: Any, symbol: Any, target: Any) -> bool:
    return _compare(_version_key(actual), symbol, _version_key(target))


def _datetime_compare(actual: Any, symbol: Any, target: Any) -> bool:
    if isinstance(target, bool) or not isinstance(target, (int, float)) or abs(target) >= 2**63:
        return False
    seconds = abs(int(target)) // 1000
    return _compare(_epoch_seconds(actual), symbol, -seconds if target < 0 else seconds)


def _compare(actual: Any, symbol: Any, target: Any) -> bool:
    if actual is None or target is None or symbol not in _SYMBOLS:
        return False
    return bool(_SYMBOLS[symbol](actual, target))


def _version_key(text: Any) -> Any:
    """Return a sort key for a version of Semantic Versioning 2.0.0; None if the text is not a version."""
    if not isinstance(text, str) or len(text) > 256:
        return None
    text = text.strip()
    text, plus, build = text[text[:1] in {"v", "V"} :].partition("+")
    numbers, dash, tail = text.partition("-")
    parts = numbers.split(".")
    fields = tail.split(".") if dash else []
    if len(parts) > 3 or not all(map(_PLAIN_NUMBER.fullmatch, parts)):
        return None
    if not all(map(_IDENTIFIER.fullmatch, [*fields, *(build.split(".") if plus else [])])):
        return None
    if any(field.isdecimal() and not _PLAIN_NUMBER.fullmatch(field) for field in fields):
        return None
    keys = [(0, int(field), "") if field.isdecimal() else (1, 0, field) for field in fields]
    return [*map(int, parts), 0, 0][:3], not fields, keys


def _epoch_seconds(text: Any) -> int | None:
    """Return the seconds since 1970 of an RFC 3339 time with offset; None if the text is not a time."""
    found = _RFC3339.fullmatch(text.strip()) if isinstance(text, str) else None
    if found is None or (found[2] and (int(found[3]) > 23 or int(found[4]) > 59)):
        return None
    try:
        moment = datetime.strptime(found[1].upper(), "%Y-%m-%dT%H:%M:%S").replace(tzinfo=timezone.utc)
    except ValueError:
        return None
    offset = 0 if not found[2] else int(f"{found[2]}1") * (int(found[3]) * 3600 + int(found[4]) * 60)
    return (moment - datetime(1970, 1, 1, tzinfo=timezone.utc)) // timedelta(seconds=1) - offset


_EAGER: Final[Mapping[str, Callable[..., Any]]] = {
    "==": _equal,
    "!=": lambda first, second: not _equal(first, second),
    "===": _identical,
    "!==": lambda first, second: not _identical(first, second),
    "<": _ordered(operator.lt),
    "<=": _ordered(operator.le),
    ">": _ordered(operator.gt),
    ">=": _ordered(operator.ge),
    "!": lambda value: not _is_truthy(value),
    "!!": _is_truthy,
    "in": _contains,
    "cat": lambda *values: "".join(map(str, values)),
    "substr": lambda text, start, length=None: str(text)[start:][slice(length)],
    "+": lambda *values: math.fsum(map(_number, values)),
    "*": lambda *values: math.prod(map(_number, values)),
    "-": lambda first, *rest: _number(first) - _number(rest[0]) if rest else -_number(first),
    "/": lambda first, second: _number(first) / _number(second),
    "%": lambda first, second: math.fmod(_number(first), _number(second)),
    "min": lambda *values: min(map(_number, values)),
    "max": lambda *values: max(map(_number, values)),
    "merge": _merge_lists,
    "log": lambda value: value,
    "semver_compare": _semver_compare,
    "datetime_compare": _datetime_compare,
}
