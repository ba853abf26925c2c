"""Tests of the HTTP API `/_emulator/`."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from emulator_wire import TOKEN, Wire, imported

from mixpanel_async import IdMerge
from mixpanel_async.emulator import Emulator
from mixpanel_async.emulator.http.control_api import CONTROLS, VIEWS
from mixpanel_async.emulator.http.faults import ConnectionDroppedError

ANON = "3f2b8c1e-9d4a-4b7e-8c1d-2a5e6f7b8c9d"


@pytest.fixture
def mixpanel() -> Wire:
    return Wire(Emulator(IdMerge.ORIGINAL))


def look(mixpanel: Wire, view: str, status: int = 200, /, **parameters: Any) -> Any:
    response = mixpanel.request("GET", f"/_emulator/{view}", params=parameters)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    return response.json()


def steer(mixpanel: Wire, name: str, status: int = 200, /, **options: Any) -> Any:
    response = mixpanel.request("POST", f"/_emulator/{name}", **options)
    assert response.status_code == status, response.text
    return response.json()


def test_events_are_listed_and_filtered(mixpanel: Wire) -> None:
    for number in range(3):
        mixpanel.track(ANON, "Viewed", n=number)
    mixpanel.track("other", "Bought")
    mixpanel.identify("u", ANON)
    assert look(mixpanel, "events") == mixpanel.emulator.events()
    assert look(mixpanel, "events", name="Bought") == mixpanel.emulator.events("Bought")
    assert [event["properties"]["n"] for event in look(mixpanel, "events", name="Viewed", limit=2)] == [1, 2]
    for known_as in (ANON, "u"):
        found = look(mixpanel, "events", distinct_id=known_as, name="Viewed")
        assert [event["properties"]["distinct_id"] for event in found] == ["u"] * 3
    assert look(mixpanel, "events", distinct_id="nobody") == []


def test_audit_finds_mistakes_of_the_stored_events(mixpanel: Wire) -> None:
    assert look(mixpanel, "audit")["findings"] == []
    mixpanel.track("undefined")
    mixpanel.identify("user-1", "guest-1")
    mixpanel.post("/track", [{"event": "$merge", "properties": {"token": "t", "$distinct_ids": ["user-1", "user-2"]}}])
    report = look(mixpanel, "audit")
    found = {(one["kind"], one["reason"]): one["cases"][0]["ids"] for one in report["findings"]}
    assert found == {
        ("placeholder_ids", None): ["undefined"],
        ("failed_calls", "errAnonDistinctIdNonGUIDForm"): ["user-1", "guest-1"],
        ("ignored_calls", "mergeNeedsImport"): ["user-1", "user-2"],
    }
    assert report == mixpanel.emulator.audit().as_dict()


def test_people_and_groups_can_be_read(mixpanel: Wire) -> None:
    mixpanel.identify("u", ANON)
    mixpanel.engage("u", set={"plan": "pro"})
    mixpanel.engage("v", set={"plan": "free"})
    mixpanel.groups("company", "acme", set={"size": 3})
    emulator = mixpanel.emulator
    assert look(mixpanel, "profile", distinct_id=ANON) == emulator.profile("u")
    assert look(mixpanel, "profile", 404, distinct_id="x") == {
        "error": "the person with this distinct_id has no profile"
    }
    assert look(mixpanel, "profiles") == emulator.profiles()
    assert list(look(mixpanel, "profiles", limit=1)) == ["v"]
    assert look(mixpanel, "group", group_key="company", group_id="acme") == {"size": 3}
    assert "error" in look(mixpanel, "group", 404, group_key="company", group_id="x")
    assert look(mixpanel, "resolve", distinct_id=ANON) == {"distinct_id": "u"}
    assert look(mixpanel, "resolve", distinct_id="x") == {"distinct_id": "x"}
    assert look(mixpanel, "cluster", distinct_id=ANON) == sorted([ANON, "u"])
    assert look(mixpanel, "clusters") == [sorted([ANON, "u"]), ["v"]]
    assert look(mixpanel, "clusters", limit=1) == [["v"]]


def test_identity_log_includes_advice(mixpanel: Wire) -> None:
    mixpanel.identify("u", ANON)
    mixpanel.identify("u", "visitor-17")
    mixpanel.alias("u", "maya@example.com")
    first, second = look(mixpanel, "identity-log", name="$identify")
    logged = mixpanel.emulator.identity_log()
    assert first == {**logged[0], "advice": None}
    assert second["$failure_reason"] == "errAnonDistinctIdNonGUIDForm"
    assert "five groups of hexadecimal digits" in second["advice"]
    (last,) = look(mixpanel, "identity-log", limit=1)
    assert last["event"] == "$create_alias"


def test_requests_are_listed_without_credentials(mixpanel: Wire) -> None:
    mixpanel.track("u")
    mixpanel.post("/import?strict=1", [imported()])
    (request,) = look(mixpanel, "requests", limit=1)
    assert (request["method"], request["path"], request["query"]) == ("POST", "/import", {"strict": "1"})
    assert (request["status"], request["records"], request["headers"]["authorization"]) == (200, 1, "***")
    assert len(look(mixpanel, "requests")) == 2


def test_stats_count_project_data(mixpanel: Wire) -> None:
    again = imported()
    for _ in range(3):
        mixpanel.post("/import?strict=1", [again])
    mixpanel.post("/import?strict=1", [imported(time="noon")])
    mixpanel.identify("u", ANON)
    mixpanel.identify("u", "visitor-17")
    mixpanel.engage("u", set={"plan": "pro"})
    mixpanel.groups("company", "acme", set={"size": 3})
    stats = look(mixpanel, "stats")
    assert stats.pop("uptime") >= 0
    assert stats.pop("started") > 1_700_000_000
    assert stats == {
        "events": {"stored": 5, "ingested": 5, "duplicates": 2},
        "profiles": 1,
        "groups": 1,
        "clusters": 3,
        "requests": 8,
        "rejected": 1,
        "identity": {"merged": 1, "unchanged": 0, "failed": 1, "ignored": 0},
        "id_merge": "original",
    }


@pytest.mark.parametrize(
    ("name", "parameters", "words"),
    [
        ("events", {"limit": "0"}, "limit must be"),
        ("events", {"limit": "-1"}, "limit must be"),
        ("events", {"limit": "1000001"}, "limit must be"),
        ("events", {"limit": "9" * 5_000}, "limit must be"),
        ("events", {"limit": "two"}, "limit must be"),
        ("events", {"limit": "²"}, "limit must be"),
        ("events", {"nmae": "Viewed"}, "unknown parameter 'nmae'; known parameters: name, distinct_id, limit"),
        ("profile", {}, "distinct_id is missing"),
        ("profile", {"distinct_id": ""}, "distinct_id is missing"),
        ("group", {"group_key": "k"}, "group_id is missing"),
        ("resolve", {}, "distinct_id is missing"),
        ("cluster", {}, "distinct_id is missing"),
        ("stats", {"limit": "1"}, "unknown parameter 'limit'; known parameters: none"),
    ],
)
def test_invalid_parameters_are_refused(mixpanel: Wire, name: str, parameters: dict[str, str], words: str) -> None:
    assert words in look(mixpanel, name, 400, **parameters)["error"]


def test_reset_deletes_data(mixpanel: Wire) -> None:
    mixpanel.track("u")
    assert steer(mixpanel, "reset") == {"status": "ok"}
    assert mixpanel.emulator.events() == []
    assert look(mixpanel, "stats")["requests"] == 0


@pytest.mark.parametrize("form", ["json", "params"])
def test_fail_next_plans_status(mixpanel: Wire, form: str) -> None:
    arguments = {"status": 429, "times": 2, "retry_after": 7, "path": "/track", "body": "no", "apply": "true"}
    if form == "json":
        arguments["apply"] = True
    assert steer(mixpanel, "fail-next", **{form: arguments}) == {"status": "ok"}
    assert mixpanel.post("/engage", []).status_code == 200
    for _ in range(2):
        response = mixpanel.post("/track", [{"event": "Viewed", "properties": {"token": TOKEN, "distinct_id": "u"}}])
        assert (response.status_code, response.text, response.headers["retry-after"]) == (429, "no", "7")
    assert len(mixpanel.emulator.events()) == 2
    mixpanel.track("u")


def test_fail_next_accepts_defaults_and_retry_after_date(mixpanel: Wire) -> None:
    steer(mixpanel, "fail-next")
    assert mixpanel.post("/track", []).status_code == 503
    date = "Wed, 21 Oct 2026 07:28:00 GMT"
    steer(mixpanel, "fail-next", json={"retry_after": date, "body": None})
    assert mixpanel.post("/track", []).headers["retry-after"] == date


def test_drop_connections_closes_connections(mixpanel: Wire) -> None:
    steer(mixpanel, "drop-connections", json={"n": 1, "path": "/track", "apply": True})
    with pytest.raises(ConnectionDroppedError):
        mixpanel.track("u")
    assert len(mixpanel.emulator.events()) == 1


def test_latency_can_be_set(mixpanel: Wire) -> None:
    steer(mixpanel, "latency", json={"seconds": 0.001})
    assert mixpanel.emulator.latency == 0.001
    steer(mixpanel, "latency", params={"seconds": "0"})
    assert mixpanel.emulator.latency == 0.0


def test_other_faults_can_be_planned(mixpanel: Wire) -> None:
    steer(mixpanel, "break-next", json={"kind": "partial", "indexes": [1], "path": "/import"})
    response = mixpanel.post("/import?strict=1", [imported(), imported(), imported()])
    assert [record["index"] for record in response.json()["failed_records"]] == [1]
    steer(mixpanel, "random-faults", params={"seed": "7", "rate": "1", "kinds": "zero,html", "paths": "/track"})
    assert mixpanel.post("/track", []).status_code == 200
    assert mixpanel.post("/engage", []).text == "0"
    steer(mixpanel, "stop-faults")
    mixpanel.track("u")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("fail-next", {"status": 199}),
        ("fail-next", {"status": True}),
        ("fail-next", {"status": "many"}),
        ("fail-next", {"status": 503.5}),
        ("fail-next", {"times": 0}),
        ("fail-next", {"path": "/nowhere"}),
        ("fail-next", {"retry_after": -1}),
        ("fail-next", {"retry_after": "inf"}),
        ("fail-next", {"retry_after": "5\r\nX-Other: 1"}),
        ("fail-next", {"body": {"a": 1}}),
        ("fail-next", {"apply": "yes"}),
        ("fail-next", {"apply": []}),
        ("fail-next", {"statsu": 500}),
        ("drop-connections", {"n": 0}),
        ("drop-connections", {"times": 1}),
        ("latency", {"seconds": -1}),
        ("latency", {"seconds": "nan"}),
        ("latency", {}),
        ("latency", {"seconds": {}}),
        ("break-next", {}),
        ("break-next", {"kind": "melt"}),
        ("break-next", {"kind": "partial", "indexes": 1}),
        ("random-faults", {"seed": 1, "rate": 2}),
        ("random-faults", {"seed": 1, "kinds": ["melt"]}),
        ("random-faults", {"seed": []}),
        ("reset", {"everything": True}),
    ],
)
def test_arguments_out_of_bounds_are_refused(mixpanel: Wire, name: str, arguments: dict[str, Any]) -> None:
    assert isinstance(steer(mixpanel, name, 400, json=arguments)["error"], str)
    assert mixpanel.emulator.latency == 0
    mixpanel.track("u")


@pytest.mark.parametrize("body", [b"[", b"[]", b"1", b"\xff", b" " * 70_000, b"[" * 60_000])
def test_body_that_is_not_an_object_is_refused(mixpanel: Wire, body: bytes) -> None:
    assert "error" in steer(mixpanel, "fail-next", 400, content=body)
    mixpanel.track("u")


def test_unknown_path_or_method_is_refused(mixpanel: Wire) -> None:
    for method, path, status in (
        ("GET", "/_emulator/nothing", 404),
        ("POST", "/_emulator", 405),
        ("GET", "/_emulator/events/", 404),
        ("POST", "/_emulator/events", 405),
        ("GET", "/_emulator/reset", 405),
        ("HEAD", "/_emulator/stream", 405),
        ("OPTIONS", "/_emulator/events", 405),
        ("PUT", "/track", 405),
        ("DELETE", "/import", 405),
    ):
        response = mixpanel.request(method, path)
        assert response.status_code == status, path
        if method != "HEAD":
            assert response.json()["error"]


def test_errors_say_what_to_ask_instead(mixpanel: Wire) -> None:
    assert "GET /_emulator/ lists" in mixpanel.request("GET", "/_emulator/event").json()["error"]
    assert mixpanel.request("GET", "/event").json()["error"] == "not found"
    assert mixpanel.request("GET", "/_emulator/reset").json()["error"] == "method not allowed; use POST"
    assert mixpanel.request("PUT", "/track").json()["error"] == "method not allowed; use GET or POST"


@pytest.mark.parametrize(
    ("name", "body", "error"),
    [
        ("latency", {"seconds": "soon"}, "seconds must be a number"),
        ("fail-next", {"times": 1.5}, "times must be a whole number"),
        ("fail-next", {"apply": "yes"}, "apply must be true or false"),
        ("fail-next", {"retry_after": []}, "retry_after must be a number of seconds, or text"),
        ("break-next", {"kind": 1}, "kind must be text"),
        ("break-next", {"kind": "partial", "indexes": 1}, "indexes must be a list"),
        ("random-faults", {"seed": 1.5}, "seed must be a whole number, or text"),
        ("set-flags", {"flags": {"checkout": True}}, "flags must be a list of objects"),
    ],
)
def test_error_says_what_a_parameter_must_be(mixpanel: Wire, name: str, body: dict[str, Any], error: str) -> None:
    assert steer(mixpanel, name, 400, json=body)["error"] == error


def test_inspection_is_neither_logged_nor_affected_by_faults(mixpanel: Wire) -> None:
    mixpanel.emulator.fail_next(times=3)
    look(mixpanel, "events")
    assert look(mixpanel, "requests") == []


def test_control_api_works_on_socket() -> None:
    emulator = Emulator()
    with emulator.serve() as server, httpx.Client(base_url=server.url, trust_env=False) as http:
        http.post("/track", json=[{"event": "Viewed", "properties": {"token": TOKEN, "distinct_id": "u"}}])
        assert http.get("/_emulator/events", params={"limit": 1}).json() == emulator.events()
        assert http.post("/_emulator/reset").json() == {"status": "ok"}
        assert http.get("/_emulator/events").json() == []


def test_rejected_records_are_listed_with_reason() -> None:
    mixpanel = Wire(Emulator(token="mine"))
    mixpanel.post("/track", [{"event": "Viewed", "properties": {"token": "another"}}])
    (entry,) = mixpanel.request("GET", "/_emulator/rejected").json()
    assert (entry["endpoint"], entry["silent"]) == ("/track", True)
    assert "token" in entry["field"] + entry["message"]
    assert mixpanel.emulator.rejected() == [entry]


@pytest.mark.parametrize("path", ["/_emulator", "/_emulator/"])
def test_index_lists_every_view_and_control(path: str) -> None:
    index = Wire(Emulator()).request("GET", path).json()
    assert set(index["GET"]) == set(VIEWS)
    assert set(index["POST"]) == set(CONTROLS)
    assert index["GET"]["events"] == ["name", "distinct_id", "limit"]


def test_blank_token_is_refused() -> None:
    with pytest.raises(ValueError, match="blank"):
        Emulator(token=" ")
