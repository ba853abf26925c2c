"""Tests of the live stream: content, limits, and viewers that are slow or resume."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from itertools import count
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from emulator_viewer import Viewer, viewing
from emulator_wire import TOKEN, imported

import mixpanel_async.emulator.http.stream
from mixpanel_async import IdMerge
from mixpanel_async.emulator import Emulator
from mixpanel_async.emulator.http.faults import FaultPlan
from mixpanel_async.emulator.http.request_log import Outcome, RequestLog
from mixpanel_async.emulator.http.stream import MAX_VIEWERS
from mixpanel_async.emulator.page.feed import BATCH, Feed, sse_message
from mixpanel_async.emulator.project.bounded_log import BoundedLog
from mixpanel_async.emulator.project.hints import hint
from mixpanel_async.emulator.project.rejections import shorten
from mixpanel_async.identity import Reason
from mixpanel_async.identity.results import DESCRIPTIONS

pytestmark = pytest.mark.anyio

Post = Callable[[str, Any], Awaitable[httpx.Response]]


def poster(emulator: Emulator) -> Post:
    async def post(url: str, content: Any) -> httpx.Response:
        transport = httpx.ASGITransport(app=emulator.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", auth=(TOKEN, "")) as http:
            return await http.post(url, json=content)

    return post


def event(name: str = "Viewed", /, **properties: Any) -> dict[str, Any]:
    return {"event": name, "properties": {"token": TOKEN, "distinct_id": "u", **properties}}


def seqs(batches: list[Any]) -> list[int]:
    return [item["seq"] for batch in batches for item in batch["events"]]


def dropped(batches: list[Any]) -> int:
    return sum(batch["dropped"] for batch in batches)


def all_of(total: int) -> Callable[[list[Any]], bool]:
    return lambda batches: len(seqs(batches)) + dropped(batches) >= total


async def greeted(viewer: Viewer) -> Any:
    """Read the hello message and the first batch. Return the data of both."""
    hello = await viewer.message()
    assert hello.kind == "hello"
    return hello.data, await viewer.batch()


async def test_stream_starts_with_hello_and_earlier_events() -> None:
    emulator = Emulator(IdMerge.ORIGINAL, token=TOKEN, now=lambda: 1_700_000_000.5)
    post = poster(emulator)
    await post("/track", [event(time=1_700_000_000, n=1, **{"$insert_id": "one"})])
    await post("/engage", [{"$token": TOKEN, "$distinct_id": "u", "$set": {"plan": "pro"}}])
    async with viewing(emulator) as viewer:
        hello, batch = await greeted(viewer)
    stats = batch["stats"]
    ((age, number),) = hello.pop("rates")
    assert 0 <= age < 60
    assert number == 1
    assert hello == {
        "id_merge": "original",
        "token": TOKEN,
        "started": 1_700_000_000.5,
        "stats": stats,
        "faults": {"planned": [], "number": 0, "random": None, "latency": 0.0},
    }
    assert stats["events"] == {"stored": 1, "ingested": 1}
    assert batch["events"] == [
        {
            "seq": 1,
            "event": "Viewed",
            "time": 1_700_000_000,
            "distinct_id": "u",
            "sent_id": "u",
            "insert_id": "one",
            "properties": event(time=1_700_000_000, n=1, **{"$insert_id": "one"})["properties"],
            "endpoint": "/track",
            "received_at": 1_700_000_000.5,
        }
    ]
    assert batch["people"] == [
        {"canonical": "u", "ids": ["u"], "profile": {"plan": "pro", "$last_seen": "2023-11-14T22:13:20"}}
    ]
    assert (batch["dropped"], batch["identity"], batch["rejected"], batch["requests"]) == (0, [], [], 0)


async def test_changes_are_streamed_as_they_happen() -> None:
    emulator = Emulator(IdMerge.ORIGINAL)
    post = poster(emulator)
    anon = "3f2b8c1e-9d4a-4b7e-8c1d-2a5e6f7b8c9d"
    async with viewing(emulator) as viewer:
        _, first = await greeted(viewer)
        assert first["events"] == []
        await post("/track", [event(distinct_id=anon)])
        (batch,) = await viewer.until(all_of(1))
        assert (batch["requests"], batch["people"]) == (1, [])
        await post("/track", [event("$identify", distinct_id="u", **{"$identified_id": "u", "$anon_id": anon})])
        (batch,) = await viewer.until(all_of(1))
    assert [(entry["seq"], entry["outcome"], entry["advice"]) for entry in batch["identity"]] == [(1, "merged", None)]
    assert batch["people"] == [{"canonical": "u", "ids": sorted([anon, "u"]), "profile": None}]


async def test_failed_identify_is_streamed_with_advice() -> None:
    emulator = Emulator(IdMerge.ORIGINAL)
    async with viewing(emulator) as viewer:
        await greeted(viewer)
        verb = event("$identify", **{"$identified_id": "u", "$anon_id": "visitor-17"})
        await poster(emulator)("/track", [verb])
        (batch,) = await viewer.until(all_of(1))
    (entry,) = batch["identity"]
    assert entry["$failure_reason"] == "errAnonDistinctIdNonGUIDForm"
    assert entry["properties"]["$anon_id"] == "visitor-17"
    assert "five groups of hexadecimal digits" in entry["advice"]
    assert {person["canonical"] for person in batch["people"]} == {"u", "visitor-17"}


async def test_rejected_record_is_streamed_with_field_and_message() -> None:
    emulator = Emulator(IdMerge.ORIGINAL, token=TOKEN)
    post = poster(emulator)
    async with viewing(emulator) as viewer:
        await greeted(viewer)
        assert (await post("/import?strict=1", [imported(time="noon", note="x" * 500)])).status_code == 400
        assert (await post("/track", [event(token="another")])).text == "1"
        assert (await post("/track", "no records")).status_code == 400
        batches = await viewer.until(lambda batches: sum(batch["requests"] for batch in batches) == 3)
    first, second, third = (item for batch in batches for item in batch["rejected"])
    assert (first["seq"], first["endpoint"], first["field"]) == (1, "/import", "properties.time")
    assert "seconds since epoch" in first["message"]
    assert len(first["record"]["properties"]["note"]) < 150
    assert (second["silent"], second["field"]) == (True, "properties.token")
    assert (third["record"], third["silent"]) == (None, False)
    assert batches[-1]["stats"]["rejected"] == 3


async def test_requests_are_streamed_with_their_results() -> None:
    emulator = Emulator(token=TOKEN, now=lambda: 1_700_000_000.5)
    post = poster(emulator)
    await post("/track?api_key=in-url", [event(), event(token="other-project")])
    async with viewing(emulator) as viewer:
        _, first = await greeted(viewer)
        await post("/nothing", [])
        emulator.fail_next(503)
        await post("/groups", [])
        batches = await viewer.until(lambda batches: sum(len(batch["log"]) for batch in batches) == 2)
    (entry,) = first["log"]
    assert entry == {
        "number": 1,
        "received_at": 1_700_000_000.5,
        "method": "POST",
        "path": "/track",
        "status": 200,
        "records": 2,
        "rejected": 1,
        "reason": "silently dropped: the token belongs to another project",
        "fault": "",
        "body_bytes": entry["body_bytes"],
    }
    other, failed = (entry for batch in batches for entry in batch["log"])
    assert (other["path"], other["status"]) == ("/nothing", 404)
    assert (failed["status"], failed["fault"], failed["records"]) == (503, "status", 0)
    (rejected,) = first["rejected"]
    assert rejected["record"]["properties"]["token"] == "***"
    assert "other-project" not in str([first, *batches])


async def test_log_of_requests_is_bounded_and_restarts_at_reset() -> None:
    emulator = Emulator()
    post = poster(emulator)
    for _ in range(1_001):
        await post("/flags", [])
    digest = emulator.request_log()
    assert (digest.requests, len(digest.entries), digest.entries[0].number) == (1_001, 1_000, 2)
    assert [entry.number for entry in emulator.request_log(after=999).entries] == [1_000, 1_001]
    assert [entry.number for entry in emulator.request_log(limit=1).entries] == [1_001]
    async with viewing(emulator) as viewer:
        _, first = await greeted(viewer)
    assert len(first["log"]) == 200
    emulator.reset()
    assert emulator.request_log(after=1_001).requests == 0
    for after, limit in ((-1, 1), (0, 0), (0, 1_001)):
        with pytest.raises(ValueError, match="after must be at least 0 and limit 1 to 1000"):
            emulator.request_log(after, limit=limit)


async def test_profile_updates_and_groups_are_streamed() -> None:
    emulator = Emulator(now=lambda: 1_700_000_000.5)
    post = poster(emulator)
    await post("/engage", [{"$token": TOKEN, "$distinct_id": "u", "$set": {"plan": "pro", "text": ["x" * 200] * 100}}])
    group = {"$token": TOKEN, "$group_key": "company", "$group_id": "Acme"}
    await post("/groups", [{**group, "$set": {"seats": 3}}])
    async with viewing(emulator) as viewer:
        _, first = await greeted(viewer)
        await post("/groups", [{**group, "$delete": ""}])
        (batch,) = await viewer.until(lambda batches: bool(batches) and bool(batches[-1]["groups"]))
    user, company = first["updates"]
    assert (user["group_key"], user["id"], user["record"]["$set"]["plan"]) == ("", "u", "pro")
    assert len(str(user)) < 4_000
    assert (company["group_key"], company["id"], company["record"]["$set"]) == ("company", "Acme", {"seats": 3})
    assert first["groups"] == [{"key": "company", "id": "Acme", "profile": {"seats": 3}}]
    assert batch["groups"] == [{"key": "company", "id": "Acme", "profile": None}]


async def test_planned_faults_and_unsupported_endpoints_are_streamed() -> None:
    emulator = Emulator()
    post = poster(emulator)
    async with viewing(emulator) as viewer:
        hello, first = await greeted(viewer)
        assert hello["faults"]["planned"] == []
        assert "faults" not in first
        emulator.fail_next(429, times=2, retry_after=3, path="/track")
        batches = await viewer.until(lambda batches: bool(batches) and "faults" in batches[-1])
        (planned,) = batches[-1]["faults"]["planned"]
        expected = {"kind": "status", "path": "/track", "status": 429, "retry_after": "3", "seconds": None, "times": 2}
        assert planned == expected
        await post("/track", [event()])
        batches = await viewer.until(lambda batches: bool(batches) and "faults" in batches[-1])
        assert batches[-1]["faults"]["planned"][0]["times"] == 1
        emulator.stop_faults()
        emulator.latency = 0.01
        emulator.random_faults(1, rate=0.5)
        batches = await viewer.until(lambda batches: bool(batches) and "faults" in batches[-1])
        assert batches[-1]["faults"] == {"planned": [], "number": 0, "random": 0.5, "latency": 0.01}
        await post("/api/2.0/jql", [])
        batches = await viewer.until(lambda batches: bool(batches) and "unsupported" in batches[-1])
    assert [(one["method"], one["path"], one["count"]) for one in batches[-1]["unsupported"]] == [
        ("POST", "/api/2.0/jql", 1)
    ]


def test_rates_cover_the_last_minute() -> None:
    clock = [100.5]
    log = RequestLog(lambda: clock[0])
    for at, stored in ((100.5, 3), (100.9, 4), (101.2, 1), (159.0, 2), (161.5, 0)):
        clock[0] = at
        log.append(at=0.0, method="POST", path="/track", status=200, outcome=Outcome(stored=stored))
    assert log.rates() == [(2, 2)]
    clock[0] = 159.5
    assert log.rates() == [(59, 7), (58, 1), (0, 2)]


async def test_batch_is_bounded_and_counts_dropped_events() -> None:
    emulator = Emulator()
    async with viewing(emulator) as viewer:
        await greeted(viewer)
        await poster(emulator)("/track", [event(n=n) for n in range(1_000)])
        batches = await viewer.until(all_of(1_000))
    assert all(len(batch["events"]) <= 200 for batch in batches)
    assert dropped(batches) == 800
    assert seqs(batches)[-1] == 1_000


async def test_new_viewer_receives_last_2000_events() -> None:
    emulator = Emulator()
    for _ in range(2):
        await poster(emulator)("/track", [event() for _ in range(1_500)])
    async with viewing(emulator) as viewer:
        assert (await viewer.message()).kind == "hello"
        batches = await viewer.until(all_of(3_000))
    assert all(len(batch["events"]) <= 200 for batch in batches)
    assert seqs(batches) == list(range(1_001, 3_001))
    assert dropped(batches) == batches[0]["dropped"] == 1_000


async def test_removed_events_count_as_dropped() -> None:
    emulator = Emulator(max_events=10)
    await poster(emulator)("/track", [event() for _ in range(300)])
    async with viewing(emulator) as viewer:
        assert (await viewer.message()).kind == "hello"
        batches = await viewer.until(all_of(300))
    assert seqs(batches) == list(range(291, 301))
    assert dropped(batches) == 290


async def test_large_events_and_profiles_are_shortened() -> None:
    emulator = Emulator()
    post = poster(emulator)
    await post("/track", [event(text="x" * 200, **{f"long-{n}": ["y" * 200] * 100 for n in range(40)})])
    await post("/engage", [{"$token": TOKEN, "$distinct_id": "u", "$set": {"story": ["z" * 200] * 1_000}}])
    async with viewing(emulator) as viewer:
        _, batch = await greeted(viewer)
    assert len(str(batch)) < 100_000
    assert batch["people"][0]["profile"]["story"][-1] == "… 980 more"


async def test_batch_of_many_large_events_is_bounded() -> None:
    emulator = Emulator()
    async with viewing(emulator) as viewer:
        await greeted(viewer)
        events = [event(**{f"p{n}": "x" * 200 for n in range(80)}) for _ in range(150)]
        await poster(emulator)("/track", events)
        batches = await viewer.until(all_of(150))
    assert len(str(batches)) < 2_500_000
    assert len(batches[-1]["events"][-1]["properties"]) > 80


async def test_people_stored_before_restart_are_streamed(tmp_path: Path) -> None:
    for _ in range(2):
        with Emulator(data_dir=tmp_path) as emulator:
            if not emulator.profiles():
                post = poster(emulator)
                await post("/track", [event(**{"$device_id": "d", "$user_id": "u"})])
                await post("/engage", [{"$token": TOKEN, "$distinct_id": "u", "$set": {"n": 1}, "$ignore_time": True}])
                await post("/groups", [{"$token": TOKEN, "$group_key": "k", "$group_id": "g", "$set": {"n": 2}}])
            async with viewing(emulator) as viewer:
                _, batch = await greeted(viewer)
    assert batch["people"] == [{"canonical": "u", "ids": ["$device:d", "u"], "profile": {"n": 1}}]
    assert batch["groups"] == [{"key": "k", "id": "g", "profile": {"n": 2}}]
    assert seqs([batch]) == [1]


async def test_resumed_viewer_receives_missed_events() -> None:
    emulator = Emulator()
    post = poster(emulator)
    await post("/track", [event(n=1)])
    async with viewing(emulator) as viewer:
        await viewer.message()
        last = await viewer.message()
    await post("/track", [event(n=2) for _ in range(500)])
    await post("/track", [event(n=3)])
    async with viewing(emulator, last.id) as viewer:
        assert (await viewer.message()).kind == "hello"
        batches = await viewer.until(all_of(501))
    assert seqs(batches) == list(range(2, 503))
    assert dropped(batches) == 0


@pytest.mark.parametrize("last_id", ["0", "-1", "abc", "", "9" * 30, "99999999999999"])
async def test_viewer_with_unknown_id_starts_over(last_id: str) -> None:
    emulator = Emulator()
    await poster(emulator)("/track", [event()])
    async with viewing(emulator, last_id) as viewer:
        assert [(await viewer.message()).kind for _ in range(3)] == ["reset", "hello", "batch"]


async def test_viewer_that_missed_too_much_starts_over() -> None:
    emulator = Emulator()
    post = poster(emulator)
    async with viewing(emulator) as viewer:
        await viewer.message()
        last = await viewer.message()
    for _ in range(2):
        await post("/track", [event() for _ in range(1_500)])
    async with viewing(emulator, last.id) as viewer:
        assert (await viewer.message()).kind == "reset"


async def test_reset_is_streamed_and_numbers_restart() -> None:
    emulator = Emulator()
    post = poster(emulator)
    async with viewing(emulator) as viewer:
        await post("/track", [event(), event()])
        await viewer.message()
        batches = await viewer.until(all_of(2))
        assert seqs(batches) == [1, 2]
        emulator.reset()
        assert [(await viewer.message()).kind for _ in range(2)] == ["reset", "hello"]
        await post("/track", [event()])
        batches = await viewer.until(all_of(1))
    assert seqs(batches) == [1]


async def test_number_of_viewers_is_limited() -> None:
    emulator = Emulator()
    viewers = [Viewer(emulator, None) for _ in range(MAX_VIEWERS)]
    async with anyio.create_task_group() as tasks:
        for viewer in viewers:
            tasks.start_soon(viewer.run)
        for viewer in viewers:
            assert (await viewer.message()).kind == "hello"
        async with viewing(emulator) as late:
            assert b'"error"' in await late.body()
            assert late.status == 503
        viewers[0].leave()
        await viewers[0].body()
        async with viewing(emulator) as next_one:
            assert (await next_one.message()).kind == "hello"
        for viewer in viewers:
            viewer.leave()
    for viewer in viewers:
        viewer.close()


async def test_slow_viewer_does_not_delay_others() -> None:
    emulator = Emulator()
    post = poster(emulator)
    async with viewing(emulator) as slow, viewing(emulator) as quick:
        await greeted(slow)
        await greeted(quick)
        slow.gate = anyio.Event()
        for number in range(1, 6):
            assert (await post("/track", [event() for _ in range(400)])).text == "1"
            batches = await quick.until(all_of(400))
            assert seqs(batches)[-1] == 400 * number
        slow.gate.set()
        batches = await slow.until(all_of(2_000))
    assert seqs(batches)[-1] == 2_000
    assert len(seqs(batches)) <= 600


async def test_quiet_stream_sends_keep_alive_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixpanel_async.emulator.http.stream, "_KEEP_ALIVE", 0.1)
    emulator = Emulator()
    async with viewing(emulator) as viewer:
        await greeted(viewer)
        assert [await viewer.comment() for _ in range(2)] == ["still here"] * 2


async def test_browser_is_served_until_server_stops() -> None:
    emulator = Emulator()
    ended = threading.Event()
    lines: list[str] = []
    headers: list[httpx.Headers] = []

    def watch(url: str, opened: threading.Event) -> None:
        try:
            with httpx.stream("GET", f"{url}/_emulator/stream", trust_env=False, timeout=20) as response:
                headers.append(response.headers)
                for line in response.iter_lines():
                    lines.append(line)
                    if line.startswith("id:"):
                        opened.set()
        except httpx.TransportError:
            ended.set()

    opened = threading.Event()
    async with emulator.serve() as server:
        thread = threading.Thread(target=watch, args=(server.url, opened))
        thread.start()
        assert await anyio.to_thread.run_sync(opened.wait, 10)
    assert await anyio.to_thread.run_sync(ended.wait, 5)
    thread.join()
    assert headers[0]["content-type"] == "text/event-stream; charset=utf-8"
    assert headers[0]["cache-control"] == "no-store"
    assert lines[:3] == ["retry: 1000", "", "event: hello"]


class State:
    """State of the application as far as a feed reads it."""

    def __init__(self, emulator: Emulator, started: float) -> None:
        self.project = emulator._state.project
        self.requests: BoundedLog[Any] = BoundedLog(10)
        self.log = RequestLog(lambda: 0.0)
        self.faults = FaultPlan()
        self.latency = 0.0
        self.started = started


def test_positions_are_few_and_their_ids_grow_after_restart() -> None:
    clock = count()
    state = State(Emulator(), started=1_000.0)
    feed = Feed(state, lambda: next(clock) * 0.01)
    heads = []
    for _ in range(100):
        state.requests.append(None)
        heads.append(feed.latest_position())
    # 100 calls within a second.
    assert len({head.id for head in heads}) <= 12
    assert [head.id for head in heads] == sorted(head.id for head in heads)
    later = Feed(State(Emulator(), started=1_001.0), lambda: 0.0)
    assert later.latest_position().id > heads[-1].id


def test_viewers_at_same_position_share_batch() -> None:
    state = State(Emulator(), started=0.0)
    feed = Feed(state, lambda: 0.0)
    state.project.store_event("Viewed", {"distinct_id": "u"}, ("/track", 0.0))
    head = feed.latest_position()
    start = feed.history_start(head)
    assert feed.batches(start, head, 200) is feed.batches(start, head, 200)


@pytest.mark.parametrize("reason", DESCRIPTIONS)
def test_every_failure_reason_has_advice(reason: Reason) -> None:
    words = hint("$identify", "failed", reason.value, DESCRIPTIONS[reason])
    assert words is not None
    assert words.endswith(".")


@pytest.mark.parametrize(
    ("id_merge", "name", "properties", "words"),
    [
        (IdMerge.SIMPLIFIED, "$identify", {"$identified_id": "u", "$anon_id": "a"}, "$device_id and $user_id"),
        (IdMerge.SIMPLIFIED, "$merge", {"$distinct_ids": ["u", "a"]}, "/import"),
        (IdMerge.LEGACY, "$identify", {"$identified_id": "u", "$anon_id": "a"}, "Legacy"),
        (IdMerge.ORIGINAL, "$merge", {"$distinct_ids": ["u", "a"]}, "/import"),
    ],
)
async def test_ignored_identity_call_has_advice(
    id_merge: IdMerge, name: str, properties: dict[str, Any], words: str
) -> None:
    emulator = Emulator(id_merge)
    async with viewing(emulator) as viewer:
        await greeted(viewer)
        await poster(emulator)("/track", [event(name, **properties)])
        (batch,) = await viewer.until(all_of(1))
    assert batch["identity"][0]["outcome"] == "ignored"
    assert words in batch["identity"][0]["advice"]


async def test_new_viewer_sees_failed_calls_from_before_many_merges() -> None:
    emulator = Emulator(IdMerge.ORIGINAL)
    failed = event("$identify", **{"$identified_id": "u", "$anon_id": "visitor-17"})
    merges = [event("$create_alias", distinct_id="u", alias=f"alias-{one}") for one in range(BATCH + 50)]
    await poster(emulator)("/track", [failed, *merges])
    async with viewing(emulator) as viewer:
        await viewer.message()
        batches = await viewer.until(lambda found: bool(found and found[-1].get("identity")))
    entries = batches[-1]["identity"]
    assert [entry["seq"] for entry in entries] == [1, *range(52, BATCH + 52)]
    assert entries[0]["outcome"] == "failed"


async def test_device_of_other_user_has_advice() -> None:
    emulator = Emulator()
    async with viewing(emulator) as viewer:
        await greeted(viewer)
        events = [event(**{"$device_id": "d", "$user_id": user}) for user in ("u1", "u2")]
        await poster(emulator)("/track", events)
        (batch,) = await viewer.until(all_of(2))
    merged, ignored = batch["identity"]
    assert (merged["outcome"], merged["advice"]) == ("merged", None)
    assert "keeps its first user" in ignored["advice"]
    assert {"canonical": "u1", "ids": ["$device:d", "u1"], "profile": None} in batch["people"]


def test_bounded_log_returns_newest_entries_in_order() -> None:
    journal: BoundedLog[int] = BoundedLog(5)
    assert journal.between(0, 10, 3) == []
    for number in range(1, 11):
        journal.append(number)
    assert journal.total == 10
    assert journal.between(0, 10, 3) == [(8, 8), (9, 9), (10, 10)]
    assert journal.between(0, 8, 10) == [(6, 6), (7, 7), (8, 8)]
    assert journal.between(9, 9, 10) == journal.between(0, 3, 10) == []
    assert journal.between(8, 20, 10) == [(9, 9), (10, 10)]


def test_shortened_data_is_small_and_readable() -> None:
    deep: Any = 1
    for _ in range(5_000):
        deep = {"a": [deep]}
    value = {"deep": deep, "wide": list(range(1_000)), "keys": dict.fromkeys(map(str, range(1_000))), "bad": "\ud800"}
    assert len(sse_message("x", {"value": shorten(value)})) < 2_000
    wide = {str(n): {str(m): ["é" * 500] * 30 for m in range(30)} for n in range(30)}
    assert len(sse_message("x", {"value": shorten(wide)})) < 100_000
    assert shorten(2**70) == str(2**70)
