"""The two endpoints through which Mixpanel's tools read data: raw export and the profile query.

Sources: https://docs.mixpanel.com/reference/raw-event-export and /reference/engage-query (read 2026-08-21), and the
requests of `mixpanel-utils` 2.2.7.

Decisions where Mixpanel's documents are silent, or where the emulator differs
    - Export returns every copy of every event, in order of arrival, under the person it counts for now.
      `$distinct_id_before_identity` contains the id as sent if it differs. Mixpanel rewrites only some rows, and later.
    - Days are in UTC, as if that were the project's time zone. An event without a `time` belongs to its day of arrival.
    - `mp_processing_time_ms`, `$mp_api_timestamp_ms` and `$mp_api_endpoint` are added, and `$import` for events from
      `/import`. `token` is removed. `$mp_event_size` and geolocation are not added.
    - `where`, `filter_by_cohort`, `behaviors`, `search_parameters` and `data_group_id` are refused with 400, because a
      response that ignores them would be wrong. Other unknown parameters are ignored.
    - The project token gives no access if a secret or a service account is configured. If neither is, any HTTP Basic
      credentials are accepted, but some are required.
    - All pages of a profile query show the state at its first page. The latest 16 queries are remembered; the session
      of an older query is refused with 400. `page_size` defaults to 1,000, and is at most 10,000.
    - The limits on requests per hour are not enforced.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, Final

import orjson

from .access import Access
from .change_set import EventRow
from .checks import epoch_ms, is_number
from .project import Project
from .reports import read_event
from .responses import EmulatorResponse, error_response, json_response

EXPORT: Final = "/api/2.0/export"
QUERIES: Final = ("/api/2.0/engage", "/api/query/engage")
MAX_QUERY_BYTES: Final = 1024 * 1024

_MAX_EXPORTED: Final = 100_000
_PAGE_SIZE: Final = 1_000
_MAX_PAGE_SIZE: Final = 10_000
_MAX_SESSIONS: Final = 16
_ROWS_AT_ONCE: Final = 500
_DAY: Final = timedelta(days=1)


class _InvalidQueryError(Exception):
    """The query cannot be answered. The message states the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadRequest:
    """Request to read data.

    Args:
        path: `EXPORT` or one of `QUERIES`.
        authorization: value of the header; may be empty.
        parameters: parameters of the URL and of the form.
    """

    path: str
    authorization: str
    parameters: Mapping[str, str]

    def authorization_error(self, access: Access) -> EmulatorResponse | None:
        """Return the response to a request with wrong credentials; None if they are right."""
        if not access.may_read(self.authorization, self.parameters.get("project_id")):
            return error_response(self.path, 401)
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _ExportFilter:
    """Selection of events for an export.

    Args:
        first_ms: start of the time range in milliseconds since the epoch, inclusive.
        end_ms: end of the time range in milliseconds since the epoch, exclusive.
        names: names of the events, or None for all.
        limit: maximum number of events, or None.
        in_ms: whether to export `time` in milliseconds instead of seconds.
    """

    first_ms: int
    end_ms: int
    names: frozenset[str] | None
    limit: int | None
    in_ms: bool


class EventExport:
    """Exported events as text, one per line, produced in chunks.

    Args:
        project: project of the events.
        lock: lock of the project, held while a chunk is read.
        export_filter: selection of the events.
        compress: whether the client accepts gzip.
    """

    def __init__(self, project: Project, lock: Any, export_filter: _ExportFilter, *, compress: bool) -> None:
        self._project = project
        self._lock = lock
        self._filter = export_filter
        self.compress = compress

    def chunks(self) -> Iterator[bytes]:
        with self._lock:
            rows = list(self._project.event_rows)
        left = self._filter.limit
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            with self._lock:
                wanted = (self._exported(row) for row in rows[start : start + _ROWS_AT_ONCE])
                lines = [orjson.dumps(event) + b"\n" for event in wanted if event is not None][:left]
            if left is not None:
                left -= len(lines)
            yield b"".join(lines)
            if left == 0:
                return

    def _exported(self, row: EventRow) -> dict[str, Any] | None:
        """Return an event in export format, or None if it is not selected."""
        name, _, _, (endpoint, received_at) = row
        if self._filter.names is not None and name not in self._filter.names:
            return None
        properties, sent = read_event(row)
        time = properties.get("time")
        ms = epoch_ms(time if is_number(time) else received_at)
        if not self._filter.first_ms <= ms < self._filter.end_ms:
            return None
        properties.pop("token", None)
        properties["time"] = ms if self._filter.in_ms else ms // 1000
        properties["distinct_id"] = self._project.reported_id(row)
        if sent != properties["distinct_id"]:
            properties["$distinct_id_before_identity"] = sent
        if endpoint == "/import":
            properties["$import"] = True
        received_ms = int(received_at * 1000)
        properties["$mp_api_endpoint"] = "api.mixpanel.com"
        properties["$mp_api_timestamp_ms"] = properties["mp_processing_time_ms"] = received_ms
        return {"event": name, "properties": properties}


def export(
    query: ReadRequest, project: Project, lock: Any, access: Access, accept_encoding: str
) -> EmulatorResponse | EventExport:
    """Handle a request for raw events.

    Args:
        query: the request.
        project: project of the events.
        lock: lock of the project.
        access: access rules of the project.
        accept_encoding: value of the header; may be empty.
    """
    refusal = query.authorization_error(access)
    if refusal is not None:
        return refusal
    try:
        span = _export_filter(query.parameters)
    except _InvalidQueryError as error:
        return error_response(query.path, 400, str(error))
    return EventExport(project, lock, span, compress="gzip" in accept_encoding.lower())


def _export_filter(parameters: Mapping[str, str]) -> _ExportFilter:
    _reject_unsupported(parameters, "where")
    first, last = _day(parameters, "from_date"), _day(parameters, "to_date")
    if last < first:
        raise _InvalidQueryError("to_date must not be before from_date")
    return _ExportFilter(
        first_ms=round(first.timestamp() * 1000),
        end_ms=round(first.timestamp() * 1000) + round((last - first + _DAY).total_seconds() * 1000),
        names=_event_names(parameters.get("event")),
        limit=_integer(parameters, "limit", None, 1, _MAX_EXPORTED),
        in_ms=parameters.get("time_in_ms", "").lower() in {"1", "true"},
    )


def _day(parameters: Mapping[str, str], name: str) -> datetime:
    try:
        return datetime.strptime(parameters.get(name, ""), "%Y-%m-%d").replace(tzinfo=timezone.utc)
    except ValueError:
        raise _InvalidQueryError(f"{name} must be a date as YYYY-MM-DD") from None


def _event_names(text: str | None) -> frozenset[str] | None:
    """Parse the parameter `event`: a JSON list of names, or a single name."""
    if not text:
        return None
    if not text.startswith("["):
        return frozenset({text})
    return frozenset(_string_list("event", text))


def _string_list(name: str, text: str) -> list[str]:
    try:
        items = orjson.loads(text)
    except orjson.JSONDecodeError:
        items = None
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise _InvalidQueryError(f"{name} must be a JSON list of strings")
    return items


def _integer(parameters: Mapping[str, str], name: str, default: int | None, minimum: int, maximum: int) -> int | None:
    text = parameters.get(name)
    if text is None or text == "":
        return default
    if not (text.isascii() and text.isdecimal() and len(text) <= 9 and minimum <= int(text) <= maximum):
        raise _InvalidQueryError(f"{name} must be a whole number from {minimum} to {maximum}")
    return int(text)


def _reject_unsupported(parameters: Mapping[str, str], *names: str) -> None:
    for name in names:
        if parameters.get(name):
            raise _InvalidQueryError(f"{name} is not supported by the emulator")


class ProfileQueries:
    """Profile query, with the sessions of its latest queries."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[str, list[dict[str, Any]]] = OrderedDict()
        self._project: Project | None = None
        self._session_count = 0

    def respond(self, query: ReadRequest, project: Project, access: Access, now: float) -> EmulatorResponse:
        """Return one page of profiles.

        Args:
            query: the request.
            project: project of the profiles.
            access: access rules of the project.
            now: current time in seconds since the epoch.
        """
        refusal = query.authorization_error(access)
        if refusal is not None:
            return refusal
        if project is not self._project:
            # A reset creates a new project. Sessions of the old one would show deleted data.
            self._project = project
            self._sessions.clear()
        try:
            return self._page(query.parameters, project, now)
        except _InvalidQueryError as error:
            return error_response(query.path, 400, str(error))

    def _page(self, parameters: Mapping[str, str], project: Project, now: float) -> EmulatorResponse:
        _reject_unsupported(parameters, "where", "filter_by_cohort", "behaviors", "search_parameters", "data_group_id")
        page = _integer(parameters, "page", 0, 0, 999_999_999) or 0
        size = _integer(parameters, "page_size", _PAGE_SIZE, 1, _MAX_PAGE_SIZE) or _PAGE_SIZE
        output = parameters.get("output_properties")
        kept = frozenset(_string_list("output_properties", output)) if output else None
        session = parameters.get("session_id") or self._start_session(parameters, project, now)
        found = self._sessions.get(session)
        if found is None:
            raise _InvalidQueryError("session_id is unknown or expired; repeat the query without session_id")
        self._sessions.move_to_end(session)
        results = found[page * size : (page + 1) * size]
        content = {
            "page": page,
            "page_size": size,
            "session_id": session,
            "status": "ok",
            "total": len(found),
            "results": results if kept is None else [_select_properties(result, kept) for result in results],
        }
        return json_response(200, content)

    def _start_session(self, parameters: Mapping[str, str], project: Project, now: float) -> str:
        """Start a session with the current profiles. Profiles are replaced and never changed, so no copy is needed."""
        ids = parameters.get("distinct_ids")
        wanted = _string_list("distinct_ids", ids) if ids else []
        if parameters.get("distinct_id"):
            wanted.append(parameters["distinct_id"])
        people = project.all_profiles()
        if wanted:
            canonical = dict.fromkeys(project.reported_canonical_id(one) for one in wanted)
            people = {one: people[one] for one in canonical if one in people}
        self._session_count += 1
        session = f"{int(now)}-{self._session_count}"
        self._sessions[session] = [{"$distinct_id": one, "$properties": people[one]} for one in people]
        while len(self._sessions) > _MAX_SESSIONS:
            self._sessions.popitem(last=False)
        return session


def _select_properties(result: Mapping[str, Any], names: frozenset[str]) -> dict[str, Any]:
    properties = {name: value for name, value in result["$properties"].items() if name in names}
    return {"$distinct_id": result["$distinct_id"], "$properties": properties}
