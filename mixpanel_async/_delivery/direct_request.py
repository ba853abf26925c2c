"""Messages that are sent at once: identity calls and `track_immediate`. Their caller waits for the response."""

from __future__ import annotations

import logging
from collections.abc import Callable

from .._encoding.requests import GZIP_HEADER, MIN_COMPRESSED_BYTES, RequestEncoder
from .._encoding.responses import read_response
from .._http.api import Api
from .._http.retry import RetryRule
from .._model.credentials import Secret
from .._model.errors import (
    ApiError,
    AuthenticationError,
    ClientClosedError,
    PayloadTooLargeError,
    RateLimitError,
    TransportError,
)
from .._model.records import DropReason, RecordKind
from .lanes import Batch
from .queue import IN_REQUEST
from .sender import Sender

_log = logging.getLogger("mixpanel_async")


class DirectSender:
    """Sends single messages and waits for the response.

    Args:
        sender: owns the background tasks of the client.
        api: sends requests.
        encoder: knows the endpoints.
        retry: attempts, delays and total time of a call.
    """

    def __init__(self, sender: Sender, api: Api, encoder: RequestEncoder, retry: RetryRule) -> None:
        self._sender = sender
        self._api = api
        self._encoder = encoder
        self._retry = retry

    async def send(
        self, kind: RecordKind, item: bytes, *, secret: Secret | None = None, batch: Batch | None = None
    ) -> None:
        """Send one message in a background task and wait until it is delivered.

        A caller that is cancelled does not interrupt the request under way, but there is no further attempt.

        Args:
            kind: selects the endpoint.
            item: the encoded message.
            secret: project secret to authenticate with.
            batch: lease of the message, if the queue counts it; it is settled when the call ends.

        Raises:
            ApiError: Mixpanel refused the message.
            TransportError: there was no response.
            ClientClosedError: the client is closed, or was closed during the call.
        """
        is_cancelled = False

        def settle(reason: DropReason | None = DropReason.CLOSED, message: str = "") -> None:
            if batch is not None:
                self._sender.settle_single(batch, reason, message)

        async def work() -> None:
            reason: DropReason | None = DropReason.CLOSED
            message = ""
            try:
                await self._request(kind, item, secret, lambda: is_cancelled)
                reason = None
            except Exception as error:
                reason, message = _drop_reason(error), str(error)
                if is_cancelled:
                    _log.warning(
                        "a call was cancelled and it is unknown whether it was applied; it ended with: %s", error
                    )
                raise
            finally:
                settle(reason, message)

        if batch is not None:
            batch.is_request_begun = True
        try:
            task = self._sender.spawn(work, f"mixpanel {kind.value}", settle)
        except ClientClosedError:
            settle()
            raise
        try:
            await task.result()
        except BaseException:
            is_cancelled = True
            raise

    async def _request(
        self, kind: RecordKind, item: bytes, secret: Secret | None, is_cancelled: Callable[[], bool]
    ) -> None:
        encoder = self._encoder
        path, auth, accepts_gzip = encoder.endpoints[kind] if secret is None else encoder.endpoint(kind, secret)
        body = b"[%b]" % item
        is_compressed = accepts_gzip and len(body) >= MIN_COMPRESSED_BYTES
        inside = IN_REQUEST.set(True)
        try:
            await self._api.request(
                "POST",
                path,
                auth=auth,
                retry=self._retry,
                headers=GZIP_HEADER if is_compressed else {},
                body=encoder.compress(body) if is_compressed else body,
                read=read_response,
                is_cancelled=is_cancelled,
            )
        finally:
            IN_REQUEST.reset(inside)


def _drop_reason(error: BaseException) -> DropReason:
    """Return the reason under which a record is counted whose call raised this error."""
    if isinstance(error, AuthenticationError):
        return DropReason.UNAUTHORIZED
    if isinstance(error, PayloadTooLargeError):
        return DropReason.TOO_LARGE
    if isinstance(error, (TransportError, RateLimitError)) or (isinstance(error, ApiError) and error.status >= 500):
        return DropReason.EXHAUSTED
    return DropReason.REJECTED if isinstance(error, ApiError) else DropReason.CLOSED
