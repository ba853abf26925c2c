"""Every queueing method with every outcome of `before_send`: the record is sent or dropped, and no call fails."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import pytest

from mixpanel_async import AsyncMixpanel, IdMerge
from mixpanel_async.emulator import Emulator

Message = dict[str, Any]
Call = Callable[[AsyncMixpanel], Awaitable[None]]

CALLS: Final[dict[str, Call]] = {
    "track": lambda mp: mp.track("user", "Event", {"plan": "pro"}),
    "import_data": lambda mp: mp.import_data(None, "user", "Event", 1_700_000_000, {"plan": "pro"}),
    "people_update": lambda mp: mp.people_update({"$distinct_id": "user", "$set": {"plan": "pro"}}),
    "people_set": lambda mp: mp.people_set("user", {"plan": "pro"}),
    "people_set_once": lambda mp: mp.people_set_once("user", {"plan": "pro"}),
    "people_increment": lambda mp: mp.people_increment("user", {"visits": 1}),
    "people_append": lambda mp: mp.people_append("user", {"tags": "new"}),
    "people_union": lambda mp: mp.people_union("user", {"tags": ["new"]}),
    "people_unset": lambda mp: mp.people_unset("user", ["plan"]),
    "people_remove": lambda mp: mp.people_remove("user", {"tags": "new"}),
    "people_delete": lambda mp: mp.people_delete("user"),
    "people_track_charge": lambda mp: mp.people_track_charge("user", 9.99),
    "people_clear_charges": lambda mp: mp.people_clear_charges("user"),
    "group_update": lambda mp: mp.group_update({"$group_key": "team", "$group_id": "a", "$set": {"plan": "pro"}}),
    "group_set": lambda mp: mp.group_set("team", "a", {"plan": "pro"}),
    "group_set_once": lambda mp: mp.group_set_once("team", "a", {"plan": "pro"}),
    "group_union": lambda mp: mp.group_union("team", "a", {"tags": ["new"]}),
    "group_unset": lambda mp: mp.group_unset("team", "a", ["plan"]),
    "group_remove": lambda mp: mp.group_remove("team", "a", {"tags": "new"}),
    "group_delete": lambda mp: mp.group_delete("team", "a"),
}


def raising(_: Message) -> Message | None:
    raise LookupError("the hook failed")


def returning(result: Any) -> Callable[[Message], Any]:
    return lambda _: result


OUTCOMES: Final[dict[str, tuple[Callable[[Message], Any], str | None]]] = {
    "same message": (lambda message: message, None),
    "None": (returning(None), "before_send"),
    "exception": (raising, "before_send_failed"),
    "wrong type": (returning("text"), "before_send_failed"),
    "not encodable": (lambda message: {**message, "properties": object()}, "before_send_failed"),
}


@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.anyio
async def test_before_send_sends_or_drops_the_record_of_every_method(outcome: str) -> None:
    hook, reason = OUTCOMES[outcome]
    emulator = Emulator(IdMerge.ORIGINAL)
    expected = {method: {} if reason is None else {reason: 1} for method in CALLS}
    losses = {}
    async with emulator.client(before_send=hook) as mp:
        for method, call in CALLS.items():
            before = dict(mp.stats().losses)
            await call(mp)
            losses[method] = {name: count - before.get(name, 0) for name, count in mp.stats().losses.items()}
        await mp.flush()
        stats = mp.stats()
    assert losses == expected
    assert stats.accepted == len(CALLS)
    assert stats.delivered == (len(CALLS) if reason is None else 0)
    assert bool(emulator.requests()) == (reason is None)
