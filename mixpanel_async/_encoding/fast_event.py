"""The usual event, at the least cost: what `Builder.event` makes of it, or None for whatever needs a closer look.

What was found out about the name of an event, or about an id, is kept for the next one. A record is left in its shares:
to join those of a hundred records at once costs less than to join each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import orjson
from orjson import dumps

from .._model.config import VERSION
from .validation import FORBIDDEN_IDS

MP_LIB: Final = "python-async"
MAX_RECORD_BYTES: Final = 1_000_000
# Of the properties alone, so that nothing that joins them makes a record too large.
_MOST_BYTES: Final = MAX_RECORD_BYTES // 2
# Only what JSON has.
_AS_IT_STANDS: Final = (
    orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_SUBCLASS
)

# What the client puts among the properties itself, and ids that need a look.
_are_plain: Final = frozenset(
    {"token", "distinct_id", "time", "$insert_id", "mp_lib", "$lib_version", "$user_id", "$device_id"}
).isdisjoint
_MOST_PROPERTIES: Final = 254 - 6
# Bytes that more properties than that take, `"":0,` each.
_LEAST_OF_MANY: Final = 5 * _MOST_PROPERTIES
_MOST_ITEMS: Final = 254
_is_flat: Final = frozenset({str, int, bool, float, type(None)}).issuperset
_LONGEST: Final = 255
_END: Final = b"}"
_BETWEEN: Final = b"},"
_THEN: Final = b',"time":'
# What JSON has nowhere.
_MARK: Final = b"\n"

FRAGMENTS_PER_RECORD: Final = 5
"""How many make a record: the end of the one before it and its own beginning, who, when, its id, and its properties."""


class FastEventEncoder:
    """Makes events of one project that have no arguments but properties, no super properties and no hook.

    Args:
        token: the project's token.
    """

    __slots__ = ("_token", "distinct_id_fragments", "fixed_bytes", "name_fragments")

    def __init__(self, token: str) -> None:
        self._token = token
        self.fixed_bytes = len(time_fragment(10**13) + insert_id_fragment("0" * 32) + _END)
        """No record that was stamped on the stage has more bytes than this beside those of its properties."""
        self.name_fragments = _FragmentCache(self._name_fragment, most=1_000, most_bytes=512, grow=self._grow)
        """The first share of a record of this name; a `KeyError` if the name needs a closer look."""
        self.distinct_id_fragments = _FragmentCache(_distinct_id_fragment, most=4_000, most_bytes=128, grow=self._grow)
        """The second one, of this id; likewise."""

    def _grow(self, more: int) -> None:
        self.fixed_bytes += more

    def encode(
        self, distinct_id: object, event_name: object, properties: dict[str, Any], moment: bytes, made_id: bytes
    ) -> bytes | None:
        """What `Builder.event` makes of the same, or None.

        Args:
            distinct_id: who did it.
            event_name: what was done.
            properties: details.
            moment: when, as `moment_of` puts it.
            made_id: the rest of its `$insert_id`, as `id_of` puts it.
        """
        rest = encode_properties(properties)
        if rest is None:
            return None
        try:
            return join_record(
                self.name_fragments[event_name], self.distinct_id_fragments[distinct_id], moment, made_id, rest
            )
        except Exception:  # noqa: BLE001  the long way finds the words for it
            return None

    def _name_fragment(self, event_name: str) -> bytes:
        """The record of an event of this name up to its `distinct_id`."""
        record = {"event": event_name, "properties": {"token": self._token, "distinct_id": 0}}
        return _BETWEEN + dumps(record)[: -len("0}}")]


def encode_properties(
    properties: dict[str, Any],
    # What is built in costs more to find than what is passed.
    text: type = str,
    whole: type = int,
    truth: type = bool,
    number: type = float,
) -> bytes | None:
    """The last share of an event with these properties, or None.

    A list or a mapping is taken if it holds no other. Of a number that is not finite the encoder makes `null`.
    """
    try:
        if not (properties and _are_plain(properties)):
            return None
        for value in properties.values():
            kind = type(value)
            if kind is text or kind is whole or kind is truth or (kind is number and value - value == 0.0):
                continue
            if kind is list and len(value) <= _MOST_ITEMS:
                for item in value:
                    if type(item) is not text:
                        return _encode_nested(properties)
            elif value is not None:
                return _encode_nested(properties)
        data = dumps(properties, None, _AS_IT_STANDS)
        if len(data) > _LEAST_OF_MANY and _is_large(properties, data):
            return None
        return data[1:]
    except Exception:  # noqa: BLE001  the long way finds the words for it
        return None


def _distinct_id_fragment(distinct_id: str) -> bytes:
    """The id as JSON."""
    if distinct_id.lower() in FORBIDDEN_IDS:
        raise KeyError
    # Longer than what orjson returns, which may hold a page of memory for as long as it is kept.
    return dumps(distinct_id) + _THEN


class _FragmentCache(dict[object, bytes]):
    """Of each name, or of each id, its share of a record. What needs a closer look is missing.

    Args:
        encode: makes a share.
        most: how many are kept.
        most_bytes: size of the largest that is kept; it would have `beside` be far off for all others.
        grow: told by how many bytes a share is larger than all before it.
    """

    __slots__ = ("_encode", "_grow", "_largest", "_most", "_most_bytes")

    def __init__(
        self, encode: Callable[[str], bytes], *, most: int, most_bytes: int, grow: Callable[[int], None]
    ) -> None:
        self._encode = encode
        self._grow = grow
        self._largest = 0
        self._most = most
        self._most_bytes = most_bytes

    def __missing__(self, key: object) -> bytes:
        if type(key) is not str or not 0 < len(key) <= _LONGEST or key.isspace():
            raise KeyError
        share = self._encode(key)
        if len(share) > self._most_bytes:
            raise KeyError
        if len(share) > self._largest:
            self._grow(len(share) - self._largest)
            self._largest = len(share)
        if len(self) >= self._most:
            self.clear()
        self[key] = share
        return share


def join_record(*shares: bytes) -> bytes:
    """The record that these are the shares of."""
    return join_records([*shares])[1:]


def join_records(shares: list[bytes]) -> bytes:
    """Records with a comma before each, made of their shares, whose list is used up."""
    shares[0] = shares[0][len(_END) :]
    shares.append(_END)
    return b"".join(shares)


def split_records(records: bytes) -> list[bytes]:
    """The records that are `together`.

    What stands between two of them stands in none: no list of a usual event holds a mapping, quotes within text are
    escaped, and what follows the one at its end is no letter.
    """
    return records[1:].replace(b'},{"event":', b'}%b{"event":' % _MARK).split(_MARK)


def _is_large(properties: dict[str, Any], data: bytes) -> bool:
    return len(properties) > _MOST_PROPERTIES or len(data) > _MOST_BYTES


def _encode_nested(properties: dict[str, Any]) -> bytes | None:
    """The same for properties among which are lists of numbers, or mappings."""
    if not all(map(_is_shallow, properties.values())):
        return None
    data = dumps(properties, None, _AS_IT_STANDS)
    return None if _is_large(properties, data) or b"null" in data else data[1:]


def time_fragment(stamp: int) -> bytes:
    """The share of a record that says when.

    Args:
        stamp: milliseconds since 1970.
    """
    return b'%d,"$insert_id":"' % stamp


def _is_shallow(value: object) -> bool:
    """Whether this is nothing but what JSON has, lists and mappings of that included.

    The encoder takes the process down if the `value` of an `Enum` raises, so none reaches it.
    """
    if type(value) is list:
        return len(value) <= _MOST_ITEMS and _is_flat(map(type, value))
    if type(value) is dict:
        return len(value) <= _MOST_ITEMS and _is_flat(map(type, value.values()))
    return _is_flat((type(value),))


def insert_id_fragment(text: str) -> bytes:
    """An `$insert_id`, or its last characters, and the share of a record that says by which library."""
    return b'%b","mp_lib":"%b","$lib_version":"%b",' % (text.encode(), MP_LIB.encode(), VERSION.encode())
