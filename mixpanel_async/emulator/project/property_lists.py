"""Names and types of the properties in a project, and its cohorts, which connectors ask for before they read data.

Sources: https://docs.mixpanel.com/reference/query-events-top-properties and /reference/cohorts-list (read 2026-11-29).
The list of profile properties is not documented. Its form is the one that `tap-mixpanel` 1.8 and
`airbyte-source-mixpanel` 4.0.2 read.

Decisions where Mixpanel's documents are silent, or where the emulator differs
    - Counts include every stored copy of every event. Without `event`, all events count together.
    - `token`, `time` and `distinct_id`, which every event has, are left out. `limit` defaults to 10, and is at most
      10,000.
    - The type of a profile property is its most frequent one. `limit` defaults to 10,000.
    - An emulated project has no cohorts.
    - Access as in `export`.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from datetime import datetime, timezone
from typing import Any, Final

import orjson

from .access import Access
from .checks import is_number
from .project import Project
from .queries import InvalidQueryError, ReadRequest, integer
from .responses import EmulatorResponse, error_response, json_response

TOP_PROPERTIES: Final = ("/api/2.0/events/properties/top", "/api/query/events/properties/top")
PROFILE_PROPERTIES: Final = ("/api/2.0/engage/properties", "/api/query/engage/properties")
COHORTS: Final = ("/api/2.0/cohorts/list", "/api/query/cohorts/list")

_MAX_LISTED: Final = 10_000
_IN_EVERY_EVENT: Final = ("token", "time", "distinct_id")
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d.{0,10}", re.ASCII)


class PropertyLists:
    """Responses to requests for lists of properties and cohorts.

    Args:
        lock: lock of the project, held only to copy references to its data.
    """

    def __init__(self, lock: Any) -> None:
        self._lock = lock

    def top_properties(self, query: ReadRequest, project: Project, access: Access, now: float) -> EmulatorResponse:  # noqa: ARG002  the signature of a query
        """Return the most frequent event properties, with the number of events that have each."""
        try:
            limit = integer(query.parameters, "limit", 10, 1, _MAX_LISTED)
        except InvalidQueryError as error:
            return error_response(query.path, 400, str(error))
        refusal = query.authorization_error(access)
        if refusal is not None:
            return refusal
        with self._lock:
            rows = list(project.event_rows)
        event = query.parameters.get("event")
        counts: Counter[str] = Counter()
        for name, _, payload, _ in rows:
            if not event or name == event:
                counts.update(orjson.loads(payload).keys())
        for name in _IN_EVERY_EVENT:
            del counts[name]
        return json_response(200, {name: {"count": count} for name, count in counts.most_common(limit)})

    def profile_properties(self, query: ReadRequest, project: Project, access: Access, now: float) -> EmulatorResponse:
        """Return the most frequent profile properties, with the number of profiles that have each, and the type."""
        try:
            limit = integer(query.parameters, "limit", _MAX_LISTED, 1, _MAX_LISTED)
        except InvalidQueryError as error:
            return error_response(query.path, 400, str(error))
        refusal = query.authorization_error(access)
        if refusal is not None:
            return refusal
        with self._lock:
            profiles = project.all_profiles()
        types: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for profile in profiles.values():
            for name, value in profile.items():
                types[name][_type_name(value)] += 1
        found = sorted(types, key=lambda name: types[name].total(), reverse=True)[:limit]
        content = {
            "computed_at": datetime.fromtimestamp(now, timezone.utc).isoformat(),
            "results": {
                name: {"count": types[name].total(), "type": types[name].most_common(1)[0][0]} for name in found
            },
            "session_id": str(int(now)),
            "status": "ok",
        }
        return json_response(200, content)


def cohorts(query: ReadRequest, project: Project, access: Access, now: float) -> EmulatorResponse:  # noqa: ARG001  the signature of a query
    """Return the cohorts of a project: an empty list."""
    return query.authorization_error(access) or json_response(200, [])


def _type_name(value: object) -> str:
    if isinstance(value, bool):
        return "boolean"
    if is_number(value):
        return "number"
    if isinstance(value, str):
        return "datetime" if _TIME.fullmatch(value) else "string"
    if isinstance(value, list):
        return "list"
    return "object" if isinstance(value, dict) else "unknown"
