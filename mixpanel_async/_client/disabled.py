"""Senders of a disabled client: no task, no thread, no network, no disk."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NoReturn, TypeVar

from .._delivery.batch import Batch
from .._delivery.closer import Closer
from .._delivery.direct_sender import DirectSender
from .._delivery.lanes import Lane
from .._delivery.sender import Sender
from .._model.credentials import Secret
from .._model.errors import ClientClosedError
from .._model.records import RecordKind
from .._model.stats import FlushResult
from .._runtime.event_loop import yield_to_loop

T = TypeVar("T")


def _nothing() -> None:
    return None


class NullSender(Sender):
    """Sender that starts in no event loop and accepts no record."""

    def subscribe(self, on_start: Callable[[], None], on_close: Callable[[], None]) -> None:
        """Do nothing: the sender never starts."""

    def attach(self) -> bool:
        """Return False: the sender runs in no event loop."""
        return False

    def attach_if_idle(self) -> bool:
        """Return True: nothing waits for an event loop."""
        return True

    async def open(self) -> None:
        """Do nothing."""

    async def enqueue(self, lane: Lane, record: bytes, wait_timeout: float, *, must_fit: bool = False) -> None:
        """Do nothing."""

    async def in_loop(self, work: Callable[[], Awaitable[T]], name: str) -> T:  # noqa: ARG002  there is no other loop
        """Await the function here."""
        return await work()

    async def request(
        self,
        work: Callable[[], Awaitable[T]],  # noqa: ARG002  no request is made
        name: str,  # noqa: ARG002
        if_unstarted: Callable[[], None] = _nothing,  # noqa: ARG002
    ) -> NoReturn:
        """Refuse to make requests.

        Raises:
            ClientClosedError: always.
        """
        raise ClientClosedError("the client is disabled and makes no requests")


class NullCloser(Closer):
    """Closer of a client that holds nothing."""

    async def flush(self, timeout: float | None) -> FlushResult:  # noqa: ARG002  there is nothing to wait for
        """Let other tasks run. Return an empty result."""
        await yield_to_loop()
        return FlushResult(0, 0, 0)

    async def aclose(self, timeout: float) -> FlushResult:
        """Let other tasks run. Return an empty result."""
        return await self.flush(timeout)

    def finish_unclosed(self) -> None:
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
