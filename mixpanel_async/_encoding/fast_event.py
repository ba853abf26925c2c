"""Fast encoder for plain events.

It produces the same JSON as `RecordEncoder`, or None for any event that needs validation or conversion. The fragments
of recent event names and distinct ids are cached.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import isfinite
from typing import Any, Final

import orjson
from orjson import dumps

from .._model.interruption import raise_interruption
from .._model.version import VERSION
from .size_check import MAX_RECORD_BYTES, exceeds
from .validation import FORBIDDEN_IDS

MP_LIB: Final = "python-async"
_MAX_PROPERTIES: Final = 254 - 6
_MAX_ITEMS: Final = 254
_MAX_TEXT_LENGTH: Final = 255
_CACHED_NAMES: Final = 1_000
_CACHED_IDS: Final = 4_000
# Longer fragments are not cached, which bounds the memory of the caches.
_MAX_CACHED_BYTES: Final = 512
_JSON_TYPES_ONLY: Final = (
    orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_SUBCLASS
)
_SCALAR_TYPES: Final = frozenset({str, int, bool, type(None)})
# Properties that the client sets itself, and ids that need validation.
_has_no_reserved_key: Final = frozenset(
    {"token", "distinct_id", "time", "$insert_id", "mp_lib", "$lib_version", "$user_id", "$device_id"}
).isdisjoint


class FastEventEncoder:
    """Encoder of plain events of one project: no super properties, no hook, and no arguments except properties.

    Args:
        token: the project's token.
    """

    __slots__ = ("_distinct_id_fragments", "_name_fragments")

    def __init__(self, token: str) -> None:
        self._name_fragments = _FragmentCache(partial(_name_fragment, token), _CACHED_NAMES)
        self._distinct_id_fragments = _FragmentCache(_distinct_id_fragment, _CACHED_IDS)

    def encode(
        self, distinct_id: object, event_name: object, properties: dict[str, Any] | None, time: bytes, insert_id: bytes
    ) -> bytes | None:
        """Encode an event. Return None if it is not plain. The caller checks the size.

        Args:
            distinct_id: the user's id.
            event_name: name of the event.
            properties: properties of the event, or None.
            time: result of `time_fragment`, followed by any prefix of the `$insert_id`.
            insert_id: result of `insert_id_fragment` for the rest of the `$insert_id`.
        """
        try:
            if not properties:
                return self._encode_bare(distinct_id, event_name, time, insert_id)
            if len(properties) > _MAX_PROPERTIES or not _has_no_reserved_key(properties):
                return None
            for value in properties.values():
                kind = type(value)
                # A float minus itself is 0 unless it is infinite or NaN.
                if kind is str or kind is int or kind is bool or (kind is float and value - value == 0.0):
                    continue
                if kind is list and len(value) <= _MAX_ITEMS:
                    # Inline: many events have a list, and a call for each costs 5 % of `track`.
                    for item in value:
                        if type(item) is not str and not _is_scalar(item):
                            return None
                elif value is not None and not _is_flat_dict(value):
                    return None
            data = dumps(properties, None, _JSON_TYPES_ONLY)
            return b"".join(
                (
                    self._name_fragments[event_name],
                    self._distinct_id_fragments[distinct_id],
                    time,
                    insert_id,
                    data[1:],
                    b"}",
                )
            )
        except Exception as error:  # noqa: BLE001  the general encoder raises the error for the user
            raise_interruption(error)
            return None

    def _encode_bare(self, distinct_id: object, event_name: object, time: bytes, insert_id: bytes) -> bytes:
        """Encode an event without properties: no comma follows the fields of the client."""
        fields = (self._name_fragments[event_name], self._distinct_id_fragments[distinct_id], time, insert_id[:-1])
        return b"".join((*fields, b"}}"))


class BoundedFastEventEncoder(FastEventEncoder):
    """Fast encoder for a process with limited memory: it checks the size of all values before it encodes them.

    The check costs 20 % of a call. Without a limit, huge values are refused after they were encoded.
    """

    __slots__ = ()

    def encode(
        self, distinct_id: object, event_name: object, properties: dict[str, Any] | None, time: bytes, insert_id: bytes
    ) -> bytes | None:
        """Encode an event. Return None if it is not plain, or too large."""
        if exceeds(properties, MAX_RECORD_BYTES):
            return None
        return super().encode(distinct_id, event_name, properties, time, insert_id)


def make_fast_encoder(token: str, *, is_bounded: bool) -> FastEventEncoder:
    """Return the fast encoder of a project, which checks the size of values first if it is bounded."""
    return BoundedFastEventEncoder(token) if is_bounded else FastEventEncoder(token)


class _FragmentCache(dict[object, bytes]):
    """Cache of fragments by name or id. It is emptied when it is full.

    Args:
        encode: returns the fragment of a key, or raises if the key needs validation.
        max_entries: number of cached fragments.
    """

    __slots__ = ("_encode", "_max_entries")

    def __init__(self, encode: Callable[[str], bytes], max_entries: int) -> None:
        self._encode = encode
        self._max_entries = max_entries

    def __missing__(self, key: object) -> bytes:
        if type(key) is not str or not 0 < len(key) <= _MAX_TEXT_LENGTH or key.isspace():
            raise KeyError
        fragment = self._encode(key)
        if len(fragment) <= _MAX_CACHED_BYTES:
            if len(self) >= self._max_entries:
                self.clear()
            self[key] = fragment
        return fragment


def _name_fragment(token: str, event_name: str) -> bytes:
    """Return a record of this name up to the value of its `distinct_id`."""
    record = {"event": event_name, "properties": {"token": token, "distinct_id": 0}}
    return dumps(record)[: -len("0}}")]


def _distinct_id_fragment(distinct_id: str) -> bytes:
    """Return a `distinct_id` up to the value of `time`."""
    if distinct_id.lower() in FORBIDDEN_IDS:
        raise KeyError
    return dumps(distinct_id) + b',"time":'


def _is_flat_dict(value: object) -> bool:
    """Return whether this is a dict of JSON scalars. Keys are left to orjson."""
    return type(value) is dict and len(value) <= _MAX_ITEMS and all(map(_is_scalar, value.values()))


def _is_scalar(value: object) -> bool:
    if type(value) is float:
        return isfinite(value)
    return type(value) in _SCALAR_TYPES


def time_fragment(now_ms: int) -> bytes:
    """Return the `time` of a record up to its `$insert_id`.

    Args:
        now_ms: milliseconds since 1970.
    """
    return b'%d,"$insert_id":"' % now_ms


def insert_id_fragment(text: str) -> bytes:
    """Return an `$insert_id`, or the last characters of one, and the fields that name this library."""
    return b'%b","mp_lib":"%b","$lib_version":"%b",' % (text.encode(), MP_LIB.encode(), VERSION.encode())
