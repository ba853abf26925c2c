"""Everything that this package raises on purpose.

    MixpanelException
    ├── ConfigurationError      an option is wrong (also a ValueError)
    ├── ValidationError         an argument or property is wrong (also a ValueError)
    │   └── IdentityError       the identity call would have no effect in this project
    ├── QueueFullError          no room in the queue, under Overflow.RAISE or Overflow.WAIT
    ├── SpoolError              the spool could not be read or written
    ├── ClientClosedError       the client is closed, or bound to another running event loop (also a RuntimeError)
    ├── TransportError          no answer could be had
    └── ApiError                Mixpanel answered, and refused
        ├── AuthenticationError     401, 402, 403 or 407
        ├── RateLimitError          429
        └── PayloadTooLargeError    413

An error names what was lost or refused; it never carries a credential, a header, a URL or a payload.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from .value import Value


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class FailedRecord(Value):
    """One record that Mixpanel refused, as it named it.

    Args:
        index: position in the request that was sent.
        field: path of the offending property, or an empty string if Mixpanel gave none.
        message: Mixpanel's words, shortened to 200 characters.
        insert_id: the record's `$insert_id` if Mixpanel named it.
    """

    index: int
    field: str
    message: str
    insert_id: str | None = None


class MixpanelException(Exception):  # noqa: N818  the official SDK's name
    """Root of the family; the official SDK's only error type has the same name."""

    def __reduce__(self) -> tuple[Any, ...]:
        # The default would call the class with `args`, which lack what is passed by name.
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[MixpanelException], args: tuple[Any, ...], state: dict[str, Any]) -> MixpanelException:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class ConfigurationError(MixpanelException, ValueError):
    """An option, or a combination of options, is out of bounds."""


class ValidationError(MixpanelException, ValueError):
    """An argument or property cannot be sent. Raised at the call, before anything is queued.

    Args:
        path: where it is, such as `properties.cart[2].price`.
        problem: what is wrong with it. Never the value itself.
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(path, problem)
        self.path = path
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}"


class IdentityError(ValidationError):
    """An identity call that Mixpanel would take and then ignore."""


class QueueFullError(MixpanelException):
    """The queue has no room for the record, which was not accepted.

    Args:
        pending: records held when it was refused.
        pending_bytes: their encoded size.
    """

    def __init__(self, pending: int, pending_bytes: int) -> None:
        super().__init__(pending, pending_bytes)
        self.pending = pending
        self.pending_bytes = pending_bytes

    def __str__(self) -> str:
        return f"the queue is full: {self.pending} records in {self.pending_bytes} bytes are waiting"


class SpoolError(MixpanelException):
    """The spool could not be read or written.

    Args:
        message: where the spool is, and what went wrong.
        uncertain: True if the record may yet reach the disk and be sent, False if it was not accepted; None if no
            record was to be taken.
        is_damaged: whether the file holds something else than it should.
    """

    def __init__(self, message: str, *, uncertain: bool | None = False, is_damaged: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.uncertain = uncertain
        self.is_damaged = is_damaged

    def __str__(self) -> str:
        if self.uncertain is None:
            return self.message
        tail = "it may yet be written and sent" if self.uncertain else "nothing was accepted"
        return f"{self.message}; {tail}"


class ClientClosedError(MixpanelException, RuntimeError):
    """The client takes nothing any more, or belongs to another event loop that is still running."""


class TransportError(MixpanelException):
    """No answer could be had from Mixpanel within the attempts and the time allowed.

    Args:
        message: what went wrong last.
        endpoint: path that was asked, without query.
        attempts: requests that were begun.
        uncertain: True if a request may have reached Mixpanel, so that it is unknown whether it was applied.
    """

    def __init__(self, message: str, *, endpoint: str, attempts: int, uncertain: bool) -> None:
        super().__init__(message)
        self.message = message
        self.endpoint = endpoint
        self.attempts = attempts
        self.uncertain = uncertain
        self.status: int | None = None

    def __str__(self) -> str:
        tail = "; it is unknown whether it was applied" if self.uncertain else ""
        return f"{self.endpoint}: {self.message} (after {_times(self.attempts)}{tail})"


class ApiError(MixpanelException):
    """Mixpanel answered and did not take the request.

    Args:
        message: Mixpanel's words, shortened and with every credential masked.
        endpoint: path that was asked, without query.
        attempts: requests that were begun.
        status: HTTP status of the last answer.
        failed_records: the records that Mixpanel named.
        retry_after: seconds that Mixpanel asked to wait, if it did.
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
    ) -> None:
        super().__init__(message)
        self.message = message
        self.endpoint = endpoint
        self.attempts = attempts
        self.status = status
        self.failed_records = tuple(failed_records)
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"{self.endpoint}: HTTP {self.status}: {self.message} (after {_times(self.attempts)})"


class AuthenticationError(ApiError):
    """Mixpanel does not accept the credentials (401, 402, 403, 407)."""


class RateLimitError(ApiError):
    """The project is over its rate limit (429), for longer than the call could wait."""


class PayloadTooLargeError(ApiError):
    """The request is larger than Mixpanel takes (413)."""


E = TypeVar("E", bound=BaseException)


def without_traceback(error: E) -> E:
    """The error without the frames that it came through and without what it was raised from.

    Error reporters show the locals of every frame, and those of the frames that make a record or take the options hold
    the token.
    """
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def raise_configuration_error(text: str) -> NoReturn:
    """Raise for an option that is out of bounds. The text must not repeat a value that could be secret."""
    raise ConfigurationError(text)


def _times(attempts: int) -> str:
    return "1 attempt" if attempts == 1 else f"{attempts} attempts"
