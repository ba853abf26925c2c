"""Log entries for rejected records, and shortened copies of JSON data for display.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

REJECTIONS_LIMIT: Final = 1_000

_MAX_ITEMS: Final = 20
_MAX_DEPTH: Final = 3
_MAX_TEXT: Final = 120
_MAX_PARTS: Final = 200


@dataclass(frozen=True, slots=True)
class Rejection:
    """Record, or whole request, that was not stored.

    Args:
        endpoint: path, such as `/import`.
        field: path of the offending property, shortened if it is long; empty if the record or request is wrong as a
            whole.
        message: description of the problem, in Mixpanel's words where they are known, shortened if it is long.
        record: shortened copy of the record; None if the whole request was refused.
        silent: whether the response reported success all the same.
    """

    endpoint: str
    field: str
    message: str
    record: Any
    silent: bool


def shorten(value: Any) -> Any:
    """Return a small copy of JSON data of any size and depth, with text that is valid in UTF-8."""
    return _shorten(value, 0, iter(range(_MAX_PARTS)))


def _shorten(value: Any, depth: int, budget: Iterator[int]) -> Any:
    if next(budget, None) is None:
        return "…"
    if isinstance(value, str):
        text = value if len(value) <= _MAX_TEXT else value[:_MAX_TEXT] + "…"
        return text.encode("utf-8", "replace").decode()
    if isinstance(value, Mapping):
        if depth == _MAX_DEPTH:
            return "{…}" if value else {}
        first = islice(value.items(), _MAX_ITEMS)
        copy = {_shorten(key, 0, budget): _shorten(item, depth + 1, budget) for key, item in first}
        return copy | ({"…": f"{len(value) - _MAX_ITEMS} more"} if len(value) > _MAX_ITEMS else {})
    if isinstance(value, list):
        if depth == _MAX_DEPTH:
            return "[…]" if value else []
        items = [_shorten(item, depth + 1, budget) for item in value[:_MAX_ITEMS]]
        return items + ([f"… {len(value) - _MAX_ITEMS} more"] if len(value) > _MAX_ITEMS else [])
    # Integers of more than 64 bits occur only in records with invalid UTF-8, which the standard library parses. orjson
    # cannot write them.
    return str(value)[:_MAX_TEXT] if isinstance(value, int) and abs(value) >> 63 else value
