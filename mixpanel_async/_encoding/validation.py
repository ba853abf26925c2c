"""Validation and conversion of property values. Errors name the property path.

Most values are strings, integers, booleans and None: `is_plain` accepts those without a Python loop. All other values
are visited once, here.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from datetime import date, datetime, timezone
from enum import Enum
from itertools import islice
from math import isfinite
from typing import TYPE_CHECKING, Any, Final, cast
from uuid import UUID

from .._model.errors import ValidationError
from .._model.interruption import raise_interruption

if TYPE_CHECKING:
    from decimal import Decimal

Serializer = Callable[[Any], Any]

_PLAIN: Final = frozenset({str, int, bool, type(None)})
_SIZED: Final = frozenset({dict, list, tuple, set, frozenset})
_MIN_INT: Final = -(2**63)
_MAX_INT: Final = 2**64 - 1

is_plain: Final = _PLAIN.issuperset
"""Return True if every type in an iterable is valid JSON whatever the value."""

# https://docs.mixpanel.com/reference/import-events, read 2026-08-21. The comparison ignores case.
FORBIDDEN_IDS: Final = frozenset(
    {
        "00000000-0000-0000-0000-000000000000",
        "anon",
        "anonymous",
        "nil",
        "none",
        "null",
        "n/a",
        "na",
        "undefined",
        "unknown",
        "<nil>",
        "0",
        "-1",
        "true",
        "false",
        "[]",
        "{}",
        "lmy47d",
    }
)
# More than fit into a message of 1,000,000 bytes. An endless mapping is not read further.
_MAX_PAIRS: Final = 200_000
_MAX_CONVERSIONS: Final = 8
_MAX_SHOWN_KEY: Final = 60
_MAX_PLACEHOLDER_LENGTH: Final = 36
_INSERT_ID: Final = re.compile(r"[A-Za-z0-9-]{1,36}")
_DEVICE_PREFIX: Final = "$device:"
# Observed, 2026-11: Mixpanel joined the ids of its browser SDK, which are not UUIDs. Its documents name UUIDs only.
_ANONYMOUS_ID: Final = re.compile(r"(?:\$device:)?[0-9A-Fa-f]+(?:-[0-9A-Fa-f]+){4}")


# Nested containers in the value of a property. Real events have fewer than ten. orjson encodes up to 254 levels, the
# envelope included, and the visitor needs four stack frames for each, of about 1,000 that Python allows.
MAX_DEPTH: Final = 100


class ValueLimits:
    """Limits of one message. Source: Mixpanel's pages on import and on data types, read 2026-08-21.

    Args:
        properties: maximum number of top-level properties.
        items: maximum number of elements of one array, or None for no limit.
        keys: maximum number of keys of one nested object.
        depth: maximum number of nested containers.
        size: size of the message as JSON in bytes, exclusive.
    """

    __slots__ = ("depth", "items", "keys", "properties", "size")

    def __init__(
        self, *, properties: int, items: int | None, keys: int = 254, depth: int = MAX_DEPTH, size: int = 1_000_000
    ) -> None:
        self.properties = properties
        self.items = items
        self.keys = keys
        self.depth = depth
        self.size = size


EVENT_LIMITS: Final = ValueLimits(properties=254, items=254)
WHOLE_EVENT_LIMITS: Final = ValueLimits(properties=254, items=254, depth=MAX_DEPTH + 1)
PROFILE_LIMITS: Final = ValueLimits(properties=2000, items=None, keys=2000, depth=MAX_DEPTH + 1)


def is_anonymous_id(text: str) -> bool:
    """Return whether Mixpanel joins this as the anonymous id of `$identify`.

    It has five groups of hexadecimal digits joined by dashes, such as a UUID, in either case, with or without the
    prefix `$device:`.
    """
    return _ANONYMOUS_ID.fullmatch(text) is not None


def bare_device_id(device_id: str) -> str:
    """Return an id of a device without the prefix `$device:`."""
    return str.removeprefix(device_id, _DEVICE_PREFIX)


def device_person(device_id: str) -> str:
    """Return the `distinct_id` of a visitor in a Simplified project, given either form of the device's id."""
    return f"{_DEVICE_PREFIX}{bare_device_id(device_id)}"


def type_name(value: object) -> str:
    """Return the name of a value's type for an error message, with its module: `int`, `numpy.bool_`."""
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def check_id(value: object, path: str, *, empty: bool = False) -> None:
    """Reject an id that Mixpanel would reject or that identifies no one.

    Args:
        value: the id.
        path: argument or property path for errors.
        empty: accept an empty string.

    Raises:
        ValidationError: if it is not a string, is blank, or is a placeholder on Mixpanel's list.
    """
    # `type` and the methods of `str` itself: a mock or a subclass may override `__class__` and its own methods.
    if type(value) is str:
        text = value
    elif issubclass(type(value), str):
        text = str.__str__(value)
    else:
        raise ValidationError(path, f"must be a string, not {type_name(value)}{_text_hint(value)}")
    if not text or text.isspace():
        if empty and not text:
            return
        raise ValidationError(path, "must not be blank")
    if len(text) <= _MAX_PLACEHOLDER_LENGTH and text.lower() in FORBIDDEN_IDS:
        raise ValidationError(path, f'is "{text}", a placeholder that Mixpanel rejects; pass a real id')


def check_user_id(value: object, path: str) -> None:
    """Reject an id of a user that `check_id` rejects, or that names a device.

    Raises:
        ValidationError: if Mixpanel would not accept the id, or would take it for a device.
    """
    check_id(value, path)
    if str.startswith(cast("str", value), _DEVICE_PREFIX):
        raise ValidationError(
            path, f"must not start with {_DEVICE_PREFIX}: the id names a device; pass it as device_id"
        )


def check_device_id(value: object, path: str) -> str:
    """Return an id of a device without the prefix `$device:`, which Mixpanel adds itself.

    Raises:
        ValidationError: if the rest is an id that Mixpanel would not accept.
    """
    check_id(value, path)
    bare = bare_device_id(cast("str", value))
    if len(bare) != len(cast("str", value)):
        check_id(bare, path)
        if bare.startswith(_DEVICE_PREFIX):
            raise ValidationError(path, f"has the prefix {_DEVICE_PREFIX} twice; pass it once or not at all")
    return bare


def _text_hint(id_: object) -> str:
    """Return how to convert an id to text, for an error message."""
    if is_instance(id_, (bytes, bytearray)):
        return '; use str(..., "utf-8")'
    return "; use str(...)" if is_instance(id_, (int, float, UUID)) and not is_instance(id_, bool) else ""


def check_insert_id(value: object, path: str) -> None:
    """Reject an `$insert_id` that Mixpanel would reject.

    Raises:
        ValidationError: if it is not 1 to 36 of A-Z, a-z, 0-9 and dash, or is a placeholder on Mixpanel's list.
    """
    if not isinstance(value, str):
        raise ValidationError(path, f"must be a string, not {type_name(value)}{_text_hint(value)}")
    if not _INSERT_ID.fullmatch(value):
        raise ValidationError(path, f"must be 1 to 36 letters, digits and dashes; this one has {len(value)} characters")
    if value.lower() in FORBIDDEN_IDS:
        raise ValidationError(path, f'is "{value}", a placeholder that Mixpanel rejects; pass a unique id')


def join_path(path: str, key: object) -> str:
    """Return `path.key`. A long or unprintable key is made safe to print."""
    text = key if isinstance(key, str) else f"<{type(key).__name__}>"
    if not text.isprintable():
        text = ascii(text)
    text = text if len(text) <= _MAX_SHOWN_KEY else text[: _MAX_SHOWN_KEY - 3] + "..."
    return f"{path}.{text}" if path else text


class Normalizer:
    """Converter of Python values to JSON values.

    Args:
        limits: limits of one message.
        serializer: called with a value of an unknown type. Returns a value of a known type, or raises.
    """

    __slots__ = ("limits", "serializer")

    def __init__(self, limits: ValueLimits, serializer: Serializer | None = None) -> None:
        self.limits = limits
        self.serializer = serializer

    def normalize_in_place(self, properties: dict[str, Any], path: str) -> None:
        """Replace the values that are not JSON. Keys and strings are left to the encoder, which rejects invalid ones.

        Raises:
            ValidationError: naming the first value that cannot be sent.
        """
        visitor = None
        max_items = self.limits.items
        for key, value in properties.items():
            kind = type(value)
            if kind in _PLAIN or (kind is float and isfinite(value)):
                continue
            if kind is list and (max_items is None or len(value) <= max_items) and is_plain(map(type, value)):
                continue
            if visitor is None:
                visitor = _Visitor(self.limits, self.serializer)
            properties[key] = visitor.value(value, join_path(path, key), 0, 0)

    def mapping(self, value: Mapping[Any, Any], path: str) -> dict[str, Any]:
        """Return a deep copy of a message, or of its properties, that contains only JSON values.

        Args:
            value: the mapping. It is not changed.
            path: property path for errors.

        Raises:
            ValidationError: naming the first key or value that cannot be sent.
        """
        return _Visitor(self.limits, self.serializer).mapping(value, path, 0)


class _Visitor:
    """Visitor of one message.

    A few lists that contain one another can expand to millions of values. The visitor therefore charges each value its
    minimum size as JSON, and stops as soon as the message must exceed the size limit.
    """

    __slots__ = ("_bytes_left", "_limits", "_serializer")

    def __init__(self, limits: ValueLimits, serializer: Serializer | None) -> None:
        self._limits = limits
        self._serializer = serializer
        self._bytes_left = limits.size - 1

    def _charge(self, size: int, path: str) -> None:
        self._bytes_left -= size
        if self._bytes_left < 0:
            raise ValidationError(
                path, f"makes the message too large; Mixpanel accepts less than {self._limits.size} bytes as JSON"
            )

    def mapping(self, value: Mapping[Any, Any], path: str, depth: int) -> dict[str, Any]:
        """Convert a mapping. `depth` is the number of containers around it, 0 for the properties themselves."""
        items = _pairs(value, path or "message", self._limits.keys if depth else self._limits.properties)
        clean = {}
        for key, entry in items:
            if not isinstance(key, str):
                raise ValidationError(join_path(path, key), "keys must be strings")
            inner = join_path(path, key)
            clean[self._text(key, inner)] = self.value(entry, inner, depth, 0)
        return clean

    def value(self, value: Any, path: str, depth: int, conversions: int) -> Any:
        """Convert a value. `conversions` counts the conversions that led to it."""
        kind = type(value)
        if kind is str:
            return self._text(value, path)
        # A digit and a comma, or two brackets: the last element of a container has no comma.
        self._charge(2, path)
        if value is None or kind is bool:
            return value
        if kind is int:
            if not _MIN_INT <= value <= _MAX_INT:
                raise ValidationError(path, "is an integer of more than 64 bits; send it as a string")
            return value
        if kind is float:
            if not isfinite(value):
                raise ValidationError(path, "must be a finite number")
            return value
        try:
            if isinstance(value, (Mapping, list, tuple, AbstractSet)):
                return self._container(value, path, depth)
            return self._converted(value, path, depth, conversions)
        except ValidationError:
            raise
        except Exception as error:  # noqa: BLE001  a user's type may raise anything, even for isinstance()
            raise_interruption(error)
            raise ValidationError(
                path, f"{type_name(value)} is not supported; convert it or pass serializer="
            ) from None

    def _container(self, value: Any, path: str, depth: int) -> Any:
        limits = self._limits
        if depth >= limits.depth:
            raise ValidationError(path, f"is nested deeper than {limits.depth} levels, or contains itself")
        if isinstance(value, Mapping):
            return self.mapping(value, path, depth + 1)
        # Each element takes at least two bytes. Without a limit on items, the remaining bytes limit their number.
        max_items = self._bytes_left // 2 if limits.items is None else limits.items
        entries = list(islice(value, max_items + 1))
        if len(entries) > max_items:
            if limits.items is None:
                self._charge(2 * len(entries), path)
            raise ValidationError(
                path, f"has {_count(value, max_items)} elements; Mixpanel accepts at most {max_items}"
            )
        clean = [self.value(entry, f"{path}[{at}]", depth + 1, 0) for at, entry in enumerate(entries)]
        # Sets are sorted so that equal events have equal bytes.
        return sorted(clean, key=repr) if isinstance(value, AbstractSet) else clean

    def _converted(self, value: Any, path: str, depth: int, conversions: int) -> Any:
        # The result of the conversion is charged instead.
        self._bytes_left += 2
        if conversions > _MAX_CONVERSIONS:
            raise ValidationError(path, f"is not a JSON value after {_MAX_CONVERSIONS} conversions; check serializer=")
        try:
            plain = self._convert(value)
        except ValidationError as error:
            raise ValidationError(path, error.problem) from None
        return self.value(plain, path, depth, conversions + 1)

    def _convert(self, value: Any) -> Any:
        if isinstance(value, datetime):
            # https://docs.mixpanel.com: dates are UTC without an offset. A naive datetime is assumed to be UTC.
            utc = value if value.utcoffset() is None else value.astimezone(timezone.utc)
            return utc.replace(tzinfo=None, microsecond=0).isoformat()
        if isinstance(value, (str, int, float)) and not isinstance(value, Enum):
            return _base(value)
        if self._serializer is not None:
            try:
                return self._serializer(value)
            except Exception as error:  # noqa: BLE001  the serializer does not know the type
                raise_interruption(error)
                return _known(value)
        return _known(value)

    def _text(self, value: str, path: str) -> str:
        # Two quotes, and a comma or a colon.
        self._charge(len(value) + 2, path)
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise ValidationError(path, "has a lone surrogate, which is not valid Unicode text") from None
        return value if type(value) is str else str.__str__(value)


def _count(value: Any, limit: int) -> str:
    """Return the length of a container that exceeds a limit, if its own `len` can be trusted."""
    return str(len(value)) if type(value) in _SIZED else f"more than {limit}"


def _known(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    if is_decimal(value):
        return _decimal(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    raise TypeError


def _base(value: str | float) -> str | float:
    """Return the plain value of a user's subclass, regardless of the methods that it overrides."""
    if isinstance(value, str):
        return str.__str__(value)
    return int.__int__(value) if isinstance(value, int) else float.__float__(value)


def _decimal(value: Decimal) -> int | float:
    if not value.is_finite():
        raise ValidationError("", "must be a finite number")
    if value.adjusted() < 20 and value == value.to_integral_value() and _MIN_INT <= int(value) <= _MAX_INT:
        return int(value)
    return float(value)


def is_decimal(value: object) -> bool:
    """Return whether this is a `Decimal`, without importing `decimal`: only a program that imported it has one."""
    decimal = sys.modules.get("decimal")
    return decimal is not None and is_instance(value, decimal.Decimal)


def is_instance(value: object, kind: type | tuple[type, ...]) -> bool:
    """`isinstance` that returns False if the value's `__class__` raises."""
    try:
        return isinstance(value, kind)
    except Exception as error:  # noqa: BLE001  a user's type may raise anything
        raise_interruption(error)
        return False


def require_mapping(value: object, path: str) -> Mapping[Any, Any]:
    """Return the value if it is a mapping.

    Raises:
        ValidationError: if it is not.
    """
    if not is_instance(value, Mapping):
        raise ValidationError(path, f"must be a mapping, not {type_name(value)}")
    return cast("Mapping[Any, Any]", value)


def copy_mapping(value: object, path: str) -> dict[Any, Any]:
    """Return a shallow copy of a mapping as a dict.

    Raises:
        ValidationError: if the value is not a mapping, or reading it fails.
    """
    try:
        return dict(_pairs(require_mapping(value, path), path, _MAX_PAIRS))
    except TypeError:
        raise ValidationError(path, "cannot be read as a mapping") from None


def _pairs(value: Mapping[Any, Any], path: str, limit: int) -> list[tuple[Any, Any]]:
    try:
        pairs = [(key, entry) for key, entry in islice(value.items(), limit + 1)]
    except Exception as error:  # noqa: BLE001  a user's mapping may raise anything
        raise_interruption(error)
        raise ValidationError(path, "cannot be read as a mapping") from None
    if len(pairs) > limit:
        raise ValidationError(path, f"has {_count(value, limit)} keys; Mixpanel accepts at most {limit}")
    return pairs


def check_names(value: object, path: str) -> Iterable[Any]:
    """Return the value if it is a non-empty list of property names, and not a single name by mistake.

    Raises:
        ValidationError: if it is not.
    """
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, (list, tuple, AbstractSet)):
        raise ValidationError(path, f"must be a list of property names, not {type_name(value)}")
    if not value:
        raise ValidationError(path, "must name at least one property")
    for at, name in enumerate(value):
        if at >= _MAX_PAIRS:
            raise ValidationError(path, f"has {_count(value, _MAX_PAIRS)} names; a message holds at most {_MAX_PAIRS}")
        if not isinstance(name, str):
            raise ValidationError(f"{path}[{at}]", f"must be a string, not {type_name(name)}")
    return value
