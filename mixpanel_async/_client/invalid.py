"""Policies for data that Mixpanel would not accept: raise the error, drop the record, or ignore the call."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from inspect import currentframe
from typing import TYPE_CHECKING, Final

from .._model.config import ClientOptions
from .._model.errors import ConfigurationError, MixpanelException, ValidationError, without_traceback
from .._model.interruption import raise_interruption
from .._model.records import DropReason, RecordKind, RefusedRecord
from .._runtime.log_events import log_event

if TYPE_CHECKING:
    from .._delivery.lanes import Lane
    from .._delivery.queue import Queue

_PACKAGE: Final = __name__.partition(".")[0]
# Code that runs coroutines for others. All tasks of a program share a call site there.
_RUNNERS: Final = frozenset({"anyio", "asyncio", "concurrent", "threading", "trio"})
_MAX_SITES: Final = 1_000


class InvalidData:
    """Policy `raise`: the call raises the error."""

    __slots__ = ()

    def refuse(self, kind: RecordKind, error: MixpanelException) -> None:  # noqa: ARG002  used by other policies
        """Handle the invalid arguments of a call that queues a record. Call it outside of `except`.

        Args:
            kind: destination of the record.
            error: error for the caller, usually a `ValidationError`.

        Raises:
            MixpanelException: the error, without its traceback.
        """
        raise without_traceback(error)

    def refuse_awaited(self, error: MixpanelException) -> None:
        """Handle the invalid arguments of a call that waits for Mixpanel's response.

        Raises:
            MixpanelException: the error, without its traceback.
        """
        raise without_traceback(error)

    def keep(self, error: MixpanelException) -> ValidationError | None:
        """Handle invalid properties of `bind`.

        Returns:
            The error for each later event; None if there is none.

        Raises:
            MixpanelException: the error, without its traceback.
        """
        raise without_traceback(error)


class IgnoredData(InvalidData):
    """Policy of a disabled client: nothing is sent, so nothing is refused."""

    __slots__ = ()

    def refuse(self, kind: RecordKind, error: MixpanelException) -> None:
        """Do nothing."""

    def refuse_awaited(self, error: MixpanelException) -> None:
        """Do nothing."""

    def keep(self, error: MixpanelException) -> None:
        """Do nothing."""


class DroppedData(InvalidData):
    """Policy `drop`: the record is counted and reported, and the call returns.

    Calls that wait for Mixpanel's response raise the error: they return only if Mixpanel has accepted the request.

    Args:
        queue: counts the records and reports them to `on_drop`.
        lanes: lane of each kind of record.
    """

    __slots__ = ("_is_full", "_lanes", "_queue", "_sites")

    def __init__(self, queue: Queue, lanes: Mapping[RecordKind, Lane]) -> None:
        self._queue = queue
        self._lanes = lanes
        self._sites: dict[tuple[str, str], object] = {}
        self._is_full = False

    def refuse(self, kind: RecordKind, error: MixpanelException) -> None:
        """Drop the record with the reason `invalid`.

        Raises:
            ClientClosedError: if the client is closed.
        """
        record = RefusedRecord.of(_as_validation_error(error))
        self._queue.discard(self._lanes[kind], record, DropReason.INVALID)
        self._log_once(kind, *record.read())

    def keep(self, error: MixpanelException) -> ValidationError:
        """Return the error, for which later events are dropped, so that each is counted."""
        return _as_validation_error(without_traceback(error))

    def _log_once(self, kind: RecordKind, path: str, problem: str) -> None:
        """Log the problem, unless that was done for this call site."""
        site, is_shared = _call_site()
        key = (site, path if is_shared else "")
        # Each mark is set before logging: a log handler that tracks an invalid event may call this method again.
        if len(self._sites) >= _MAX_SITES and key not in self._sites:
            if not self._is_full:
                self._is_full = True
                text = "invalid data comes from more than %d call sites; no further ones are logged"
                log_event(logging.WARNING, "invalid_data_unlogged", text, _MAX_SITES, sites=_MAX_SITES)
            return
        mark = object()
        # One step, so that of several threads only one logs.
        if self._sites.setdefault(key, mark) is mark:
            log_event(
                logging.WARNING, "invalid_data",
                "invalid data is being dropped: %s: %s (called at %s; logged once for each call site)",
                path, problem, site,
                kind=kind.value, path=path, site=site,
            )  # fmt: skip


def make_policy(options: ClientOptions, queue: Queue, lanes: Mapping[RecordKind, Lane]) -> InvalidData:
    """Return the policy of a client."""
    if not options.enabled:
        return IgnoredData()
    return DroppedData(queue, lanes) if options.invalid == "drop" else InvalidData()


def as_refusal(error: Exception) -> MixpanelException:
    """Return the error for arguments that cannot be encoded; a user's types may raise anything.

    Raises:
        Exception: the error itself, if it does not come from the arguments.
    """
    raise_interruption(error)
    return error if isinstance(error, MixpanelException) else unreadable_arguments(error)


def unreadable_arguments(error: Exception) -> ValidationError:
    """Return the error for an argument whose own methods raise."""
    return ValidationError("arguments", f"cannot be read: reading them raised {type(error).__name__}")


def _as_validation_error(error: MixpanelException) -> ValidationError:
    if isinstance(error, ValidationError):
        return error
    return (
        ValidationError("arguments", str(error)) if type(error) is ConfigurationError else unreadable_arguments(error)
    )


def _call_site() -> tuple[str, bool]:
    """Return file and line of the caller outside of this package, and whether other callers share them."""
    frame = currentframe()
    module = _PACKAGE
    while frame is not None and module == _PACKAGE:
        frame = frame.f_back
        module = "" if frame is None else str(frame.f_globals.get("__name__")).partition(".")[0]
    if frame is None:
        return "an unknown line", True
    return f"{frame.f_code.co_filename}:{frame.f_lineno}", module in _RUNNERS
