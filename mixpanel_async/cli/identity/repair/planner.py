"""Planner: finds the smallest set of calls that joins the pairs and that the ID merge system accepts. Pure.

The calls are in the order in which they are sent. Each makes one person out of two, as in a spanning forest, so no
smaller set of calls forms the same people. Pairs that are one person already need no call.

In Original, `identify` comes before `alias`, and `alias` before `merge`: `identify` is the strictest call, and what the
others join can only add reasons to refuse it. Calls of one person follow each other. Calls of different people do not
affect each other, so they may be sent at the same time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from mixpanel_async import Checker, IdMerge, ValidationError
from mixpanel_async.identity import DEVICE_PREFIX, IdentityGraph

from .calls import Call, CallKind, PlannedPair, Skip, call_of
from .known_ids import KnownIds
from .pairs import Pair, PairKind

_ORDER: Final[Mapping[PairKind, int]] = {
    PairKind.IDENTIFY: 0,
    PairKind.ALIAS: 1,
    PairKind.MERGE: 2,
    PairKind.AUTO: 2,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedPairs:
    """Decisions about all pairs.

    Args:
        calls: pairs for which a call is sent, in order, by canonical id of the person that they form.
        left_out: the other pairs, in the order of the file.
    """

    calls: Mapping[str, Sequence[PlannedPair]]
    left_out: tuple[PlannedPair, ...]


def plan_pairs(pairs: Iterable[Pair], known: KnownIds, *, allow_user_merge: bool) -> PlannedPairs:
    """Decide about all pairs.

    Args:
        pairs: the pairs in the order of the file.
        known: ids of the project. The calls of the plan are applied to its graph.
        allow_user_merge: whether calls may merge two users.
    """
    return _Planner(known, allow_user_merge=allow_user_merge).plan([*pairs])


class _Planner:
    def __init__(self, known: KnownIds, *, allow_user_merge: bool) -> None:
        self._known = known
        self._graph: IdentityGraph = known.graph
        self._allow_user_merge = allow_user_merge
        self._checker = Checker()
        self._earlier: dict[str, str] = {}

    def plan(self, pairs: list[Pair]) -> PlannedPairs:
        for pair in pairs:
            for one in (pair.first, pair.second):
                self._earlier[one] = self._graph.resolve(one)
                if self._graph.id_merge is IdMerge.SIMPLIFIED:
                    self._earlier[DEVICE_PREFIX + one] = self._graph.resolve(DEVICE_PREFIX + one)
        order = sorted(range(len(pairs)), key=lambda at: _ORDER[pairs[at].kind])
        calls: list[PlannedPair] = []
        left_out: list[tuple[int, PlannedPair]] = []
        for at in order:
            decided = self._decide(pairs[at])
            if decided.skip is None:
                calls.append(decided)
            else:
                left_out.append((at, decided))
        left_out.sort(key=lambda one: one[0])
        by_person: dict[str, list[PlannedPair]] = {}
        for call in calls:
            by_person.setdefault(self._graph.resolve(call.first), []).append(call)
        return PlannedPairs(calls=by_person, left_out=tuple(decided for _, decided in left_out))

    def _decide(self, pair: Pair) -> PlannedPair:
        problem = pair.problem or self._id_problem(pair)
        if problem:
            return _skipped(pair.kind.value, pair.first, pair.second, pair.source, Skip.INVALID, problem)
        call = call_of(pair, self._graph)
        if isinstance(call, str):
            skip = self._joined(pair.first, pair.second)
            if skip is not None:
                return _skipped(pair.kind.value, pair.first, pair.second, pair.source, skip)
            return _skipped(pair.kind.value, pair.first, pair.second, pair.source, Skip.NO_EFFECT, call)
        named = (call.kind.value, call.first, call.second, pair.source)
        ids = (call.first, call.second) if call.kind is CallKind.LINK else (pair.first, pair.second)
        skip = self._joined(*ids) if pair.first != pair.second else None
        if skip is not None:
            return _skipped(*named, skip)
        expected = call.preview(self._graph)
        if not expected.joined:
            code = "" if expected.reason is None else f"{expected.reason.value}: "
            return _skipped(*named, Skip.FAILS, code + expected.description)
        return self._add(call, named)

    def _add(self, call: Call, named: tuple[str, str, str, str]) -> PlannedPair:
        """Apply a call that joins two people, unless it merges two users without permission."""
        if call.kind in {CallKind.IDENTIFY, CallKind.LINK}:
            self._known.add_user(call.first)
        first, second = (self._known.user_of(self._graph.resolve(one)) for one in (call.first, call.second))
        if first is not None and second is not None and not self._allow_user_merge:
            users = f"{_shown(first)} and {_shown(second)}"
            return _skipped(*named, Skip.HELD, f"merges the users {users}; allow it with --allow-user-merge")
        call.apply(self._graph)
        self._known.note_join(self._graph.resolve(call.first), first or second)
        return PlannedPair(*named)

    def _id_problem(self, pair: Pair) -> str:
        name = "first" if not pair.first else "second"
        if not pair.first or not pair.second:
            return f"the {name} id must not be blank"
        name = "first"
        try:
            self._checker.event(pair.first, "Identity check")
            name = "second"
            self._checker.event(pair.second, "Identity check")
        except ValidationError as error:
            return f"the {name} id {error.problem}"
        for name, one in (("first", pair.first), ("second", pair.second)):
            if one != one.strip() and one not in self._graph:
                return f"the {name} id begins or ends with white space, and no event has that id; remove the space"
        # Mixpanel has a code for this error of `identify`.
        has_code = pair.kind is PairKind.IDENTIFY and self._graph.id_merge is IdMerge.ORIGINAL
        return "both ids are the same" if pair.first == pair.second and not has_code else ""

    def _joined(self, first: str, second: str) -> Skip | None:
        if not self._graph.is_same_person(first, second):
            return None
        was_joined = self._earlier.get(first, first) == self._earlier.get(second, second)
        return Skip.JOINED if was_joined else Skip.IMPLIED


def _skipped(kind: str, first: str, second: str, source: str, skip: Skip, reason: str = "") -> PlannedPair:
    return PlannedPair(kind, first, second, source, skip, reason)


def _shown(distinct_id: str) -> str:
    return repr(distinct_id[:60])
