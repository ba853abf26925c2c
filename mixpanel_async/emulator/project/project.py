"""One Mixpanel project: its events, its people and its groups.

Pure: it is told the time and does no I/O. Events are kept as compact JSON and read only when somebody asks, so that
taking one is cheap, a million fit in memory, and its person is looked up by what is known at the moment of asking.

Sources: https://docs.mixpanel.com/reference/event-deduplication and Mixpanel's pages on identity management (read
2026-08-21).

Decisions where Mixpanel's documents are silent
    - The duplicate key holds the time as stored, which is not the time as sent if that lay in the future, and the
      `distinct_id` as sent; if none was sent, the one that Simplified ID Merge derives.
    - An event without an `$insert_id` of the client's is shown without one, and never deduplicates.
    - `token` and `ip` stay visible on events, so that tests can check them; `time` is shown in the unit it came in.
      `$import`, `mp_processing_time_ms` and the like are not added.
    - Original: when two people merge, one profile holds the properties of both; where they differ, the value of the
      cluster whose canonical id stays wins.
    - Simplified: the profile of `$device:` is gone once the device is linked; a later update reaches the user.
    - Legacy: an alias leads new updates to the old id's profile and leaves a profile stored under the alias behind,
      which only `$ignore_alias` still reaches.
    - `$merge` on `/track`, where Mixpanel does not take it, is kept as an event without effect; so are all three verbs
      in a Simplified project, with `$identity_failure_reason`.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from sys import intern
from typing import Any, Final

import orjson

from ..storage.change_set import ChangeSet
from .bounded_log import REJECTIONS_LIMIT, BoundedLog, Rejection, shortened
from .checks import Problem, encode, epoch_ms, invalid, is_number
from .identity import (
    DEVICE_LINK,
    MERGE,
    VERBS,
    Identities,
    IdentityResult,
    Link,
    SimplifiedIdentities,
    as_id,
    ignored,
    verb_ids,
)
from .profiles import Geolocate, Profile, apply_update, ignores_alias
from .propagation import DelayedIdentities

IDENTITY_LOG_LIMIT: Final = 100_000
_LOGGED_BYTES: Final = 4_096
"""Properties of an identity verb are logged whole up to this size, as JSON, and shortened beyond."""

# Tuples of plain values, because a million tracked objects would slow down every garbage collection.
Arrival = tuple[str, float]
"""How an event came: the endpoint, and the time in seconds since the epoch."""
Row = tuple[str, str, bytes, Arrival]
"""An event: its name, the id that it counted under as it arrived, its properties as JSON, its arrival."""

_CHANGES_LIMIT: Final = 1_000


class Project:
    """The state of one project.

    Args:
        identities: the system by which ids become people.
        max_events: events kept; the oldest are forgotten beyond that.
        max_bytes: size of the events kept, as JSON; the oldest are forgotten beyond that.
        reports: what reports know of the identities.
        ledger: where changes are noted that are to outlast the process, or None.
        geolocate: gives the properties of the place that an address is at, or is None.
    """

    def __init__(
        self,
        identities: Identities,
        *,
        max_events: int,
        max_bytes: int,
        reports: DelayedIdentities,
        ledger: ChangeSet | None = None,
        geolocate: Geolocate | None = None,
    ) -> None:
        self._identities = identities
        self._reports = reports
        self._ledger = ledger
        self._geolocate = geolocate
        self._max_events = max_events
        self._max_bytes = max_bytes
        self.rows: BoundedLog[Row] = BoundedLog()
        self.log: BoundedLog[tuple[str, bytes, IdentityResult]] = BoundedLog(IDENTITY_LOG_LIMIT)
        self.outcomes: Counter[str] = Counter()
        self.rejections: BoundedLog[Rejection] = BoundedLog(REJECTIONS_LIMIT)
        self.changes: BoundedLog[str] = BoundedLog(_CHANGES_LIMIT)
        self._bytes = 0
        self._profiles: dict[str, Profile] = {}
        self._groups: dict[tuple[str, str], Profile] = {}

    @property
    def is_simplified(self) -> bool:
        return isinstance(self._identities, SimplifiedIdentities)

    def restore(self, saved: ChangeSet) -> None:
        """Become what was kept before a restart. The project must be empty.

        Args:
            saved: everything there is; its lists are used up.
        """
        for at, link in saved.links:
            self._identities.adopt(link)
            self._reports.note(at, link)
        for entry in saved.log:
            self.log.append(entry)
            self.outcomes[entry[2].outcome] += 1
        self._profiles.update((person, profile) for person, profile in saved.profiles.items() if profile is not None)
        for distinct_id in [*self._identities.linked(), *self._profiles]:
            self.changes.append(distinct_id)
        self._groups.update((group, profile) for group, profile in saved.groups.items() if profile is not None)
        for name, person, payload, (endpoint, at) in saved.rows:
            self.rows.append((intern(name), person, payload, (intern(endpoint), at)))
            self._bytes += len(payload)
        saved.rows.clear()
        # Fewer may be kept than before.
        self._trim()

    def take_event(self, name: str, properties: dict[str, Any], arrival: Arrival) -> Problem | None:
        """Store one checked event, and merge whom it merges.

        Args:
            name: name of the event.
            properties: its properties; kept as they are after this call.
            arrival: how it came; `/import` is the only place for `$merge`.

        Returns:
            Why it cannot be stored, or None.
        """
        if name in VERBS:
            return self._take_verb(name, properties, arrival)
        person, device = self._identities.place(properties)
        payload = encode(properties)
        if isinstance(payload, Problem):
            return payload
        if device is not None:
            link = self._identities.claim(device, person)
            if link is not None:
                self._judged(name, payload, link, person, device)
                if link.outcome == "merged":
                    self._linked(arrival[1], Link(DEVICE_LINK, person, device, link.kept))
        self._keep((intern(name), person, payload, arrival))
        return None

    def _take_verb(self, verb: str, properties: dict[str, Any], arrival: Arrival) -> Problem | None:
        payload = encode(properties)
        if isinstance(payload, Problem):
            return payload
        ids = verb_ids(verb, properties)
        if isinstance(ids, str):
            return invalid(ids, "must not be missing")
        if verb == MERGE and arrival[0] != "/import":
            verdict = ignored("$merge is taken by /import only")
        else:
            verdict = self._identities.apply(verb, *ids)
        self._judged(verb, payload, verdict, *ids)
        if verdict.outcome in {"merged", "unchanged"}:
            self._linked(arrival[1], Link(verb, *ids, verdict.kept))
        if self.is_simplified:
            properties["$identity_failure_reason"] = verdict.description
        elif verdict.reason is not None:
            properties["$failure_reason"] = verdict.reason
            properties["$failure_description"] = verdict.description
        sent = as_id(properties.get("distinct_id"))
        person, _ = self._identities.place({"distinct_id": sent if sent or verb == MERGE else ids[0]})
        self._keep((verb, person, bytes(memoryview(orjson.dumps(properties))), arrival))
        return None

    def note_rejected(self, verb: str, properties: Mapping[str, Any], description: str) -> None:
        """Log an identity verb that the endpoint refused to store."""
        payload = encode(properties)
        if not isinstance(payload, Problem):
            self._judged(verb, payload, IdentityResult(outcome="failed", description=description))

    def note_refusal(self, endpoint: str, problem: Problem, record: Any, *, silent: bool = False) -> None:
        """Log a record, or with None a request as a whole, that is not stored."""
        self.rejections.append(Rejection(endpoint, problem.field, problem.message, shortened(record), silent))

    def _judged(self, name: str, payload: bytes, verdict: IdentityResult, *ids: str) -> None:
        """Log what an identity verb came to, carry it out on the profiles, and note whom it concerned."""
        self._merge_profiles(verdict)
        if len(payload) > _LOGGED_BYTES:
            payload = bytes(memoryview(orjson.dumps(shortened(orjson.loads(payload)))))
        self.log.append((name, payload, verdict))
        self.outcomes[verdict.outcome] += 1
        if self._ledger is not None:
            self._ledger.log.append((name, payload, verdict))
        for distinct_id in ids:
            self.changes.append(distinct_id)

    def _linked(self, at: float, link: Link) -> None:
        self._reports.note(at, link)
        if self._ledger is not None:
            self._ledger.links.append((at, link))

    def _keep(self, row: Row) -> None:
        self.rows.append(row)
        self._bytes += len(row[2])
        if self._ledger is not None:
            self._ledger.rows.append(row)
        if self._bytes > self._max_bytes or len(self.rows) > self._max_events:
            self._trim()

    def _trim(self) -> None:
        while len(self.rows) > self._max_events or self._bytes > self._max_bytes:
            self._bytes -= len(self.rows.forget_oldest()[2])
            if self._ledger is not None:
                self._ledger.forgotten += 1

    def _merge_profiles(self, verdict: IdentityResult) -> None:
        if verdict.kept is None or verdict.absorbed is None:
            return
        absorbed = self._profiles.get(verdict.absorbed)
        if absorbed is None:
            return
        self._put_profile(verdict.absorbed, None)
        if not self.is_simplified:
            self._put_profile(verdict.kept, {**absorbed, **self._profiles.get(verdict.kept, {})})

    def _put_profile(self, person: str, profile: Profile | None) -> None:
        if profile is None:
            self._profiles.pop(person, None)
        else:
            self._profiles[person] = profile
        if self._ledger is not None:
            self._ledger.profiles[person] = profile

    def update_profile(self, distinct_id: str, record: Mapping[str, Any], now: float, address: str = "") -> None:
        """Apply one `/engage` record.

        Args:
            distinct_id: any id of the person.
            record: the update with its envelope.
            now: the clock, in seconds.
            address: of the sender, if the user may be taken to be there; else empty.

        Raises:
            RefusedUpdateError: if the record is malformed.
        """
        person = distinct_id if ignores_alias(record) else self._identities.resolve(distinct_id)
        updated = apply_update(
            self._profiles.get(person), record, now=now, is_group=False, geolocate=self._geolocate, address=address
        )
        self._put_profile(person, updated)
        self.changes.append(person)

    def update_group(self, key: str, group_id: str, record: Mapping[str, Any], now: float) -> None:
        """Apply one `/groups` record.

        Raises:
            RefusedUpdateError: if the record is malformed.
        """
        updated = apply_update(self._groups.get((key, group_id)), record, now=now, is_group=True)
        if updated is None:
            self._groups.pop((key, group_id), None)
        else:
            self._groups[key, group_id] = updated
        if self._ledger is not None:
            self._ledger.groups[key, group_id] = updated

    def raw_events(self, name: str | None) -> list[dict[str, Any]]:
        """Every copy in the order of arrival, under the id that it counted under then."""
        events = []
        for row in self._named(name):
            properties, sent = read_row(row)
            if sent != row[1]:
                properties["$distinct_id_before_identity"] = sent
            properties["distinct_id"] = row[1]
            events.append({"event": row[0], "properties": properties})
        return events

    def events(self, name: str | None) -> list[dict[str, Any]]:
        """Each event once, under the person whom it counts for now; a duplicate takes the place of the first copy."""
        known = self._reports.identities()
        latest: dict[object, dict[str, Any]] = {}
        for number, row in enumerate(self._named(name)):
            properties, sent = read_row(row)
            properties["$distinct_id_before_identity"] = sent
            properties["distinct_id"] = known.counts_as(row[1])
            latest[_duplicate_key(row[0], sent, properties) or number] = {"event": row[0], "properties": properties}
        return list(latest.values())

    def _named(self, name: str | None) -> Iterator[Row]:
        return (row for row in self.rows if name is None or row[0] == name)

    def profile(self, distinct_id: str) -> Profile | None:
        return copy.deepcopy(self._profiles.get(self._identities.resolve(distinct_id)))

    def profiles(self) -> dict[str, Profile]:
        return copy.deepcopy(self._profiles)

    def all_profiles(self) -> dict[str, Profile]:
        """Every profile by canonical id; not copies."""
        return dict(self._profiles)

    def group(self, key: str, group_id: str) -> Profile | None:
        return copy.deepcopy(self._groups.get((key, group_id)))

    @property
    def profile_count(self) -> int:
        return len(self._profiles)

    @property
    def group_count(self) -> int:
        return len(self._groups)

    def duplicate_count(self) -> int:
        """How many of the stored events are further copies of another."""
        keys: set[object] = set()
        without = 0
        for row in self.rows:
            properties, sent = read_row(row)
            key = _duplicate_key(row[0], sent, properties)
            if key is None:
                without += 1
            else:
                keys.add(key)
        return len(self.rows) - len(keys) - without

    def shown_as(self, row: Row) -> str:
        """Whom a stored event counts for now."""
        return self._reports.identities().counts_as(row[1])

    def home(self, distinct_id: str) -> str:
        """The canonical id by any id, as ingestion knows it, whatever reports know."""
        return self._identities.resolve(distinct_id)

    def person(self, canonical: str) -> tuple[set[str], Profile | None]:
        """All ids of a person, and the profile, which is not a copy."""
        return self._identities.cluster(canonical), self._profiles.get(canonical)

    def resolve(self, distinct_id: str) -> str:
        """The canonical id, as reports know it."""
        return self._reports.identities().resolve(distinct_id)

    def cluster(self, distinct_id: str) -> set[str]:
        return self._identities.cluster(distinct_id)

    def clusters(self) -> list[set[str]]:
        """Everybody known from an event in the history, a profile or a link, in the order of first appearance."""
        people: dict[str, set[str]] = {}
        for distinct_id in self._known():
            if distinct_id:
                person = self._identities.resolve(distinct_id)
                people.setdefault(person, {person}).add(distinct_id)
        return list(people.values())

    def _known(self) -> Iterator[str]:
        for name, person, payload, _ in self.rows:
            yield person
            if name in VERBS and not self.is_simplified:
                ids = verb_ids(name, orjson.loads(payload))
                if not isinstance(ids, str):
                    yield from ids
        yield from self._profiles
        yield from self._identities.linked()

    def identity_log(self) -> list[dict[str, Any]]:
        """Each identity verb, and each link of a device in Simplified, with what it came to."""
        return [
            {
                "event": name,
                "properties": orjson.loads(payload),
                "outcome": verdict.outcome,
                "$failure_reason": verdict.reason,
                "$failure_description": verdict.description,
            }
            for name, payload, verdict in self.log
        ]


def read_row(row: Row) -> tuple[dict[str, Any], str]:
    """An event's properties, and the id that it was sent with."""
    properties: dict[str, Any] = orjson.loads(row[2])
    return properties, as_id(properties.get("distinct_id")) or row[1]


def _duplicate_key(name: str, sent: str, properties: Mapping[str, Any]) -> tuple[str, int, str, str] | None:
    insert_id, time = properties.get("$insert_id"), properties.get("time")
    if type(insert_id) is not str or not insert_id or not is_number(time):
        return None
    return name, epoch_ms(time), sent, insert_id
