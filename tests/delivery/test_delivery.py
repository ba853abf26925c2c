"""Delivery through the public API: batching, retries, splitting, partial failures, overflow and accounting."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import orjson
import pytest
from simulated import emulator_client_in

from mixpanel_async import (
    ApiError,
    AsyncMixpanel,
    BatchPolicy,
    ClientClosedError,
    ConfigurationError,
    Delivery,
    DropReason,
    IdMerge,
    LostRecord,
    Overflow,
    QueueFullError,
    RetryPolicy,
    ServiceAccountCredentials,
    SqliteSpool,
    TransportError,
)
from mixpanel_async._runtime.environment import Environment, real_environment
from mixpanel_async.emulator import Emulator

pytestmark = pytest.mark.anyio

AT_ONCE = RetryPolicy(initial=0.0, maximum=0.0)
NEVER_BY_TIME = BatchPolicy(linger=3600.0)
ACCOUNT = ServiceAccountCredentials("account", "canary-secret", "12345")

Answer = Callable[[httpx.Request], httpx.Response]
OK = {"status": 1, "error": None}


class Server:
    """Mixpanel server that records each request and sends scripted responses. By default it accepts everything."""

    def __init__(self, *answers: Answer | Exception | httpx.Response) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer: Any = self.answers.pop(0) if self.answers else httpx.Response(200, json=OK)
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, httpx.Response) else answer(request)

    def client(self, **options: Any) -> AsyncMixpanel:
        http_client = httpx.AsyncClient(transport=httpx.MockTransport(self))
        return AsyncMixpanel("token", **{"retry": AT_ONCE, "http_client": http_client, **options})

    def batches(self) -> list[list[dict[str, Any]]]:
        return [records(request) for request in self.requests]


def records(request: httpx.Request) -> list[dict[str, Any]]:
    body = request.content
    if request.headers.get("Content-Encoding") == "gzip":
        body = gzip.decompress(body)
    batch: list[dict[str, Any]] = orjson.loads(body)
    return batch


async def test_events_are_sent_in_one_batch_in_order() -> None:
    emulator = Emulator()
    async with emulator.client(batching=NEVER_BY_TIME) as mp:
        for number in range(10):
            await mp.track("user", "Step", {"number": number})
        result = await mp.flush()
    assert (result.delivered, result.failed, result.pending) == (10, 0, 0)
    assert [event["properties"]["number"] for event in emulator.events("Step")] == list(range(10))
    assert len(emulator.requests()) == 1


async def test_full_batch_is_sent_without_flush() -> None:
    server = Server()
    delivered = anyio.Event()

    async def on_delivered(delivery: Delivery) -> None:
        delivered.set()

    async with server.client(batching=BatchPolicy(max_events=5, linger=3600.0), on_delivered=on_delivered) as mp:
        for _ in range(7):
            await mp.track("user", "Step")
        await delivered.wait()
        assert [len(batch) for batch in server.batches()] == [5]
        assert mp.stats().pending == 2


async def test_last_event_is_sent_after_linger() -> None:
    server = Server()
    delivered = anyio.Event()

    async def on_delivered(delivery: Delivery) -> None:
        delivered.set()

    async with server.client(batching=BatchPolicy(linger=0.01), on_delivered=on_delivered) as mp:
        await mp.track("user", "Alone")
        await delivered.wait()
    assert [len(batch) for batch in server.batches()] == [1]


async def test_no_request_exceeds_max_events_or_max_bytes() -> None:
    server = Server()
    policy = BatchPolicy(max_events=7, max_bytes=3_000, linger=3600.0)
    async with server.client(batching=policy) as mp:
        for size in (10, 2_000, 500, 5, 1_500, 2_900, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1):
            await mp.track("user", "Sized", {"text": "x" * size})
        await mp.flush()
    assert sum(map(len, server.batches())) == 17
    for batch in server.batches():
        assert len(batch) <= 7
        assert len(batch) == 1 or len(orjson.dumps(batch)) <= 3_000


async def test_worker_that_never_waits_delivers_all_events() -> None:
    emulator = Emulator()
    async with emulator.client() as mp:
        for number in range(20_000):
            await mp.track("worker", "Job", {"number": number})
    assert mp.stats().delivered == 20_000
    assert len(emulator.events("Job")) == 20_000


async def test_credentials_select_import_and_gzip_is_used_where_supported() -> None:
    server = Server()
    async with server.client(credentials=ACCOUNT) as mp:
        await mp.track("user", "Big", {"text": "x" * 2_000})
        await mp.people_set("user", {"text": "x" * 2_000})
        await mp.group_set("company", "acme", {"text": "x" * 2_000})
        await mp.flush()
    by_path = {request.url.path: request for request in server.requests}
    assert by_path["/import"].url.params["strict"] == "1"
    assert by_path["/import"].url.params["project_id"] == "12345"
    assert by_path["/import"].headers["Content-Encoding"] == "gzip"
    assert by_path["/import"].headers["Authorization"].startswith("Basic ")
    for path in ("/engage", "/groups"):
        assert "Content-Encoding" not in by_path[path].headers
        assert "Authorization" not in by_path[path].headers
        assert by_path[path].url.params["verbose"] == "1"


async def test_without_credentials_events_go_to_track() -> None:
    server = Server()
    async with server.client() as mp:
        await mp.track("user", "Event")
    (request,) = server.requests
    assert (request.method, request.url.path) == ("POST", "/track")
    assert request.url.params["verbose"] == "1"
    assert request.url.host == "api.mixpanel.com"
    assert "Authorization" not in request.headers


@pytest.mark.parametrize(
    ("region", "host"),
    [("us", "api.mixpanel.com"), ("eu", "api-eu.mixpanel.com"), ("in", "api-in.mixpanel.com")],
)
async def test_every_method_uses_the_configured_region(region: str, host: str) -> None:
    server = Server()
    async with server.client(region=region) as mp:
        await mp.track("user", "Event")
        await mp.track_immediate("user", "Event")
        await mp.import_data(None, "user", "Event", 1_700_000_000, api_secret="project-secret")
        await mp.people_set("user", {"a": 1})
        await mp.group_set("company", "acme", {"a": 1})
        await mp.alias("new", "old")
        await mp.identify("user", "3f2b0a52-1c1c-4b6e-9d7e-0a4f2c1d8e11")
        await mp.merge(distinct_id1="a", distinct_id2="b", api_secret="project-secret")
    assert len(server.requests) == 8
    assert {request.url.host for request in server.requests} == {host}


async def test_imports_with_different_secrets_never_share_a_request() -> None:
    server = Server()
    async with server.client(batching=NEVER_BY_TIME) as mp:
        await mp.import_data(None, "user", "One", 1_700_000_000, api_secret="secret-one")
        await mp.import_data(None, "user", "Two", 1_700_000_000, api_secret="secret-two")
        await mp.import_data("key", "user", "Three", 1_700_000_000, api_secret="secret-one")
        await mp.import_data(None, "user", "Four", 1_700_000_000)
    sent = {
        httpx.BasicAuth("", "")._build_auth_header(name, ""): name for name in ("secret-one", "secret-two", "token")
    }
    by_secret = {
        sent[request.headers["Authorization"]]: [row["event"] for row in records(request)]
        for request in server.requests
    }
    assert by_secret == {"secret-one": ["One", "Three"], "secret-two": ["Two"], "token": ["Four"]}


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
async def test_temporary_failure_is_retried_until_delivery(status: int) -> None:
    emulator = Emulator()
    emulator.fail_next(status, times=3)
    async with emulator.client(retry=AT_ONCE) as mp:
        await mp.track("user", "Event")
        result = await mp.flush()
    assert result.delivered == 1
    assert mp.stats().retries == 3
    assert len(emulator.events("Event")) == 1


async def test_event_with_a_lost_response_is_counted_once() -> None:
    emulator = Emulator()
    emulator.drop_connections(2, apply=True)
    async with emulator.client(retry=AT_ONCE) as mp:
        await mp.track("user", "Event")
        await mp.flush()
    assert len(emulator.raw_events("Event")) == 3
    assert len(emulator.events("Event")) == 1


async def test_flush_respects_retry_after_and_returns_pending_records() -> None:
    emulator = Emulator()
    emulator.fail_next(429, retry_after=60)
    async with emulator.client(shutdown_timeout=0.2) as mp:
        await mp.track("user", "Event")
        result = await mp.flush()
        assert (result.delivered, result.pending) == (0, 1)
        assert len(emulator.requests()) == 1
    assert mp.stats().losses == {"closed": 1}


async def test_413_halves_batches_and_drops_only_the_huge_record() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        too_large = len(orjson.dumps(records(request))) > 2_000
        return httpx.Response(413, json={"error": "too large"}) if too_large else httpx.Response(200, json=OK)

    server = Server(*[answer] * 40)
    lost: list[tuple[int, DropReason]] = []

    async def on_drop(records: Any, reason: DropReason) -> None:
        lost.append((len(records), reason))

    async with server.client(on_drop=on_drop, batching=NEVER_BY_TIME) as mp:
        for size in (10, 10, 1_900, 10, 10, 10, 10, 10):
            await mp.track("user", "Event", {"text": "x" * size})
        result = await mp.flush()
    assert (result.delivered, result.failed) == (7, 1)
    assert lost == [(1, DropReason.TOO_LARGE)]


async def test_400_drops_exactly_the_named_records() -> None:
    refusal = {
        "code": 400,
        "error": "some data points in the request failed validation",
        "failed_records": [{"index": 1, "field": "properties.x", "message": "is odd", "$insert_id": "two"}],
        "num_records_imported": 2,
        "status": "Bad Request",
    }
    server = Server(httpx.Response(400, json=refusal))
    lost: list[LostRecord] = []

    def on_drop(records: Any, reason: DropReason) -> None:
        assert reason is DropReason.REJECTED
        lost.extend(records)

    async with server.client(credentials=ACCOUNT, on_drop=on_drop, batching=NEVER_BY_TIME) as mp:
        for insert_id in ("one", "two", "three"):
            await mp.track("user", "Event", insert_id=insert_id)
        result = await mp.flush()
    assert (result.delivered, result.failed, len(server.requests)) == (2, 1, 1)
    (record,) = lost
    assert record.payload is not None
    assert record.payload["properties"]["$insert_id"] == "two"
    assert "token" not in record.payload["properties"]
    assert (record.kind, record.field, record.message) == ("events", "properties.x", "is odd")


async def test_emulator_validation_drops_the_named_records() -> None:
    now = time.time()
    emulator = Emulator(now=lambda: now - 7_200)
    async with emulator.client(credentials=ACCOUNT, batching=NEVER_BY_TIME) as mp:
        await mp.track("user", "Good", time=now - 8_000)
        await mp.track("user", "Ahead of the server", time=now)
        await mp.track("user", "Good", time=now - 8_000)
        result = await mp.flush()
    assert (result.delivered, result.failed) == (2, 1)
    assert {event["event"] for event in emulator.events()} == {"Good"}


@pytest.mark.parametrize("body", [b"0", b'{"status":0,"error":"no"}'])
async def test_200_with_an_error_body_is_a_failure_and_the_invalid_record_is_isolated(body: bytes) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        poisoned = any(row["properties"].get("poison") for row in records(request))
        return httpx.Response(200, content=body) if poisoned else httpx.Response(200, json=OK)

    server = Server(*[answer] * 40)
    async with server.client(batching=NEVER_BY_TIME) as mp:
        for number in range(16):
            await mp.track("user", "Event", {"poison": number == 11})
        result = await mp.flush()
    assert (result.delivered, result.failed) == (15, 1)
    assert len(server.requests) <= 2 * 4 + 1


@pytest.mark.parametrize("body", [b"", b"<html>log in</html>", b'{"status":', b"[]", b'{"status":true}', b'{"ok":1}'])
async def test_captive_portal_response_loses_no_record(body: bytes) -> None:
    server = Server(httpx.Response(200, content=body), httpx.Response(204))
    async with server.client() as mp:
        await mp.track("user", "Event")
        result = await mp.flush()
    assert result.delivered == 1
    assert len(server.requests) == 3
    assert len({bytes(request.content) for request in server.requests}) == 1


@pytest.mark.parametrize("status", [301, 302, 307, 401, 403, 404, 405, 407])
async def test_wrong_credentials_or_host_keep_records_and_pause_the_lane(status: int) -> None:
    answer = httpx.Response(status, headers={"Location": "https://evil.test/"}, json={"error": "no"})
    server = Server(answer)
    async with server.client(credentials=ACCOUNT, shutdown_timeout=0.1) as mp:
        await mp.track("user", "Event")
        result = await mp.flush()
        assert (result.delivered, result.failed, result.pending) == (0, 0, 1)
        await mp.track("user", "Event")
        await mp.flush()
        assert mp.stats().pending == 2
    assert len(server.requests) == 1
    assert mp.stats().losses == {"closed": 2}


async def test_close_makes_one_attempt_before_the_backoff_ends() -> None:
    emulator = Emulator()
    emulator.fail_next(503)
    long = RetryPolicy(initial=0.0, maximum=3600.0)
    mp = emulator_client_in(_longest_delays(), emulator, retry=long)
    await mp.track("user", "Event")
    assert (await mp.aclose()).delivered == 1


def _longest_delays() -> Environment:
    """Return an environment whose random numbers give the longest delays."""
    return replace(real_environment(), random=lambda: 1.0)


async def test_flush_retries_the_first_refusal_of_credentials() -> None:
    emulator = Emulator()
    emulator.fail_next(401)
    now = 1_000.0
    mp = emulator_client_in(replace(real_environment(), monotonic=lambda: now), emulator)
    await mp.track("user", "Event")
    assert (await mp.flush(timeout=1.0)).pending == 1
    await mp.track_immediate("user", "Proof")
    now += 3.0
    assert (await mp.flush(timeout=1.0)).delivered == 1
    await mp.aclose()


async def test_records_without_room_are_logged_at_intervals(caplog: pytest.LogCaptureFixture) -> None:
    mp = Emulator().client(batching=BatchPolicy(max_pending_events=1, linger=3600.0))
    for _ in range(100):
        mp.track_nowait("user", "canary")
    await mp.aclose()
    # The first loss, and the total when the client closes.
    first, total = [record.getMessage() for record in caplog.records if "queue_full" in record.getMessage()]
    assert "99 so far" in total
    assert "canary" not in first + total


async def test_failing_lane_does_not_delay_another_lane() -> None:
    emulator = Emulator()
    emulator.fail_next(503, times=1, retry_after=300, path="/engage")
    async with emulator.client(shutdown_timeout=0.2) as mp:
        await mp.people_set("user", {"a": 1})
        await mp.flush()
        for _ in range(3):
            await mp.track("user", "Event")
            assert (await mp.flush()).delivered == 1
    assert len(emulator.events("Event")) == 3


async def test_profile_updates_keep_their_order_across_failures() -> None:
    emulator = Emulator()
    emulator.fail_next(503, times=2, path="/engage")
    async with emulator.client(retry=AT_ONCE, batching=BatchPolicy(max_events=1, max_in_flight=8)) as mp:
        for value in range(50):
            await mp.people_set("user", {"value": value})
        await mp.flush()
    profile = emulator.profile("user")
    assert profile is not None
    assert profile["value"] == 49


async def test_update_that_may_have_been_applied_is_not_resent() -> None:
    emulator = Emulator()
    emulator.drop_connections(1, path="/engage", apply=True)
    lost: list[LostRecord] = []
    async with emulator.client(
        retry=AT_ONCE, batching=NEVER_BY_TIME, on_drop=lambda records, reason: lost.extend(records)
    ) as mp:
        await mp.people_set("user", {"name": "Ada"})
        await mp.people_increment("user", {"visits": 1})
        await mp.people_append("user", {"seen": "home"})
        await mp.people_track_charge("user", 9.5)
        result = await mp.flush()
    stats = mp.stats()
    assert (result.delivered, result.losses, stats.uncertain) == (1, {"uncertain": 3}, 3)
    profile = emulator.profile("user")
    assert profile is not None
    assert (profile["name"], profile["visits"], profile["seen"]) == ("Ada", 1, ["home"])
    assert [set(record.payload or {}) & {"$add", "$append"} for record in lost] == [{"$add"}, {"$append"}, {"$append"}]
    assert "$token" not in (lost[0].payload or {})


async def test_update_that_was_not_applied_is_resent() -> None:
    emulator = Emulator()
    emulator.fail_next(503, times=1, path="/engage")
    emulator.fail_next(429, times=1, path="/engage")
    async with emulator.client(retry=AT_ONCE) as mp:
        await mp.people_increment("user", {"visits": 1})
        await mp.flush()
    assert mp.stats().delivered == 1
    assert (emulator.profile("user") or {})["visits"] == 1


async def test_at_least_once_resends_every_record() -> None:
    emulator = Emulator()
    emulator.drop_connections(1, path="/engage", apply=True)
    async with emulator.client(retry=AT_ONCE, batching=BatchPolicy(at_least_once=True)) as mp:
        await mp.people_increment("user", {"visits": 1})
        await mp.flush()
    assert mp.stats().delivered == 1
    assert (emulator.profile("user") or {})["visits"] == 2


async def test_exhausted_attempts_are_reported() -> None:
    lost: list[DropReason] = []

    async def on_drop(records: Any, reason: DropReason) -> None:
        lost.extend([reason] * len(records))

    server = Server(*[httpx.Response(503)] * 5)
    async with server.client(retry=RetryPolicy(attempts=3, initial=0.0, maximum=0.0), on_drop=on_drop) as mp:
        await mp.track("user", "Event")
        result = await mp.flush()
    assert (result.failed, len(server.requests)) == (1, 3)
    assert lost == [DropReason.EXHAUSTED]
    assert "HTTP 503" in (mp.stats().last_error or "")


async def test_drop_newest_keeps_the_first_records() -> None:
    emulator = Emulator()
    lost: list[LostRecord] = []
    policy = BatchPolicy(max_pending_events=3, linger=3600.0)
    mp = emulator.client(batching=policy, on_drop=lambda records, reason: lost.extend(records))
    for number in range(5):
        mp.track_nowait("user", "Event", {"number": number}) if number else await mp.track(
            "user", "Event", {"number": 0}
        )
    assert mp.stats().dropped == 2
    await mp.aclose()
    assert [event["properties"]["number"] for event in emulator.events("Event")] == [0, 1, 2]
    assert [(record.payload or {})["properties"]["number"] for record in lost] == [3, 4]


async def test_drop_oldest_keeps_the_last_records() -> None:
    emulator = Emulator()
    policy = BatchPolicy(max_pending_events=3, max_events=2_000, linger=3600.0)
    mp = emulator.client(batching=policy, overflow=Overflow.DROP_OLDEST)
    for number in range(5):
        mp.track_nowait("user", "Event", {"number": number})
    assert mp.stats().losses == {"queue_full": 2}
    await mp.aclose()
    assert [event["properties"]["number"] for event in emulator.events("Event")] == [2, 3, 4]
    assert len(emulator.requests()) == 1


async def test_raise_policy_raises_and_accepts_no_record() -> None:
    server = Server()
    async with server.client(batching=BatchPolicy(max_pending_bytes=600), overflow=Overflow.RAISE) as mp:
        mp.track_nowait("user", "Event", {"text": "x" * 300})
        with pytest.raises(QueueFullError, match="1 record in"):
            mp.track_nowait("user", "Event", {"text": "x" * 300})
        assert (mp.stats().accepted, mp.stats().dropped) == (1, 0)


async def test_wait_policy_blocks_the_caller_until_there_is_room() -> None:
    emulator = Emulator()
    policy = BatchPolicy(max_events=5, max_pending_events=10, linger=3600.0)
    async with emulator.client(batching=policy, overflow=Overflow.WAIT) as mp:
        for number in range(200):
            await mp.track("user", "Event", {"number": number})
            assert mp.stats().pending <= 10
    assert mp.stats().delivered == 200
    assert len(emulator.events("Event")) == 200


FULL_AFTER_TWO: dict[str, tuple[int, BatchPolicy, dict[str, Any] | None]] = {
    "records": (10, BatchPolicy(linger=3600.0, max_pending_events=2), None),
    "bytes": (300, BatchPolicy(linger=3600.0, max_pending_bytes=900), None),
    "records of a spool": (10, NEVER_BY_TIME, {"max_records": 2}),
    "bytes of a spool": (400_000, NEVER_BY_TIME, {"max_bytes": 1_000_000}),
}


@pytest.mark.parametrize("limit", FULL_AFTER_TWO)
async def test_callers_that_wait_for_room_end_the_linger_time(limit: str, tmp_path: Path) -> None:
    size, policy, spool_limits = FULL_AFTER_TWO[limit]
    spool = None if spool_limits is None else SqliteSpool(tmp_path / "spool", **spool_limits)
    emulator = Emulator()
    async with emulator.client(batching=policy, overflow=Overflow.WAIT, spool=spool) as mp:
        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                for number in range(8):
                    tasks.start_soon(mp.track, "user", "Event", {"number": number, "text": "x" * size})
    assert sorted(event["properties"]["number"] for event in emulator.events("Event")) == [*range(8)]


async def test_wait_policy_raises_at_its_deadline_and_track_nowait_does_not_wait() -> None:
    server = Server(*[httpx.Response(503, headers={"Retry-After": "300"})] * 3)
    policy = BatchPolicy(max_pending_events=1, linger=0.0, wait_timeout=0.05)
    async with server.client(batching=policy, overflow=Overflow.WAIT, shutdown_timeout=0.1) as mp:
        await mp.track("user", "First")
        with pytest.raises(QueueFullError):
            await mp.track("user", "Second")
        with pytest.raises(QueueFullError):
            mp.track_nowait("user", "Third")
        assert mp.stats().accepted == 1


async def test_track_nowait_is_safe_from_many_threads() -> None:
    emulator = Emulator()
    async with emulator.client(batching=BatchPolicy(linger=0.01)) as mp:

        def work(thread: int) -> None:
            for number in range(500):
                mp.track_nowait("user", "Event", {"at": f"{thread}/{number}"})

        def run() -> None:
            threads = [threading.Thread(target=work, args=(thread,)) for thread in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        await anyio.to_thread.run_sync(run)
        result = await mp.flush()
        assert result.pending == 0
    assert mp.stats().delivered == 4_000
    assert len({event["properties"]["at"] for event in emulator.events("Event")}) == 4_000


async def test_track_immediate_returns_after_delivery_or_raises() -> None:
    emulator = Emulator()
    async with emulator.client(identity_retry=RetryPolicy(attempts=2, initial=0.0, maximum=0.0)) as mp:
        await mp.track_immediate("user", "Paid")
        assert len(emulator.events("Paid")) == 1
        emulator.fail_next(503, times=2)
        with pytest.raises(ApiError) as caught:
            await mp.track_immediate("user", "Paid")
        assert (caught.value.status, caught.value.attempts, caught.value.endpoint) == (503, 2, "/track")
        emulator.drop_connections(2)
        with pytest.raises(TransportError) as lost:
            await mp.track_immediate("user", "Paid")
        assert (lost.value.attempts, lost.value.uncertain) == (2, True)
    stats = mp.stats()
    assert (stats.accepted, stats.delivered, stats.failed) == (3, 1, 2)


@pytest.mark.parametrize("is_async", [False, True])
async def test_failing_callback_does_not_stop_delivery(is_async: bool) -> None:
    calls = 0

    def plain(records: Any, reason: DropReason) -> None:
        nonlocal calls
        calls += 1
        raise RuntimeError

    async def coroutine(records: Any, reason: DropReason) -> None:
        plain(records, reason)

    server = Server(*[httpx.Response(400, json={"error": "no"})] * 3)
    async with server.client(on_drop=coroutine if is_async else plain) as mp:
        for _ in range(3):
            await mp.track("user", "Event")
            await mp.flush()
        await mp.track("user", "Event")
        assert (await mp.flush()).delivered == 1
    assert calls == 3


async def test_callback_may_track() -> None:
    emulator = Emulator()

    def on_drop(records: Any, reason: DropReason) -> None:
        mp.track_nowait("monitor", "Lost", {"count": len(records)})

    mp = emulator.client(on_drop=on_drop, retry=AT_ONCE)
    async with mp:
        emulator.fail_next(422, body=b'{"status":0}')
        await mp.track("user", "Event")
        await mp.flush()
        with anyio.fail_after(5):
            while mp.stats().accepted < 2:
                await anyio.lowlevel.checkpoint()
    assert len(emulator.events("Lost")) == 1


async def test_callback_may_flush_and_close_without_deadlock() -> None:
    closed = anyio.Event()

    async def on_drop(records: Any, reason: DropReason) -> None:
        await mp.flush()
        await mp.aclose()
        closed.set()

    server = Server(httpx.Response(400, json={"error": "no"}))
    mp = server.client(on_drop=on_drop, shutdown_timeout=3600.0)
    with anyio.fail_after(10):
        await mp.track("user", "Event")
        await mp.flush()
        await closed.wait()
        await mp.aclose()


async def test_flush_returns_after_the_callbacks_ran() -> None:
    lost: list[LostRecord] = []
    server = Server(httpx.Response(400, json={"error": "no"}))
    async with server.client(on_drop=lambda records, reason: lost.extend(records)) as mp:
        await mp.track("user", "Event")
        await mp.flush()
        assert len(lost) == 1


async def test_before_send_changes_events_and_drops_them_on_error() -> None:
    def before_send(message: dict[str, Any]) -> dict[str, Any] | None:
        if message["event"] == "Secret":
            return None
        if message["event"] == "Broken":
            raise RuntimeError
        message["properties"]["scrubbed"] = True
        return message

    emulator = Emulator()
    async with emulator.client(before_send=before_send) as mp:
        for name in ("Plain", "Secret", "Broken"):
            await mp.track("user", name)
    assert mp.stats().losses == {"before_send": 1, "before_send_failed": 1}
    (event,) = emulator.events()
    assert (event["event"], event["properties"]["scrubbed"]) == ("Plain", True)


def test_coroutine_function_as_before_send_raises() -> None:
    async def before_send(message: dict[str, Any]) -> dict[str, Any]:
        return message

    with pytest.raises(ConfigurationError, match="plain function"):
        AsyncMixpanel("token", before_send=before_send)  # type: ignore[arg-type]


async def test_concurrent_flushes_cover_all_earlier_records() -> None:
    emulator = Emulator()
    async with emulator.client(batching=NEVER_BY_TIME) as mp, anyio.create_task_group() as tasks:
        for _ in range(100):
            await mp.track("user", "Event")
            tasks.start_soon(mp.flush)
        await mp.track("user", "Last")
        result = await mp.flush()
        assert result.pending == 0
        assert mp.stats().delivered == 101


async def test_closed_client_accepts_no_record() -> None:
    server = Server()
    mp = server.client()
    await mp.track("user", "Event")
    assert (await mp.aclose()).delivered == 1
    assert (await mp.aclose()).delivered == 1
    for call in (
        mp.track("user", "Late"),
        mp.people_set("user", {"a": 1}),
        mp.alias("a", "b"),
        mp.track_immediate("user", "Late"),
        mp.start(),
    ):
        with pytest.raises(ClientClosedError):
            await call
    with pytest.raises(ClientClosedError):
        mp.track_nowait("user", "Late")
    assert mp.stats().accepted == 1


async def test_bound_client_sends_its_ids_and_properties() -> None:
    emulator = Emulator(IdMerge.SIMPLIFIED)
    async with emulator.client(super_properties={"app": "shop", "plan": "none"}) as mp:
        request = mp.bind(user_id="user-1", device_id="device-1", ip="203.0.113.9", properties={"plan": "pro"})
        await request.track("Viewed", {"page": "home"})
        await request.people_set({"name": "Ada"})
        request.bind(properties={"plan": "max"}).track_nowait("Upgraded")
    viewed, upgraded = emulator.events()
    sent = viewed["properties"]
    assert (sent["distinct_id"], sent["app"], sent["plan"], sent["page"]) == ("user-1", "shop", "pro", "home")
    assert (sent["$user_id"], sent["$device_id"]) == ("user-1", "device-1")
    assert upgraded["properties"]["plan"] == "max"
    assert (emulator.profile("user-1") or {})["name"] == "Ada"
    assert emulator.cluster("user-1") == {"user-1", "$device:device-1"}


@pytest.mark.parametrize("most", [1, 2, 10, 50, 300])
async def test_full_batch_is_sent_before_linger_ends(most: int) -> None:
    emulator = Emulator()
    async with emulator.client(batching=BatchPolicy(max_events=most, linger=3600.0)) as mp:
        for number in range(3 * most):
            await mp.track("user", "Event", {"number": number})
            await anyio.lowlevel.checkpoint()
        with anyio.fail_after(10):
            while mp.stats().pending:
                await anyio.lowlevel.checkpoint()
        assert mp.stats().requests == 3
    assert len(emulator.events()) == 3 * most


async def test_full_batch_is_sent_while_other_tasks_track() -> None:
    emulator = Emulator()
    async with emulator.client(batching=BatchPolicy(max_events=20, linger=3600.0)) as mp:
        for number in range(60):
            if number % 7:
                await mp.track("user", "Event", {"number": number})
            else:
                mp.track_nowait("user", "Event", {"number": number})
                await mp.people_set("user", {"number": number})
            await anyio.lowlevel.checkpoint()
        with anyio.fail_after(10):
            while len(emulator.events()) < 60:
                await anyio.lowlevel.checkpoint()
