"""Names with a meaning for Mixpanel: which value wins, from every source and on both encoding paths.

The table in `docs/guides/properties.md` under "Reserved names" says the same.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import httpx
import orjson
import pytest

from mixpanel_async import AsyncMixpanel, ConfigurationError, ValidationError
from mixpanel_async._encoding.arguments import EventArguments
from mixpanel_async._encoding.records import RecordEncoder
from mixpanel_async._encoding.timestamps import time_fragment
from mixpanel_async.emulator import Emulator

TOKEN = "project-token"
NOW_MS = int(time.time() * 1000)
ARGUMENTS: dict[str, Any] = {
    "user_id": "user-argument",
    "device_id": "device-argument",
    "ip": "203.0.113.1",
}
STAMPS: dict[str, Any] = {"time": NOW_MS - 1000, "insert_id": "argument"}


class Reserved(NamedTuple):
    """One name.

    Args:
        value: value of the app's property.
        argument: value of the argument with the same meaning, or the client's own value; None without one.
        super_wins: whether a super property wins over the argument. A property of the event always does.
    """

    value: Any
    argument: Any
    super_wins: bool = False


NAMES: Mapping[str, Reserved] = {
    "distinct_id": Reserved("from-property", "from-argument"),
    "time": Reserved(NOW_MS - 5000, STAMPS["time"]),
    "$insert_id": Reserved("property", STAMPS["insert_id"]),
    "$user_id": Reserved("user-property", ARGUMENTS["user_id"]),
    "$device_id": Reserved("device-property", ARGUMENTS["device_id"]),
    "ip": Reserved("203.0.113.2", ARGUMENTS["ip"]),
    "mp_lib": Reserved("own", "python-async", super_wins=True),
    "$lib_version": Reserved("9.9", "", super_wins=True),
    # No names of the client: properties as any other.
    "event": Reserved("concert", None, super_wins=True),
    "token_": Reserved("x", None, super_wins=True),
    "$token": Reserved("x", None, super_wins=True),
    "properties": Reserved("x", None, super_wins=True),
}


class Sink:
    """Mixpanel that accepts everything."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []

    def handle(self, request: httpx.Request) -> httpx.Response:
        self.messages += json.loads(request.content)
        return httpx.Response(200, json={"status": 1, "error": None})


@asynccontextmanager
async def client(sink: Sink, **options: Any) -> AsyncIterator[AsyncMixpanel]:
    async with (
        httpx.AsyncClient(transport=httpx.MockTransport(sink.handle)) as http_client,
        AsyncMixpanel(**{"token": TOKEN, "http_client": http_client, **options}) as mp,
    ):
        yield mp


@pytest.mark.loops_in_turn
@pytest.mark.parametrize("source", ["property", "super", "super and property", "bound", "bound and property"])
@pytest.mark.parametrize("name", [*NAMES, "token"])
@pytest.mark.anyio
async def test_value_that_wins_in_an_event(name: str, source: str) -> None:
    reserved = NAMES.get(name, Reserved("ETH", None, super_wins=True))
    sink = Sink()
    given = {name: reserved.value}
    in_super = given if "super" in source else None
    in_event = given if "property" in source else {"plan": "pro"}
    async with client(sink, super_properties=in_super) as mp:
        if "bound" in source:
            bound = mp.bind(distinct_id="from-argument", properties=given, **ARGUMENTS)
            await bound.track("Event", in_event, **STAMPS)
        else:
            await mp.track("from-argument", "Event", in_event, **ARGUMENTS, **STAMPS)
    (message,) = sink.messages
    assert message.keys() == {"event", "properties"}
    assert message["event"] == "Event"
    properties = message["properties"]
    assert properties["token"] == TOKEN
    wins = source != "super" or reserved.super_wins
    assert properties["token_" if name == "token" else name] == (reserved.value if wins else reserved.argument)


@pytest.mark.parametrize("name", [*NAMES, "token"])
def test_both_encoders_agree(name: str) -> None:
    properties = {name: NAMES[name].value if name in NAMES else "ETH"}
    general, usual = RecordEncoder(TOKEN), RecordEncoder(TOKEN)
    general.template = None
    arguments = EventArguments("from-argument", "Event", properties)
    messages = [
        orjson.loads(memoryview(one.encode_event(arguments, now=NOW_MS / 1000, new_id=lambda: "made")))
        for one in (general, usual)
    ]
    assert messages[0] == messages[1]
    assert usual.template is not None
    fast = usual.template.encode("from-argument", "Event", properties, time_fragment(NOW_MS) + b"made")
    assert fast is None or orjson.loads(fast) == messages[0]


@pytest.mark.parametrize("value", ["ETH", None, 5, {"a": 1}, [TOKEN], "", f" {TOKEN}"], ids=repr)
@pytest.mark.parametrize("source", ["event", "super_properties"])
@pytest.mark.anyio
async def test_property_called_token_is_renamed_with_one_warning(
    source: str, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    sink = Sink()
    own, in_super = ({"token": value}, None) if source == "event" else ({}, {"token": value})
    async with client(sink, super_properties=in_super) as mp:
        for more in ({}, {"token_": 1}, {"token_": 1, "token__": 2}):
            await mp.track("user", "Event", {**own, **more})
    for message, name in zip(sink.messages, ["token_", "token__", "token___"], strict=True):
        assert message["properties"]["token"] == TOKEN
        assert message["properties"][name] == value
    (line,) = [record.getMessage() for record in caplog.records]
    assert "'token'" in line
    assert "'token_'" in line
    assert "ETH" not in line


@pytest.mark.anyio
async def test_token_of_the_project_is_accepted_as_a_property(caplog: pytest.LogCaptureFixture) -> None:
    sink = Sink()
    async with client(sink) as mp:
        await mp.track("user", "Event", {"token": TOKEN})
        await mp.people_update({"$token": TOKEN, "$distinct_id": "user", "$set": {"a": 1}})
    assert [one.get("$token") or one["properties"]["token"] for one in sink.messages] == [TOKEN, TOKEN]
    assert all("token_" not in one.get("properties", {}) for one in sink.messages)
    assert caplog.records == []


@pytest.mark.parametrize("name", ["token", "distinct_id", "time", "$insert_id", "mp_lib", "ip"])
@pytest.mark.anyio
async def test_meta_of_an_event_changes_no_property(name: str) -> None:
    sink = Sink()
    async with client(sink) as mp:
        await mp.track("user", "Event", {"a": 1}, {name: "from-meta"}, time=STAMPS["time"], insert_id="argument")
    (message,) = sink.messages
    assert message[name] == "from-meta"
    assert message["properties"]["token"] == TOKEN
    assert message["properties"].get(name) != "from-meta"


@pytest.mark.parametrize("name", ["event", "properties"])
@pytest.mark.anyio
async def test_meta_of_an_event_cannot_replace_the_event(name: str) -> None:
    async with client(Sink()) as mp:
        with pytest.raises(ValidationError, match=f"meta.{name}"):
            await mp.track("user", "Event", meta={name: "x"})


@pytest.mark.parametrize("change", ["replace", "remove"])
@pytest.mark.anyio
async def test_hook_cannot_replace_the_token(change: str) -> None:
    def hook(message: dict[str, Any]) -> dict[str, Any]:
        holder, name = (message["properties"], "token") if "event" in message else (message, "$token")
        holder.pop(name)
        if change == "replace":
            holder[name] = "other"
        return message

    sink = Sink()
    async with client(sink, before_send=hook) as mp:
        await mp.track("user", "Event")
        await mp.people_set("user", {"a": 1})
    assert [one.get("$token") or one["properties"]["token"] for one in sink.messages] == [TOKEN, TOKEN]


# Profiles

PROFILE_NAMES = ("token", "$token", "distinct_id", "$distinct_id", "time", "$time", "ip", "$ip", "event", "$insert_id")


@pytest.mark.parametrize("name", PROFILE_NAMES)
@pytest.mark.anyio
async def test_property_of_a_profile_is_sent_as_it_is(name: str) -> None:
    sink = Sink()
    async with client(sink) as mp:
        await mp.people_set("user", {name: "x"})
        await mp.group_set("company", "acme", {name: "x"})
    assert [(one["$token"], one["$set"]) for one in sink.messages] == [(TOKEN, {name: "x"})] * 2


@pytest.mark.parametrize("name", ["$distinct_id", "$time", "$ip", "$group_key", "$group_id"])
@pytest.mark.anyio
async def test_meta_of_a_profile_wins(name: str) -> None:
    sink = Sink()
    is_group = "group" in name
    async with client(sink) as mp:
        if is_group:
            await mp.group_set("company", "acme", {"a": 1}, {name: "from-meta"})
        else:
            await mp.bind(user_id="user", ip="203.0.113.1").people_set({"a": 1}, {name: "from-meta"})
    (message,) = sink.messages
    assert message[name] == "from-meta"


@pytest.mark.parametrize("value", ["other", None, 5], ids=repr)
@pytest.mark.parametrize("source", ["message", "meta"])
@pytest.mark.anyio
async def test_token_of_another_project_is_refused_for_a_profile(source: str, value: Any) -> None:
    given, meta = ({"$token": value}, None) if source == "message" else ({}, {"$token": value})
    async with client(Sink()) as mp:
        with pytest.raises(ValidationError, match=r"^\$token: is not the client's token"):
            await mp.people_update({"$distinct_id": "user", "$set": {"a": 1}, **given}, meta)


# Token


@pytest.mark.parametrize("given", [f" {TOKEN}", f"{TOKEN}\n", f"\t{TOKEN}\r\n"], ids=repr)
@pytest.mark.anyio
async def test_token_is_sent_without_surrounding_white_space(given: str) -> None:
    sink = Sink()
    async with client(sink, token=given) as mp:
        await mp.track("user", "Event", {"a": 1})
        await mp.people_set("user", {"a": 1})
        await mp.alias("new", "old")
        await mp.merge(None, "a", "b")
    assert len(sink.messages) == 4
    assert {one.get("$token") or one["properties"]["token"] for one in sink.messages} == {TOKEN}
    emulator = Emulator(token=given)
    async with emulator.client() as mp:
        await mp.track("user", "Event")
    assert len(emulator.raw_events()) == 1
    with pytest.raises(ConfigurationError, match="token"):
        AsyncMixpanel(" \n")
