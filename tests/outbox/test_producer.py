"""Client with an outbox: what it hands over, and what it does with an engine that is away, full, slow or refuses."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import anyio
import pytest
from outboxes import AWAY, LOST_ANSWER, REFUSED, ScriptedOutbox, count_stored, entries, stored, until

from mixpanel_async import (
    AsyncMixpanel,
    BatchPolicy,
    ClientClosedError,
    ConfigurationError,
    Delivery,
    DropReason,
    LostRecord,
    OutboxError,
    Overflow,
    QueueFullError,
    RetryPolicy,
    ServiceAccountCredentials,
    SqliteSpool,
    ValidationError,
)
from mixpanel_async.emulator import Emulator
from mixpanel_async.outbox import MemoryOutbox

pytestmark = pytest.mark.anyio

AT_ONCE = RetryPolicy(initial=0.0, maximum=0.0)
NO_LINGER = BatchPolicy(linger=0.0)
NEVER_BY_TIME = BatchPolicy(linger=3600.0)
DEVICE = "2fd5dc29-4ab3-4eae-8ec4-b2a9d7f4e0a1"
FULL_POLICIES = [Overflow.DROP_NEWEST, Overflow.DROP_OLDEST, Overflow.RAISE, Overflow.WAIT]


def client(outbox: Any, **options: Any) -> AsyncMixpanel:
    return AsyncMixpanel("token", outbox=outbox, **{"retry": AT_ONCE, **options})


def names(records: list[dict[str, Any]]) -> list[str]:
    return [record["event"] for record in records]


def adds(records: list[dict[str, Any]]) -> list[int]:
    return [record["$add"]["n"] for record in records]


# What is handed over


async def test_batch_of_events_is_one_entry_without_the_token() -> None:
    outbox = ScriptedOutbox()
    async with client(outbox) as mp:
        for number in range(500):
            await mp.track("user", f"Event {number}")
        await mp.flush()
    (one,) = await entries(outbox)
    assert (one.entry.lane, one.entry.records, one.entry.sequence, one.entry.is_compressed) == (
        "events",
        500,
        None,
        True,
    )
    assert b"token" not in one.entry.body
    assert names((await stored(outbox))["events"]) == [f"Event {number}" for number in range(500)]
    assert (await stored(outbox))["events"][0]["properties"]["token"] == "token"
    assert mp.stats().delivered == 500


async def test_defaults_hand_over_500_events_at_once() -> None:
    outbox = ScriptedOutbox()
    async with client(outbox) as mp:
        for _ in range(1_000):
            await mp.track("user", "Event")
        await mp.flush()
    assert max(put[0].records for put in outbox.puts) == 500


async def test_own_batching_is_used() -> None:
    outbox = ScriptedOutbox()
    async with client(outbox, batching=BatchPolicy(max_events=2)) as mp:
        for _ in range(4):
            await mp.track("user", "Event")
    assert [put[0].records for put in outbox.puts] == [2, 2]


async def test_updates_are_split_over_partitions_in_one_put_and_keep_their_order() -> None:
    outbox = ScriptedOutbox(partitions=4)
    async with client(outbox, batching=NEVER_BY_TIME) as mp:
        for number in range(40):
            await mp.people_increment(f"user-{number % 10}", {"n": number})
            await mp.group_set("company", f"group-{number % 10}", {"n": number})
    assert sorted(len(put) for put in outbox.puts) == [4, 4]
    found = await stored(outbox)
    assert {lane.partition(":")[0] for lane in found} == {"people", "groups"}
    for user in range(10):
        lanes = [
            lane for lane, items in found.items() if any(one.get("$distinct_id") == f"user-{user}" for one in items)
        ]
        assert len(lanes) == 1
        mine = [one for one in found[lanes[0]] if one["$distinct_id"] == f"user-{user}"]
        assert adds(mine) == [user, user + 10, user + 20, user + 30]
    for one in await entries(outbox):
        is_people = one.entry.lane.startswith("people")
        assert one.entry.non_idempotent == (tuple(range(one.entry.records)) if is_people else ())
        assert one.entry.sequence is not None


async def test_at_least_once_lets_workers_repeat_updates() -> None:
    outbox = MemoryOutbox()
    async with client(outbox, batching=BatchPolicy(at_least_once=True)) as mp:
        await mp.people_increment("user", {"n": 1})
    (one,) = await entries(outbox)
    assert one.entry.non_idempotent == ()


async def test_imports_have_their_lane_and_old_events_are_taken() -> None:
    outbox = MemoryOutbox()
    async with client(outbox) as mp:
        await mp.import_data(None, "user", "Imported", 1_600_000_000)
        await mp.track("user", "Old", time=1_600_000_000)
    found = await stored(outbox)
    assert (names(found["imports"]), names(found["events"])) == (["Imported"], ["Old"])


async def test_imports_have_their_lane_also_if_the_client_has_a_service_account() -> None:
    outbox = MemoryOutbox()
    async with client(outbox, credentials=ServiceAccountCredentials("account", "canary", "1")) as mp:
        await mp.import_data(None, "user", "Imported", 1_600_000_000)
        await mp.track("user", "Event")
    found = await stored(outbox)
    assert (names(found["imports"]), names(found["events"])) == (["Imported"], ["Event"])


async def test_events_endpoint_track_refuses_old_events() -> None:
    async with client(MemoryOutbox(), events_endpoint="track") as mp:
        with pytest.raises(ValidationError, match="five days"):
            await mp.track("user", "Old", time=1_600_000_000)


async def test_large_batch_is_packed_in_a_thread() -> None:
    outbox = MemoryOutbox()
    async with client(outbox, batching=BatchPolicy(linger=3600.0, max_bytes=5_000_000)) as mp:
        for number in range(40):
            await mp.track("user", "Event", {"number": number, "text": os.urandom(8_000).hex()})
    assert await count_stored(outbox) == 40


async def test_outbox_is_shared_by_clients_of_one_project() -> None:
    outbox = MemoryOutbox()
    async with client(outbox) as one, client(outbox) as two:
        await one.people_increment("user", {"n": 1})
        await two.people_increment("user", {"n": 2})
        await one.flush()
        await two.flush()
    assert await count_stored(outbox) == 2


async def test_delivered_and_on_delivered_mean_handed_over() -> None:
    seen: list[Delivery] = []
    async with client(MemoryOutbox(), on_delivered=seen.append) as mp:
        await mp.track("user", "Event")
        assert (await mp.flush()).delivered == 1
    assert [(one.kind, one.records, one.attempts) for one in seen] == [("events", 1, 1)]
    assert mp.stats().requests == 1


async def test_hooks_run_at_the_call() -> None:
    outbox, lost = MemoryOutbox(), []

    def hook(message: dict[str, Any]) -> dict[str, Any] | None:
        if message["event"] == "Bad":
            raise ValueError("canary")
        return None if message["event"] == "Private" else message

    async with client(outbox, before_send=hook, on_drop=lambda records, reason: lost.append(reason)) as mp:
        for name in ("Good", "Bad", "Private"):
            await mp.track("user", name)
    assert names((await stored(outbox))["events"]) == ["Good"]
    assert sorted(reason.value for reason in lost) == ["before_send", "before_send_failed"]
    assert (mp.stats().delivered, mp.stats().dropped) == (1, 2)


# Identity calls


async def test_identity_calls_go_to_mixpanel_by_default() -> None:
    emulator, outbox = Emulator(), MemoryOutbox()
    async with emulator.client(outbox=outbox) as mp:
        await mp.alias("user", DEVICE)
        await mp.track_immediate("user", "Now")
    assert await count_stored(outbox, mp.token) == 0
    assert [request.path for request in emulator.requests()] == ["/track", "/track"]


async def test_deferred_identity_calls_are_handed_over_in_order_after_earlier_events() -> None:
    outbox = ScriptedOutbox()
    first_put, go = anyio.Event(), anyio.Event()

    async def slow() -> None:
        first_put.set()
        await go.wait()

    outbox.faults = [slow]
    async with client(outbox, batching=BatchPolicy(max_events=1, max_in_flight=4)) as mp:
        await mp.track("device", "Before")
        await first_put.wait()
        await mp.alias("user-1", "device", deferred=True)
        await mp.identify("user-2", DEVICE, deferred=True)
        await mp.merge(None, "user-1", "user-2", deferred=True)
        await mp.track("user-1", "After")
        await anyio.wait_all_tasks_blocked()
        assert len(outbox.puts) == 1
        go.set()
        await mp.flush()
    assert [put[0].lane for put in outbox.puts][0::4] == ["events", "events"]
    found = await stored(outbox)
    assert names(found["identity"]) == ["$create_alias", "$identify", "$merge"]
    assert names(found["events"]) == ["Before", "After"]
    sequences = [one.entry.sequence for one in await entries(outbox) if one.entry.lane == "identity"]
    assert sequences == sorted(number for number in sequences if number is not None)
    assert mp.stats().identity.delivered == 3


async def test_project_secrets_are_refused_because_an_outbox_does_not_store_them() -> None:
    outbox = MemoryOutbox()
    async with client(outbox) as mp:
        with pytest.raises(ConfigurationError, match="service account") as error:
            await mp.import_data(None, "user", "Event", 1_600_000_000, api_secret="canary")
        assert "canary" not in str(error.value)
        with pytest.raises(ConfigurationError, match="service account"):
            await mp.merge(None, "one", "two", api_secret="canary", deferred=True)
    assert await count_stored(outbox) == 0


# Failures of the engine


@pytest.mark.parametrize("fault", [AWAY, LOST_ANSWER], ids=["away", "lost answer"])
async def test_failed_put_is_repeated_and_no_update_is_stored_twice(fault: OutboxError) -> None:
    outbox = ScriptedOutbox(partitions=2)
    outbox.faults = [fault, fault]
    async with client(outbox, batching=NEVER_BY_TIME) as mp:
        for number in range(10):
            await mp.people_increment(f"user-{number}", {"n": number})
        result = await mp.flush()
    assert (result.delivered, result.failed, result.pending) == (10, 0, 0)
    found = await stored(outbox)
    assert sorted(adds([*found["people:0"], *found["people:1"]])) == [*range(10)]
    assert len({(entry.lane, entry.sequence) for put in outbox.puts for entry in put}) == 2
    assert mp.stats().retries == 2
    assert mp.stats().last_error == f"outbox: {fault.message}"


async def test_lost_answer_stores_events_again_with_the_same_insert_id() -> None:
    outbox = ScriptedOutbox()
    outbox.faults = [LOST_ANSWER]
    async with client(outbox) as mp:
        await mp.track("user", "Event")
    one, two = (await stored(outbox))["events"]
    assert one == two


async def test_engine_that_is_away_at_the_start_is_tried_again() -> None:
    outbox = ScriptedOutbox()
    outbox.open_faults = [AWAY, AWAY]
    async with client(outbox) as mp:
        await mp.track("user", "Event")
        assert (await mp.flush()).delivered == 1
    assert outbox.open_writers == 0


async def test_full_outbox_takes_what_fits_and_the_rest_later() -> None:
    outbox = ScriptedOutbox(partitions=8, max_records=1)
    async with client(outbox, batching=NEVER_BY_TIME) as mp:
        for number in range(8):
            await mp.people_increment(f"user-{number}", {"n": number})
        result = await mp.flush(timeout=0.05)
        assert (result.delivered, result.failed) == (1, 0)
        assert result.last_error == "outbox: the outbox is full"
        taken: list[int] = []
        while len(taken) < 8:
            taken += [number for lane in (await drain(outbox)).values() for number in adds(lane)]
            await mp.flush(timeout=0.01)
    assert sorted(taken) == [*range(8)]


async def drain(outbox: ScriptedOutbox) -> dict[str, list[dict[str, Any]]]:
    """Take everything out of the queue."""
    return await stored(outbox, is_settled=True)


async def test_refusing_engine_keeps_the_records_and_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    outbox = ScriptedOutbox()
    outbox.faults = [REFUSED]
    async with client(outbox, shutdown_timeout=0.0) as mp:
        await mp.track("user", "Event")
        result = await mp.flush(timeout=0.05)
        assert result.pending == 1
        assert "WRONGPASS" in (result.last_error or "")
    (line,) = [one for one in caplog.records if getattr(one, "mixpanel", {}).get("event") == "configuration_refused"]
    assert (line.levelno, line.getMessage().rpartition("check ")[2]) == (logging.ERROR, "the outbox")


async def test_engine_that_does_not_answer_is_left_after_timeout() -> None:
    outbox = ScriptedOutbox()
    outbox.faults = [anyio.sleep_forever]
    async with client(outbox, timeout=0.02) as mp:
        await mp.people_increment("user", {"n": 1})
        assert (await mp.flush()).delivered == 1
        assert mp.stats().last_error == "outbox: the outbox did not answer within 0.02 s"
    assert await count_stored(outbox) == 1


@pytest.mark.parametrize("overflow", FULL_POLICIES)
@pytest.mark.parametrize("state", ["away", "full", "slow"])
async def test_overflow_policy_applies_while_the_engine_takes_nothing(overflow: Overflow, state: str) -> None:
    outbox = ScriptedOutbox()
    back, accepted, refused = anyio.Event(), 0, 0
    lost: list[LostRecord] = []

    async def take_nothing() -> None:
        if state == "slow":
            await back.wait()
            return
        raise AWAY

    outbox.faults = [take_nothing] * 100_000
    if state == "full":
        outbox = ScriptedOutbox(max_bytes=1)
    policy = BatchPolicy(linger=0.0, max_pending_events=20, wait_timeout=0.02)
    slow_retry = RetryPolicy(initial=0.01, maximum=0.01)

    def on_drop(records: list[LostRecord], reason: DropReason) -> None:
        assert reason in (DropReason.QUEUE_FULL, DropReason.CLOSED)
        lost.extend(records)

    async with client(
        outbox, overflow=overflow, batching=policy, retry=slow_retry, on_drop=on_drop, shutdown_timeout=0.05
    ) as mp:
        for number in range(25):
            try:
                await mp.track("user", f"Event {number}")
                accepted += 1
            except QueueFullError:  # noqa: PERF203  each call is a case
                refused += 1
        assert mp.stats().pending == 20
        assert (accepted, refused) == ((20, 5) if overflow in (Overflow.RAISE, Overflow.WAIT) else (25, 0))
        outbox.faults.clear()
        back.set()
        if state != "full":
            await mp.flush()
    stats = mp.stats()
    assert stats.accepted == accepted == stats.delivered + stats.dropped
    assert await count_stored(outbox) == stats.delivered == (0 if state == "full" else 20)
    assert len(lost) == stats.dropped


@pytest.mark.parametrize("seed", range(6))
async def test_random_faults_neither_lose_nor_repeat_a_record(seed: int) -> None:
    random, outbox = Random(seed), ScriptedOutbox(partitions=3, max_records=60)
    kinds: list[Any] = [None, AWAY, LOST_ANSWER, anyio.sleep_forever, REFUSED]
    outbox.faults = random.choices(kinds, weights=[6, 3, 3, 1, 0.2], k=60)
    outbox.open_faults = random.choices(kinds[:3], k=2)
    added = tracked = 0
    taken: dict[str, list[dict[str, Any]]] = {}
    policy = BatchPolicy(linger=0.0, max_events=random.randint(1, 20), max_pending_events=40)
    async with client(outbox, batching=policy, timeout=0.02, overflow=Overflow.DROP_OLDEST, shutdown_timeout=0.2) as mp:
        for _ in range(40):
            for _ in range(random.randint(0, 6)):
                await mp.people_increment(f"user-{random.randint(0, 9)}", {"n": added})
                added += 1
            for _ in range(random.randint(0, 6)):
                await mp.track("user", f"Event {tracked}")
                tracked += 1
            with anyio.move_on_after(random.choice([0.0, 0.001, 0.005])):
                await mp.flush()
            if random.random() < 0.3:
                for lane, items in (await drain(outbox)).items():
                    taken.setdefault(lane, []).extend(items)
    for lane, items in (await drain(outbox)).items():
        taken.setdefault(lane, []).extend(items)
    stats = mp.stats()
    events = names(taken.pop("events", []))
    updates = [number for lane in taken.values() for number in adds(lane)]
    assert stats.accepted == added + tracked
    # Each update is stored once. What is not known to be stored is counted as lost or uncertain.
    assert len(updates) == len({*updates})
    stored_once = len(updates) + len({*events})
    assert stats.delivered <= stored_once <= stats.delivered + stats.uncertain + stats.dropped
    for items in taken.values():
        for user in {item["$distinct_id"] for item in items}:
            mine = [item["$add"]["n"] for item in items if item["$distinct_id"] == user]
            assert mine == sorted(mine)


# End of the client


async def test_aclose_hands_over_what_waits() -> None:
    outbox = ScriptedOutbox()
    mp = client(outbox, batching=NEVER_BY_TIME)
    await mp.track("user", "Event")
    await mp.people_set("user", {"n": 1})
    assert (await mp.aclose()).delivered == 2
    assert await count_stored(outbox) == 2
    assert outbox.open_writers == 0


async def test_aclose_ends_by_its_deadline_and_reports_what_may_be_stored() -> None:
    outbox, lost = ScriptedOutbox(), {}
    outbox.faults = [anyio.sleep_forever] * 3

    def on_drop(records: list[LostRecord], reason: DropReason) -> None:
        lost[reason] = [one.kind for one in records]

    mp = client(outbox, batching=NO_LINGER, shutdown_timeout=0.02, on_drop=on_drop)
    await mp.track("user", "Event")
    await mp.people_increment("user", {"n": 1})
    await until(lambda: len(outbox.puts) == 2)
    result = await mp.aclose()
    # An event may be tracked again without harm. An increment may not.
    assert lost == {DropReason.CLOSED: ["events"], DropReason.UNCERTAIN: ["people"]}
    assert result.failed == 2
    with pytest.raises(ClientClosedError):
        await mp.track("user", "Event")


async def test_unanswered_update_is_uncertain_and_an_answered_one_is_dropped() -> None:
    for faults, reason in (([LOST_ANSWER, AWAY], "uncertain"), ([AWAY, AWAY], "exhausted")):
        outbox = ScriptedOutbox()
        outbox.faults = [*faults]
        async with client(outbox, retry=RetryPolicy(attempts=2, initial=0.0, maximum=0.0)) as mp:
            await mp.people_increment("user", {"n": 1})
            await mp.flush()
        assert mp.stats().losses == {reason: 1}


async def test_sender_that_is_cancelled_during_a_put_repeats_it() -> None:
    outbox = ScriptedOutbox(partitions=1)

    async def store_and_hang() -> None:
        await writer.put(outbox.puts[-1])
        await anyio.sleep_forever()

    outbox.faults = [store_and_hang]
    async with client(outbox, batching=NO_LINGER, timeout=0.05) as mp:
        writer = outbox.memory.writer("token", outbox.producers[0])
        await writer.open()
        await mp.people_increment("user", {"n": 1})
        await mp.flush()
    assert adds((await stored(outbox))["people:0"]) == [1]
    assert mp.stats().delivered == 1


async def test_configuration_error_of_the_engine_is_raised_at_the_start() -> None:
    outbox = MemoryOutbox()
    async with client(outbox) as mp:
        await mp.track("user", "Event")
    with pytest.raises(ConfigurationError, match="another project"):
        async with AsyncMixpanel("other", outbox=outbox):
            pass


async def test_configuration_error_at_the_first_put_keeps_the_records() -> None:
    outbox = MemoryOutbox()
    async with client(outbox) as mp:
        await mp.track("user", "Event")
    other = AsyncMixpanel("other", outbox=outbox, shutdown_timeout=0.0)
    await other.track("user", "Event")
    result = await other.flush(timeout=0.05)
    assert result.pending == 1
    assert "another project" in (result.last_error or "")
    await other.aclose()


# Confirmed records


async def test_confirmed_call_returns_when_the_engine_has_the_record() -> None:
    outbox = ScriptedOutbox(confirm=True)
    reached, go = anyio.Event(), anyio.Event()

    async def slow() -> None:
        reached.set()
        await go.wait()

    outbox.faults = [slow]
    done: list[str] = []

    async def call(name: str) -> None:
        await mp.track("user", name)
        done.append(name)

    async with client(outbox) as mp, anyio.create_task_group() as tasks:
        tasks.start_soon(call, "one")
        await reached.wait()
        assert done == []
        go.set()
        await until(lambda: done == ["one"])
        assert mp.stats().delivered == await count_stored(outbox) == 1


async def test_confirmed_calls_share_entries() -> None:
    outbox = ScriptedOutbox(confirm=True)
    async with client(outbox) as mp, anyio.create_task_group() as tasks:
        for number in range(300):
            tasks.start_soon(mp.track, "user", f"Event {number}")
            tasks.start_soon(mp.people_increment, f"user-{number}", {"n": number})
    assert mp.stats().delivered == await count_stored(outbox) == 600
    assert len(outbox.puts) < 40


async def test_confirmed_identity_call_waits_too() -> None:
    outbox = ScriptedOutbox(confirm=True)
    async with client(outbox) as mp:
        await mp.alias("user", "device", deferred=True)
        assert (await stored(outbox))["identity"][0]["event"] == "$create_alias"


async def test_confirmed_call_raises_after_timeout_and_the_record_stays_queued() -> None:
    outbox = ScriptedOutbox(confirm=True)
    outbox.faults = [anyio.sleep_forever]
    async with client(outbox, timeout=0.02) as mp:
        with pytest.raises(OutboxError, match="still queued") as error:
            await mp.track("user", "Event")
        assert error.value.uncertain
    assert await count_stored(outbox) == 1


async def test_confirmed_call_raises_if_its_record_is_lost() -> None:
    outbox = ScriptedOutbox(confirm=True)
    outbox.faults = [AWAY]
    async with client(outbox, retry=RetryPolicy(attempts=1)) as mp:
        with pytest.raises(OutboxError, match="exhausted") as error:
            await mp.track("user", "Event")
        assert not error.value.uncertain


async def test_closing_ends_confirmed_calls() -> None:
    outbox = ScriptedOutbox(confirm=True)
    outbox.faults = [anyio.sleep_forever]
    mp = client(outbox, shutdown_timeout=0.02)

    async def call() -> None:
        with pytest.raises(ClientClosedError, match="before the outbox"):
            await mp.track("user", "Event")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await until(lambda: outbox.puts)
        await mp.aclose()


async def test_cancelled_confirmed_call_leaves_its_record_queued() -> None:
    outbox = ScriptedOutbox(confirm=True)
    go = anyio.Event()
    outbox.faults = [go.wait]
    async with client(outbox) as mp:
        with anyio.move_on_after(0.01):
            await mp.track("user", "Event")
        assert mp.stats().pending == 1
        go.set()
    assert await count_stored(outbox) == mp.stats().delivered == 1


# Spool below an outbox


async def test_spool_keeps_what_the_outbox_does_not_take(tmp_path: Path) -> None:
    outbox, spool = ScriptedOutbox(), SqliteSpool(tmp_path / "spool.db")
    outbox.faults = [AWAY] * 1_000
    options: dict[str, Any] = {"spool": spool, "batching": NO_LINGER, "shutdown_timeout": 0.02}
    async with client(outbox, retry=RetryPolicy(initial=0.01, maximum=0.01), **options) as mp:
        for number in range(10):
            await mp.track("user", f"Event {number}")
            await mp.people_increment("user", {"n": number})
    assert mp.stats().pending == 20
    outbox.faults.clear()
    async with client(outbox, **options) as mp:
        await until(lambda: mp.stats().recovered == 20)
        await mp.flush()
    found = await stored(outbox)
    assert names(found.pop("events")) == [f"Event {number}" for number in range(10)]
    ((_, updates),) = found.items()
    assert adds(updates) == [*range(10)]
    assert mp.stats().on_disk == 0


async def test_unanswered_update_in_a_spool_is_not_handed_over_by_the_next_process(tmp_path: Path) -> None:
    outbox, spool = ScriptedOutbox(), SqliteSpool(tmp_path / "spool.db")
    outbox.faults = [LOST_ANSWER, *[AWAY] * 1_000]
    options: dict[str, Any] = {"spool": spool, "batching": NO_LINGER, "shutdown_timeout": 0.05}
    async with client(outbox, retry=RetryPolicy(initial=0.005, maximum=0.005), **options) as mp:
        await mp.people_increment("user", {"n": 1})
        await until(lambda: len(outbox.puts) > 2)
    outbox.faults.clear()
    async with client(outbox, **options) as mp:
        await until(lambda: mp.stats().accepted)
        await mp.flush()
    assert mp.stats().losses == {"uncertain": 1}
    assert await count_stored(outbox) == 1


# Options


@pytest.mark.parametrize("outbox", ["redis://localhost", MemoryOutbox, object()], ids=["url", "class", "object"])
async def test_outbox_that_is_no_engine_is_refused(outbox: object) -> None:
    with pytest.raises(ConfigurationError, match="outbox must be an engine such as RedisOutbox"):
        AsyncMixpanel("token", outbox=outbox)  # type: ignore[arg-type]


async def test_confirming_outbox_excludes_a_spool(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="confirm=True excludes spool="):
        client(MemoryOutbox(confirm=True), spool=SqliteSpool(tmp_path / "spool.db"))


async def test_disabled_client_opens_nothing() -> None:
    outbox = ScriptedOutbox()
    async with AsyncMixpanel("", outbox=outbox, enabled=False) as mp:
        await mp.track("user", "Event")
        await mp.flush()
    assert outbox.producers == []


# Event loops, threads and processes


@pytest.mark.parametrize("ticks", range(8))
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
def test_event_loop_that_ends_at_any_step_repeats_no_update(anyio_backend: str, ticks: int) -> None:
    outbox = ScriptedOutbox(partitions=1)
    mp = client(outbox, batching=NO_LINGER)

    async def first() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(mp.people_increment, "user", {"n": 0})
            for _ in range(ticks):
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()

    async def second() -> None:
        for number in (1, 2, 3):
            await mp.people_increment("user", {"n": number})
        await mp.aclose()
        assert adds((await stored(outbox))["people:0"])[-3:] == [1, 2, 3]

    anyio.run(first, backend=anyio_backend)
    anyio.run(second, backend=anyio_backend)
    stats = mp.stats()
    assert (stats.pending, stats.accepted) == (0, stats.delivered)
    assert anyio.run(count_stored, outbox, backend=anyio_backend) == stats.delivered
    assert len({*outbox.producers}) == 1
    assert outbox.open_writers == 0


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_event_loop_that_ends_during_a_put_repeats_it_in_the_next(backend: str) -> None:
    outbox = ScriptedOutbox(partitions=1)
    mp = client(outbox, batching=NO_LINGER, loop_end_timeout=0.05)

    async def store_and_hang() -> None:
        writer = outbox.memory.writer("token", outbox.producers[0])
        await writer.open()
        await writer.put(outbox.puts[-1])
        await anyio.sleep_forever()

    async def first() -> None:
        outbox.faults = [store_and_hang]
        await mp.people_increment("user", {"n": 0})
        await until(lambda: outbox.puts)

    async def second() -> None:
        await mp.people_increment("user", {"n": 1})
        await mp.aclose()

    anyio.run(first, backend=backend)
    anyio.run(second, backend=backend)
    assert anyio.run(stored, outbox, backend=backend)["people:0"]
    assert mp.stats().delivered == anyio.run(count_stored, outbox, backend=backend) == 2
    assert outbox.open_writers == 0


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_forked_child_is_another_producer(backend: str) -> None:
    outbox = ScriptedOutbox()
    mp = client(outbox, batching=NEVER_BY_TIME)

    async def parent() -> None:
        await mp.people_increment("user", {"n": 0})
        await mp.flush()

    async def child() -> None:
        await mp.people_increment("user", {"n": 1})
        await mp.aclose()

    anyio.run(parent, backend=backend)
    mp.track_nowait("user", "Of the parent")
    pid = os.fork()
    if not pid:
        status = 1
        try:
            anyio.run(child, backend=backend)
            (add,) = [entry for put in outbox.puts[1:] for entry in put]
            status = 0 if len({*outbox.producers}) == 2 and add.records == 1 and mp.stats().delivered == 1 else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    anyio.run(mp.aclose, backend=backend)
    assert mp.stats().delivered == anyio.run(count_stored, outbox, backend=backend) == 2


@pytest.mark.parametrize("confirm", [False, True])
def test_calls_from_other_event_loops_and_blocking_calls_use_the_same_connection(*, confirm: bool) -> None:
    outbox = ScriptedOutbox(confirm=confirm)

    async def main() -> None:
        async with client(outbox) as mp:
            await mp.track("user", "Own")
            blocking: Callable[[], Any] = lambda: anyio.run(mp.track, "user", "Other")  # noqa: E731
            await anyio.to_thread.run_sync(blocking)
            await mp.flush()
            assert mp.stats().delivered == 2

    anyio.run(main)
    with client(outbox).in_thread() as mp:
        mp.track("user", "Blocking")
        if confirm:
            assert mp.stats().delivered == 1
    assert anyio.run(count_stored, outbox) == 3
    assert len(outbox.producers) == 2
