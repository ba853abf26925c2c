"""Assertions about an emulated Mixpanel. Failure messages list the events and calls that arrived.

    event = assert_tracked(emulator, "Signed up", distinct_id="user-1", properties={"plan": "free"})
    assert_same_person(emulator, "user-1", visitor)
    assert_profile(emulator, "user-1", {"$name": "Maya"})

    AssertionError: expected one 'Signed up' for 'user-1' with {'plan': 'free'}; got:
      - 'Signed up' for 'user-1', but plan is 'pro' instead of 'free'
      - 'Viewed page' for 'user-1'

In a Simplified project the person of the device `d` has the id `$device:d`. The assertions also accept `d`, unless it
is the id of another person.

The assertions check data that has arrived, so call `await client.flush()` first. They work with any test framework.
With pytest, this package also provides the fixtures `mixpanel_emulator` and `mixpanel_client`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from reprlib import Repr
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from mixpanel_async.emulator import Emulator

__all__ = [
    "assert_different_people",
    "assert_group",
    "assert_not_tracked",
    "assert_profile",
    "assert_same_person",
    "assert_tracked",
]

_MAX_LINES: Final = 10
_VERBS: Final = frozenset({"$identify", "$create_alias", "$merge"})
_ABSENT: Final = object()

_Event = dict[str, Any]


def assert_tracked(
    emulator: Emulator,
    event_name: str,
    *,
    distinct_id: str | None = None,
    properties: Mapping[str, Any] | None = None,
    times: int | None = 1,
) -> dict[str, Any]:
    """Assert that an event arrived and counts for a person.

        event = assert_tracked(emulator, "Signed up", distinct_id="user-1", properties={"plan": "free"})

    Args:
        emulator: emulator that should have received the event.
        event_name: name of the event.
        distinct_id: any id of the person; None for any person.
        properties: properties the event must have, with equal values; it may have others. None accepts any.
        times: exact number of matching events, at least 1; None accepts one or more. Duplicates count once, as in
            Mixpanel's reports.

    Returns:
        The first matching event, as `Emulator.events` returns it.

    Raises:
        AssertionError: if the number of matching events differs. The message lists the closest events.
        ValueError: if `times` is less than 1.
    """
    __tracebackhide__ = True
    if times is not None and times < 1:
        raise ValueError(f"times must be at least 1 or None, not {times}; to expect no event, use assert_not_tracked")
    distinct_id = _person_id(emulator, distinct_id)
    found = _matching(emulator, event_name, distinct_id, properties)
    if found and times in {None, len(found)}:
        return found[0]
    many = "at least one" if times is None else "one" if times == 1 else f"{times} times"
    wanted = f"expected {many} {_describe_expectation(event_name, distinct_id, properties)}"
    if found:
        raise AssertionError(f"{wanted}; got {len(found)}:{_bullet_list(_describe_event(event) for event in found)}")
    raise AssertionError(f"{wanted}; got{_closest_events(emulator, event_name, distinct_id, properties)}")


def assert_not_tracked(
    emulator: Emulator,
    event_name: str,
    *,
    distinct_id: str | None = None,
    properties: Mapping[str, Any] | None = None,
) -> None:
    """Assert that no matching event arrived.

    Args:
        emulator: emulator to check.
        event_name: name of the event.
        distinct_id: any id of the person; None for any person.
        properties: properties of the unwanted event; None for any.

    Raises:
        AssertionError: if a matching event arrived. The message lists the matching events.
    """
    __tracebackhide__ = True
    distinct_id = _person_id(emulator, distinct_id)
    found = _matching(emulator, event_name, distinct_id, properties)
    if found:
        raise AssertionError(
            f"expected no {_describe_expectation(event_name, distinct_id, properties)}; "
            f"got {len(found)}:{_bullet_list(_describe_event(event) for event in found)}"
        )


def assert_same_person(emulator: Emulator, first: str, second: str) -> str:
    """Assert that two ids belong to the same person.

    Args:
        emulator: emulator to check.
        first: one id.
        second: the other id.

    Returns:
        The canonical id of the person.

    Raises:
        AssertionError: if the ids belong to two people. The message lists the identity calls that named either id, and
            the reasons why they failed.
    """
    __tracebackhide__ = True
    given = (first, second)
    first, second = _person_id(emulator, first), _person_id(emulator, second)
    if emulator.resolve(first) == emulator.resolve(second):
        return emulator.resolve(first)
    people = " and ".join(_format_ids(emulator.cluster(one)) for one in (first, second))
    described = [_describe_identity_call(emulator, entry) for entry in _identity_calls(emulator, first, second)]
    raise AssertionError(
        f"expected {first!r} and {second!r} to be one person; they are two: {people}"
        f"{_bullet_list(described) if described else f'{chr(10)}  {_missing_link(emulator)}'}"
        f"{''.join(_device_hints(emulator, given))}"
    )


def assert_different_people(emulator: Emulator, first: str, second: str) -> None:
    """Assert that two ids belong to different people.

    Args:
        emulator: emulator to check.
        first: one id.
        second: the other id.

    Raises:
        AssertionError: if the ids belong to one person. The message lists the identity calls that joined them.
    """
    __tracebackhide__ = True
    first, second = _person_id(emulator, first), _person_id(emulator, second)
    if emulator.resolve(first) == emulator.resolve(second):
        described = [
            _describe_identity_call(emulator, entry)
            for entry in _identity_calls(emulator, first, second)
            if entry["outcome"] == "merged"
        ]
        raise AssertionError(
            f"expected {first!r} and {second!r} to be different people; "
            f"they are one: {_format_ids(emulator.cluster(first))}{_bullet_list(described)}"
        )


def assert_profile(emulator: Emulator, distinct_id: str, properties: Mapping[str, Any]) -> dict[str, Any]:
    """Assert that a person has a profile with these properties.

    Args:
        emulator: emulator to check.
        distinct_id: any id of the person.
        properties: properties the profile must have, with equal values; it may have others.

    Returns:
        All properties of the profile.

    Raises:
        AssertionError: if the profile does not exist or differs. The message lists the differences.
    """
    __tracebackhide__ = True
    distinct_id = _person_id(emulator, distinct_id)
    found = emulator.profile(distinct_id)
    if found is None:
        known = _format_ids(emulator.profiles())
        raise AssertionError(f"expected a profile for {distinct_id!r}; got profiles for {known}")
    return _check_properties(f"profile of {distinct_id!r}", found, properties)


def assert_group(emulator: Emulator, group_key: str, group_id: str, properties: Mapping[str, Any]) -> dict[str, Any]:
    """Assert that a group has a profile with these properties.

    Args:
        emulator: emulator to check.
        group_key: kind of group, such as `company`.
        group_id: id of the group.
        properties: properties the group must have, with equal values; it may have others.

    Returns:
        All properties of the group.

    Raises:
        AssertionError: if the group does not exist or differs. The message lists the differences.
    """
    __tracebackhide__ = True
    found = emulator.group(group_key, group_id)
    if found is None:
        raise AssertionError(f"expected a profile for {group_key} {group_id!r}; got none{_describe_arrivals(emulator)}")
    return _check_properties(f"profile of {group_key} {group_id!r}", found, properties)


_Id = TypeVar("_Id", str, str | None)


def _person_id(emulator: Emulator, given: _Id) -> _Id:
    """Return the id of a person. In a Simplified project, return `$device:d` for `d` if only a device has that id."""
    if given is None or not _is_device(emulator, given):
        return given
    is_person = (
        emulator.cluster(given) != {given}
        or given in emulator.profiles()
        or any(given in _own_ids(event) for event in emulator.events())
    )
    return given if is_person else f"$device:{given}"


def _is_device(emulator: Emulator, given: str) -> bool:
    """Return whether an event of a Simplified project named this device."""
    return emulator.id_merge.value == "simplified" and any(
        str(event["properties"].get("$device_id")).removeprefix("$device:") == given for event in emulator.events()
    )


def _own_ids(event: _Event) -> tuple[object, object]:
    # Not the id as sent: an older browser SDK sends the bare id of its device, which Simplified ID Merge overrides.
    properties = event["properties"]
    return properties["distinct_id"], properties.get("$user_id")


def _device_hints(emulator: Emulator, given: Iterable[str]) -> Iterator[str]:
    for one in given:
        if _is_device(emulator, one):
            yield f"\n  in a Simplified project the device {one!r} has the id {f'$device:{one}'!r}"


def _matching(
    emulator: Emulator, name: str, distinct_id: str | None, properties: Mapping[str, Any] | None
) -> list[_Event]:
    return [
        event
        for event in emulator.events(name)
        if _belongs_to(emulator, event, distinct_id) and not _differences(event["properties"], properties)
    ]


def _belongs_to(emulator: Emulator, event: _Event, distinct_id: str | None) -> bool:
    return distinct_id is None or event["properties"]["distinct_id"] == emulator.resolve(distinct_id)


def _differences(found: Mapping[str, Any], expected: Mapping[str, Any] | None) -> list[str]:
    differences = []
    for key, value in (expected or {}).items():
        actual = found.get(key, _ABSENT)
        if actual is _ABSENT:
            differences.append(f"{key} is missing instead of {_short_repr(value)}")
        elif value != actual:
            differences.append(f"{key} is {_short_repr(actual)} instead of {_short_repr(value)}")
    return differences


def _check_properties(subject: str, found: dict[str, Any], expected: Mapping[str, Any]) -> dict[str, Any]:
    __tracebackhide__ = True
    differences = _differences(found, expected)
    if differences:
        wanted = f"expected {subject} with {_short_repr(dict(expected))}"
        raise AssertionError(f"{wanted}; got {_short_repr(found)}{_bullet_list(differences)}")
    return found


def _closest_events(
    emulator: Emulator, name: str, distinct_id: str | None, properties: Mapping[str, Any] | None
) -> str:
    """Describe the events and failed identity calls that arrived, closest first."""
    wrong_properties, wrong_person, wrong_name = [], [], []
    for event in emulator.events():
        if event["event"] == name:
            if _belongs_to(emulator, event, distinct_id):
                differences = ", ".join(_differences(event["properties"], properties))
                wrong_properties.append(f"{_describe_event(event)}, but {differences}")
            else:
                wrong_person.append(_describe_event(event))
        elif distinct_id is not None and _belongs_to(emulator, event, distinct_id) and event["event"] not in _VERBS:
            wrong_name.append(_describe_event(event))
    closest = [*wrong_properties, *wrong_person, *wrong_name]
    if distinct_id is not None:
        closest += [
            _describe_identity_call(emulator, entry)
            for entry in _identity_calls(emulator, distinct_id)
            if entry["outcome"] != "merged"
        ]
    return f":{_bullet_list(closest)}" if closest else f" none{_describe_arrivals(emulator)}"


def _describe_arrivals(emulator: Emulator) -> str:
    """Describe what arrived when nothing resembles the expectation."""
    requests = emulator.requests()
    if not requests:
        return ", and no request arrived; was the client flushed?"
    names = sorted({event["event"] for event in emulator.events()})
    refused = [f"{one.path} with {one.status}" for one in requests if one.status != 200]
    number = "1 request" if len(requests) == 1 else f"{len(requests)} requests"
    described = f"; {number} arrived with {', '.join(map(repr, names)) or 'no event'}"
    if refused:
        return f"{described}; failed: {', '.join(refused[:_MAX_LINES])}"
    ignored = sorted({entry["message"] for entry in emulator.rejected() if entry["silent"]})
    if ignored:
        return f"{described}; {', '.join(ignored[:_MAX_LINES])}"
    # Identity calls are sent at once. A request therefore does not prove that queued events were flushed.
    return f"{described}; was the client flushed?"


def _identity_calls(emulator: Emulator, *ids: str) -> list[dict[str, Any]]:
    """Return the identity log entries that name any id of these people."""
    named = {member for one in ids for member in emulator.cluster(one)}
    return [entry for entry in emulator.identity_log() if not named.isdisjoint(_ids_in(emulator, entry))]


def _ids_in(emulator: Emulator, entry: Mapping[str, Any]) -> list[str]:
    properties = entry["properties"]
    pair = properties.get("$distinct_ids")
    device, user = properties.get("$device_id"), properties.get("$user_id")
    is_event = emulator.id_merge.value == "simplified" and entry["event"] == "$identify" and device and user
    if entry["event"] in _VERBS and not is_event:
        names = ("$identified_id", "$anon_id", "distinct_id", "alias", "$anon_distinct_id")
        found = [properties.get(name) for name in names] + (pair if isinstance(pair, list) else [])
    else:
        found = [user, f"$device:{str(device).removeprefix('$device:')}"]
    return list(dict.fromkeys(str(one) for one in found if one))


def _describe_identity_call(emulator: Emulator, entry: Mapping[str, Any]) -> str:
    """Describe an identity call in one line: its ids and its outcome."""
    name = entry["event"]
    call = f"{name if name in _VERBS else repr(name)} of {' and '.join(map(repr, _ids_in(emulator, entry)))}"
    outcome = {"merged": "joined them", "unchanged": "changed nothing", "ignored": "had no effect"}.get(
        entry["outcome"], "was refused"
    )
    reason, words = entry["$failure_reason"], entry["$failure_description"]
    return f"{call} {outcome}{f': {words}' if words else ''}{f' ({reason})' if reason else ''}"


def _missing_link(emulator: Emulator) -> str:
    """Describe the call that would have joined two ids."""
    if emulator.id_merge.value == "simplified":
        return "no event carried both ids, one as $user_id and the other as $device_id"
    verbs = "$create_alias" if emulator.id_merge.value == "legacy" else "$identify, $create_alias or $merge"
    return f"no {verbs} named either of them{_describe_arrivals(emulator)}"


def _describe_expectation(name: str, distinct_id: str | None, properties: Mapping[str, Any] | None) -> str:
    who = "" if distinct_id is None else f" for {distinct_id!r}"
    return f"{name!r}{who}{f' with {_short_repr(dict(properties))}' if properties else ''}"


def _describe_event(event: _Event) -> str:
    properties = event["properties"]
    sent, counted = properties["$distinct_id_before_identity"], properties["distinct_id"]
    return f"{event['event']!r} for {counted!r}{'' if sent == counted else f' (sent as {sent!r})'}"


def _bullet_list(lines: Iterable[str]) -> str:
    return "".join(_bullets(list(lines)))


def _bullets(lines: list[str]) -> Iterator[str]:
    for line in lines[:_MAX_LINES]:
        yield f"\n  - {line}"
    if len(lines) > _MAX_LINES:
        yield f"\n  ... and {len(lines) - _MAX_LINES} more"


def _format_ids(ids: Iterable[str]) -> str:
    known = sorted(ids)
    shown = ", ".join(map(repr, known[:_MAX_LINES])) or "no person"
    return f"{shown} and {len(known) - _MAX_LINES} more" if len(known) > _MAX_LINES else shown


def _short_repr(value: object) -> str:
    shortened = Repr()
    shortened.maxdict = shortened.maxlist = _MAX_LINES
    shortened.maxstring = shortened.maxother = 120
    return shortened.repr(value)
