"""Every hook with every outcome on every method: what the caller sees, what is sent, and what is counted."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import anyio.lowlevel
import pytest
from client_calls import ALL, EVENTS, IDENTITY, IMMEDIATE, QUEUED, RECORDS, Call, make

from mixpanel_async import (
    AsyncMixpanel,
    Delivery,
    DropReason,
    IdMerge,
    LostRecord,
    MixpanelException,
    Stats,
    ValidationError,
)
from mixpanel_async.emulator import Emulator
from mixpanel_async.types import InvalidOption

Message = dict[str, Any]
Hook = Callable[[AsyncMixpanel, Any], Any]
INTERRUPTS: Final = (KeyboardInterrupt, SystemExit, asyncio.CancelledError)


class Liar(dict[str, Any]):
    """Message whose methods hide the token, also inside `properties`."""

    def items(self) -> Any:
        return [
            (key, Liar(value) if isinstance(value, dict) else value)
            for key, value in super().items()
            if "token" not in key
        ]


class Raiser(dict[str, Any]):
    """Message that cannot be read."""

    def items(self) -> Any:
        raise LookupError("the mapping failed")

    def get(self, *_: Any) -> Any:
        raise LookupError("the mapping failed")


class Unsupported:
    """Value that needs a serializer."""


def raising(error: type[BaseException], *arguments: Any) -> Hook:
    def hook(mp: AsyncMixpanel, value: Any) -> Any:
        raise error(*arguments)

    return hook


def without(*names: str) -> Hook:
    """Return a hook that removes fields of the message, and of the properties of an event."""

    def hook(mp: AsyncMixpanel, message: Message) -> Message:
        for place in (message, message.get("properties", {})):
            for name in names:
                place.pop(name, None)
        return message

    return hook


def with_fields(event: Mapping[str, Any], update: Mapping[str, Any]) -> Hook:
    """Return a hook that sets properties of an event, or fields of an update."""

    def hook(mp: AsyncMixpanel, message: Message) -> Message:
        if "event" in message:
            message["properties"].update(event)
        else:
            message.update(update)
        return message

    return hook


def tracking_again(mp: AsyncMixpanel, message: Message) -> Message:
    if message.get("event") != "Audit":
        mp.track_nowait("auditor", "Audit", {"of": "a message"})
    return message


def as_other_kind(mp: AsyncMixpanel, message: Message) -> Message:
    if "event" in message:
        del message["event"]
    elif "$group_key" in message:
        del message["$group_key"], message["$group_id"]
        message["$distinct_id"] = "user"
    else:
        message.update({"$group_key": "team", "$group_id": "a"})
    return message


async def run(hook: str, made: Hook, calls: Mapping[str, Call], meta: Any = None) -> tuple[dict[str, Any], Stats]:
    """Make the calls with a hook. Return what each call returned or raised, and the counts of the closed client."""
    emulator = Emulator(IdMerge.ORIGINAL, token="project")
    results: dict[str, Any] = {}
    options: dict[str, Any] = {hook: lambda value: made(mp, value)}
    mp: AsyncMixpanel = emulator.client(None, **options)
    async with mp:
        for name, call in calls.items():
            results[name] = await make(call, mp, meta)
    stats = mp.stats()
    assert stats.accepted == stats.delivered + stats.failed + stats.dropped + stats.uncertain + stats.pending
    assert sum(stats.losses.values()) == stats.dropped + stats.failed + stats.uncertain
    joined = [name for name in calls.keys() & IDENTITY if results[name] is None]
    assert sum(request.records for request in emulator.requests()) == stats.delivered + len(joined)
    assert emulator.rejected() == [], "Mixpanel ignores what the client counted as delivered"
    return results, stats


SENT, HIDDEN, FAILED = "sent", DropReason.BEFORE_SEND.value, DropReason.BEFORE_SEND_FAILED.value
BEFORE_SEND: Final[dict[str, tuple[Hook, str | type[BaseException]]]] = {
    "same message": (lambda _, message: message, SENT),
    "copy": (lambda _, message: {**message}, SENT),
    "subclass": (lambda _, message: Liar(message), SENT),
    "without token": (without("token", "$token"), SENT),
    "other token": (with_fields({"token": "other"}, {"$token": 7}), SENT),
    "token that cannot be sent": (with_fields({"token": {1}}, {"$token": Unsupported()}), SENT),
    "own time and id": (with_fields({"time": time.time() - 9, "$insert_id": "own"}, {"$time": 1_700_000_000}), SENT),
    "tracks again": (tracking_again, SENT),
    "None": (lambda *_: None, HIDDEN),
    "text": (lambda *_: "text", FAILED),
    "list": (lambda *_: [], FAILED),
    "True": (lambda *_: True, FAILED),
    "awaitable": (lambda *_: asyncio.Event, FAILED),
    "empty": (lambda *_: {}, FAILED),
    "mapping": (lambda _, message: MappingProxyType(message), FAILED),
    "unreadable": (lambda _, message: Raiser(message), FAILED),
    "without ids": (without("distinct_id", "$distinct_id", "$group_id"), FAILED),
    "blank ids": (
        with_fields({"distinct_id": " "}, {"$distinct_id": " ", "$group_id": " "}),
        FAILED,
    ),
    "other kind": (as_other_kind, FAILED),
    "not encodable": (with_fields({"time": Unsupported()}, {"$set": Unsupported()}), FAILED),
    "surrogate": (with_fields({"plan": "\ud800"}, {"$set": {"plan": "\ud800"}}), FAILED),
    "exception": (raising(LookupError, "the hook failed"), FAILED),
    "own exception": (raising(ValidationError, "path", "problem"), FAILED),
    "recursion": (raising(RecursionError), FAILED),
    **{error.__name__: (raising(error), error) for error in INTERRUPTS},
}


@pytest.mark.parametrize("outcome", BEFORE_SEND)
@pytest.mark.anyio
async def test_before_send(outcome: str) -> None:
    hook, expected = BEFORE_SEND[outcome]
    results, stats = await run("before_send", hook, ALL)
    # Identity calls bypass the hook.
    raised = {name: type(result) for name, result in results.items() if result is not None}
    assert raised == ({} if isinstance(expected, str) else dict.fromkeys(RECORDS, expected))
    copies = 2 if outcome == "tracks again" else 1
    assert stats.accepted == (copies * len(RECORDS) if isinstance(expected, str) else 0)
    assert stats.losses == ({} if expected == SENT or not isinstance(expected, str) else {expected: len(RECORDS)})


@pytest.mark.parametrize("field", ["event", "time", "$insert_id", "properties"])
@pytest.mark.anyio
async def test_before_send_that_removes_a_field_of_events_drops_them(field: str) -> None:
    results, stats = await run("before_send", without(field), {**EVENTS, **IMMEDIATE})
    assert set(results.values()) == {None}
    assert stats.losses == {FAILED: len(EVENTS) + len(IMMEDIATE)}


class TextSubclass(str):
    """Text that changes each time it is formatted."""

    __slots__ = ()

    def __str__(self) -> str:
        return "other"

    def strip(self, *_: Any) -> str:
        return "other"


FIELDS: Final = (
    *("token", "distinct_id", "time", "$insert_id", "event", "properties", "$device_id", "$user_id", "ip"),
    *("$token", "$distinct_id", "$group_key", "$group_id", "$time", "$set", "$add", "$ip", "$ignore_time"),
)
VALUES: Final[dict[str, Any]] = {
    "None": None,
    "empty": "",
    "blank": " \t",
    "text": "other",
    "long text": "x" * 300,
    "control character": "a\0b",
    "surrogate": "\ud800",
    "subclass of text": TextSubclass("mine"),
    "zero": 0,
    "negative": -1,
    "huge": 10**400,
    "infinite": float("inf"),
    "NaN": float("nan"),
    "true": True,
    "bytes": b"other",
    "list": ["other"],
    "dict": {"other": 1},
    "lying dict": Liar({"token": "other", "a": 1}),
    "unreadable dict": Raiser({"a": 1}),
    "object": Unsupported(),
    "placeholder": "undefined",
}


@pytest.mark.loops_in_turn
@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.anyio
async def test_before_send_that_changes_a_field_sends_nothing_that_mixpanel_ignores(field: str, value: str) -> None:
    """What Mixpanel would ignore is dropped with the reason; `run` compares both sides."""

    def hook(mp: AsyncMixpanel, message: Message) -> Message:
        for place in (message, message.get("properties", {})):
            if field in place:
                place[field] = VALUES[value]
        return message

    results, stats = await run("before_send", hook, RECORDS)
    assert set(results.values()) == {None}
    assert stats.accepted == len(RECORDS)
    assert set(stats.losses) <= {FAILED}


@pytest.mark.anyio
async def test_hooks_are_called_once_for_each_event() -> None:
    """Also if the event does not fit into the staging buffer, and takes another path into the queue."""
    emulator = Emulator()
    calls: list[str] = []

    def serializer(value: object) -> str:
        calls.append(type(value).__name__)
        return "x" * 5_000

    def before_send(message: Message) -> Message:
        calls.append("message")
        return message

    async with emulator.client(serializer=serializer, before_send=before_send) as mp:
        for _ in range(50):
            await mp.track("u", "Event", {"a": Unsupported()})
            mp.track_nowait("u", "Event", {"a": Unsupported()})
    assert (calls.count("Unsupported"), calls.count("message"), len(emulator.events())) == (100, 100, 100)


@pytest.mark.anyio
async def test_before_send_that_tracks_without_end_fails_no_call() -> None:
    def endless(mp: AsyncMixpanel, message: Message) -> Message:
        mp.track_nowait("auditor", "Audit", {"of": "a message"})
        return message

    results, stats = await run("before_send", endless, RECORDS)
    assert set(results.values()) == {None}
    # At most eight calls of the hook are inside one another.
    assert stats.delivered == 8 * len(RECORDS)
    assert stats.losses == {FAILED: len(RECORDS)}


@pytest.mark.parametrize("invalid", ["raise", "drop"])
@pytest.mark.anyio
async def test_serializer_that_tracks_without_end_ends(invalid: InvalidOption) -> None:
    calls = 0

    def endless(value: Any) -> str:
        nonlocal calls
        calls += 1
        mp.track_nowait("auditor", "Audit", {"of": value})
        return "text"

    async with Emulator().client(serializer=endless, invalid=invalid) as mp:
        result = await make(lambda mp, _: mp.track("user", "Event", {"value": Unsupported()}), mp)
    assert calls == 8
    if invalid == "raise":
        assert isinstance(result, ValidationError)
        assert mp.stats().accepted == 0
    else:
        assert result is None
        assert mp.stats().losses == {"invalid": 1}
        assert mp.stats().delivered == 8


def tracking_value(mp: AsyncMixpanel, value: Any) -> str:
    mp.track_nowait("auditor", "Audit", {"of": "a value"})
    return "0"


# The value is `$ip`, which every method accepts in `meta`.
SERIALIZER: Final[dict[str, tuple[Hook, type[BaseException] | None]]] = {
    "value": (lambda *_: "0", None),
    "None": (lambda *_: None, None),
    "tracks again": (tracking_value, None),
    "same value": (lambda _, value: value, ValidationError),
    "other unsupported value": (lambda *_: Unsupported(), ValidationError),
    "surrogate": (lambda *_: "\ud800", ValidationError),
    "exception": (raising(LookupError, "the hook failed"), ValidationError),
    "own exception": (raising(ValidationError, "path", "problem"), ValidationError),
    **{error.__name__: (raising(error), error) for error in INTERRUPTS},
}


@pytest.mark.parametrize("outcome", SERIALIZER)
@pytest.mark.anyio
async def test_serializer(outcome: str) -> None:
    hook, expected = SERIALIZER[outcome]
    results, stats = await run("serializer", hook, ALL, {"$ip": Unsupported()})
    raised = {name: type(result) for name, result in results.items() if result is not None}
    assert raised == ({} if expected is None else dict.fromkeys(ALL, expected))
    again = len(ALL) if outcome == "tracks again" else 0
    assert stats.accepted == (len(RECORDS) + again if expected is None else 0)
    assert stats.losses == {}


def later(made: Hook) -> Hook:
    async def hook(mp: AsyncMixpanel, value: Any) -> Any:
        return made(mp, value)

    return hook


CALLBACKS: Final[dict[str, Hook]] = {
    "None": lambda *_: None,
    "value": lambda *_: 7,
    "exception": raising(LookupError, "the hook failed"),
    "own exception": raising(MixpanelException),
    "tracks again": lambda mp, _: mp.track_nowait("auditor", "Audit", {"of": "a report"}),
    **{error.__name__: raising(error) for error in INTERRUPTS},
}


@pytest.mark.parametrize("form", ["plain", "coroutine"])
@pytest.mark.parametrize("outcome", CALLBACKS)
@pytest.mark.anyio
async def test_on_drop(outcome: str, form: str, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[LostRecord] = []
    made = CALLBACKS[outcome]
    emulator = Emulator(IdMerge.ORIGINAL)

    def on_drop(records: list[LostRecord], reason: DropReason) -> Any:
        assert reason is DropReason.BEFORE_SEND
        seen.extend(records)
        return made(mp, records)

    async def on_drop_later(records: list[LostRecord], reason: DropReason) -> Any:
        return on_drop(records, reason)

    def hide(message: Message) -> Message | None:
        return message if message.get("event") == "Audit" else None

    mp = emulator.client(before_send=hide, on_drop=on_drop if form == "plain" else on_drop_later)
    async with mp:
        results = {name: await make(call, mp) for name, call in ALL.items()}
        await mp.flush()
        # The calls of a callback that tracks are spaced out. A client that closes accepts none of its records.
        with anyio.fail_after(15):
            while len(seen) < mp.stats().dropped:
                await anyio.lowlevel.checkpoint()
    stats = mp.stats()
    assert set(results.values()) == {None}
    assert len(seen) == stats.dropped == len(RECORDS)
    assert (stats.delivered > 0) is (outcome == "tracks again")
    assert stats.accepted == stats.dropped + stats.delivered
    assert_failures_are_logged_once("on_drop", outcome, caplog)


@pytest.mark.parametrize("form", ["plain", "coroutine", "awaitable"])
@pytest.mark.anyio
async def test_on_drop_is_not_called_for_the_record_that_it_tracks(form: str) -> None:
    seen: list[LostRecord] = []

    def on_drop(records: list[LostRecord], reason: DropReason) -> Any:
        seen.extend(records)
        mp.track_nowait("auditor", "Lost", {"value": Unsupported()})

    async def on_drop_later(records: list[LostRecord], reason: DropReason) -> Any:
        await anyio.lowlevel.checkpoint()
        on_drop(records, reason)

    made = {"plain": on_drop, "coroutine": on_drop_later, "awaitable": lambda *args: on_drop_later(*args)}[form]
    async with Emulator().client(invalid="drop", on_drop=made) as mp:
        for _ in range(2):
            await mp.track("user", "Event", {"value": Unsupported()})
            await mp.flush()
        await mp.flush()
        assert mp.stats().losses == {"invalid": 4}
    assert len(seen) == 2


@pytest.mark.parametrize("form", ["plain", "coroutine"])
@pytest.mark.parametrize("outcome", CALLBACKS)
@pytest.mark.anyio
async def test_on_delivered(outcome: str, form: str, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Delivery] = []
    made = CALLBACKS[outcome]
    emulator = Emulator(IdMerge.ORIGINAL)

    def on_delivered(delivery: Delivery) -> Any:
        seen.append(delivery)
        # An event about each delivery would never end.
        return made(mp, delivery) if len(seen) <= 3 else None

    async def on_delivered_later(delivery: Delivery) -> Any:
        return on_delivered(delivery)

    mp = emulator.client(on_delivered=on_delivered if form == "plain" else on_delivered_later)
    async with mp:
        results = {name: await make(call, mp) for name, call in ALL.items()}
        while mp.stats().pending:
            await mp.flush()
    stats = mp.stats()
    assert set(results.values()) == {None}
    again = 3 if outcome == "tracks again" else 0
    assert stats.accepted == stats.delivered == len(RECORDS) + again
    assert sum(delivery.records for delivery in seen) == len(QUEUED) + again
    assert_failures_are_logged_once("on_delivered", outcome, caplog)


def assert_failures_are_logged_once(hook: str, outcome: str, caplog: pytest.LogCaptureFixture) -> None:
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert len([text for text in errors if text.startswith(f"{hook} raised")]) <= 1
    if outcome in {"exception", "own exception"}:
        assert len(errors) == 1
    elif outcome in {"None", "value", "tracks again"}:
        assert errors == []
