"""Tests of raw export and of the profile query."""

from __future__ import annotations

import json
from typing import Any

import pytest
from emulator_wire import TOKEN, Wire, imported

from mixpanel_async import IdMerge
from mixpanel_async.emulator import Emulator
from mixpanel_async.emulator.project.access import Access

NOON = 1_700_049_600  # 2023-11-15T12:00:00Z
DAY = 86_400
ANON = "3f2b8c1e-9d4a-4b7e-8c1d-2a5e6f7b8c9d"


@pytest.fixture
def mixpanel() -> Wire:
    return Wire(Emulator(IdMerge.ORIGINAL, now=lambda: NOON + 0.25))


def exported(mixpanel: Wire, first: str = "2023-11-15", last: str = "2023-11-15", **parameters: Any) -> list[Any]:
    response = mixpanel.request(
        "GET",
        "/api/2.0/export",
        params={"from_date": first, "to_date": last, **parameters},
        auth=("any", ""),
    )
    assert response.status_code == 200, response.text
    return [json.loads(line) for line in response.text.splitlines()]


def test_exported_events_have_mixpanel_properties(mixpanel: Wire) -> None:
    sent = imported(distinct_id=ANON, time=NOON - 1, token=TOKEN, plan="pro", **{"$insert_id": "one"})
    for _ in range(2):
        assert mixpanel.post("/import?strict=1", [sent]).status_code == 200
    mixpanel.track("u", "Tracked", time=NOON - 2)
    mixpanel.identify("u", ANON)
    added = {
        "$mp_api_endpoint": "api.mixpanel.com",
        "$mp_api_timestamp_ms": NOON * 1000 + 250,
        "mp_processing_time_ms": NOON * 1000 + 250,
    }
    person = {"distinct_id": "u", "$distinct_id_before_identity": ANON}
    copy = {
        "event": "Imported",
        "properties": {"time": NOON - 1, "plan": "pro", "$insert_id": "one", "$import": True, **person, **added},
    }
    tracked = {"event": "Tracked", "properties": {"time": NOON - 2, "distinct_id": "u", **added}}
    events = exported(mixpanel)
    assert events[:3] == [copy, copy, tracked]
    assert events[3]["event"] == "$identify"
    assert events[3]["properties"]["time"] == NOON


def test_export_selects_days_names_limit_and_time_unit(mixpanel: Wire) -> None:
    days = {"2023-11-14": NOON - DAY, "2023-11-15": NOON - DAY // 2, "2023-11-13": NOON - 1.5 * DAY - 0.001}
    for day, time in days.items():
        mixpanel.post("/import?strict=1", [imported(time=time, day=day)])
    for day in days:
        assert [event["properties"]["day"] for event in exported(mixpanel, day, day)] == [day]
    everything = exported(mixpanel, "2023-11-01", "2023-11-30")
    assert len(everything) == 3
    assert len(exported(mixpanel, "2023-11-01", "2023-11-30", limit=2)) == 2
    mixpanel.track("u", "Tracked", time=NOON)
    for names in ('["Tracked"]', "Tracked", '["Tracked","Other"]'):
        assert [event["event"] for event in exported(mixpanel, event=names)] == ["Tracked"]
    assert exported(mixpanel, event="Tracked", time_in_ms="true")[0]["properties"]["time"] == NOON * 1000
    assert exported(mixpanel, "2023-12-01", "2023-12-01") == []


def test_large_export_is_sent_in_chunks(mixpanel: Wire) -> None:
    for _ in range(2):
        mixpanel.post("/import?strict=1", [imported(time=NOON, n=n) for n in range(1_000)])
    assert len(exported(mixpanel)) == 2_000
    assert [event["properties"]["n"] for event in exported(mixpanel, limit=1_501)][-1] == 500


def test_export_of_large_events_has_small_chunks(mixpanel: Wire) -> None:
    for _ in range(4):
        mixpanel.post("/import?strict=1", [imported(time=NOON, a=["x" * 200] * 200) for _ in range(50)])
    sizes = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def note_and_send(message: Any) -> None:
            sizes.append(len(message.get("body", b"")))
            await send(message)

        await emulated(scope, receive, note_and_send)

    emulated = mixpanel.emulator.app
    mixpanel.emulator.app = app
    asked = {"from_date": "2023-11-15", "to_date": "2023-11-15"}
    plain = {"accept-encoding": "identity"}
    response = mixpanel.request("GET", "/api/2.0/export", params=asked, headers=plain, auth=("any", ""))
    assert len(response.text.splitlines()) == 200
    assert sum(sizes) > 8_000_000
    assert max(sizes) < 400_000


@pytest.mark.parametrize(
    ("where", "selected"),
    [
        ('properties["n"] >= 2 and not defined(properties["x"])', [2, 3]),
        ('properties["n"] in [0, 3]', [0, 3]),
        # As airbyte-source-mixpanel 4.0.2 sends it.
        (f'properties["$time"]>=datetime({NOON - 7})', [2, 3]),
        (f'properties["time"] < {NOON - 8}', [0]),
        ('properties["$distinct_id"] == "u" and properties["distinct_id"] == "u"', [1, 3]),
        ('user["plan"] == "pro"', [1, 3]),
        ('user["plan"] != "pro" or properties["n"] == 1', [0, 1, 2]),
        ('properties["token"] == null and properties["$import"]', [0, 1, 2, 3]),
    ],
)
@pytest.mark.parametrize("parameters", [{}, {"time_in_ms": "true"}], ids=["s", "ms"])
def test_export_selects_events_by_expression(
    mixpanel: Wire, where: str, selected: list[int], parameters: dict[str, str]
) -> None:
    events = [imported(time=NOON - 9 + n, n=n, distinct_id=ANON if n % 2 else "v", token=TOKEN) for n in range(4)]
    assert mixpanel.post("/import?strict=1", events).status_code == 200
    mixpanel.identify("u", ANON)
    mixpanel.engage("u", set={"plan": "pro"})
    found = exported(mixpanel, event="Imported", where=where, **parameters)
    assert [event["properties"]["n"] for event in found] == selected


def test_expression_applies_before_the_limit(mixpanel: Wire) -> None:
    mixpanel.post("/import?strict=1", [imported(time=NOON, n=n) for n in range(1_000)])
    found = exported(mixpanel, where='properties["n"] >= 700', limit=2)
    assert [event["properties"]["n"] for event in found] == [700, 701]


@pytest.mark.parametrize("name", ["where", "selector"])
@pytest.mark.parametrize(
    ("where", "selected"),
    [
        # The forms of mixpanel-utils 2.2.7 and airbyte-source-mixpanel 4.0.2.
        ('(defined (properties["old"]))', ["u1"]),
        ('(boolean(properties["flag"]) == true)', ["u2"]),
        ('properties["$last_seen"] >= "2023-11-15T00:00:00"', ["u1", "u2"]),
        ('properties["$last_seen"] >= "2023-11-16T00:00:00Z"', []),
        ('user["$distinct_id"] == "u2" or properties["$distinct_id"] == "u1"', ["u1", "u2"]),
    ],
)
def test_profile_query_selects_by_expression(mixpanel: Wire, name: str, where: str, selected: list[str]) -> None:
    mixpanel.engage("u1", set={"old": 1, "flag": False})
    mixpanel.engage("u2", set={"flag": 1})
    asked: dict[str, Any] = {name: where, "page_size": 1}
    answer = queried(mixpanel, **asked)
    assert answer["total"] == len(selected)
    assert [one["$distinct_id"] for one in answer["results"]] == selected[:1]
    page = queried(mixpanel, page=1, page_size=1, session_id=answer["session_id"])
    assert [one["$distinct_id"] for one in page["results"]] == selected[1:]


def test_profile_query_takes_json(mixpanel: Wire) -> None:
    for number in range(3):
        mixpanel.engage(f"u{number}", set={"n": number})

    def post(content: bytes | str) -> Any:
        response = mixpanel.request("POST", "/api/query/engage", content=content, auth=("any", ""))
        return response.status_code, response.json()

    status, answer = post('{"where": "properties[\\"n\\"] > 0", "page_size": 1, "page": null, "distinct_ids": ["u2"]}')
    assert (status, answer["page_size"], answer["results"][0]["$distinct_id"]) == (200, 1, "u2")
    for body in (
        b'{"filter_by_cohort": {"id": 1}}', b"{", b'{"a": "\xff"}', b'{"a": ' + b"[" * 500 + b"]" * 500 + b"}",
        json.dumps({str(n): n for n in range(200)}),
    ):  # fmt: skip
        assert post(body)[0] == 400


@pytest.mark.parametrize(("accept", "is_packed"), [("gzip, deflate", True), ("identity", False)])
def test_export_is_compressed_on_request(mixpanel: Wire, accept: str, is_packed: bool) -> None:
    mixpanel.track("u", time=NOON)
    sent: dict[str, Any] = {"params": {"from_date": "2023-11-15", "to_date": "2023-11-15"}, "auth": ("any", "")}
    response = mixpanel.request("GET", "/api/2.0/export", headers={"accept-encoding": accept}, **sent)
    assert (response.headers.get("content-encoding") == "gzip") is is_packed
    assert json.loads(response.content)["event"] == "Viewed"


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"from_date": ""}, "from_date must be a date"),
        ({"to_date": "15.11.2023"}, "to_date must be a date"),
        ({"to_date": "2023-11-14"}, "must not be before"),
        ({"where": 'floor(properties["a"]) == 1'}, "the function 'floor' in where"),
        ({"where": 'properties["a"] =='}, "where is incomplete"),
        ({"limit": "0"}, "limit must be"),
        ({"limit": "100001"}, "limit must be"),
        ({"limit": "²"}, "limit must be"),
        ({"event": "[1]"}, "event must be a JSON list"),
        ({"event": "["}, "event must be a JSON list"),
    ],
)
def test_invalid_export_request_is_refused(mixpanel: Wire, parameters: dict[str, str], words: str) -> None:
    asked = {"from_date": "2023-11-15", "to_date": "2023-11-15", **parameters}
    response = mixpanel.request("GET", "/api/2.0/export", params=asked, auth=("any", ""))
    assert response.status_code == 400
    assert words in response.json()["error"]


def queried(mixpanel: Wire, method: str = "POST", path: str = "/api/query/engage", **fields: Any) -> Any:
    sent = {"data": fields} if method == "POST" else {"params": fields}
    response = mixpanel.request(method, path, auth=("any", ""), **sent)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("path", ["/api/query/engage", "/api/2.0/engage"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_profiles_are_returned_in_pages(mixpanel: Wire, path: str, method: str) -> None:
    for number in range(5):
        mixpanel.engage(f"u{number}", set={"n": number}, ignore_time=True)
    first = queried(mixpanel, method, path, page_size=2)
    assert first == {
        "page": 0,
        "page_size": 2,
        "session_id": first["session_id"],
        "status": "ok",
        "total": 5,
        "results": [
            {"$distinct_id": "u0", "$properties": {"n": 0}},
            {"$distinct_id": "u1", "$properties": {"n": 1}},
        ],
    }
    # Pages of a session do not change, even if profiles change between requests.
    mixpanel.engage("u4", set={"n": 40})
    mixpanel.engage("u9", set={"n": 9})
    pages = [
        queried(mixpanel, method, path, page_size=2, page=page, session_id=first["session_id"])["results"]
        for page in (1, 2, 3)
    ]
    assert [[profile["$properties"]["n"] for profile in page] for page in pages] == [[2, 3], [4], []]
    assert queried(mixpanel, method, path)["total"] == 6


def test_profile_query_selects_profiles_and_properties(mixpanel: Wire) -> None:
    mixpanel.identify("u", ANON)
    mixpanel.engage("u", set={"a": 1, "b": 2})
    mixpanel.engage("v", set={"a": 3})
    only = queried(mixpanel, distinct_id=ANON, output_properties='["a"]')
    assert only["results"] == [{"$distinct_id": "u", "$properties": {"a": 1}}]
    assert queried(mixpanel, distinct_ids='["v","u","v","x"]')["total"] == 2
    assert queried(mixpanel, distinct_id="x") | {"session_id": ""} == {
        "page": 0,
        "page_size": 1_000,
        "session_id": "",
        "status": "ok",
        "total": 0,
        "results": [],
    }


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"where": "1 + 1 == 2"}, "the operator '+' in where"),
        ({"selector": "1 + 1 == 2"}, "the operator '+' in where"),
        ({"filter_by_cohort": '{"id":1}'}, "filter_by_cohort is not supported"),
        ({"behaviors": "[]"}, "behaviors is not supported"),
        ({"session_id": "unknown"}, "session_id is unknown"),
        ({"page": "-1"}, "page must be"),
        ({"page_size": "10001"}, "page_size must be"),
        ({"output_properties": "a"}, "output_properties must be a JSON list"),
        ({f"f{n}": "1" for n in range(200)}, "too many fields"),
    ],
)
def test_invalid_profile_query_is_refused(mixpanel: Wire, fields: dict[str, str], words: str) -> None:
    response = mixpanel.request("POST", "/api/query/engage", data=fields, auth=("any", ""))
    assert response.status_code == 400
    assert words in response.json()["error"]


def test_query_sessions_are_bounded_and_end_at_reset(mixpanel: Wire) -> None:
    mixpanel.engage("u", set={"n": 1})
    sessions = [queried(mixpanel)["session_id"] for _ in range(20)]
    assert len(set(sessions)) == 20

    def status(session: str) -> int:
        return mixpanel.request("POST", "/api/query/engage", data={"session_id": session}, auth=("any", "")).status_code

    assert [status(session) for session in (sessions[0], sessions[-1])] == [400, 200]
    mixpanel.emulator.reset()
    assert status(sessions[-1]) == 400


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/api/2.0/export"), ("POST", "/api/query/engage"), ("GET", "/api/2.0/engage")]
)
def test_reading_requires_credentials(method: str, path: str) -> None:
    mixpanel = Wire(Emulator(token="tok", secret="sec", service_account=("user", "pass", "12")))

    def status(*auth: str, **parameters: str) -> int:
        asked = {"from_date": "2023-11-15", "to_date": "2023-11-15", **parameters}
        credentials = {"auth": (auth[0], auth[1])} if auth else {}
        return mixpanel.request(method, path, params=asked, **credentials).status_code

    assert status("sec", "") == 200
    assert status("user", "pass", project_id="12") == 200
    assert status("user", "pass", project_id="13") == 401
    assert status("user", "pass") == 401
    assert status("tok", "") == 401
    assert status() == 401


def test_oversized_profile_query_is_refused(mixpanel: Wire) -> None:
    response = mixpanel.request(
        "POST", "/api/query/engage", content=b"distinct_id=" + b"x" * 2_000_000, auth=("any", "")
    )
    assert response.status_code == 413


def test_read_access_depends_on_configured_credentials() -> None:
    def basic(user: str, password: str = "") -> str:
        return f"Basic {user}:{password}"

    open_access = Access(token="t", secret=None, service_account=None)
    assert open_access.may_read(basic("anything"), None)
    assert not open_access.may_read("", None)
    closed = Access(token="t", secret="s", service_account=("u", "p", "1"))
    assert closed.may_read(basic("s"), None)
    assert closed.may_read(basic("u", "p"), "1")
    assert not closed.may_read(basic("u", "p"), "2")
    assert not closed.may_read(basic("t"), None)
