"""Workers that stop while Mixpanel or the outbox does not answer: what the next worker sends, and what is uncertain."""

from __future__ import annotations

from typing import Any

import anyio
import httpx
import pytest
from worker_samples import Stage, Wrapped, add_one, entry, in_virtual_time, put, running, set_value, wait_until

from mixpanel_async import BatchPolicy, OutboxError


@pytest.mark.parametrize(
    "answer",
    [httpx.ConnectError("refused"), httpx.Response(429), httpx.Response(413), httpx.Response(401)],
    ids=["refused", "429", "413", "401"],
)
def test_worker_that_stops_during_an_outage_leaves_its_updates_to_the_next(answer: Any) -> None:
    async def body(stage: Stage) -> None:
        people = [f"person-{at}" for at in range(12)]
        for at, person in enumerate(people):
            await put(stage.outbox, entry([add_one(person), set_value(person, 1)], f"people:{at % 4}"))
        stage.mixpanel.answers[:] = [answer] * 2 + [httpx.ConnectError("refused")] * 999
        for _ in range(3):
            async with stage.worker() as worker, running(worker):
                await anyio.sleep(5)
                assert worker.stats().requests > 0
            assert worker.stats().uncertain == 0
        stage.mixpanel.answers.clear()
        stage.mixpanel.requests.clear()
        async with stage.worker() as last:
            assert await last.drain()
        added = [one["$distinct_id"] for one in stage.mixpanel.updates() if "$add" in one]
        assert sorted(added) == sorted(people)
        assert stage.counters == {"in": 24, "out": 24}

    in_virtual_time(body)


def test_worker_that_runs_again_after_an_outage_sends_its_updates_once() -> None:
    async def body(stage: Stage) -> None:
        await put(stage.outbox, entry([add_one("ada")], "people:0"))
        stage.mixpanel.answers[:] = [httpx.ConnectError("refused")] * 99
        async with stage.worker() as worker:
            async with running(worker):
                await wait_until(lambda: len(stage.mixpanel.requests) > 0)
            stage.mixpanel.answers.clear()
            stage.mixpanel.requests.clear()
            assert await worker.drain()
        assert len(stage.mixpanel.updates()) == 1
        assert stage.counters == {"in": 1, "out": 1}

    in_virtual_time(body)


def test_worker_that_stops_while_the_outbox_does_not_answer_leaves_its_updates_to_the_next() -> None:
    async def body(stage: Stage) -> None:
        outbox = Wrapped(stage.outbox)
        outbox.loses = {"begin"}
        await put(stage.outbox, entry([add_one("ada")], "people:0"))
        async with stage.worker(outbox=outbox) as worker, running(worker):
            await wait_until(lambda: "begin" in outbox.calls)
        assert not stage.mixpanel.requests
        async with stage.worker() as last:
            assert await last.drain()
        assert stage.counters == {"in": 1, "out": 1}

    in_virtual_time(body)


@pytest.mark.parametrize("is_first", [True, False])
def test_one_attempt_that_may_have_been_applied_keeps_an_entry_begun(*, is_first: bool) -> None:
    """Two requests have a record of one entry each. One was not applied; the other was, or may have been."""

    async def body(stage: Stage) -> None:
        async def hanging() -> httpx.Response:
            await anyio.sleep_forever()
            raise AssertionError

        refused, unknown = httpx.ConnectError("refused"), hanging
        await put(stage.outbox, entry([add_one("ada"), add_one("bob")], "people:0"))
        stage.mixpanel.answers[:] = [None, *[refused] * 99] if is_first else [refused, unknown]  # type: ignore[list-item]
        options = {"batching": BatchPolicy(max_events=1), "shutdown_timeout": 0.5, "timeout": 60}
        async with stage.worker(**options) as worker, running(worker):
            await wait_until(lambda: len(stage.mixpanel.requests) >= 2)
            await anyio.sleep(1)
        stage.mixpanel.answers.clear()
        async with stage.worker() as last:
            assert await last.drain()
        assert stage.counters == {"in": 2, "uncertain": 2}

    in_virtual_time(body)


@pytest.mark.parametrize("is_away_first", [False, True])
def test_worker_ends_if_the_outbox_refuses_its_first_connection(*, is_away_first: bool) -> None:
    async def body(stage: Stage) -> None:
        outbox = Wrapped(stage.outbox)
        outbox.fails, outbox.refused = {"open"}, not is_away_first
        async with stage.worker(outbox=outbox) as worker, anyio.create_task_group() as tasks:
            if is_away_first:
                tasks.start_soon(_refuse_later, outbox)
            with pytest.raises(OutboxError, match="open failed") as caught:
                await worker.run()
        assert caught.value.refused
        assert (anyio.current_time() > 30) is is_away_first

    in_virtual_time(body)


async def _refuse_later(outbox: Wrapped) -> None:
    await anyio.sleep(30)
    outbox.refused = True


def test_worker_goes_on_after_the_outbox_refused_it_for_a_while() -> None:
    async def body(stage: Stage) -> None:
        outbox = Wrapped(stage.outbox)
        async with stage.worker(outbox=outbox) as worker, running(worker):
            await anyio.sleep(1)
            outbox.fails, outbox.refused = {"heartbeat", "read", "settle"}, True
            await put(stage.outbox, entry([set_value("ada", 1)], "people:0"))
            await anyio.sleep(60)
            outbox.fails = set()
            await wait_until(lambda: worker.stats().delivered == 1)
        assert stage.counters == {"in": 1, "out": 1}

    in_virtual_time(body)


@pytest.mark.parametrize("method", ["run", "drain"])
def test_stop_before_the_start_ends_the_next_run_at_once(method: str) -> None:
    async def body(stage: Stage) -> None:
        await put(stage.outbox, entry([set_value("ada", 1)], "people:0"))
        outbox = Wrapped(stage.outbox)
        async with stage.worker(outbox=outbox) as worker:
            worker.stop()
            assert not await getattr(worker, method)()
            assert not outbox.calls
            assert await worker.drain()
        assert stage.counters == {"in": 1, "out": 1}

    in_virtual_time(body)
