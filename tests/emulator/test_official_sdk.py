"""Tests of the official Python SDK against the emulator on a socket. Only the address is configured."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from mixpanel_async import IdMerge
from mixpanel_async.emulator import Emulator, Tls

with warnings.catch_warnings():
    # The official package depends on libraries that emit warnings on newer versions of Python.
    warnings.simplefilter("ignore")
    mixpanel = pytest.importorskip("mixpanel")
    from mixpanel.flags.types import LocalFlagsConfig, RemoteFlagsConfig, SelectedVariant

ACCOUNT = {"service_account": ("robot", "s3cret", "42"), "token": "tok"}
A1 = "0b1fba6c-16d3-4e3f-9a4e-2f0c1b7d0001"


PlainConsumer = mixpanel.Consumer


@pytest.fixture
def emulator(request: pytest.FixtureRequest) -> Emulator:
    options: dict[str, Any] = {"id_merge": IdMerge.ORIGINAL, **getattr(request, "param", {})}
    return Emulator(**options)


@pytest.fixture(params=["http", "https"])
def url(
    request: pytest.FixtureRequest, emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    is_secure = request.param == "https"
    with emulator.serve(tls=Tls(directory=tmp_path / "tls") if is_secure else False) as server:
        if is_secure:
            # As printed by `mixpanel-async emulator --tls`.
            for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
                monkeypatch.setenv(name, str(server.ca_file))
        yield server.https_url if is_secure else server.url


def urls(url: str) -> dict[str, str]:
    """Return the options of a consumer for an address. Its `api_host` works for https only."""
    if url.startswith("https:"):
        return {"api_host": urlsplit(url).netloc}
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


@pytest.mark.parametrize("emulator", [ACCOUNT], indirect=True)
def test_import_with_service_account(url: str, emulator: Emulator) -> None:
    for secret in ("s3cret", "wrong"):
        credentials = mixpanel.ServiceAccountCredentials("robot", secret, "42")
        official = mixpanel.Mixpanel("tok", consumer=mixpanel.Consumer(**urls(url), credentials=credentials))
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


@pytest.mark.parametrize("emulator", [{"id_merge": IdMerge.SIMPLIFIED}], indirect=True)
def test_simplified_project_ignores_identity_calls(official: Any, emulator: Emulator) -> None:
    official.alias("x", "u")
    official.merge(None, "u", "v", api_secret="secret")
    assert emulator.cluster("u") == {"u"}
    assert [entry["outcome"] for entry in emulator.identity_log()] == ["ignored", "ignored"]


# The flags of the SDK know https only.
ONLY_HTTPS = pytest.mark.parametrize("url", ["https"], indirect=True)
ANYONE = [{"rollout_percentage": 1.0}]
VARIANTS = [{"key": "a", "value": "A", "split": 0.5}, {"key": "b", "value": "B", "split": 0.5}]
RULE = [{"rollout_percentage": 1.0, "runtime_evaluation_rule": {"==": [{"var": "plan"}, "pro"]}}]
FLAGS: list[dict[str, Any]] = [
    {"key": "split", "ruleset": {"variants": VARIANTS, "rollout": ANYONE}},
    {"key": "pro", "ruleset": {"variants": [{"key": "on", "value": True, "split": 1.0}], "rollout": RULE}},
]
PEOPLE = [
    {"distinct_id": f"u{number}", "custom_properties": {"plan": "pro" if number % 3 else "free"}}
    for number in range(30)
]
FALLBACK = SelectedVariant(variant_value="fallback")


def with_flags(url: str, account: tuple[str, str, str] | None) -> Any:
    host = urlsplit(url).netloc
    return mixpanel.Mixpanel(
        "tok",
        consumer=mixpanel.Consumer(api_host=host),
        local_flags_config=LocalFlagsConfig(api_host=host, enable_polling=False),
        remote_flags_config=RemoteFlagsConfig(api_host=host),
        credentials=None if account is None else mixpanel.ServiceAccountCredentials(*account),
    )


def exposures(emulator: Emulator) -> list[tuple[str, str, str]]:
    names = ("distinct_id", "Experiment name", "Variant name")
    found = (event["properties"] for event in emulator.events("$experiment_started"))
    return sorted((one[names[0]], one[names[1]], one[names[2]]) for one in found)


@ONLY_HTTPS
@pytest.mark.parametrize("emulator", [{"flags": FLAGS}, {"flags": FLAGS, **ACCOUNT}], indirect=True)
def test_flags_of_sdk(url: str, emulator: Emulator, request: pytest.FixtureRequest) -> None:
    official = with_flags(url, request.node.callspec.params["emulator"].get("service_account"))
    local, remote = official.local_flags, official.remote_flags
    local.start_polling_for_definitions()
    assert local.are_flags_ready()
    values = set()
    for person in PEOPLE:
        for key in ("split", "pro", "missing"):
            one = local.get_variant(key, FALLBACK, person, report_exposure=False)
            other = remote.get_variant(key, FALLBACK, person, reportExposure=False)
            assert (one.variant_key, one.variant_value) == (other.variant_key, other.variant_value)
            values.add(one.variant_value)
        everything = {key: variant.variant_value for key, variant in local.get_all_variants(person).items()}
        assert everything == {key: one.variant_value for key, one in remote.get_all_variants(person).items()}
    assert values == {"A", "B", True, "fallback"}
    assert local.is_enabled("pro", PEOPLE[1])
    assert remote.is_enabled("pro", PEOPLE[2])
    assert not remote.is_enabled("pro", PEOPLE[0])
    assert exposures(emulator) == [("u1", "pro", "on"), ("u2", "pro", "on")]
    local.shutdown()
    remote.shutdown()


@ONLY_HTTPS
@pytest.mark.parametrize("emulator", [{"flags": FLAGS}, {"flags": FLAGS, **ACCOUNT}], indirect=True)
def test_flags_of_sdk_in_an_event_loop(url: str, emulator: Emulator, request: pytest.FixtureRequest) -> None:
    async def use() -> None:
        official = with_flags(url, request.node.callspec.params["emulator"].get("service_account"))
        async with official.local_flags as local, official.remote_flags as remote:
            await local.astart_polling_for_definitions()
            for person in PEOPLE:
                one = local.get_variant("split", FALLBACK, person, report_exposure=False)
                other = await remote.aget_variant("split", FALLBACK, person, reportExposure=False)
                assert one.variant_value == other.variant_value
            everything = await remote.aget_all_variants(PEOPLE[1])
            assert {key: variant.variant_value for key, variant in everything.items()} == {
                key: variant.variant_value for key, variant in local.get_all_variants(PEOPLE[1]).items()
            }
            assert await remote.ais_enabled("pro", PEOPLE[1])
            assert await remote.aget_variant_value("missing", "none", PEOPLE[1]) == "none"
            # The SDK sends exposures in tasks of its own.
            await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}))

    asyncio.run(use())
    assert exposures(emulator) == [("u1", "pro", "on")]


@pytest.fixture
def command(url: str, tmp_path: Path) -> Iterator[str]:
    """Provide the address of a `mixpanel-async emulator` in a separate process. It uses the authority of `url`."""
    is_secure = url.startswith("https:")
    arguments = ["emulator", "--port", "0", "--id-merge", "original", "--secret", "secret", "--token", "tok", "--quiet"]
    arguments += ["--tls", "--tls-dir", str(tmp_path / "tls")] if is_secure else []
    run = [sys.executable, "-c", "from mixpanel_async.cli import main; main()", *arguments]
    with subprocess.Popen(run, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            address = process.stdout.readline().strip()
            yield process.stdout.readline().strip() if is_secure else address
        finally:
            process.terminate()
    assert process.returncode == 0


def test_emulator_command_serves_official_sdk(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    let_alias_find(command, monkeypatch)
    buffered = mixpanel.BufferedConsumer(**urls(command))
    for official in (
        mixpanel.Mixpanel("tok", consumer=mixpanel.Consumer(**urls(command))),
        mixpanel.Mixpanel("tok", buffered),
    ):
        official.track(A1, "Viewed")
        official.people_set("u", {"plan": "free"})
        official.people_increment("u", {"visits": 1})
        official.group_set("company", "acme", {"size": 1})
        official.import_data(None, "u", "Imported", time.time() - 30 * 86_400, api_secret="secret")
    official.alias("u", A1)
    official.merge(None, "u", "u-old", api_secret="secret")
    buffered.flush()
    with httpx.Client(base_url=f"{command}/_emulator") as http:
        events = http.get("/events", params={"distinct_id": A1}).json()
        assert sorted(event["event"] for event in events if not event["event"].startswith("$")) == [
            "Imported", "Imported", "Viewed", "Viewed",
        ]  # fmt: skip
        assert http.get("/cluster", params={"distinct_id": "u"}).json() == sorted(["u", "u-old", A1])
        profile = http.get("/profile", params={"distinct_id": "u-old"}).json()
        assert (profile["plan"], profile["visits"]) == ("free", 2)
        assert http.get("/group", params={"group_key": "company", "group_id": "acme"}).json() == {"size": 1}
