"""Deeply nested values: sent to `/track` and in profiles, with a choice for `/import`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from mixpanel_async import (
    AsyncMixpanel,
    Checker,
    ConfigurationError,
    DropReason,
    ServiceAccountCredentials,
    ValidationError,
)
from mixpanel_async.emulator import Emulator

ACCOUNT = ServiceAccountCredentials("user", "secret", "1")
DEEP: Mapping[str, Any] = {"a": {"b": {"c": {"d": {"e": [1, {"f": None}]}}}}, "plain": [1]}
TEXT: Mapping[str, Any] = {"a": {"b": {"c": {"d": '{"e":[1,{"f":null}]}'}}}, "plain": [1]}
TOO_DEEP = "properties.a.b.c.d"

# Options of clients whose events go to `/import`.
BY_IMPORT: dict[str, dict[str, Any]] = {
    "credentials": {"credentials": ACCOUNT},
    "endpoint": {"events_endpoint": "import"},
}
by_import = pytest.mark.parametrize("options", BY_IMPORT.values(), ids=list(BY_IMPORT))


def stored(emulator: Emulator, name: str) -> dict[str, Any]:
    (event,) = (event for event in emulator.events() if event["event"] == name)
    return {key: event["properties"][key] for key in ("a", "plain")}


@pytest.mark.anyio
async def test_track_and_profiles_keep_deep_values() -> None:
    emulator = Emulator()
    async with emulator.client(super_properties={"super": DEEP}) as mp:
        bound = mp.bind(distinct_id="user", properties={"bound": DEEP})
        await mp.track("user", "track", DEEP)
        mp.track_nowait("user", "track_nowait", DEEP)
        await mp.track_immediate("user", "track_immediate", DEEP)
        await bound.track("bound track", DEEP)
        bound.track_nowait("bound track_nowait", DEEP)
        for number, update in enumerate((mp.people_set, mp.people_set_once, mp.people_append)):
            await update(f"user-{number}", DEEP)
        await mp.bind(distinct_id="user-3").people_update({"$set": DEEP})
        await mp.group_set("company", "Acme", DEEP)
    blocking = emulator.client()
    with blocking.in_thread() as mp_in_thread:
        mp_in_thread.track("user", "in_thread", DEEP)
        mp_in_thread.bind(distinct_id="user").track("bound in_thread", DEEP)
    for name in ("track", "track_nowait", "track_immediate", "bound track", "bound track_nowait", "in_thread"):
        assert stored(emulator, name) == DEEP
    for event in emulator.events():
        given = event["properties"]
        assert given.get("super", DEEP) == given.get("bound", DEEP) == DEEP
    assert stored(emulator, "bound in_thread") == DEEP
    for number in (0, 1, 3):
        assert (emulator.profile(f"user-{number}") or {})["a"] == DEEP["a"]
    assert (emulator.profile("user-2") or {})["a"] == [DEEP["a"]]
    assert (emulator.group("company", "Acme") or {})["a"] == DEEP["a"]
    assert emulator.rejected() == []


@pytest.mark.anyio
@by_import
async def test_text_takes_the_place_of_what_is_too_deep_for_an_import(options: dict[str, Any]) -> None:
    emulator = Emulator()
    async with emulator.client(super_properties=DEEP, **options) as mp:
        await mp.track("user", "track", DEEP)
        mp.track_nowait("user", "track_nowait", DEEP)
        await mp.track_immediate("user", "track_immediate", DEEP)
        await mp.bind(distinct_id="user", properties=DEEP).track("bound")
        await mp.track("user", "super")
        await mp.import_data(None, "user", "import_data", 1_700_000_000, DEEP)
        await mp.people_set("user", DEEP)
    for name in ("track", "track_nowait", "track_immediate", "bound", "super", "import_data"):
        assert stored(emulator, name) == TEXT
    assert (emulator.profile("user") or {})["a"] == DEEP["a"]
    assert emulator.rejected() == []


@pytest.mark.anyio
async def test_only_events_for_import_are_changed() -> None:
    emulator = Emulator()
    async with emulator.client(credentials=ACCOUNT, events_endpoint="track") as mp:
        await mp.track("user", "track", DEEP)
        await mp.import_data(None, "user", "import_data", 1_700_000_000, DEEP)
    assert stored(emulator, "track") == DEEP
    assert stored(emulator, "import_data") == TEXT


@pytest.mark.anyio
@by_import
async def test_kept_values_are_rejected_record_by_record(options: dict[str, Any]) -> None:
    emulator = Emulator()
    lost: list[tuple[str, DropReason]] = []

    async def on_drop(records: Any, reason: DropReason) -> None:
        lost.extend((record.payload["event"], reason) for record in records)

    async with emulator.client(nesting="keep", on_drop=on_drop, **options) as mp:
        await mp.track("user", "before", {"a": 1})
        await mp.track("user", "deep", DEEP)
        await mp.track("user", "after", {"a": 1})
    assert [event["event"] for event in emulator.events()] == ["before", "after"]
    assert lost == [("deep", DropReason.REJECTED)]
    (rejected,) = emulator.rejected()
    assert "nested more than 3 levels deep" in str(rejected)


@pytest.mark.anyio
@by_import
async def test_deep_values_are_refused_on_request(options: dict[str, Any]) -> None:
    emulator = Emulator()
    async with emulator.client(nesting="reject", **options) as mp:
        calls: list[Callable[[], Any]] = [
            lambda: mp.track("user", "Event", DEEP),
            lambda: mp.track_immediate("user", "Event", DEEP),
            lambda: mp.bind(distinct_id="user", properties=DEEP).track("Event"),
            lambda: mp.import_data(None, "user", "Event", 1_700_000_000, DEEP),
        ]
        for call in calls:
            with pytest.raises(ValidationError, match="more than 3 levels deep") as caught:
                await call()
            assert caught.value.path == TOO_DEEP
        await mp.people_set("user", DEEP)
    assert emulator.events() == []
    async with emulator.client(nesting="reject", invalid="drop", **options) as mp:
        await mp.track("user", "Event", DEEP)
        assert mp.stats().dropped == 1


@pytest.mark.anyio
@by_import
async def test_hook_sees_values_and_not_their_text(options: dict[str, Any]) -> None:
    def without_f(message: dict[str, Any]) -> dict[str, Any]:
        del message["properties"]["a"]["b"]["c"]["d"]["e"][1]["f"]
        return message

    emulator = Emulator()
    async with emulator.client(before_send=without_f, **options) as mp:
        await mp.track("user", "Event", DEEP)
    assert stored(emulator, "Event")["a"]["b"]["c"]["d"] == '{"e":[1,{}]}'


@pytest.mark.anyio
@pytest.mark.parametrize("options", [{}, *BY_IMPORT.values()], ids=["track", *BY_IMPORT])
async def test_hostile_depth_is_refused_or_dropped(options: dict[str, Any]) -> None:
    hostile: Any = 1
    for _ in range(100_000):
        hostile = {"a": hostile}
    emulator = Emulator()
    async with emulator.client(invalid="drop", **options) as mp:
        await mp.track("user", "Event", hostile)
        mp.track_nowait("user", "Event", hostile)
        await mp.bind(distinct_id="user", properties=hostile).track("Event")
        await mp.people_set("user", hostile)
        await mp.group_set("company", "Acme", hostile)
        await mp.track("user", "Fine", {"a": 1})
        with pytest.raises(ValidationError, match="nested deeper"):
            await mp.track_immediate("user", "Event", hostile)
    assert [event["event"] for event in emulator.events()] == ["Fine"]
    assert (mp.stats().dropped, mp.stats().delivered) == (5, 1)


@pytest.mark.parametrize("nesting", ["cut", "", None, 3])
def test_unknown_choice_is_refused(nesting: Any) -> None:
    with pytest.raises(ConfigurationError, match="nesting must be 'keep', 'text' or 'reject'"):
        AsyncMixpanel("token", nesting=nesting)
    with pytest.raises(ConfigurationError, match="nesting must be"):
        Checker(nesting=nesting)


def test_checker_applies_the_choice() -> None:
    with pytest.raises(ValidationError) as caught:
        Checker(nesting="reject").event("user", "Event", DEEP)
    assert caught.value.path == TOO_DEEP
    kept, text = (Checker(nesting=nesting).event("user", "Event", DEEP) for nesting in ("keep", "text"))
    assert text.body_bytes > kept.body_bytes
    assert Checker(nesting="reject", recent=True).event("user", "Event", DEEP) == kept
