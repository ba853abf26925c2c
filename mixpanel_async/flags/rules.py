"""Runtime rules: JsonLogic over a context's `custom_properties`, without regard to case. The only file that knows
json_logic.

A rule is turned into nested functions once, when its definition arrives, and the library's own functions do the
comparing. JsonLogic as that library has it evaluates every operand of every operator, so an operator that it does not
know makes the whole rule false, wherever it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from .operators import datetime_compare, semver_compare

Evaluate = Callable[[Mapping[str, Any]], Any]

# Operators within operators. Far more than any rule that was made by hand, and far less than Python's own limit, which
# would make the outcome depend on how deep the caller's stack is.
_MAX_DEPTH: Final = 100
_MAX_FORMAT: Final = 256


class RuleError(Exception):
    """A rule that is never met, whatever the context; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """What is used of json_logic.

    Args:
        operations: by the operator's name.
        get_var: reads a variable.
        missing: which of several variables are not there.
        missing_some: the same, if too few of them are there.
    """

    operations: Mapping[str, Callable[..., Any]]
    get_var: Callable[..., Any]
    missing: Callable[..., Any]
    missing_some: Callable[..., Any]


def load_library() -> Library:
    """Import json_logic.

    Raises:
        ImportError: if it is missing, or another distribution has installed a module of the same name.
    """
    try:
        import json_logic  # noqa: PLC0415  an extra: imported only for a client that evaluates flags
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"json_logic", "six"}:
            raise
        words = 'local flags need an extra: pip install "mixpanel-async[flags]"'
        raise ImportError(words, name=error.name) from error
    try:
        # Not registered there, as the official SDK does it: the library is the application's, too.
        return Library(
            operations={**json_logic.operations, **_OWN},
            get_var=json_logic.get_var,
            missing=json_logic.missing,
            missing_some=json_logic.missing_some,
        )
    except AttributeError:
        words = "the module json_logic is not that of json-logic; panzi-json-logic cannot be installed beside it"
        raise ImportError(words, name="json_logic") from None


def _log(value: Any) -> Any:
    # The library's own writes it to a log, and it is the user's.
    return value


def _in(item: Any, container: Any) -> bool:
    # The library's own lists every attribute of the container to see whether it is one.
    return item in container if hasattr(container, "__contains__") else False


def _remainder(dividend: Any, divisor: Any) -> Any:
    # Of a text it is formatting, by which a rule could ask for gigabytes of blanks.
    is_format = isinstance(dividend, str) and "%" in dividend
    if is_format and (len(dividend) > _MAX_FORMAT or any(char.isdecimal() or char == "*" for char in dividend)):
        raise TypeError
    return dividend % divisor


_OWN: Final[Mapping[str, Callable[..., Any]]] = {
    "log": _log,
    "%": _remainder,
    "in": _in,
    "semver_compare": semver_compare,
    "datetime_compare": datetime_compare,
}


def fold(value: Any) -> Any:
    """A context's properties without regard to case: texts and names of properties folded, at any depth."""
    if isinstance(value, str):
        return value.casefold()
    if isinstance(value, list):
        return [fold(item) for item in value]
    if isinstance(value, dict):
        return {key.casefold() if isinstance(key, str) else key: fold(item) for key, item in value.items()}
    return value


def compile_rule(rule: object, library: Library) -> Evaluate:
    """The function that evaluates a rule over folded properties. What it returns counts by its truth; it may raise.

    Args:
        rule: as the definition has it.
        library: what evaluates the operators.

    Raises:
        RuleError: if the rule is never met.
    """
    return _compile(rule, library, 0)


def _compile(rule: object, library: Library, depth: int) -> Evaluate:
    if not isinstance(rule, dict):
        constant = _folded_constant(rule)
        return lambda _: constant
    if depth >= _MAX_DEPTH:
        raise RuleError(f"it has more than {_MAX_DEPTH} operators within one another")
    if not rule:
        raise RuleError("it has an empty operator")
    name, operands = next(iter(rule.items()))
    if not isinstance(operands, list):
        operands = [operands]
    if name == "var":
        return _variable(operands, library, depth)
    parts = [_compile(operand, library, depth + 1) for operand in operands]
    if name == "missing":
        return lambda data: library.missing(data, *[part(data) for part in parts])
    if name == "missing_some":
        return lambda data: library.missing_some(data, *[part(data) for part in parts])
    operation = library.operations.get(name)
    if operation is None:
        raise RuleError(f"it uses the operator {name[:40]!r}, which local evaluation does not have")
    if len(parts) == 2:
        first, second = parts
        return lambda data: operation(first(data), second(data))
    return lambda data: operation(*[part(data) for part in parts])


def _variable(operands: Sequence[object], library: Library, depth: int) -> Evaluate:
    if not 1 <= len(operands) <= 2:
        raise RuleError("it reads a variable without a name, or with too many defaults")
    if len(operands) == 1 and isinstance(operands[0], str):
        name = operands[0].casefold()
        if "." not in name:
            return lambda data: data.get(name)
    parts = [_compile(operand, library, depth + 1) for operand in operands]
    return lambda data: library.get_var(data, *[part(data) for part in parts])


def _folded_constant(value: object) -> object:
    """A part of a rule that is no operator: its texts folded, but not names, at any depth."""
    if isinstance(value, str):
        return value.casefold()
    if isinstance(value, list):
        return [_folded_constant(item) for item in value]
    if isinstance(value, dict):
        return {key: _folded_constant(item) for key, item in value.items()}
    return value
