"""Deferred identity calls are delivered in order, and `sign_in` with a timeout survives an outage."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from mixpanel_async import (
    ApiError,
    AsyncMixpanel,
    BatchPolicy,
    ConfigurationError,
    DropReason,
    IdentityError,
    IdMerge,
    LostRecord,
    Overflow,
    QueueFullError,
    RetryPolicy,
    ServiceAccountCredentials,
    SqliteSpool,
    TransportError,
    ValidationError,
)
from mixpanel_async.emulator import Emulator

pytestmark = pytest.mark.anyio

ANON = "3f2b0a52-1c1c-4b6e-9d7e-0a4f2c1d8e11"
ACCOUNT = ServiceAccountCredentials("account", "canary-secret", "12345")
QUICK = RetryPolicy(initial=0.0, maximum=0.0)
SMALL = BatchPolicy(max_events=2, linger=0.01)
LONG = BatchPolicy(linger=3600.0)


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "spool.db"


def names(emulator: Emulator) -> list[str]:
    return [event["event"] for event in emulator.raw_events()]


def counts(mp: AsyncMixpanel) -> tuple[int, int, int, int, int]:
    stats = mp.stats()
    assert stats.accepted == stats.delivered + stats.failed + stats.dropped + stats.uncertain + stats.pending
    one = stats.identity
    return one.succeeded, one.failed, one.deferred, one.delivered, one.lost


@pytest.mark.parametrize("credentials", [None, ACCOUNT], ids=["token", "service account"])
@pytest.mark.parametrize("failures", [0, 3])
async def test_deferred_alias_keeps_its_place_between_events(credentials: Any, failures: int) -> None:
    """In a Legacy project, an event of the new id that came first would stay separate for good."""
    emulator = Emulator(IdMerge.LEGACY)
    async with emulator.client(batching=SMALL, retry=QUICK, id_merge=IdMerge.LEGACY, credentials=credentials) as mp:
        if failures:
            emulator.fail_next(503, times=failures)
        for number in range(5):
            await mp.track("visitor", f"Before {number}")
        await mp.alias("maya", "visitor", deferred=True)
        assert counts(mp)[2] == 1
        for number in range(5):
            await mp.track("maya", f"After {number}")
        await mp.people_set("maya", {"$name": "Maya"})
    found = names(emulator)
    at = found.index("$create_alias")
    assert sorted(found[:at]) == [f"Before {number}" for number in range(5)]
    assert sorted(found[at + 1 :]) == [f"After {number}" for number in range(5)]
    assert {event["properties"]["distinct_id"] for event in emulator.events()} == {"visitor"}
    assert (emulator.profile("visitor") or {})["$name"] == "Maya"
    assert counts(mp) == (0, 0, 1, 1, 0)
    assert mp.stats().delivered == 12
    signed = {one.path for one in emulator.requests() if "authorization" in one.headers}
    assert signed == (set() if credentials is None else {"/import"})


async def test_deferred_calls_follow_each_other_and_merges_are_signed() -> None:
    emulator = Emulator(IdMerge.ORIGINAL)
    async with emulator.client(batching=SMALL) as mp:
        await mp.track(ANON, "Before")
        await mp.identify("maya", ANON, deferred=True)
        await mp.merge(None, "maya", "old-account", deferred=True)
        await mp.merge(None, "maya", "older-account", api_secret="project-secret", deferred=True)
        await mp.alias("maya@example.com", "maya", deferred=True)
        await mp.track("maya", "After")
    assert names(emulator) == ["Before", "$identify", "$merge", "$merge", "$create_alias", "After"]
    assert emulator.cluster(ANON) == {ANON, "maya", "old-account", "older-account", "maya@example.com"}
    sent = [(one.path, one.records, "authorization" in one.headers) for one in emulator.requests()]
    assert sent == [("/track", 2, False), ("/import", 2, True), ("/track", 2, False)]
    assert counts(mp) == (0, 0, 4, 4, 0)


async def test_outage_delays_a_deferred_sign_in() -> None:
    emulator = Emulator(IdMerge.ORIGINAL)
    emulator.fail_next(503, times=100_000)
    async with emulator.client(id_merge=IdMerge.ORIGINAL, batching=SMALL, retry=QUICK) as mp:
        visitor = mp.bind(device_id=ANON)
        await visitor.track("Page viewed")
        await visitor.sign_in("maya", deferred=True)
        assert (visitor.user_id, visitor.link is None) == ("maya", False)
        assert counts(mp) == (0, 0, 1, 0, 0)
        emulator.stop_faults()
    assert names(emulator) == ["Page viewed", "$identify", "Signed in"]
    assert emulator.cluster("maya") == {"maya", ANON}


async def test_arguments_are_checked_in_the_call() -> None:
    emulator = Emulator(IdMerge.SIMPLIFIED)
    async with emulator.client(id_merge=IdMerge.SIMPLIFIED) as mp:
        with pytest.raises(IdentityError):
            await mp.identify("maya", ANON, deferred=True)
    async with emulator.client() as mp:
        with pytest.raises(IdentityError, match="UUID"):
            await mp.identify("maya", "visitor", deferred=True)
        with pytest.raises(ValidationError):
            await mp.alias("", "visitor", deferred=True)
        for timeout in (0, True, "2", float("nan")):
            with pytest.raises(ConfigurationError, match="timeout"):
                await mp.alias("maya", "visitor", timeout=timeout)  # type: ignore[arg-type]
            with pytest.raises(ConfigurationError, match="sign_in_timeout"):
                mp.bind(sign_in_timeout=timeout)  # type: ignore[arg-type]
            with pytest.raises(ConfigurationError, match="sign_in_timeout"):
                mp.bind(ip="0").bind(sign_in_timeout=timeout)  # type: ignore[arg-type]
        assert counts(mp) == (0, 0, 0, 0, 0)
    assert emulator.requests() == []


async def test_refused_identity_event_is_counted_reported_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    emulator = Emulator(IdMerge.ORIGINAL)
    seen: list[tuple[list[LostRecord], DropReason]] = []
    async with emulator.client(on_drop=lambda records, reason: seen.append((records, reason))) as mp:
        # The batch, and then its first half.
        emulator.fail_next(400, path="/track", times=2)
        await mp.identify("maya", ANON, deferred=True)
        await mp.track("maya", "After")
    assert names(emulator) == ["After"]
    assert counts(mp) == (0, 0, 1, 0, 1)
    ((records, reason),) = seen
    assert (records[0].kind, reason) == ("identity", DropReason.REJECTED)
    assert records[0].payload == {
        "event": "$identify",
        "properties": {"$identified_id": "maya", "$anon_id": ANON},
    }
    events = [record.mixpanel["event"] for record in caplog.records if hasattr(record, "mixpanel")]
    assert "records_lost" in events
    assert "maya" not in caplog.text


@pytest.mark.parametrize("has_spool", [False, True])
async def test_records_of_a_lost_batch_are_reported_by_kind(path: Path, has_spool: bool) -> None:
    emulator = Emulator(IdMerge.ORIGINAL)
    seen: list[tuple[str, str]] = []

    def on_drop(records: list[LostRecord], _: DropReason) -> None:
        seen.extend((record.kind, (record.payload or {})["event"]) for record in records)

    async with emulator.client(on_drop=on_drop, spool=SqliteSpool(path) if has_spool else None) as mp:
        emulator.fail_next(501, path="/track")
        await mp.track(ANON, "Before")
        await mp.identify("maya", ANON, deferred=True)
    assert sorted(seen) == [("events", "Before"), ("identity", "$identify")]
    assert (mp.stats().failed, counts(mp)) == (2, (0, 0, 1, 0, 1))
    assert [one.records for one in emulator.requests()] == [0]


@pytest.mark.parametrize("system", [IdMerge.ORIGINAL, IdMerge.LEGACY])
async def test_backlog_of_sign_ups_needs_few_requests(system: IdMerge) -> None:
    emulator = Emulator(system)
    emulator.fail_next(503, times=100_000)
    expected = []
    async with emulator.client(id_merge=system, batching=BatchPolicy(max_events=100), retry=QUICK) as mp:
        for number in range(200):
            visitor = mp.bind(device_id=mp.new_device_id())
            await visitor.track(f"Viewed {number}")
            await visitor.sign_in(f"user {number}", f"Signed up {number}", is_new=True, deferred=True)
            await visitor.people_set({"plan": "free"})
            verb = "$identify" if system is IdMerge.ORIGINAL else "$create_alias"
            expected += [f"Viewed {number}", verb, f"Signed up {number}"]
        emulator.stop_faults()
    assert names(emulator) == expected
    assert counts(mp) == (0, 0, 200, 200, 0)
    assert all(entry["outcome"] == "merged" for entry in emulator.identity_log())
    assert len([one for one in emulator.requests() if one.status == 200]) < 40


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_refused_merge_does_not_hold_up_events(status: int) -> None:
    emulator = Emulator(IdMerge.ORIGINAL)
    async with emulator.client() as mp:
        emulator.fail_next(status, times=100, path="/import")
        await mp.merge(None, "maya", "old-account", deferred=True)
        await mp.track("maya", "After")
        assert (await mp.flush(5.0)).delivered == 1
    assert counts(mp) == (0, 0, 1, 0, 1)


@pytest.mark.parametrize("overflow", [Overflow.DROP_NEWEST, Overflow.RAISE])
async def test_full_queue_refuses_a_deferred_call(overflow: Overflow) -> None:
    emulator = Emulator(IdMerge.ORIGINAL)
    full = BatchPolicy(max_pending_events=1, linger=3600.0)
    async with emulator.client(batching=full, overflow=overflow, id_merge=IdMerge.ORIGINAL) as mp:
        await mp.track("visitor", "Before")
        with pytest.raises(QueueFullError):
            await mp.alias("maya", "visitor", deferred=True)
        with pytest.raises(QueueFullError):
            await mp.identify("maya", ANON, deferred=True)
        with pytest.raises(QueueFullError):
            await mp.merge(None, "maya", "old-account", deferred=True)
        assert counts(mp) == (0, 0, 0, 0, 0)
        assert mp.stats().losses == {}


@pytest.mark.parametrize("sign_in_timeout", [None, 0.5])
async def test_sign_in_is_repeated_if_the_queue_had_no_room(sign_in_timeout: float | None) -> None:
    emulator = Emulator(IdMerge.ORIGINAL)
    full = BatchPolicy(max_pending_events=1, linger=3600.0)
    async with emulator.client(batching=full, id_merge=IdMerge.ORIGINAL) as mp:
        visitor = mp.bind(device_id=ANON, sign_in_timeout=sign_in_timeout)
        await visitor.track("Before")
        if sign_in_timeout is None:
            with pytest.raises(QueueFullError):
                await visitor.sign_in("maya", deferred=True)
        else:
            await visitor.sign_in("maya", deferred=True)
        links = [visitor.link]
        await mp.flush()
        await visitor.sign_in("maya")
        links.append(visitor.link)
        assert [link is None for link in links] == [True, False]
    assert emulator.cluster("maya") == {"maya", ANON}


async def test_newer_record_evicts_a_deferred_call_which_is_counted() -> None:
    emulator = Emulator(IdMerge.ORIGINAL)
    full = BatchPolicy(max_pending_events=1, linger=3600.0)
    async with emulator.client(batching=full, overflow=Overflow.DROP_OLDEST) as mp:
        await mp.track("visitor", "Before")
        await mp.alias("maya", "visitor", deferred=True)
        await mp.track("visitor", "After")
        assert counts(mp) == (0, 0, 1, 0, 1)
        assert mp.stats().losses == {"queue_full": 2}


async def test_awaited_calls_are_counted() -> None:
    emulator = Emulator(IdMerge.ORIGINAL)
    async with emulator.client(identity_retry=RetryPolicy(attempts=2, initial=0.0, maximum=0.0)) as mp:
        assert counts(mp) == (0, 0, 0, 0, 0)
        await mp.alias("maya", "visitor")
        emulator.fail_next(503, times=2)
        with pytest.raises(ApiError):
            await mp.identify("maya", ANON)
        assert counts(mp) == (1, 1, 0, 0, 0)
        assert mp.stats().accepted == 0


async def test_timeout_ends_an_awaited_call() -> None:
    emulator = Emulator(IdMerge.ORIGINAL)
    async with emulator.client() as mp:
        emulator.break_next("hang", times=100)
        with pytest.raises(TransportError), anyio.fail_after(5.0):
            await mp.alias("maya", "visitor", timeout=0.05)


@pytest.mark.parametrize("credentials", [None, ACCOUNT], ids=["token", "service account"])
@pytest.mark.parametrize("in_memory", [100_000, 2], ids=["in memory", "most only on disk"])
async def test_order_survives_a_restart(path: Path, in_memory: int, credentials: Any) -> None:
    emulator = Emulator(IdMerge.ORIGINAL)
    emulator.fail_next(503, times=100_000)
    batching = BatchPolicy(max_events=3, max_pending_events=in_memory)
    account: Any = {} if credentials is None else {"credentials": credentials}
    mp = emulator.client(spool=SqliteSpool(path), shutdown_timeout=0.02, batching=batching, **account)
    expected = []
    for number in range(4):
        for name in (f"Before {number}", f"Also before {number}"):
            await mp.track(f"visitor {number}", name)
        await mp.alias(f"user {number}", f"visitor {number}", deferred=True)
        await mp.merge(None, f"user {number}", f"old user {number}", deferred=True)
        expected += [f"Before {number}", f"Also before {number}", "$create_alias", "$merge"]
    # An imported event of the same name is an ordinary event.
    await mp.track("somebody", "$identify", {"$identified_id": "somebody", "$anon_id": ANON})
    await mp.aclose()
    assert counts(mp) == (0, 0, 8, 0, 0)
    assert mp.stats().pending == 17
    emulator.stop_faults()
    async with emulator.client(spool=SqliteSpool(path), batching=batching, **account) as again:
        assert again.stats().recovered == 17
    assert names(emulator) == [*expected, "$identify"]
    if credentials is None:
        assert [one.path for one in emulator.requests() if one.status == 200].count("/import") == 4
    assert counts(again) == (0, 0, 0, 8, 0)
    assert emulator.cluster("user 3") == {"user 3", "visitor 3", "old user 3"}


@pytest.mark.parametrize("fault", ["hang", "drop", 503, 429, 401])
@pytest.mark.parametrize("system", [IdMerge.ORIGINAL, IdMerge.LEGACY])
async def test_sign_in_with_a_timeout_queues_the_call(
    fault: Any, system: IdMerge, caplog: pytest.LogCaptureFixture
) -> None:
    emulator = Emulator(system)
    if isinstance(fault, int):
        emulator.fail_next(fault, times=100_000)
    else:
        emulator.break_next(fault, times=100_000)
    async with emulator.client(id_merge=system, retry=QUICK, timeout=1.0) as mp:
        for number in range(2):
            visitor = mp.bind(device_id=mp.new_device_id(), sign_in_timeout=0.05)
            with anyio.fail_after(3.0):
                await visitor.bind(ip="203.0.113.9").sign_in(f"user {number}", is_new=True)
        assert counts(mp) == (0, 2, 2, 0, 0)
        emulator.stop_faults()
    assert counts(mp) == (0, 2, 2, 2, 0)
    verb = "$identify" if system is IdMerge.ORIGINAL else "$create_alias"
    assert names(emulator) == [verb, "Signed up", verb, "Signed up"]
    assert all(entry["outcome"] == "merged" for entry in emulator.identity_log())
    logged = [
        record for record in caplog.records if getattr(record, "mixpanel", {}).get("event") == "identity_deferred"
    ]
    assert len(logged) == 1


async def test_sign_in_with_a_timeout_survives_the_queue_and_a_closed_client(caplog: pytest.LogCaptureFixture) -> None:
    emulator = Emulator(IdMerge.ORIGINAL)
    full = BatchPolicy(max_pending_events=1, linger=3600.0)
    mp = emulator.client(id_merge=IdMerge.ORIGINAL, batching=full, overflow=Overflow.RAISE, retry=QUICK)
    await mp.track("visitor", "Before")
    emulator.fail_next(503, times=100_000)
    visitor = mp.bind(device_id=ANON, sign_in_timeout=0.1)
    await visitor.sign_in("maya")
    # Without the link, the next sign-in joins the ids.
    assert (visitor.user_id, visitor.link) == ("maya", None)
    # Not also that the call is queued.
    logged = [getattr(record, "mixpanel", {}).get("event") for record in caplog.records]
    assert [event for event in logged if event in {"identity_deferred", "sign_in_failed"}] == ["sign_in_failed"]
    emulator.stop_faults()
    await mp.aclose()
    caplog.clear()
    late = mp.bind(device_id=ANON, sign_in_timeout=0.1)
    await late.sign_in("maya")
    assert (late.user_id, late.link) == ("maya", None)
    with pytest.raises(ValidationError):
        await late.sign_in(7)  # type: ignore[arg-type]


async def test_sign_in_with_a_timeout_sends_at_once_if_mixpanel_responds() -> None:
    emulator = Emulator(IdMerge.ORIGINAL)
    async with emulator.client(id_merge=IdMerge.ORIGINAL, batching=LONG) as mp:
        visitor = mp.bind(device_id=ANON, sign_in_timeout=2.0)
        await visitor.sign_in("maya")
        assert emulator.cluster("maya") == {"maya", ANON}
        assert counts(mp) == (1, 0, 0, 0, 0)
        # A visitor whose cookie holds the user's own id has nothing to join.
        await mp.bind(device_id=ANON).sign_in(ANON)
        assert counts(mp) == (1, 0, 0, 0, 0)


async def test_log_of_deferred_calls_names_no_id(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "mixpanel_async")
    emulator = Emulator(IdMerge.ORIGINAL)
    emulator.fail_next(503, times=3)
    async with emulator.client(retry=QUICK) as mp:
        await mp.identify("canary-user", ANON, deferred=True)
    assert emulator.cluster(ANON) == {"canary-user", ANON}
    assert "canary-user" not in caplog.text
