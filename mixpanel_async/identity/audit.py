"""`Audit`: finds faults in the ids of a project, from its events in any order. Pure."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from heapq import heappushpop
from typing import Any, Final

from .._model.config import IdMerge, IdMergeOption
from .._model.errors import ConfigurationError, ValidationError
from .calls import CREATE_ALIAS, DEVICE_LINK, DEVICE_PREFIX, IDENTIFY, as_id, is_anonymous, is_forbidden
from .findings import CaseList, Finding, FindingKind
from .graph import IdentityGraph
from .history import History, Order, ReplayedCall
from .id_checks import is_email, is_placeholder, is_user_id, variants
from .report import AuditReport, LargePerson
from .results import Reason
from .systems import CLUSTER_LIMIT

CASES: Final = 20
"""Number of cases kept of each finding, by default."""

_LARGEST: Final = 10
_MAX_LISTED: Final = 10


class _Groups:
    """Numbers of ids that share a text, such as an e-mail address. Most texts have one id."""

    __slots__ = ("_first", "_more")

    def __init__(self) -> None:
        self._first: dict[str, int] = {}
        self._more: dict[str, set[int]] = {}

    def add(self, text: str, number: int) -> None:
        if self._first.setdefault(text, number) != number:
            self._more.setdefault(text, set()).add(number)

    def get(self, text: str) -> list[int]:
        """Return the ids with a text, in order of first appearance."""
        return [self._first[text], *sorted(self._more.get(text, ()))] if text in self._first else []

    def several(self) -> Iterator[tuple[str, list[int]]]:
        """Yield each text that has several ids, with its ids in order of first appearance."""
        return ((text, self.get(text)) for text in self._more)

    def __iter__(self) -> Iterator[tuple[str, int]]:
        """Yield each text with its first id."""
        return iter(self._first.items())


class _LastSeen:
    """Last value of each number, as a hash in 8 bytes. Most events repeat the last value of their id."""

    __slots__ = ("_hashes",)

    def __init__(self) -> None:
        self._hashes = array("q")

    def is_new(self, number: int, value: int) -> bool:
        """Note a value. Return whether it differs from the last one of this number."""
        hashes = self._hashes
        if number >= len(hashes):
            hashes.frombytes(bytes((number + number // 8 + 1_024 - len(hashes)) * hashes.itemsize))
        if hashes[number] == value:
            return False
        hashes[number] = value
        return True


def _hash(device: object, user: object) -> int:
    try:
        return hash((device, user))
    except TypeError:
        # A list or an object is no id.
        return hash((as_id(device), as_id(user)))


class Audit:
    """Audit of the ids of one project.

    The events can come in any order: identity calls are replayed in the order in which Mixpanel received them. Memory
    grows with the number of different ids and of identity calls, about 1 KB per id, not with the number of events.
    User profiles, added with `add_profile`, show which people share an e-mail address that their events do not have.

    Example:
        ```python
        from mixpanel_async.identity import Audit

        VISITOR = "3f2b8c1e-9d4a-4b7e-8c1d-2a5e6f7b8c9d"
        EXPORT = [
            {"event": "Viewed", "properties": {"distinct_id": VISITOR, "time": 1}},
            {"event": "$identify", "properties": {"$identified_id": "user-1", "$anon_id": VISITOR, "time": 2}},
        ]

        audit = Audit("original")
        for event in EXPORT:
            audit.add(event)
        report = audit.report()
        print(report.persons, "people")
        for finding in report.findings:
            print(finding.count, finding.title, finding.advice)
        ```

    Args:
        id_merge: ID merge system of the project.
        cluster_limit: maximum number of ids of one person in Original, at least 2, by default 500.
        near_limit: share of this limit, above 0 and at most 1, from which a person is reported, by default 0.8.
        order: order of the replay, by default that of arrival.
        cases: number of cases kept of each finding, at least 0, by default 20. All are counted.

    Raises:
        ConfigurationError: if an argument is invalid.
    """

    def __init__(
        self,
        id_merge: IdMergeOption,
        *,
        cluster_limit: int = CLUSTER_LIMIT,
        near_limit: float = 0.8,
        order: Order = Order.ARRIVAL,
        cases: int = CASES,
    ) -> None:
        if not 0 < near_limit <= 1:
            raise ConfigurationError(f"near_limit must be above 0 and at most 1, not {near_limit!r}")
        if cases < 0:
            raise ConfigurationError(f"cases must be at least 0, not {cases!r}")
        self._history = History(id_merge, cluster_limit=cluster_limit, order=order)
        self._near = near_limit * cluster_limit
        self._cases = cases
        self._is_simplified = self._history.graph.id_merge is IdMerge.SIMPLIFIED
        # Users of a device, as texts: a `$user_id` may never be a `distinct_id`.
        self._users = IdentityGraph(IdMerge.ORIGINAL)
        self._users_of_device = _Groups()
        self._ids_of_user = _Groups()
        self._ids_of_email = _Groups()
        self._emails_seen = _LastSeen()
        self._users_seen = _LastSeen()
        self._forbidden: set[str] = set()
        self._profile_count = 0
        self._report: AuditReport | None = None

    @property
    def graph(self) -> IdentityGraph:
        """The people, complete after `report`."""
        return self._history.graph

    def add(self, event: Mapping[str, Any]) -> None:
        """Add an event.

        Args:
            event: event with `event` and `properties`, as sent or as a raw export shows it.

        Raises:
            ValidationError: if the event is not an object with a name and properties. It is not counted.
            RuntimeError: after `report`.
        """
        if self._report is not None:
            raise RuntimeError("an audit takes no events after its report")
        number = self._history.add(event)
        properties = event["properties"]
        email = properties.get("$email")
        if email and number >= 0 and type(email) is str and self._emails_seen.is_new(number, hash(email)):
            self._add_email(email, number)
        device, user = properties.get("$device_id"), properties.get("$user_id")
        if (device or user) and (number < 0 or self._users_seen.is_new(number, _hash(device, user))):
            self._add_user(as_id(device), as_id(user), number)

    def add_profile(self, distinct_id: str, properties: Mapping[str, Any]) -> None:
        """Add a user profile. Its id counts as an id of the project, with or without events.

        Args:
            distinct_id: id of the profile, not empty.
            properties: properties of the profile. Only `$email` is used; other properties are not kept.

        Raises:
            ValidationError: if the id is not a string or is empty. The profile is not counted.
            RuntimeError: after `report`.
        """
        if self._report is not None:
            raise RuntimeError("an audit takes no profiles after its report")
        if type(distinct_id) is not str or not distinct_id:
            raise ValidationError("distinct_id", "must be a string that is not empty")
        self._profile_count += 1
        number = self.graph.add(distinct_id)
        email = properties.get("$email")
        if type(email) is str:
            self._add_email(email, number)

    def _add_email(self, email: str, number: int) -> None:
        if text := email.strip().lower():
            self._ids_of_email.add(text, number)

    def _add_user(self, device: str, user: str, number: int) -> None:
        """Note the device and the user of an event."""
        for one in (device, user):
            if one and is_forbidden(one):
                self._forbidden.add(one)
        device = device.removeprefix(DEVICE_PREFIX)
        if not user and number >= 0:
            sent = self.graph.id_at(number)
            user = "" if sent.removeprefix(DEVICE_PREFIX) == device or is_anonymous(sent) else sent
        elif user and number >= 0 and not self._is_simplified:
            self._ids_of_user.add(user, number)
        if device and user and not is_forbidden(user) and not user.startswith(DEVICE_PREFIX):
            self._users_of_device.add(device, self._users.add(user))

    def report(self) -> AuditReport:
        """Replay the identity calls and return the findings. The first call takes a few seconds for a million ids."""
        if self._report is None:
            outcomes, findings = self._replay()
            findings += self._check_ids()
            findings += self._check_people()
            self._report = self._summarize(outcomes, findings)
        return self._report

    def _list(self, kind: FindingKind, reason: Reason | None = None) -> CaseList:
        return CaseList(kind, self.graph.id_merge, self._cases, reason)

    # Calls

    def _replay(self) -> tuple[Counter[str], list[CaseList]]:
        history, graph = self._history, self.graph
        outcomes: Counter[str] = Counter()
        unjoined: list[ReplayedCall] = []
        aliases: dict[str, str] = {}
        chains, order = self._list(FindingKind.ALIAS_CHAINS), self._list(FindingKind.LEGACY_ORDER)
        for call in history.replay():
            if call.result.outcome in {"failed", "ignored"}:
                # People never split again, so a repeated call stays a repeated call.
                if call.first != call.second and graph.is_same_person(call.first, call.second):
                    outcomes["repeated"] += 1
                else:
                    unjoined.append(call)
                continue
            outcomes[call.result.outcome] += 1
            if call.verb != CREATE_ALIAS or not call.result.joined:
                continue
            if call.first in aliases:
                chains.add(call.second, call.first, aliases[call.first], detail="alias of an alias")
            aliases[call.second] = call.first
            if graph.id_merge is IdMerge.LEGACY and history.first_at(call.second) < call.at:
                detail = f"alias of {call.first}, sent after the first event of {call.second}"
                order.add(call.second, call.first, detail=detail, events=history.events_of(call.second))
        failed, left_behind = self._check_unjoined(unjoined, outcomes)
        return outcomes, [*failed, chains, order, left_behind]

    def _check_unjoined(self, calls: list[ReplayedCall], outcomes: Counter[str]) -> tuple[list[CaseList], CaseList]:
        """Return the calls that joined nothing by reason, and the events that they left behind."""
        lists: dict[Reason, CaseList] = {}
        left_behind = self._list(FindingKind.EVENTS_LEFT_BEHIND)
        seen: set[tuple[str, str]] = set()
        for call in calls:
            if self._is_joined(call.first, call.second):
                outcomes["repeated" if call.first != call.second else call.result.outcome] += 1
                if call.first != call.second:
                    continue
            else:
                outcomes[call.result.outcome] += 1
            if call.verb == DEVICE_LINK:
                # The user counts for itself, and the device is reported as a shared one.
                continue
            reason = call.result.reason or Reason.REFUSED
            kind = FindingKind.FAILED_CALLS if call.result.outcome == "failed" else FindingKind.IGNORED_CALLS
            detail = f"{call.verb}: {call.result.description}"
            lists.setdefault(reason, self._list(kind, reason)).add(call.first, call.second, detail=detail)
            if call.first != call.second and (call.first, call.second) not in seen:
                seen.add((call.first, call.second))
                self._check_left_behind(call, left_behind)
        if self._is_simplified:
            self._check_phantoms(left_behind)
        return [*lists.values()], left_behind

    def _check_left_behind(self, call: ReplayedCall, left_behind: CaseList) -> None:
        """Find events from before a call that joined nothing, under an id that nothing else joined either."""
        candidates = [(call.second, call.first)]
        if call.verb != IDENTIFY and is_anonymous(call.first):
            candidates.append((call.first, call.second))
        for one, other in candidates:
            if self._history.first_at(one) < call.at and len(self.graph.cluster(one)) == 1:
                events = self._history.events_of(one)
                left_behind.add(one, other, detail=f"{call.verb} did not join them", events=events)

    def _check_phantoms(self, left_behind: CaseList) -> None:
        """Find devices that were first sent as a plain `distinct_id`, which makes them users in Simplified."""
        for one in self.graph.ids():
            device = DEVICE_PREFIX + one
            is_phantom = not one.startswith(DEVICE_PREFIX) and device in self.graph
            if is_phantom and not self.graph.is_same_person(one, device):
                events = self._history.events_of(one)
                # A profile alone leaves no events behind.
                if not events:
                    continue
                user = self.graph.resolve(device)
                left_behind.add(one, user, detail="a device sent as plain distinct_id is a user", events=events)

    def _is_joined(self, first: str, second: str) -> bool:
        """Return whether two ids are one person. In Simplified, an id may be that of a device."""
        graph = self.graph
        persons = graph.resolve(first), graph.resolve(second)
        if persons[0] == persons[1] or not self._is_simplified:
            return persons[0] == persons[1]
        return persons[1] == graph.resolve(DEVICE_PREFIX + first) or persons[0] == graph.resolve(DEVICE_PREFIX + second)

    # Ids

    def _check_ids(self) -> list[CaseList]:
        history, graph = self._history, self.graph
        placeholders, mixed = self._list(FindingKind.PLACEHOLDER_IDS), self._list(FindingKind.MIXED_ID_KINDS)
        spelled = self._list(FindingKind.ID_VARIANTS)
        for text in sorted(self._forbidden):
            if text not in graph:
                placeholders.add(text, detail="in $device_id or $user_id")
        for one in graph.ids():
            if is_placeholder(one):
                size = graph.size(graph.resolve(one))
                detail = f"a person of {size} ids" if size > 1 else ""
                placeholders.add(one, detail=detail, events=history.events_of(one))
            if is_email(one) and (others := self._user_ids_beside(one)):
                mixed.add(one, *others[:_MAX_LISTED])
            if not self._is_simplified and one.startswith(DEVICE_PREFIX):
                plain = one.removeprefix(DEVICE_PREFIX)
                if plain in graph and not self._is_joined(one, plain):
                    spelled.add(one, plain, detail="with and without the prefix $device:")
        for group in variants(graph.ids()):
            persons = {graph.resolve(one) for one in group}
            if len(persons) > 1:
                spelled.add(*group[:_MAX_LISTED], events=sum(map(history.events_of, group)))
        return [placeholders, spelled, mixed]

    def _user_ids_beside(self, email: str) -> list[str]:
        """Return the database ids of the user with this e-mail address as an id."""
        found = {one for one in self.graph.cluster(email) if is_user_id(one)}
        for number in self._ids_of_email.get(email.lower()):
            found |= {one for one in self.graph.cluster(self.graph.id_at(number)) if is_user_id(one)}
        return sorted(found)

    # People

    def _check_people(self) -> list[CaseList]:
        graph = self.graph
        shared = self._list(FindingKind.SHARED_DEVICES)
        by_email, by_user = self._list(FindingKind.SPLIT_BY_EMAIL), self._list(FindingKind.SPLIT_BY_USER_ID)
        for device, numbers in self._users_of_device.several():
            users = [self._users.id_at(number) for number in numbers]
            if len({graph.resolve(user) for user in users}) > 1:
                shared.add(device, *users[:_MAX_LISTED], detail=f"{len(users)} users")
        for email, numbers in self._ids_of_email.several():
            ids = [graph.id_at(number) for number in numbers]
            self._add_split(by_email, ids, shared=email)
        several = dict(self._ids_of_user.several())
        for user, first in self._ids_of_user:
            own = [user] if user in graph else []
            if user in several or (own and graph.id_at(first) != user):
                numbers = several.get(user, [first])
                ids = [*own, *(graph.id_at(number) for number in numbers)]
                self._add_split(by_user, ids, main=user)
        return [shared, by_email, by_user]

    def _add_split(self, cases: CaseList, ids: list[str], *, main: str | None = None, shared: str = "") -> None:
        """Add a case if some ids are several persons.

        Args:
            cases: the cases.
            ids: ids with the same value of a property.
            main: id to name first, or None.
            shared: the value, if it is no id.
        """
        persons = list(dict.fromkeys(map(self.graph.resolve, ids)))
        if len(persons) > 1:
            events = sum(map(self._history.events_of, dict.fromkeys(ids)))
            shown = dict.fromkeys([*([] if main is None else [main]), *persons[:_MAX_LISTED]])
            detail = f"{len(persons)} persons" + (f" with {shared}" if shared else "")
            cases.add(*shown, detail=detail, events=events)

    # Summary

    def _summarize(self, outcomes: Counter[str], lists: list[CaseList]) -> AuditReport:
        history, graph = self._history, self.graph
        sizes: Counter[int] = Counter()
        near = self._list(FindingKind.NEAR_LIMIT)
        largest: list[tuple[int, str]] = [(0, "")] * _LARGEST
        has_limit = graph.id_merge is IdMerge.ORIGINAL
        for one in graph.ids():
            if graph.resolve(one) == one:
                size = graph.size(one)
                sizes[size] += 1
                if size > largest[0][0]:
                    heappushpop(largest, (size, one))
                if has_limit and size >= self._near:
                    near.add(one, detail=f"{size} of {graph.cluster_limit} ids")
        users = Counter(map(graph.resolve, graph.all_identified()))
        findings = [found for one in [*lists, near] if (found := one.finding()) is not None]
        return AuditReport(
            id_merge=graph.id_merge,
            events=history.event_count,
            calls=history.call_count,
            incomplete_calls=history.incomplete_calls,
            profiles=self._profile_count,
            ids=len(graph),
            persons=graph.person_count,
            joined_persons=graph.person_count - sizes[1],
            persons_of_several_users=sum(count > 1 for count in users.values()),
            sizes=dict(sorted(sizes.items())),
            largest=tuple(
                LargePerson(person=person, ids=size, events=sum(map(history.events_of, graph.cluster(person))))
                for size, person in sorted(largest, reverse=True)
                if size > 1
            ),
            outcomes=dict(outcomes),
            ordered_by_time=history.ordered_by_time,
            findings=tuple(sorted(findings, key=_frequency)),
        )


def _frequency(finding: Finding) -> tuple[int, str]:
    return -finding.count, finding.kind.value
