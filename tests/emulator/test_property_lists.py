"""Tests of the lists of properties and cohorts that connectors ask for."""

from __future__ import annotations

import json
from typing import Any

import pytest
from emulator_wire import TOKEN, Wire, imported

from mixpanel_async.emulator import Emulator
from mixpanel_async.emulator.project.property_lists import COHORTS, PROFILE_PROPERTIES, TOP_PROPERTIES

NOW = 1_700_000_000.0


@pytest.fixture
def mixpanel() -> Wire:
    return Wire(Emulator("original", now=lambda: NOW))


def asked(mixpanel: Wire, path: str, method: str = "GET", **parameters: Any) -> Any:
    response = mixpanel.request(method, path, params=parameters, auth=("any", ""))
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("path", TOP_PROPERTIES)
def test_event_properties_are_counted(mixpanel: Wire, path: str) -> None:
    assert asked(mixpanel, path) == {}
    for n in range(3):
        mixpanel.track("u", "Viewed", page=n, **({"plan": "pro"} if n else {}))
    mixpanel.track("u", "Bought", plan="free", amount=1)
    found = asked(mixpanel, path, limit=2_000)
    assert list(found.items()) == [("page", {"count": 3}), ("plan", {"count": 3}), ("amount", {"count": 1})]
    assert asked(mixpanel, path, event="Bought") == {"plan": {"count": 1}, "amount": {"count": 1}}
    assert asked(mixpanel, path + "/", limit=1) == {"page": {"count": 3}}
    assert asked(mixpanel, path, event="Never") == {}


def test_ten_properties_are_listed_by_default(mixpanel: Wire) -> None:
    properties: dict[str, Any] = {f"p{n}": n for n in range(12)}
    mixpanel.track("u", **properties)
    assert list(asked(mixpanel, TOP_PROPERTIES[0])) == [f"p{n}" for n in range(10)]


@pytest.mark.parametrize("path", PROFILE_PROPERTIES)
def test_profile_properties_have_types(mixpanel: Wire, path: str) -> None:
    values = {
        "string": "x",
        "number": 1.5,
        "boolean": True,
        "datetime": "2023-11-14T22:13:20",
        "list": [1],
        "object": {"a": 1},
        "unknown": None,
    }
    for person in ("u1", "u2"):
        mixpanel.engage(person, set=values)
    mixpanel.engage("u3", set={"string": 1}, ignore_time=True)
    found = asked(mixpanel, path, limit=2_000)
    assert found["status"] == "ok"
    assert found["computed_at"] == "2023-11-14T22:13:20+00:00"
    assert found["results"]["string"] == {"count": 3, "type": "string"}
    assert next(iter(found["results"])) == "string"
    assert {name: one["type"] for name, one in found["results"].items() if name in values} == {
        name: name for name in values
    }
    assert found["results"]["$last_seen"] == {"count": 2, "type": "datetime"}
    assert list(asked(mixpanel, path, limit=1)["results"]) == ["string"]


@pytest.mark.parametrize("path", COHORTS)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_project_has_no_cohorts(mixpanel: Wire, path: str, method: str) -> None:
    assert asked(mixpanel, path, method, project_id=42) == []


@pytest.mark.parametrize("path", [*TOP_PROPERTIES, *PROFILE_PROPERTIES, *COHORTS])
def test_lists_require_credentials(path: str) -> None:
    mixpanel = Wire(Emulator(token=TOKEN, secret="s", service_account=("user", "pass", "42")))
    answers = [
        mixpanel.request("GET", path, params={"project_id": project}, auth=auth).status_code
        for project, auth in (
            ("42", ("user", "pass")),
            ("41", ("user", "pass")),
            ("42", ("s", "")),
            ("42", (TOKEN, "")),
        )
    ]
    assert answers == [200, 401, 200, 401]


@pytest.mark.parametrize("path", [TOP_PROPERTIES[0], PROFILE_PROPERTIES[0]])
@pytest.mark.parametrize("limit", ["0", "10001", "x"])
def test_invalid_limit_is_refused(mixpanel: Wire, path: str, limit: str) -> None:
    response = mixpanel.request("GET", path, params={"limit": limit}, auth=("any", ""))
    assert response.status_code == 400
    assert "limit must be a whole number" in response.json()["error"]


# The requests that connectors and tools send before and while they read, as observed.

TAP = {"Accept": "application/json", "User-Agent": "tap", "Authorization": "Basic czNjcmV0"}  # tap-mixpanel 1.8.0
AIRBYTE = {"Accept": "application/json", "Authorization": "Basic cm9ib3Q6czNjcmV0"}  # airbyte-source-mixpanel 4.0.2
GO = {"Accept": "text/plain", "Authorization": AIRBYTE["Authorization"]}  # mixpanel-go
NODE = {"Authorization": AIRBYTE["Authorization"], "Accept-Encoding": "gzip, deflate, br"}  # mixpanel-import 3.1.43
SPAN = "from_date=2023-11-14&to_date=2023-11-14"
SEEN = "where=properties%5B%22%24last_seen%22%5D+%3E%3D+%222023-01-01T00%3A00%3A00%22"
SINCE = "where=properties%5B%22%24time%22%5D%3E%3Ddatetime%281672531200%29"
REQUESTS = [
    (TAP, "/api/2.0/engage"),
    (TAP, "/api/2.0/engage/properties?limit=2000"),
    (TAP, "/api/2.0/events/properties/top?limit=2000"),
    (TAP, "/api/2.0/cohorts/list?"),
    (TAP, f"/api/2.0/export?{SPAN}"),
    (AIRBYTE, "/api/query/cohorts/list?project_id=42"),
    (AIRBYTE, "/api/query/events/properties/top?project_id=42"),
    (AIRBYTE, "/api/query/engage/properties?project_id=42&" + SEEN),
    (AIRBYTE, "/api/query/engage?project_id=42&page_size=1000&" + SEEN),
    (AIRBYTE, f"/api/2.0/export?{SPAN}&project_id=42&{SINCE}"),
    (
        GO,
        f"/api/2.0/export?event=Imported&{SPAN}&limit=5&project_id=42&where=properties%5B%22plan%22%5D%3D%3D%22pro%22",
    ),
    (NODE, f"/api/2.0/export?{SPAN}&where=properties%5B%22plan%22%5D+in+%5B%22pro%22%5D&project_id=42"),
]


@pytest.mark.parametrize(("headers", "url"), REQUESTS, ids=[url for _, url in REQUESTS])
def test_connector_request_is_answered(headers: dict[str, str], url: str) -> None:
    mixpanel = Wire(Emulator(secret="s3cret", service_account=("robot", "s3cret", "42"), now=lambda: NOW))
    mixpanel.post("/import?strict=1", [imported(time=NOW, plan="pro")], auth=("s3cret", ""))
    mixpanel.engage("u", set={"plan": "pro"})
    response = mixpanel.request("GET", url, headers=headers)
    assert response.status_code == 200
    if "cohorts" not in url:
        assert "plan" in response.text
    json.loads(response.text)


def test_profile_query_of_mixpanel_import_is_answered() -> None:
    mixpanel = Wire(Emulator(service_account=("robot", "s3cret", "42")))
    mixpanel.engage("u", set={"plan": "pro"})
    url = "/api/2.0/engage?project_id=42"
    asked = {"where": 'properties["plan"] == "pro"'}
    first = mixpanel.request("POST", url, data=asked, headers=NODE).json()
    assert [one["$distinct_id"] for one in first["results"]] == ["u"]
    page = {"session_id": first["session_id"], "page": "1"}
    assert mixpanel.request("POST", url, data=asked | page, headers=NODE).json()["results"] == []
