"""The usual event, at the least cost: what `Builder.event` makes of it, or None for whatever needs a closer look.

What was found out about the name of an event, or about an id, is kept for the next one.
"""

from __future__ import annotations

from typing import Any, Final

import orjson
from orjson import dumps

from .._config import VERSION
from .values import FORBIDDEN_IDS, is_plain

MP_LIB: Final = "python-async"
MAX_RECORD_BYTES: Final = 1_000_000
# Of the properties alone, so that nothing that joins them makes a record too large.
_MOST_BYTES: Final = MAX_RECORD_BYTES // 2
# Only what JSON has.
_AS_IT_STANDS: Final = (
    orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_SUBCLASS
)

# What the client puts among the properties itself, and ids that need a look.
_are_usual: Final = frozenset(
    {"token", "distinct_id", "time", "$insert_id", "mp_lib", "$lib_version", "$user_id", "$device_id"}
).isdisjoint
_MOST_PROPERTIES: Final = 254 - 6
_MOST_ITEMS: Final = 254
# Nothing else reaches the encoder, which takes the process down if the `value` of an `Enum` raises.
_is_flat: Final = frozenset({str, int, bool, float, type(None)}).issuperset
_MOST_NAMES: Final = 1_000
_MOST_PEOPLE: Final = 4_000
_LONGEST: Final = 255
_NEXT: Final = b'",'
_END: Final = b"}"


class UsualEvents:
    """Makes events of one project that have no arguments but properties, no super properties and no hook.

    Args:
        token: the project's token.
    """

    __slots__ = ("_heads", "_people", "_token")

    def __init__(self, token: str) -> None:
        self._token = token
        # Of each name, and of each id: its share of a record.
        self._heads: dict[object, bytes] = {}
        self._people: dict[object, bytes] = {}

    def event(
        self, distinct_id: object, event_name: object, properties: dict[str, Any], moment: bytes, made_id: bytes
    ) -> bytes | None:
        """What `Builder.event` makes of the same, or None.

        A list or a mapping is taken if it holds no other. Of a number in it that is not finite the encoder makes `null`.

        Args:
            distinct_id: who did it.
            event_name: what was done.
            properties: details.
            moment: when, as `moment_of` puts it.
            made_id: a fresh `$insert_id`.
        """
        try:
            head = self._heads.get(event_name) or self._head(event_name)
            person = self._people.get(distinct_id) or self._person(distinct_id)
            if head is None or person is None or not 0 < len(properties) <= _MOST_PROPERTIES or not _are_usual(properties):
                return None
            has_numbers = False
            for value in properties.values():
                kind = type(value)
                if kind is str or kind is int or kind is bool or (kind is float and value - value == 0.0):
                    continue
                if kind is list or kind is dict:
                    inner = value if kind is list else value.values()
                    if len(value) > _MOST_ITEMS:
                        return None
                    if not is_plain(map(type, inner)):
                        if not _is_flat(map(type, inner)):
                            return None
                        has_numbers = True
                elif value is not None:
                    return None
            data = dumps(properties, option=_AS_IT_STANDS)
            if len(data) > _MOST_BYTES or (has_numbers and b"null" in data):
                return None
            return b"".join((head, person, moment, made_id, _NEXT, data[1:], _END))
        except Exception:  # noqa: BLE001  the long way finds the words for it
            return None

    def _head(self, event_name: object) -> bytes | None:
        """The record of an event of this name up to its `distinct_id`; None if the name needs a closer look."""
        if type(event_name) is not str or not 0 < len(event_name) <= _LONGEST or event_name.isspace():
            return None
        properties = {"token": self._token, "mp_lib": MP_LIB, "$lib_version": VERSION, "distinct_id": 0}
        head = dumps({"event": event_name, "properties": properties})[: -len("0}}")]
        _keep(self._heads, _MOST_NAMES, event_name, head)
        return head

    def _person(self, distinct_id: object) -> bytes | None:
        """The id as JSON; None if the id needs a closer look."""
        if type(distinct_id) is not str or not 0 < len(distinct_id) <= _LONGEST or distinct_id.isspace():
            return None
        if distinct_id.lower() in FORBIDDEN_IDS:
            return None
        person = dumps(distinct_id)
        _keep(self._people, _MOST_PEOPLE, distinct_id, person)
        return person


def moment_of(stamp: int) -> bytes:
    """The share of a record that says when.

    Args:
        stamp: milliseconds since 1970.
    """
    return b',"time":%d,"$insert_id":"' % stamp


def _keep(kept: dict[object, bytes], most: int, key: str, share: bytes) -> None:
    if len(kept) >= most:
        kept.clear()
    kept[key] = share
