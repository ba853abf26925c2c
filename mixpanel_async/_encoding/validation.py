"""Rules for ids and names, and safe reading of values. Errors name the argument or the property path."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from itertools import islice
from typing import Any, Final, cast
from uuid import UUID

from .._model.errors import ValidationError
from .._model.interruption import raise_interruption

Serializer = Callable[[Any], Any]

_SIZED: Final = frozenset({dict, list, tuple, set, frozenset})
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
_MAX_SHOWN_KEY: Final = 60
_MAX_PLACEHOLDER_LENGTH: Final = 36
_MAX_INSERT_ID_LENGTH: Final = 36
_INSERT_ID: Final = re.compile(r"[A-Za-z0-9-]{1,36}")
_DEVICE_PREFIX: Final = "$device:"
# Observed, 2026-11: Mixpanel joined the ids of its browser SDK, which are not UUIDs. Its documents name UUIDs only.
_ANONYMOUS_ID: Final = re.compile(r"(?:\$device:)?[0-9A-Fa-f]+(?:-[0-9A-Fa-f]+){4}")


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
    # The first test is fast, and true for hexadecimal ids.
    is_usual = value.isalnum() and value.isascii() and len(value) <= _MAX_INSERT_ID_LENGTH
    if not is_usual and not _INSERT_ID.fullmatch(value):
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


def shown_count(value: Any, limit: int) -> str:
    """Return the length of a container that exceeds a limit, if its own `len` can be trusted."""
    return str(len(value)) if type(value) in _SIZED else f"more than {limit}"


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
    if type(value) is not dict and not is_instance(value, Mapping):
        raise ValidationError(path, f"must be a mapping, not {type_name(value)}")
    return cast("Mapping[Any, Any]", value)


def copy_mapping(value: object, path: str) -> dict[Any, Any]:
    """Return a shallow copy of a mapping as a dict.

    Raises:
        ValidationError: if the value is not a mapping, or reading it fails.
    """
    if type(value) is dict and len(value) <= _MAX_PAIRS:
        return value.copy()
    try:
        return dict(read_pairs(require_mapping(value, path), path, _MAX_PAIRS))
    except TypeError:
        raise ValidationError(path, "cannot be read as a mapping") from None


def read_pairs(value: Mapping[Any, Any], path: str, limit: int) -> list[tuple[Any, Any]]:
    """Return the keys and values of a mapping, at most `limit`.

    Raises:
        ValidationError: if there are more, or if reading the mapping fails.
    """
    if type(value) is dict and len(value) <= limit:
        return list(value.items())
    try:
        pairs = [(key, entry) for key, entry in islice(value.items(), limit + 1)]
    except Exception as error:  # noqa: BLE001  a user's mapping may raise anything
        raise_interruption(error)
        raise ValidationError(path, "cannot be read as a mapping") from None
    if len(pairs) > limit:
        raise ValidationError(path, f"has {shown_count(value, limit)} keys; Mixpanel accepts at most {limit}")
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
            raise ValidationError(
                path, f"has {shown_count(value, _MAX_PAIRS)} names; a message holds at most {_MAX_PAIRS}"
            )
        if not isinstance(name, str):
            raise ValidationError(f"{path}[{at}]", f"must be a string, not {type_name(name)}")
    return value


def check_kind(update: Mapping[str, Any], *, is_group: bool) -> None:
    """Reject an update that belongs to the other endpoint, where Mixpanel would ignore it."""
    if ("$group_key" in update) is not is_group:
        raise ValidationError("$group_key", "must be set for a group, and only for a group")


def check_target(update: Mapping[str, Any]) -> None:
    """Reject an update that names no user or group.

    Raises:
        ValidationError: if an id or the key of the group is missing or not valid.
    """
    if "$group_key" in update or "$group_id" in update:
        check_id(update.get("$group_id"), "$group_id")
        key = update.get("$group_key")
        if not isinstance(key, str) or not key.strip():
            raise ValidationError("$group_key", "must be a string that is not blank")
    else:
        check_id(update.get("$distinct_id"), "$distinct_id")
