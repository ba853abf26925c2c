"""Exceptions of this package.

    MixpanelException
    ├── ConfigurationError      an option is wrong (also a ValueError)
    ├── ValidationError         an argument or property is wrong (also a ValueError)
    │   └── IdentityError       the identity call would have no effect in this project
    ├── QueueFullError          no room in the queue, under Overflow.RAISE or Overflow.WAIT
    ├── SpoolError              the spool could not be read or written
    ├── OutboxError             the outbox could not be reached, or refused
    ├── ClientClosedError       the client is closed (also a RuntimeError)
    ├── TransportError          there is no response
    └── ApiError                Mixpanel refused the request
        ├── AuthenticationError     401, 402, 403 or 407
        ├── RateLimitError          429
        └── PayloadTooLargeError    413

An error never contains a credential, a header, a URL or a payload.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedRecord:
    """One record that Mixpanel refused, with the details of its response.

    Args:
        index: position of the record in the request.
        field: path of the invalid property, or an empty string if Mixpanel did not name one.
        message: Mixpanel's message, shortened to 200 characters.
        insert_id: `$insert_id` of the record, if Mixpanel named it.
    """

    index: int
    field: str
    message: str
    insert_id: str | None = None


class MixpanelException(Exception):  # noqa: N818  the official SDK's name
    """Base class of all exceptions; the official SDK's only exception has the same name."""

    def __reduce__(self) -> tuple[Any, ...]:
        # The default calls the class with `args`, which do not contain the keyword arguments.
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[MixpanelException], args: tuple[Any, ...], state: dict[str, Any]) -> MixpanelException:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class ConfigurationError(MixpanelException, ValueError):
    """An option, or a combination of options, is invalid."""


class ValidationError(MixpanelException, ValueError):
    """An argument or property cannot be sent. Raised at the call, before anything is queued.

    Args:
        path: path of the value, such as `properties.cart[2].price`.
        problem: reason why it is invalid. Never contains the value.
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(path, problem)
        self.path = path
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}"


class IdentityError(ValidationError):
    """The identity call would be accepted and then ignored by Mixpanel. Arguments as in `ValidationError`."""


class QueueFullError(MixpanelException):
    """The queue is full; the record was not accepted.

    Args:
        pending: number of records in the queue.
        pending_bytes: their encoded size.
        spool: path of the spool if its disk or file has no room; otherwise empty.
    """

    def __init__(self, pending: int, pending_bytes: int, spool: str = "") -> None:
        super().__init__(pending, pending_bytes, *([spool] if spool else []))
        self.pending = pending
        self.pending_bytes = pending_bytes
        self.spool = spool

    def __str__(self) -> str:
        if self.spool:
            return f"{self.spool}: the disk of the spool is full, or the file has reached max_bytes; {self._waiting}"
        return f"the queue is full: {self._waiting}"

    @property
    def _waiting(self) -> str:
        are = "is" if self.pending == 1 else "are"
        return f"{count_of(self.pending, 'record')} in {count_of(self.pending_bytes, 'byte')} {are} waiting"


class SpoolError(MixpanelException):
    """The spool could not be read or written.

    Args:
        message: location of the spool and the reason.
        uncertain: True if the record may still be written and sent, False if it was not accepted; None if the call
            concerned no record.
        is_damaged: whether the content of the file is damaged.
    """

    def __init__(self, message: str, *, uncertain: bool | None = False, is_damaged: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.uncertain = uncertain
        self.is_damaged = is_damaged

    def __str__(self) -> str:
        if self.uncertain is None:
            return self.message
        tail = "it may still be written and sent" if self.uncertain else "nothing was accepted"
        return f"{self.message}; {tail}"


class OutboxError(MixpanelException):
    """The outbox could not be reached, or refused a command.

    Args:
        message: reason, without addresses that hold a password.
        uncertain: whether the command may have been carried out.
        refused: whether the engine refuses until its settings or the options are changed, such as a wrong password.
    """

    def __init__(self, message: str, *, uncertain: bool = False, refused: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.uncertain = uncertain
        self.refused = refused


class ClientClosedError(MixpanelException, RuntimeError):
    """The client is closed, or the call needs an event loop and none is running.

    Args:
        message: reason.
        uncertain: True if the client was closed during the call and it is unknown whether the call was applied.
    """

    def __init__(self, message: str, *, uncertain: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.uncertain = uncertain

    def __str__(self) -> str:
        return f"{self.message}; it is unknown whether the call was applied" if self.uncertain else self.message


class TransportError(MixpanelException):
    """There was no response from Mixpanel within the allowed attempts and time.

    Args:
        message: reason of the last failure.
        endpoint: path of the request, without its query.
        attempts: number of requests that were started.
        uncertain: True if a request may have reached Mixpanel and it is unknown whether it was applied.
    """

    def __init__(self, message: str, *, endpoint: str, attempts: int, uncertain: bool) -> None:
        super().__init__(message)
        self.message = message
        self.endpoint = endpoint
        self.attempts = attempts
        self.uncertain = uncertain
        self.status: int | None = None

    def __str__(self) -> str:
        tail = "; it is unknown whether it was applied" if self.uncertain else "; it was not applied"
        return f"{self.endpoint}: {self.message} (after {count_of(self.attempts, 'attempt')}{tail})"


class ApiError(MixpanelException):
    """Mixpanel refused the request.

    Args:
        message: Mixpanel's message, shortened and with every credential masked.
        endpoint: path of the request, without its query.
        attempts: number of requests that were started.
        status: HTTP status of the last response.
        failed_records: the records that Mixpanel named.
        retry_after: seconds to wait, if Mixpanel sent `Retry-After`.
        uncertain: True if one of the attempts, such as one that ended with 500, may have been applied.
    """

    def __init__(
        self,
        message: str,
        *,
        endpoint: str,
        attempts: int,
        status: int,
        failed_records: Sequence[FailedRecord] = (),
        retry_after: float | None = None,
        uncertain: bool = False,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.endpoint = endpoint
        self.attempts = attempts
        self.status = status
        self.failed_records = tuple(failed_records)
        self.retry_after = retry_after
        self.uncertain = uncertain

    def __str__(self) -> str:
        return f"{self.endpoint}: HTTP {self.status}: {self.message} (after {count_of(self.attempts, 'attempt')})"


class AuthenticationError(ApiError):
    """Mixpanel or a proxy refused the credentials (401, 402, 403, 407). Arguments as in `ApiError`."""


class RateLimitError(ApiError):
    """The project exceeded its rate limit (429) for longer than the call may wait. Arguments as in `ApiError`."""


class PayloadTooLargeError(ApiError):
    """The request is larger than Mixpanel accepts (413). Arguments as in `ApiError`."""


E = TypeVar("E", bound=BaseException)


def without_traceback(error: E) -> E:
    """Return the error without its traceback, cause and context.

    Error reporters show the local variables of every frame. Frames that encode a record or read options hold the token.
    """
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def raise_configuration_error(text: str) -> NoReturn:
    """Raise a ConfigurationError. The text must not contain a value that may be secret."""
    raise ConfigurationError(text)


def show_text(value: object) -> str:
    """Return a value that is no secret for a message: a shortened string, or the type of anything else."""
    return repr(value[:40]) if isinstance(value, str) else type(value).__name__


def count_of(count: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun: `1 record`, `2 records`.

    Args:
        count: the number.
        one: the noun, and any verb, after 1: `record was`.
        many: the same after any other number; by default `one` with an `s`.
    """
    return f"{count} {one if count == 1 else many or f'{one}s'}"
