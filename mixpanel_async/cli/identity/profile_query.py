"""User profiles of some people, read through Mixpanel's profile query.

Sources: https://docs.mixpanel.com/reference/engage-query and /reference/rate-limits (read 2026-08-21): 60 requests per
hour.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final

import httpx
import orjson

from .download import DownloadError, ExportAccess

_PATH: Final = "/api/2.0/engage"
# Hosts of queries by host of exports. Other hosts, such as an emulator, serve both.
_HOSTS: Final[Mapping[str, str]] = {
    "https://data.mixpanel.com": "https://mixpanel.com",
    "https://data-eu.mixpanel.com": "https://eu.mixpanel.com",
    "https://data-in.mixpanel.com": "https://in.mixpanel.com",
}
_TIMEOUT: Final = httpx.Timeout(30.0, read=300.0)
_DELAYS: Final = (2.0, 4.0, 8.0, 16.0, 32.0)
_IDS_AT_ONCE: Final = 1_000
_SUCCESS: Final = 200
_TOO_MANY: Final = 429
_MAX_PAGES: Final = 50
_NO_PROFILES: Final = "the answer to the profile query is not one that Mixpanel documents; check --api-host"


class ProfileQuery:
    """Reader of the user profiles of one project.

    Args:
        access: host of exports, and the credentials.
        sleep: waits for some seconds.
    """

    def __init__(self, access: ExportAccess, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._url = _HOSTS.get(access.origin, access.origin) + _PATH
        self._auth = httpx.BasicAuth(access.user, access.password)
        self._project = {} if access.project_id is None else {"project_id": access.project_id}
        self._sleep = sleep

    def profiles(self, ids: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield the id and the properties of the profiles of people.

        Args:
            ids: all ids of these people.

        Raises:
            DownloadError: if they cannot be read.
        """
        remaining = iter(ids)
        with httpx.Client(auth=self._auth, timeout=_TIMEOUT) as client:
            while some := [*islice(remaining, _IDS_AT_ONCE)]:
                yield from self._pages(client, {"distinct_ids": orjson.dumps(some).decode()})

    def all_profiles(self, properties: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield the id and some properties of all profiles of the project, read with at most 50 queries.

        Args:
            properties: names of the properties.

        Raises:
            DownloadError: if they cannot be read, or if these queries do not return all of them.
        """
        with httpx.Client(auth=self._auth, timeout=_TIMEOUT) as client:
            yield from self._pages(client, {"output_properties": orjson.dumps(properties).decode()}, _MAX_PAGES)

    def _pages(
        self, client: httpx.Client, query: Mapping[str, str], limit: int | None = None
    ) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield the profiles of all pages of a query. More pages than `limit` raise `DownloadError`."""
        page, session = 0, ""
        while True:
            body = {**query, "page": str(page), **({"session_id": session} if session else {})}
            answer = self._ask(client, body)
            results, size = answer.get("results") or [], answer.get("page_size") or 0
            if not isinstance(results, list) or type(size) is not int:
                raise DownloadError(_NO_PROFILES)
            total = answer.get("total")
            if limit is not None and size and type(total) is int and total > limit * size:
                raise DownloadError(_too_many(limit))
            yield from map(_profile, results)
            page, session = page + 1, str(answer.get("session_id") or "")
            if not session or not results or len(results) < size:
                return
            if page == limit:
                if type(total) is int:
                    return
                raise DownloadError(_too_many(page))

    def _ask(self, client: httpx.Client, body: Mapping[str, str]) -> Mapping[str, Any]:
        """Send a query until it succeeds.

        Raises:
            DownloadError: if it is refused, or fails repeatedly.
        """
        failure = ""
        for delay in (0.0, *_DELAYS):
            if delay:
                self._sleep(delay)
            content, failure = self._attempt(client, body)
            if content is not None:
                return _json_object(content)
        raise DownloadError(f"{len(_DELAYS) + 1} profile queries failed, the last with: {failure}")

    def _attempt(self, client: httpx.Client, body: Mapping[str, str]) -> tuple[bytes | None, str]:
        """Return the content of the answer, or None with the reason for another attempt."""
        try:
            response = client.post(self._url, params=self._project, data=dict(body))
        except httpx.HTTPError as error:
            return None, type(error).__name__
        status = response.status_code
        if status == _TOO_MANY or status >= 500:
            return None, f"HTTP {status}"
        if status != _SUCCESS:
            hint = ": check the credentials and the project id" if status in {401, 402, 403} else ""
            raise DownloadError(f"the profile query was refused with HTTP {status}{hint}")
        return response.content, ""


def _too_many(limit: int) -> str:
    return f"the project has more profiles than {limit} queries return; save them to a file and give it with --profiles"


def _profile(result: object) -> tuple[str, Mapping[str, Any]]:
    """Return the id and the properties in one result of a query."""
    if isinstance(result, dict) and isinstance(distinct_id := result.get("$distinct_id"), str):
        properties = result.get("$properties") or {}
        if isinstance(properties, dict):
            return distinct_id, properties
    raise DownloadError(_NO_PROFILES)


def _json_object(content: bytes) -> Mapping[str, Any]:
    try:
        answer = orjson.loads(content)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise DownloadError(_NO_PROFILES)
    return answer
