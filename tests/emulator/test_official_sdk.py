"""Tests of the official Python SDK against the emulator on a socket. Only the address is configured."""

from __future__ import annotations

import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from mixpanel_async import IdMerge
from mixpanel_async.emulator import Emulator

with warnings.catch_warnings():
    # The official package depends on libraries that emit warnings on newer versions of Python.
    warnings.simplefilter("ignore")
    mixpanel = pytest.importorskip("mixpanel")

A1 = "0b1fba6c-16d3-4e3f-9a4e-2f0c1b7d0001"


PlainConsumer = mixpanel.Consumer


@pytest.fixture
def emulator(request: pytest.FixtureRequest) -> Emulator:
    return Emulator(getattr(request, "param", IdMerge.ORIGINAL))


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


def let_alias_find(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redirect `Mixpanel.alias` to the emulator. It creates a default consumer, which knows only one host."""

    def consumer(*given: Any, **options: Any) -> Any:
        return PlainConsumer(*given, **options) if given or options else PlainConsumer(**urls(url))

    monkeypatch.setattr(mixpanel, "Consumer", consumer)


@pytest.fixture(autouse=True)
def alias_finds_the_emulator(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    let_alias_find(url, monkeypatch)


def test_events_and_identities_of_sdk(official: Any, emulator: Emulator) -> None:
    official.track(A1, "Viewed", {"page": "/é & +?"})
    official.alias("u", A1)
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


def test_import_with_service_account() -> None:
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


def test_people_updates_of_sdk(official: Any, emulator: Emulator) -> None:
    official.people_set("u", {"$name": "U", "plan": "free"})
    official.people_set_once("u", {"plan": "pro", "first": 1})
    official.people_increment("u", {"visits": 2})
    official.people_append("u", {"tags": "a"})
    official.people_union("u", {"tags": ["a", "b"]})
    official.people_remove("u", {"tags": "a"})
    official.people_unset("u", ["first"])
    official.people_track_charge("u", 9.5, {"sku": 1})
    official.people_update({"$distinct_id": "u", "$set": {"updated": True}})
    profile = emulator.profile("u")
    assert profile is not None
    assert profile.pop("$last_seen")
    assert profile == {
        "$name": "U",
        "plan": "free",
        "visits": 2,
        "tags": ["b"],
        "updated": True,
        "$transactions": [{"sku": 1, "$amount": 9.5}],
    }
    official.people_clear_charges("u")
    assert "$transactions" not in (emulator.profile("u") or {})
    official.people_delete("u")
    assert emulator.profile("u") is None


def test_group_updates_of_sdk(official: Any, emulator: Emulator) -> None:
    official.group_set("company", "acme", {"size": 1, "gone": 1})
    official.group_set_once("company", "acme", {"size": 2})
    official.group_union("company", "acme", {"tags": ["a", "b"]})
    official.group_remove("company", "acme", {"tags": "a"})
    official.group_unset("company", "acme", ["gone"])
    official.group_update({"$group_key": "company", "$group_id": "acme", "$set": {"updated": True}})
    assert emulator.group("company", "acme") == {"size": 1, "tags": ["b"], "updated": True}
    official.group_delete("company", "acme")
    assert emulator.group("company", "acme") is None


def test_buffered_consumer_of_sdk(url: str, emulator: Emulator) -> None:
    consumer = mixpanel.BufferedConsumer(max_size=7, **urls(url))
    official = mixpanel.Mixpanel("tok", consumer=consumer)
    for number in range(20):
        official.track("u", "Viewed", {"n": number})
        official.people_increment("u", {"visits": 1})
        official.group_set("company", "acme", {"n": number})
    consumer.flush()
    # Separate, because the consumer loses the secret at the next call of another kind.
    official.alias("u", A1)
    for number in range(3):
        official.import_data(None, A1, "Imported", time.time() - 60, {"n": number}, api_secret="secret")
    official.merge(None, "u", "u-old", api_secret="secret")
    consumer.flush()
    assert emulator.cluster("u") == {"u", "u-old", A1}
    assert [event["properties"]["n"] for event in emulator.events("Imported")] == [0, 1, 2]
    assert [event["properties"]["n"] for event in emulator.events("Viewed")] == list(range(20))
    assert emulator.profile("u") == {"visits": 20}
    assert emulator.group("company", "acme") == {"n": 19}
    assert max(request.records for request in emulator.requests()) == 7


def test_error_response_reaches_caller(official: Any, emulator: Emulator) -> None:
    emulator.fail_next(403)
    with pytest.raises(mixpanel.MixpanelException, match="Forbidden"):
        official.track("u", "Viewed")
    with pytest.raises(mixpanel.MixpanelException, match="must be an object"):
        official.people_set("u", ["no object"])


@pytest.mark.parametrize("emulator", [IdMerge.SIMPLIFIED], indirect=True)
def test_simplified_project_ignores_identity_calls(official: Any, emulator: Emulator) -> None:
    official.alias("x", "u")
    official.merge(None, "u", "v", api_secret="secret")
    assert emulator.cluster("u") == {"u"}
    assert [entry["outcome"] for entry in emulator.identity_log()] == ["ignored", "ignored"]


@pytest.fixture
def command() -> Iterator[str]:
    """Provide the address of a `mixpanel-async emulator` in a separate process."""
    arguments = ["emulator", "--port", "0", "--id-merge", "original", "--secret", "secret", "--token", "tok"]
    run = [sys.executable, "-c", "from mixpanel_async.cli import main; main()", *arguments]
    with subprocess.Popen(run, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()
    assert process.returncode == 0


def test_emulator_command_serves_official_sdk(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    let_alias_find(command, monkeypatch)
    buffered = mixpanel.BufferedConsumer(**urls(command))
    for official in (mixpanel.Mixpanel("tok", consumer=mixpanel.Consumer()), mixpanel.Mixpanel("tok", buffered)):
        official.track(A1, "Viewed")
        official.people_set("u", {"plan": "free"})
        official.people_increment("u", {"visits": 1})
        official.group_set("company", "acme", {"size": 1})
        official.import_data(None, "u", "Imported", time.time() - 30 * 86_400, api_secret="secret")
    official.alias("u", A1)
    official.merge(None, "u", "u-old", api_secret="secret")
    buffered.flush()
    with httpx.Client(base_url=f"{command}/_emulator", trust_env=False) as http:
        events = http.get("/events", params={"distinct_id": A1}).json()
        assert sorted(event["event"] for event in events if not event["event"].startswith("$")) == [
            "Imported", "Imported", "Viewed", "Viewed",
        ]  # fmt: skip
        assert http.get("/cluster", params={"distinct_id": "u"}).json() == sorted(["u", "u-old", A1])
        profile = http.get("/profile", params={"distinct_id": "u-old"}).json()
        assert (profile["plan"], profile["visits"]) == ("free", 2)
        assert http.get("/group", params={"group_key": "company", "group_id": "acme"}).json() == {"size": 1}
