"""Records to a request: endpoint, authentication, JSON framing of bytes that are ready, gzip."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable
from typing import Final
from urllib.parse import quote

from .._model.config import VERSION
from .._model.credentials import Secret, ServiceAccountCredentials, basic_auth
from .._model.outcomes import Request
from .._model.records import RecordKind
from .batch_body import BatchBody, Compressor

USER_AGENT: Final = f"mixpanel-async/{VERSION}"
# A small body costs more to compress than it saves on the wire.
_MIN_COMPRESSED_BYTES: Final = 1024
# https://docs.mixpanel.com/reference/profile-set: /engage takes no gzip; of /groups nothing is said.
_GZIPPED: Final = frozenset({"/track", "/import"})
# A shorter token is none of Mixpanel's, whose have 32 digits, and may be a word that an answer needs.
_MIN_TOKEN_LENGTH: Final = 8
_PATHS: Final = {
    RecordKind.EVENTS: "/track",
    RecordKind.IDENTITY: "/track",
    RecordKind.IMPORTS: "/import",
    RecordKind.PEOPLE: "/engage",
    RecordKind.GROUPS: "/groups",
}


def zlib_compressor() -> Compressor:
    """gzip at its fastest level."""
    return zlib.compressobj(1, zlib.DEFLATED, 16 + zlib.MAX_WBITS)


def fastest_compressor() -> tuple[Callable[[], Compressor], int]:
    """The fastest gzip at hand, and the body size from which one call to it takes over a millisecond.

    Returns:
        isal's, if the extra `speedups` is installed, else zlib's.
    """
    try:
        from isal import isal_zlib  # noqa: PLC0415  an extra: imported only when a client is made
    except ImportError:
        return zlib_compressor, 64 * 1024

    def isal_packer() -> Compressor:
        packer: Compressor = isal_zlib.compressobj(1, isal_zlib.DEFLATED, 16 + zlib.MAX_WBITS)
        return packer

    return isal_packer, 512 * 1024


class RequestEncoder:
    """Knows how this client's requests look.

    Args:
        token: the project's token, which also signs imports when there is nothing better.
        credentials: the service account, if there is one.
        events_by_import: ordinary events go to `/import`.
        new_packer: gzip.
    """

    __slots__ = ("credentials", "events_by_import", "new_compressor", "token")

    def __init__(
        self,
        *,
        token: str,
        credentials: ServiceAccountCredentials | None,
        events_by_import: bool,
        new_compressor: Callable[[], Compressor],
    ) -> None:
        self.token = token
        self.credentials = credentials
        self.events_by_import = events_by_import
        self.new_compressor = new_compressor

    def request(self, kind: RecordKind, records: BatchBody, *, secret: Secret | None = None) -> Request:
        """One POST for these records.

        Args:
            kind: where they go.
            records: their encoded bytes, at least one.
            secret: a project secret that replaces the token where the client has no service account.
        """
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": USER_AGENT}
        # ip=0 is what the official SDK sends with everything: Mixpanel must not locate users at this server.
        query = "verbose=1&ip=0"
        path = _PATHS[kind]
        if kind is RecordKind.IMPORTS or (kind is RecordKind.EVENTS and self.events_by_import):
            path, query = "/import", "strict=1&ip=0"
            if self.credentials is not None:
                query += f"&project_id={quote(self.credentials.project_id, safe='')}"
            headers["Authorization"] = self._authorization(secret)
        if path in _GZIPPED and records.size >= _MIN_COMPRESSED_BYTES:
            headers["Content-Encoding"] = "gzip"
            body = records.compressed(self.new_compressor)
        else:
            body = records.body()
        return Request(path=f"{path}?{query}", token=self.token, headers=headers, body=body)

    def _authorization(self, secret: Secret | None) -> str:
        # The order that Mixpanel's Go SDK uses: service account, project secret, token.
        if self.credentials is not None:
            return basic_auth(self.credentials.username, self.credentials.secret)
        return basic_auth(self.token if secret is None else secret.reveal(), "")


def secrets_to_mask(request: Request) -> tuple[str, ...]:
    """What must not be shown even if the server repeats it: token and credentials, as sent, as written, in a URL."""
    token = request.token if len(request.token) >= _MIN_TOKEN_LENGTH else ""
    known = {token, quote(token, safe="")} - {""}
    sent = request.headers.get("Authorization", "").removeprefix("Basic ")
    if not sent:
        return tuple(known)
    user, _, password = base64.b64decode(sent).decode().partition(":")
    # Without a password the user is the project's secret or token; with one it is only a name.
    plain = password or user
    return tuple(known | {sent, plain, quote(plain, safe="")})
