"""Template of usual profile updates: one target, operations that take an object, and flat values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from orjson import dumps

from .._model.interruption import raise_interruption
from .._model.records import NonIdempotentRecord
from .fragment_cache import CACHED_IDS, CACHED_NAMES, FragmentCache
from .size_check import MAX_RECORD_BYTES, is_plain_json
from .validation import check_id

MAPPING_OPS: Final = ("$set", "$set_once", "$add", "$append", "$union", "$remove")
# Any other operation, including one added later, is treated as not idempotent.
IDEMPOTENT: Final = frozenset({"$set", "$set_once", "$union", "$unset", "$delete"})
# Fields beside the operation whose values are texts or booleans.
_OPTIONS: Final = ("$ip", "$ignore_time", "$ignore_alias")
_NAMES: Final = {name: b',"%b":' % name.encode() for name in (*MAPPING_OPS, *_OPTIONS)}
_OPTION_TYPES: Final = frozenset({str, bool})
_NUMBERS: Final = frozenset({int, float})


class UpdateTemplate:
    """Encoder of the plain updates of one project. It produces the same JSON as `RecordEncoder`.

    Args:
        token: the project's token.
    """

    __slots__ = ("_start", "_targets")

    def __init__(self, token: str) -> None:
        self._start = dumps({"$token": token, "$time": 0})[: -len("0}")]
        sizes = {"$distinct_id": CACHED_IDS, "$group_key": CACHED_NAMES, "$group_id": CACHED_IDS}
        self._targets = {name: FragmentCache(_encode_target(name), size) for name, size in sizes.items()}

    def encode(self, message: object, meta: object, *, now: float, is_group: bool) -> bytes | None:
        """Encode an update. Return None if it is not plain.

        Args:
            message: target and operation.
            meta: merged into the update, or None.
            now: wall clock in seconds.
            is_group: the update goes to `/groups`.
        """
        if type(message) is not dict or (meta is not None and type(meta) is not dict):
            return None
        update = message if meta is None else {**message, **meta}
        try:
            record, is_idempotent = self._encode(update, dumps(now), is_group=is_group)
        except Exception as error:  # noqa: BLE001  the general encoder raises the error for the user
            raise_interruption(error)
            return None
        if len(record) >= MAX_RECORD_BYTES:
            return None
        return record if is_idempotent else NonIdempotentRecord(record)

    def _encode(self, update: dict[str, Any], now: bytes, *, is_group: bool) -> tuple[bytes, bool]:
        """Return an update, and whether it is idempotent. Raise if it is not plain."""
        parts = [self._start, now]
        targets = operations = 0
        is_idempotent = True
        for name, value in update.items():
            ids = self._targets.get(name)
            if ids is not None:
                parts.append(ids[value])
                targets += 1
                continue
            if name in MAPPING_OPS:
                if type(value) is not dict or not is_plain_json(value):
                    raise TypeError
                if name == "$add" and not _NUMBERS.issuperset(map(type, value.values())):
                    raise TypeError
                operations += 1
                is_idempotent = is_idempotent and name in IDEMPOTENT
            elif type(value) not in _OPTION_TYPES:
                raise TypeError
            parts += (_NAMES[name], dumps(value))
        if not operations or targets != 1 + is_group or ("$distinct_id" in update) is is_group:
            raise TypeError
        return b"".join((*parts, b"}")), is_idempotent


def _encode_target(name: str) -> Callable[[str], bytes]:
    def encode(value: str) -> bytes:
        if name != "$group_key":
            check_id(value, "")
        return b"," + dumps({name: value})[1:-1]

    return encode
