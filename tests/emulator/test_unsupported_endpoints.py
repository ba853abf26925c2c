"""Tests of endpoints of Mixpanel that the emulator does not have."""

from __future__ import annotations

from typing import Any

import pytest
from emulator_wire import Wire

from mixpanel_async.emulator import Emulator

NOW = 1_700_000_000.0
UUID = "55b4fb2b-e8de-466c-930f-8b36640b9b5e"


@pytest.fixture
def mixpanel() -> Wire:
    return Wire(Emulator(now=lambda: NOW))


def listed(mixpanel: Wire, **parameters: Any) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = mixpanel.request("GET", "/_emulator/unsupported", params=parameters).json()
    return entries


@pytest.mark.parametrize(
    ("method", "path", "name"),
    [
        ("POST", "/api/2.0/jql", "/api/2.0/jql"),
        ("POST", "/api/query/jql/", "/api/query/jql"),
        ("GET", "/api/query/insights?bookmark_id=1", "/api/query/insights"),
        ("GET", "/api/2.0/funnels/list", "/api/2.0/funnels/list"),
        ("GET", "/api/query/segmentation/numeric", "/api/query/segmentation/numeric"),
        ("GET", "/api/query/retention", "/api/query/retention"),
        ("GET", "/api/app/projects/42/annotations/7", "/api/app/projects/{id}/annotations/{id}"),
        ("DELETE", "/api/app/projects/42/schemas/event/Sign%20up", "/api/app/projects/{id}/schemas/event/Sign up"),
        ("PATCH", "/api/app/projects/42/annotations/7", "/api/app/projects/{id}/annotations/{id}"),
        ("POST", "/api/app/data-deletions/v3.0/?token=t", "/api/app/data-deletions/v3.0"),
        ("GET", "/api/app/data-retrievals/v3.0/0123456789abcdef0123", "/api/app/data-retrievals/v3.0/{id}"),
        ("PUT", f"/api/app/projects/42/workspaces/7/feature-flags/{UUID}",
         "/api/app/projects/{id}/workspaces/{id}/feature-flags/{id}"),
    ],
)  # fmt: skip
def test_endpoint_that_is_not_emulated_answers_501(mixpanel: Wire, method: str, path: str, name: str) -> None:
    response = mixpanel.request(method, path, content=b"x" * 1_000 if method == "POST" else b"")
    assert response.status_code == 501
    assert response.json()["status"] == "error"
    assert f"{method} {name} is not emulated" in response.json()["error"]
    assert listed(mixpanel) == [{"method": method, "path": name, "count": 1, "first": NOW, "last": NOW}]
    assert mixpanel.emulator.unsupported() == listed(mixpanel)


def test_endpoints_are_counted_once_each_and_bounded() -> None:
    times = iter(range(1, 1_000))
    mixpanel = Wire(Emulator(now=lambda: float(next(times))))
    for path in ("/api/2.0/jql", "/api/query/insights", "/api/2.0/jql"):
        mixpanel.request("GET", path)
    jql, insights = reversed(listed(mixpanel))
    assert [entry["path"] for entry in (insights, jql)] == ["/api/query/insights", "/api/2.0/jql"]
    assert [entry["count"] for entry in (insights, jql)] == [1, 2]
    assert insights["first"] == insights["last"] > jql["first"]
    assert listed(mixpanel, limit=1) == [jql]
    for number in range(210):
        mixpanel.request("GET", f"/api/query/r{number}" + "x" * 400)
    entries = listed(mixpanel)
    assert len(entries) == 200
    assert all(len(entry["path"]) < 210 for entry in entries)


def test_reset_forgets_unsupported_requests(mixpanel: Wire) -> None:
    mixpanel.request("GET", "/api/2.0/jql")
    mixpanel.emulator.reset()
    assert listed(mixpanel) == []


def test_path_outside_the_api_is_unknown(mixpanel: Wire) -> None:
    assert mixpanel.request("GET", "/apis/2.0/jql").status_code == 404
    assert listed(mixpanel) == []


def test_read_endpoint_with_another_method_is_not_unsupported(mixpanel: Wire) -> None:
    assert mixpanel.request("DELETE", "/api/2.0/export").status_code == 405
    assert listed(mixpanel) == []
