"""Requests to `/flags` and `/flags/definitions`.

Sources: Mixpanel's OpenAPI description of the feature flags API (read 2026-08-21) and, for details that it does not
cover, the requests of the official SDK 5.4.1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final
from urllib.parse import quote, urlencode

from .._encoding.responses import read_api_response
from .._http.api import Api
from .._http.retry import PolicyRule
from .._model.config import RetryPolicy
from .._model.credentials import ServiceAccountCredentials, signed_auth
from .._model.outcomes import Response, Retry
from .._model.version import VERSION
from .model import SelectedVariant
from .variants import read_variants

# Those of the official SDK. Proxies before Mixpanel's servers expect them.
_HEADERS: Final[Mapping[str, str]] = {"Accept-Encoding": "gzip", "X-Forwarded-Proto": "https", "X-Scheme": "https"}
_MAX_ETAG: Final = 1_000


class FlagsEndpoints:
    """The two endpoints of feature flags.

    Args:
        api: sends requests.
        token: the project's token. It is in every query, and authenticates without a service account.
        credentials: the service account, or None.
        new_id: returns 32 fresh hexadecimal digits.
        timeout: seconds for one call, all of its attempts included.
        max_bytes: size of the largest response that is accepted.
    """

    def __init__(
        self,
        api: Api,
        token: str,
        credentials: ServiceAccountCredentials | None,
        new_id: Callable[[], str],
        *,
        timeout: float,
        max_bytes: int,
    ) -> None:
        self._api = api
        self._new_id = new_id
        self._max_bytes = max_bytes
        self._once = PolicyRule(RetryPolicy(attempts=1, total_timeout=timeout))
        self._reconnect = _ReconnectRule(timeout)
        self._query = {"mp_lib": "python-async", "lib_version": VERSION, "token": token}
        if credentials is not None:
            self._query["project_id"] = credentials.project_id
        self._auth = signed_auth(token, credentials)

    async def definitions(self, etag: str | None) -> Response:
        """Fetch all definitions.

        Args:
            etag: of the definitions that are in use. If they are still current, the response has status 304.

        Raises:
            ApiError, TransportError: the request failed.
        """
        return await self._api.request(
            "GET",
            "/flags/definitions",
            auth=self._auth,
            retry=self._once,
            query=self._encoded({}),
            headers=self._headers() if etag is None else {**self._headers(), "If-None-Match": etag},
            read=partial(read_api_response, accepted=(200,) if etag is None else (200, 304)),
            max_response_bytes=self._max_bytes,
        )

    async def variants(self, context: str, flag_key: str | None) -> dict[str, SelectedVariant | None]:
        """Fetch the variants of one flag, or of all flags, for a context.

        Args:
            context: as JSON.
            flag_key: name of the flag; None for all flags.

        Returns:
            Variants by flag; None for a malformed one.

        Raises:
            ResponseError: the response cannot be understood.
            ApiError, TransportError: the request failed.
        """
        parameters = {"context": context, **({} if flag_key is None else {"flag_key": flag_key})}
        response = await self._api.request(
            "GET",
            "/flags",
            auth=self._auth,
            retry=self._reconnect,
            query=self._encoded(parameters),
            headers=self._headers(),
            max_response_bytes=self._max_bytes,
        )
        return read_variants(response.body)

    def _encoded(self, parameters: Mapping[str, str]) -> str:
        return urlencode({**self._query, **parameters}, quote_via=quote)

    def _headers(self) -> dict[str, str]:
        # https://www.w3.org/TR/trace-context/: version, trace id, span id, and the flag for "sampled".
        return {**_HEADERS, "traceparent": f"00-{self._new_id()}-{self._new_id()[:16]}-01"}


class _ReconnectRule:
    """Retry rule of remote evaluation: one more attempt if the connection failed in the first half of the time.

    The usual cause is an idle connection that the server has closed.
    """

    def __init__(self, timeout: float) -> None:
        self.total_timeout = timeout

    def delay(self, failure: Retry, attempts: int, elapsed: float, random: float) -> float | None:  # noqa: ARG002
        is_connection_lost = failure.status is None and failure.applied
        return 0.0 if attempts == 1 and is_connection_lost and elapsed < self.total_timeout / 2 else None


def usable_etag(response: Response) -> str | None:
    """Return the response's ETag if it can be sent back unchanged, else None."""
    etag = response.etag
    return etag if etag and len(etag) <= _MAX_ETAG and etag.isascii() and etag.isprintable() else None
