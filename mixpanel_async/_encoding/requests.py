"""Requests for encoded records: endpoint, authentication, headers, JSON array, gzip."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import quote

from .._model.credentials import Auth, Secret, ServiceAccountCredentials, signed_auth, token_auth
from .._model.outcomes import Request
from .._model.records import RecordKind
from .._model.version import VERSION

if TYPE_CHECKING:
    from .batch_body import BatchBody, Compressor

JSON_HEADERS: Final[Mapping[str, str]] = {
    "Content-Type": "application/json",
    "Accept": "application/json",
    "User-Agent": f"mixpanel-async/{VERSION}",
}
"""Headers of every request to Mixpanel."""
# A small body costs more to compress than it saves on the wire.
MIN_COMPRESSED_BYTES: Final = 1024
GZIP_HEADER: Final[Mapping[str, str]] = {"Content-Encoding": "gzip"}
# /engage does not accept gzip (https://docs.mixpanel.com/reference/profile-set). For /groups it is not documented.
_GZIPPED: Final = frozenset({"/track", "/import"})
_PATHS: Final = {
    RecordKind.EVENTS: "/track",
    RecordKind.IDENTITY: "/track",
    RecordKind.IMPORTS: "/import",
    RecordKind.PEOPLE: "/engage",
    RecordKind.GROUPS: "/groups",
}


def zlib_compressor() -> Compressor:
    """Return a gzip compressor of zlib's fastest level."""
    return zlib.compressobj(1, zlib.DEFLATED, 16 + zlib.MAX_WBITS)


def fastest_compressor() -> tuple[Callable[[], Compressor], int]:
    """Return a factory of gzip compressors, and the body size from which one call takes over a millisecond.

    The compressor is isal's if the extra `speedups` is installed, else zlib's.
    """
    try:
        from isal import isal_zlib  # noqa: PLC0415  an extra: imported only when a client is made
    except ImportError:
        return zlib_compressor, 64 * 1024

    def isal_compressor() -> Compressor:
        compressor: Compressor = isal_zlib.compressobj(1, isal_zlib.DEFLATED, 16 + zlib.MAX_WBITS)
        return compressor

    return isal_compressor, 512 * 1024


class Endpoint(NamedTuple):
    """Destination of one kind of record.

    Args:
        path: with its query string.
        auth: authentication.
        accepts_gzip: whether the endpoint takes compressed bodies.
    """

    path: str
    auth: Auth
    accepts_gzip: bool


class RequestEncoder:
    """Makes the requests of one client.

    Args:
        token: the project's token, which also authenticates imports if there are no better credentials.
        credentials: the service account, or None.
        events_by_import: send ordinary events to `/import`.
        new_compressor: makes a gzip compressor.
    """

    __slots__ = ("credentials", "endpoints", "events_by_import", "new_compressor", "token")

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
        self.endpoints = {kind: self.endpoint(kind) for kind in RecordKind}
        """Endpoints by kind, without a project secret."""

    def endpoint(self, kind: RecordKind, secret: Secret | None = None) -> Endpoint:
        """Return the endpoint of a kind of record. A project secret is used only without a service account."""
        path = _PATHS[kind]
        if kind is RecordKind.IMPORTS or (kind is RecordKind.EVENTS and self.events_by_import):
            # ip=0: without it, Mixpanel locates users at this server. The official SDK sends it always.
            query = "strict=1&ip=0"
            if self.credentials is not None:
                query += f"&project_id={quote(self.credentials.project_id, safe='')}"
            return Endpoint(f"/import?{query}", signed_auth(self.token, self.credentials, secret), accepts_gzip=True)
        return Endpoint(f"{path}?verbose=1&ip=0", token_auth(self.token), path in _GZIPPED)

    def request(self, kind: RecordKind, records: BatchBody, *, secret: Secret | None = None) -> Request:
        """Return one POST for a batch.

        Args:
            kind: kind of the records.
            records: the encoded records, at least one.
            secret: project secret that replaces the token if the client has no service account.
        """
        path, auth, accepts_gzip = self.endpoints[kind] if secret is None else self.endpoint(kind, secret)
        if is_compressed := accepts_gzip and records.size >= MIN_COMPRESSED_BYTES:
            body = records.compressed(self.new_compressor)
        else:
            body = records.body()
        headers = {**JSON_HEADERS, **auth.headers, **(GZIP_HEADER if is_compressed else {})}
        return Request(path=path, secrets=auth.secrets, headers=headers, body=body)

    def compress(self, body: bytes) -> bytes:
        """Return the body compressed with gzip."""
        compressor = self.new_compressor()
        return compressor.compress(body) + compressor.flush()
