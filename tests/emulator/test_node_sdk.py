"""Tests of the official Node SDK against the emulator on a socket, over http and https.

Only host and protocol are configured. Flags always connect to port 443, which the driver redirects to the emulator.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import pytest

from mixpanel_async import IdMerge
from mixpanel_async.emulator import Emulator, Server, Tls

VERSION: Final = "0.24.0"
A1: Final = "0b1fba6c-16d3-4e3f-9a4e-2f0c1b7d0001"
A2: Final = "0b1fba6c-16d3-4e3f-9a4e-2f0c1b7d0002"
# Its base64 contains plus signs, which the SDK does not percent-encode.
ODD: Final = "ü~~>>>???~~~ß"

pytestmark = [pytest.mark.node, pytest.mark.xdist_group("node"), pytest.mark.timeout(180)]

# Runs steps such as `["people.set", "u", {"a": 1}]` one after the other, and prints the error of each, or null.
DRIVER: Final = """
const Mixpanel = require("mixpanel");
const https = require("https");
const { config, account, steps, port } = JSON.parse(require("fs").readFileSync(0));
const agent = new https.Agent();
const connect = agent.createConnection;
agent.createConnection = (options, done) => connect.call(agent, { ...options, port }, done);
https.globalAgent = agent;
config.logger = { trace() {}, debug() {}, info() {}, warn() {}, error() {} };
if (account) config.credentials = new Mixpanel.ServiceAccountCredentials(...account);
const client = Mixpanel.init("tok", config);

function run([name, ...given]) {
  const path = name.split(".");
  const method = path.pop();
  const target = path.reduce((object, key) => object[key], client);
  if (name.includes("flags.")) return target[method](...given);
  return new Promise((resolve) => {
    target[method](...given, (errors) => {
      const found = [errors].flat().filter(Boolean);
      resolve(found.length ? found.map((error) => error.message).join("; ") : null);
    });
  });
}

function methods(object) {
  const found = [];
  for (let one = object; one && one !== Object.prototype; one = Object.getPrototypeOf(one))
    for (const name of Object.getOwnPropertyNames(one))
      if (typeof object[name] === "function" && name !== "constructor" && !name.startsWith("_")) found.push(name);
  return found;
}

(async () => {
  const results = [];
  for (const step of steps) {
    if (step[0] !== "methods") results.push((await run(step)) ?? null);
    else
      for (const [prefix, object] of [
        ["", client],
        ["people.", client.people],
        ["groups.", client.groups],
        ["local_flags.", client.local_flags],
        ["remote_flags.", client.remote_flags],
      ])
        results.push(...methods(object).map((name) => prefix + name));
  }
  // The process ends once exposures of flags are sent.
  console.log(JSON.stringify(results));
})();
"""


def call(command: list[str], folder: Path, given: str = "", **environment: str) -> str:
    node = Path(shutil.which("node") or "node").parent
    environment = {"PATH": f"{node}:/usr/bin:/bin", "HOME": str(folder), **environment}
    result = subprocess.run(
        command, cwd=folder, env=environment, input=given, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def sdk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Provide a directory in which the SDK is installed."""
    npm = shutil.which("npm")
    if shutil.which("node") is None or npm is None:
        pytest.skip("node or npm is not installed")
    folder = tmp_path_factory.mktemp("node")
    (folder / "package.json").write_text(json.dumps({"name": "driver", "private": True}))
    (folder / "driver.js").write_text(DRIVER)
    install = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefer-offline", f"mixpanel@{VERSION}"]
    result = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=120)
    if result.returncode != 0:
        pytest.skip(f"npm cannot install mixpanel@{VERSION}: {result.stderr[-300:]}")
    return folder


@pytest.fixture
def emulator() -> Emulator:
    return Emulator(IdMerge.ORIGINAL, service_account=("robot", "s3cret", "42"), token="tok", secret="sec")


@pytest.fixture(params=["http", "https"])
def server(request: pytest.FixtureRequest, emulator: Emulator, tmp_path: Path) -> Iterator[Server]:
    with emulator.serve(tls=Tls(directory=tmp_path / "tls") if request.param == "https" else False) as server:
        yield server


def run(
    sdk: Path, server: Server, *steps: list[Any], account: list[str] | None = None, scheme: str = "", **options: Any
) -> list[Any]:
    """Run calls of the SDK. Return the error that each passed to its callback, or None; of flags, the result."""
    scheme = scheme or ("https" if server.has_tls else "http")
    port = urlsplit(server.url).port
    config = {"host": f"localhost:{port}", "protocol": scheme, **options}
    given = json.dumps({"config": config, "account": account, "steps": steps, "port": port})
    certificate = {} if server.ca_file is None else {"NODE_EXTRA_CA_CERTS": str(server.ca_file)}
    results: list[Any] = json.loads(call(["node", "driver.js"], sdk, given, **certificate))
    return results


@pytest.mark.parametrize("verbose", [False, True])
def test_track_and_alias_of_node_sdk(sdk: Path, emulator: Emulator, server: Server, verbose: bool) -> None:
    results = run(
        sdk,
        server,
        ["track", "Viewed", {"distinct_id": A1, "odd": ODD}],
        ["alias", A1, "user-1"],
        ["track", "Bought", {"distinct_id": "user-1"}],
        verbose=verbose,
    )
    assert results == [None, None, None]
    assert emulator.cluster("user-1") == {A1, "user-1"}
    viewed = emulator.events("Viewed")[0]["properties"]
    assert (viewed["odd"], viewed["mp_lib"], viewed["$lib_version"]) == (ODD, "node", VERSION)
    assert viewed["distinct_id"] == emulator.events("Bought")[0]["properties"]["distinct_id"]
    assert {request.method for request in emulator.requests()} == {"GET"}


def test_batches_of_node_sdk(sdk: Path, emulator: Emulator, server: Server) -> None:
    events = [{"event": "Viewed", "properties": {"distinct_id": A1, "n": n, "odd": ODD * n}} for n in range(120)]
    assert run(sdk, server, ["track_batch", events]) == [None]
    arrived = {event["properties"]["n"]: event["properties"]["odd"] for event in emulator.events("Viewed")}
    assert arrived == {n: (ODD * n)[:255] for n in range(120)}
    assert sorted(request.records for request in emulator.requests()) == [20, 50, 50]
    assert {request.method for request in emulator.requests()} == {"POST"}


def test_people_updates_of_sdk(sdk: Path, emulator: Emulator, server: Server) -> None:
    results = run(
        sdk,
        server,
        ["people.set", "u", {"$name": "U", "plan": "free"}],
        ["people.set_once", "u", {"plan": "pro", "first": 1}],
        ["people.increment", "u", "visits", 2],
        ["people.increment", "u", {"visits": 3, "logins": 1}],
        ["people.append", "u", "tags", "a"],
        ["people.union", "u", {"tags": ["a", "b"]}],
        ["people.remove", "u", {"tags": "a"}],
        ["people.unset", "u", "first"],
        ["people.track_charge", "u", 9.5, {"sku": 1}],
        ["people.set", "gone", {"a": 1}],
        ["people.delete_user", "gone"],
    )
    assert results == [None] * 11
    profile = emulator.profile("u")
    assert profile is not None
    assert profile.pop("$last_seen")
    assert profile.pop("$transactions") == [{"$amount": 9.5, "sku": 1}]
    assert profile == {"$name": "U", "plan": "free", "visits": 5, "logins": 1, "tags": ["b"]}
    assert emulator.profile("gone") is None


def test_group_updates_of_sdk(sdk: Path, emulator: Emulator, server: Server) -> None:
    results = run(
        sdk,
        server,
        ["groups.set", "company", "acme", {"size": 1, "gone": 1}],
        ["groups.set_once", "company", "acme", {"size": 2}],
        ["groups.union", "company", "acme", {"tags": ["a", "b"]}],
        ["groups.remove", "company", "acme", {"tags": "a"}],
        ["groups.unset", "company", "acme", "gone"],
        ["groups.set", "company", "old", {"a": 1}],
        ["groups.delete_group", "company", "old"],
    )
    assert results == [None] * 7
    assert emulator.group("company", "acme") == {"size": 1, "tags": ["b"]}
    assert emulator.group("company", "old") is None


OLD: Final = 1_600_000_000
BATCH: Final = [
    {"event": "Imported", "properties": {"time": OLD + n, "distinct_id": A2, "$insert_id": f"id-{n}"}}
    for n in range(60)
]
IMPORTS: Final[list[list[Any]]] = [
    ["import", "Imported", OLD, {"distinct_id": A1, "$insert_id": "one"}],
    # Example from the SDK's documentation.
    ["import", "Imported bare", OLD, {"distinct_id": A1}],
    ["import_batch", BATCH],
]
REFUSED: Final = 'Mixpanel Server Error: {"code":401,"error":"Invalid credentials","status":"Unauthorized"}'


@pytest.mark.parametrize("server", ["https"], indirect=True)
@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ({"account": ["robot", "s3cret", "42"]}, {"account": ["robot", "wrong", "42"]}),
        ({"secret": "sec"}, {"secret": "wrong"}),
        ({"key": "sec"}, {"key": "wrong"}),
    ],
    ids=["service account", "secret", "key"],
)
def test_import_of_node_sdk(
    sdk: Path, emulator: Emulator, server: Server, good: dict[str, Any], bad: dict[str, Any]
) -> None:
    assert run(sdk, server, *IMPORTS, **good) == [None] * 3
    assert run(sdk, server, IMPORTS[0], **bad) == [REFUSED]
    events = emulator.events("Imported")
    assert {event["properties"]["$insert_id"] for event in events} == {"one", *(f"id-{n}" for n in range(60))}
    assert len(emulator.events("Imported bare")) == 1


def test_import_with_key_works_over_http(sdk: Path, emulator: Emulator, server: Server) -> None:
    assert run(sdk, server, *IMPORTS, key="sec", scheme="http") == [None] * 3
    assert len(emulator.events()) == 62


VARIANTS: Final = [{"key": "a", "value": "A", "split": 0.5}, {"key": "b", "value": "B", "split": 0.5}]
FLAGS: Final = [{"key": "split", "ruleset": {"variants": VARIANTS, "rollout": [{"rollout_percentage": 1.0}]}}]


@pytest.mark.parametrize("server", ["https"], indirect=True)
@pytest.mark.parametrize("account", [None, ["robot", "s3cret", "42"]], ids=["token", "service account"])
def test_flags_of_node_sdk(sdk: Path, emulator: Emulator, server: Server, account: list[str] | None) -> None:
    emulator.set_flags(FLAGS)
    people = [{"distinct_id": f"u{number}"} for number in range(12)]
    config = {"api_host": "localhost", "enable_polling": False}
    steps = [
        [f"{kind}_flags.getVariantValue", "split", "fallback", person]
        for kind in ("local", "remote")
        for person in people
    ]
    _, *values = run(
        sdk,
        server,
        ["local_flags.startPollingForDefinitions"],
        *steps,
        ["local_flags.getVariantValue", "missing", "fallback", people[0]],
        ["remote_flags.getVariantValue", "missing", "fallback", people[0]],
        account=account,
        local_flags_config=config,
        remote_flags_config=config,
    )
    assert set(values[:12]) == {"A", "B"}
    assert values[:12] == values[12:24]
    assert values[24:] == ["fallback", "fallback"]
    assert {request.path for request in emulator.requests()} == {"/flags", "/flags/definitions", "/track"}
    assert {request.status for request in emulator.requests()} == {200}
    shown = [event["properties"]["distinct_id"] for event in emulator.events("$experiment_started")]
    assert sorted(shown) == sorted([person["distinct_id"] for person in people] * 2)


# Every method of the SDK, with the reason if no step calls it.
SKIPPED: Final = {
    "set_config": "sends nothing; called by init",
    "send_request": "called by all others",
    "send_event_request": "called by track and import",
    "local_flags.callFlagsEndpoint": "called by startPollingForDefinitions",
    "local_flags.stopPollingForDefinitions": "sends nothing; there is no polling here",
    "local_flags.shutdown": "sends nothing",
    "remote_flags.callFlagsEndpoint": "called by getVariant",
    "remote_flags.shutdown": "sends nothing",
    "local_flags.tracker": "the method track",
    "remote_flags.tracker": "the method track",
}
PERSON: Final = {"distinct_id": "u"}
SHOWN: Final = {"variant_key": "a", "variant_value": "A"}
ALL_CALLS: Final[list[list[Any]]] = [
    ["track", "Viewed", {"distinct_id": "u"}],
    ["track_batch", [{"event": "Viewed", "properties": {"distinct_id": "u"}}]],
    *IMPORTS[1:],
    ["alias", A1, "u"],
    ["people.set", "u", {"a": 1}],
    ["people.set_once", "u", {"b": 1}],
    ["people.increment", "u", "a", 2],
    ["people.append", "u", {"tags": "a"}],
    ["people.union", "u", {"tags": ["b"]}],
    ["people.remove", "u", {"tags": "a"}],
    ["people.unset", "u", ["b"]],
    ["people.track_charge", "u", 9.5],
    ["people.clear_charges", "u"],
    ["people.delete_user", "u"],
    ["groups.set", "company", "acme", {"a": 1}],
    ["groups.set_once", "company", "acme", {"b": 1}],
    ["groups.union", "company", "acme", {"tags": ["b"]}],
    ["groups.remove", "company", "acme", {"tags": "b"}],
    ["groups.unset", "company", "acme", ["b"]],
    ["groups.delete_group", "company", "acme"],
]
ALL_FLAG_CALLS: Final[list[list[Any]]] = [
    ["local_flags.startPollingForDefinitions"],
    ["local_flags.areFlagsReady"],
    *(
        [f"{kind}_flags.{name}", *given]
        for kind in ("local", "remote")
        for name, *given in (
            ["getVariant", "split", {"variant_value": "fallback"}, PERSON],
            ["getVariantValue", "split", "fallback", PERSON],
            ["isEnabled", "split", PERSON],
            ["getAllVariants", PERSON],
            ["trackExposureEvent", "split", SHOWN, PERSON],
        )
    ),
]


@pytest.mark.parametrize("server", ["https"], indirect=True)
def test_every_method_of_node_sdk(sdk: Path, emulator: Emulator, server: Server) -> None:
    emulator.set_flags(FLAGS)
    config = {"api_host": "localhost", "enable_polling": False}
    options: dict[str, Any] = {"secret": "sec", "local_flags_config": config, "remote_flags_config": config}
    methods = run(sdk, server, ["methods"], **options)
    called = {name for name, *_ in [*ALL_CALLS, *ALL_FLAG_CALLS]}
    assert set(methods) == called | set(SKIPPED)
    assert run(sdk, server, *ALL_CALLS, **options) == [None] * len(ALL_CALLS)
    results = run(sdk, server, *ALL_FLAG_CALLS, **options)
    local, remote = results[2:7], results[7:12]
    assert local[0]["variant_value"] == local[1] == remote[1] == remote[0]["variant_value"]
    assert emulator.rejected() == []
    assert {request.status for request in emulator.requests()} == {200}


def test_planned_failure_reaches_callback(sdk: Path, emulator: Emulator, server: Server) -> None:
    emulator.fail_next(503, times=1)
    results = run(
        sdk,
        server,
        ["track", "Viewed", {"distinct_id": "u"}],
        ["people.set", "", {"a": 1}],
        verbose=True,
    )
    assert results[0] is not None
    assert results[1] == "Mixpanel Server Error: $distinct_id must not be missing"
    assert emulator.events() == []
