"""Property values: what can be sent, how it is sent, and the path of what cannot.

Most values are strings, whole numbers, booleans and None; `is_plain` settles those at the speed of C. Everything else
is looked at once, here.
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

if TYPE_CHECKING:
    from decimal import Decimal

Serializer = Callable[[Any], Any]

_PLAIN: Final = frozenset({str, int, bool, type(None)})
_SIZED: Final = frozenset({dict, list, tuple, set, frozenset})
_LEAST_INT: Final = -(2**63)
_MOST_INT: Final = 2**64 - 1

is_plain: Final = _PLAIN.issuperset
"""Whether every type in an iterable is one that needs no look at the value."""

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
# More than a message of 1,000,000 bytes has room for: an endless mapping must not be read to its end.
_MOST_PAIRS: Final = 200_000
_INSERT_ID: Final = re.compile(r"[A-Za-z0-9-]{1,36}")
_UUID4: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.IGNORECASE)


class ValueLimits:
    """How much one message may hold. Source: Mixpanel's pages on import and on data types, read 2026-08-21.

    Args:
        properties: properties at the top.
        items: elements of one array, or None for no limit.
        keys: keys of one nested object.
        depth: containers inside one another.
        size: bytes of JSON that one message must stay below.
    """

    __slots__ = ("depth", "items", "keys", "properties", "size")

    def __init__(
        self, *, properties: int, items: int | None, keys: int = 254, depth: int = 3, size: int = 1_000_000
    ) -> None:
        self.properties = properties
        self.items = items
        self.keys = keys
        self.depth = depth
        self.size = size


EVENT_LIMITS: Final = ValueLimits(properties=254, items=254)
WHOLE_EVENT_LIMITS: Final = ValueLimits(properties=254, items=254, depth=4)
PROFILE_LIMITS: Final = ValueLimits(properties=2000, items=None, keys=2000, depth=4)


def is_uuid4(text: str) -> bool:
    """Whether Mixpanel takes this as an anonymous id: version 4, with dashes, in either case (iOS sends capitals)."""
    return _UUID4.fullmatch(text) is not None


def check_id(value: object, path: str, *, empty: bool = False) -> None:
    """Refuse an id that Mixpanel would refuse or that stands for nobody.

    Raises:
        ValidationError: if it is not a string, is blank (unless `empty`), or is on Mixpanel's list.
    """
    # By the true class, and with the methods of `str` itself: a mock or a subclass may say anything of itself.
    if type(value) is str:
        text = value
    elif issubclass(type(value), str):
        text = str.__str__(value)
    else:
        raise ValidationError(path, f"must be a string, not {type(value).__name__}")
    if not text or text.isspace():
        if empty and not text:
            return
        raise ValidationError(path, "must not be blank")
    if len(text) <= 36 and text.lower() in FORBIDDEN_IDS:
        raise ValidationError(path, "is one of the placeholder ids that Mixpanel refuses")


def check_insert_id(value: object, path: str) -> None:
    """Refuse an `$insert_id` that Mixpanel would refuse.

    Raises:
        ValidationError: if it is not 1 to 36 of A-Z, a-z, 0-9 and dash, or is on Mixpanel's list.
    """
    if not isinstance(value, str):
        raise ValidationError(path, f"must be a string, not {type(value).__name__}")
    if not _INSERT_ID.fullmatch(value):
        raise ValidationError(path, f"must be 1 to 36 letters, digits and dashes; this one has {len(value)} characters")
    if value.lower() in FORBIDDEN_IDS:
        raise ValidationError(path, "is one of the placeholder ids that Mixpanel refuses")


def join_path(path: str, key: object) -> str:
    """`path.key`, with a key that cannot be shown made safe to print."""
    text = key if isinstance(key, str) else f"<{type(key).__name__}>"
    if not text.isprintable():
        text = ascii(text)
    text = text if len(text) <= 60 else text[:57] + "..."
    return f"{path}.{text}" if path else text


class Normalizer:
    """Turns values into what JSON has.

    Args:
        limits: see `Limits`.
        serializer: asked for a value of a type that is not known here; returns one that is.
    """

    __slots__ = ("limits", "serializer")

    def __init__(self, limits: ValueLimits, serializer: Serializer | None = None) -> None:
        self.limits = limits
        self.serializer = serializer

    def normalize_in_place(self, properties: dict[str, Any], path: str) -> None:
        """Replace in place what JSON does not have. Keys and texts are left to the encoder, which refuses bad ones.

        Raises:
            ValidationError: naming the first value that cannot be sent.
        """
        walk = None
        most = self.limits.items
        for key, value in properties.items():
            kind = type(value)
            if kind in _PLAIN or (kind is float and isfinite(value)):
                continue
            if kind is list and (most is None or len(value) <= most) and is_plain(map(type, value)):
                continue
            if walk is None:
                walk = _Visitor(self.limits, self.serializer)
            properties[key] = walk.value(value, join_path(path, key), 0, 0)

    def mapping(self, value: Mapping[Any, Any], path: str) -> dict[str, Any]:
        """A clean copy of a message, or of the properties of one.

        Args:
            value: the mapping; it is not changed.
            path: where it is, for errors.

        Raises:
            ValidationError: naming the first thing in it that cannot be sent.
        """
        return _Visitor(self.limits, self.serializer).mapping(value, path, 0)


class _Visitor:
    """One look at a message.

    A few lists that hold one another may stand for millions of values, and each would be looked at before the size of
    the whole is known. So every value is charged the least that it can take as JSON, and the walk ends where no message
    could be small enough any more.
    """

    __slots__ = ("_left", "_limits", "_serializer")

    def __init__(self, limits: ValueLimits, serializer: Serializer | None) -> None:
        self._limits = limits
        self._serializer = serializer
        self._left = limits.size - 1

    def _charge(self, size: int, path: str) -> None:
        self._left -= size
        if self._left < 0:
            raise ValidationError(
                path, f"is where the message outgrows what Mixpanel takes, less than {self._limits.size} bytes as JSON"
            )

    def mapping(self, value: Mapping[Any, Any], path: str, depth: int) -> dict[str, Any]:
        """A clean copy. `depth` counts the containers around its values, 0 for the properties themselves."""
        items = _pairs(value, path, self._limits.keys if depth else self._limits.properties)
        clean = {}
        for key, entry in items:
            if not isinstance(key, str):
                raise ValidationError(join_path(path, key), "keys must be strings")
            inner = join_path(path, key)
            clean[self._text(key, inner)] = self.value(entry, inner, depth, 0)
        return clean

    def value(self, value: Any, path: str, depth: int, converted: int) -> Any:
        """What is sent for a value; `converted` counts how often this one was turned into another."""
        kind = type(value)
        if kind is str:
            return self._text(value, path)
        # A digit and a comma, or a comma and a bracket, as the last in a container has no comma.
        self._charge(2, path)
        if value is None or kind is bool:
            return value
        if kind is int:
            if not _LEAST_INT <= value <= _MOST_INT:
                raise ValidationError(path, "is a whole number of more than 64 bits")
            return value
        if kind is float:
            if not isfinite(value):
                raise ValidationError(path, "must be a finite number")
            return value
        try:
            if isinstance(value, (Mapping, list, tuple, AbstractSet)):
                return self._container(value, path, depth)
            return self._converted(value, path, depth, converted)
        except ValidationError:
            raise
        except Exception:  # noqa: BLE001  a user's type may fail in any way, when it is asked for its class even
            raise ValidationError(path, f"of type {kind.__name__} cannot be sent") from None

    def _container(self, value: Any, path: str, depth: int) -> Any:
        limits = self._limits
        if depth >= limits.depth:
            raise ValidationError(path, f"is nested deeper than {limits.depth} levels, or contains itself")
        if isinstance(value, Mapping):
            return self.mapping(value, path, depth + 1)
        # Each takes two bytes at least: where their number is not limited, there is no more room than for so many.
        most = self._left // 2 if limits.items is None else limits.items
        entries = list(islice(value, most + 1))
        if len(entries) > most:
            if limits.items is None:
                self._charge(2 * len(entries), path)
            raise ValidationError(path, f"has {_count(value, most)} elements; Mixpanel takes {most}")
        clean = [self.value(entry, f"{path}[{at}]", depth + 1, 0) for at, entry in enumerate(entries)]
        # A set has no order of its own: without one, equal events would have unequal bytes.
        return sorted(clean, key=repr) if isinstance(value, AbstractSet) else clean

    def _converted(self, value: Any, path: str, depth: int, converted: int) -> Any:
        # What it is turned into is charged in its place.
        self._left += 2
        if converted > 8:
            raise ValidationError(path, "is still no JSON value after eight conversions")
        try:
            plain = self._convert(value)
        except ValidationError as error:
            raise ValidationError(path, error.problem) from None
        return self.value(plain, path, depth, converted + 1)

    def _convert(self, value: Any) -> Any:
        if isinstance(value, datetime):
            # https://docs.mixpanel.com: dates are UTC without an offset. A naive one is taken to be UTC already.
            utc = value if value.utcoffset() is None else value.astimezone(timezone.utc)
            return utc.replace(tzinfo=None, microsecond=0).isoformat()
        if isinstance(value, (str, int, float)) and not isinstance(value, Enum):
            return _base(value)
        if self._serializer is not None:
            try:
                return self._serializer(value)
            except Exception:  # noqa: BLE001  its way of saying that it does not know the type
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


def _count(value: Any, most: int) -> str:
    """How many a container holds that holds too many, as far as it can be trusted with the number."""
    return str(len(value)) if type(value) in _SIZED else f"more than {most}"


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
    """The plain value within a user's subclass, whatever its own conversions do."""
    if isinstance(value, str):
        return str.__str__(value)
    return int.__int__(value) if isinstance(value, int) else float.__float__(value)


def _decimal(value: Decimal) -> int | float:
    if not value.is_finite():
        raise ValidationError("", "must be a finite number")
    if value.adjusted() < 20 and value == value.to_integral_value() and _LEAST_INT <= int(value) <= _MOST_INT:
        return int(value)
    return float(value)


def is_decimal(value: object) -> bool:
    """Whether this is a `Decimal`. Whoever has one has imported that; nobody else shall have to."""
    decimal = sys.modules.get("decimal")
    return decimal is not None and is_instance(value, decimal.Decimal)


def is_instance(value: object, kind: type | tuple[type, ...]) -> bool:
    """`isinstance`, and False for what fails when it is asked for its class."""
    try:
        return isinstance(value, kind)
    except Exception:  # noqa: BLE001  a user's type may fail in any way
        return False


def require_mapping(value: object, path: str) -> Mapping[Any, Any]:
    """The value, if it is a mapping.

    Raises:
        ValidationError: if it is not.
    """
    if not is_instance(value, Mapping):
        raise ValidationError(path, f"must be a mapping, not {type(value).__name__}")
    return cast("Mapping[Any, Any]", value)


def copy_mapping(value: object, path: str) -> dict[Any, Any]:
    """A copy of a mapping with the values that it had.

    Raises:
        ValidationError: if it is none, or cannot be read.
    """
    try:
        return dict(_pairs(require_mapping(value, path), path, _MOST_PAIRS))
    except TypeError:
        raise ValidationError(path, "cannot be read as a mapping") from None


def _pairs(value: Mapping[Any, Any], path: str, most: int) -> list[tuple[Any, Any]]:
    try:
        pairs = [(key, entry) for key, entry in islice(value.items(), most + 1)]
    except Exception:  # noqa: BLE001  a user's mapping may fail in any way
        raise ValidationError(path, "cannot be read as a mapping") from None
    if len(pairs) > most:
        raise ValidationError(path, f"has {_count(value, most)} keys; Mixpanel takes {most}")
    return pairs


def check_names(value: object, path: str) -> Iterable[Any]:
    """The value, if it is a list of property names and not by mistake a single one.

    Raises:
        ValidationError: if it is not, or is empty.
    """
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, (list, tuple, AbstractSet)):
        raise ValidationError(path, f"must be a list of property names, not {type(value).__name__}")
    if not value:
        raise ValidationError(path, "must name at least one property")
    for at, name in enumerate(value):
        if at >= _MOST_PAIRS:
            raise ValidationError(path, f"has {_count(value, _MOST_PAIRS)} names, more than a message can hold")
        if not isinstance(name, str):
            raise ValidationError(f"{path}[{at}]", f"must be a string, not {type(name).__name__}")
    return value
