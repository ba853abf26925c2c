"""Requests for endpoints of Mixpanel that the emulator does not have.

Pure. Reports, JQL, annotations, schemas, pipelines and deletion requests are answered with 501, and each such endpoint
is remembered once, with the number of requests.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Final

from .responses import EmulatorResponse, json_response

MAX_ENDPOINTS: Final = 200

_MAX_PATH: Final = 200
# Ids differ between requests to one endpoint: numbers, UUIDs and long hexadecimal tokens.
_ID: Final = re.compile(r"(?<=/)(?:[0-9]+|[0-9a-fA-F]{8}-[0-9a-fA-F-]{27}|[0-9a-fA-F]{16,})(?=/|$)")


@dataclass(frozen=True, slots=True)
class UnsupportedEndpoint:
    """Endpoint that a client asked for, and the emulator does not have.

    Args:
        method: HTTP method.
        path: path without query, with `{id}` for each id in it; shortened if it is long.
        count: number of requests.
        first: time of the first request, in seconds since the epoch.
        last: time of the latest request, in seconds since the epoch.
    """

    method: str
    path: str
    count: int
    first: float
    last: float


class UnsupportedRequests:
    """Endpoints asked for and not emulated. The latest `MAX_ENDPOINTS` are kept."""

    def __init__(self) -> None:
        self._endpoints: OrderedDict[tuple[str, str], UnsupportedEndpoint] = OrderedDict()
        self.total = 0
        """Number of requests."""

    def respond(self, method: str, path: str, now: float) -> EmulatorResponse:
        """Record a request and return its response.

        Args:
            method: HTTP method.
            path: path of the request, without query.
            now: current time in seconds since the epoch.
        """
        name = _ID.sub("{id}", path.rstrip("/"))
        name = name if len(name) <= _MAX_PATH else name[:_MAX_PATH] + "…"
        key = (method, name)
        known = self._endpoints.pop(key, None) or UnsupportedEndpoint(method, name, 0, now, now)
        self._endpoints[key] = replace(known, count=known.count + 1, last=now)
        if len(self._endpoints) > MAX_ENDPOINTS:
            self._endpoints.popitem(last=False)
        self.total += 1
        error = (
            f"{method} {name} is not emulated: the emulator exports events and queries profiles, "
            "but has no reports, JQL, saved objects, schemas or deletion requests"
        )
        return json_response(501, {"error": error, "status": "error"}, reason="not emulated")

    def endpoints(self) -> list[UnsupportedEndpoint]:
        """Return the endpoints, the one asked for last at the end."""
        return list(self._endpoints.values())
