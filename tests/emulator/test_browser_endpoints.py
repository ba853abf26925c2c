"""Tests with the request forms of mixpanel-browser 2.31 to 2.83, as recorded from the SDK in Chromium."""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any, Final
from urllib.parse import quote, urlencode

import anyio
import httpx
import pytest
from emulator_wire import TOKEN, Wire

from mixpanel_async.emulator import Emulator
from mixpanel_async.emulator.project.browser import MAX_RECORDINGS

PAGE: Final = "http://localhost:5173"
AUTHORIZATION: Final = "Basic " + base64.b64encode(f"{TOKEN}:".encode()).decode()
FORM: Final = "application/x-www-form-urlencoded"
# The SDK calls `sendBeacon` with a text.
BEACON: Final = "text/plain;charset=UTF-8"
REPLAY: Final = {
    "$current_url": f"{PAGE}/one",
    "$lib_version": "2.83.0",
    "batch_start_time": "1795992598.595",
    "mp_lib": "web",
    "replay_id": "948a30f7-fae0-4367-934b-c767f3f0a4fd",
    "replay_length_ms": "2500",
    "replay_start_time": "1795992598.595",
    "replay_start_url": f"{PAGE}/one",
    "seq": "0",
    "distinct_id": "user-1",
    "$device_id": "d20f0f08-6971-4f52-82bf-b115a18e056b",
    "$user_id": "user-1",
    "format": "gzip",
}
SNAPSHOT: Final = gzip.compress(b'[{"type": 2, "timestamp": 1795992598595}]', mtime=0)


@pytest.fixture
def mixpanel() -> Wire:
    return Wire(Emulator(token=TOKEN), served=True)


def send(mixpanel: Wire, method: str, path: str, **options: Any) -> httpx.Response:
    """Send a request as a page of another origin, and check that the page can read the response."""
    headers = {"origin": PAGE, **options.pop("headers", {})}
    response = mixpanel.request(method, path, headers=headers, **options)
    assert response.headers["access-control-allow-origin"] == PAGE
    return response


def send_form(mixpanel: Wire, path: str, records: Any, content_type: str, *, encoded: bool) -> httpx.Response:
    text = json.dumps(records)
    data = base64.b64encode(text.encode()).decode() if encoded else text
    url = f"{path}?verbose=1&ip=1&_=1795992598727"
    return send(mixpanel, "POST", url, content=f"data={quote(data, safe='')}", headers={"content-type": content_type})


@pytest.mark.parametrize("encoded", [True, False], ids=["base64", "json"])
@pytest.mark.parametrize("content_type", [FORM, BEACON])
def test_records_of_browser_sdk(mixpanel: Wire, content_type: str, encoded: bool) -> None:
    event = {"event": "Viewed", "properties": {"token": TOKEN, "distinct_id": "u", "title": "é ~ü ?+"}}
    profile = {"$token": TOKEN, "$distinct_id": "u", "$set": {"$name": "U"}}
    group = {"$token": TOKEN, "$group_key": "company", "$group_id": "acme", "$set": {"size": 1}}
    for path, record in (("/track/", event), ("/engage/", profile), ("/groups/", group)):
        for records in ([record], record):
            response = send_form(mixpanel, path, records, content_type, encoded=encoded)
            assert response.json() == {"error": None, "status": 1}
    assert [one["properties"]["title"] for one in mixpanel.emulator.raw_events()] == ["é ~ü ?+"] * 2
    profile = mixpanel.emulator.profile("u") or {}
    assert (profile.pop("$last_seen", None) is not None, profile) == (True, {"$name": "U"})
    assert mixpanel.emulator.group("company", "acme") == {"size": 1}


def flags_query(**context: Any) -> dict[str, str]:
    return {"context": json.dumps(context), "token": TOKEN, "mp_lib": "web", "$lib_version": "2.83.0"}


@pytest.mark.parametrize("path", ["/flags", "/flags/"])
def test_flags_of_browser_sdk(mixpanel: Wire, path: str) -> None:
    mixpanel.emulator.set_flag("checkout", "fast")
    headers = {
        "authorization": AUTHORIZATION,
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    }
    context = {"distinct_id": "$device:d20f0f08-6971-4f52-82bf-b115a18e056b", "device_id": "d20f0f08"}
    by_get = send(mixpanel, "GET", path, params=flags_query(**context), headers=headers)
    headers = {"authorization": AUTHORIZATION, "content-type": "application/octet-stream"}
    by_post = send(mixpanel, "POST", path, content=json.dumps({"context": context}), headers=headers)
    for response in (by_get, by_post):
        assert response.status_code == 200
        assert response.json()["flags"]["checkout"]["variant_value"] == "fast"


@pytest.mark.parametrize("body", [b"{", b"[]", b"1", b"{}", b'{"context": 1}', b'{"context": {}}', b""])
def test_posted_flag_context_must_be_an_object(mixpanel: Wire, body: bytes) -> None:
    response = send(mixpanel, "POST", "/flags/", content=body, headers={"authorization": AUTHORIZATION})
    assert (response.status_code, response.json()["status"]) == (400, "error")


@pytest.mark.parametrize("path", ["/settings", "/settings/"])
def test_project_has_no_remote_settings(mixpanel: Wire, path: str) -> None:
    query = {"$lib_version": "2.83.0", "mp_lib": "web", "sdk_config": "1"}
    response = send(mixpanel, "GET", path, params=query, headers={"authorization": AUTHORIZATION})
    assert (response.status_code, response.json()) == (200, {"code": 200, "sdk_config": None})


@pytest.mark.parametrize("path", ["/decide", "/decide/"])
def test_project_has_no_messages_for_old_browser_sdks(mixpanel: Wire, path: str) -> None:
    query = {"verbose": "1", "version": "3", "lib": "web", "token": TOKEN, "distinct_id": "u", "ip": "1"}
    expected = {"notifications": [], "config": {"enable_collect_everything": False}}
    assert send(mixpanel, "GET", path, params=query).json() == expected
    posted = send(mixpanel, "POST", path, params=query, content=b"data=undefined", headers={"content-type": FORM})
    assert posted.json() == expected


def send_replay(mixpanel: Wire, body: bytes = SNAPSHOT, **changes: str) -> httpx.Response:
    headers = {"authorization": AUTHORIZATION, "content-type": "application/octet-stream"}
    return send(mixpanel, "POST", f"/record/?{urlencode({**REPLAY, **changes})}", content=body, headers=headers)


def test_recordings_are_counted(mixpanel: Wire) -> None:
    responses = [
        send_replay(mixpanel),
        send_replay(mixpanel, seq="1", replay_length_ms="12500"),
        send_replay(mixpanel, b"[]", replay_id="second", format="body", distinct_id="user-2"),
    ]
    assert [(one.status_code, one.json()) for one in responses] == [(200, {"code": 200, "status": "OK"})] * 3
    first = {
        "replay_id": REPLAY["replay_id"],
        "distinct_id": "user-1",
        "batches": 2,
        "body_bytes": 2 * len(SNAPSHOT),
        "seconds": 12.5,
    }
    second = {"replay_id": "second", "distinct_id": "user-2", "batches": 1, "body_bytes": 2, "seconds": 2.5}
    assert mixpanel.emulator.recordings() == [first, second]
    assert mixpanel.request("GET", "/_emulator/recordings", params={"limit": "1"}).json() == [second]
    assert mixpanel.emulator.rejected() == []
    mixpanel.emulator.reset()
    assert mixpanel.emulator.recordings() == []


@pytest.mark.parametrize(
    ("body", "changes", "message"),
    [
        (SNAPSHOT, {"replay_id": ""}, "replay_id must have 1 to 255 characters"),
        (SNAPSHOT, {"replay_id": "x" * 256}, "replay_id must have 1 to 255 characters"),
        (SNAPSHOT, {"replay_length_ms": "long"}, "replay_length_ms must be a number"),
        (SNAPSHOT, {"replay_length_ms": "inf"}, "replay_length_ms must be a number"),
        (b"", {}, "the body is empty"),
    ],
)
def test_malformed_recording_is_refused(mixpanel: Wire, body: bytes, changes: dict[str, str], message: str) -> None:
    response = send_replay(mixpanel, body, **changes)
    assert (response.status_code, response.json()) == (400, {"error": message, "status": "error"})
    assert mixpanel.emulator.recordings() == []


def test_latest_recordings_are_kept(mixpanel: Wire) -> None:
    query = {"replay_id": "first", "replay_length_ms": "1"}

    async def fill() -> None:
        transport = httpx.ASGITransport(app=mixpanel.emulator.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", auth=(TOKEN, "")) as http:
            for number in range(MAX_RECORDINGS + 1):
                response = await http.post("/record/", params={**query, "replay_id": str(number)}, content=b"[]")
                assert response.status_code == 200

    anyio.run(fill)
    ids = [one["replay_id"] for one in mixpanel.emulator.recordings()]
    assert ids == [str(number) for number in range(1, MAX_RECORDINGS + 1)]


@pytest.mark.parametrize(("method", "path"), [("GET", "/settings/"), ("POST", "/record/"), ("GET", "/flags/")])
@pytest.mark.parametrize("authorization", ["", "Basic " + base64.b64encode(b"other:").decode()])
def test_wrong_token_gets_readable_401(mixpanel: Wire, method: str, path: str, authorization: str) -> None:
    response = send(mixpanel, method, path, params=REPLAY, content=b"[]", headers={"authorization": authorization})
    assert (response.status_code, response.json()["status"]) == (401, "error")
    assert mixpanel.emulator.recordings() == []


@pytest.mark.parametrize(("method", "path"), [("POST", "/settings/"), ("GET", "/record/"), ("PUT", "/decide/")])
def test_other_methods_get_405(mixpanel: Wire, method: str, path: str) -> None:
    assert send(mixpanel, method, path).status_code == 405


@pytest.mark.parametrize(("method", "path"), [("GET", "/settings"), ("GET", "/decide"), ("POST", "/record")])
def test_faults_and_request_log_cover_browser_endpoints(mixpanel: Wire, method: str, path: str) -> None:
    mixpanel.emulator.fail_next(503, path=path)
    first = send(mixpanel, method, f"{path}/", params=REPLAY, content=b"[]", headers={"authorization": AUTHORIZATION})
    second = send(mixpanel, method, f"{path}/", params=REPLAY, content=b"[]", headers={"authorization": AUTHORIZATION})
    assert (first.status_code, second.status_code) == (503, 200)
    assert [(one.path, one.status) for one in mixpanel.emulator.requests()] == [(path, 503), (path, 200)]
