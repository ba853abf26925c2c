"""Runtime rules: case-insensitive JsonLogic over a context's `custom_properties`. Only this module uses json_logic.

A rule is compiled to nested functions once, when its definition arrives. The library's own functions do the comparing.
That library evaluates all operands of all operators, so an unknown operator makes the whole rule false at any position.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from .operators import datetime_compare, semver_compare

Evaluate = Callable[[Mapping[str, Any]], Any]

# Nesting of operators. Far more than a rule that was written by hand has, and far less than Python's recursion limit,
# with which the result would depend on the depth of the caller's stack.
_MAX_DEPTH: Final = 100
_MAX_FORMAT: Final = 256


class RuleError(Exception):
    """The rule can never be met. The message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """Functions of json_logic.

    Args:
        operations: functions by the name of the operator.
        get_var: returns the value of a variable.
        missing: returns the variables that are not in the data.
        missing_some: returns the missing variables if fewer than a minimum are in the data.
    """

    operations: Mapping[str, Callable[..., Any]]
    get_var: Callable[..., Any]
    missing: Callable[..., Any]
    missing_some: Callable[..., Any]


def load_library() -> Library:
    """Import json_logic.

    Raises:
        ImportError: it is not installed, or another distribution has installed a module of the same name.
    """
    try:
        import json_logic  # noqa: PLC0415  an extra: imported only for a client that evaluates flags
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"json_logic", "six"}:
            raise
        message = 'local flags need an extra: run pip install ".[flags]" in a clone of the repository'
        raise ImportError(message, name=error.name) from error
    try:
        # The official SDK registers its operators in the library. We do not: the application may use the library too.
        return Library(
            operations={**json_logic.operations, **_OWN},
            get_var=json_logic.get_var,
            missing=json_logic.missing,
            missing_some=json_logic.missing_some,
        )
    except AttributeError:
        message = "the module json_logic is not from json-logic; uninstall panzi-json-logic and reinstall json-logic"
        raise ImportError(message, name="json_logic") from None


def _log(value: Any) -> Any:
    # The library's version writes the value, which is personal data, to a log.
    return value


def _in(item: Any, container: Any) -> bool:
    # The library's version calls `dir()` on the container.
    return item in container if hasattr(container, "__contains__") else False


def _remainder(dividend: Any, divisor: Any) -> Any:
    # With a string, `%` formats, and a rule could request gigabytes of padding.
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
    """Return a copy with all strings and property names case-folded, at any depth."""
    if isinstance(value, str):
        return value.casefold()
    if isinstance(value, list):
        return [fold(item) for item in value]
    if isinstance(value, dict):
        return {key.casefold() if isinstance(key, str) else key: fold(item) for key, item in value.items()}
    return value


def compile_rule(rule: object, library: Library) -> Evaluate:
    """Return a function that evaluates a rule over folded properties.

    A true result means that the rule is met. The function may raise any exception.

    Args:
        rule: the rule from the definition.
        library: evaluates the operators.

    Raises:
        RuleError: the rule can never be met.
    """
    return _compile(rule, library, 0)


def _compile(rule: object, library: Library, depth: int) -> Evaluate:
    if not isinstance(rule, dict):
        constant = _folded_constant(rule)
        return lambda _: constant
    if depth >= _MAX_DEPTH:
        raise RuleError(f"operators are nested more than {_MAX_DEPTH} levels deep")
    if not rule:
        raise RuleError("an operator has no name")
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
        raise RuleError(f"the operator {name[:40]!r} is not supported")
    if len(parts) == 2:
        first, second = parts
        return lambda data: operation(first(data), second(data))
    return lambda data: operation(*[part(data) for part in parts])


def _variable(operands: Sequence[object], library: Library, depth: int) -> Evaluate:
    if not 1 <= len(operands) <= 2:
        raise RuleError('"var" takes a name and at most one default')
    if len(operands) == 1 and isinstance(operands[0], str):
        name = operands[0].casefold()
        if "." not in name:
            return lambda data: data.get(name)
    parts = [_compile(operand, library, depth + 1) for operand in operands]
    return lambda data: library.get_var(data, *[part(data) for part in parts])


def _folded_constant(value: object) -> object:
    """Return a constant with its strings folded, at any depth. Property names stay as they are."""
    if isinstance(value, str):
        return value.casefold()
    if isinstance(value, list):
        return [_folded_constant(item) for item in value]
    if isinstance(value, dict):
        return {key: _folded_constant(item) for key, item in value.items()}
    return value
