"""Requests whose caller waits for the response: identity calls, `track_immediate` and further endpoints."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from .._encoding.requests import GZIP_HEADER, MIN_COMPRESSED_BYTES, RequestEncoder
from .._encoding.responses import ReadReply, read_api_response, read_response
from .._http.api import Api, CallProgress
from .._http.retry import PolicyRule
from .._model.credentials import Auth, Secret
from .._model.errors import (
    ApiError,
    AuthenticationError,
    ClientClosedError,
    MixpanelException,
    PayloadTooLargeError,
    RateLimitError,
    TransportError,
)
from .._model.outcomes import Response
from .._model.records import DropReason, Record, RecordKind
from .._runtime.log_events import log_event
from .batch import Batch
from .staging import IN_REQUEST

if TYPE_CHECKING:
    from .sender import Sender

_NO_HEADERS: Final[Mapping[str, str]] = {}


class DirectSender:
    """Sends requests in background tasks of the client and waits for the response.

    A caller that is cancelled does not interrupt the request under way, but there is no further attempt.

    Args:
        sender: owns the background tasks of the client.
        api: sends requests.
        encoder: knows the endpoints of records.
        retry: attempts, delays and total time of a call.
    """

    def __init__(self, sender: Sender, api: Api, encoder: RequestEncoder, retry: PolicyRule) -> None:
        self._sender = sender
        self._api = api
        self._encoder = encoder
        self._retry = retry

    async def send(
        self,
        kind: RecordKind,
        item: bytes,
        *,
        secret: Secret | None = None,
        batch: Batch | None = None,
        timeout: float | None = None,
    ) -> None:
        """Send one message and wait until it is delivered.

        Args:
            kind: selects the endpoint.
            item: the encoded message.
            secret: project secret to authenticate with.
            batch: lease of the message, if the queue counts it. It is settled when the call ends.
            timeout: seconds for all attempts together; None for the limit of the retry rule.

        Raises:
            ApiError: Mixpanel refused the message.
            TransportError: there was no response.
            ClientClosedError: the client is closed, or was closed during the call.
        """
        encoder = self._encoder
        path, auth, accepts_gzip = encoder.endpoints[kind] if secret is None else encoder.endpoint(kind, secret)
        # A `Record` hides the token in it from tracebacks that show local variables.
        body, headers = Record(b"[%b]" % item), _NO_HEADERS
        if accepts_gzip and len(body) >= MIN_COMPRESSED_BYTES:
            body, headers = Record(encoder.compress(body)), GZIP_HEADER
        await self.request(
            "POST", path, auth=auth, headers=headers, body=body, read=read_response, batch=batch, timeout=timeout
        )

    async def request(
        self,
        method: str,
        path: str,
        *,
        auth: Auth,
        origin: str = "",
        query: str = "",
        headers: Mapping[str, str] = _NO_HEADERS,
        body: bytes = b"",
        read: ReadReply = read_api_response,
        batch: Batch | None = None,
        timeout: float | None = None,
    ) -> Response:
        """Send a request and return its response. `Api.request` describes the arguments and errors.

        Args:
            method: such as `PUT`.
            path: of the endpoint.
            auth: authentication.
            origin: scheme and host; empty for the origin of the client.
            query: query string that must not be logged.
            headers: further headers.
            body: bytes to send.
            read: turns the reply into an outcome.
            batch: lease to settle when the call ends, or None.
            timeout: seconds for all attempts together; None for the limit of the retry rule.

        Raises:
            ClientClosedError: the client is closed, or was closed during the call.
        """
        progress = CallProgress()
        call = partial(
            self._api.request,
            method,
            path,
            auth=auth,
            retry=self._retry if timeout is None else self._retry.within(timeout),
            origin=origin,
            query=query,
            headers=headers,
            body=body,
            read=read,
            progress=progress,
        )
        if batch is None:
            return await self._run(call, _do_nothing, progress)
        settle = partial(self._sender.settle_single, batch)
        batch.begin_request()
        requeue = partial(self._sender.requeue_single, batch)
        return await self._run(partial(self._settling, call, settle, requeue), requeue, progress)

    async def _settling(
        self,
        call: _ApiCall,
        settle: Callable[[DropReason | None, str], None],
        requeue: Callable[[], None],
        *,
        is_cancelled: Callable[[], bool],
    ) -> Response:
        """Make a call and end the lease of its message, however the call ends."""
        loop = self._sender.loop
        try:
            response = await call(is_cancelled=is_cancelled)
        except Exception as error:
            if isinstance(error, TransportError) and loop is not self._sender.loop:
                # The call is made again in the event loop that has taken over.
                requeue()
            else:
                settle(_drop_reason(error), str(error))
            raise
        except BaseException:
            # The event loop ends, or the client is closed. An event has an `$insert_id`, so it may be sent twice.
            requeue()
            raise
        settle(None, "")
        return response

    async def _run(self, call: _ApiCall, if_unstarted: Callable[[], None], progress: CallProgress) -> Response:
        """Run a call in a background task."""
        is_cancelled = False

        async def run() -> Response:
            loop = self._sender.loop
            try:
                inside = IN_REQUEST.set(True)
                try:
                    # In an event loop that has lost the client, no attempt can succeed.
                    return await call(is_cancelled=lambda: is_cancelled or self._sender.loop is not loop)
                finally:
                    IN_REQUEST.reset(inside)
            except MixpanelException as error:
                if is_cancelled:
                    log_event(
                        logging.WARNING,
                        "call_cancelled",
                        "a call was cancelled and then failed (%s)",
                        error,
                        error=str(error),
                    )
                raise

        try:
            return await self._sender.request(run, "mixpanel call", if_unstarted)
        except ClientClosedError as error:
            if error.uncertain and not progress.may_be_applied:
                raise ClientClosedError(f"{error.message}; it was not applied") from None
            raise
        except BaseException:
            is_cancelled = True
            raise


class _ApiCall(Protocol):
    """Call of `Api.request` with all other arguments bound."""

    def __call__(self, *, is_cancelled: Callable[[], bool]) -> Awaitable[Response]: ...


def _do_nothing() -> None:
    return None


def _drop_reason(error: BaseException) -> DropReason:
    """Return the loss reason of a record whose call raised this error."""
    if isinstance(error, AuthenticationError):
        return DropReason.UNAUTHORIZED
    if isinstance(error, PayloadTooLargeError):
        return DropReason.TOO_LARGE
    if isinstance(error, (TransportError, RateLimitError)) or (isinstance(error, ApiError) and error.status >= 500):
        return DropReason.EXHAUSTED
    return DropReason.REJECTED if isinstance(error, ApiError) else DropReason.CLOSED
