"""User profiles of the people that a plan joins: properties that conflict, and profiles that are left behind. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from mixpanel_async import IdMerge

from ..profile_files import Profile

# Mixpanel sets these itself, and they differ between any two profiles.
_IGNORED: Final = frozenset({"$last_seen", "$distinct_id", "$mp_first_event_time"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileFinding:
    """Effect of joining people on one property.

    Args:
        person: canonical id of the person.
        name: name of the property.
        values: value by id of the profile.
        left_behind: whether the property stays with a profile that no report shows under the person; False for
            different values, of which one remains.
    """

    person: str
    name: str
    values: Mapping[str, Any]
    left_behind: bool


def profile_findings(
    profiles: Iterable[Profile], person_of: Mapping[str, str], id_merge: IdMerge, left_behind: frozenset[str]
) -> list[ProfileFinding]:
    """Return what happens to the profiles of the people that a plan joins.

    In Original, profiles merge, and of different values one remains. In Legacy and Simplified, the profile of the alias
    or device is left behind.

    Args:
        profiles: all profiles of the project, or some.
        person_of: canonical id of the person by id, of the people that the plan joins.
        id_merge: ID merge system of the project.
        left_behind: aliases and devices that the plan joins to another id.
    """
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for distinct_id, properties in profiles:
        person = person_of.get(distinct_id)
        if person is not None:
            found.setdefault(person, {})[distinct_id] = properties
    if id_merge is IdMerge.ORIGINAL:
        return [one for person, its in found.items() if len(its) > 1 for one in _conflicts(person, its)]
    return [
        ProfileFinding(person=person, name=name, values={distinct_id: value}, left_behind=True)
        for person, its in found.items()
        for distinct_id, properties in its.items()
        if distinct_id in left_behind
        for name, value in properties.items()
        if name not in _IGNORED
    ]


def _conflicts(person: str, its: Mapping[str, Mapping[str, Any]]) -> Iterable[ProfileFinding]:
    names = dict.fromkeys(name for properties in its.values() for name in properties)
    for name in names:
        values = {one: properties[name] for one, properties in sorted(its.items()) if name in properties}
        first, *others = values.values()
        if name not in _IGNORED and any(other != first for other in others):
            yield ProfileFinding(person=person, name=name, values=values, left_behind=False)
