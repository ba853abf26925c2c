"""Profile update operations of `/engage` and `/groups`.

Pure. Sources: Mixpanel's pages on user and group profiles and its OpenAPI description
(https://docs.mixpanel.com/reference/profile-set and the other profile pages, read 2026-08-21).

Decisions where Mixpanel's documents are silent
    - A record with several operations applies all of them, in the order of `OPERATIONS`. Mixpanel's examples contain
      one each.
    - A record is accepted or refused as a whole. A record without a known operation is refused. An unknown
      operation next to a known one is ignored.
    - `$set_once` does not replace a stored null.
    - `$add` on a value that is not a number, and `$append` and `$union` on a value that is not a list, change nothing.
    - `$append` adds a list as one item. `$union` treats a single value as a list of one, and skips lists, objects and
      null. `$remove` removes every match, and with a list every match of each item.
    - `$unset`, `$remove` and `$delete` do not create a profile.
    - A record that would raise the number of properties above 2,000 is refused.
    - Names and text are truncated at 255 characters, also in lists and objects. The 256 KB limit of those is not
      enforced.
    - `$last_seen` is the `$time` of the last `$set` or `$set_once` to arrive, or else the current time, in UTC without
      a suffix. Updates apply in order of arrival, whatever their `$time`. Groups have no `$last_seen`.
    - Geolocation applies to users only, if the option `geolocate` is set. Every `$set` and `$set_once` writes its
      properties, except those that the update sets itself. Without an `$ip`, the IP address of the sender is used,
      unless `ip=0` (the documents contradict each other on the default of `ip`, which is 1 here).
    - `$latitude` and `$longitude` combined set `$geo_source` instead. No city is looked up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any, Final

import orjson

from .checks import epoch_ms, is_number, truncate_text

Profile = dict[str, Any]
Geolocate = Callable[[str], Mapping[str, Any]]
"""Function that returns `$city`, `$region`, `$country_code` and `$timezone`, as far as known, for an IP address."""

MAX_PROPERTIES: Final = 2_000

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
_INT64: Final = 2**63


class InvalidUpdateError(Exception):
    """Mixpanel would refuse the update. The message states the reason."""


def _require_object(operation: str, value: Any) -> dict[str, Any]:
    if type(value) is not dict:
        raise InvalidUpdateError(f"{operation} must be an object")
    return value


def _set(profile: Profile, value: Any) -> None:
    profile.update(_require_object("$set", value))


def _set_once(profile: Profile, value: Any) -> None:
    for name, item in _require_object("$set_once", value).items():
        profile.setdefault(name, item)


def _add(profile: Profile, value: Any) -> None:
    amounts = _require_object("$add", value)
    if not all(is_number(amount) for amount in amounts.values()):
        raise InvalidUpdateError("$add takes numbers only")
    for name, amount in amounts.items():
        stored = profile.get(name, 0)
        if is_number(stored):
            profile[name] = _sum(stored, amount)


def _append(profile: Profile, value: Any) -> None:
    for name, item in _require_object("$append", value).items():
        stored = profile.get(name, [])
        if type(stored) is list:
            profile[name] = [*stored, item]


def _union(profile: Profile, value: Any) -> None:
    for name, items in _require_object("$union", value).items():
        stored = profile.get(name, [])
        if type(stored) is not list:
            continue
        combined = list(stored)
        seen = {_comparison_key(item) for item in stored}
        for item in items if type(items) is list else [items]:
            if type(item) in {str, int, float, bool} and _comparison_key(item) not in seen:
                seen.add(_comparison_key(item))
                combined.append(item)
        profile[name] = combined


def _remove(profile: Profile, value: Any) -> None:
    for name, unwanted in _require_object("$remove", value).items():
        stored = profile.get(name)
        if type(stored) is list:
            targets = {_comparison_key(item) for item in (unwanted if type(unwanted) is list else [unwanted])}
            profile[name] = [item for item in stored if _comparison_key(item) not in targets]


def _unset(profile: Profile, value: Any) -> None:
    if type(value) is not list or not all(type(name) is str for name in value):
        raise InvalidUpdateError("$unset must be a list of property names")
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

_CREATING_OPERATIONS: Final = frozenset({"$set", "$set_once", "$add", "$append", "$union"})
_FOR_USERS_ONLY: Final = frozenset({"$add", "$append"})


def apply_update(
    profile: Profile | None,
    record: Mapping[str, Any],
    *,
    now: float,
    is_group: bool,
    geolocate: Geolocate | None = None,
    address: str = "",
) -> Profile | None:
    """Return a profile after an update; None if it does not exist then.

    Args:
        profile: stored profile, or None. Not changed.
        record: the update with its envelope.
        now: current time in seconds since the epoch.
        is_group: whether this is a group profile. Groups support neither `$add` nor `$append`, have no `$last_seen` and
            are not geolocated.
        geolocate: returns location properties for an IP address; None disables geolocation.
        address: IP address of the sender, for records without `$ip`; empty disables its use.

    Raises:
        InvalidUpdateError: if the record is malformed.
    """
    operations = [name for name in OPERATIONS if name in record]
    if not operations and DELETE not in record:
        raise InvalidUpdateError("record has no operation")
    if is_group and not _FOR_USERS_ONLY.isdisjoint(operations):
        raise InvalidUpdateError("$add and $append are not supported for groups")
    updated: Profile = dict(profile or {})
    for name in operations:
        OPERATIONS[name](updated, truncate_text(record[name], 0))
    if len(updated) > MAX_PROPERTIES and len(updated) > len(profile or {}):
        raise InvalidUpdateError(f"profile would have more than {MAX_PROPERTIES} properties")
    if DELETE in record or (profile is None and _CREATING_OPERATIONS.isdisjoint(operations)):
        return None
    if not is_group and ("$set" in record or "$set_once" in record):
        if not _is_true(record.get("$ignore_time")):
            updated["$last_seen"] = _last_seen(record.get("$time"), now)
        own = {**record.get("$set_once", {}), **record.get("$set", {})}
        updated.update(
            (name, item) for name, item in _location_properties(record, geolocate, address).items() if name not in own
        )
    return updated


def _location_properties(record: Mapping[str, Any], geolocate: Geolocate | None, address: str) -> Mapping[str, Any]:
    """Return the properties that Mixpanel derives from the location of an update."""
    if is_number(record.get("$latitude")) and is_number(record.get("$longitude")):
        return {"$geo_source": "reverse_geocoding"}
    ip = record.get("$ip")
    if ip is None:
        ip = address
    # A zero, as a number or as text, disables geolocation.
    if geolocate is None or type(ip) is not str or ip in {"", "0"}:
        return {}
    # Encoded here, so that an invalid result of the user's function fails in this request and not at the next read.
    location: Mapping[str, Any] = orjson.loads(orjson.dumps(dict(geolocate(ip))))
    return location


def ignores_alias(record: Mapping[str, Any]) -> bool:
    """Return whether `$ignore_alias` addresses the exact id given. The Go SDK sends the flag as text."""
    return _is_true(record.get("$ignore_alias"))


def _is_true(value: Any) -> bool:
    return value is True or (type(value) is str and value.lower() == "true")


def _sum(stored: float, amount: float) -> float:
    total = stored + amount
    if type(total) is float and not math.isfinite(total):
        raise InvalidUpdateError("the result of $add is out of the range of numbers")
    return total if -_INT64 <= total < _INT64 else float(total)


def _comparison_key(item: Any) -> object:
    """Return a key that equal JSON values share: `1` and `1.0` are equal, `1` and `true` are not."""
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
