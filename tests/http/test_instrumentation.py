"""Tools that observe or replace the requests of httpx: all of them see the requests of this package."""

from __future__ import annotations

import functools
from typing import Any

import httpx
import pytest
import respx
from http_server import LONG, post, serve

from mixpanel_async._http.transport import Transport
from mixpanel_async._model.outcomes import Request, Response, TransportFailure

pytestmark = pytest.mark.anyio

before_or_after = pytest.mark.parametrize(
    "is_first", [True, False], ids=["before_first_request", "after_first_request"]
)


async def prepared(url: str, *, is_first: bool) -> Transport:
    """Return a transport that has sent a request, unless the tool is to be installed first."""
    transport = Transport(url, timeout=LONG, max_connections=1)
    if not is_first:
        assert isinstance(await transport.send(post("/first")), Response)
    return transport


@before_or_after
@pytest.mark.parametrize("using", ["httpcore", "httpx"])
async def test_respx_keeps_a_mocked_request_from_the_network(using: str, is_first: bool) -> None:
    async with serve() as server:
        server.gate.set()
        transport = await prepared(server.url, is_first=is_first)
        with respx.mock(using=using) as mocked:
            mocked.post(f"{server.url}/mocked").respond(202)
            result = await transport.send(post("/mocked"))
        assert isinstance(result, Response)
        assert result.status == 202
        assert server.answered == ([] if is_first else ["/first"])
        await transport.aclose()


@pytest.mark.parametrize("using", ["httpcore", "httpx"])
async def test_mocked_failure_is_not_taken_for_a_stale_connection(using: str) -> None:
    transport = Transport("http://mixpanel.test", timeout=LONG, max_connections=1)
    with respx.mock(using=using) as mocked:
        mocked.post("http://mixpanel.test/mocked").mock(side_effect=httpx.ReadError)
        result = await transport.send(post("/mocked"))
    assert result == TransportFailure(sent=True, message="ReadError: Mock Error")
    await transport.aclose()


@before_or_after
async def test_patched_client_send_sees_requests_and_responses(is_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sentry's integration patches this method (read 2026-11-29: version 2.75.0)."""
    seen = []
    send = httpx.AsyncClient.send

    async def traced(client: httpx.AsyncClient, request: httpx.Request, **options: Any) -> httpx.Response:
        request.headers["traceparent"] = "trace"
        response = await send(client, request, **options)
        seen.append((request.method, str(request.url), response.status_code))
        return response

    async with serve() as server:
        server.gate.set()
        transport = await prepared(server.url, is_first=is_first)
        monkeypatch.setattr(httpx.AsyncClient, "send", traced)
        for path in ("/one", "/two"):
            assert isinstance(await transport.send(post(path)), Response)
        query = Request(path="/flags", headers={}, body=b"", method="GET", query="context=ada")
        assert isinstance(await transport.send(query), Response)
        await transport.aclose()
    assert seen == [
        ("POST", f"{server.url}/one", 200),
        ("POST", f"{server.url}/two", 200),
        ("GET", f"{server.url}/flags", 200),
    ]
    assert server.accepted == 1


@before_or_after
async def test_event_hooks_of_every_client_see_the_request(is_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    create = httpx.AsyncClient.__init__

    async def on_request(request: httpx.Request) -> None:
        seen.append(f"{request.method} {request.url.path}")

    async def on_response(response: httpx.Response) -> None:
        seen.append(f"{response.status_code} {response.request.url.path}")

    def hooked(client: httpx.AsyncClient, **options: Any) -> None:
        create(client, **{**options, "event_hooks": {"request": [on_request], "response": [on_response]}})

    monkeypatch.setattr(httpx.AsyncClient, "__init__", hooked)
    async with serve() as server:
        server.gate.set()
        transport = await prepared(server.url, is_first=is_first)
        assert isinstance(await transport.send(post("/one")), Response)
        await transport.aclose()
    assert seen[-2:] == ["POST /one", "200 /one"]


@before_or_after
async def test_wrapped_httpx_transport_sees_requests_and_responses(
    is_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenTelemetry's instrumentation wraps this method (read 2026-11-29: version 0.66b2)."""
    seen = []
    handle = httpx.AsyncHTTPTransport.handle_async_request

    @functools.wraps(handle)
    async def traced(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        response = await handle(transport, request)
        seen.append((request.url.path, response.status_code))
        return response

    async with serve() as server:
        server.gate.set()
        transport = await prepared(server.url, is_first=is_first)
        with monkeypatch.context() as patched:
            patched.setattr(httpx.AsyncHTTPTransport, "handle_async_request", traced)
            for path in ("/one", "/two"):
                assert isinstance(await transport.send(post(path)), Response)
        assert isinstance(await transport.send(post("/untraced")), Response)
        await transport.aclose()
        assert server.answered[-3:] == ["/one", "/two", "/untraced"]
    assert seen == [("/one", 200), ("/two", 200)]


@before_or_after
async def test_replaced_httpx_transport_keeps_a_request_from_the_network(
    is_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pytest-httpx replaces this method (read 2026-11-29: version 0.36.2)."""

    async def mocked(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        return httpx.Response(202)

    async with serve() as server:
        server.gate.set()
        transport = await prepared(server.url, is_first=is_first)
        monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", mocked)
        result = await transport.send(post("/mocked"))
        assert isinstance(result, Response)
        assert result.status == 202
        assert server.answered == ([] if is_first else ["/first"])
        await transport.aclose()


async def test_failures_behind_a_wrapped_httpx_transport_are_never_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    handle = httpx.AsyncHTTPTransport.handle_async_request

    @functools.wraps(handle)
    async def traced(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        return await handle(transport, request)

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", traced)
    async with serve(lambda stream: stream.aclose()) as server:
        transport = Transport(server.url, timeout=LONG, max_connections=1)
        result = await transport.send(post("/dropped"))
        assert isinstance(result, TransportFailure)
        assert (result.sent, result.stale) == (True, False)
    result = await transport.send(post("/refused"))
    assert isinstance(result, TransportFailure)
    assert (result.sent, result.stale) == (False, False)
    await transport.aclose()
