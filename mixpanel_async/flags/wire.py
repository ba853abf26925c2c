"""Requests to `/flags` and `/flags/definitions`, and what their answers say.

Sources: Mixpanel's OpenAPI description of the feature flags API (read 2026-08-21) and, for what it leaves out, the
requests of the official SDK 5.4.1.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import quote, urlencode

from .._encoding.requests import USER_AGENT, secrets_to_mask
from .._model.config import VERSION
from .._model.credentials import ServiceAccountCredentials, basic_auth
from .._model.outcomes import Request, Response, TransportFailure
from .model import SelectedVariant, VariantSource

DEFINITIONS: Final = "/flags/definitions"
VARIANTS: Final = "/flags"

# As the official SDK's, which are asked for by what stands in front of Mixpanel's servers.
_HEADERS: Final[Mapping[str, str]] = {
    "Accept": "application/json",
    "Accept-Encoding": "gzip",
    "Content-Type": "application/json",
    "User-Agent": USER_AGENT,
    "X-Forwarded-Proto": "https",
    "X-Scheme": "https",
}
_SHOWN: Final = 500
_MAX_ETAG: Final = 1_000
# A URL, or the path and query of one: the query names a person.
_URL: Final = re.compile(r"""[^\s"'<>]*(?:://|\?[^\s"'<>]*=)[^\s"'<>]*""")


class ContextError(Exception):
    """A context that cannot be sent; the text says why, and repeats nothing of it."""


class ReplyError(Exception):
    """An answer that is not one that Mixpanel gives."""


class FlagsEncoder:
    """Knows how this client's requests for flags look.

    Args:
        token: the project's token, sent with every request; it signs them without a service account.
        credentials: the service account, if there is one.
        new_id: 32 hexadecimal digits, fresh with each call.
    """

    def __init__(self, token: str, credentials: ServiceAccountCredentials | None, new_id: Callable[[], str]) -> None:
        self._token = token
        self._new_id = new_id
        self._query = {"mp_lib": "python-async", "lib_version": VERSION, "token": token}
        if credentials is None:
            self._authorization = basic_auth(token, "")
        else:
            self._query["project_id"] = credentials.project_id
            self._authorization = basic_auth(credentials.username, credentials.secret)

    def definitions(self, max_bytes: int, etag: str | None) -> Request:
        """Ask for all definitions, unless they are still those that came with `etag`."""
        return self._request(DEFINITIONS, {}, max_bytes, {} if etag is None else {"If-None-Match": etag})

    def variants(self, context: Mapping[str, Any], flag_key: str | None, max_bytes: int) -> Request:
        """Ask for the variants that a context gets, of one flag or of all.

        Raises:
            ContextError: if the context is no JSON object.
        """
        try:
            text = json.dumps(context, separators=(",", ":"), allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ContextError(f"the context cannot be sent as JSON ({type(error).__name__})") from None
        parameters = {"context": text}
        if flag_key is not None:
            parameters["flag_key"] = flag_key
        return self._request(VARIANTS, parameters, max_bytes, {})

    def _request(self, path: str, parameters: Mapping[str, str], max_bytes: int, headers: Mapping[str, str]) -> Request:
        return Request(
            method="GET",
            path=path,
            query=urlencode({**self._query, **parameters}, quote_via=quote),
            headers={**_HEADERS, "Authorization": self._authorization, "traceparent": self._traceparent(), **headers},
            body=b"",
            max_response_bytes=max_bytes,
        )

    def _traceparent(self) -> str:
        # https://www.w3.org/TR/trace-context/: version, trace, span, and the flag that says "sampled".
        return f"00-{self._new_id()}-{self._new_id()[:16]}-01"

    def words(self, request: Request, reply: Response | TransportFailure) -> str:
        """What an answer that is no success says, in the official SDK's form, without credentials and URLs."""
        if isinstance(reply, TransportFailure):
            return reply.message
        text = reply.body.decode("utf-8", "replace").strip()
        # Masked before it is cut: half a secret is too much.
        for secret in (self._token, quote(self._token, safe=""), *secrets_to_mask(request)):
            text = text.replace(secret, "***")
        text = _URL.sub("***", text)
        text = "".join(char if char.isprintable() else " " for char in text[:_SHOWN])
        return f"HTTP {reply.status}: {text}" if text else f"HTTP {reply.status}"


def usable_etag(reply: Response) -> str | None:
    """What to ask with the next time, if it can be sent back as it came."""
    etag = reply.etag
    return etag if etag and len(etag) <= _MAX_ETAG and etag.isascii() and etag.isprintable() else None


def read_variants(body: bytes) -> dict[str, SelectedVariant | None]:
    """The variants in an answer of `/flags` by flag; None for one that is malformed.

    Raises:
        ReplyError: if it holds no variants at all.
    """
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise ReplyError("the answer is not JSON") from None
    flags = content.get("flags") if isinstance(content, dict) else None
    if not isinstance(flags, dict):
        raise ReplyError("the answer has no flags in it")
    return {key: _variant(found) for key, found in flags.items()}


def _variant(found: object) -> SelectedVariant | None:
    if not isinstance(found, dict) or "variant_value" not in found:
        return None
    key = found.get("variant_key")
    if not isinstance(key, (str, type(None))):
        return None
    return SelectedVariant(
        variant_value=found["variant_value"],
        variant_key=key,
        experiment_id=found.get("experiment_id"),
        is_experiment_active=found.get("is_experiment_active"),
        is_qa_tester=found.get("is_qa_tester"),
        variant_source=VariantSource.REMOTE,
    )
