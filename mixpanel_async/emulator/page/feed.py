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

from ..project.bounded_log import shortened
from ..project.hints import hint
from ..project.project import Project, Row, read_row

HISTORY: Final = 2_000
"""Events that a viewer sees of the time before it came, or misses without having to start anew."""

BATCH: Final = 200
"""Events, entries of the identity log, and rejected records in one message, at most of each."""

# A little less than viewers wait between two looks, so that each look of the first of them is worth it.
_INTERVAL: Final = 0.09
_MAX_MARKS: Final = 2_000
_MAX_EVENT_BYTES: Final = 500_000
_MAX_PEOPLE_BYTES: Final = 1_000_000
_MAX_IDS: Final = 500
_MAX_ITEM_BYTES: Final = 20_000


class _Logged(Sized, Protocol):
    @property
    def total(self) -> int: ...


class ActivityLog(Protocol):
    """What a feed reads; the application's state. Its lock is held by whoever calls the feed."""

    project: Project
    started: float

    @property
    def requests(self) -> _Logged: ...


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

    def __init__(self, watched: ActivityLog, monotonic: Callable[[], float]) -> None:
        self._watched = watched
        self._monotonic = monotonic
        self._project = watched.project
        # Milliseconds grow faster than marks are made, so a later run of the emulator begins above an earlier one.
        self._marks = deque([FeedPosition(id=int(watched.started * 1000), epoch=0)], maxlen=_MAX_MARKS)
        self._looked = -_INTERVAL
        self._made: dict[tuple[int, int, int], list[bytes]] = {}

    def head(self, *, at_once: bool = False) -> FeedPosition:
        """The latest mark; none is made if nothing happened, and at most ten a second, but for those asked for at once.

        Args:
            at_once: whether the mark must tell of everything until now, as for a viewer that has just come.
        """
        latest = self._marks[-1]
        moment = self._monotonic()
        project = self._watched.project
        if project is not self._project:
            self._project = project
            self._marks.clear()
            self._marks.append(FeedPosition(id=latest.id + 1, epoch=latest.epoch + 1))
        elif moment - self._looked < _INTERVAL and not at_once:
            return latest
        self._looked = moment
        self._made.clear()
        before = self._marks[-1]
        now = FeedPosition(
            id=before.id + 1,
            epoch=before.epoch,
            events=project.rows.total,
            identity=project.log.total,
            rejected=project.rejections.total,
            changes=project.changes.total,
            requests=self._watched.requests.total,
        )
        if _counts(now) != _counts(before):
            self._marks.append(now)
        return self._marks[-1]

    def start(self, head: FeedPosition) -> FeedPosition:
        """The mark from which a new viewer sees the history."""
        return FeedPosition(id=0, epoch=head.epoch, requests=head.requests)

    def found(self, last_id: int) -> FeedPosition | None:
        """The mark of an id, to go on from; None if too much happened since, or it is of another time."""
        head = self.head(at_once=True)
        index = last_id - self._marks[0].id
        if not 0 <= index < len(self._marks):
            return None
        mark = self._marks[index]
        return mark if head.events - mark.events <= HISTORY else None

    def batches(self, after: FeedPosition, upto: FeedPosition, history: int) -> list[bytes]:
        """What happened between two marks, as messages. The last one carries the id of the later mark.

        Args:
            after: what the viewer has seen.
            upto: a mark that `head` gave, of the same epoch.
            history: how many events to give at most, the newest, `BATCH` in a message.
        """
        key = (after.id, upto.id, history)
        if key not in self._made:
            self._made[key] = list(self._batches(after, upto, history))
        return self._made[key]

    def _batches(self, after: FeedPosition, upto: FeedPosition, history: int) -> Iterator[bytes]:
        first = max(after.events, upto.events - history)
        seen = after.events
        for last in range(first + BATCH, upto.events, BATCH):
            events = self._events(first, last)
            yield message("batch", {"events": events, "dropped": last - seen - len(events)})
            first = seen = last
        events = self._events(first, upto.events)
        news = {
            "events": events,
            "dropped": upto.events - seen - len(events),
            "identity": self._identity(after.identity, upto.identity),
            "rejected": self._rejected(after.rejected, upto.rejected),
            "requests": upto.requests - after.requests,
            "people": self._people(after.changes, upto.changes),
            "stats": counts(self._watched),
        }
        yield message("batch", news, upto.id)

    def _events(self, after: int, upto: int) -> list[dict[str, Any]]:
        events = []
        room = _MAX_EVENT_BYTES
        for number, row in reversed(self._project.rows.between(after, upto, BATCH)):
            size = len(row[2])
            events.append(self._event(number, row, most=min(room, _MAX_ITEM_BYTES)))
            room -= min(size, room)
        return events[::-1]

    def _event(self, number: int, row: Row, *, most: int) -> dict[str, Any]:
        properties, sent = read_row(row)
        name, _, payload, (endpoint, received_at) = row
        return {
            "seq": number,
            "event": name,
            "time": properties.get("time"),
            "distinct_id": self._project.shown_as(row),
            "sent_id": sent,
            "insert_id": shortened(properties.get("$insert_id")),
            "properties": _bounded(payload, properties, most),
            "endpoint": endpoint,
            "received_at": received_at,
        }

    def _identity(self, after: int, upto: int) -> list[dict[str, Any]]:
        return [
            {
                "seq": number,
                "event": name,
                "properties": _bounded(payload, None),
                "outcome": verdict.outcome,
                "$failure_reason": verdict.reason,
                "$failure_description": verdict.description,
                "advice": hint(name, verdict.outcome, verdict.reason, verdict.description),
            }
            for number, (name, payload, verdict) in self._project.log.between(after, upto, BATCH)
        ]

    def _rejected(self, after: int, upto: int) -> list[dict[str, Any]]:
        return [
            {
                "seq": number,
                "endpoint": rejection.endpoint,
                "field": shortened(rejection.field),
                "message": shortened(rejection.message),
                "record": rejection.record,
                "silent": rejection.silent,
            }
            for number, rejection in self._project.rejections.between(after, upto, BATCH)
        ]

    def _people(self, after: int, upto: int) -> list[orjson.Fragment]:
        """Those who changed, the latest last, each once; the earliest are left out if it is too much."""
        changed = self._project.changes.between(after, upto, upto - after)
        people: dict[str, bytes] = {}
        size = 0
        for distinct_id in dict.fromkeys(one for _, one in reversed(changed)):
            canonical = self._project.home(distinct_id)
            if canonical not in people and size < _MAX_PEOPLE_BYTES:
                people[canonical] = self._person(canonical)
                size += len(people[canonical])
        return [orjson.Fragment(person) for person in reversed(people.values())]

    def _person(self, canonical: str) -> bytes:
        ids, profile = self._project.person(canonical)
        person = {
            "canonical": canonical,
            "ids": sorted(islice(ids, _MAX_IDS)),
            "profile": None if profile is None else _bounded(orjson.dumps(profile), profile),
        }
        return orjson.dumps(person)


def counts(watched: ActivityLog) -> dict[str, Any]:
    """The figures that cost nothing to know."""
    project = watched.project
    return {
        "events": {"stored": len(project.rows), "ingested": project.rows.total},
        "profiles": project.profile_count,
        "groups": project.group_count,
        "requests": watched.requests.total,
        "rejected": project.rejections.total,
        "identity": {outcome: project.outcomes[outcome] for outcome in ("merged", "unchanged", "failed", "ignored")},
        "started": watched.started,
    }


def message(kind: str, data: Mapping[str, Any], number: int | None = None) -> bytes:
    """One server-sent event. JSON has no line breaks of its own, so its data is one line."""
    head = b"" if number is None else b"id: %d\n" % number
    return b"%bevent: %b\ndata: %b\n\n" % (head, kind.encode(), orjson.dumps(data))


def _counts(mark: FeedPosition) -> tuple[int, ...]:
    return mark.events, mark.identity, mark.rejected, mark.changes, mark.requests


def _bounded(payload: bytes, parsed: Any, most: int = _MAX_ITEM_BYTES) -> Any:
    """JSON as it is, or a shortened copy of what is too long to be shown."""
    if len(payload) <= most:
        return orjson.Fragment(payload)
    return shortened(orjson.loads(payload) if parsed is None else parsed)
