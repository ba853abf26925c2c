"""What an update does to a profile: the operations of `/engage` and `/groups`.

Pure. Sources: Mixpanel's pages on user and group profiles and its OpenAPI description
(https://docs.mixpanel.com/reference/profile-set and its neighbours, read 2026-08-21).

Decisions where Mixpanel's documents are silent
    - Several operations in one record are all applied, in the order of `OPERATIONS`; Mixpanel shows one in each.
    - A record is taken or refused as a whole. What names an operation wrongly, or no operation, is refused.
    - `$set_once` leaves a stored null as it is.
    - `$add` on what is no number, and `$append` and `$union` on what is no list, leave it as it is.
    - `$append` adds a list as one item. `$union` takes a single value for a list of one, and skips lists, objects and
      null. `$remove` takes out every match, and with a list each of its items.
    - `$unset`, `$remove` and `$delete` do not create a profile.
    - More than 2,000 properties: the record that would add them is refused.
    - `$last_seen` is the `$time` of the latest `$set` or `$set_once` that arrived, or the clock's; as UTC without a
      suffix. Updates apply in the order of arrival, whatever their `$time`. Groups have none.
    - Nothing is geolocated: `$ip`, `$latitude` and `$longitude` have no effect.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any, Final

import orjson

from .checks import epoch_ms, is_number

Profile = dict[str, Any]

MAX_PROPERTIES: Final = 2_000

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
_INT64: Final = 2**63


class RefusedUpdateError(Exception):
    """An update that Mixpanel would not take; its text says why."""


def _object(operation: str, value: Any) -> dict[str, Any]:
    if type(value) is not dict:
        raise RefusedUpdateError(f"{operation} must be an object")
    return value


def _set(profile: Profile, value: Any) -> None:
    profile.update(_object("$set", value))


def _set_once(profile: Profile, value: Any) -> None:
    for name, item in _object("$set_once", value).items():
        profile.setdefault(name, item)


def _add(profile: Profile, value: Any) -> None:
    amounts = _object("$add", value)
    if not all(is_number(amount) for amount in amounts.values()):
        raise RefusedUpdateError("$add takes numbers only")
    for name, amount in amounts.items():
        stored = profile.get(name, 0)
        if is_number(stored):
            profile[name] = _sum(stored, amount)


def _append(profile: Profile, value: Any) -> None:
    for name, item in _object("$append", value).items():
        stored = profile.get(name, [])
        if type(stored) is list:
            profile[name] = [*stored, item]


def _union(profile: Profile, value: Any) -> None:
    for name, items in _object("$union", value).items():
        stored = profile.get(name, [])
        if type(stored) is not list:
            continue
        together = list(stored)
        seen = {_key(item) for item in stored}
        for item in items if type(items) is list else [items]:
            if type(item) in {str, int, float, bool} and _key(item) not in seen:
                seen.add(_key(item))
                together.append(item)
        profile[name] = together


def _remove(profile: Profile, value: Any) -> None:
    for name, unwanted in _object("$remove", value).items():
        stored = profile.get(name)
        if type(stored) is list:
            targets = {_key(item) for item in (unwanted if type(unwanted) is list else [unwanted])}
            profile[name] = [item for item in stored if _key(item) not in targets]


def _unset(profile: Profile, value: Any) -> None:
    if type(value) is not list or not all(type(name) is str for name in value):
        raise RefusedUpdateError("$unset must be a list of property names")
    for name in value:
        profile.pop(name, None)


OPERATIONS: Final[Mapping[str, Callable[[Profile, Any], None]]] = {
    "$set": _set,
    "$set_once": _set_once,
    "$add": _add,
    "$append": _append,
    "$union": _union,
    "$remove": _remove,
    "$unset": _unset,
}
DELETE: Final = "$delete"

_CREATING: Final = frozenset({"$set", "$set_once", "$add", "$append", "$union"})
_FOR_USERS_ONLY: Final = frozenset({"$add", "$append"})


def apply_update(profile: Profile | None, record: Mapping[str, Any], *, now: float, is_group: bool) -> Profile | None:
    """What a profile is after an update; None if there is none then.

    Args:
        profile: as stored, or None; not changed.
        record: the update with its envelope.
        now: the clock, in seconds.
        is_group: whether this is a group's profile, which takes neither `$add` nor `$append` and has no `$last_seen`.

    Raises:
        RefusedUpdateError: if the record is malformed; the profile is then as before.
    """
    operations = [name for name in OPERATIONS if name in record]
    if not operations and DELETE not in record:
        raise RefusedUpdateError("record has no operation")
    if is_group and not _FOR_USERS_ONLY.isdisjoint(operations):
        raise RefusedUpdateError("$add and $append are not supported for groups")
    updated: Profile = dict(profile or {})
    for name in operations:
        OPERATIONS[name](updated, record[name])
    if len(updated) > MAX_PROPERTIES and len(updated) > len(profile or {}):
        raise RefusedUpdateError(f"profile would have more than {MAX_PROPERTIES} properties")
    if DELETE in record or (profile is None and _CREATING.isdisjoint(operations)):
        return None
    if not is_group and ("$set" in record or "$set_once" in record) and not _is_true(record.get("$ignore_time")):
        updated["$last_seen"] = _last_seen(record.get("$time"), now)
    return updated


def ignores_alias(record: Mapping[str, Any]) -> bool:
    """Whether `$ignore_alias` asks for the very id given; the Go SDK sends the flag as text."""
    return _is_true(record.get("$ignore_alias"))


def _is_true(value: Any) -> bool:
    return value is True or (type(value) is str and value.lower() == "true")


def _sum(stored: float, amount: float) -> float:
    total = stored + amount
    if type(total) is float and not math.isfinite(total):
        raise RefusedUpdateError("$add leads out of the range of numbers")
    return total if -_INT64 <= total < _INT64 else float(total)


def _key(item: Any) -> object:
    """What two JSON values have in common if they are the same: `1` and `1.0` are, `1` and `true` are not."""
    if type(item) in {dict, list}:
        return orjson.dumps(item, option=orjson.OPT_SORT_KEYS)
    return type(item) is bool, item


def _last_seen(time: Any, now: float) -> str:
    ms = epoch_ms(time if is_number(time) else now)
    try:
        moment = _EPOCH + timedelta(milliseconds=ms)
    except OverflowError:
        moment = _EPOCH + timedelta(seconds=now)
    return moment.strftime("%Y-%m-%dT%H:%M:%S")
