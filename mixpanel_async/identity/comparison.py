"""Difference between the people of two identity graphs. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from .._model.config import IdMerge
from .calls import DEVICE_PREFIX


class People(Protocol):
    """Methods of a graph that a comparison uses."""

    @property
    def id_merge(self) -> IdMerge: ...

    @property
    def person_count(self) -> int: ...

    def ids(self) -> Iterator[str]: ...

    def resolve(self, distinct_id: str) -> str: ...

    def __contains__(self, distinct_id: object) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonChange:
    """Person that is several persons in the other graph.

    Args:
        person: canonical id of the one person.
        parts: ids of each of the several persons, as far as they belong to the one, the largest part first. The ids are
            those of the graph with the one person.
    """

    person: str
    parts: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphDiff:
    """Difference between the people before and after.

    Args:
        persons_before: number of people before.
        persons_after: number of people after.
        split: people before whose ids are several people after.
        joined: people after whose ids were several people before.
        gone: ids that only the graph before has.
        new: ids that only the graph after has.
    """

    persons_before: int
    persons_after: int
    split: tuple[PersonChange, ...]
    joined: tuple[PersonChange, ...]
    gone: tuple[str, ...]
    new: tuple[str, ...]

    @property
    def is_empty(self) -> bool:
        """Whether both graphs have the same people."""
        return not (self.split or self.joined or self.gone or self.new)


def compare(before: People, after: People) -> GraphDiff:
    """Compare two graphs. See `IdentityGraph.diff`."""
    split, gone = _divided(before, after)
    joined, new = _divided(after, before)
    return GraphDiff(
        persons_before=before.person_count,
        persons_after=after.person_count,
        split=split,
        joined=joined,
        gone=gone,
        new=new,
    )


def _divided(one: People, other: People) -> tuple[tuple[PersonChange, ...], tuple[str, ...]]:
    """Return the people of a graph that the other one divides, and the ids that the other one lacks."""
    missing: list[str] = []
    first_part: dict[str, str] = {}
    divided: dict[str, dict[str, list[str]]] = {}
    for distinct_id in one.ids():
        counterpart = _counterpart(distinct_id, one, other)
        if counterpart is None:
            missing.append(distinct_id)
            continue
        person, part = one.resolve(distinct_id), other.resolve(counterpart)
        if first_part.setdefault(person, part) != part:
            divided[person] = {}
    if divided:
        for distinct_id in one.ids():
            parts = divided.get(one.resolve(distinct_id))
            counterpart = _counterpart(distinct_id, one, other)
            if parts is not None and counterpart is not None:
                parts.setdefault(other.resolve(counterpart), []).append(distinct_id)
    changes = (
        PersonChange(person=person, parts=tuple(sorted(map(tuple, parts.values()), key=len, reverse=True)))
        for person, parts in divided.items()
    )
    return tuple(changes), tuple(missing)


def _counterpart(distinct_id: str, one: People, other: People) -> str | None:
    """Return the same id in the other graph, or None if it has none."""
    if distinct_id in other:
        return distinct_id
    is_simplified = one.id_merge is IdMerge.SIMPLIFIED
    if is_simplified is (other.id_merge is IdMerge.SIMPLIFIED):
        return None
    renamed = distinct_id.removeprefix(DEVICE_PREFIX) if is_simplified else DEVICE_PREFIX + distinct_id
    return renamed if renamed != distinct_id and renamed in other else None
