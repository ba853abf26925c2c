"""Numbers in text: which mark separates the decimals. Pure: no I/O."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Final

MARKS: Final = (".", ",")
"""Decimal marks. The other one separates thousands."""

_ONLY_THOUSANDS: Final = re.compile(r"[+-]?[1-9][0-9]{0,2}(?:\.[0-9]{3})+")


class NumberFormat:
    """Format of numbers in text.

    Args:
        mark: decimal mark, of `MARKS`. The other mark may separate thousands, as in `1.743,80`. None: a point, and no
            separator of thousands.

    Raises:
        ValueError: for any other mark.
    """

    def __init__(self, mark: str | None = None) -> None:
        if mark is not None and mark not in MARKS:
            raise ValueError(f"must be one of {' and '.join(MARKS)} (a point or a comma), not {mark!r}")
        self.mark = mark
        self._pattern = None if mark is None else _pattern(mark)

    def parse(self, text: str) -> int | float | None:
        """Return the number, or None if the text is none in this format."""
        text = text.strip()
        if self.mark is None or self._pattern is None:
            return _number(text)
        if not self._pattern.fullmatch(text):
            return None
        (other,) = (one for one in MARKS if one != self.mark)
        return _number(text.replace(other, "").replace(self.mark, "."))


def looks_like_thousands(text: str) -> bool:
    """Return whether the points of a number may separate thousands, as in `1.743`."""
    return _ONLY_THOUSANDS.fullmatch(text.strip()) is not None


def fitting_marks(text: str) -> list[str]:
    """Return the decimal marks with which a text is a number."""
    return [mark for mark in MARKS if NumberFormat(mark).parse(text) is not None]


def _pattern(mark: str) -> re.Pattern[str]:
    other = re.escape(next(one for one in MARKS if one != mark))
    digits = rf"(?:[0-9]+|[1-9][0-9]{{0,2}}(?:{other}[0-9]{{3}})+)"
    decimals = rf"{re.escape(mark)}[0-9]+"
    return re.compile(rf"[+-]?(?:{digits}(?:{decimals})?|{decimals})(?:[eE][+-]?[0-9]{{1,3}})?")


def _number(text: str) -> int | float | None:
    with suppress(ValueError):
        return int(text)
    with suppress(ValueError):
        return float(text)
    return None
