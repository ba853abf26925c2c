"""Single connections: errors, stale connections and the proxies of the environment."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator

import anyio
import anyio.abc
import httpcore
import httpx
import pytest
from http_server import LONG, post, read_request, serve, until

from mixpanel_async._http.connection import ConnectionFactory
from mixpanel_async._http.progress import Progress
from mixpanel_async._http.transport import Transport
from mixpanel_async._model.outcomes import Request, Response, TransportFailure

# `ConnectionNotAvailable` never leaves the pools of httpcore.
ERRORS = [
    name
    for name in httpcore.__all__
    if isinstance(getattr(httpcore, name), type)
    and issubclass(getattr(httpcore, name), Exception)
    and name != "ConnectionNotAvailable"
]
PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("part", ["head", "body"])
@pytest.mark.anyio
async def test_error_of_httpcore_becomes_the_httpx_error_of_the_same_name(
    part: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = getattr(httpcore, name)("why")

    async def body() -> AsyncIterator[bytes]:
        yield b"1"
        raise error

    async def handle(_: object, request: httpcore.Request) -> httpcore.Response:
        if part == "head":
            raise error
        return httpcore.Response(200, content=body())

    monkeypatch.setattr(httpcore.AsyncHTTPConnection, "handle_async_request", handle)
    connection = ConnectionFactory(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), {}, warn=print, idle_timeout=LONG)()
    with pytest.raises(httpx.TransportError) as caught:
        await (await connection.send(httpx.Request("POST", "http://mixpanel.test"), Progress())).aread()
    await connection.aclose()
    assert type(caught.value) is getattr(httpx, name)
    assert str(caught.value) == "why"
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("is_own", [True, False], ids=["own_pool", "user_client"])
@pytest.mark.anyio
async def test_only_a_connection_kept_from_an_earlier_request_is_stale(is_own: bool) -> None:
    requests = 0

    async def handle(stream: anyio.abc.SocketStream) -> None:
        """Answer the first request of the first connection; drop everything else without a response."""
        nonlocal requests
        async with stream:
            for _ in range(2):
                await read_request(stream)
                requests += 1
                if requests > 1:
                    return
                await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async with serve(handle) as server, httpx.AsyncClient() as client:
        http_client = None if is_own else client
        transport = Transport(server.url, timeout=LONG, max_connections=1, http_client=http_client)
        assert isinstance(await transport.send(post("/answered")), Response)
        kept, fresh = [await transport.send(post(path)) for path in ("/kept", "/fresh")]
    refused = await transport.send(post("/refused"))
    await transport.aclose()
    found = [(one.sent, one.stale) for one in (kept, fresh, refused) if isinstance(one, TransportFailure)]
    assert found == [(True, True), (True, False), (False, False)]


@pytest.mark.anyio
async def test_response_cut_off_on_a_kept_connection_is_not_stale() -> None:
    async def handle(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await read_request(stream)
            await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            await read_request(stream)
            await stream.send(b"HTTP/1.1 200")

    async with serve(handle) as server:
        transport = Transport(server.url, timeout=LONG, max_connections=1)
        assert isinstance(await transport.send(post("/answered")), Response)
        result = await transport.send(post("/cut"))
        await transport.aclose()
    assert isinstance(result, TransportFailure)
    assert (result.sent, result.stale) == (True, False)


@pytest.mark.loops_in_turn
@pytest.mark.parametrize(
    ("host", "environment"),
    [
        ("mixpanel.test", {"HTTP_PROXY": "{proxy}"}),
        ("mixpanel.test", {"HTTP_PROXY": "{address}"}),
        ("mixpanel.test", {"ALL_PROXY": "{proxy}"}),
        ("mixpanel.test", {"ALL_PROXY": "{proxy}", "NO_PROXY": "test"}),
        ("mixpanel.test", {"HTTP_PROXY": "{proxy}", "NO_PROXY": "other.test, panel.test"}),
        ("mixpanel.test", {"HTTP_PROXY": "{proxy}", "NO_PROXY": ".mixpanel.test"}),
        ("mixpanel.test", {"HTTP_PROXY": "{proxy}", "NO_PROXY": "https://mixpanel.test"}),
        ("127.0.0.1", {"HTTPS_PROXY": "{proxy}"}),
        ("127.0.0.1", {"HTTP_PROXY": "{proxy}"}),
        ("127.0.0.1", {"HTTP_PROXY": "{proxy}", "NO_PROXY": "*"}),
        ("127.0.0.1", {"HTTP_PROXY": "{proxy}", "NO_PROXY": "other.test,*"}),
        ("127.0.0.1", {"HTTP_PROXY": "{proxy}", "NO_PROXY": "127.0.0.1"}),
        ("127.0.0.1", {"HTTP_PROXY": "{proxy}", "NO_PROXY": "127.0.0.0/8"}),
        ("127.0.0.1", {"HTTP_PROXY": "{proxy}", "NO_PROXY": "127.0.0.1:1"}),
        ("127.0.0.1", {"HTTP_PROXY": "{proxy}", "NO_PROXY": "127.0.0.1:{port}"}),
        ("127.0.0.1", {"HTTP_PROXY": "{proxy}", "NO_PROXY": "http://127.0.0.1"}),
        ("127.0.0.1", {"HTTP_PROXY": "{proxy}", "NO_PROXY": "::1"}),
        ("localhost", {"HTTP_PROXY": "{proxy}", "NO_PROXY": "localhost"}),
        ("localhost", {"HTTP_PROXY": "{proxy}", "NO_PROXY": "LOCALHOST"}),
        ("localhost", {"HTTP_PROXY": "{proxy}", "NO_PROXY": " , host"}),
    ],
)
@pytest.mark.anyio
async def test_proxies_of_the_environment_are_used_as_by_httpx(
    host: str, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve() as server:
        server.gate.set()
        port = server.url.rpartition(":")[2]
        for name in PROXY_VARIABLES:
            monkeypatch.delenv(name.lower(), raising=False)
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            # httpx takes the lower-case variable first where both are set.
            monkeypatch.setenv(name, value.format(proxy=server.url, address=f"127.0.0.1:{port}", port=port))
        origin = f"http://{host}:{port}"
        async with httpx.AsyncClient() as client:
            # A direct connection to the test domain fails.
            with contextlib.suppress(httpx.ConnectError):
                await client.post(f"{origin}/path")
        by_httpx = server.answered.copy()
        server.answered.clear()
        transport = Transport(origin, timeout=LONG, max_connections=1)
        await transport.send(post("/path"))
        await transport.aclose()
    assert server.answered == by_httpx


@pytest.mark.parametrize("location", ["http://[bad", "javascript:1", "x\ty", "https://xn--/", "/elsewhere"])
@pytest.mark.anyio
async def test_redirect_is_a_response_even_if_its_address_is_invalid(location: str) -> None:
    async def handle(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await read_request(stream)
            await stream.send(f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 2\r\n\r\nno".encode())

    async with serve(handle) as server:
        transport = Transport(server.url, timeout=LONG, max_connections=1)
        result = await transport.send(post("/"))
        await transport.aclose()
    assert isinstance(result, Response)
    assert (result.status, result.body) == (302, b"no")


@pytest.mark.anyio
async def test_connection_is_replaced_for_another_origin() -> None:
    async with serve() as first, serve() as second:
        first.gate.set()
        second.gate.set()
        transport = Transport(first.url, timeout=LONG, max_connections=1)
        for origin in ("", second.url, second.url, ""):
            request = Request(path="/path", headers={}, body=b"[]", origin=origin)
            assert isinstance(await transport.send(request), Response)
        await transport.aclose()
        assert (len(first.answered), len(second.answered)) == (2, 2)
        assert (first.accepted, second.accepted) == (2, 1)
        await until(lambda: first.open == second.open == 0)
