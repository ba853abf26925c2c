"""History of a project: its events in any order, replayed in order to rebuild its people. Pure.

A raw export is sorted neither across days nor across files, and Mixpanel applies identity calls in the order in which
it received them. The history therefore keeps each identity call and each first pair of device and user as a few
numbers, and sorts them before the replay.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from math import inf
from typing import Any, Final, NamedTuple

from .._model.config import IdMerge, IdMergeOption
from .._model.errors import ValidationError
from .calls import CREATE_ALIAS, DEVICE_LINK, IDENTIFY, MERGE, VERBS, as_id, linked_person, verb_ids
from .forest import IdTable
from .graph import IdentityGraph
from .results import IdentityResult, Reason, recorded_result
from .systems import CLUSTER_LIMIT, SimplifiedIdentities

_VERBS: Final = (IDENTIFY, CREATE_ALIAS, MERGE, DEVICE_LINK)
_DEVICE_LINK: Final = _VERBS.index(DEVICE_LINK)
_REASONS: Final = tuple(Reason)
_NO_REASON: Final = -1
# Times from here on are milliseconds. As seconds, it would be in the year 5138.
_MILLISECONDS: Final = 100_000_000_000
# Larger numbers are no times: as milliseconds, the year would have six digits.
_MAX_TIME: Final = 1e17


class Order(Enum):
    """Order in which identity calls are replayed."""

    ARRIVAL = "arrival"
    """By `$mp_api_timestamp_ms` or `mp_processing_time_ms`, which Mixpanel adds; by `time` for events without them."""
    TIME = "time"
    """By the `time` of the events."""
    INPUT = "input"
    """As the events are given."""


class ReplayedCall(NamedTuple):
    """Identity call of the history, with its result."""

    verb: str
    """`$identify`, `$create_alias`, `$merge`, or `$device` for a device link in Simplified."""
    first: str
    """Id that the call names first; the user of a device."""
    second: str
    """The other id; the device with its prefix."""
    at: float
    """Position in the order of the replay: seconds since the epoch, or the number of the event."""
    result: IdentityResult
    """What the call did."""


class History:
    """Events of one project, in any order.

    Memory grows with the number of different ids and of identity calls, not with the number of events.

    Example:
        ```python
        from mixpanel_async.identity import History

        VISITOR = "3f2b8c1e-9d4a-4b7e-8c1d-2a5e6f7b8c9d"
        EXPORT = [
            {"event": "Viewed", "properties": {"distinct_id": VISITOR, "time": 1}},
            {"event": "$identify", "properties": {"$identified_id": "user-1", "$anon_id": VISITOR, "time": 2}},
        ]

        history = History("original")
        for event in EXPORT:
            history.add(event)
        for call in history.replay():
            print(call.verb, call.first, call.second, call.result.outcome)
        print(history.graph.person_count)
        ```

    Args:
        id_merge: ID merge system in which the events are replayed.
        cluster_limit: maximum number of ids of one person in Original, at least 2, by default 500.
        order: order of the replay.
        use_recorded_failures: whether to believe the `$failure_reason` that Mixpanel has added to a refused call. False
            replays such a call as if it were new.

    Raises:
        ConfigurationError: if an argument is invalid.
    """

    def __init__(
        self,
        id_merge: IdMergeOption,
        *,
        cluster_limit: int = CLUSTER_LIMIT,
        order: Order = Order.ARRIVAL,
        use_recorded_failures: bool = True,
    ) -> None:
        table = IdTable()
        self.graph = IdentityGraph(id_merge, cluster_limit=cluster_limit, table=table)
        """The ids and, after `replay`, the people."""
        self.event_count = 0
        """Number of events."""
        self.call_count = 0
        """Number of identity calls, without device links."""
        self.incomplete_calls = 0
        """Number of identity calls without two ids, which Mixpanel refuses."""
        self.ordered_by_time = 0
        """Number of events that have no time of arrival."""
        positions = {
            Order.ARRIVAL: self._position_by_arrival,
            Order.TIME: _time,
            Order.INPUT: self._position_in_input,
        }
        self._position: Callable[[Mapping[str, Any]], float] = positions[Order(order)]
        self._number = table.number
        self._use_recorded = use_recorded_failures
        self._is_simplified = self.graph.id_merge is IdMerge.SIMPLIFIED
        self._is_legacy = self.graph.id_merge is IdMerge.LEGACY
        self._verbs = array("b")
        self._firsts = array("i")
        self._seconds = array("i")
        self._reasons = array("b")
        self._at = array("d")
        # Calls may name ids that no event counts under in Simplified.
        self._names = IdentityGraph(IdMerge.ORIGINAL) if self._is_simplified else self.graph
        # Pairs of device and user by hash: the index of their link, or -1 - number of the person without a link. Two of
        # a million pairs have one hash of 64 bits with a probability of 1 to 30 million.
        self._pairs: dict[int, int] = {}
        self._events_of = array("i")
        self._first_at = array("d")
        self._ordinary = SimplifiedIdentities()
        self._is_replayed = False

    # Collection

    def add(self, event: Mapping[str, Any]) -> int:
        """Add an event.

        Args:
            event: event with `event` and `properties`, as sent or as exported.

        Returns:
            The number in `graph` of the id that the event counts under at arrival, or -1 if it has none. An identity
            call that joins ids in this system returns -1 too.

        Raises:
            ValidationError: if the event is not an object with a name and properties.
        """
        try:
            name, properties = event["event"], event["properties"]
        except (KeyError, TypeError):
            name = properties = None
        if type(name) is not str or type(properties) is not dict:
            raise _malformed(event)
        self.event_count += 1
        at = self._position(properties)
        if name in VERBS and self._add_call(name, properties, at):
            return -1
        if self._is_simplified:
            number = self._number_in_simplified(properties, at)
        elif self._is_legacy:
            # An event stays with the person that it had at arrival, which an export shows.
            number = self._number_of(as_id(properties.get("distinct_id")))
        else:
            number = self._number_of(_sent_id(properties))
        if number < 0:
            return -1
        if number >= len(self._events_of):
            self._grow(number + 1)
        self._events_of[number] += 1
        self._first_at[number] = min(self._first_at[number], at)
        return number

    def _number_of(self, person: str) -> int:
        return self._number(person) if person else -1

    def _number_in_simplified(self, properties: Mapping[str, Any], at: float) -> int:
        """Return the number of the person of an event, and note the device that it links."""
        device, user = properties.get("$device_id"), properties.get("$user_id")
        if device is None and user is None:
            return self._number_of(_sent_id(properties))
        key = hash((as_id(device), as_id(user)))
        known = self._pairs.get(key)
        if known is None:
            person, linked = linked_person(properties)
            if not person:
                return self._number_of(_sent_id(properties))
            number = self._number(person)
            if linked is None:
                self._pairs[key] = -1 - number
            else:
                self._pairs[key] = len(self._at)
                self._append(_DEVICE_LINK, number, self._number(linked), at, _NO_REASON)
            return number
        if known < 0:
            return -1 - known
        # Only the first event of a pair joins, and the events come in any order.
        self._at[known] = min(self._at[known], at)
        return self._firsts[known]

    def _position_by_arrival(self, properties: Mapping[str, Any]) -> float:
        arrived = properties.get("$mp_api_timestamp_ms") or properties.get("mp_processing_time_ms")
        if (type(arrived) is int or type(arrived) is float) and -_MAX_TIME < arrived < _MAX_TIME:
            return arrived / 1000
        self.ordered_by_time += 1
        return _time(properties)

    def _position_in_input(self, properties: Mapping[str, Any]) -> float:  # noqa: ARG002  the signature of a position
        return self.event_count

    def _grow(self, size: int) -> None:
        added = size + size // 8 + 1_024 - len(self._events_of)
        self._events_of.frombytes(bytes(added * self._events_of.itemsize))
        self._first_at.extend([inf] * added)

    def _add_call(self, name: str, properties: dict[str, Any], at: float) -> bool:
        """Add an identity call. Return False if it counts as an ordinary event."""
        if self._is_simplified and self._ordinary.is_ordinary(name, properties):
            return False
        sent = properties.get("$distinct_id_before_identity")
        ids = verb_ids(name, properties if sent is None else {**properties, "distinct_id": sent})
        self.call_count += 1
        if isinstance(ids, str):
            self.incomplete_calls += 1
            return True
        first, second = (self._names.add(one) for one in ids)
        self._append(_VERBS.index(name), first, second, at, self._recorded_reason(name, properties))
        return not self._is_simplified

    def _recorded_reason(self, name: str, properties: Mapping[str, Any]) -> int:
        recorded = properties.get("$failure_reason")
        if self._use_recorded and isinstance(recorded, str) and recorded:
            return _REASONS.index(Reason.of_code(recorded))
        if name == MERGE and "$import" not in properties and "mp_processing_time_ms" in properties:
            # Mixpanel adds both properties to events of `/import`, and one to those of `/track`.
            return _REASONS.index(Reason.NEEDS_IMPORT)
        return _NO_REASON

    def _append(self, verb: int, first: int, second: int, at: float, reason: int) -> None:
        self._verbs.append(verb)
        self._firsts.append(first)
        self._seconds.append(second)
        self._reasons.append(reason)
        self._at.append(at)

    # Replay

    def replay(self) -> Iterator[ReplayedCall]:
        """Apply the calls to `graph` in order, and yield each with its result. Events of equal time keep their order.

        Raises:
            RuntimeError: if it was called before.
        """
        if self._is_replayed:
            raise RuntimeError("a history can be replayed once")
        self._is_replayed = True
        return self._replay()

    def _replay(self) -> Iterator[ReplayedCall]:
        graph = self.graph
        for index in sorted(range(len(self._at)), key=self._at.__getitem__):
            verb, at, reason = self._verbs[index], self._at[index], self._reasons[index]
            names = graph if verb == _DEVICE_LINK else self._names
            first, second = names.id_at(self._firsts[index]), names.id_at(self._seconds[index])
            if verb == _DEVICE_LINK:
                result = graph.link_device(second, first, at=at)
            elif self._is_simplified:
                # The event of the call has been added like any other.
                result = self._ordinary.apply(_VERBS[verb], first, second)
            elif reason != _NO_REASON and _REASONS[reason] is not Reason.NEEDS_IMPORT:
                result = recorded_result(_REASONS[reason])
            else:
                endpoint = "/import" if reason == _NO_REASON else "/track"
                result = graph.call(_VERBS[verb], first, second, at=at, endpoint=endpoint)
            yield ReplayedCall(_VERBS[verb], first, second, at, result)

    # Facts about ids

    def events_of(self, distinct_id: str) -> int:
        """Return how many events count under this id at arrival, without identity calls.

        Args:
            distinct_id: an id that `add` has seen.
        """
        if distinct_id not in self.graph:
            return 0
        number = self.graph.add(distinct_id)
        return self._events_of[number] if number < len(self._events_of) else 0

    def first_at(self, distinct_id: str) -> float:
        """Return the position of the first of these events; infinity without such events.

        Args:
            distinct_id: an id that `add` has seen.
        """
        if distinct_id not in self.graph:
            return inf
        number = self.graph.add(distinct_id)
        return self._first_at[number] if number < len(self._first_at) else inf


def _malformed(event: object) -> ValidationError:
    """Return the error for a value that is not an object with a name and properties."""
    if not isinstance(event, dict):
        return ValidationError("event", "must be an object")
    if type(event.get("event")) is not str:
        return ValidationError("event", "must be a text")
    return ValidationError("properties", "must be an object")


def _time(properties: Mapping[str, Any]) -> float:
    """Return the `time` of an event in seconds, or 0 without a possible one."""
    time = properties.get("time")
    # NaN fails this comparison too: it would break the order of all other events.
    if (type(time) is not int and type(time) is not float) or not -_MAX_TIME < time < _MAX_TIME:
        return 0.0
    return time / 1000 if time >= _MILLISECONDS else float(time)


def _sent_id(properties: Mapping[str, Any]) -> str:
    """Return the `distinct_id` of an event as it was sent."""
    sent = properties.get("$distinct_id_before_identity")
    if sent is None:
        sent = properties.get("distinct_id")
    return sent if type(sent) is str else as_id(sent)
