"""Client of a process that runs tasks: created at its first use, delivered after each task or at the end."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from mixpanel_async import AsyncMixpanel, BlockingMixpanel, ConfigurationError, FlushResult

from ._base import MakeClient

_log = logging.getLogger("mixpanel_async")
_MAX_FLUSH_TIMEOUT: Final = 900.0


def check_client(client: object) -> None:
    """Check the option `client` of an integration.

    Raises:
        ConfigurationError: if it is neither a client nor a function.
    """
    if not (callable(client) or isinstance(client, AsyncMixpanel)):
        raise ConfigurationError(
            f"client must be an AsyncMixpanel or a function that returns one, not {type(client).__name__}"
        )


def check_flush_timeout(name: str, value: object) -> None:
    """Check an option in seconds.

    Raises:
        ConfigurationError: if it is not a number between 0.001 and 900.
    """
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0.001 <= value <= _MAX_FLUSH_TIMEOUT:  # type: ignore[operator]
        raise ConfigurationError(f"{name} must be between 0.001 and {_MAX_FLUSH_TIMEOUT:.0f} seconds, not {value!r}")


class FlushLog:
    """Logs deliveries that fail at the end of a task, once until one succeeds.

    Args:
        unit: what has ended, with its article: `a task`.
    """

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._is_failing = False

    def flushed(self, result: FlushResult) -> None:
        """Log what a flush has left in the queue."""
        pending = result.pending
        if not pending:
            self.succeeded()
            return
        were, they = ("record was", "it waits") if pending == 1 else ("records were", "they wait")
        text = "%d %s not delivered at the end of %s; %s in the queue; last error: %s"
        self._warn("flush_incomplete", text, pending, were, self._unit, they, result.last_error)

    def failed(self, error: Exception) -> None:
        """Log that a flush was not possible."""
        text = "no records were delivered at the end of %s: %s"
        self._warn("flush_failed", text, self._unit, type(error).__name__)

    def succeeded(self) -> None:
        """Note that nothing waits, so that the next failure is logged."""
        self._is_failing = False

    def _warn(self, event: str, text: str, *details: object) -> None:
        if not self._is_failing:
            self._is_failing = True
            _log.warning(text, *details, extra={"mixpanel": {"event": event}})


class WorkerClient:
    """Client of a process that runs tasks, in a background thread. It is created at its first use.

    Args:
        client: function that creates the client; or a client, which cannot be used after `close`.
        unit: what the process runs, with its article, for log lines: `a task`.

    Raises:
        ConfigurationError: if `client` is neither.
    """

    def __init__(self, client: MakeClient | AsyncMixpanel, unit: str = "a task") -> None:
        check_client(client)
        self.log = FlushLog(unit)
        self._make = client
        self._client = client if isinstance(client, AsyncMixpanel) else None
        self._blocking: BlockingMixpanel | None = None
        self._is_replaced = False
        self._lock = threading.RLock()

    @property
    def client(self) -> AsyncMixpanel:
        """The client, for event loops.

        Raises:
            ConfigurationError: if the client cannot be created.
        """
        with self._lock:
            if self._client is None:
                self._client = self._make() if not isinstance(self._make, AsyncMixpanel) else self._make
            return self._client

    def create(self) -> None:
        """Create the client, so that the error of an invalid configuration appears now.

        Raises:
            ConfigurationError: if the client cannot be created.
        """
        _ = self.client

    @property
    def blocking(self) -> BlockingMixpanel:
        """The client with blocking methods, for plain functions.

        Raises:
            ConfigurationError: if the client cannot be created.
            ClientClosedError: if the client is closed.
        """
        with self._lock:
            if self._blocking is None:
                self._blocking = self.client.start_in_thread()
            return self._blocking

    @contextmanager
    def using(self, client: AsyncMixpanel) -> Iterator[None]:
        """Replace the client inside a `with` block, for tests. The caller closes the replacement.

        Args:
            client: the replacement.
        """
        with self._lock:
            before = (self._client, self._blocking, self._is_replaced)
            self._client, self._blocking, self._is_replaced = client, client.in_thread(), True
        try:
            yield
        finally:
            with self._lock:
                self._client, self._blocking, self._is_replaced = before

    def start_in_fork(self) -> None:
        """Start the client in a process that may have inherited it."""
        # A thread of the parent may have held the lock.
        self._lock = threading.RLock()
        self.blocking.start()

    def flush(self, timeout: float) -> None:
        """Deliver what waits, if anything was tracked. A failure is logged.

        Args:
            timeout: seconds.
        """
        try:
            if self._client is None or not self._client.enabled or not self._client.stats().pending:
                self.log.succeeded()
                return
            self.log.flushed(self.blocking.flush(timeout))
        except Exception as error:  # noqa: BLE001  analytics must not fail a task
            self.log.failed(error)

    def close(self) -> None:
        """Deliver what waits, for at most `shutdown_timeout` seconds, and close the client if it was used."""
        with self._lock:
            client, blocking = self._client, self._blocking
            if self._is_replaced:
                return
            if client is not self._make:
                # A worker that starts again in this process, such as one of a test, has a new client.
                self._client = self._blocking = None
        if client is not None and client.enabled:
            (blocking or client.in_thread()).close()
