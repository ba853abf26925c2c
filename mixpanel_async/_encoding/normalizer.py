"""Conversion of property values to JSON. Errors name the property path.

Most values are strings, numbers, booleans and None. All other values are visited once, here.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Collection, Mapping
from collections.abc import Set as AbstractSet
from datetime import date, datetime, timezone
from enum import Enum
from itertools import islice
from math import inf, isfinite
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import orjson

from .._model.errors import ValidationError
from .._model.interruption import raise_interruption
from .._model.records import Record
from .size_check import MAX_RECORD_BYTES
from .validation import Serializer, is_decimal, join_path, read_pairs, shown_count, type_name

if TYPE_CHECKING:
    from decimal import Decimal

_PLAIN: Final = frozenset({str, int, bool, type(None)})
_NATIVE_TYPES: Final = frozenset({UUID, date})
_MIN_INT: Final = -(2**63)
_MAX_INT: Final = 2**64 - 1
_MAX_CONVERSIONS: Final = 8
_MAX_SHOWN_PATH: Final = 400

# True if every type in an iterable is valid JSON whatever the value.
_is_plain: Final = _PLAIN.issuperset
# Nested containers in the value of a property. Real events have fewer than ten. orjson encodes up to 254 levels, the
# envelope included, and the visitor needs three stack frames for each, of about 1,000 that Python allows.
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


class Normalizer:
    """Converter of Python values to JSON values.

    Args:
        limits: limits of one message.
        serializer: called with a value of an unknown type. Returns a value of a known type, or raises.

    Attributes:
        native_types: further types that orjson encodes as `value` would.
    """

    __slots__ = ("limits", "native_types", "serializer")

    def __init__(self, limits: ValueLimits, serializer: Serializer | None = None) -> None:
        self.limits = limits
        self.serializer = serializer
        # A serializer may convert these itself.
        self.native_types: frozenset[type] = _NATIVE_TYPES if serializer is None else frozenset()

    def normalize_in_place(self, properties: dict[str, Any], path: str) -> None:
        """Replace the values that are not JSON. The encoder rejects the strings that are not.

        It also refuses texts that are far too large: orjson reserves eight bytes for each character, and ends the
        process if it cannot get them.

        Raises:
            ValidationError: naming the first key or value that cannot be sent.
        """
        visitor = None
        max_items = self.limits.items
        try:
            room = self.limits.size - sum(map(str.__len__, properties))
        except TypeError:
            # A key is not a string.
            room = -1
        for key, value in properties.items():
            kind = type(value)
            if kind is str:
                room -= len(value)
            elif kind is int or kind is bool or value is None or (kind is float and isfinite(value)):
                continue
            elif kind is list and (max_items is None or len(value) <= max_items) and _is_plain(map(type, value)):
                room -= _text_length(value)
            else:
                visitor = visitor or _Visitor(self.limits, self.serializer, path)
                properties[key] = visitor.property(key, value)
        if room < 0:
            self.mapping(properties, path)

    def value(self, key: str, value: Any, path: str) -> Any:
        """Return the value of a property as a JSON value, or as a date without offset, which orjson writes faster.

        Raises:
            ValidationError: if the value, or one inside it, cannot be sent.
        """
        kind = type(value)
        if kind is datetime:
            return _utc(value)
        if self.serializer is None and kind is getattr(sys.modules.get("decimal"), "Decimal", None):
            return _decimal(value)
        return _Visitor(self.limits, self.serializer, path).property(key, value)

    def mapping(self, value: Mapping[Any, Any], path: str) -> dict[str, Any]:
        """Return a deep copy of a message, or of its properties, that contains only JSON values.

        Args:
            value: the mapping. It is not changed.
            path: property path for errors.

        Raises:
            ValidationError: naming the first key or value that cannot be sent.
        """
        return _Visitor(self.limits, self.serializer, path).mapping(value)


class _Visitor:
    """Visitor of one message.

    A few lists that contain one another can expand to millions of values. The visitor therefore charges each value its
    minimum size as JSON, and stops as soon as the message must exceed the size limit.
    """

    __slots__ = ("_bytes_left", "_keys", "_limits", "_path", "_serializer")

    def __init__(self, limits: ValueLimits, serializer: Serializer | None, path: str) -> None:
        self._limits = limits
        self._serializer = serializer
        self._path = path
        # Keys and indexes from the message to the value that is being visited. One for each container around it.
        self._keys: list[str | int] = []
        self._bytes_left = limits.size - 1

    def _error(self, problem: str) -> ValidationError:
        path = self._path
        for key in self._keys:
            path = f"{path}[{key}]" if type(key) is int else join_path(path, key)
        if len(path) > _MAX_SHOWN_PATH:
            path = f"{path[: _MAX_SHOWN_PATH // 2]}...{path[-_MAX_SHOWN_PATH // 2 :]}"
        return ValidationError(path, problem)

    def _size_error(self) -> ValidationError:
        return self._error(f"makes the message too large; Mixpanel accepts less than {self._limits.size} bytes as JSON")

    def property(self, key: str, value: Any) -> Any:
        """Convert the value of a property."""
        self._keys = [key]
        return self._value(value)

    def mapping(self, value: Mapping[Any, Any]) -> dict[str, Any]:
        """Convert a mapping: the message itself, or a value inside it."""
        keys, limits = self._keys, self._limits
        try:
            pairs = read_pairs(value, self._path or "message", limits.keys if keys else limits.properties)
        except ValidationError as error:
            raise (self._error(error.problem) if keys else error) from None
        clean = {}
        keys.append("")
        for key, entry in pairs:
            if not isinstance(key, str):
                keys[-1] = f"<{type(key).__name__}>"
                raise self._error("keys must be strings")
            keys[-1] = key
            clean[self._text(key)] = self._value(entry)
        keys.pop()
        return clean

    def _value(self, value: Any, conversions: int = 0) -> Any:
        """Convert a value. `conversions` counts the conversions that led to it."""
        kind = type(value)
        if kind is str:
            return self._text(value)
        # A digit and a comma, or two brackets: the last element of a container has no comma.
        self._bytes_left -= 2
        if self._bytes_left < 0:
            raise self._size_error()
        if value is None or kind is bool:
            return value
        if (kind is int and _MIN_INT <= value <= _MAX_INT) or (kind is float and isfinite(value)):
            return value
        try:
            # One check finds out that most values are no container. Abstract classes are slow.
            is_known = kind is dict or kind is list
            if is_known or (isinstance(value, Collection) and isinstance(value, (Mapping, list, tuple, AbstractSet))):
                return self._container(value)
            return self._converted(value, conversions)
        except ValidationError:
            raise
        except Exception as error:  # noqa: BLE001  a user's type may raise anything, even for isinstance()
            raise_interruption(error)
            raise self._error(f"{type_name(value)} is not supported; convert it or pass serializer=") from None

    def _container(self, value: Any) -> Any:
        keys, limits = self._keys, self._limits
        if len(keys) > limits.depth:
            raise self._error(f"is nested deeper than {limits.depth} levels, or contains itself")
        if isinstance(value, Mapping):
            return self.mapping(value)
        # Each element takes at least two bytes. Without a limit on items, the remaining bytes limit their number.
        max_items = self._bytes_left // 2 if limits.items is None else limits.items
        entries = list(islice(value, max_items + 1))
        if len(entries) > max_items:
            if limits.items is None:
                raise self._size_error()
            raise self._error(f"has {shown_count(value, max_items)} elements; Mixpanel accepts at most {max_items}")
        clean = []
        keys.append(0)
        for at, entry in enumerate(entries):
            keys[-1] = at
            clean.append(self._value(entry))
        keys.pop()
        # Sets are sorted so that equal events have equal bytes.
        return sorted(clean, key=repr) if isinstance(value, AbstractSet) else clean

    def _converted(self, value: Any, conversions: int) -> Any:
        if type(value) is int:
            raise self._error("is an integer of more than 64 bits; send it as a string")
        if type(value) is float:
            raise self._error("must be a finite number")
        # The result of the conversion is charged instead.
        self._bytes_left += 2
        if conversions > _MAX_CONVERSIONS:
            raise self._error(f"is not a JSON value after {_MAX_CONVERSIONS} conversions; check serializer=")
        try:
            plain = self._convert(value)
        except ValidationError as error:
            raise self._error(error.problem) from None
        return self._value(plain, conversions + 1)

    def _convert(self, value: Any) -> Any:
        if isinstance(value, datetime):
            # A subclass may override anything.
            return _utc(value).isoformat(timespec="seconds")
        if isinstance(value, (str, int, float)) and not isinstance(value, Enum):
            return _base(value)
        if self._serializer is not None:
            try:
                return self._serializer(value)
            except Exception as error:  # noqa: BLE001  the serializer does not know the type
                raise_interruption(error)
                return _known(value)
        return _known(value)

    def _text(self, value: str) -> str:
        # Two quotes, and a comma or a colon.
        self._bytes_left -= len(value) + 2
        if self._bytes_left < 0:
            raise self._size_error()
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise self._error("has a lone surrogate, which is not valid Unicode text") from None
        return value if type(value) is str else str.__str__(value)


def _text_length(values: list[Any]) -> int:
    """Return the number of characters of the texts in a list."""
    return sum(len(value) for value in values if type(value) is str)


def _utc(value: datetime) -> datetime:
    """Return a date as UTC without offset. A naive one is UTC already."""
    # https://docs.mixpanel.com: dates are UTC without an offset.
    zone = timezone.utc
    utc = value if value.tzinfo is zone or value.utcoffset() is None else value.astimezone(zone)
    # `replace(tzinfo=None)` takes four times as long.
    return datetime.combine(utc.date(), utc.time())


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
    number = float(value) if value.is_finite() else inf
    if not isfinite(number):
        raise ValidationError("", "must be a finite number")
    # The float of a whole number is whole.
    if number.is_integer() and _MIN_INT <= value <= _MAX_INT and value == value.to_integral_value():
        return int(value)
    return number


def encode_message(message: dict[str, Any], normalizer: Normalizer) -> bytes:
    """Encode a message as JSON.

    Args:
        message: the message. A normalizer has checked the size of its values.
        normalizer: converts the message, or raises with the path, if orjson rejects a value: orjson does not name it.
    """
    try:
        data = orjson.dumps(message)
    except TypeError:
        data = b""
    if not data:
        data = orjson.dumps(normalizer.mapping(message, ""))
    if len(data) >= MAX_RECORD_BYTES:
        path = "properties" if "properties" in message else "message"
        raise ValidationError(
            path, f"has {len(data)} bytes as JSON; Mixpanel accepts less than {MAX_RECORD_BYTES} per record"
        )
    # The bytes that orjson returns may keep a whole memory page allocated. A copy takes only its own size.
    return Record(memoryview(data))
