"""The official Python SDK against the emulator on a socket, unchanged but for the address."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from mixpanel_async import IdMerge
from mixpanel_async.emulator import Emulator

with warnings.catch_warnings():
    # The official package depends on libraries that warn on newer Pythons.
    warnings.simplefilter("ignore")
    mixpanel = pytest.importorskip("mixpanel")

A1 = "0b1fba6c-16d3-4e3f-9a4e-2f0c1b7d0001"


@pytest.fixture
def emulator() -> Emulator:
    return Emulator(IdMerge.ORIGINAL)


@pytest.fixture
def url(emulator: Emulator) -> Iterator[str]:
    with emulator.serve() as server:
        yield server.url


def urls(url: str) -> dict[str, str]:
    return {
        "events_url": f"{url}/track",
        "people_url": f"{url}/engage",
        "import_url": f"{url}/import",
        "groups_url": f"{url}/groups",
    }


@pytest.fixture
def official(url: str) -> Any:
    return mixpanel.Mixpanel("tok", consumer=mixpanel.Consumer(**urls(url)))


def alias(official: Any, alias_id: str, original: str) -> None:
    """What `Mixpanel.alias` sends; the method itself knows only one host."""
    message = {"event": "$create_alias", "properties": {"distinct_id": original, "alias": alias_id, "token": "tok"}}
    official._consumer.send("events", json.dumps(message))


def test_events_and_identities(official: Any, emulator: Emulator) -> None:
    official.track(A1, "Viewed", {"page": "/é & +?"})
    alias(official, "u", A1)
    official.track("u", "Bought", {"price": 3.5})
    official.import_data(None, "u", "Imported", time.time() - 30 * 86_400, {"old": True}, api_secret="secret")
    official.merge(None, "u", "u-old", api_secret="secret")
    assert emulator.cluster("u") == {"u", A1, "u-old"}
    assert [event["event"] for event in emulator.events()] == [
        "Viewed",
        "$create_alias",
        "Bought",
        "Imported",
        "$merge",
    ]
    properties = emulator.events("Viewed")[0]["properties"]
    assert properties["page"] == "/é & +?"
    assert properties["mp_lib"] == "python"
    assert {request.path for request in emulator.requests()} == {"/track", "/import"}
    assert {request.status for request in emulator.requests()} == {200}


def test_import_without_credentials_fails(official: Any, emulator: Emulator) -> None:
    with pytest.raises(mixpanel.MixpanelException, match="Invalid credentials"):
        official.import_data("key", "u", "Imported", time.time() - 60)
    assert emulator.events() == []


def test_import_with_a_service_account() -> None:
    emulator = Emulator(IdMerge.ORIGINAL, service_account=("robot", "s3cret", "42"))
    with emulator.serve() as server:
        for secret in ("s3cret", "wrong"):
            credentials = mixpanel.ServiceAccountCredentials("robot", secret, "42")
            official = mixpanel.Mixpanel("tok", consumer=mixpanel.Consumer(**urls(server.url), credentials=credentials))
            if secret == "wrong":
                with pytest.raises(mixpanel.MixpanelException):
                    official.merge(None, "a", "b")
            else:
                official.import_data(None, "u", "Imported", time.time() - 60)
    assert len(emulator.events()) == 1


def test_people(official: Any, emulator: Emulator) -> None:
    official.people_set("u", {"$name": "U", "plan": "free"})
    official.people_set_once("u", {"plan": "pro", "first": 1})
    official.people_increment("u", {"visits": 2})
    official.people_append("u", {"tags": "a"})
    official.people_union("u", {"tags": ["a", "b"]})
    official.people_remove("u", {"tags": "a"})
    official.people_unset("u", ["first"])
    official.people_track_charge("u", 9.5, {"sku": 1})
    profile = emulator.profile("u")
    assert profile is not None
    assert profile.pop("$last_seen")
    assert profile == {
        "$name": "U",
        "plan": "free",
        "visits": 2,
        "tags": ["b"],
        "$transactions": [{"sku": 1, "$amount": 9.5}],
    }
    official.people_clear_charges("u")
    assert "$transactions" not in (emulator.profile("u") or {})
    official.people_delete("u")
    assert emulator.profile("u") is None


def test_groups(official: Any, emulator: Emulator) -> None:
    official.group_set("company", "acme", {"size": 1, "gone": 1})
    official.group_set_once("company", "acme", {"size": 2})
    official.group_union("company", "acme", {"tags": ["a", "b"]})
    official.group_remove("company", "acme", {"tags": "a"})
    official.group_unset("company", "acme", ["gone"])
    assert emulator.group("company", "acme") == {"size": 1, "tags": ["b"]}
    official.group_delete("company", "acme")
    assert emulator.group("company", "acme") is None


def test_the_buffered_consumer(url: str, emulator: Emulator) -> None:
    consumer = mixpanel.BufferedConsumer(max_size=7, **urls(url))
    official = mixpanel.Mixpanel("tok", consumer=consumer)
    for number in range(20):
        official.track("u", "Viewed", {"n": number})
        official.people_increment("u", {"visits": 1})
        official.group_set("company", "acme", {"n": number})
    consumer.flush()
    assert [event["properties"]["n"] for event in emulator.events("Viewed")] == list(range(20))
    assert emulator.profile("u") == {"visits": 20}
    assert emulator.group("company", "acme") == {"n": 19}
    assert max(request.records for request in emulator.requests()) == 7


def test_an_error_in_mixpanels_form_reaches_the_caller(official: Any, emulator: Emulator) -> None:
    emulator.fail_next(403)
    with pytest.raises(mixpanel.MixpanelException, match="Forbidden"):
        official.track("u", "Viewed")
    with pytest.raises(mixpanel.MixpanelException, match="must be an object"):
        official.people_set("u", ["no object"])


def test_verbs_in_a_simplified_project_are_taken_and_do_nothing() -> None:
    emulator = Emulator()
    with emulator.serve() as server:
        official = mixpanel.Mixpanel("tok", consumer=mixpanel.Consumer(**urls(server.url)))
        alias(official, "x", "u")
        official.merge(None, "u", "v", api_secret="secret")
    assert emulator.cluster("u") == {"u"}
    assert [entry["outcome"] for entry in emulator.identity_log()] == ["ignored", "ignored"]
