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
from collections import deque
from collections.abc import Iterator, Mapping
from sys import intern
from typing import Any, Final

import orjson

from .checks import Problem, encode, epoch_ms, invalid, is_number
from .identity import MERGE, VERBS, Identities, SimplifiedIdentities, Verdict, as_id, ignored, verb_ids
from .profiles import Profile, apply_update, ignores_alias

IDENTITY_LOG_LIMIT: Final = 100_000

# Tuples of plain values, because a million tracked objects would slow down every garbage collection:
# event name, id that it counted under as it arrived, properties as JSON.
_Row = tuple[str, str, bytes]


class Project:
    """The state of one project.

    Args:
        identities: the system by which ids become people.
        max_events: events kept; the oldest are forgotten beyond that.
        max_bytes: size of the events kept, as JSON; the oldest are forgotten beyond that.
    """

    def __init__(self, identities: Identities, *, max_events: int, max_bytes: int) -> None:
        self._identities = identities
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._rows: deque[_Row] = deque()
        self._bytes = 0
        self._profiles: dict[str, Profile] = {}
        self._groups: dict[tuple[str, str], Profile] = {}
        self._log: deque[tuple[str, bytes, Verdict]] = deque(maxlen=IDENTITY_LOG_LIMIT)

    @property
    def is_simplified(self) -> bool:
        return isinstance(self._identities, SimplifiedIdentities)

    def take_event(self, name: str, properties: dict[str, Any], *, imported: bool) -> Problem | None:
        """Store one checked event, and merge whom it merges.

        Args:
            name: name of the event.
            properties: its properties; kept as they are after this call.
            imported: whether it came by `/import`, the only place for `$merge`.

        Returns:
            Why it cannot be stored, or None.
        """
        if name in VERBS:
            return self._take_verb(name, properties, imported=imported)
        person, device = self._identities.place(properties)
        payload = encode(properties)
        if isinstance(payload, Problem):
            return payload
        if device is not None:
            link = self._identities.claim(device, person)
            if link is not None:
                self._merge_profiles(link)
                self._log.append((name, payload, link))
        self._keep((intern(name), person, payload))
        return None

    def _take_verb(self, verb: str, properties: dict[str, Any], *, imported: bool) -> Problem | None:
        payload = encode(properties)
        if isinstance(payload, Problem):
            return payload
        ids = verb_ids(verb, properties)
        if isinstance(ids, str):
            return invalid(ids, "must not be missing")
        if verb == MERGE and not imported:
            verdict = ignored("$merge is taken by /import only")
        else:
            verdict = self._identities.apply(verb, *ids)
        self._merge_profiles(verdict)
        self._log.append((verb, payload, verdict))
        if self.is_simplified:
            properties["$identity_failure_reason"] = verdict.description
        elif verdict.reason is not None:
            properties["$failure_reason"] = verdict.reason
            properties["$failure_description"] = verdict.description
        sent = as_id(properties.get("distinct_id"))
        person, _ = self._identities.place({"distinct_id": sent if sent or verb == MERGE else ids[0]})
        self._keep((verb, person, bytes(memoryview(orjson.dumps(properties)))))
        return None

    def note_rejected(self, verb: str, properties: Mapping[str, Any], description: str) -> None:
        """Log an identity verb that the endpoint refused to store."""
        payload = encode(properties)
        if not isinstance(payload, Problem):
            self._log.append((verb, payload, Verdict(outcome="failed", description=description)))

    def _keep(self, row: _Row) -> None:
        self._rows.append(row)
        self._bytes += len(row[2])
        while len(self._rows) > self._max_events or self._bytes > self._max_bytes:
            self._bytes -= len(self._rows.popleft()[2])

    def _merge_profiles(self, verdict: Verdict) -> None:
        if verdict.kept is None or verdict.absorbed is None:
            return
        absorbed = self._profiles.pop(verdict.absorbed, None)
        if absorbed is None or self.is_simplified:
            return
        self._profiles[verdict.kept] = {**absorbed, **self._profiles.get(verdict.kept, {})}

    def update_profile(self, distinct_id: str, record: Mapping[str, Any], now: float) -> None:
        """Apply one `/engage` record.

        Raises:
            RefusedUpdateError: if the record is malformed.
        """
        person = distinct_id if ignores_alias(record) else self._identities.resolve(distinct_id)
        updated = apply_update(self._profiles.get(person), record, now=now, is_group=False)
        if updated is None:
            self._profiles.pop(person, None)
        else:
            self._profiles[person] = updated

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

    def raw_events(self, name: str | None) -> list[dict[str, Any]]:
        """Every copy in the order of arrival, under the id that it counted under then."""
        events = []
        for row in self._named(name):
            properties, sent = _read(row)
            if sent != row[1]:
                properties["$distinct_id_before_identity"] = sent
            properties["distinct_id"] = row[1]
            events.append({"event": row[0], "properties": properties})
        return events

    def events(self, name: str | None) -> list[dict[str, Any]]:
        """Each event once, under the person whom it counts for now; a duplicate takes the place of the first copy."""
        latest: dict[object, dict[str, Any]] = {}
        for number, row in enumerate(self._named(name)):
            properties, sent = _read(row)
            properties["$distinct_id_before_identity"] = sent
            properties["distinct_id"] = self._identities.counts_as(row[1])
            latest[_duplicate_key(row[0], sent, properties) or number] = {"event": row[0], "properties": properties}
        return list(latest.values())

    def _named(self, name: str | None) -> Iterator[_Row]:
        return (row for row in self._rows if name is None or row[0] == name)

    def profile(self, distinct_id: str) -> Profile | None:
        return copy.deepcopy(self._profiles.get(self._identities.resolve(distinct_id)))

    def profiles(self) -> dict[str, Profile]:
        return copy.deepcopy(self._profiles)

    def group(self, key: str, group_id: str) -> Profile | None:
        return copy.deepcopy(self._groups.get((key, group_id)))

    def resolve(self, distinct_id: str) -> str:
        return self._identities.resolve(distinct_id)

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
        for name, person, payload in self._rows:
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
            for name, payload, verdict in self._log
        ]


def _read(row: _Row) -> tuple[dict[str, Any], str]:
    """An event's properties, and the id that it was sent with."""
    properties: dict[str, Any] = orjson.loads(row[2])
    return properties, as_id(properties.get("distinct_id")) or row[1]


def _duplicate_key(name: str, sent: str, properties: Mapping[str, Any]) -> tuple[str, int, str, str] | None:
    insert_id, time = properties.get("$insert_id"), properties.get("time")
    if type(insert_id) is not str or not insert_id or not is_number(time):
        return None
    return name, epoch_ms(time), sent, insert_id
