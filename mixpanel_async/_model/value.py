"""What frozen dataclasses that everybody imports have in common."""

from __future__ import annotations

from dataclasses import fields
from typing import Any


class Value:
    """Base of a dataclass made with `eq=False, repr=False`, which shows itself and compares as without.

    Of each dataclass the import compiles every method that is its own, and half of them need not be.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in _names(self, "repr"))
        return f"{type(self).__qualname__}({shown})"

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return _compared(self) == _compared(other)

    def __hash__(self) -> int:
        return hash(_compared(self))


def _names(value: Any, purpose: str) -> list[str]:
    return [field.name for field in fields(value) if getattr(field, purpose)]


def _compared(value: object) -> tuple[Any, ...]:
    return tuple(getattr(value, name) for name in _names(value, "compare"))
