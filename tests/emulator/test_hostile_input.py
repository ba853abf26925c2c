"""Tests that hostile input gets a 2xx or 4xx response, uses bounded memory, and does not stop the emulator."""

from __future__ import annotations

import gzip
import json
import time
import tracemalloc
import urllib.parse
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from emulator_viewer import viewing
from emulator_wire import TOKEN, Wire, imported
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mixpanel_async import IdMerge
from mixpanel_async.emulator import Emulator

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=8),
    st.sampled_from(["u", "$device:u", "", "null", "\ud800", "true", 2**63, -(2**70), 1e308, 1e18, 1_700_000_000]),
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
PROPERTY = st.sampled_from(
    [
        "time", "distinct_id", "$insert_id", "token", "$device_id", "$user_id", "alias", "$identified_id", "$anon_id",
        "$distinct_ids", "$ignore", "$distinct_id_before_identity", "ip",
    ]
)  # fmt: skip
EVENT = st.fixed_dictionaries(
    {
        "event": st.sampled_from(["$identify", "$create_alias", "$merge", "Viewed"]) | ANYTHING,
        "properties": st.dictionaries(PROPERTY, ANYTHING, max_size=6).map(lambda extra: {"token": TOKEN} | extra),
    }
)
UPDATE = st.dictionaries(
    st.sampled_from(
        [
            "$token", "$distinct_id", "$group_key", "$group_id", "$set", "$set_once", "$add", "$append", "$union",
            "$remove", "$unset", "$delete", "$time", "$ignore_time", "$ignore_alias", "$ip",
        ]
    ),
    st.dictionaries(st.sampled_from("ab"), ANYTHING, max_size=2) | ANYTHING,
).map(lambda update: {"$token": TOKEN, "$distinct_id": "u", "$group_key": "k", "$group_id": "g"} | update)  # fmt: skip
PATH = st.sampled_from(["/track", "/import", "/engage", "/groups"])
FLAGS = st.dictionaries(
    st.sampled_from(["strict", "verbose", "ip", "img", "callback", "data"]),
    st.sampled_from(["0", "1", "2", "", "f", "-", "²", "[]", "bm8="]),
)


def check_alive(mixpanel: Wire) -> None:
    """Check that all views work and valid records are still accepted."""
    emulator = mixpanel.emulator
    before = len(emulator.raw_events("Imported"))
    assert mixpanel.post("/import?strict=1", [imported(), imported()]).status_code == 200
    assert len(emulator.raw_events("Imported")) == before + 2
    emulator.events()
    emulator.profiles()
    emulator.clusters()
    emulator.identity_log()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(IdMerge), PATH, FLAGS, st.lists(EVENT | UPDATE | ANYTHING, max_size=4), st.booleans())
def test_records_of_any_shape_are_handled(
    id_merge: IdMerge, path: str, flags: dict[str, str], records: list[Any], as_form: bool
) -> None:
    mixpanel = Wire(Emulator(id_merge))
    body = json.dumps(records)
    options: dict[str, Any] = {"data": {"data": body}} if as_form else {"content": body}
    response = mixpanel.post(path, params=flags, **options)
    assert response.status_code in {200, 400}
    assert mixpanel.emulator.requests()[-1].status == response.status_code
    if "json" in response.headers["content-type"]:
        response.json()
    check_alive(mixpanel)


@settings(max_examples=100, deadline=None)
@given(
    PATH,
    st.sampled_from(["GET", "POST"]),
    st.binary(max_size=60) | st.text(max_size=60).map(str.encode),
    st.sampled_from(["", "application/json", "application/x-ndjson", "application/x-www-form-urlencoded", ";;"]),
    st.sampled_from(["", "gzip", "GZIP", "br", "gzip, gzip"]),
    FLAGS,
)
def test_arbitrary_bytes_are_handled(
    path: str, method: str, body: bytes, content_type: str, encoding: str, flags: dict[str, str]
) -> None:
    mixpanel = Wire(Emulator())
    for content in (body, gzip.compress(body), b"data=" + body):
        response = mixpanel.request(
            method,
            path,
            content=content,
            params=flags,
            auth=(TOKEN, ""),
            headers={"content-type": content_type, "content-encoding": encoding},
        )
        assert response.status_code in {200, 400}
    check_alive(mixpanel)


@pytest.mark.parametrize("path", ["/track", "/import?strict=1", "/engage", "/groups"])
@pytest.mark.parametrize("depth", [100, 300, 900, 5_000])
def test_nesting_of_any_depth_is_handled(path: str, depth: int) -> None:
    mixpanel = Wire(Emulator(IdMerge.ORIGINAL))
    deep = b'{"a":' * depth + b"1" + b"}" * depth
    record = json.dumps(
        {
            "event": "Deep",
            "properties": imported()["properties"] | {"token": TOKEN, "deep": "HERE"},
            "$token": TOKEN,
            "$distinct_id": "u",
            "$group_key": "k",
            "$group_id": "g",
            "$set": {"deep": "HERE"},
        }
    ).encode()
    response = mixpanel.post(path, content=b"[" + record.replace(b'"HERE"', deep) + b"]")
    assert response.status_code in {200, 400}
    check_alive(mixpanel)


def test_gzip_bomb_is_not_expanded_beyond_limit() -> None:
    mixpanel = Wire(Emulator())
    bomb = gzip.compress(b" " * 300_000_000, 1)
    tracemalloc.start()
    try:
        response = mixpanel.post("/track", content=bomb, headers={"content-encoding": "gzip"})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert response.status_code == 413
    assert peak < 100_000_000
    check_alive(mixpanel)


def test_endless_body_is_not_kept_in_memory() -> None:
    mixpanel = Wire(Emulator())

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(150):
            yield bytes(1_000_000)

    tracemalloc.start()
    try:
        response = mixpanel.post("/track", content=chunks())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert response.status_code == 413
    assert peak < 100_000_000
    check_alive(mixpanel)


def test_long_lists_are_processed_in_linear_time() -> None:
    mixpanel = Wire(Emulator())
    items = list(range(100_000))
    assert mixpanel.engage("u", union={"l": items}) == "1"
    assert mixpanel.engage("u", union={"l": items}) == "1"
    assert mixpanel.engage("u", remove={"l": items[1:]}) == "1"
    assert (mixpanel.emulator.profile("u") or {})["l"] == [0]


@pytest.mark.parametrize("path", ["/track", "/import?strict=1", "/engage"])
def test_huge_number_with_invalid_utf8_does_not_cause_500(path: str) -> None:
    digits = b"9" * 400
    body = (
        b'[{"event":"ok","properties":{"token":"t","distinct_id":"a","time":%d}},'
        b'{"event":"x","$token":"t","$distinct_id":"a","$add":{"n":%s},"properties":{"token":"t","time":%s}},'
        b'{"event":"\xff"}]' % (time.time(), digits, digits)
    )
    response = Wire(Emulator()).request("POST", path, content=body, auth=("t", ""))
    assert response.status_code in {200, 400}


READS = (
    "/_emulator/events",
    "/_emulator/profiles",
    "/_emulator/profile?distinct_id=u",
    "/_emulator/group?group_key=k&group_id=g",
    "/_emulator/identity-log",
    "/_emulator/rejected",
    "/api/2.0/engage",
    "/api/2.0/engage/properties",
    "/api/2.0/export?from_date=2020-01-01&to_date=2100-01-01",
    "/api/2.0/events/properties/top",
)


@pytest.mark.loops_in_turn
@pytest.mark.parametrize("depth", [*range(242, 248), 252, 253, 1_000])
@pytest.mark.parametrize(
    ("path", "record", "deepest"),
    [
        ("/track", {"event": "Deep", "properties": {"token": TOKEN, "deep": "HERE"}}, 245),
        (
            "/track",
            {"event": "$identify", "properties": {"token": TOKEN, "$identified_id": "u", "$anon_id": "d", "a": "HERE"}},
            245,
        ),
        ("/engage", {"$token": TOKEN, "$distinct_id": "u", "$set": {"deep": "HERE"}}, 244),
        ("/engage", {"$token": TOKEN, "$distinct_id": "u", "$append": {"deep": "HERE"}}, 244),
        ("/engage", {"$token": TOKEN, "$distinct_id": "u", "$union": {"deep": ["HERE"]}}, 243),
        ("/groups", {"$token": TOKEN, "$group_key": "k", "$group_id": "g", "$set": {"deep": "HERE"}}, 244),
    ],
    ids=["event", "identify", "set", "append", "union", "group"],
)
@pytest.mark.anyio
async def test_what_is_stored_can_be_read(path: str, record: dict[str, Any], deepest: int, depth: int) -> None:
    emulator = Emulator(IdMerge.ORIGINAL)
    body = json.dumps([record]).replace('"HERE"', "[" * depth + "]" * depth)
    transport = httpx.ASGITransport(app=emulator.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", auth=(TOKEN, "")) as http:
        assert (await http.post(path, content=body)).text == ("1" if depth <= deepest else "0")
        for read in READS:
            assert (await http.get(read)).status_code in {200, 404}
    async with viewing(emulator) as viewer:
        assert (await viewer.message()).kind == "hello"
        assert (await viewer.batch())["requests"] == 0


@pytest.mark.parametrize("depth", range(245, 255))
def test_flag_definition_that_is_accepted_can_be_read(depth: int) -> None:
    mixpanel = Wire(Emulator())
    flag = {"key": "k", "ruleset": {"variants": [{"key": "a", "value": "HERE"}], "rollout": []}}
    body = json.dumps({"flags": [flag]}).replace('"HERE"', "[" * depth + "]" * depth)
    assert mixpanel.post("/_emulator/set-flags", content=body).status_code == (200 if depth <= 248 else 400)
    for path in ("/_emulator/flags", "/flags/definitions?token=t"):
        assert mixpanel.request("GET", path, auth=("t", "")).status_code == 200


@pytest.mark.loops_in_turn
@pytest.mark.parametrize("value", [b"[[[[1]]]]", b'{"b":{"\xff":{"d":{}}}}', b"[" + b",".join([b"1"] * 300) + b"]"])
@pytest.mark.parametrize("name", [b"\xff", b"\\ud800", b"x" * 100_000])
@pytest.mark.parametrize("query", ["", "?strict=1", "?strict=1&verbose=1", "?verbose=1&form"])
@pytest.mark.anyio
async def test_refused_names_reach_response_log_and_live_page(query: str, name: bytes, value: bytes) -> None:
    emulator = Emulator()
    record = b'[{"event":"e","properties":{"%b":%b,"time":%d,"distinct_id":"u","$insert_id":"x"}}]'
    body = record % (name, value, time.time())
    headers = {"content-type": "application/json"}
    if "form" in query:
        body = b"data=" + urllib.parse.quote_from_bytes(body).encode()
        headers = {"content-type": "application/x-www-form-urlencoded"}
    transport = httpx.ASGITransport(app=emulator.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", auth=(TOKEN, "")) as http:
        response = await http.post("/import" + query, content=body, headers=headers)
        assert response.status_code == (400 if "strict" in query else 200)
        (rejected,) = (await http.get("/_emulator/rejected")).json()
    assert rejected["field"].startswith("properties.")
    assert len(rejected["field"]) <= len(rejected["message"]) <= 500
    async with viewing(emulator) as viewer:
        assert (await viewer.message()).kind == "hello"
        batch = await viewer.batch()
    assert [entry["rejected"] for entry in batch["log"]] == [1]
    assert len(batch["rejected"]) == 1


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("POST", "/track?" + "&".join(f"{number}=" for number in range(10_000)), {}),
        ("POST", "/track?" + "n" * 60_000, {}),
        ("POST", "/track", {f"h{number}": "" for number in range(1_000)}),
        ("POST", "/track", {"h" * 60_000: ""}),
        ("M" * 60_000, "/nowhere", {}),
        ("M" * 60_000, "/track", {}),
        ("GET", "/" + "p" * 60_000, {}),
        ("GET", "/api/2.0/" + "p" * 60_000, {}),
    ],
    ids=["many parameters", "long parameter", "many headers", "long header", "method", "other method", "path", "query"],
)
def test_request_logs_keep_little_of_a_large_request(method: str, path: str, headers: dict[str, str]) -> None:
    mixpanel = Wire(Emulator())
    mixpanel.request(method, path, headers=headers)
    requests, log = mixpanel.emulator.requests(), mixpanel.emulator.request_log()
    assert log.requests == 1
    kept = [requests, log, mixpanel.emulator.unsupported(), mixpanel.emulator.rejected()]
    assert len(repr(kept)) < 25_000
    assert sum(len(request.query) + len(request.headers) for request in requests) < 250
