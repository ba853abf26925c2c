"""A disabled client: every method works and returns, and nothing happens."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import anyio
import httpx
import pytest
from client_calls import ALL, ANONYMOUS, make
from openfeature.evaluation_context import EvaluationContext
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from mixpanel_async import (
    AsyncMixpanel,
    BoundMixpanel,
    ConfigurationError,
    FlushResult,
    IdMerge,
    ServiceAccountCredentials,
    SqliteSpool,
    Stats,
    ValidationError,
)
from mixpanel_async.flags import FallbackReason, LocalFlags, RemoteFlags, SelectedVariant
from mixpanel_async.integrations.openfeature import MixpanelProvider
from mixpanel_async.integrations.otel import MixpanelMetrics
from mixpanel_async.integrations.starlette import MixpanelIntegration

EMPTY: Final = FlushResult(0, 0, 0)


@pytest.fixture(autouse=True)
def no_network_and_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail if a socket is connected, a name is resolved or a thread is left."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a disabled client did something")

    before = threading.active_count()
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield
    assert threading.active_count() == before


def disabled(**options: Any) -> AsyncMixpanel:
    return AsyncMixpanel("", enabled=False, **options)


def everything_fails(*_: object) -> Any:
    raise AssertionError("a hook was called")


@pytest.mark.parametrize("system", [None, *IdMerge])
@pytest.mark.anyio
async def test_every_method_returns_and_nothing_is_counted(system: IdMerge | None) -> None:
    hooks: dict[str, Any] = dict.fromkeys(("before_send", "serializer", "on_drop", "on_delivered"), everything_fails)
    async with disabled(id_merge=system, **hooks) as mp:
        assert mp.enabled is False
        assert mp.id_merge is system
        # Not a mapping, and not encodable: a disabled client does not look at its arguments.
        for meta in (None, {"a": object()}, object()):
            assert {name: await make(call, mp, meta) for name, call in ALL.items()} == dict.fromkeys(ALL)
        await mp.alias("a", "a", deferred=True)
        assert await mp.flush() == await mp.flush(5) == EMPTY
        assert mp.stats() == Stats()
    assert await mp.aclose() == await mp.flush() == EMPTY
    # After closing, too: a program that is shut down must not fail.
    assert {name: await make(call, mp) for name, call in ALL.items()} == dict.fromkeys(ALL)
    assert mp.stats() == Stats()


@pytest.mark.parametrize(
    "wrong",
    [None, 7, "text", b"", object(), float("nan"), {7: object()}, [object()]],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.anyio
async def test_no_argument_is_refused(wrong: Any) -> None:
    mp = disabled(invalid="raise", id_merge=IdMerge.SIMPLIFIED)
    visitor = mp.bind(distinct_id=wrong, user_id=wrong, device_id=wrong, ip=wrong, properties=wrong)
    silent = visitor.silenced()
    calls: list[Callable[[], Any]] = [
        lambda: mp.track(wrong, wrong, wrong, time=wrong, insert_id=wrong),
        lambda: mp.track_nowait(wrong, wrong, wrong),
        lambda: mp.track_immediate(wrong, wrong, wrong),
        lambda: mp.import_data(wrong, wrong, wrong, wrong, wrong, wrong, wrong),
        lambda: mp.people_update(wrong, wrong),
        lambda: mp.people_track_charge(wrong, wrong, wrong),
        lambda: mp.group_update(wrong, wrong),
        lambda: mp.alias(wrong, wrong, wrong),
        lambda: mp.merge(wrong, wrong, wrong, wrong, wrong),
        lambda: mp.identify(wrong, wrong, wrong),
    ]
    for one in (visitor, visitor.bind(properties=wrong), mp.bind(), silent, silent.bind(properties=wrong)):
        calls += [
            lambda one=one: one.track(wrong, wrong, wrong),  # type: ignore[misc]
            lambda one=one: one.track_nowait(wrong, wrong, wrong),  # type: ignore[misc]
            lambda one=one: one.track_immediate(wrong, wrong, wrong),  # type: ignore[misc]
            lambda one=one: one.people_set(wrong, wrong),  # type: ignore[misc]
            lambda one=one: one.people_update(wrong, wrong),  # type: ignore[misc]
            lambda one=one: one.people_track_charge(wrong, wrong, wrong),  # type: ignore[misc]
            lambda one=one: one.alias(wrong, wrong),  # type: ignore[misc]
            lambda one=one: one.identify(wrong, wrong),  # type: ignore[misc]
        ]
    assert [await make(lambda *_: call(), mp) for call in calls] == [None] * len(calls)  # noqa: B023
    assert mp.stats() == Stats()


@pytest.mark.parametrize("system", [None, *IdMerge])
@pytest.mark.anyio
async def test_sign_in_and_sign_out_keep_the_ids(system: IdMerge | None) -> None:
    mp = disabled(id_merge=system)
    visitor = mp.bind(device_id=ANONYMOUS, ip="203.0.113.9")
    await visitor.sign_in("maya", is_new=True)
    assert (visitor.user_id, visitor.device_id) == ("maya", ANONYMOUS)
    link = visitor.link
    assert link is not None
    await mp.bind(device_id=ANONYMOUS, link=link).sign_in("maya")
    visitor.sign_out()
    assert visitor.user_id is visitor.link is None
    assert visitor.device_id not in {None, ANONYMOUS}
    with pytest.raises(ValidationError, match="user_id"):
        await visitor.sign_in(7)  # type: ignore[arg-type]
    assert len(mp.new_device_id()) == len(ANONYMOUS)


def test_no_event_loop_is_needed() -> None:
    mp = disabled()
    mp.track_nowait("user", "Event")
    for _ in range(2):
        assert asyncio.run(mp.aclose()) == EMPTY
        asyncio.run(mp.track("user", "Event", {"a": 1}))


@pytest.mark.anyio
async def test_no_task_is_started_and_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "mixpanel_async")
    async with disabled(local_flags=LocalFlags(), remote_flags=RemoteFlags()) as mp:
        for call in ALL.values():
            await make(call, mp)
        await mp.remote_flags.get_variant_value("flag", "blue", {"distinct_id": "user"})
        assert [task.name for task in anyio.get_running_tasks() if "mixpanel" in (task.name or "")] == []
    assert [record for record in caplog.records if record.name == "mixpanel_async"] == []


@pytest.mark.anyio
async def test_no_spool_file_is_made(tmp_path: Path) -> None:
    async with disabled(spool=SqliteSpool(tmp_path / "mixpanel.db")) as mp:
        await mp.track("user", "Event", {"a": 1})
        await mp.flush()
    assert os.listdir(tmp_path) == []


@pytest.mark.anyio
async def test_flags_return_their_fallbacks() -> None:
    async with disabled(local_flags=LocalFlags(), remote_flags=RemoteFlags()) as mp:
        context = {"distinct_id": "user"}
        fallback = SelectedVariant("blue")
        assert await mp.local_flags.wait_ready(60)
        local = mp.local_flags.get_variant("flag", fallback, context)
        remote = await mp.remote_flags.get_variant("flag", fallback, context)
        for variant in (local, remote):
            assert variant.variant_value == "blue"
            assert variant.fallback_reason == FallbackReason.flag_not_found()
        assert mp.local_flags.get_all_variants(context) == await mp.remote_flags.get_all_variants(context) == {}
        assert await mp.remote_flags.is_enabled("flag", context) is False
        mp.local_flags.track_exposure_event("flag", fallback, context)
        stats = mp.stats()
    assert stats.accepted == stats.requests == 0
    assert stats.flags is not None
    assert (stats.flags.polls, stats.flags.remote_requests, stats.flags.remote_failures) == (0, 0, 0)
    assert stats.flags.last_error is None


def test_openfeature_provider_is_ready_at_once_and_returns_defaults() -> None:
    provider = MixpanelProvider(disabled(local_flags=LocalFlags()).local_flags, ready_timeout=3600.0)
    provider.initialize(EvaluationContext())
    found = provider.resolve_boolean_details("flag", default_value=True)
    assert found.value is True
    provider.shutdown()


@pytest.mark.anyio
async def test_web_integration_keeps_visitors() -> None:
    mixpanel = MixpanelIntegration(disabled, track_requests="Request")

    async def sign_up(request: Request) -> PlainTextResponse:
        mp = await mixpanel.bound(request)
        await mp.track("Page viewed", {"a": object()})
        await mp.sign_in("maya", is_new=True)
        return PlainTextResponse(mp.user_id or "")

    app = Starlette(
        routes=[Route("/", sign_up)], middleware=[Middleware(mixpanel.middleware)], lifespan=mixpanel.lifespan
    )
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop.example") as browser,
    ):
        response = await browser.get("/")
        assert (response.status_code, response.text) == (200, "maya")
        assert set(response.cookies) == {"mp_visitor", "mp_visitor_user"}
        assert mixpanel.client.stats() == Stats()


def test_metrics_of_a_disabled_client_are_zero() -> None:
    reader = InMemoryMetricReader()
    metrics = MixpanelMetrics(MeterProvider([reader]))
    mp = disabled(on_delivered=metrics.on_delivered)
    metrics.watch(mp)
    mp.track_nowait("user", "Event")
    data = reader.get_metrics_data()
    assert data is not None
    (scope,) = data.resource_metrics[0].scope_metrics
    values = [point.value for metric in scope.metrics for point in metric.data.data_points]  # type: ignore[union-attr]
    assert values
    assert set(values) == {0}


def test_garbage_collection_warns_of_nothing() -> None:
    mp = disabled()
    mp.track_nowait("user", "Event")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del mp
        gc.collect()


@pytest.mark.parametrize("text", ["1", "true", "YES", " on ", "True"])
def test_environment_disables_the_client(text: str) -> None:
    unused = {"MIXPANEL_REGION": "mars", "MIXPANEL_SERVICE_ACCOUNT_USERNAME": "half"}
    mp = AsyncMixpanel.from_env({"MIXPANEL_DISABLED": text, "MIXPANEL_ID_MERGE": "legacy", **unused})
    assert mp.enabled is False
    assert mp.id_merge is IdMerge.LEGACY
    assert AsyncMixpanel.from_env({"MIXPANEL_DISABLED": text, "MIXPANEL_TOKEN": "t"}, enabled=True).enabled


@pytest.mark.parametrize("text", ["0", "false", "No", " off", "", "  "])
def test_environment_leaves_the_client_enabled(text: str) -> None:
    assert AsyncMixpanel.from_env({"MIXPANEL_DISABLED": text, "MIXPANEL_TOKEN": "t"}).enabled
    with pytest.raises(ConfigurationError, match="MIXPANEL_TOKEN is not set"):
        AsyncMixpanel.from_env({"MIXPANEL_DISABLED": text})
    assert AsyncMixpanel.from_env({"MIXPANEL_DISABLED": text}, enabled=False).enabled is False


@pytest.mark.parametrize("text", ["2", "disabled", "nope", "t"])
def test_other_spelling_is_refused(text: str) -> None:
    expected = f"MIXPANEL_DISABLED must be one of 1, true, yes, on, or of 0, false, no, off, not {text!r}"
    with pytest.raises(ConfigurationError, match=f"^{expected}$"):
        AsyncMixpanel.from_env({"MIXPANEL_DISABLED": text, "MIXPANEL_TOKEN": "t"})


def test_only_from_env_reads_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIXPANEL_DISABLED", "1")
    assert AsyncMixpanel("t").enabled
    assert AsyncMixpanel.from_env().enabled is False


@pytest.mark.parametrize("value", [0, 1, None, "no", "false"])
def test_switch_must_be_a_bool(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="enabled must be True or False"):
        AsyncMixpanel("t", enabled=value)


@pytest.mark.parametrize(
    "options",
    [{"timeout": -1.0}, {"region": "mars"}, {"before_send": 7}, {"super_properties": 7}, {"on_drop": 7}],
    ids=lambda options: next(iter(options)),
)
def test_options_are_still_validated(options: dict[str, Any]) -> None:
    with pytest.raises((ConfigurationError, ValidationError)):
        disabled(**options)


@pytest.mark.parametrize("token", [None, 7, "line\nbreak"])
def test_token_must_be_text(token: Any) -> None:
    with pytest.raises(ConfigurationError, match="token"):
        AsyncMixpanel(token, enabled=False)
    account = ServiceAccountCredentials("user", "secret", "1")
    assert isinstance(AsyncMixpanel(" ", credentials=account, enabled=False).bind(), BoundMixpanel)
