"""Calls that join two ids, the call that a pair becomes in each ID merge system, and decisions about it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from mixpanel_async import IdMerge
from mixpanel_async.identity import CREATE_ALIAS, DEVICE_PREFIX, IDENTIFY, MERGE, IdentityGraph, IdentityResult

from .pairs import Pair, PairKind


class CallKind(str, Enum):
    """Kind of a call."""

    IDENTIFY = "identify"
    """`first` is the user, `second` the anonymous id."""
    ALIAS = "alias"
    """`first` is the original, `second` the new alias."""
    MERGE = "merge"
    LINK = "link"
    """Simplified: an event of the user `first` on the device `second`."""


_VERBS: Final[Mapping[CallKind, str]] = {
    CallKind.IDENTIFY: IDENTIFY,
    CallKind.ALIAS: CREATE_ALIAS,
    CallKind.MERGE: MERGE,
}
_KINDS: Final[Mapping[PairKind, CallKind]] = {
    PairKind.ALIAS: CallKind.ALIAS,
    PairKind.MERGE: CallKind.MERGE,
    PairKind.IDENTIFY: CallKind.IDENTIFY,
}


@dataclass(frozen=True, slots=True)
class Call:
    """Call that joins two ids.

    Args:
        kind: kind of the call.
        first: the id that it names first.
        second: the other id.
    """

    kind: CallKind
    first: str
    second: str

    def apply(self, graph: IdentityGraph) -> IdentityResult:
        """Apply the call to a graph."""
        if self.kind is CallKind.LINK:
            return graph.link_device(self.second, self.first)
        return graph.call(_VERBS[self.kind], self.first, self.second)

    def preview(self, graph: IdentityGraph) -> IdentityResult:
        """Return what `apply` would, without changing the graph."""
        if self.kind is CallKind.LINK:
            return graph.preview_link(self.second, self.first)
        return graph.preview(_VERBS[self.kind], self.first, self.second)


class Skip(str, Enum):
    """Reason why no call is sent for a pair."""

    JOINED = "joined"
    """The ids are one person in the project already."""
    IMPLIED = "implied"
    """The calls for other pairs join them."""
    FAILS = "fails"
    """The call would be refused."""
    NO_EFFECT = "no-effect"
    """No call joins these ids in this project."""
    HELD = "held"
    """The call would merge two users, which was not allowed."""
    INVALID = "invalid"
    """The line holds no pair of valid ids."""

    @property
    def needs_attention(self) -> bool:
        """Whether the ids stay apart."""
        return self not in {Skip.JOINED, Skip.IMPLIED}


@dataclass(frozen=True, slots=True)
class PlannedPair:
    """Pair with the decision about it.

    Args:
        kind: name of the call: a `CallKind`, or the `PairKind` if no call fits.
        first: the id that the call names first.
        second: the other id.
        source: file name and line of the pair.
        skip: why no call is sent; None if one is.
        reason: explanation of `skip`, or an empty string.
    """

    kind: str
    first: str
    second: str
    source: str
    skip: Skip | None = None
    reason: str = ""

    @property
    def call(self) -> Call:
        return Call(CallKind(self.kind), self.first, self.second)


def can_repeat(id_merge: IdMerge, kind: CallKind) -> bool:
    """Return whether repeating a call leaves no trace.

    A repeated merge or link is accepted and changes nothing. A repeated alias or identify changes nothing either, but
    Mixpanel refuses it, and the refused call stays visible in the project's events.
    """
    return (id_merge, kind) in {(IdMerge.ORIGINAL, CallKind.MERGE), (IdMerge.SIMPLIFIED, CallKind.LINK)}


def call_of(pair: Pair, graph: IdentityGraph) -> Call | str:
    """Return the call that joins a pair in the project, or the reason why no call does.

    Args:
        pair: a pair without a problem.
        graph: ids of the project so far.
    """
    if graph.id_merge is IdMerge.SIMPLIFIED:
        return _link(pair, graph)
    if graph.id_merge is IdMerge.ORIGINAL:
        return Call(_KINDS.get(pair.kind, CallKind.MERGE), pair.first, pair.second)
    if pair.kind is PairKind.ALIAS:
        return Call(CallKind.ALIAS, pair.first, pair.second)
    if pair.kind is PairKind.AUTO:
        # An id can be an alias only once, but the id that it points to is not an alias yet.
        return Call(CallKind.ALIAS, pair.first, graph.resolve(pair.second))
    return f"{pair.kind.value} has no effect in a Legacy project; use the kind alias or auto"


def _link(pair: Pair, graph: IdentityGraph) -> Call | str:
    first, second = _device(pair.first, graph), _device(pair.second, graph)
    if pair.kind is PairKind.IDENTIFY and second is None and pair.second not in graph:
        second = DEVICE_PREFIX + pair.second
    if first is None and second is None:
        return (
            "two user ids cannot become one person in a Simplified project; choose one of them, and send later events "
            "and profile updates under it"
        )
    if first is None or second is None:
        return Call(CallKind.LINK, pair.second if second is None else pair.first, first or second or "")
    if (owner := graph.resolve(first)) != first:
        return Call(CallKind.LINK, owner, second)
    if (owner := graph.resolve(second)) != second:
        return Call(CallKind.LINK, owner, first)
    return "two devices become one person only through a user; pair each of them with the user's id"


def _device(distinct_id: str, graph: IdentityGraph) -> str | None:
    """Return the id with the prefix `$device:` if it is that of a device, else None.

    Without the prefix, it is a device if the project knows it as one and knows no user with this id.
    """
    if distinct_id.startswith(DEVICE_PREFIX):
        return distinct_id
    device = DEVICE_PREFIX + distinct_id
    return device if device in graph and distinct_id not in graph else None
