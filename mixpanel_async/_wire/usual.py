"""The usual event, at the least cost: what `Builder.event` makes of it, or None for whatever needs a closer look."""

from __future__ import annotations

from typing import Any, Final

import orjson

from .._config import VERSION
from .values import FORBIDDEN_IDS, is_plain

MP_LIB: Final = "python-async"
MAX_RECORD_BYTES: Final = 1_000_000
# Only what JSON has, and a last byte that can be cut off: what orjson returns may hold a page of memory for as long as
# it is kept, a slice of it holds what it weighs.
_AS_IT_STANDS: Final = (
    orjson.OPT_APPEND_NEWLINE
    | orjson.OPT_PASSTHROUGH_DATACLASS
    | orjson.OPT_PASSTHROUGH_DATETIME
    | orjson.OPT_PASSTHROUGH_SUBCLASS
)


class UsualEvents:
    """Makes events of one project that have no arguments but properties, no super properties and no hook.

    Args:
        token: the project's token.
    """

    __slots__ = ("_token",)

    def __init__(self, token: str) -> None:
        self._token = token

    def event(
        self, distinct_id: object, event_name: object, properties: dict[str, Any], stamp: int, made_id: str
    ) -> bytes | None:
        """What `Builder.event` makes of the same, or None.

        Nested objects are checked by what the encoder made of them: it says `null` for a number that is not finite, and
        what has so few brackets and commas cannot hold too much, nor too deep.

        Args:
            distinct_id: who did it.
            event_name: what was done.
            properties: details.
            stamp: now, in milliseconds.
            made_id: a fresh `$insert_id`.
        """
        if (
            type(event_name) is not str
            or type(distinct_id) is not str
            or not 0 < len(event_name) <= 255
            or event_name.isspace()
            or not distinct_id
            or distinct_id.isspace()
            or distinct_id.lower() in FORBIDDEN_IDS
            or "$user_id" in properties
            or "$device_id" in properties
        ):
            return None
        is_nested = False
        for value in properties.values():
            kind = type(value)
            if kind is str or kind is int or kind is bool or (kind is float and value - value == 0.0):
                continue
            if kind is not list or len(value) > 254 or not is_plain(map(type, value)):
                is_nested = True
        props = {
            "token": self._token,
            "distinct_id": distinct_id,
            "time": stamp,
            "$insert_id": made_id,
            "mp_lib": MP_LIB,
            "$lib_version": VERSION,
            **properties,
        }
        # None of them has been replaced.
        if not len(properties) + 6 == len(props) <= 254:
            return None
        try:
            data = orjson.dumps({"event": event_name, "properties": props}, option=_AS_IT_STANDS)
        except TypeError:
            return None
        if len(data) > MAX_RECORD_BYTES:
            return None
        if is_nested and (b"null" in data or data.count(b",") > 250 or data.count(b"[") + data.count(b"{") > 5):
            return None
        return data[:-1]
