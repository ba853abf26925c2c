"""Arguments of one call that tracks an event, and their names in errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from .._model.errors import ValidationError
from .validation import device_person

# Path of a property, its name, and the argument that sets it.
_ARGUMENTS: Final = {
    f"properties.{name}": (name, argument)
    for name, argument in (
        ("distinct_id", "distinct_id"),
        ("$user_id", "user_id"),
        ("$device_id", "device_id"),
        ("time", "time"),
        ("$insert_id", "insert_id"),
    )
}
Arguments = tuple[
    str | None, str, Mapping[str, Any] | None, Mapping[str, Any] | None, str | None, str | None, str | None, object,
    str | None,
]  # fmt: skip
"""Values of `EventArguments`. A plain tuple is made in a fifth of the time."""


class EventArguments(NamedTuple):
    """Arguments of one call that tracks an event. `AsyncMixpanel.track` documents them."""

    distinct_id: str | None
    event_name: str
    properties: Mapping[str, Any] | None = None
    meta: Mapping[str, Any] | None = None
    user_id: str | None = None
    device_id: str | None = None
    ip: str | None = None
    time: object = None
    insert_id: str | None = None


def name_argument(error: ValidationError, arguments: EventArguments, properties: Mapping[str, Any]) -> ValidationError:
    """Return an error whose path is an argument, if the invalid value comes from it and not from a property.

    Args:
        error: why the event cannot be sent.
        arguments: arguments of the call.
        properties: properties of the event, which include the values of the arguments.
    """
    if error.path not in _ARGUMENTS:
        return error
    name, argument = _ARGUMENTS[error.path]
    value, given = properties.get(name), getattr(arguments, argument)
    if name == "distinct_id" and given is None and value is not None:
        # It was derived from another argument.
        if value is arguments.user_id:
            given, argument = value, "user_id"
        elif value is arguments.device_id or value == derive_distinct_id(None, arguments.device_id):
            given, argument = value, "device_id"
    is_own = value is given and (given is not None or name == "distinct_id")
    return ValidationError(argument, error.problem) if is_own else error


def derive_distinct_id(user_id: str | None, device_id: str | None) -> str | None:
    """Return the `distinct_id` of an event with these ids only. An invalid id is refused later."""
    if user_id is not None:
        return user_id
    return device_person(device_id) if isinstance(device_id, str) else device_id
