"""Invalid data on every method: refused by default, and counted, reported and logged with `invalid="drop"`."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from inspect import currentframe
from typing import Any, Final
from uuid import UUID

import pytest
from client_calls import ALL, GROUP, IDENTITY, IMMEDIATE, QUEUED, make

from mixpanel_async import (
    AsyncMixpanel,
    BatchPolicy,
    ClientClosedError,
    ConfigurationError,
    DropReason,
    IdMerge,
    LostRecord,
    MixpanelException,
    Overflow,
    QueueFullError,
    ValidationError,
)
from mixpanel_async.emulator import Emulator
from mixpanel_async.flags import RemoteFlags, SelectedVariant
from mixpanel_async.types import InvalidOption

SECRET: Final = "s3cret-value"
Call = Callable[[AsyncMixpanel], Any]


class Hostile:
    """Object whose own methods raise."""

    def __getattribute__(self, name: str) -> Any:
        raise LookupError(SECRET)


class HostileMapping(dict[str, Any]):
    def items(self) -> Any:
        raise LookupError(SECRET)

    __iter__ = keys = values = __len__ = items


class Endless(Mapping[str, Any]):
    def __getitem__(self, key: str) -> Any:
        return key

    def __iter__(self) -> Iterator[str]:
        number = 0
        while True:
            yield f"k{number}"
            number += 1

    def __len__(self) -> int:
        raise OverflowError


class OwnError(Mapping[str, Any]):
    """Mapping that raises an error of this package, with a value in it."""

    def __getitem__(self, key: str) -> Any:
        raise ConfigurationError(SECRET)

    __iter__ = __len__ = __getitem__  # type: ignore[assignment]


RECURSIVE: Final[dict[str, Any]] = {}
RECURSIVE["self"] = RECURSIVE
WIDE: Final[list[Any]] = []
for _ in range(40):
    WIDE[:] = [[*WIDE], [*WIDE]] if len(repr(WIDE)) < 10_000 else WIDE


async def attempt(call: Call, mp: AsyncMixpanel) -> object:
    return await make(lambda mp, _: call(mp), mp)


BAD_PROPERTIES: Final[dict[str, Any]] = {
    "number": 7,
    "text": SECRET,
    "bytes": SECRET.encode(),
    "list": [SECRET],
    "hostile object": Hostile(),
    "hostile mapping": HostileMapping(a=1),
    "endless": Endless(),
    "own error": OwnError(),
    "recursive": RECURSIVE,
    "surrogate value": {"a": {"b": "\ud800"}},
    "surrogate key": {"\ud800": 1},
    "NaN": {"a": float("nan")},
    "huge integer": {"a": 10**5000},
    "huge text": {"a": "x" * 2_000_000},
    "huge list": {"a": [0] * 1_000_000},
    "too many": {f"k{number}": 1 for number in range(3_000)},
    "unsupported": {"a": Hostile()},
    "keys": {7: 1},
}


def bad_property_calls(bad: Any) -> dict[str, Call]:
    """Return the calls that take properties, with bad ones."""
    return {
        "track": lambda mp: mp.track("user", "Event", bad),
        "track_nowait": lambda mp: mp.track_nowait("user", "Event", bad),
        "import_data": lambda mp: mp.import_data(None, "user", "Event", 1_700_000_000, bad),
        "people_update": lambda mp: mp.people_update(bad),
        "people_update operation": lambda mp: mp.people_update({"$distinct_id": "user", "$set": bad}),
        "people_set": lambda mp: mp.people_set("user", bad),
        "people_set_once": lambda mp: mp.people_set_once("user", bad),
        "people_increment": lambda mp: mp.people_increment("user", bad),
        "people_append": lambda mp: mp.people_append("user", bad),
        "people_union": lambda mp: mp.people_union("user", bad),
        "people_remove": lambda mp: mp.people_remove("user", bad),
        "people_unset": lambda mp: mp.people_unset("user", bad if bad != [SECRET] else []),
        "people_track_charge": lambda mp: mp.people_track_charge("user", 9.99, bad),
        "people_track_charge amount": lambda mp: mp.people_track_charge("user", [bad]),
        "group_update": lambda mp: mp.group_update(bad),
        "group_update operation": lambda mp: mp.group_update({**GROUP, "$set": bad}),
        "group_set": lambda mp: mp.group_set("team", "a", bad),
        "group_set_once": lambda mp: mp.group_set_once("team", "a", bad),
        "group_union": lambda mp: mp.group_union("team", "a", bad),
        "group_remove": lambda mp: mp.group_remove("team", "a", bad),
        "bound track": lambda mp: mp.bind(distinct_id="user").track("Event", bad),
        "bound track_nowait": lambda mp: mp.bind(distinct_id="user").track_nowait("Event", bad),
        "bound twice": lambda mp: mp.bind(distinct_id="user").bind(properties=bad).track("Event"),
        "bind": lambda mp: mp.bind(distinct_id="user", properties=bad).track("Event", {"plan": "pro"}),
        "bind nowait": lambda mp: mp.bind(distinct_id="user", properties=bad).bind(user_id="u").track_nowait("Event"),
        "bound people_set": lambda mp: mp.bind(distinct_id="user").people_set(bad),
        "bound people_update": lambda mp: mp.bind(distinct_id="user").people_update(bad),
        "bound people_track_charge": lambda mp: mp.bind(distinct_id="user").people_track_charge(1, bad),
    }


@pytest.mark.loops_in_turn
@pytest.mark.parametrize("data", BAD_PROPERTIES)
@pytest.mark.anyio
async def test_drop_counts_and_reports_invalid_properties(data: str, caplog: pytest.LogCaptureFixture) -> None:
    reported: list[LostRecord] = []

    def on_drop(records: list[LostRecord], reason: DropReason) -> None:
        assert reason is DropReason.INVALID
        reported.extend(records)

    calls = bad_property_calls(BAD_PROPERTIES[data])
    emulator = Emulator(IdMerge.ORIGINAL)
    async with emulator.client(invalid="drop", on_drop=on_drop) as mp:
        results = {name: await attempt(call, mp) for name, call in calls.items()}
        stats = mp.stats()
    assert set(results.values()) == {None}
    # `$distinct_id: {...}` is no operation, so an update may also be refused for another reason, but never sent.
    assert stats.accepted == stats.dropped == len(calls)
    assert stats.losses == {"invalid": len(calls)}
    assert len(reported) == len(calls)
    assert all(record.payload is None and record.field and record.message for record in reported)
    assert emulator.requests() == []
    assert SECRET not in caplog.text
    assert not [record for record in reported if SECRET in record.field + record.message]


@pytest.mark.loops_in_turn
@pytest.mark.parametrize("data", BAD_PROPERTIES)
@pytest.mark.anyio
async def test_raise_is_the_default(data: str) -> None:
    async with Emulator().client() as mp:
        for name, call in bad_property_calls(BAD_PROPERTIES[data]).items():
            result = await attempt(call, mp)
            assert isinstance(result, MixpanelException), name
            assert SECRET not in str(result)
            assert result.__context__ is result.__cause__ is None
        assert mp.stats().accepted == 0


BAD_ARGUMENTS: Final[dict[str, Call]] = {
    "distinct_id": lambda mp: mp.track(7, "Event"),  # type: ignore[arg-type]
    "hostile distinct_id": lambda mp: mp.track(Hostile(), "Event", {"a": 1}),  # type: ignore[arg-type]
    "surrogate distinct_id": lambda mp: mp.track("\ud800", "Event", {"a": 1}),
    "event name": lambda mp: mp.track("user", None),  # type: ignore[arg-type]
    "long event name": lambda mp: mp.track("user", "x" * 10_000_000),
    "meta": lambda mp: mp.track("user", "Event", {}, 7),  # type: ignore[arg-type]
    "meta event": lambda mp: mp.track("user", "Event", {}, {"event": "Other"}),
    "user_id": lambda mp: mp.track(None, "Event", user_id=UUID(int=5)),  # type: ignore[arg-type]
    "device_id": lambda mp: mp.track(None, "Event", user_id="u", device_id=b"1"),  # type: ignore[arg-type]
    "no id": lambda mp: mp.track_nowait(None, "Event"),
    "ip": lambda mp: mp.track("user", "Event", ip="localhost"),
    "time": lambda mp: mp.track_nowait("user", "Event", time="today"),  # type: ignore[arg-type]
    "insert_id": lambda mp: mp.track("user", "Event", insert_id="?"),
    "timestamp": lambda mp: mp.import_data(None, "user", "Event", None),  # type: ignore[arg-type]
    "api_secret": lambda mp: mp.import_data(None, "user", "Event", 1_700_000_000, api_secret=7),  # type: ignore[arg-type]
    "amount": lambda mp: mp.people_track_charge("user", True),
    "people id": lambda mp: mp.people_set(7, {"a": 1}),  # type: ignore[arg-type]
    "group key": lambda mp: mp.group_set(7, "a", {"a": 1}),  # type: ignore[arg-type]
    "group id": lambda mp: mp.group_delete("team", 7),  # type: ignore[arg-type]
    "group without target": lambda mp: mp.group_update({"$set": {"a": 1}}),
    "people meta": lambda mp: mp.people_delete("user", Hostile()),  # type: ignore[arg-type]
    "bound nothing": lambda mp: mp.bind().people_set({"a": 1}),
    "bound nothing charged": lambda mp: mp.bind().people_track_charge(1),
    "bound ip": lambda mp: mp.bind(distinct_id="user", ip="localhost").track("Event"),
    "bound id": lambda mp: mp.bind(user_id=7).track("Event"),  # type: ignore[arg-type]
    "bound meta": lambda mp: mp.bind(distinct_id="user", ip="0").people_delete(7),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("invalid", ["raise", "drop"])
@pytest.mark.anyio
async def test_wrong_arguments(invalid: InvalidOption) -> None:
    emulator = Emulator(IdMerge.ORIGINAL)
    async with emulator.client(invalid=invalid) as mp:
        for name, call in BAD_ARGUMENTS.items():
            result = await attempt(call, mp)
            assert isinstance(result, MixpanelException) if invalid == "raise" else result is None, name
        stats = mp.stats()
    assert stats.losses == ({} if invalid == "raise" else {"invalid": len(BAD_ARGUMENTS)})
    assert emulator.requests() == []


@pytest.mark.anyio
async def test_drop_sends_valid_data_on_every_method() -> None:
    emulator = Emulator(IdMerge.ORIGINAL)
    async with emulator.client(invalid="drop") as mp:
        assert {await make(call, mp) for call in ALL.values()} == {None}
    assert mp.stats().losses == {}
    assert mp.stats().delivered == len(QUEUED) + len(IMMEDIATE)


@pytest.mark.anyio
async def test_drop_raises_where_the_caller_waits_for_the_response() -> None:
    emulator = Emulator(IdMerge.ORIGINAL)
    async with emulator.client(invalid="drop") as mp:
        for name, call in {**IMMEDIATE, **IDENTITY}.items():
            assert isinstance(await make(call, mp, Hostile()), ValidationError), name
        for deferred in (False, True):
            with pytest.raises(ValidationError):
                await mp.alias("null", "user", deferred=deferred)
        for wrong in (mp.bind(properties={"a": float("nan")}), mp.bind()):
            with pytest.raises(ValidationError):
                await wrong.track_immediate("Event")
        assert mp.stats().accepted == 0
    assert emulator.requests() == []


@pytest.mark.anyio
async def test_drop_keeps_the_errors_of_a_full_queue_and_of_a_closed_client() -> None:
    mp = Emulator().client(invalid="drop", overflow=Overflow.RAISE, batching=BatchPolicy(max_pending_events=1))
    await mp.track("user", "Event", {"a": 1})
    with pytest.raises(QueueFullError):
        await mp.track("user", "Event", {"a": 1})
    await mp.track("user", "Event", {"a": float("nan")})
    await mp.aclose()
    for properties in ({"a": 1}, {"a": float("nan")}):
        with pytest.raises(ClientClosedError):
            await mp.track("user", "Event", properties)


@pytest.mark.anyio
async def test_drop_counts_invalid_exposures_of_flags() -> None:
    async with Emulator().client(invalid="drop", remote_flags=RemoteFlags()) as mp:
        variant = SelectedVariant("on", "on")
        for distinct_id in ("null", "\ud800", "user"):
            mp.remote_flags.track_exposure_event("flag", variant, {"distinct_id": distinct_id})
        await mp.flush()
        stats = mp.stats()
    assert stats.losses == {"invalid": 2}
    assert stats.delivered == 1
    assert stats.flags is not None
    assert (stats.flags.exposures, stats.flags.exposures_lost) == (3, 0)


@pytest.mark.anyio
async def test_drop_names_path_and_problem_and_logs_once_for_each_call_site(caplog: pytest.LogCaptureFixture) -> None:
    reported: list[LostRecord] = []

    async def on_drop(records: list[LostRecord], _: DropReason) -> None:
        reported.extend(records)

    async with Emulator().client(invalid="drop", on_drop=on_drop) as mp:
        for _ in range(3):
            await mp.track("user", "Event", {"cart": [{"price": float("nan"), "name": SECRET}]})
            first = line_before()
            mp.bind(user_id="user").track_nowait("Event", {"when": SECRET.encode()})
            second = line_before()
        await mp.flush()
    logged = log_lines(caplog)
    assert [record.levelno for record in logged] == [logging.WARNING] * 2
    text = "invalid data is being dropped: {} (called at {}; logged once for each call site)"
    problems = {
        "properties.cart[0].price": "must be a finite number",
        "properties.when": "bytes is not supported; convert it or pass serializer=",
    }
    assert [record.getMessage() for record in logged] == [
        text.format(f"{path}: {problem}", f"{__file__}:{line}")
        for (path, problem), line in zip(problems.items(), (first, second), strict=True)
    ]
    assert vars(logged[0])["mixpanel"] == {
        "event": "invalid_data",
        "kind": "events",
        "path": "properties.cart[0].price",
        "site": f"{__file__}:{first}",
    }
    assert [(record.kind, record.field, record.message) for record in reported] == [
        ("events", path, problem) for _ in range(3) for path, problem in problems.items()
    ]
    assert SECRET not in caplog.text


def log_lines(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Return the lines about call sites. Others say how many records were lost."""
    events = {"invalid_data", "invalid_data_unlogged"}
    return [record for record in caplog.records if getattr(record, "mixpanel", {}).get("event") in events]


def line_before() -> int:
    frame = currentframe()
    assert frame is not None
    assert frame.f_back is not None
    return frame.f_back.f_lineno - 1


def test_drop_logs_tasks_by_path_because_they_share_a_call_site(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with Emulator().client(invalid="drop") as mp:
            bad = [{"a": float("nan")}, {"b": float("nan")}, {"a": float("nan")}]
            await asyncio.gather(*(mp.track("user", "Event", properties) for properties in bad))

    asyncio.run(main())
    assert sorted(vars(record)["mixpanel"]["path"] for record in log_lines(caplog)) == ["properties.a", "properties.b"]


@pytest.mark.anyio
async def test_drop_logs_a_bounded_number_of_call_sites(caplog: pytest.LogCaptureFixture) -> None:
    async with Emulator().client(invalid="drop") as mp:
        for number in range(1_100):
            source = "\n" * number + "mp.track_nowait('user', 'Event', {'a': b''})"
            exec(compile(source, "generated.py", "exec"), {"mp": mp})
        assert mp.stats().losses == {"invalid": 1_100}
    logged = [record.getMessage() for record in log_lines(caplog)]
    assert len(logged) == 1_001
    assert "no further ones are logged" in logged[-1]


@pytest.mark.anyio
async def test_drop_survives_a_log_handler_that_tracks_invalid_events() -> None:
    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            mp.track_nowait("user", "Logged", {"record": record})

    handler = Handler()
    logger = logging.getLogger("mixpanel_async")
    mp = Emulator().client(invalid="drop")
    async with mp:
        logger.addHandler(handler)
        try:
            await mp.track("user", "Event", {"a": b""})
        finally:
            logger.removeHandler(handler)
        # The handler is called for its own events, too, but not without end.
        assert 2 <= mp.stats().losses["invalid"] <= 5


@pytest.mark.loops_in_turn
@pytest.mark.anyio
async def test_slow_on_drop_keeps_a_bounded_number_of_invalid_records() -> None:
    started, release = threading.Event(), threading.Event()
    counts: dict[str, int] = {"named": 0, "counted": 0}
    calls = 0

    def on_drop(records: list[LostRecord], _: DropReason) -> None:
        nonlocal calls
        calls += 1
        for record in records:
            counts["named" if record.field else "counted"] += 1
        started.set()
        release.wait(20)

    total = 4_000
    # A kept character needs 12 bytes, so that few records fill the room.
    value: Any = b""
    for _ in range(8):
        value = {"\N{GRINNING FACE}" * 55: value}
    async with Emulator().client(invalid="drop", on_drop=on_drop) as mp:
        for _ in range(total):
            mp.track_nowait("user", "Event", value)
        release.set()
        while sum(counts.values()) < total:
            await mp.flush()
    assert counts["counted"] > 0
    assert sum(counts.values()) == total
    assert calls < total


@pytest.mark.anyio
@pytest.mark.parametrize("id_merge", IdMerge)
async def test_profile_of_an_anonymous_visitor_is_refused(id_merge: IdMerge) -> None:
    async with Emulator(id_merge).client(id_merge=id_merge) as mp:
        with pytest.raises(ValidationError, match="distinct_id: is not bound"):
            await mp.bind(device_id=mp.new_device_id()).people_track_charge(9.5)
    async with Emulator(id_merge).client(id_merge=id_merge, invalid="drop") as mp:
        await mp.bind(device_id=mp.new_device_id()).people_track_charge(9.5)
        assert mp.stats().losses == {"invalid": 1}


@pytest.mark.anyio
async def test_dropped_data_is_not_kept_alive() -> None:
    class Value:
        pass

    async with Emulator().client(invalid="drop", on_drop=lambda *_: None) as mp:
        value = Value()
        gone = weakref.ref(value)
        await mp.track("user", "Event", {"value": value})
        visitor = mp.bind(properties={"value": value})
        await visitor.track("Event")
        del value
        gc.collect()
        assert gone() is None
        assert mp.stats().losses == {"invalid": 2}


@pytest.mark.parametrize("value", ["ignore", "", None, True, ["drop"]])
def test_unknown_policy_is_refused(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="invalid must be 'raise' or 'drop'"):
        AsyncMixpanel("t", invalid=value)


IDS: Final[dict[str, Callable[[AsyncMixpanel, Any], Any]]] = {
    "track": lambda mp, id_: mp.track(id_, "Event", {"a": 1}),
    "track_nowait": lambda mp, id_: mp.track_nowait(id_, "Event"),
    "track_immediate": lambda mp, id_: mp.track_immediate(id_, "Event"),
    "user_id": lambda mp, id_: mp.track(None, "Event", user_id=id_),
    "device_id": lambda mp, id_: mp.track("user", "Event", device_id=id_),
    "insert_id": lambda mp, id_: mp.track("user", "Event", insert_id=id_),
    "import_data": lambda mp, id_: mp.import_data(None, id_, "Event", 1_700_000_000),
    "people_set": lambda mp, id_: mp.people_set(id_, {"a": 1}),
    "group_set": lambda mp, id_: mp.group_set("team", id_, {"a": 1}),
    "alias": lambda mp, id_: mp.alias(id_, "user"),
    "alias original": lambda mp, id_: mp.alias("user", id_),
    "identify": lambda mp, id_: mp.identify(id_, "2fd5dc29-4ab3-4eae-8ec4-b2a9d7f4e0a1"),
    "identify anonymous": lambda mp, id_: mp.identify("user", id_),
    "merge": lambda mp, id_: mp.merge(None, "user", id_),
    "bind": lambda mp, id_: mp.bind(user_id=id_).track("Event"),
    "sign_in": lambda mp, id_: mp.bind(device_id="d").sign_in(id_),
}


@pytest.mark.parametrize(
    ("id_", "hint"),
    [
        (7, "not int; use str(...)"),
        (7.5, "not float; use str(...)"),
        (UUID(int=7), "not uuid.UUID; use str(...)"),
        (b"7", 'not bytes; use str(..., "utf-8")'),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.anyio
async def test_id_of_another_type_is_refused_with_advice(id_: Any, hint: str) -> None:
    async with Emulator(IdMerge.ORIGINAL).client(id_merge=IdMerge.ORIGINAL) as mp:
        for name, call in IDS.items():
            error = await make(call, mp, id_)
            assert isinstance(error, ValidationError), name
            assert error.problem == f"must be a string, {hint}", name
        assert mp.stats().accepted == 0
