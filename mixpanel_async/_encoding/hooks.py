"""Calls of the user's `before_send` and `serializer`."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import Any, Final, cast

import orjson

from .._model.errors import ConfigurationError
from .._model.interruption import raise_interruption
from .._model.records import DropReason, Record
from .validation import Serializer

Message = dict[str, Any]
BeforeSend = Callable[[Message], Message | None]
"""Function that receives a message before it is queued, and returns it, changed or not, or None to drop it."""
SerializerOption = Serializer | type[json.JSONEncoder] | None
"""Function or JSON encoder that converts values of other types; None for none."""

# Number of records that hooks may track inside one another.
_MAX_HOOK_DEPTH: Final = 8
_HOOK_DEPTH: Final = ContextVar("mixpanel_async_hook_depth", default=0)


class DroppedByHook(Exception):  # noqa: N818  control flow inside the package, not an error
    """The user's `before_send` hook dropped a message or failed.

    Args:
        reason: reason for `on_drop`.
        message: the message that was passed to the hook, or the invalid one that the hook returned.
    """

    def __init__(self, reason: DropReason, message: Message) -> None:
        super().__init__(reason)
        self.reason = reason
        try:
            # Not orjson: an object that a hook put into the message could crash it.
            record = json.dumps(message, allow_nan=False, default=lambda value: f"<{type(value).__name__}>").encode()
            orjson.loads(record)  # it rejects a lone surrogate
            self.record = Record(record)
        except Exception as error:  # noqa: BLE001  a user's mapping may raise anything
            raise_interruption(error)
            self.record = Record()


def as_serializer(serializer: SerializerOption) -> Serializer | None:
    """Return the user's serializer as a function.

    Args:
        serializer: a callable, or a `json.JSONEncoder` class as in the official SDK.

    Raises:
        ConfigurationError: if it is neither.
    """
    if serializer is None:
        return None
    if isinstance(serializer, type) and issubclass(serializer, json.JSONEncoder):
        return partial(call_hook, serializer().default)
    if not callable(serializer):
        raise ConfigurationError("serializer must be a callable or a json.JSONEncoder class")
    return partial(call_hook, cast("Serializer", serializer))


def call_hook(hook: Callable[[Any], Any], value: Any) -> Any:
    """Call a hook, which may track further records.

    Raises:
        RecursionError: if the hook tracks records without end. Python's own limit could interrupt the queue.
    """
    depth = _HOOK_DEPTH.get()
    if depth >= _MAX_HOOK_DEPTH:
        raise RecursionError
    try:
        # Inside the block: a signal handler may raise as soon as the depth is set.
        _HOOK_DEPTH.set(depth + 1)
        return hook(value)
    finally:
        _HOOK_DEPTH.set(depth)
