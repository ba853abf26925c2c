"""Data of one Mixpanel project: events, people and groups.

Pure: no I/O, and callers pass the current time. Events are stored as compact JSON and parsed only when they are read.
Storing an event is therefore cheap, a million events fit in memory, and the person of an event is resolved with the
mappings known at the time of reading.

Sources: https://docs.mixpanel.com/reference/event-deduplication and Mixpanel's pages on identity management (read
2026-08-21).

Decisions where Mixpanel's documents are silent
    - The duplicate key contains the stored time, which differs from the time as sent if that was in the future. It also
      contains the `distinct_id` as sent, or the one that Simplified ID Merge derives if none was sent.
    - An event without an `$insert_id` is shown without one, and is never deduplicated.
    - `token` and `ip` stay visible on events, so that tests can check them. `time` keeps the unit in which it was sent.
      `$import`, `mp_processing_time_ms` and similar properties are not added.
    - Original: when two people merge, their profiles merge. For a property of both, the value from the profile of the
      remaining canonical id wins.
    - Simplified: the profile of a `$device:` id is deleted when the device is linked. Later updates go to the user.
    - Legacy: an alias directs new updates to the profile of the old id. A profile stored under the alias remains, and
      only updates with `$ignore_alias` reach it.
    - `$merge` on `/track`, which Mixpanel does not support, is stored as an event without effect. So are all three
      identity calls in a Simplified project, with `$identity_failure_reason`, except an `$identify` that joins a device
      like any event.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from sys import intern
from typing import Any, Final

import orjson

from mixpanel_async.identity.calls import DEVICE_LINK, MERGE, VERBS, as_id, id_problem, verb_ids
from mixpanel_async.identity.results import IdentityResult, Reason, ignored_result
from mixpanel_async.identity.systems import Identities, Link, SimplifiedIdentities

from .bounded_log import BoundedLog
from .change_set import Arrival, ChangeSet, EventRow, IdentityRow, UpdateRow
from .checks import Problem, encode_properties, invalid_property
from .lookup_tables import LookupTables
from .profiles import Geolocate, Profile, apply_update, ignores_alias
from .propagation import DelayedIdentities
from .rejections import REJECTIONS_LIMIT, Rejection, shorten
from .unsupported import UnsupportedRequests

IDENTITY_LOG_LIMIT: Final = 100_000
_MAX_LOGGED_BYTES: Final = 4_096
"""Maximum size in bytes of JSON up to which an identity call or profile update is logged without shortening."""

# Paths of fields contain names of properties, which can be as long as a request.
_MAX_LOGGED_TEXT: Final = 500
_CHANGES_LIMIT: Final = 1_000


class Project:
    """State of one project.

    Args:
        identities: ID merge system of the project.
        max_events: maximum number of events kept.
        max_bytes: maximum size of the events kept, in bytes of JSON.
        delayed: identities as reports see them.
        changes: collects the changes to be written to disk; None if the project is kept in memory only.
        geolocate: returns location properties for an IP address; None disables geolocation.
    """

    def __init__(
        self,
        identities: Identities,
        *,
        max_events: int,
        max_bytes: int,
        delayed: DelayedIdentities,
        changes: ChangeSet | None = None,
        geolocate: Geolocate | None = None,
    ) -> None:
        self._identities = identities
        self._delayed = delayed
        self._changes = changes
        self._geolocate = geolocate
        self._max_events = max_events
        self._max_bytes = max_bytes
        self.event_rows: BoundedLog[EventRow] = BoundedLog()
        self.identity_rows: BoundedLog[IdentityRow] = BoundedLog(IDENTITY_LOG_LIMIT)
        self.outcome_counts: Counter[str] = Counter()
        self.rejections: BoundedLog[Rejection] = BoundedLog(REJECTIONS_LIMIT)
        self.changed_ids: BoundedLog[str] = BoundedLog(_CHANGES_LIMIT)
        self.changed_groups: BoundedLog[tuple[str, str]] = BoundedLog(_CHANGES_LIMIT)
        self.profile_updates: BoundedLog[UpdateRow] = BoundedLog(_CHANGES_LIMIT)
        self.unsupported = UnsupportedRequests()
        self.lookup_tables = LookupTables()
        self._bytes = 0
        self._profiles: dict[str, Profile] = {}
        self._groups: dict[tuple[str, str], Profile] = {}

    @property
    def is_simplified(self) -> bool:
        return isinstance(self._identities, SimplifiedIdentities)

    def restore(self, saved: ChangeSet) -> None:
        """Load the data stored before a restart. The project must be empty.

        Args:
            saved: all data of the project. Its list of events is emptied.
        """
        for at, link in saved.links:
            self._identities.restore_link(link)
            self._delayed.add(at, link)
        for entry in saved.identity_rows:
            self.identity_rows.append(entry)
            self.outcome_counts[entry[2].outcome] += 1
        self._profiles.update((person, profile) for person, profile in saved.profiles.items() if profile is not None)
        for distinct_id in [*self._identities.linked_ids(), *self._profiles]:
            self.changed_ids.append(distinct_id)
        self._groups.update((group, profile) for group, profile in saved.groups.items() if profile is not None)
        for group in self._groups:
            self.changed_groups.append(group)
        for name, person, payload, (endpoint, at) in saved.event_rows:
            self.event_rows.append((intern(name), person, payload, (intern(endpoint), at)))
            self._bytes += len(payload)
        saved.event_rows.clear()
        # The limits may be lower than before the restart.
        self._trim()

    def store_event(self, name: str, properties: dict[str, Any], arrival: Arrival) -> Problem | None:
        """Store one validated event, and apply the identity links it makes.

        Args:
            name: name of the event.
            properties: properties of the event. Derived properties are added in place.
            arrival: endpoint and time of arrival. Only `/import` accepts `$merge`.

        Returns:
            The reason why the event cannot be stored, or None.
        """
        if name in VERBS and not self._identities.is_ordinary(name, properties):
            return self._store_identity_event(name, properties, arrival)
        person, device = self._identities.attribute_event(properties)
        payload = encode_properties(properties)
        if isinstance(payload, Problem):
            return payload
        if device is not None:
            link = self._identities.link_device(device, person)
            if link is not None:
                self._record_identity_result(name, payload, link, person, device)
                if link.outcome == "merged":
                    self._record_link(arrival[1], Link(DEVICE_LINK, person, device, link.kept))
        self._append_event((intern(name), person, payload, arrival))
        return None

    def _store_identity_event(self, verb: str, properties: dict[str, Any], arrival: Arrival) -> Problem | None:
        payload = encode_properties(properties)
        if isinstance(payload, Problem):
            return payload
        ids = verb_ids(verb, properties)
        if isinstance(ids, str):
            return invalid_property(ids, id_problem(ids, properties.get(ids)))
        if verb == MERGE and arrival[0] != "/import":
            result = ignored_result(Reason.NEEDS_IMPORT, "$merge is accepted by /import only")
        else:
            result = self._identities.apply(verb, *ids)
        self._record_identity_result(verb, payload, result, *ids)
        if result.outcome in {"merged", "unchanged"}:
            self._record_link(arrival[1], Link(verb, *ids, result.kept))
        if self.is_simplified:
            properties["$identity_failure_reason"] = result.description
        elif result.failure_code is not None:
            properties["$failure_reason"] = result.failure_code
            properties["$failure_description"] = result.description
        sent = as_id(properties.get("distinct_id"))
        person, _ = self._identities.attribute_event(
            {**properties, "distinct_id": sent if sent or verb == MERGE else ids[0]}
        )
        self._append_event((verb, person, bytes(memoryview(orjson.dumps(properties))), arrival))
        return None

    def log_refused_identity_event(self, verb: str, properties: Mapping[str, Any], description: str) -> None:
        """Log an identity call that the endpoint refused to store."""
        payload = encode_properties(properties)
        if not isinstance(payload, Problem):
            self._record_identity_result(verb, payload, IdentityResult(outcome="failed", description=description))

    def log_rejection(self, endpoint: str, problem: Problem, record: Any, *, silent: bool = False) -> None:
        """Log a record that is not stored, or a whole request if `record` is None."""
        field, message = problem.field[:_MAX_LOGGED_TEXT], problem.message[:_MAX_LOGGED_TEXT]
        self.rejections.append(Rejection(endpoint, field, message, shorten(record), silent))

    def _record_identity_result(self, name: str, payload: bytes, result: IdentityResult, *ids: str) -> None:
        """Log the result of an identity call, merge the profiles, and mark its ids as changed."""
        self._merge_profiles(result)
        payload = _loggable(payload)
        self.identity_rows.append((name, payload, result))
        self.outcome_counts[result.outcome] += 1
        if self._changes is not None:
            self._changes.identity_rows.append((name, payload, result))
        for distinct_id in ids:
            self.changed_ids.append(distinct_id)

    def _record_link(self, at: float, link: Link) -> None:
        self._delayed.add(at, link)
        if self._changes is not None:
            self._changes.links.append((at, link))

    def _append_event(self, row: EventRow) -> None:
        self.event_rows.append(row)
        self._bytes += len(row[2])
        if self._changes is not None:
            self._changes.event_rows.append(row)
        if self._bytes > self._max_bytes or len(self.event_rows) > self._max_events:
            self._trim()

    def _trim(self) -> None:
        while len(self.event_rows) > self._max_events or self._bytes > self._max_bytes:
            self._bytes -= len(self.event_rows.pop_oldest()[2])
            if self._changes is not None:
                self._changes.remove_oldest_event()

    def _merge_profiles(self, result: IdentityResult) -> None:
        if result.kept is None or result.absorbed is None:
            return
        absorbed = self._profiles.get(result.absorbed)
        if absorbed is None:
            return
        self._put_profile(result.absorbed, None)
        if not self.is_simplified:
            self._put_profile(result.kept, {**absorbed, **self._profiles.get(result.kept, {})})

    def _put_profile(self, person: str, profile: Profile | None) -> None:
        if profile is None:
            self._profiles.pop(person, None)
        else:
            self._profiles[person] = profile
        if self._changes is not None:
            self._changes.profiles[person] = profile

    def update_profile(self, distinct_id: str, record: Mapping[str, Any], now: float, address: str = "") -> None:
        """Apply one `/engage` record.

        Args:
            distinct_id: any id of the person.
            record: the update with its envelope.
            now: current time in seconds since the epoch.
            address: IP address of the sender, for geolocation; empty disables it.

        Raises:
            InvalidUpdateError: if the record is malformed.
        """
        person = distinct_id if ignores_alias(record) else self._identities.resolve(distinct_id)
        updated = apply_update(
            self._profiles.get(person), record, now=now, is_group=False, geolocate=self._geolocate, address=address
        )
        self._put_profile(person, updated)
        self.changed_ids.append(person)
        self._log_update("", person, record, now)

    def update_group(self, key: str, group_id: str, record: Mapping[str, Any], now: float) -> None:
        """Apply one `/groups` record.

        Raises:
            InvalidUpdateError: if the record is malformed.
        """
        updated = apply_update(self._groups.get((key, group_id)), record, now=now, is_group=True)
        if updated is None:
            self._groups.pop((key, group_id), None)
        else:
            self._groups[key, group_id] = updated
        if self._changes is not None:
            self._changes.groups[key, group_id] = updated
        self.changed_groups.append((key, group_id))
        self._log_update(key, group_id, record, now)

    def _log_update(self, group_key: str, profile_id: str, record: Mapping[str, Any], now: float) -> None:
        payload = encode_properties(record)
        if not isinstance(payload, Problem):
            self.profile_updates.append((group_key, profile_id, _loggable(payload), now))

    def rows(self, name: str | None = None) -> list[EventRow]:
        """Return the stored events in order of arrival, or those with a name."""
        return [row for row in self.event_rows if name is None or row[0] == name]

    def reported_rows(self, name: str | None = None) -> list[tuple[EventRow, str]]:
        """Return the stored events, each with the id of the person it counts for now."""
        known = self._delayed.identities()
        return [(row, known.current_id(row[1])) for row in self.rows(name)]

    def profile(self, distinct_id: str) -> Profile | None:
        return copy.deepcopy(self._profiles.get(self._identities.resolve(distinct_id)))

    def all_profiles(self) -> dict[str, Profile]:
        """Return all profiles by canonical id, without copying them."""
        return dict(self._profiles)

    def group(self, key: str, group_id: str) -> Profile | None:
        return copy.deepcopy(self._groups.get((key, group_id)))

    def group_profile(self, key: str, group_id: str) -> Profile | None:
        """Return the profile of a group, without copying it."""
        return self._groups.get((key, group_id))

    @property
    def profile_count(self) -> int:
        return len(self._profiles)

    @property
    def group_count(self) -> int:
        return len(self._groups)

    def reported_id(self, row: EventRow) -> str:
        """Return the canonical id that reports show for a stored event now."""
        return self._delayed.identities().current_id(row[1])

    def canonical_id(self, distinct_id: str) -> str:
        """Return the canonical id of an id as ingestion sees it, without the delay of reports."""
        return self._identities.resolve(distinct_id)

    def person(self, canonical: str) -> tuple[set[str], Profile | None]:
        """Return all ids of a person and the profile, without copying it."""
        return self._identities.cluster(canonical), self._profiles.get(canonical)

    def reported_canonical_id(self, distinct_id: str) -> str:
        """Return the canonical id of an id as reports see it."""
        return self._delayed.identities().resolve(distinct_id)

    def cluster(self, distinct_id: str) -> set[str]:
        return self._identities.cluster(distinct_id)

    def clusters(self) -> list[set[str]]:
        """Return the ids of each person in an event, a profile or a link, in order of first appearance."""
        people: dict[str, set[str]] = {}
        for distinct_id in self._known_ids():
            if distinct_id:
                person = self._identities.resolve(distinct_id)
                people.setdefault(person, {person}).add(distinct_id)
        return list(people.values())

    def _known_ids(self) -> Iterator[str]:
        for name, person, payload, _ in self.event_rows:
            yield person
            if name in VERBS and not self.is_simplified:
                ids = verb_ids(name, orjson.loads(payload))
                if not isinstance(ids, str):
                    yield from ids
        yield from self._profiles
        yield from self._identities.linked_ids()


def _loggable(payload: bytes) -> bytes:
    """Return JSON unchanged, or a shortened copy if it is too long for a log."""
    if len(payload) <= _MAX_LOGGED_BYTES:
        return payload
    return bytes(memoryview(orjson.dumps(shorten(orjson.loads(payload)))))
