"""Exposures: ordinary events that never fail an evaluation and are counted if they cannot be tracked."""

from __future__ import annotations

import threading
from typing import Any
from uuid import UUID

import pytest
from flags_server import CT, TOKEN, Server, definitions, flag, local
from simulated import client_in

from mixpanel_async import AsyncMixpanel, BatchPolicy, Overflow, ServiceAccountCredentials
from mixpanel_async._runtime.environment import Environment
from mixpanel_async.flags import LocalFlags, SelectedVariant

pytestmark = pytest.mark.anyio

USER = {"distinct_id": "user-1"}
FALLBACK = SelectedVariant(None)


async def test_exposure_passes_hooks_and_queue_like_any_event() -> None:
    server = Server()
    seen: list[str] = []

    def before_send(message: dict[str, Any]) -> dict[str, Any]:
        seen.append(message["event"])
        return message

    account = ServiceAccountCredentials("account", "secret", "1")
    options: dict[str, Any] = {"super_properties": {"env": "test"}, "before_send": before_send, "credentials": account}
    async with local(server, [flag("f")], **options) as mp:
        assert mp.local_flags.is_enabled("f", USER)
        assert mp.local_flags.get_variant_value("f", None, USER) is True
        assert mp.stats().accepted == 2
        await mp.flush()
        assert [event["properties"]["env"] for event in server.events] == ["test", "test"]
        assert server.events[0]["properties"]["$insert_id"] != server.events[1]["properties"]["$insert_id"]
        assert seen == ["$experiment_started"] * 2
        assert mp.stats().flags.exposures == 2  # type: ignore[union-attr]


async def test_fallbacks_and_disabled_reporting_track_no_exposure() -> None:
    server = Server()
    off = {"variants": CT, "rollout": []}
    async with local(server, [flag("f"), flag("off", off)]) as mp:
        flags = mp.local_flags
        flags.get_variant("f", FALLBACK, USER, report_exposure=False)
        flags.get_variant_value("f", FALLBACK, USER, report_exposure=False)
        flags.is_enabled("f", USER, report_exposure=False)
        flags.get_all_variants(USER)
        flags.is_enabled("off", USER)
        flags.is_enabled("ghost", USER)
        flags.is_enabled("f", {})
        assert mp.stats().accepted == 0


@pytest.mark.parametrize("window", [0.0, 60.0])
async def test_same_exposure_is_tracked_once_per_window(window: float) -> None:
    now = 1000.0
    runtime = Environment(wall_time=lambda: 1.7e9, monotonic=lambda: now, random=lambda: 0.5, new_id=lambda: "0" * 32)
    variants = {"variants": CT, "rollout": [{"rollout_percentage": 1.0}]}
    server = Server(definitions(flag("f"), flag("g", variants)))
    options = LocalFlags(poll_interval=None, exposure_window=window)
    mp = client_in(runtime, TOKEN, http_client=server.client, local_flags=options)
    async with mp:
        assert await mp.local_flags.wait_ready(5)
        flags = mp.local_flags

        def expose() -> int:
            """Return the number of exposures that are tracked."""
            before = mp.stats().accepted
            flags.is_enabled("f", USER)
            flags.is_enabled("f", {"distinct_id": "user-2"})
            flags.get_variant_value("g", 0, USER)
            flags.track_exposure_event("g", SelectedVariant(0, "another"), USER)
            return mp.stats().accepted - before

        assert expose() == 4
        assert expose() == (0 if window else 4)
        now += 59.9
        assert expose() == (0 if window else 4)
        now += 0.2
        assert expose() == 4
        now += 59.0
        assert expose() == (0 if window else 4)
        now += 600.0
        assert expose() == 4
        stats = mp.stats().flags
        assert stats is not None
        assert stats.exposures + stats.exposures_repeated == 24
        assert stats.exposures_lost == 0


async def test_exposure_window_remembers_a_bounded_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixpanel_async.flags.exposures._MAX_REMEMBERED", 100)
    server = Server(definitions(flag("f")))
    options = LocalFlags(poll_interval=None, exposure_window=3600)
    async with local(server, local_flags=options) as mp:

        def repeated(*users: int) -> int:
            """Return the number of exposures that are not tracked."""
            before = mp.stats().accepted
            for number in users:
                mp.local_flags.track_exposure_event("f", SelectedVariant(1, "on"), {"distinct_id": f"user-{number}"})
            return len(users) - mp.stats().accepted + before

        assert repeated(*range(110)) == 0
        assert repeated(0, 99, 109) == 3
        assert repeated(*range(1_000, 1_210)) == 0
        assert repeated(0) == 0


@pytest.mark.parametrize(
    ("context", "message"),
    [
        ({"distinct_id": "null"}, "distinct_id: "),
        ({"distinct_id": 42.0}, "distinct_id: must be a string, not float"),
        ({"distinct_id": True}, "distinct_id: must be a string, not bool"),
        ({"distinct_id": UUID(int=1)}, "distinct_id: must be a string, not UUID"),
        ({"distinct_id": ["user-1"]}, "distinct_id: must be a string, not list"),
        ({"company": "c"}, "the context has no distinct_id"),
        ({"company": "c", "distinct_id": ""}, "the context has no distinct_id"),
    ],
)
async def test_untrackable_exposure_is_counted_and_logged_once(
    context: dict[str, Any], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    context = {"company": "c", **context}
    async with local(Server(), [flag("f", context="company")]) as mp:
        for _ in range(3):
            assert mp.local_flags.is_enabled("f", context)
        stats = mp.stats().flags
        assert stats is not None
        assert (stats.exposures, stats.exposures_lost) == (0, 3)
        (line,) = [record.getMessage() for record in caplog.records]
        assert line.startswith(f"flags: an exposure could not be tracked ({message}")


@pytest.mark.parametrize("window", [0.0, 60.0])
async def test_integer_distinct_id_is_tracked_as_string(window: float) -> None:
    server = Server(definitions(flag("f")))
    options = LocalFlags(poll_interval=None, exposure_window=window)
    async with local(server, local_flags=options) as mp:
        assert mp.local_flags.is_enabled("f", {"distinct_id": 42})
        assert mp.local_flags.is_enabled("f", {"distinct_id": "42"})
        await mp.flush()
        stats = mp.stats().flags
    assert stats is not None
    assert (stats.exposures, stats.exposures_repeated, stats.exposures_lost) == ((1, 1, 0) if window else (2, 0, 0))
    assert {event["properties"]["distinct_id"] for event in server.events} == {"42"}


@pytest.mark.parametrize("overflow", list(Overflow))
async def test_full_queue_does_not_fail_an_evaluation(overflow: Overflow) -> None:
    batching = BatchPolicy(max_pending_events=1, linger=3600)
    async with local(Server(), [flag("f")], overflow=overflow, batching=batching) as mp:
        for _ in range(3):
            assert mp.local_flags.is_enabled("f", USER)


async def test_before_send_may_evaluate_flags_or_fail() -> None:
    clients: list[AsyncMixpanel] = []

    def before_send(message: dict[str, Any]) -> dict[str, Any] | None:
        if message["event"] == "Fails":
            raise ValueError
        return message if clients[0].local_flags.is_enabled("sampled", USER) else None

    server = Server()
    async with local(server, [flag("sampled")], before_send=before_send) as mp:
        clients.append(mp)
        await mp.track("user-1", "Sampled")
        assert mp.local_flags.is_enabled("sampled", USER)
        await mp.flush()
    # One exposure for the event's evaluation and one for the caller's. Exposures do not cause further exposures.
    assert sorted(event["event"] for event in server.events) == ["$experiment_started"] * 2 + ["Sampled"]


async def test_exposures_of_many_threads_are_all_tracked() -> None:
    server = Server()
    async with local(server, [flag("f")], poll_interval=None) as mp:

        def evaluate() -> None:
            for number in range(500):
                mp.local_flags.is_enabled("f", {"distinct_id": f"user-{number}"})

        threads = [threading.Thread(target=evaluate) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert mp.stats().accepted == 2_000
        await mp.flush()
    assert len(server.events) == 2_000
