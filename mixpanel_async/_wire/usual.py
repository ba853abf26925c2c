"""The usual event, at the least cost: what `Builder.event` makes of it, or None for whatever needs a closer look.

What was found out about the name of an event, or about an id, is kept for the next one.
"""

from __future__ import annotations

from typing import Any, Final

import orjson
from orjson import dumps

from .._config import VERSION
from .values import FORBIDDEN_IDS

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
_is_flat: Final = frozenset({str, int, bool, float, type(None)}).issuperset
_MOST_NAMES: Final = 1_000
_MOST_PEOPLE: Final = 4_000
_LONGEST: Final = 255
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

    def event(  # noqa: C901  in one piece, as this runs for every event
        self, distinct_id: object, event_name: object, properties: dict[str, Any], moment: bytes, made_id: bytes
    ) -> bytes | None:
        """What `Builder.event` makes of the same, or None.

        A list or a mapping is taken if it holds no other. Of a number that is not finite the encoder makes `null`.

        Args:
            distinct_id: who did it.
            event_name: what was done.
            properties: details.
            moment: when, as `moment_of` puts it.
            made_id: the rest of its `$insert_id`, as `id_of` puts it.
        """
        try:
            head = self._heads.get(event_name) or self._head(event_name)
            person = self._people.get(distinct_id) or self._person(distinct_id)
            if head is None or person is None or not (properties and _are_usual(properties)):
                return None
            is_plain_throughout = True
            for value in properties.values():
                kind = type(value)
                if kind is str or kind is int or kind is bool or (kind is float and value - value == 0.0):
                    continue
                if kind is list and len(value) <= _MOST_ITEMS:
                    for item in value:
                        if type(item) is not str:
                            is_plain_throughout = False
                            break
                elif value is not None:
                    is_plain_throughout = False
            if not (is_plain_throughout or all(map(_is_shallow, properties.values()))):
                return None
            data = dumps(properties, option=_AS_IT_STANDS)
            if len(properties) > _MOST_PROPERTIES or len(data) > _MOST_BYTES:
                return None
            if not is_plain_throughout and b"null" in data:
                return None
            return b"".join((head, person, moment, made_id, data[1:], _END))
        except Exception:  # noqa: BLE001  the long way finds the words for it
            return None

    def _head(self, event_name: object) -> bytes | None:
        """The record of an event of this name up to its `distinct_id`; None if the name needs a closer look."""
        if type(event_name) is not str or not 0 < len(event_name) <= _LONGEST or event_name.isspace():
            return None
        head = dumps({"event": event_name, "properties": {"token": self._token, "distinct_id": 0}})[: -len("0}}")]
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


def _is_shallow(value: object) -> bool:
    """Whether this is nothing but what JSON has, lists and mappings of that included.

    The encoder takes the process down if the `value` of an `Enum` raises, so none reaches it.
    """
    if type(value) is list:
        return len(value) <= _MOST_ITEMS and _is_flat(map(type, value))
    if type(value) is dict:
        return len(value) <= _MOST_ITEMS and _is_flat(map(type, value.values()))
    return _is_flat((type(value),))


def id_of(text: str) -> bytes:
    """An `$insert_id`, or its last characters, and the share of a record that says by which library."""
    return b'%b","mp_lib":"%b","$lib_version":"%b",' % (text.encode(), MP_LIB.encode(), VERSION.encode())


def _keep(kept: dict[object, bytes], most: int, key: str, share: bytes) -> None:
    if len(kept) >= most:
        kept.clear()
    kept[key] = share
