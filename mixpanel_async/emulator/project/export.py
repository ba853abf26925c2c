"""Raw export of events.

Source: https://docs.mixpanel.com/reference/raw-event-export (read 2026-08-21).

Decisions where Mixpanel's documents are silent, or where the emulator differs
    - Export returns every copy of every event, in order of arrival, under the person it counts for now.
      `$distinct_id_before_identity` contains the id as sent if it differs. Mixpanel rewrites only some rows, and later.
    - Days are in UTC, as if that were the project's time zone. An event without a `time` belongs to its day of arrival.
    - `mp_processing_time_ms`, `$mp_api_timestamp_ms` and `$mp_api_endpoint` are added, and `$import` for events from
      `/import`. `token` is removed. `$mp_event_size` and geolocation are not added.
    - `where` reads the properties as exported, with `time` in seconds. `$time` and `$distinct_id` are other names of
      `time` and `distinct_id`. `user` is the profile of the person at the time of the export.
    - The project token gives no access if a secret or a service account is configured. If neither is, any HTTP Basic
      credentials are accepted, but some are required.
    - The limits on requests per hour are not enforced.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, Final

import orjson

from .access import Access
from .change_set import EventRow
from .checks import epoch_ms, is_number
from .project import Project
from .queries import InvalidQueryError, ReadRequest, integer, string_list, where_parameter
from .reports import read_event
from .responses import EmulatorResponse, error_response
from .where import Where

EXPORT: Final = "/api/2.0/export"

_MAX_EXPORTED: Final = 100_000
_ROWS_AT_ONCE: Final = 500
_BYTES_AT_ONCE: Final = 256 * 1024
_DAY: Final = timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class _ExportFilter:
    """Selection of events for an export.

    Args:
        first_ms: start of the time range in milliseconds since the epoch, inclusive.
        end_ms: end of the time range in milliseconds since the epoch, exclusive.
        names: names of the events, or None for all.
        where: expression that selects events, or None for all.
        limit: maximum number of events, or None.
        in_ms: whether to export `time` in milliseconds instead of seconds.
    """

    first_ms: int
    end_ms: int
    names: frozenset[str] | None
    where: Where | None
    limit: int | None
    in_ms: bool


class EventExport:
    """Exported events as text, one per line, produced in chunks.

    Each chunk is made from a few hundred events, or fewer large ones. The lock is held only to look up the people of
    these events, so that ingestion continues during a long export.

    Args:
        project: project of the events.
        lock: lock of the project.
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
            # Rows leave the queue when they are exported, so that those the project has removed do not stay in memory.
            rows = deque(self._project.event_rows)
        left = self._filter.limit
        while rows and left != 0:
            lines = self._lines(_take_rows(rows))[:left]
            if left is not None:
                left -= len(lines)
            yield b"".join(lines)

    def _lines(self, rows: list[EventRow]) -> list[bytes]:
        if self._filter.names is not None:
            rows = [row for row in rows if row[0] in self._filter.names]
        uses_user = self._filter.where is not None and self._filter.where.uses_user
        with self._lock:
            people = [self._project.reported_id(row) for row in rows]
            users = [self._project.person(self._project.canonical_id(one))[1] if uses_user else None for one in people]
        events = (
            self._exported(row, person, user or {}) for row, person, user in zip(rows, people, users, strict=True)
        )
        return [orjson.dumps(event, option=orjson.OPT_APPEND_NEWLINE) for event in events if event is not None]

    def _exported(self, row: EventRow, person: str, user: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return an event in export format, or None if it is not selected."""
        name, _, _, (endpoint, received_at) = row
        properties, sent = read_event(row)
        time = properties.get("time")
        ms = epoch_ms(time if is_number(time) else received_at)
        if not self._filter.first_ms <= ms < self._filter.end_ms:
            return None
        properties.pop("token", None)
        properties["time"] = ms // 1000
        properties["distinct_id"] = person
        if sent != person:
            properties["$distinct_id_before_identity"] = sent
        if endpoint == "/import":
            properties["$import"] = True
        received_ms = int(received_at * 1000)
        properties["$mp_api_endpoint"] = "api.mixpanel.com"
        properties["$mp_api_timestamp_ms"] = properties["mp_processing_time_ms"] = received_ms
        where = self._filter.where
        if where is not None:
            aliases = {"$time": properties["time"], "$distinct_id": person}
            if not where.matches({**properties, **aliases}, user):
                return None
        if self._filter.in_ms:
            properties["time"] = ms
        return {"event": name, "properties": properties}


def _take_rows(rows: deque[EventRow]) -> list[EventRow]:
    """Remove and return the first rows, as many as one chunk may hold."""
    taken: list[EventRow] = []
    size = 0
    while rows and len(taken) < _ROWS_AT_ONCE and size < _BYTES_AT_ONCE:
        taken.append(rows.popleft())
        size += len(taken[-1][2])
    return taken


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
        selected = _export_filter(query.parameters)
    except InvalidQueryError as error:
        return error_response(query.path, 400, str(error))
    return EventExport(project, lock, selected, compress="gzip" in accept_encoding.lower())


def _export_filter(parameters: Mapping[str, str]) -> _ExportFilter:
    first, last = _day(parameters, "from_date"), _day(parameters, "to_date")
    if last < first:
        raise InvalidQueryError("to_date must not be before from_date")
    return _ExportFilter(
        first_ms=round(first.timestamp() * 1000),
        end_ms=round(first.timestamp() * 1000) + round((last - first + _DAY).total_seconds() * 1000),
        names=_event_names(parameters.get("event")),
        where=where_parameter(parameters, "where"),
        limit=integer(parameters, "limit", None, 1, _MAX_EXPORTED),
        in_ms=parameters.get("time_in_ms", "").lower() in {"1", "true"},
    )


def _day(parameters: Mapping[str, str], name: str) -> datetime:
    try:
        return datetime.strptime(parameters.get(name, ""), "%Y-%m-%d").replace(tzinfo=timezone.utc)
    except ValueError:
        raise InvalidQueryError(f"{name} must be a date as YYYY-MM-DD") from None


def _event_names(text: str | None) -> frozenset[str] | None:
    """Parse the parameter `event`: a JSON list of names, or a single name."""
    if not text:
        return None
    if not text.startswith("["):
        return frozenset({text})
    return frozenset(string_list("event", text))
