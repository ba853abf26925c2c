"""Sync and async code: which one runs, and a coroutine in sync code."""

from __future__ import annotations

from asyncio import get_running_loop
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def is_in_event_loop() -> bool:
    """Return whether the caller runs in an event loop, so that it must not block."""
    try:
        get_running_loop()
    except RuntimeError:
        return False
    return True


def complete(coroutine: Coroutine[Any, Any, T]) -> T:
    """Return the result of a coroutine that does not wait."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    coroutine.close()
    raise RuntimeError("the coroutine waits")
