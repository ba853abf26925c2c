"""Proxy for the browser SDK: what reaches Mixpanel, what reaches the page, and what happens if Mixpanel fails."""

from __future__ import annotations

import base64
import gzip
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.abc
import httpx
import pytest
from fastapi import FastAPI
from lifespans import lifespan_of
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from mixpanel_async import ConfigurationError, IdMerge
from mixpanel_async.emulator import Emulator
from mixpanel_async.integrations.asgi import TrackingProxy

SENDER = "198.51.100.7"
TOKEN_ONLY = "Basic " + base64.b64encode(b"page-token:").decode()
PASSWORD = "Basic " + base64.b64encode(b"maya:secret").decode()


@dataclass
class Upstream:
    """Server in the place of Mixpanel: records what arrives, and sends prepared bytes."""

    response: bytes = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1\r\n\r\n1"
    answers: bool = True
    requests: list[bytes] = field(default_factory=list)
    arrived: anyio.Event = field(default_factory=anyio.Event)
    closed: anyio.Event = field(default_factory=anyio.Event)
    url: str = ""

    async def serve(self, stream: anyio.abc.SocketStream) -> None:
        async with stream:
            text = b""
            try:
                while True:
                    text += await stream.receive()
                    if self._is_complete(text):
                        self.requests.append(text)
                        self.arrived.set()
                        text = b""
                        if self.answers:
                            await stream.send(self.response)
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                self.closed.set()

    @staticmethod
    def _is_complete(text: bytes) -> bool:
        head, end, body = text.partition(b"\r\n\r\n")
        if not end:
            return False
        if b"transfer-encoding: chunked" in head.lower():
            return body.endswith(b"0\r\n\r\n")
        length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        return len(body) >= (int(length[0].partition(b":")[2]) if length else 0)

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the last request, without those of every HTTP request."""
        lines = self.requests[-1].partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
        found = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        return {name: value for name, value in found.items() if name != "host"}

    @property
    def first_line(self) -> str:
        return self.requests[-1].partition(b"\r\n")[0].decode()


@asynccontextmanager
async def upstream(**options: Any) -> AsyncIterator[Upstream]:
    found = Upstream(**options)
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    found.url = f"http://127.0.0.1:{listener.extra(anyio.abc.SocketAttribute.local_port)}"
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, found.serve)
        yield found
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def proxied(url: str, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Return a client of a mounted proxy."""
    proxy = TrackingProxy(api_host=url, **options)
    app = Starlette(routes=[Mount("/mp", proxy)])
    transport = httpx.ASGITransport(app, client=(SENDER, 40_000))
    async with httpx.AsyncClient(transport=transport, base_url="http://shop.example") as client:
        try:
            yield client
        finally:
            await proxy.aclose()


def answer(head: str, body: bytes = b"1") -> bytes:
    return f"HTTP/1.1 {head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def page(request: Request) -> PlainTextResponse:
    return PlainTextResponse("page")


def in_fastapi(url: str) -> Any:
    app = FastAPI()
    app.add_api_route("/page", lambda: "page")
    app.add_middleware(TrackingProxy, path="/mp", api_host=url)
    return app


def in_starlette(url: str) -> Any:
    return Starlette(routes=[Route("/page", page)], middleware=[Middleware(TrackingProxy, api_host=url)])


def around_an_app(url: str) -> Any:
    return TrackingProxy(Starlette(routes=[Route("/page", page)]), api_host=url)


@pytest.mark.parametrize("make", [in_fastapi, in_starlette, around_an_app])
@pytest.mark.anyio
async def test_events_of_the_page_reach_the_emulator_through_the_app(make: Any) -> None:
    emulator = Emulator(IdMerge.SIMPLIFIED)
    record = {
        "event": "Page viewed",
        "properties": {"token": "any", "time": time.time(), "$insert_id": "one", "distinct_id": "$device:1"},
    }
    with emulator.serve() as server:
        app = make(server.url)
        async with (
            lifespan_of(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop.example") as client,
        ):
            response = await client.post("/mp/track/?ip=1&verbose=1", data={"data": json.dumps([record])})
            assert (response.status_code, response.json()["status"]) == (200, 1)
            assert "page" in (await client.get("/page")).text
            assert (await client.get("/mp/unknown")).status_code == 404
            assert (await client.get("/mpx/track")).status_code == 404
    assert [event["event"] for event in emulator.events()] == ["Page viewed"]


@pytest.mark.anyio
async def test_only_what_mixpanel_needs_is_forwarded() -> None:
    given = {
        "Cookie": "session=secret; mp_visitor=1",
        "Authorization": PASSWORD,
        "Referer": "http://shop.example/reset?secret=1",
        "Origin": "http://shop.example",
        "X-Api-Key": "secret",
        "X-Forwarded-For": "203.0.113.99",
        "X-Real-IP": "203.0.113.99",
        "Forwarded": "for=203.0.113.99",
        "Connection": "keep-alive, X-Api-Key",
        "Proxy-Authorization": "secret",
        "User-Agent": "Browser/1",
        "Accept": "*/*",
        "Accept-Encoding": "gzip",
        "Content-Type": "application/x-www-form-urlencoded",
    }
    async with upstream() as mixpanel, proxied(mixpanel.url) as client:
        response = await client.post("/mp/track/?ip=1&_=%20a", headers=given, content=b"data=1")
        assert response.text == "1"
        assert mixpanel.first_line == "POST /track/?ip=1&_=%20a HTTP/1.1"
        assert mixpanel.requests[-1].endswith(b"\r\n\r\ndata=1")
        assert mixpanel.headers == {
            "accept": "*/*",
            "accept-encoding": "gzip",
            "content-length": "6",
            "content-type": "application/x-www-form-urlencoded",
            "user-agent": "Browser/1",
            "x-forwarded-for": SENDER,
            "x-real-ip": SENDER,
        }
        await client.get("/mp/flags/?context=1", headers={"Authorization": TOKEN_ONLY})
        assert mixpanel.headers["authorization"] == TOKEN_ONLY
        for other in ("Bearer secret", "Basic ???", "Basic " + base64.b64encode(b"maya:secret:").decode()):
            await client.get("/mp/flags/", headers={"Authorization": other})
            assert "authorization" not in mixpanel.headers


@pytest.mark.anyio
async def test_address_behind_a_proxy_is_that_of_the_client() -> None:
    async with upstream() as mixpanel, proxied(mixpanel.url, trusted_proxies=1) as client:
        await client.get("/mp/track/", headers={"X-Forwarded-For": "203.0.113.99, 192.0.2.44"})
        assert mixpanel.headers["x-forwarded-for"] == "192.0.2.44"
        await client.get("/mp/track/", headers={"X-Forwarded-For": "203.0.113.99, unknown"})
        assert "x-forwarded-for" not in mixpanel.headers


@pytest.mark.anyio
async def test_compressed_bodies_pass_unchanged_in_both_directions() -> None:
    packed = gzip.compress(b'{"flags": {}}')
    head = (
        f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\nContent-Length: {len(packed)}"
    )
    async with upstream(response=f"{head}\r\n\r\n".encode() + packed) as mixpanel, proxied(mixpanel.url) as client:
        found = await client.post("/mp/record/", content=packed, headers={"Content-Encoding": "gzip"})
        assert found.json() == {"flags": {}}
        assert found.headers["content-length"] == str(len(packed))
        assert mixpanel.headers["content-encoding"] == "gzip"
        assert mixpanel.requests[-1].endswith(packed)


@pytest.mark.anyio
async def test_body_of_unknown_length_is_streamed() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"data="
        yield b"1"

    async with upstream() as mixpanel, proxied(mixpanel.url) as client:
        assert (await client.post("/mp/engage/", content=chunks())).status_code == 200
        assert mixpanel.headers["transfer-encoding"] == "chunked"
        assert b"data=" in mixpanel.requests[-1]


@pytest.mark.loops_in_turn
@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/mp/import", {}, 404),
        ("GET", "/mp/flags/definitions", {}, 404),
        ("GET", "/mp/", {}, 404),
        ("GET", "/mp/lib.min.js", {}, 404),
        ("GET", "/mp/track/../import", {}, 404),
        ("GET", "/mp/track%2F..%2Fimport", {}, 404),
        ("GET", "/mp//evil.example/track", {}, 404),
        ("GET", "/mp/@evil.example/track", {}, 404),
        ("GET", "/mp/track%0d%0aX:%20y", {}, 404),
        ("PUT", "/mp/track", {}, 405),
        ("OPTIONS", "/mp/track", {}, 405),
        ("HEAD", "/mp/track", {}, 405),
        ("POST", "/mp/track", {"Sec-Fetch-Site": "cross-site"}, 403),
        ("POST", "/mp/track", {"Content-Length": "1001"}, 413),
        ("POST", "/mp/track", {"Content-Length": "9" * 5_000}, 413),
        ("POST", "/mp/track", {"Content-Length": "-1"}, 400),
        ("POST", "/mp/track", {"Content-Length": "abc"}, 400),
        ("POST", "/mp/track", {"Content-Length": "6, 6"}, 400),
        ("POST", "/mp/track", {"Content-Length": ""}, 400),
        ("GET", f"/mp/track?data={'x' * 40_000}", {}, 414),
    ],
)
@pytest.mark.anyio
async def test_other_requests_are_refused(method: str, path: str, headers: dict[str, str], status: int) -> None:
    async with upstream() as mixpanel, proxied(mixpanel.url, max_body_bytes=1_000) as client:
        response = await client.request(method, path, headers=headers)
        assert response.status_code == status
        assert mixpanel.requests == []


async def post_messages(proxy: TrackingProxy, *messages: dict[str, Any], query: bytes = b"", **headers: bytes) -> int:
    """Send the messages of a server for one POST. Return the status of the response."""
    left, sent = list(messages), []

    async def receive() -> Any:
        return left.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    scope: Any = {
        "type": "http",
        "method": "POST",
        "path": "/track",
        "headers": [(name.replace("_", "-").encode(), value) for name, value in headers.items()],
        "query_string": query,
        "client": None,
    }
    await proxy(scope, receive, send)
    status: int = sent[0]["status"]
    return status


@pytest.mark.anyio
async def test_body_that_is_too_large_or_incomplete_is_cut_while_it_is_streamed() -> None:
    chunk = {"type": "http.request", "body": b"x" * 600, "more_body": True}
    async with upstream() as mixpanel:
        proxy = TrackingProxy(api_host=mixpanel.url, max_body_bytes=1_000)
        assert await post_messages(proxy, chunk, chunk, chunk) == 413
        assert await post_messages(proxy, chunk, {"type": "http.disconnect"}) == 502
        assert await post_messages(proxy, {**chunk, "more_body": False}) == 200
        assert len(mixpanel.requests) == 1
        await proxy.aclose()


@pytest.mark.loops_in_turn
@pytest.mark.parametrize(
    ("headers", "chunks", "status"),
    [
        ({"content_length": b"6"}, [b"data", b"=1"], 200),
        ({"content_length": b"6"}, [b"data"], 400),
        ({"content_length": b"6"}, [b"data=1", b"2"], 400),
        ({"content_length": b"0"}, [b""], 200),
        ({"content_length": b"0"}, [b"GET /flags HTTP/1.1\r\n\r\n"], 400),
        # Some servers pass both headers on.
        ({"content_length": b"3", "transfer_encoding": b"chunked"}, [b"data=1"], 200),
        ({"content_length": b"9", "transfer_encoding": b"chunked"}, [b"data=1"], 200),
        ({"content_length": b"9", "transfer_encoding": b"chunked"}, [b""], 200),
    ],
)
@pytest.mark.anyio
async def test_body_has_the_declared_length(headers: dict[str, bytes], chunks: list[bytes], status: int) -> None:
    messages: list[dict[str, Any]] = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages[-1]["more_body"] = False
    async with upstream() as mixpanel:
        proxy = TrackingProxy(api_host=mixpanel.url)
        assert await post_messages(proxy, *messages, **headers) == status
        if status == 200:
            is_chunked = "transfer_encoding" in headers
            assert mixpanel.headers.get("content-length") == (
                None if is_chunked else headers["content_length"].decode()
            )
            assert mixpanel.headers.get("transfer-encoding") == ("chunked" if is_chunked else None)
        else:
            # What follows the declared length is not sent.
            assert all(sent.partition(b"\r\n\r\n")[2] in {b"", b"data=1"} for sent in mixpanel.requests)
        await proxy.aclose()


@pytest.mark.parametrize("query", [b"data=\xff", b"data=1#fragment", b"a=\x00", b"a=1\r\nX: y"])
@pytest.mark.anyio
async def test_query_that_cannot_be_sent_is_refused(query: bytes) -> None:
    async with upstream() as mixpanel:
        proxy = TrackingProxy(api_host=mixpanel.url)
        assert await post_messages(proxy, {"type": "http.request"}, query=query) == 400
        assert mixpanel.requests == []
        await proxy.aclose()


@pytest.mark.parametrize(
    ("response", "status"),
    [
        (answer("302 Found\r\nLocation: http://evil.example/"), 502),
        (answer("200 OK", b"x" * 1_048_577), 502),
        (b"not HTTP\r\n\r\n", 502),
        (answer("429 Too Many Requests\r\nRetry-After: 7"), 429),
        (answer("503 Service Unavailable"), 503),
    ],
    ids=["redirect", "too-large", "garbage", "429", "503"],
)
@pytest.mark.anyio
async def test_response_is_forwarded_only_if_it_is_usable(response: bytes, status: int) -> None:
    async with upstream(response=response) as mixpanel, proxied(mixpanel.url) as client:
        found = await client.post("/mp/track", content=b"data=1")
        assert found.status_code == status
        assert "location" not in found.headers
        if status == 502:
            assert found.text == "0"
        assert found.headers.get("retry-after") == ("7" if status == 429 else None)


@pytest.mark.anyio
async def test_response_cannot_act_as_a_page_of_the_app() -> None:
    kind = "Content-Type: text/html\r\nSet-Cookie: session=evil\r\nAccess-Control-Allow-Origin: *\r\nDate: now"
    response = answer(f"200 OK\r\n{kind}\r\nContent-Security-Policy: none\r\nServer: x", b"<script>")
    async with upstream(response=response) as mixpanel, proxied(mixpanel.url) as client:
        found = await client.get("/mp/track?callback=alert")
        assert dict(found.headers) == {
            "content-length": "8",
            "content-type": "text/plain",
            "x-content-type-options": "nosniff",
        }


@pytest.mark.anyio
async def test_unreachable_host_gets_502_and_a_slow_one_504() -> None:
    async with upstream() as mixpanel:
        pass
    async with proxied(mixpanel.url) as client:
        assert (await client.post("/mp/track", content=b"data=1")).status_code == 502
    async with upstream(answers=False) as slow, proxied(slow.url, timeout=0.1) as client:
        assert (await client.post("/mp/track", content=b"data=1")).status_code == 504


@pytest.mark.anyio
async def test_requests_over_the_limit_are_refused_and_the_place_is_free_again() -> None:
    async with upstream(answers=False) as mixpanel, proxied(mixpanel.url, max_requests=1) as client:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.get, "/mp/track")
            await mixpanel.arrived.wait()
            assert (await client.get("/mp/track")).status_code == 503
            tasks.cancel_scope.cancel()
        # The cancelled request has closed its connection.
        await mixpanel.closed.wait()
        mixpanel.answers = True
        assert (await client.get("/mp/track")).status_code == 200


@pytest.mark.anyio
async def test_connections_are_closed_when_the_server_hears_of_the_end() -> None:
    """Hypercorn cancels the lifespan then."""
    events = [{"type": "lifespan.shutdown"}, {"type": "lifespan.startup"}]
    answers: list[str] = []

    async def receive() -> Any:
        return events.pop()

    async def send(message: Any) -> None:
        answers.append(message["type"])
        if message["type"] == "lifespan.startup.complete":
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
                assert (await client.get("http://shop.example/mp/track")).status_code == 200
        else:
            with anyio.fail_after(10):
                await mixpanel.closed.wait()

    async with upstream() as mixpanel:
        app = in_starlette(mixpanel.url)
        await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)
    assert answers == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


@pytest.mark.anyio
async def test_proxies_in_one_event_loop_are_independent() -> None:
    async with (
        upstream(answers=False) as slow,
        upstream() as mixpanel,
        proxied(slow.url, max_requests=1) as first,
        proxied(mixpanel.url, max_requests=1) as second,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(first.get, "/mp/track")
        await slow.arrived.wait()
        assert (await second.get("/mp/track")).status_code == 200
        tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_connections_close_with_the_lifespan_of_the_app() -> None:
    async with upstream() as mixpanel:
        app = in_starlette(mixpanel.url)
        async with lifespan_of(app), httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
            for _ in range(2):
                assert (await client.get("http://shop.example/mp/track")).status_code == 200
            assert not mixpanel.closed.is_set()
        await mixpanel.closed.wait()


@pytest.mark.anyio
async def test_websocket_is_refused() -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    app = Starlette(routes=[Mount("/mp", TrackingProxy())])
    scope: Any = {"type": "websocket", "path": "/mp/track", "headers": [], "query_string": b"", "subprotocols": []}
    await app(scope, receive, send)
    assert [message["type"] for message in sent] == ["websocket.close"]


@pytest.mark.anyio
async def test_log_has_no_events(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="httpx")
    async with upstream() as mixpanel, proxied(mixpanel.url) as client:
        await client.get("/mp/track", params={"data": "payload"})
    texts = [record.getMessage() for record in caplog.records if mixpanel.url in record.getMessage()]
    assert len(texts) == 1
    assert "payload" not in texts[0]


@pytest.mark.anyio
async def test_nothing_is_forwarded_if_tracking_is_disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIXPANEL_DISABLED", "1")
    async with upstream() as mixpanel, proxied(mixpanel.url) as client:
        response = await client.post("/mp/track", content=b"data=1")
        assert (response.status_code, response.text) == (200, "1")
        assert mixpanel.requests == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "mp"}, "path must be"),
        ({"path": "/"}, "path must be"),
        ({"path": "/mp/"}, "path must be"),
        ({"timeout": 0}, "timeout must be between"),
        ({"max_body_bytes": 1.5}, "max_body_bytes must be an integer"),
        ({"max_requests": 0}, "max_requests must be between"),
        ({"api_host": "ftp://host"}, "api_host"),
        ({"trusted_proxies": -1}, "trusted_proxies must be"),
    ],
)
def test_options_are_validated(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        TrackingProxy(**options)
