"""`IdentityGraph`: the ids of one project and the people they form, from its events in order. Pure."""

from __future__ import annotations

import copy
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isnan, nan
from typing import Any, Final

from .._model.config import IdMerge, IdMergeOption, as_id_merge
from .._model.errors import ConfigurationError, ValidationError
from .calls import CREATE_ALIAS, DEVICE_LINK, IDENTIFY, MERGE, VERBS, as_id, id_problem, sent_properties, verb_ids
from .comparison import GraphDiff, compare
from .forest import IdTable
from .results import ORDINARY, UNCHANGED, IdentityResult, Reason, ignored_result, recorded_result
from .systems import CLUSTER_LIMIT, Identities, LegacyIdentities, OriginalIdentities, SimplifiedIdentities

_VERBS: Final = (IDENTIFY, CREATE_ALIAS, MERGE, DEVICE_LINK)
_MAX_SHOWN_ID: Final = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Call that joined two people.

    Args:
        verb: `$identify`, `$create_alias`, `$merge`, or `$device` for an event with `$device_id` and `$user_id` in
            Simplified.
        first: id that the call names first; the user of a device.
        second: the other id; the device with the prefix `$device:`.
        at: time of the call in seconds since the epoch, or None if it had none.
    """

    verb: str
    first: str
    second: str
    at: float | None

    def __str__(self) -> str:
        first, second = self.first[:_MAX_SHOWN_ID], self.second[:_MAX_SHOWN_ID]
        name = "an event with $device_id and $user_id" if self.verb == DEVICE_LINK else self.verb
        return f"{name} joined {second!r} to {first!r}"


class IdentityGraph:
    """The ids of one project, and the people that its identity calls make of them.

    It computes what Mixpanel does with the same calls in the same order, and sends nothing. It needs about 200 bytes
    per id. It is not thread-safe.

    Example:
        ```python
        from mixpanel_async.identity import IdentityGraph

        graph = IdentityGraph("original")
        visitor = "3f2b8c1e-9d4a-4b7e-8c1d-2a5e6f7b8c9d"
        graph.apply({"event": "Viewed", "properties": {"distinct_id": visitor}})
        result = graph.identify("user-1", visitor)
        assert result.joined
        assert graph.resolve(visitor) == "user-1"
        assert graph.cluster("user-1") == {"user-1", visitor}
        print(*graph.explain(visitor))
        ```

    Args:
        id_merge: ID merge system of the project, as `IdMerge` or its text.
        cluster_limit: maximum number of ids of one person in an Original project, at least 2, by default 500.
        use_recorded_failures: whether `apply` believes the `$failure_reason` that Mixpanel has added to a refused call
            in an export. False replays such a call as if it were new.
        table: numbers of the ids, for structures that share them; by default a new one.

    Raises:
        ConfigurationError: if an argument is invalid.
    """

    def __init__(
        self,
        id_merge: IdMergeOption,
        *,
        cluster_limit: int = CLUSTER_LIMIT,
        use_recorded_failures: bool = True,
        table: IdTable | None = None,
    ) -> None:
        system = as_id_merge(id_merge)
        if system is None:
            raise ConfigurationError("id_merge must be legacy, original or simplified, not None")
        if type(cluster_limit) is not int or cluster_limit < 2:
            raise ConfigurationError(f"cluster_limit must be an integer of at least 2, not {cluster_limit!r}")
        self._id_merge = system
        self._limit = cluster_limit
        self._use_recorded = use_recorded_failures
        self._table = IdTable() if table is None else table
        self._identities: Identities
        if system is IdMerge.LEGACY:
            self._identities = LegacyIdentities(self._table)
        elif system is IdMerge.ORIGINAL:
            self._identities = OriginalIdentities(cluster_limit, table=self._table)
        else:
            self._identities = SimplifiedIdentities(self._table)
        # The calls that joined people: columns instead of objects, for millions of them.
        self._verbs = array("b")
        self._firsts = array("i")
        self._seconds = array("i")
        self._times = array("d")

    @property
    def id_merge(self) -> IdMerge:
        """ID merge system of the project."""
        return self._id_merge

    @property
    def cluster_limit(self) -> int:
        """Maximum number of ids of one person in an Original project."""
        return self._limit

    # Changes

    def apply(self, event: Mapping[str, Any], *, endpoint: str = "/import") -> IdentityResult:
        """Apply one event, in the order in which Mixpanel received it.

        Args:
            event: event with `event` and `properties`, as it is sent or as a raw export shows it.
                `$distinct_id_before_identity` counts as the `distinct_id` that was sent.
            endpoint: endpoint that received it. `$merge` has no effect on `/track`.

        Returns:
            What the event did. An ordinary event adds its id as a person; in Simplified it may link a device.

        Raises:
            ValidationError: if `event` is not an object with a name and properties.
        """
        name, properties = event.get("event"), event.get("properties")
        if not isinstance(name, str):
            raise ValidationError("event", "must be a text")
        if not isinstance(properties, Mapping):
            raise ValidationError("properties", "must be an object")
        properties = sent_properties(properties)
        at = properties.get("time")
        at = at if type(at) in {int, float} else None
        if name not in VERBS or self._identities.is_ordinary(name, properties):
            return self._apply_event(properties, at)
        ids = verb_ids(name, properties)
        if isinstance(ids, str):
            problem = f"{ids} {id_problem(ids, properties.get(ids))}"
            return IdentityResult(outcome="failed", reason=Reason.INVALID_ID, description=problem)
        if self._id_merge is IdMerge.SIMPLIFIED:
            # The call counts for the person of its event.
            person, _ = self._identities.attribute_event({"distinct_id": ids[0] if name != MERGE else "", **properties})
            return self._call(name, *ids, at=at, endpoint=endpoint, known=(person,) if person else ())
        recorded = properties.get("$failure_reason")
        if self._use_recorded and isinstance(recorded, str) and recorded:
            self._know(*ids)
            return recorded_result(Reason.of_code(recorded), as_id(properties.get("$failure_description")))
        return self.call(name, *ids, at=at, endpoint=endpoint)

    def _apply_event(self, properties: Mapping[str, Any], at: float | None) -> IdentityResult:
        person, device = self._identities.attribute_event(dict(properties))
        if device is not None:
            return self.link_device(device, person, at=at)
        if person:
            self._know(person)
        return ORDINARY

    def call(
        self, verb: str, first: str, second: str, *, at: float | None = None, endpoint: str = "/import"
    ) -> IdentityResult:
        """Apply an identity call.

        Its ids become people if they are new; in Simplified, where the call has no effect, only the id under which the
        call itself counts.

        Args:
            verb: `$identify`, `$create_alias` or `$merge`.
            first: `$identified_id`, the `distinct_id` of an alias, or the first of `$distinct_ids`; not empty.
            second: `$anon_id`, `alias`, or the second of `$distinct_ids`; not empty.
            at: time of the call in seconds since the epoch, for `explain`.
            endpoint: endpoint that receives it. `$merge` has no effect on `/track`.

        Raises:
            ValidationError: if the verb is unknown or an id is empty.
        """
        if verb not in VERBS:
            raise ValidationError("verb", f"must be {IDENTIFY}, {CREATE_ALIAS} or {MERGE}")
        if not first or not second:
            raise ValidationError("id", "must not be empty")
        is_simplified = self._id_merge is IdMerge.SIMPLIFIED
        known = (first, second) if not is_simplified else () if verb == MERGE else (first,)
        return self._call(verb, first, second, at=at, endpoint=endpoint, known=known)

    def _call(
        self, verb: str, first: str, second: str, *, at: float | None, endpoint: str, known: tuple[str, ...]
    ) -> IdentityResult:
        self._know(*known)
        if verb == MERGE and endpoint != "/import":
            return ignored_result(Reason.NEEDS_IMPORT, "$merge is accepted by /import only")
        result = self._identities.apply(verb, first, second)
        if result.joined:
            self._record(verb, first, second, at)
        return result

    def identify(self, user: str, anonymous: str, *, at: float | None = None) -> IdentityResult:
        """Apply `$identify` of a user and the anonymous id used before. See `call`.

        Args:
            user: `$identified_id`, not empty.
            anonymous: `$anon_id`, not empty.
            at: time of the call in seconds since the epoch, for `explain`; None if unknown.

        Returns:
            What the call did.

        Raises:
            ValidationError: if an id is empty.
        """
        return self.call(IDENTIFY, user, anonymous, at=at)

    def alias(self, distinct_id: str, alias: str, *, at: float | None = None) -> IdentityResult:
        """Apply `$create_alias` of an existing id and its new alias. See `call`.

        Args:
            distinct_id: the existing id, not empty.
            alias: its new alias, not empty.
            at: time of the call in seconds since the epoch, for `explain`; None if unknown.

        Returns:
            What the call did.

        Raises:
            ValidationError: if an id is empty.
        """
        return self.call(CREATE_ALIAS, distinct_id, alias, at=at)

    def merge(self, first: str, second: str, *, at: float | None = None) -> IdentityResult:
        """Apply `$merge` of two ids, as sent to `/import`. See `call`.

        Args:
            first: one id, not empty.
            second: the other id, not empty.
            at: time of the call in seconds since the epoch, for `explain`; None if unknown.

        Returns:
            What the call did.

        Raises:
            ValidationError: if an id is empty.
        """
        return self.call(MERGE, first, second, at=at)

    def link_device(self, device: str, user: str, *, at: float | None = None) -> IdentityResult:
        """Apply an event with a `$device_id` and a `$user_id`. It joins them in Simplified only.

        Args:
            device: the device, with or without the prefix `$device:`; not empty.
            user: the user; not empty.
            at: time of the event in seconds since the epoch, for `explain`.

        Raises:
            ValidationError: if an id is empty.
        """
        if self._id_merge is not IdMerge.SIMPLIFIED:
            self._know(user)
            return ORDINARY
        device = f"$device:{device.removeprefix('$device:')}"
        self._know(user, device)
        result = self._identities.link_device(device, user)
        if result is None:
            return UNCHANGED
        if result.joined:
            self._record(DEVICE_LINK, user, device, at)
        return result

    def preview(self, verb: str, first: str, second: str) -> IdentityResult:
        """Return what `call` would, without changing anything. After a merge, the canonical ids are not known.

        Args:
            verb: `$identify`, `$create_alias` or `$merge`.
            first: as in `call`.
            second: as in `call`.
        """
        return self._identities.refusal(verb, first, second) or IdentityResult(outcome="merged")

    def preview_link(self, device: str, user: str) -> IdentityResult:
        """Return what `link_device` would, without changing anything.

        Args:
            device: the device, with or without the prefix `$device:`.
            user: the user.
        """
        device = f"$device:{device.removeprefix('$device:')}"
        return self._identities.link_refusal(device, user) or IdentityResult(outcome="merged", kept=user)

    def add(self, distinct_id: str) -> int:
        """Add an id as a person, if it is new.

        Args:
            distinct_id: the id, not empty.

        Returns:
            Its number. Ids are numbered from 0 in order of first appearance, so that facts about them fit in arrays.

        Raises:
            ValidationError: if the id is empty.
        """
        if not distinct_id:
            raise ValidationError("id", "must not be empty")
        return self._table.number(distinct_id)

    def _know(self, *ids: str) -> None:
        for distinct_id in ids:
            self.add(distinct_id)

    def _record(self, verb: str, first: str, second: str, at: float | None) -> None:
        self._verbs.append(_VERBS.index(verb))
        self._firsts.append(self._table.number(first))
        self._seconds.append(self._table.number(second))
        self._times.append(nan if at is None else at)

    # Questions

    def __contains__(self, distinct_id: object) -> bool:
        return isinstance(distinct_id, str) and self._table.find(distinct_id) is not None

    def __len__(self) -> int:
        """Number of ids."""
        return len(self._table)

    def ids(self) -> Iterator[str]:
        """Yield all ids in order of first appearance."""
        return self._table.names()

    def id_at(self, number: int) -> str:
        """Return the id with this number. See `add`.

        Args:
            number: number of the id, as `add` returns it.
        """
        return self._table.name(number)

    @property
    def person_count(self) -> int:
        """Number of people. Every call that joined has made one person out of two."""
        return len(self._table) - len(self._verbs)

    def persons(self) -> Iterator[set[str]]:
        """Yield the ids of each person, in order of first appearance."""
        for distinct_id in self._table.names():
            if self.resolve(distinct_id) == distinct_id:
                yield self.cluster(distinct_id)

    def resolve(self, distinct_id: str) -> str:
        """Return the canonical id of the person. An unknown id is its own person.

        In Original, Mixpanel chooses the canonical id, and its choice cannot be predicted. Here it is that of the
        cluster that the call names first. In Legacy it is the id to which the aliases point, in Simplified the user.

        Args:
            distinct_id: any id of the person.
        """
        return self._identities.resolve(distinct_id)

    def cluster(self, distinct_id: str) -> set[str]:
        """Return all ids of the person with this id.

        Args:
            distinct_id: any id of the person.
        """
        return self._identities.cluster(distinct_id)

    def size(self, distinct_id: str) -> int:
        """Return the number of ids of the person with this id.

        Args:
            distinct_id: any id of the person.
        """
        return self._identities.size(distinct_id)

    def is_same_person(self, first: str, second: str) -> bool:
        """Return whether two ids are one person.

        Args:
            first: one id.
            second: another id.
        """
        return self.resolve(first) == self.resolve(second)

    def identified_ids(self, distinct_id: str) -> set[str]:
        """Return the ids of the person that identify a user.

        In Original these are the ids that an accepted `$identify` used as `$identified_id`, in Legacy the canonical id,
        in Simplified the user. Empty for a person that is anonymous as far as the calls say.

        Args:
            distinct_id: any id of the person.
        """
        if isinstance(self._identities, OriginalIdentities):
            return {one for one in self.cluster(distinct_id) if self._identities.is_identified(one)}
        person = self.resolve(distinct_id)
        return set() if person.startswith("$device:") or person not in self else {person}

    def all_identified(self) -> Iterator[str]:
        """Yield the ids that an accepted `$identify` used as `$identified_id`; none in the other systems."""
        return self._identities.identified() if isinstance(self._identities, OriginalIdentities) else iter(())

    def explain(self, distinct_id: str) -> tuple[Step, ...]:
        """Return how the ids of the person came together: the calls that joined them, in order.

        A person with n ids has n - 1 steps. The time this takes grows with the number of all calls that joined.

        Args:
            distinct_id: any id of the person.
        """
        members = {self._table.find(one) for one in self.cluster(distinct_id)}
        return tuple(self._step(at) for at, first in enumerate(self._firsts) if first in members)

    def steps(self) -> Iterator[Step]:
        """Yield every call that joined people, in order."""
        return (self._step(at) for at in range(len(self._verbs)))

    def _step(self, number: int) -> Step:
        at = self._times[number]
        return Step(
            verb=_VERBS[self._verbs[number]],
            first=self._table.name(self._firsts[number]),
            second=self._table.name(self._seconds[number]),
            at=None if isnan(at) else at,
        )

    def diff(self, other: IdentityGraph) -> GraphDiff:
        """Compare the people of this graph, as before, with those of another one, as after.

        Ids are compared by text. If one graph is Simplified and the other is not, a `$device:X` of the first is also
        the `X` of the other.

        Args:
            other: graph of the same ids, such as after further calls or in another ID merge system.
        """
        return compare(self, other)

    def copy(self) -> IdentityGraph:
        """Return an independent copy, such as to try calls on."""
        return copy.deepcopy(self)
