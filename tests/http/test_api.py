"""`Api.request`: headers, authentication, retries, and the exception of a failed request."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from mixpanel_async._encoding.clock import ServerClock
from mixpanel_async._http.api import Api
from mixpanel_async._http.metrics import RequestMetrics
from mixpanel_async._http.retry import PolicyRule
from mixpanel_async._http.transport import Transport
from mixpanel_async._model.config import RetryPolicy
from mixpanel_async._model.credentials import Secret, ServiceAccountCredentials, signed_auth, token_auth
from mixpanel_async._model.errors import (
    ApiError,
    AuthenticationError,
    MixpanelException,
    PayloadTooLargeError,
    RateLimitError,
    TransportError,
)
from mixpanel_async._model.outcomes import Response
from mixpanel_async._model.version import VERSION
from mixpanel_async._runtime.environment import Environment, real_environment

pytestmark = pytest.mark.anyio

TOKEN = "token-of-the-project"
ACCOUNT = ServiceAccountCredentials("account", "account-secret", "12345")
QUICK = RetryPolicy(attempts=3, initial=0.0, maximum=0.0, total_timeout=10.0)
Reply = httpx.Response | Exception


class Server:
    """Returns the given replies in order, and repeats the last one."""

    def __init__(self, *replies: Reply, environment: Environment | None = None) -> None:
        self.requests: list[httpx.Request] = []
        self.metrics = RequestMetrics(ServerClock(), lambda _: None)
        self._replies = [*replies]
        client = httpx.AsyncClient(transport=httpx.MockTransport(self._reply))
        transport = Transport("https://api.mixpanel.com", timeout=5.0, http_client=client, max_connections=1)
        self.api = Api(transport, environment or real_environment(), self.metrics)

    def _reply(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        reply = self._replies.pop(0) if len(self._replies) > 1 else self._replies[0]
        if isinstance(reply, Exception):
            raise reply
        return httpx.Response(reply.status_code, headers=reply.headers, content=reply.content)

    async def call(self, policy: RetryPolicy = QUICK, **options: Any) -> Response:
        options.setdefault("auth", signed_auth(TOKEN, ACCOUNT))
        return await self.api.request("GET", "/things", retry=PolicyRule(policy), **options)

    async def error(self, policy: RetryPolicy = QUICK, **options: Any) -> MixpanelException:
        with pytest.raises(MixpanelException) as caught:
            await self.call(policy, **options)
        return caught.value


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


async def test_request_carries_method_path_query_headers_and_body() -> None:
    server = Server(httpx.Response(200, content=b"[1]", headers={"ETag": "v1"}))
    response = await server.call(query="id=user-1", headers={"Content-Type": "text/csv", "X-Extra": "1"}, body=b"a,b")
    assert (response.status, response.body, response.etag) == (200, b"[1]", "v1")
    (request,) = server.requests
    assert (request.method, str(request.url.copy_with(query=None))) == ("GET", "https://api.mixpanel.com/things")
    assert (request.url.query, request.content) == (b"id=user-1", b"a,b")
    expected = {"accept": "application/json", "user-agent": f"mixpanel-async/{VERSION}", "x-extra": "1"}
    assert {name: request.headers[name] for name in expected} == expected
    assert request.headers["content-type"] == "text/csv"


async def test_request_can_go_to_another_origin() -> None:
    server = Server(httpx.Response(200), httpx.ConnectError("refused"))
    await server.call(origin="https://eu.mixpanel.com")
    (request,) = server.requests
    assert str(request.url) == "https://eu.mixpanel.com/things"
    assert request.headers["host"] == "eu.mixpanel.com"
    await server.error(origin="https://eu.mixpanel.com")
    assert server.metrics.last_error == "/things: no connection to eu.mixpanel.com (ConnectError: refused)"


@pytest.mark.parametrize(
    ("auth", "header"),
    [
        (signed_auth(TOKEN, ACCOUNT, Secret("project-secret")), basic("account", "account-secret")),
        (signed_auth(TOKEN, None, Secret("project-secret")), basic("project-secret", "")),
        (signed_auth(TOKEN, None), basic(TOKEN, "")),
        (token_auth(TOKEN), None),
    ],
    ids=["service account", "project secret", "token", "token in the body"],
)
async def test_best_credentials_authenticate(auth: Any, header: str | None) -> None:
    server = Server(httpx.Response(200))
    await server.call(auth=auth)
    assert server.requests[0].headers.get("authorization") == header
    assert "secret" not in repr(auth)
    assert TOKEN not in repr(auth)


@pytest.mark.parametrize(
    ("status", "kind", "attempts"),
    [
        (204, ApiError, 3),
        (304, ApiError, 1),
        (400, ApiError, 1),
        (401, AuthenticationError, 1),
        (402, AuthenticationError, 1),
        (403, AuthenticationError, 1),
        (404, ApiError, 1),
        (407, AuthenticationError, 1),
        (408, ApiError, 3),
        (413, PayloadTooLargeError, 1),
        (422, ApiError, 1),
        (429, RateLimitError, 3),
        (500, ApiError, 3),
        (501, ApiError, 1),
        (503, ApiError, 3),
    ],
)
async def test_status_selects_exception_and_number_of_attempts(
    status: int, kind: type[ApiError], attempts: int
) -> None:
    server = Server(httpx.Response(status, headers={"Retry-After": "0"}))
    error = await server.error()
    assert type(error) is kind
    assert isinstance(error, ApiError)
    assert (error.status, error.endpoint, error.attempts, error.retry_after) == (status, "/things", attempts, 0.0)
    assert error.message
    assert len(server.requests) == server.metrics.requests == attempts
    assert server.metrics.retries == attempts - 1
    assert server.metrics.last_error == f"/things: HTTP {status}: {error.message}"


@pytest.mark.parametrize(
    ("failure", "uncertain"), [(httpx.ConnectError("refused"), False), (httpx.ReadTimeout("slow"), True)]
)
async def test_missing_response_raises_a_transport_error(failure: Exception, uncertain: bool) -> None:
    error = await Server(failure).error()
    assert isinstance(error, TransportError)
    assert (error.attempts, error.uncertain, error.status) == (3, uncertain, None)


async def test_uncertain_attempt_is_reported_although_a_later_one_was_not_sent() -> None:
    error = await Server(httpx.ReadTimeout("slow"), httpx.ConnectError("refused")).error()
    assert isinstance(error, TransportError)
    assert error.uncertain


async def test_retry_succeeds_after_failures() -> None:
    server = Server(httpx.Response(503), httpx.ConnectError("refused"), httpx.Response(200, content=b"ok"))
    assert (await server.call()).body == b"ok"
    assert len(server.requests) == 3


async def test_message_of_the_server_is_masked() -> None:
    header = basic("account", "account-secret").removeprefix("Basic ")
    text = f"{TOKEN} account-secret {header} at https://api.mixpanel.com/things?id=user-1 or /things?id=user-1\nend"
    error = await Server(httpx.Response(400, content=text.encode())).error()
    assert isinstance(error, ApiError)
    assert error.message == "*** *** *** at *** or *** end"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error": "no such table", "status": "error"}', "no such table"),
        (b'{"error": {"code": 5}}', '{"error": {"code": 5}}'),
        (b"[1, 2]", "[1, 2]"),
        (b"<h1>Bad request</h1>", "<h1>Bad request</h1>"),
        (b"x" * 5_000, "x" * 500),
        (b"", "the request was rejected"),
    ],
    ids=["error field", "error object", "list", "page", "long", "empty"],
)
async def test_message_is_the_error_field_or_the_text_of_the_body(body: bytes, message: str) -> None:
    error = await Server(httpx.Response(400, content=body)).error()
    assert isinstance(error, ApiError)
    assert error.message == message


def clock(*, total: float, wait: float, before: Callable[[], float]) -> tuple[Environment, RetryPolicy]:
    environment = real_environment()
    fixed = Environment(
        wall_time=environment.wall_time, monotonic=before, random=lambda: 1.0, new_id=environment.new_id
    )
    return fixed, RetryPolicy(initial=wait, maximum=wait, total_timeout=total)


async def test_no_attempt_begins_after_the_total_timeout() -> None:
    environment, policy = clock(total=10.0, wait=11.0, before=lambda: 0.0)
    server = Server(httpx.Response(503), environment=environment)
    error = await server.error(policy)
    assert isinstance(error, ApiError)
    assert (error.status, error.attempts) == (503, 1)


async def test_cancelled_caller_ends_the_attempts() -> None:
    server = Server(httpx.Response(503))
    await server.error(is_cancelled=lambda: True)
    assert len(server.requests) == 1
    server = Server(httpx.Response(503))
    await server.error(is_cancelled=lambda: len(server.requests) == 2)
    assert len(server.requests) == 2
