"""Every method of the client and of a bound client that sends something, with valid arguments and any `meta`."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any, Final

from mixpanel_async import AsyncMixpanel, BoundMixpanel

ANONYMOUS: Final = "2fd5dc29-4ab3-4eae-8ec4-b2a9d7f4e0a1"
Call = Callable[[AsyncMixpanel, Any], Any]
Pair = dict[str, Any]
GROUP: Final[Pair] = {"$group_key": "team", "$group_id": "a"}


def bound(mp: AsyncMixpanel) -> BoundMixpanel:
    return mp.bind(distinct_id="user")


EVENTS: Final[dict[str, Call]] = {
    "track": lambda mp, meta: mp.track("user", "Event", {"plan": "pro"}, meta),
    "track_nowait": lambda mp, meta: mp.track_nowait("user", "Event", {"plan": "pro"}, meta),
    "import_data": lambda mp, meta: mp.import_data(None, "user", "Event", 1_700_000_000, {"plan": "pro"}, meta),
    "bound track": lambda mp, meta: bound(mp).track("Event", {"plan": "pro"}, meta),
    "bound track_nowait": lambda mp, meta: bound(mp).track_nowait("Event", {"plan": "pro"}, meta),
}
IMMEDIATE: Final[dict[str, Call]] = {
    "track_immediate": lambda mp, meta: mp.track_immediate("user", "Event", {"plan": "pro"}, meta),
    "bound track_immediate": lambda mp, meta: bound(mp).track_immediate("Event", {"plan": "pro"}, meta),
}
PEOPLE: Final[dict[str, Call]] = {
    "people_update": lambda mp, meta: mp.people_update({"$distinct_id": "user", "$set": {"plan": "pro"}}, meta),
    "people_set": lambda mp, meta: mp.people_set("user", {"plan": "pro"}, meta),
    "people_set_once": lambda mp, meta: mp.people_set_once("user", {"plan": "pro"}, meta),
    "people_increment": lambda mp, meta: mp.people_increment("user", {"visits": 1}, meta),
    "people_append": lambda mp, meta: mp.people_append("user", {"list": "new"}, meta),
    "people_union": lambda mp, meta: mp.people_union("user", {"list": ["new"]}, meta),
    "people_unset": lambda mp, meta: mp.people_unset("user", ["plan"], meta),
    "people_remove": lambda mp, meta: mp.people_remove("user", {"list": "new"}, meta),
    "people_delete": lambda mp, meta: mp.people_delete("user", meta),
    "people_track_charge": lambda mp, meta: mp.people_track_charge("user", 9.99, None, meta),
    "people_clear_charges": lambda mp, meta: mp.people_clear_charges("user", meta),
    "bound people_update": lambda mp, meta: bound(mp).people_update({"$set": {"plan": "pro"}}, meta),
    "bound people_set": lambda mp, meta: bound(mp).people_set({"plan": "pro"}, meta),
    "bound people_set_once": lambda mp, meta: bound(mp).people_set_once({"plan": "pro"}, meta),
    "bound people_increment": lambda mp, meta: bound(mp).people_increment({"visits": 1}, meta),
    "bound people_append": lambda mp, meta: bound(mp).people_append({"list": "new"}, meta),
    "bound people_union": lambda mp, meta: bound(mp).people_union({"list": ["new"]}, meta),
    "bound people_unset": lambda mp, meta: bound(mp).people_unset(["plan"], meta),
    "bound people_remove": lambda mp, meta: bound(mp).people_remove({"list": "new"}, meta),
    "bound people_delete": lambda mp, meta: bound(mp).people_delete(meta),
    "bound people_track_charge": lambda mp, meta: bound(mp).people_track_charge(9.99, None, meta),
    "bound people_clear_charges": lambda mp, meta: bound(mp).people_clear_charges(meta),
}
GROUPS: Final[dict[str, Call]] = {
    "group_update": lambda mp, meta: mp.group_update({**GROUP, "$set": {"plan": "pro"}}, meta),
    "group_set": lambda mp, meta: mp.group_set("team", "a", {"plan": "pro"}, meta),
    "group_set_once": lambda mp, meta: mp.group_set_once("team", "a", {"plan": "pro"}, meta),
    "group_union": lambda mp, meta: mp.group_union("team", "a", {"list": ["new"]}, meta),
    "group_unset": lambda mp, meta: mp.group_unset("team", "a", ["plan"], meta),
    "group_remove": lambda mp, meta: mp.group_remove("team", "a", {"list": "new"}, meta),
    "group_delete": lambda mp, meta: mp.group_delete("team", "a", meta),
}
IDENTITY: Final[dict[str, Call]] = {
    "alias": lambda mp, meta: mp.alias("other", "user", meta),
    "identify": lambda mp, meta: mp.identify("user", ANONYMOUS, meta),
    "merge": lambda mp, meta: mp.merge(None, "user", "third", meta),
    "bound alias": lambda mp, meta: bound(mp).alias("fourth", meta),
    "bound identify": lambda mp, meta: mp.bind(device_id=ANONYMOUS).identify("user", meta),
}
QUEUED: Final = {**EVENTS, **PEOPLE, **GROUPS}
RECORDS: Final = {**QUEUED, **IMMEDIATE}
ALL: Final = {**RECORDS, **IDENTITY}


async def make(call: Call, mp: AsyncMixpanel, meta: Any = None) -> object:
    """Make a call. Return its result, or the exception that it raised."""
    try:
        result = call(mp, meta)
        return await result if inspect.isawaitable(result) else result
    except (Exception, KeyboardInterrupt, SystemExit, asyncio.CancelledError) as error:  # noqa: BLE001  the result
        return error
