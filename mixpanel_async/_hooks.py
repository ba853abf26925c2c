"""The user's callbacks: called in order, off the event loop if they are plain functions, and never able to stop it."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from inspect import isawaitable, iscoroutinefunction
from typing import Any, Final

import anyio
import anyio.to_thread
import orjson

from ._lanes import Loss
from ._records import Delivery, DropReason, LostRecord

OnDrop = Callable[[list[LostRecord], DropReason], Awaitable[None] | None]
OnDelivered = Callable[[Delivery], Awaitable[None] | None]

_log = logging.getLogger("mixpanel_async")
# Losses that wait for a slow callback keep their payload up to this many records, then only their number.
_KEPT_PAYLOADS: Final = 50_000


class Hooks:
    """What is still to be told to the user.

    Args:
        on_drop: told of records that ended without delivery.
        on_delivered: told of each request that Mixpanel took.
    """

    def __init__(self, on_drop: OnDrop | None, on_delivered: OnDelivered | None) -> None:
        self._on_drop = on_drop
        self._on_delivered = on_delivered
        self._waiting: deque[Loss | Delivery] = deque()
        self._kept = 0
        self._has_failed = False
        self._task: int | None = None

    def lost(self, losses: Sequence[Loss]) -> bool:
        """Note losses. From any thread.

        Returns:
            Whether `run` has something to do.
        """
        if self._on_drop is None:
            return False
        for loss in losses:
            if self._kept > _KEPT_PAYLOADS:
                loss = Loss(kind=loss.kind, reason=loss.reason, items=[b""] * len(loss.items))  # noqa: PLW2901
            self._kept += len(loss.items)
            self._waiting.append(loss)
        return bool(losses)

    def delivered(self, delivery: Delivery) -> bool:
        """Note a delivery. Returns whether `run` has something to do."""
        if self._on_delivered is None:
            return False
        self._waiting.append(delivery)
        return True

    @property
    def idle(self) -> bool:
        return not self._waiting

    def is_caller(self) -> bool:
        """Whether the running task is a callback, which must not wait for itself."""
        return self._task is not None and self._task == anyio.get_current_task().id

    async def run(self) -> None:
        """Tell the user everything that waits."""
        self._task = anyio.get_current_task().id
        try:
            await self._run()
        finally:
            self._task = None

    async def _run(self) -> None:
        while self._waiting:
            entry = self._waiting.popleft()
            name = "on_drop" if isinstance(entry, Loss) else "on_delivered"
            try:
                if isinstance(entry, Loss):
                    self._kept -= len(entry.items)
                    if self._on_drop is not None:
                        await _call(self._on_drop, _records(entry), entry.reason)
                elif self._on_delivered is not None:
                    await _call(self._on_delivered, entry)
            except Exception as error:  # noqa: BLE001  a user's callback may fail in any way
                self._report(name, error)

    def _report(self, name: str, error: Exception) -> None:
        # Once a client: a callback that fails tends to fail every time.
        if not self._has_failed:
            self._has_failed = True
            _log.error("%s raised %s; further failures are not logged", name, type(error).__name__)


async def _call(callback: Callable[..., Any], *args: object) -> None:
    if iscoroutinefunction(callback) or iscoroutinefunction(getattr(callback, "__call__", None)):  # noqa: B004
        await callback(*args)
        return
    result = await anyio.to_thread.run_sync(callback, *args, abandon_on_cancel=True)
    if isawaitable(result):
        await result


def _records(loss: Loss) -> list[LostRecord]:
    details = dict(enumerate(loss.details)) if len(loss.details) == len(loss.items) else {}
    records = []
    for at, item in enumerate(loss.items):
        detail = details.get(at)
        records.append(
            LostRecord(
                kind=loss.kind.value,
                payload=_payload(item),
                field=detail.field if detail else "",
                message=detail.message if detail else loss.message,
            )
        )
    return records


def _payload(item: bytes) -> dict[str, Any] | None:
    if not item:
        return None
    payload: dict[str, Any] = orjson.loads(memoryview(item))
    payload.pop("$token", None)
    properties = payload.get("properties")
    if isinstance(properties, dict):
        properties.pop("token", None)
    return payload
