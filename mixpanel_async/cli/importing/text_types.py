"""Types that text looks like: for `--infer-types`, and for advice in a dry run. Pure: no I/O."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from .option_values import ColumnType

if TYPE_CHECKING:
    from .number_format import NumberFormat

# BigQuery prints `UTC` after a space.
# Before Python 3.11, `fromisoformat` accepts no `Z`, no offset without a colon, and only 3 or 6 fractional digits.
ISO_TIME: Final = re.compile(
    r"(\d{4}-\d{2}-\d{2})(?:[T ](\d{2}:\d{2})(:\d{2})?(?:[.,](\d{1,9}))?\s?(Z|UTC|[+-]\d{2}(?::?\d{2})?)?)?",
    re.IGNORECASE,
)
"""ISO 8601 date, or time with or without a zone."""

_NUMBER: Final = re.compile(r"-?(?:0|[1-9]\d{0,17})(?:\.\d+)?(?:[eE][+-]?\d{1,3})?")
# Digits that are a code rather than a number, and text with white space.
_CODE: Final = re.compile(r"[+-]?0[0-9]|\+|-?[0-9]{19}|.*\s", re.DOTALL)
_BOOLEANS: Final = {"true": True, "false": False}
# Mixpanel reads this form as a time without a conversion.
_MIXPANEL_TIME: Final = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}")


def infer(text: str, numbers: NumberFormat) -> Any:
    """Return the number or boolean that text looks like, or the text.

    Args:
        text: the text.
        numbers: format of numbers. With a decimal mark, zip codes such as `00123` stay text too.
    """
    if numbers.mark is not None and not _CODE.match(text):
        number = numbers.parse(text)
        return _BOOLEANS.get(text.lower(), text) if number is None else number
    if numbers.mark is None and _NUMBER.fullmatch(text):
        return int(text) if text.lstrip("-").isdigit() else float(text)
    return _BOOLEANS.get(text.lower(), text)


def guess_type(text: str) -> ColumnType | None:
    """Return the type that text could be converted to, or None if it is best left as it is."""
    if _NUMBER.fullmatch(text):
        return ColumnType.NUMBER
    if text.lower() in _BOOLEANS:
        return ColumnType.BOOLEAN
    if text[:1] == "{" and text[-1:] == "}":
        return ColumnType.JSON
    return ColumnType.TIME if ISO_TIME.fullmatch(text.strip()) and not _MIXPANEL_TIME.fullmatch(text) else None
