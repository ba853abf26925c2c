"""What the live page is told: everything that happened since a moment, small enough to be shown.

Pure, apart from the clock. Nothing is prepared while nobody watches: a batch is read off the project's own logs when a
viewer asks for it. Viewers that are equally far share it, so that twenty cost little more than one.

A batch never grows with the rate: it holds the newest events and entries, and says how many it leaves out.
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
from ..project.project import Project, read_event
from ..project.rejections import shorten

HISTORY: Final = 2_000
"""Events that a viewer sees of the time before it came, or misses without having to start anew."""

BATCH: Final = 200
"""Events, entries of the identity log, and rejected records in one message, at most of each."""

# A little less than viewers wait between two looks, so that each look of the first of them is worth it.
_INTERVAL: Final = 0.09
_MAX_POSITIONS: Final = 2_000
_MAX_EVENT_BYTES: Final = 500_000
_MAX_PEOPLE_BYTES: Final = 1_000_000
_MAX_IDS: Final = 500
_MAX_ITEM_BYTES: Final = 20_000


class _CountedLog(Sized, Protocol):
    @property
    def total(self) -> int: ...


class ActivityLog(Protocol):
    """What a feed reads; the application's state. Its lock is held by whoever calls the feed."""

    project: Project
    started: float

    @property
    def requests(self) -> _CountedLog: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedPosition:
    """How far everything had come at one moment: the number of the latest entry of each log.

    Args:
        id: grows from one mark to the next, also over a reset and a restart.
        epoch: counts the resets.
        events: of the events.
        identity: of the identity log.
        rejected: of the rejected records.
        changes: of the changes of people.
        requests: of the requests.
    """

    id: int
    epoch: int
    events: int = 0
    identity: int = 0
    rejected: int = 0
    changes: int = 0
    requests: int = 0


class Feed:
    """One project's news, for any number of viewers.

    Args:
        watched: where to read.
        monotonic: the clock for intervals, in seconds.
    """

    def __init__(self, activity: ActivityLog, monotonic: Callable[[], float]) -> None:
        self._activity = activity
        self._monotonic = monotonic
        self._project = activity.project
        # Milliseconds grow faster than marks are made, so a later run of the emulator begins above an earlier one.
        self._positions = deque([FeedPosition(id=int(activity.started * 1000), epoch=0)], maxlen=_MAX_POSITIONS)
        self._last_update = -_INTERVAL
        self._batch_cache: dict[tuple[int, int, int], list[bytes]] = {}

    def latest_position(self, *, force: bool = False) -> FeedPosition:
        """The latest mark; none is made if nothing happened, and at most ten a second, but for those asked for at once.

        Args:
            at_once: whether the mark must tell of everything until now, as for a viewer that has just come.
        """
        latest = self._positions[-1]
        moment = self._monotonic()
        project = self._activity.project
        if project is not self._project:
            self._project = project
            self._positions.clear()
            self._positions.append(FeedPosition(id=latest.id + 1, epoch=latest.epoch + 1))
        elif moment - self._last_update < _INTERVAL and not force:
            return latest
        self._last_update = moment
        self._batch_cache.clear()
        before = self._positions[-1]
        now = FeedPosition(
            id=before.id + 1,
            epoch=before.epoch,
            events=project.event_rows.total,
            identity=project.identity_rows.total,
            rejected=project.rejections.total,
            changes=project.changed_ids.total,
            requests=self._activity.requests.total,
        )
        if _totals(now) != _totals(before):
            self._positions.append(now)
        return self._positions[-1]

    def history_start(self, latest: FeedPosition) -> FeedPosition:
        """The mark from which a new viewer sees the history."""
        return FeedPosition(id=0, epoch=latest.epoch, requests=latest.requests)

    def find_position(self, last_id: int) -> FeedPosition | None:
        """The mark of an id, to go on from; None if too much happened since, or it is of another time."""
        head = self.latest_position(force=True)
        index = last_id - self._positions[0].id
        if not 0 <= index < len(self._positions):
            return None
        mark = self._positions[index]
        return mark if head.events - mark.events <= HISTORY else None

    def batches(self, after: FeedPosition, up_to: FeedPosition, max_events: int) -> list[bytes]:
        """What happened between two marks, as messages. The last one carries the id of the later mark.

        Args:
            after: what the viewer has seen.
            upto: a mark that `head` gave, of the same epoch.
            history: how many events to give at most, the newest, `BATCH` in a message.
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
        news = {
            "events": events,
            "dropped": up_to.events - seen - len(events),
            "identity": self._identity(after.identity, up_to.identity),
            "rejected": self._rejected(after.rejected, up_to.rejected),
            "requests": up_to.requests - after.requests,
            "people": self._people(after.changes, up_to.changes),
            "stats": activity_counts(self._activity),
        }
        yield sse_message("batch", news, up_to.id)

    def _events(self, after: int, up_to: int) -> list[dict[str, Any]]:
        events = []
        room = _MAX_EVENT_BYTES
        for number, row in reversed(self._project.event_rows.between(after, up_to, BATCH)):
            size = len(row[2])
            events.append(self._event(number, row, max_bytes=min(room, _MAX_ITEM_BYTES)))
            room -= min(size, room)
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
        return [
            {
                "seq": number,
                "event": name,
                "properties": _displayable(payload, None),
                "outcome": verdict.outcome,
                "$failure_reason": verdict.reason,
                "$failure_description": verdict.description,
                "advice": hint(name, verdict.outcome, verdict.reason, verdict.description),
            }
            for number, (name, payload, verdict) in self._project.identity_rows.between(after, up_to, BATCH)
        ]

    def _rejected(self, after: int, up_to: int) -> list[dict[str, Any]]:
        return [
            {
                "seq": number,
                "endpoint": rejection.endpoint,
                "field": shorten(rejection.field),
                "message": shorten(rejection.message),
                "record": rejection.record,
                "silent": rejection.silent,
            }
            for number, rejection in self._project.rejections.between(after, up_to, BATCH)
        ]

    def _people(self, after: int, up_to: int) -> list[orjson.Fragment]:
        """Those who changed, the latest last, each once; the earliest are left out if it is too much."""
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
    """The figures that cost nothing to know."""
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


def sse_message(kind: str, data: Mapping[str, Any], number: int | None = None) -> bytes:
    """One server-sent event. JSON has no line breaks of its own, so its data is one line."""
    head = b"" if number is None else b"id: %d\n" % number
    return b"%bevent: %b\ndata: %b\n\n" % (head, kind.encode(), orjson.dumps(data))


def _totals(position: FeedPosition) -> tuple[int, ...]:
    return position.events, position.identity, position.rejected, position.changes, position.requests


def _displayable(payload: bytes, parsed: Any, max_bytes: int = _MAX_ITEM_BYTES) -> Any:
    """JSON as it is, or a shortened copy of what is too long to be shown."""
    if len(payload) <= max_bytes:
        return orjson.Fragment(payload)
    return shorten(orjson.loads(payload) if parsed is None else parsed)
