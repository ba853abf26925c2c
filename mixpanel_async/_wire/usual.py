"""The usual event, at the least cost: what `Builder.event` makes of it, or None for whatever needs a closer look."""

from __future__ import annotations

from typing import Any, Final

import orjson
from orjson import dumps

from .._config import VERSION
from .values import FORBIDDEN_IDS, is_plain

MP_LIB: Final = "python-async"
MAX_RECORD_BYTES: Final = 1_000_000
# Of the properties alone, so that no head and no id make it too large.
_MOST_BYTES: Final = MAX_RECORD_BYTES // 2
# Only what JSON has; the last byte is cut off with the first.
_AS_IT_STANDS: Final = (
    orjson.OPT_APPEND_NEWLINE
    | orjson.OPT_PASSTHROUGH_DATACLASS
    | orjson.OPT_PASSTHROUGH_DATETIME
    | orjson.OPT_PASSTHROUGH_SUBCLASS
)


# What the client puts among the properties itself, and ids that need a look.
_NOT_USUAL: Final = frozenset(
    {"token", "distinct_id", "time", "$insert_id", "mp_lib", "$lib_version", "$user_id", "$device_id"}
)
_LIBRARY: Final = b'","mp_lib":"%b","$lib_version":"%b",' % (MP_LIB.encode(), VERSION.encode())
_MOST_PROPERTIES: Final = 254 - 6
_MOST_NAMES: Final = 1_000


class UsualEvents:
    """Makes events of one project that have no arguments but properties, no super properties and no hook.

    Args:
        token: the project's token.
    """

    __slots__ = ("_heads", "_moment", "_token")

    def __init__(self, token: str) -> None:
        self._token = token
        # What is the same for all events of a name, and for all of a millisecond.
        self._heads: dict[object, bytes] = {}
        self._moment = 0, b""

    def event(
        self, distinct_id: object, event_name: object, properties: dict[str, Any], stamp: int, made_id: str
    ) -> bytes | None:
        """What `Builder.event` makes of the same, or None.

        Nested values are checked by what the encoder made of them: it says `null` for a number that is not finite, and
        what has so few brackets and commas cannot hold too much, nor too deep.

        Args:
            distinct_id: who did it.
            event_name: what was done.
            properties: details.
            stamp: now, in milliseconds.
            made_id: a fresh `$insert_id`.
        """
        if (
            type(distinct_id) is not str
            or not 0 < len(properties) <= _MOST_PROPERTIES
            or distinct_id.lower() in FORBIDDEN_IDS
            or distinct_id.isspace()
            or not distinct_id
            or not _NOT_USUAL.isdisjoint(properties)
        ):
            return None
        is_nested = False
        for value in properties.values():
            kind = type(value)
            if kind is str or kind is int or kind is bool or (kind is float and value - value == 0.0):
                continue
            if kind is not list or len(value) > 254 or not is_plain(map(type, value)):
                is_nested = True
        try:
            head = self._heads.get(event_name) or self._head(event_name)
            data = dumps(properties, option=_AS_IT_STANDS)
            if head is None or len(data) > _MOST_BYTES:
                return None
            if is_nested and (b"null" in data or data.count(b",") > 250 or data.count(b"[") + data.count(b"{") > 4):
                return None
            moment = self._moment
            if moment[0] != stamp:
                moment = self._moment = stamp, b',"time":%d,"$insert_id":"' % stamp
            return b"".join((head, dumps(distinct_id), moment[1], made_id.encode(), _LIBRARY, data[1:-1], b"}"))
        except TypeError:
            return None

    def _head(self, event_name: object) -> bytes | None:
        """An event of this name up to its `distinct_id`; None if the name needs a closer look."""
        if type(event_name) is not str or not 0 < len(event_name) <= 255 or event_name.isspace():
            return None
        properties = {"token": self._token, "distinct_id": 0}
        head = dumps({"event": event_name, "properties": properties})[: -len("0}}")]
        if len(self._heads) >= _MOST_NAMES:
            self._heads.clear()
        self._heads[event_name] = head
        return head
