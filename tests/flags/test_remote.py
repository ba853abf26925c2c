"""Remote evaluation: every response of Mixpanel becomes a variant or a fallback."""

from __future__ import annotations

import base64
import json
import logging
from typing import Any

import anyio
import httpx
import pytest
from flags_server import TOKEN, Server, until

from mixpanel_async import AsyncMixpanel, ServiceAccountCredentials
from mixpanel_async.flags import FallbackReason, RemoteFlags, SelectedVariant

pytestmark = pytest.mark.anyio

USER = {"distinct_id": "user-1", "custom_properties": {"plan": "pro"}}
SECRET = "account-secret"
FALLBACK = SelectedVariant("fb", variant_key="fb-key")
VARIANT = {"variant_key": "treatment", "variant_value": {"a": [1]}, "experiment_id": "e1", "is_experiment_active": True}


def answer(**flags: Any) -> bytes:
    return json.dumps({"code": 200, "flags": flags}).encode()


def remote(server: Server, timeout: float | None = None, window: float = 0.0, **options: Any) -> AsyncMixpanel:
    chosen = RemoteFlags(timeout=timeout, exposure_window=window)
    return AsyncMixpanel(TOKEN, http_client=server.client, remote_flags=chosen, **options)


async def test_variant_is_returned_and_its_exposure_tracked() -> None:
    server = Server(answer(checkout=VARIANT))
    async with remote(server) as mp:
        found = await mp.remote_flags.get_variant("checkout", FALLBACK, USER)
        assert found == SelectedVariant(
            variant_value={"a": [1]},
            variant_key="treatment",
            experiment_id="e1",
            is_experiment_active=True,
            variant_source="remote",
        )
        assert await mp.remote_flags.get_variant_value("checkout", None, USER, report_exposure=False) == {"a": [1]}
        assert await mp.remote_flags.is_enabled("checkout", USER, report_exposure=False) is False
        await mp.flush()
        (event,) = server.events
        properties = event["properties"]
        expected = {
            "distinct_id": "user-1",
            "Experiment name": "checkout",
            "Variant name": "treatment",
            "$experiment_type": "feature_flag",
            "Flag evaluation mode": "remote",
            "$experiment_id": "e1",
            "$is_experiment_active": True,
            "$is_qa_tester": None,
        }
        assert event["event"] == "$experiment_started"
        assert {name: properties[name] for name in expected} == expected
        assert properties["Variant fetch latency (ms)"] >= 0
        assert properties["Variant fetch start time"] <= properties["Variant fetch complete time"]
        stats = mp.stats().flags
        assert stats is not None
        assert (stats.remote_requests, stats.remote_failures, stats.exposures) == (3, 0, 1)


async def test_only_true_is_enabled() -> None:
    server = Server()
    async with remote(server) as mp:
        for value, expected in ((True, True), (1, False), ("true", False), (False, False), (None, False)):
            server.says = answer(f={"variant_key": "k", "variant_value": value})
            assert await mp.remote_flags.is_enabled("f", USER) is expected


@pytest.mark.parametrize("account", [None, ServiceAccountCredentials("account", SECRET, "12345")])
async def test_request_equals_that_of_the_official_sdk(account: ServiceAccountCredentials | None) -> None:
    server = Server(answer())
    context = {**USER, "company_id": "Ä&=?#"}
    async with remote(server, region="in", credentials=account) as mp:
        await mp.remote_flags.get_variant("a&b", FALLBACK, context)
        await mp.remote_flags.get_all_variants(context)
        one, all_of_them = server.requests
        assert (one.method, one.url.host, one.url.path) == ("GET", "api-in.mixpanel.com", "/flags")
        query = dict(one.url.params)
        assert json.loads(query["context"]) == context
        assert query["flag_key"] == "a&b"
        assert (query["token"], query["mp_lib"], query.get("project_id")) == (
            TOKEN,
            "python-async",
            account and "12345",
        )
        assert "flag_key" not in all_of_them.url.params
        user = f"{TOKEN}:" if account is None else f"account:{SECRET}"
        assert one.headers["authorization"] == "Basic " + base64.b64encode(user.encode()).decode()
        traces = {request.headers["traceparent"] for request in server.requests}
        assert len(traces) == 2


async def test_user_who_is_not_enrolled_gets_flag_not_found() -> None:
    async with remote(Server(answer(other=VARIANT))) as mp:
        found = await mp.remote_flags.get_variant("checkout", FALLBACK, USER)
        assert found == FALLBACK.as_fallback(FallbackReason.flag_not_found())
        assert (await mp.remote_flags.get_variant("other", FALLBACK, USER)).variant_key == "treatment"


async def test_get_all_variants_skips_malformed_ones() -> None:
    server = Server(answer(a=VARIANT, b={"variant_value": 1}, broken={"variant_key": "x"}, worse=5, worst=None))
    async with remote(server) as mp:
        found = await mp.remote_flags.get_all_variants(USER)
        assert found is not None
        assert {key: one.variant_source for key, one in found.items()} == {"a": "remote", "b": "remote"}
        assert found["b"].variant_key is None
        mp.remote_flags.track_exposure_event("a", found["a"], USER)
        await mp.flush()
        assert [event["properties"]["Variant name"] for event in server.events] == ["treatment"]
        assert "Variant fetch latency (ms)" not in server.events[0]["properties"]
        server.says = 500
        assert await mp.remote_flags.get_all_variants(USER) is None


async def hang(request: httpx.Request) -> httpx.Response:
    await anyio.sleep(60)
    raise AssertionError(request)


ECHO = httpx.Response(
    400,
    json={"error": f"GET https://api.mixpanel.com/flags?token={TOKEN} user:{SECRET}"},
)
ECHO_OF_THE_PATH = httpx.Response(
    404, content=b"<p>no such page: '/flags?context=%7B%22distinct_id%22%3A%22user-1%22%7D'</p>"
)
BAD: dict[str, tuple[Any, str]] = {
    "400": (
        httpx.Response(400, content=b'{"error":"distinct_id must be provided in evalContext as a string"}'),
        "HTTP 400: distinct_id must be provided in evalContext as a string",
    ),
    "echo": (ECHO, "HTTP 400: GET *** user:***"),
    "echo of the path": (ECHO_OF_THE_PATH, "HTTP 404: <p>no such page: '***'</p>"),
    "401": (httpx.Response(401), "HTTP 401: the credentials were refused"),
    "500": (httpx.Response(500, content=b"  line\nline  "), "HTTP 500: line line"),
    "long": (httpx.Response(500, content=b"x" * 5000), "HTTP 500: " + "x" * 500),
    "302": (
        httpx.Response(302, headers={"Location": f"https://evil.test/?{TOKEN}"}),
        "HTTP 302: the request was not accepted",
    ),
    "no json": (b"<html>", "the response is not JSON"),
    "empty": (b"", "the response is not JSON"),
    "list": (b"[]", 'the response has no "flags" object'),
    "no flags": (b'{"code": 200}', 'the response has no "flags" object'),
    "malformed": (answer(f={"variant_key": "x"}), "the variant in the response is malformed"),
    "malformed key": (answer(f={"variant_key": 5, "variant_value": 1}), "the variant in the response is malformed"),
    "too large": (b" " * 20_000_000, "the response is larger than 16777216 bytes"),
    "no connection": (httpx.ConnectError("refused"), "no connection to api.mixpanel.com (ConnectError: refused)"),
    "broken": (httpx.RemoteProtocolError(TOKEN), "the connection ended early, or the response was not HTTP"),
    "bug": (ValueError(TOKEN), "the HTTP client failed (ValueError)"),
    "hang": (hang, "no complete response within "),
}


@pytest.mark.loops_in_turn
@pytest.mark.parametrize(("reply", "message"), BAD.values(), ids=BAD.keys())
async def test_failure_becomes_the_fallback_reason(reply: Any, message: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    account = ServiceAccountCredentials("account", SECRET, "12345")
    server = Server(reply)
    async with remote(server, timeout=0.1 if reply is hang else None, credentials=account) as mp:
        for _ in range(2):
            found = await mp.remote_flags.get_variant("f", FALLBACK, USER)
            assert found.fallback_reason is not None
            logged = found.fallback_reason.message or ""
            # The time that is left for the response is a little less than the timeout.
            assert logged.startswith(message) if reply is hang else logged == message
            assert found == FALLBACK.as_fallback(FallbackReason.backend_error(logged))
        assert await mp.remote_flags.get_variant_value("f", 7, USER) == 7
        assert await mp.remote_flags.is_enabled("f", USER) is False
        stats = mp.stats().flags
        assert stats is not None
        assert (stats.remote_failures, stats.exposures) == (4, 0)
        assert str(stats.last_error).startswith(f"/flags: {message}")
        lines = [one.getMessage() for one in caplog.records if one.name.startswith("mixpanel_async")]
        assert len(lines) == 1
        assert lines[0].startswith("flags: remote evaluation failed (")
        for text in (caplog.text, repr(mp), repr(mp.remote_flags), repr(mp.stats()), repr(found)):
            for secret in (TOKEN, SECRET, "user-1", "?", base64.b64encode(f"account:{SECRET}".encode()).decode()):
                assert secret not in text
        server.says = answer(f={"variant_key": "k", "variant_value": True})
        assert await mp.remote_flags.is_enabled("f", USER) is True


@pytest.mark.parametrize(
    ("context", "message"),
    [
        ({"distinct_id": object()}, "the context cannot be sent as JSON (TypeError)"),
        ({"distinct_id": "u", "x": float("nan")}, "the context cannot be sent as JSON (ValueError)"),
        ({"distinct_id": "u" * 70_000}, "the HTTP client failed (InvalidURL)"),
    ],
)
async def test_context_that_cannot_be_sent_gives_a_fallback(context: dict[str, Any], message: str) -> None:
    circle: dict[str, Any] = {}
    circle["self"] = circle
    async with remote(Server(answer(f=VARIANT))) as mp:
        found = await mp.remote_flags.get_variant("f", FALLBACK, context)
        assert found.fallback_reason == FallbackReason.backend_error(message)
        found = await mp.remote_flags.get_variant("f", FALLBACK, circle)
        assert found.variant_source == "fallback"


async def test_lost_connection_is_retried_once() -> None:
    server = Server()
    calls = 0

    async def first_breaks(_: httpx.Request) -> httpx.Response:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise httpx.RemoteProtocolError("Server disconnected")
        return httpx.Response(200, content=answer(f=VARIANT))

    server.says = first_breaks
    async with remote(server) as mp:
        assert (await mp.remote_flags.get_variant("f", FALLBACK, USER)).variant_key == "treatment"
        assert (calls, mp.stats().flags.remote_requests) == (2, 2)  # type: ignore[union-attr]


async def test_closed_client_gives_fallbacks() -> None:
    server = Server(answer(f=VARIANT))
    async with remote(server) as mp:
        pass
    found = await mp.remote_flags.get_variant("f", FALLBACK, USER)
    assert found.fallback_reason == FallbackReason.backend_error("the client is closed")
    assert server.requests == []


async def test_cancelled_caller_does_not_interrupt_the_request() -> None:
    server = Server()
    release = anyio.Event()
    ended: list[bool] = []

    async def slow(_: httpx.Request) -> httpx.Response:
        await release.wait()
        ended.append(True)
        return httpx.Response(200, content=answer())

    server.says = slow
    async with remote(server) as mp:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(mp.remote_flags.get_variant, "f", FALLBACK, USER)
            await until(lambda: len(server.requests) == 1)
            tasks.cancel_scope.cancel()
        release.set()
        await until(lambda: bool(ended))


async def test_close_waits_for_an_evaluation_in_progress() -> None:
    server = Server()
    release = anyio.Event()
    found: list[str | None] = []

    async def slow(_: httpx.Request) -> httpx.Response:
        await release.wait()
        return httpx.Response(200, content=answer(f=VARIANT))

    async def evaluate() -> None:
        found.append((await mp.remote_flags.get_variant("f", FALLBACK, USER, False)).variant_key)

    server.says = slow
    async with anyio.create_task_group() as tasks, remote(server) as mp:
        tasks.start_soon(evaluate)
        await until(lambda: len(server.requests) == 1)
        release.set()
    assert found == ["treatment"]


async def test_many_concurrent_evaluations_succeed() -> None:
    server = Server(answer(f=VARIANT))
    keys: list[str | None] = []
    async with remote(server) as mp:

        async def evaluate(number: int) -> None:
            context = {"distinct_id": f"user-{number}"}
            keys.append((await mp.remote_flags.get_variant("f", FALLBACK, context)).variant_key)

        async with anyio.create_task_group() as tasks:
            for number in range(200):
                tasks.start_soon(evaluate, number)
    assert keys == ["treatment"] * 200
    assert len({event["properties"]["distinct_id"] for event in server.events}) == 200
