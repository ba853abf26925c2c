"""Mixpanel's two additions to JsonLogic: comparison of versions and of points in time.

Each operator takes `[actual, symbol, target]`. An invalid operand makes the comparison false, also with `!==`.
Sources: https://semver.org (2.0.0), RFC 3339, and the official SDK 5.4.1. Both operators pass that SDK's test vectors.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any, Final

_SYMBOLS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "===": operator.eq,
    "!==": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}

# Longer than any real version. Input of a regular expression should be bounded.
_MAX_VERSION: Final = 256
_NUMBER: Final = r"(?:0|[1-9]\d*)"
_IDENTIFIER: Final = rf"(?:{_NUMBER}|\d*[A-Za-z-][0-9A-Za-z-]*)"
_RELEASE: Final = re.compile(rf"{_NUMBER}(?:\.{_NUMBER}){{0,2}}")
_TAIL: Final = re.compile(
    rf"(?:-(?P<prerelease>{_IDENTIFIER}(?:\.{_IDENTIFIER})*))?(?:\+[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)?"
)

_MOMENT: Final = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.\d+)?(?:Z|(?P<sign>[+-])(?P<hours>\d\d):(?P<minutes>\d\d))"
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MAX_MILLISECONDS: Final = 2**63

# A release ranks above its prereleases. A number ranks below any other identifier, and by the number of its digits.
_Identifier = tuple[int, int, str]
_Version = tuple[tuple[_Identifier, ...], bool, tuple[_Identifier, ...]]


def semver_compare(*operands: Any) -> bool:
    """Compare two versions by Semantic Versioning 2.0.0.

    A leading `v` is removed, a missing minor or patch number counts as 0, and build metadata is ignored.
    """
    if len(operands) != 3:
        return False
    actual, symbol, target = operands
    return _holds(_version(actual), symbol, _version(target))


def datetime_compare(*operands: Any) -> bool:
    """Compare an RFC 3339 time that has an offset with milliseconds since 1970, in whole seconds."""
    if len(operands) != 3:
        return False
    actual, symbol, target = operands
    return _holds(_seconds_of_text(actual), symbol, _seconds_of_milliseconds(target))


def _holds(actual: object, symbol: object, target: object) -> bool:
    if actual is None or target is None or not isinstance(symbol, str):
        return False
    compare = _SYMBOLS.get(symbol)
    return compare is not None and compare(actual, target)


def _version(value: object) -> _Version | None:
    if not isinstance(value, str) or len(value) > _MAX_VERSION:
        return None
    text = value.strip()
    text = text[1:] if text[:1] in {"v", "V"} else text
    release = _RELEASE.match(text)
    if release is None:
        return None
    tail = _TAIL.fullmatch(text, release.end())
    if tail is None:
        return None
    numbers = [*release[0].split("."), "0", "0"][:3]
    prerelease = tail["prerelease"]
    fields = () if prerelease is None else tuple(map(_identifier, prerelease.split(".")))
    return tuple(map(_number, numbers)), prerelease is None, fields


def _number(text: str) -> _Identifier:
    # There are no leading zeros, so the number with more digits is larger.
    return 0, len(text), text


def _identifier(text: str) -> _Identifier:
    return _number(text) if text.isascii() and text.isdecimal() else (1, 0, text)


def _seconds_of_text(value: object) -> int | None:
    if not isinstance(value, str):
        return None
    found = _MOMENT.fullmatch(value.strip().upper())
    if found is None:
        return None
    offset = timedelta()
    if found["sign"]:
        hours, minutes = int(found["hours"]), int(found["minutes"])
        if hours > 23 or minutes > 59:
            return None
        offset = timedelta(hours=hours, minutes=minutes) * (-1 if found["sign"] == "-" else 1)
    try:
        moment = datetime(*map(int, found.groups()[:6]), tzinfo=timezone.utc)  # type: ignore[arg-type, misc]
    except ValueError:
        return None
    # The offset is subtracted last: a UTC time in the year 0 or 10000 cannot be represented as `datetime`.
    return (moment - _EPOCH - offset) // timedelta(seconds=1)


def _seconds_of_milliseconds(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    milliseconds = int(value)
    if abs(milliseconds) >= _MAX_MILLISECONDS:
        return None
    seconds = abs(milliseconds) // 1000
    return -seconds if milliseconds < 0 else seconds
