"""Senders of a disabled client: no task, no thread, no network, no disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from .._delivery.direct_sender import DirectSender
from .._delivery.lanes import Batch, Lane
from .._delivery.sender import Sender
from .._model.credentials import Secret
from .._model.errors import ClientClosedError
from .._model.records import RecordKind
from .._model.stats import FlushResult
from .._runtime.event_loop import yield_to_loop


class NullSender(Sender):
    """Sender that starts in no event loop and accepts no record."""

    def subscribe(self, on_start: Callable[[], None], on_close: Callable[[], None]) -> None:
        """Do nothing: the sender never starts."""

    def bind_loop_if_idle(self) -> None:
        """Do nothing."""

    def bind_loop(self) -> NoReturn:
        """Refuse to start.

        Raises:
            ClientClosedError: always.
        """
        raise ClientClosedError("the client is disabled and has no event loop")

    async def open(self) -> None:
        """Do nothing."""

    async def enqueue(self, lane: Lane, record: bytes, wait_timeout: float) -> None:
        """Do nothing."""

    async def flush(self, timeout: float | None) -> FlushResult:  # noqa: ARG002  there is nothing to wait for
        """Let other tasks run. Return an empty result."""
        await yield_to_loop()
        return FlushResult(0, 0, 0)

    async def aclose(self, timeout: float) -> FlushResult:
        """Let other tasks run. Return an empty result."""
        return await self.flush(timeout)

    def abandon(self) -> None:
        """Do nothing."""


class NullDirectSender(DirectSender):
    """Sender of awaited calls that returns without a request."""

    async def send(
        self,
        kind: RecordKind,
        item: bytes,
        *,
        secret: Secret | None = None,
        batch: Batch | None = None,
        timeout: float | None = None,
    ) -> None:
        """Do nothing."""
