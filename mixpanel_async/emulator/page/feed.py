"""Feed of the live page: the changes between two positions, in batches of bounded size.

Pure; the clock is passed in. Without viewers the feed costs nothing: batches are read from the logs of the project on
request. Viewers at the same position share a batch, so that twenty viewers cost little more than one.

The size of a batch does not grow with the event rate. A batch contains the newest events and entries, and the number of
events left out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sized
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Protocol

import orjson

from ..project.change_set import EventRow
from ..project.hints import hint
from ..project.project import Project
from ..project.rejections import Rejection, shorten
from ..project.reports import read_event

HISTORY: Final = 2_000
"""Maximum number of earlier events for a new viewer, and of missed events for a viewer that resumes."""

BATCH: Final = 200
"""Maximum number of events, of identity log entries and of rejected records in one message. Of the identity log, there
are as many earlier entries that joined nothing."""

# Slightly shorter than the polling interval of viewers, so that each poll of the first viewer updates the position.
_INTERVAL: Final = 0.09
# Many viewers that connect at the same time share their history. A delayed mapping between ids shows up after it.
_CACHE_SECONDS: Final = 1.0
_MAX_POSITIONS: Final = 2_000
_MAX_EVENT_BYTES: Final = 500_000
_MAX_PEOPLE_BYTES: Final = 1_000_000
_MAX_IDS: Final = 500
_MAX_ITEM_BYTES: Final = 20_000
_MAX_FAULTS: Final = 20
# A page that is opened after a bulk of merges shows the calls before it that joined nothing.
_MAX_IDENTITY_ROWS: Final = 10_000
_JOINED: Final = frozenset({"merged", "unchanged"})
# Fields of a rejection whose token belongs to another project.
_TOKEN_FIELDS: Final = frozenset({"properties.token", "$token"})


class _CountedLog(Sized, Protocol):
    @property
    def total(self) -> int: ...


class _EntryLog(Protocol):
    @property
    def total(self) -> int: ...

    def between(self, after: int, up_to: int, max_entries: int) -> list[tuple[int, Any]]: ...

    def rates(self) -> list[tuple[int, int]]: ...


class _PlannedFaults(Protocol):
    version: int

    def summary(self, limit: int) -> dict[str, Any]: ...


class ActivityLog(Protocol):
    """State of the application as far as a feed reads it. Callers of the feed hold its lock."""

    project: Project
    started: float
    latency: float

    @property
    def requests(self) -> _CountedLog: ...

    @property
    def log(self) -> _EntryLog: ...

    @property
    def faults(self) -> _PlannedFaults: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedPosition:
    """Position in the feed: the number of the latest entry of each log.

    Args:
        id: number that grows with each position, also after a reset or a restart.
        epoch: number of resets.
        events: number of the latest event.
        identity: number of the latest identity log entry.
        rejected: number of the latest rejected record.
        changes: number of the latest change of a person.
        requests: number of the latest request.
        log: number of the latest entry of the request log.
        updates: number of the latest profile update.
        groups: number of the latest change of a group.
        unsupported: number of requests for endpoints that the emulator does not have.
        faults: version of the planned faults, and latency in seconds.
    """

    id: int
    epoch: int
    events: int = 0
    identity: int = 0
    rejected: int = 0
    changes: int = 0
    requests: int = 0
    log: int = 0
    updates: int = 0
    groups: int = 0
    unsupported: int = 0
    faults: tuple[int, float] = (0, 0.0)


class Feed:
    """Changes of one project, for any number of viewers.

    Args:
        activity: state of the application.
        monotonic: monotonic clock in seconds.
    """

    def __init__(self, activity: ActivityLog, monotonic: Callable[[], float]) -> None:
        self._activity = activity
        self._monotonic = monotonic
        self._project = activity.project
        # Milliseconds grow faster than ids, so the ids of a later run of the emulator are larger.
        self._positions = deque([FeedPosition(id=int(activity.started * 1000), epoch=0)], maxlen=_MAX_POSITIONS)
        self._last_update = self._last_clear = -_INTERVAL
        self._batch_cache: dict[tuple[int, int, int], list[bytes]] = {}

    def latest_position(self, *, force: bool = False) -> FeedPosition:
        """Return the latest position. A new one is created only after a change, and at most about ten per second.

        Args:
            force: include all changes until now, regardless of the interval, for a viewer that has just connected.
        """
        latest = self._positions[-1]
        now = self._monotonic()
        project = self._activity.project
        if project is not self._project:
            self._project = project
            self._positions.clear()
            self._positions.append(FeedPosition(id=latest.id + 1, epoch=latest.epoch + 1))
        elif now - self._last_update < _INTERVAL and not force:
            return latest
        self._last_update = now
        before = self._positions[-1]
        position = FeedPosition(
            id=before.id + 1,
            epoch=before.epoch,
            events=project.event_rows.total,
            identity=project.identity_rows.total,
            rejected=project.rejections.total,
            changes=project.changed_ids.total,
            requests=self._activity.requests.total,
            log=self._activity.log.total,
            updates=project.profile_updates.total,
            groups=project.changed_groups.total,
            unsupported=project.unsupported.total,
            faults=(self._activity.faults.version, self._activity.latency),
        )
        if _totals(position) != _totals(before):
            self._positions.append(position)
        if self._positions[-1] is not latest or now - self._last_clear >= _CACHE_SECONDS:
            self._batch_cache.clear()
            self._last_clear = now
        return self._positions[-1]

    def history_start(self, latest: FeedPosition) -> FeedPosition:
        """Return the position from which a new viewer receives earlier events."""
        return FeedPosition(id=0, epoch=latest.epoch, requests=latest.requests, faults=latest.faults)

    def find_position(self, last_id: int) -> FeedPosition | None:
        """Return the position with this id; None if it is unknown, or if too many events have followed it."""
        head = self.latest_position(force=True)
        index = last_id - self._positions[0].id
        if not 0 <= index < len(self._positions):
            return None
        position = self._positions[index]
        return position if head.events - position.events <= HISTORY else None

    def batches(self, after: FeedPosition, up_to: FeedPosition, max_events: int) -> list[bytes]:
        """Return the changes between two positions as messages. The last message has the id of the later position.

        Args:
            after: position of the viewer.
            up_to: position from `latest_position`, in the same epoch.
            max_events: maximum number of events, of which the newest are returned, `BATCH` per message.
        """
        key = (after.id, up_to.id, max_events)
        if key not in self._batch_cache:
            self._batch_cache[key] = list(self._batches(after, up_to, max_events))
        return self._batch_cache[key]

    def _batches(self, after: FeedPosition, up_to: FeedPosition, max_events: int) -> Iterator[bytes]:
        first = max(after.events, up_to.events - max_events)
        seen = after.events
        for last in range(first + BATCH, up_to.events, BATCH):
            events = self._events(first, last)
            yield sse_message("batch", {"events": events, "dropped": last - seen - len(events)})
            first = seen = last
        events = self._events(first, up_to.events)
        batch = {
            "events": events,
            "dropped": up_to.events - seen - len(events),
            "identity": self._identity(after.identity, up_to.identity),
            "rejected": self._rejected(after.rejected, up_to.rejected),
            "requests": up_to.requests - after.requests,
            "log": self._log(after.log, up_to.log),
            "updates": self._updates(after.updates, up_to.updates),
            "people": self._people(after.changes, up_to.changes),
            "groups": self._groups(after.groups, up_to.groups),
            "stats": activity_counts(self._activity),
        }
        if up_to.unsupported != after.unsupported:
            batch["unsupported"] = self._project.unsupported.endpoints()
        if up_to.faults != after.faults:
            batch["faults"] = fault_summary(self._activity)
        yield sse_message("batch", batch, up_to.id)

    def _events(self, after: int, up_to: int) -> list[dict[str, Any]]:
        events = []
        bytes_left = _MAX_EVENT_BYTES
        for number, row in reversed(self._project.event_rows.between(after, up_to, BATCH)):
            size = len(row[2])
            events.append(self._event(number, row, max_bytes=min(bytes_left, _MAX_ITEM_BYTES)))
            bytes_left -= min(size, bytes_left)
        return events[::-1]

    def _event(self, number: int, row: EventRow, *, max_bytes: int) -> dict[str, Any]:
        properties, sent = read_event(row)
        name, _, payload, (endpoint, received_at) = row
        return {
            "seq": number,
            "event": name,
            "time": properties.get("time"),
            "distinct_id": self._project.reported_id(row),
            "sent_id": sent,
            "insert_id": shorten(properties.get("$insert_id")),
            "properties": _displayable(payload, properties, max_bytes),
            "endpoint": endpoint,
            "received_at": received_at,
        }

    def _identity(self, after: int, up_to: int) -> list[dict[str, Any]]:
        rows = self._project.identity_rows.between(after, up_to, _MAX_IDENTITY_ROWS)
        earlier = [row for row in rows[:-BATCH] if row[1][2].outcome not in _JOINED]
        return [
            {
                "seq": number,
                "event": name,
                "properties": _displayable(payload, None),
                "outcome": result.outcome,
                "$failure_reason": result.failure_code,
                "$failure_description": result.description,
                "advice": hint(name, result.outcome, result.failure_code, result.description),
            }
            for number, (name, payload, result) in [*earlier[-BATCH:], *rows[-BATCH:]]
        ]

    def _rejected(self, after: int, up_to: int) -> list[dict[str, Any]]:
        return [
            {
                "seq": number,
                "endpoint": rejection.endpoint,
                "field": shorten(rejection.field),
                "message": shorten(rejection.message),
                "record": _without_token(rejection) if rejection.field in _TOKEN_FIELDS else rejection.record,
                "silent": rejection.silent,
            }
            for number, rejection in self._project.rejections.between(after, up_to, BATCH)
        ]

    def _log(self, after: int, up_to: int) -> list[Any]:
        return [entry for _, entry in self._activity.log.between(after, up_to, BATCH)]

    def _updates(self, after: int, up_to: int) -> list[dict[str, Any]]:
        return [
            {"seq": number, "group_key": key, "id": one, "record": orjson.Fragment(payload), "received_at": at}
            for number, (key, one, payload, at) in self._project.profile_updates.between(after, up_to, BATCH)
        ]

    def _groups(self, after: int, up_to: int) -> list[dict[str, Any]]:
        """Return the changed groups, each once, the latest last. The earliest are left out above the size limit."""
        changed = self._project.changed_groups.between(after, up_to, up_to - after)
        groups: list[dict[str, Any]] = []
        size = 0
        for key, group_id in dict.fromkeys(one for _, one in reversed(changed)):
            profile = self._project.group_profile(key, group_id)
            encoded = b"null" if profile is None else orjson.dumps(profile)
            size += len(encoded)
            if size > _MAX_PEOPLE_BYTES:
                break
            groups.append({"key": key, "id": group_id, "profile": _displayable(encoded, profile)})
        return groups[::-1]

    def _people(self, after: int, up_to: int) -> list[orjson.Fragment]:
        """Return the changed people, each once, the latest last. The earliest are left out above the size limit."""
        changed = self._project.changed_ids.between(after, up_to, up_to - after)
        people: dict[str, bytes] = {}
        size = 0
        for distinct_id in dict.fromkeys(one for _, one in reversed(changed)):
            canonical = self._project.canonical_id(distinct_id)
            if canonical not in people and size < _MAX_PEOPLE_BYTES:
                people[canonical] = self._person(canonical)
                size += len(people[canonical])
        return [orjson.Fragment(person) for person in reversed(people.values())]

    def _person(self, canonical: str) -> bytes:
        ids, profile = self._project.person(canonical)
        person = {
            "canonical": canonical,
            "ids": sorted(islice(ids, _MAX_IDS)),
            "profile": None if profile is None else _displayable(orjson.dumps(profile), profile),
        }
        return orjson.dumps(person)


def activity_counts(activity: ActivityLog) -> dict[str, Any]:
    """Return the statistics that need no computation."""
    project = activity.project
    return {
        "events": {"stored": len(project.event_rows), "ingested": project.event_rows.total},
        "profiles": project.profile_count,
        "groups": project.group_count,
        "requests": activity.requests.total,
        "rejected": project.rejections.total,
        "identity": {
            outcome: project.outcome_counts[outcome] for outcome in ("merged", "unchanged", "failed", "ignored")
        },
        "started": activity.started,
    }


def fault_summary(activity: ActivityLog) -> dict[str, Any]:
    """Return the planned faults and the latency."""
    return {**activity.faults.summary(_MAX_FAULTS), "latency": activity.latency}


def sse_message(kind: str, data: Mapping[str, Any], number: int | None = None) -> bytes:
    """Return one server-sent event. orjson writes no line breaks, so the data is one line."""
    head = b"" if number is None else b"id: %d\n" % number
    return b"%bevent: %b\ndata: %b\n\n" % (head, kind.encode(), orjson.dumps(data))


def _totals(position: FeedPosition) -> tuple[float, ...]:
    return (
        position.events,
        position.identity,
        position.rejected,
        position.changes,
        position.requests,
        position.log,
        position.updates,
        position.groups,
        position.unsupported,
        *position.faults,
    )


def _displayable(payload: bytes, parsed: Any, max_bytes: int = _MAX_ITEM_BYTES) -> Any:
    """Return JSON unchanged, or a shortened copy if it is too long to be shown."""
    if len(payload) <= max_bytes:
        return orjson.Fragment(payload)
    return shorten(orjson.loads(payload) if parsed is None else parsed)


def _without_token(rejection: Rejection) -> Any:
    """Return the record without the token of another project, which may be a secret in the wrong place."""
    record = rejection.record
    if rejection.field == "$token":
        return {**record, "$token": "***"} if isinstance(record, dict) else None
    properties = record.get("properties") if isinstance(record, dict) else None
    return {**record, "properties": {**properties, "token": "***"}} if isinstance(properties, dict) else None
