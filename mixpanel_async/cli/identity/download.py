"""Raw export of a project, fetched in a few requests and kept in files, so that an interrupted download resumes.

Limits of Mixpanel's export: 60 requests per hour and 3 per second
(https://docs.mixpanel.com/reference/raw-event-export and /reference/rate-limits, read 2026-08-21). The days are divided
among at most 50 requests, one after the other, which leaves room for repetitions.
"""

from __future__ import annotations

import gzip
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Final

import httpx

from mixpanel_async import ConfigurationError

from ..importing.checkpoint import fingerprint

MAX_REQUESTS: Final = 50
"""Maximum number of requests into which a download is divided."""

_PATH: Final = "/api/2.0/export"
_HOSTS: Final = {"us": "data.mixpanel.com", "eu": "data-eu.mixpanel.com", "in": "data-in.mixpanel.com"}
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
_SECONDS_BETWEEN: Final = 0.34
_ATTEMPTS: Final = 6
# After HTTP 429, requests are possible again at the latest when the hour is over.
_LIMIT_SECONDS: Final = 600.0
_MAX_LIMIT_WAITS: Final = 7
_TIMEOUT: Final = httpx.Timeout(30.0, read=600.0)
_MAX_SHOWN: Final = 200
# A day ends last at UTC-12.
_DAY_ENDS_AFTER: Final = timedelta(hours=36)
_TEMPORARY: Final = frozenset({408, 500, 502, 503, 504})


class DownloadError(Exception):
    """The export cannot be downloaded. The files of earlier requests remain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportAccess:
    """Source of an export: host, project and credentials.

    Args:
        origin: scheme and host.
        user: user name of a service account, or the secret of the project.
        password: secret of the service account; empty with the secret of the project.
        project_id: project of the service account, or None.
    """

    origin: str
    user: str
    password: str
    project_id: str | None

    @property
    def project(self) -> str:
        """Short fingerprint of the project, for the names of its files."""
        return fingerprint(self.origin, self.project_id or self.user)[:8]


def export_access(variables: Mapping[str, str], *, allow_http: bool) -> ExportAccess:
    """Return the access of the environment variables that the client has too, and `MIXPANEL_API_SECRET`.

    Args:
        variables: environment variables, with those of the options.
        allow_http: accept `http://` for a host that is not this machine.

    Raises:
        ConfigurationError: if credentials are missing, or the region or host is invalid.
    """
    names = ("SERVICE_ACCOUNT_USERNAME", "SERVICE_ACCOUNT_SECRET", "PROJECT_ID", "API_SECRET")
    user, password, project_id, secret = (variables.get(f"MIXPANEL_{name}", "").strip() for name in names)
    if user and not (password and project_id):
        raise ConfigurationError("a service account needs its secret and the project id")
    if not user and not secret:
        raise ConfigurationError(
            "reading the project needs a service account, or the secret of the project: set "
            "MIXPANEL_SERVICE_ACCOUNT_USERNAME, MIXPANEL_SERVICE_ACCOUNT_SECRET and MIXPANEL_PROJECT_ID, or "
            "MIXPANEL_API_SECRET"
        )
    origin = _origin(variables, allow_http=allow_http)
    if user:
        return ExportAccess(origin=origin, user=user, password=password, project_id=project_id)
    return ExportAccess(origin=origin, user=secret, password="", project_id=None)


def _origin(variables: Mapping[str, str], *, allow_http: bool) -> str:
    region = variables.get("MIXPANEL_REGION", "").strip().lower() or "us"
    host = variables.get("MIXPANEL_API_HOST", "").strip()
    if not host:
        if region not in _HOSTS:
            raise ConfigurationError(f"region must be us, eu or in, not {region!r}")
        return f"https://{_HOSTS[region]}"
    try:
        url = httpx.URL(host if "://" in host else f"https://{host}")
    except httpx.InvalidURL:
        raise ConfigurationError("the API host is no valid host name or origin") from None
    if url.scheme not in {"http", "https"} or not url.host or url.userinfo or url.query or url.path not in {"", "/"}:
        raise ConfigurationError("the API host must be a host name, or an origin such as https://data.mixpanel.com")
    if url.scheme == "http" and url.host not in _LOOPBACK and not allow_http:
        raise ConfigurationError("the API host must use https://, or pass --allow-http")
    return str(url).rstrip("/")


class ExportDownload:
    """Download of the events of a range of days.

    Args:
        access: where to fetch it, and the credentials.
        directory: directory of the files, created if it does not exist.
        report: receives a line for each request.
        report_wait: receives a line for each wait, which may be ten minutes; by default as `report`.
        sleep: waits for a number of seconds.
        transport: connections, for tests; by default those of httpx.
    """

    def __init__(
        self,
        access: ExportAccess,
        directory: Path,
        *,
        report: Callable[[str], None],
        report_wait: Callable[[str], None] | None = None,
        sleep: Callable[[float], None] = time.sleep,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._access = access
        self._directory = directory
        self._report = report
        self._report_wait = report_wait or report
        self._sleep = sleep
        self._transport = transport

    def run(self, first: date, last: date) -> list[Path]:
        """Fetch the missing files, and return all in order.

        A file that was written before its last day had ended everywhere on earth is fetched again.

        Args:
            first: first day, in the time zone of the project.
            last: last day.

        Raises:
            DownloadError: if the export is refused, or a request fails repeatedly.
            OSError: if a file cannot be written.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        paths = []
        with httpx.Client(timeout=_TIMEOUT, transport=self._transport) as client:
            is_first = True
            for start, end in day_ranges(first, last):
                path = self._directory / f"export-{self._access.project}-{start}_{end}.ndjson.gz"
                paths.append(path)
                if _is_complete(path, end):
                    self._report(f"{path.name} is there already")
                    continue
                if not is_first:
                    self._sleep(_SECONDS_BETWEEN)
                is_first = False
                self._fetch_repeatedly(client, start, end, path)
        return paths

    def _fetch_repeatedly(self, client: httpx.Client, start: date, end: date, path: Path) -> None:
        failures = limits = 0
        while True:
            self._report(f"fetching {start} to {end}")
            try:
                wait = self._fetch(client, start, end, path)
            except (httpx.TransportError, httpx.DecodingError, _IncompleteError) as error:
                failures += 1
                if failures == _ATTEMPTS:
                    raise DownloadError(f"{failures} attempts failed, the last with: {_words(error)}") from None
                wait = 2.0**failures
            else:
                if wait is None:
                    return
                limits += 1
                if limits > _MAX_LIMIT_WAITS:
                    raise DownloadError("the export is limited (HTTP 429) for more than an hour; try again later")
            self._report_wait(f"waiting {wait:,.0f} s before the next attempt")
            self._sleep(wait)

    def _fetch(self, client: httpx.Client, start: date, end: date, path: Path) -> float | None:
        """Fetch one file. Return None, or the seconds to wait if the requests of this hour are used up."""
        query = {"from_date": str(start), "to_date": str(end), "time_in_ms": "true"}
        if self._access.project_id is not None:
            query["project_id"] = self._access.project_id
        auth = httpx.BasicAuth(self._access.user, self._access.password)
        with client.stream("GET", self._access.origin + _PATH, params=query, auth=auth) as response:
            if response.status_code == 429:
                return _retry_after(response)
            if response.status_code in _TEMPORARY:
                raise _IncompleteError(f"HTTP {response.status_code}")
            if response.status_code != 200:
                raise DownloadError(self._refusal(response))
            part = path.with_suffix(".part")
            _write(part, response.iter_bytes())
        os.replace(part, path)
        return None

    def _refusal(self, response: httpx.Response) -> str:
        text = " ".join(response.read().decode("utf-8", "replace").split())
        for secret in (self._access.password, self._access.user):
            text = text.replace(secret, "***") if secret else text
        hint = ": check the credentials and the project id" if response.status_code in {401, 402, 403} else ""
        return f"the export was refused with HTTP {response.status_code}{hint} ({text[:_MAX_SHOWN]})"


class _IncompleteError(Exception):
    """A response that ended too early, or a temporary failure of the server."""


def day_ranges(first: date, last: date) -> Iterator[tuple[date, date]]:
    """Yield the first and the last day of each request: one day each, or several if there are many."""
    days = (last - first).days + 1
    step = -(-days // MAX_REQUESTS)
    for offset in range(0, days, step):
        start = first + timedelta(days=offset)
        yield start, min(last, start + timedelta(days=step - 1))


def _is_complete(path: Path, end: date) -> bool:
    """Return whether a file is there that was written after its last day had ended in every time zone."""
    try:
        written = datetime.fromtimestamp(path.stat().st_mtime, timezone.utc)
    except FileNotFoundError:
        return False
    return written >= datetime.combine(end, datetime.min.time(), timezone.utc) + _DAY_ENDS_AFTER


def _write(path: Path, chunks: Iterator[bytes]) -> None:
    """Write a response as gzip. A response that ends in the middle of an event is incomplete."""
    end = b""
    with gzip.open(path, "wb", compresslevel=1) as file:
        for chunk in chunks:
            file.write(chunk)
            end = (end + chunk)[-_MAX_SHOWN:]
    # Mixpanel ends an export that fails on its side with a line that is no event.
    if end.strip() and not end.rstrip().endswith(b"}"):
        raise _IncompleteError("the response is incomplete")


def _retry_after(response: httpx.Response) -> float:
    text = response.headers.get("Retry-After", "")
    is_number = text.isascii() and text.isdigit() and int(text[:9]) > 0
    return min(float(text[:9]), _LIMIT_SECONDS) if is_number else _LIMIT_SECONDS


def _words(error: Exception) -> str:
    return str(error) if isinstance(error, _IncompleteError) else type(error).__name__
