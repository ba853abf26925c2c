"""Tests of import credentials, the request log, and planned faults of `fail_next` and `drop_connections`."""

from __future__ import annotations

import base64
from typing import Any

import anyio
import httpx
import pytest
from emulator_wire import TOKEN, Wire, imported

from mixpanel_async import AsyncMixpanel, IdMerge, RetryPolicy, TransportError
from mixpanel_async.emulator import Emulator
from mixpanel_async.emulator.http.faults import ConnectionDroppedError

ACCOUNT = ("robot", "s3cret", "42")
UNAUTHORIZED = {"code": 401, "error": "Invalid credentials", "status": "Unauthorized"}


@pytest.fixture
def mixpanel() -> Wire:
    return Wire(Emulator(IdMerge.ORIGINAL))


def import_status(mixpanel: Wire, query: str = "", **options: Any) -> int:
    response = mixpanel.request("POST", f"/import{query}", json=[imported()], **options)
    if response.status_code == 401:
        assert response.json() == UNAUTHORIZED
        assert mixpanel.emulator.events() == []
    return response.status_code


def test_import_requires_some_credentials_if_none_are_configured(mixpanel: Wire) -> None:
    assert import_status(mixpanel) == 401
    assert import_status(mixpanel, auth=("", "")) == 401
    assert import_status(mixpanel, headers={"authorization": "Bearer x"}) == 401
    assert import_status(mixpanel, headers={"authorization": "Basic \udcff".encode("utf-8", "replace").decode()}) == 401
    assert import_status(mixpanel, auth=("anything", "")) == 200


@pytest.mark.parametrize(
    ("auth", "query", "status"),
    [
        (("tok", ""), "", 200),
        (("tok", "pass"), "", 401),
        (("key", ""), "", 200),
        (ACCOUNT[:2], "?project_id=42", 200),
        (ACCOUNT[:2], "", 401),
        (ACCOUNT[:2], "?project_id=43", 401),
        (("robot", ""), "?project_id=42", 401),
        (("other", ""), "", 401),
        (("", ""), "", 401),
    ],
)
def test_configured_credentials_are_checked(auth: tuple[str, str], query: str, status: int) -> None:
    mixpanel = Wire(Emulator(token="tok", secret="key", service_account=ACCOUNT))
    assert import_status(mixpanel, query, auth=auth) == status


def test_credentials_are_accepted_without_base64(mixpanel: Wire) -> None:
    mixpanel = Wire(Emulator(secret="key"))
    assert import_status(mixpanel, headers={"authorization": "Basic key:"}) == 200
    assert import_status(mixpanel, headers={"authorization": "Basic " + base64.b64encode(b"key:").decode()}) == 200


def test_request_log_masks_credentials(mixpanel: Wire) -> None:
    mixpanel.post("/import?strict=1&api_key=hidden", [imported(), {}], auth=("hidden", ""))
    (request,) = mixpanel.emulator.requests()
    assert (request.method, request.path, request.status, request.records) == ("POST", "/import", 400, 2)
    assert request.query["strict"] == "1"
    assert request.headers["content-type"] == "application/json"
    assert int(request.headers["content-length"]) == request.body_bytes
    assert "hidden" not in repr(request)
    assert base64.b64encode(b"hidden:").decode() not in repr(request)


@pytest.mark.parametrize("status", [400, 401, 403, 413, 429])
@pytest.mark.parametrize("path", ["/track", "/import", "/engage", "/groups"])
def test_planned_status_has_documented_body(mixpanel: Wire, path: str, status: int) -> None:
    mixpanel.emulator.fail_next(status)
    response = mixpanel.post(path, [])
    assert response.status_code == status
    assert "retry-after" not in response.headers
    if path == "/import":
        assert response.json()["code"] == status
    else:
        assert set(response.json()) == {"error", "status"}
        assert response.json()["status"] == "error"


def test_planned_429_has_documented_body(mixpanel: Wire) -> None:
    mixpanel.emulator.fail_next(429, retry_after=1.5)
    response = mixpanel.post("/import", [imported()])
    assert response.headers["retry-after"] == "1.5"
    assert response.json() == {
        "code": 429,
        "error": "Project exceeded rate limits. Please retry the request with exponential backoff.",
        "status": "Too Many Requests",
    }


def test_planned_faults_apply_in_order_to_their_endpoint(mixpanel: Wire) -> None:
    mixpanel.emulator.fail_next(500, times=2, path="/import")
    mixpanel.emulator.fail_next(502)
    statuses = [mixpanel.post(path, []).status_code for path in ("/import", "/track", "/track", "/import", "/import")]
    assert statuses == [500, 502, 200, 500, 200]


def test_planned_fault_stores_nothing_without_apply(mixpanel: Wire) -> None:
    mixpanel.emulator.fail_next(503)
    assert mixpanel.post("/import", [imported()]).status_code == 503
    assert mixpanel.emulator.events() == []
    mixpanel.emulator.fail_next(503, apply=True)
    assert mixpanel.post("/import", [imported()]).status_code == 503
    assert len(mixpanel.emulator.events()) == 1
    assert [(request.status, request.records) for request in mixpanel.emulator.requests()] == [(503, 0), (503, 1)]


def test_planned_status_accepts_any_body(mixpanel: Wire) -> None:
    mixpanel.emulator.fail_next(200, body=b"<html>", retry_after="Wed, 21 Oct 2026 07:28:00 GMT")
    response = mixpanel.post("/track", [])
    assert (response.status_code, response.content) == (200, b"<html>")
    assert response.headers["retry-after"] == "Wed, 21 Oct 2026 07:28:00 GMT"
    mixpanel.emulator.fail_next(200, path="/import")
    assert mixpanel.post("/import", [imported()]).json()["code"] == 200
    assert mixpanel.emulator.events() == []


def test_dropped_connection_raises_from_application(mixpanel: Wire) -> None:
    mixpanel.emulator.drop_connections(2, path="/track")
    mixpanel.emulator.drop_connections(1, path="/track", apply=True)
    for stored in (0, 0, 1):
        with pytest.raises(ConnectionDroppedError):
            mixpanel.track("u")
        assert len(mixpanel.emulator.events()) == stored
    mixpanel.track("u")
    assert [request.status for request in mixpanel.emulator.requests()] == [None, None, None, 200]


@pytest.mark.parametrize(
    "plan",
    [
        lambda emulator: emulator.fail_next(times=0),
        lambda emulator: emulator.fail_next(199),
        lambda emulator: emulator.fail_next(600),
        lambda emulator: emulator.fail_next(path="/tracks"),
        lambda emulator: emulator.fail_next(retry_after=-1),
        lambda emulator: emulator.fail_next(retry_after=float("inf")),
        lambda emulator: emulator.drop_connections(0),
        lambda emulator: emulator.serve("0.0.0.0"),
        lambda emulator: emulator.serve("example.com"),
        lambda emulator: setattr(emulator, "latency", -1.0),
        lambda emulator: setattr(emulator, "latency", float("nan")),
        lambda emulator: Emulator(cluster_limit=1),
        lambda emulator: Emulator(max_events=0),
        lambda emulator: Emulator(max_bytes=0),
    ],
)
def test_options_out_of_bounds_are_refused(plan: Any) -> None:
    emulator = Emulator()
    with pytest.raises(ValueError):  # noqa: PT011  each names its own argument
        plan(emulator)
    assert emulator.latency == 0.0


@pytest.mark.anyio
async def test_latency_delays_response_but_not_effect() -> None:
    emulator = Emulator()
    emulator.latency = 3600.0
    event = {"event": "Viewed", "properties": {"token": TOKEN, "distinct_id": "u"}}
    transport = httpx.ASGITransport(app=emulator.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        with anyio.move_on_after(0.05) as scope:
            await http.post("/track", json=[event])
    assert scope.cancelled_caught
    assert len(emulator.events()) == 1


@pytest.mark.anyio
async def test_in_process_client_reaches_emulator() -> None:
    emulator = Emulator(IdMerge.ORIGINAL, token="tok")
    async with emulator.client() as mp:
        await mp.track("u", "Viewed")
        await mp.alias("x", "u")
        await mp.people_set("x", {"plan": "pro"})
        await mp.flush()
        emulator.drop_connections(apply=True)
        with pytest.raises(TransportError):
            await emulator.client(identity_retry=RetryPolicy(attempts=1)).alias("y", "u")
    assert [event["properties"]["token"] for event in emulator.events("Viewed")] == ["tok"]
    assert emulator.cluster("u") == {"u", "x", "y"}
    assert (emulator.profile("u") or {})["plan"] == "pro"


@pytest.mark.anyio
async def test_explicit_options_override_emulator_options() -> None:
    emulator = Emulator(token="tok")
    client = emulator.client("other", api_host="http://127.0.0.1:9")
    assert isinstance(client, AsyncMixpanel)
    async with client as mp:
        await mp.track("u", "Viewed")
        await mp.flush()
    assert emulator.events() == []
    assert emulator.requests()[0].headers["host"] == "127.0.0.1:9"
