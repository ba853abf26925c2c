"""Tests of the official Node SDK against the emulator on a socket. Only host and protocol are configured."""

from __future__ import annotations

import asyncio
import json
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import pytest

from mixpanel_async import IdMerge
from mixpanel_async.emulator import Emulator

VERSION: Final = "0.24.0"
A1: Final = "0b1fba6c-16d3-4e3f-9a4e-2f0c1b7d0001"
A2: Final = "0b1fba6c-16d3-4e3f-9a4e-2f0c1b7d0002"
# Its base64 contains plus signs, which the SDK does not percent-encode.
ODD: Final = "ü~~>>>???~~~ß"

pytestmark = [pytest.mark.node, pytest.mark.xdist_group("node"), pytest.mark.timeout(180)]

# Runs steps such as `["people.set", "u", {"a": 1}]` one after the other, and prints the error of each, or null.
DRIVER: Final = """
const Mixpanel = require("mixpanel");
const { config, account, steps } = JSON.parse(require("fs").readFileSync(0));
config.logger = { trace() {}, debug() {}, info() {}, warn() {}, error() {} };
if (account) config.credentials = new Mixpanel.ServiceAccountCredentials(...account);
const client = Mixpanel.init("tok", config);

function run([name, ...given]) {
  const path = name.split(".");
  const method = path.pop();
  const target = path.reduce((object, key) => object[key], client);
  return new Promise((resolve) => {
    target[method](...given, (errors) => {
      const found = [errors].flat().filter(Boolean);
      resolve(found.length ? found.map((error) => error.message).join("; ") : null);
    });
  });
}

(async () => {
  const results = [];
  for (const step of steps) results.push(await run(step));
  console.log(JSON.stringify(results));
  process.exit(0);
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
    return Emulator(IdMerge.ORIGINAL, service_account=("robot", "s3cret", "42"))


def run(sdk: Path, url: str, *steps: list[Any], account: list[str] | None = None, **options: Any) -> list[str | None]:
    """Run calls of the SDK. Return the error that each passed to its callback, or None."""
    address = urlsplit(url)
    config = {"host": address.netloc, "protocol": address.scheme, **options}
    given = json.dumps({"config": config, "account": account, "steps": steps})
    certificate = {"NODE_EXTRA_CA_CERTS": str(sdk / "cert.pem")} if address.scheme == "https" else {}
    results: list[str | None] = json.loads(call(["node", "driver.js"], sdk, given, **certificate))
    return results


@pytest.mark.parametrize("verbose", [False, True])
def test_track_and_alias_of_node_sdk(sdk: Path, emulator: Emulator, verbose: bool) -> None:
    with emulator.serve() as server:
        results = run(
            sdk,
            server.url,
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


def test_batches_of_node_sdk(sdk: Path, emulator: Emulator) -> None:
    events = [{"event": "Viewed", "properties": {"distinct_id": A1, "n": n, "odd": ODD * n}} for n in range(120)]
    with emulator.serve() as server:
        assert run(sdk, server.url, ["track_batch", events]) == [None]
    arrived = {event["properties"]["n"]: event["properties"]["odd"] for event in emulator.events("Viewed")}
    assert arrived == {n: (ODD * n)[:255] for n in range(120)}
    assert sorted(request.records for request in emulator.requests()) == [20, 50, 50]
    assert {request.method for request in emulator.requests()} == {"POST"}


def test_people_updates_of_sdk(sdk: Path, emulator: Emulator) -> None:
    with emulator.serve() as server:
        results = run(
            sdk,
            server.url,
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


def test_group_updates_of_sdk(sdk: Path, emulator: Emulator) -> None:
    with emulator.serve() as server:
        results = run(
            sdk,
            server.url,
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


def test_import_of_node_sdk(sdk: Path, emulator: Emulator) -> None:
    """Check imports through a TLS proxy, because the SDK sends credentials over TLS only."""
    old = 1_600_000_000
    batch = [
        {"event": "Imported", "properties": {"time": old + n, "distinct_id": A2, "$insert_id": f"id-{n}"}}
        for n in range(60)
    ]
    one = ["import", "Imported", old, {"distinct_id": A1, "$insert_id": "one"}]
    # Example from the SDK's documentation.
    bare = ["import", "Imported bare", old, {"distinct_id": A1}]
    with emulator.serve() as server, over_tls(sdk, server.url) as url:
        assert run(sdk, url, one, bare, ["import_batch", batch], account=["robot", "s3cret", "42"]) == [None] * 3
        assert run(sdk, url, one, account=["robot", "wrong", "42"]) == [
            'Mixpanel Server Error: {"code":401,"error":"Invalid credentials","status":"Unauthorized"}'
        ]
    events = emulator.events("Imported")
    assert {event["properties"]["$insert_id"] for event in events} == {"one", *(f"id-{n}" for n in range(60))}
    assert len(emulator.events("Imported bare")) == 1


def test_planned_failure_reaches_callback(sdk: Path, emulator: Emulator) -> None:
    with emulator.serve() as server:
        emulator.fail_next(503, times=1)
        results = run(
            sdk,
            server.url,
            ["track", "Viewed", {"distinct_id": "u"}],
            ["people.set", "", {"a": 1}],
            verbose=True,
        )
    assert results[0] is not None
    assert results[1] == "Mixpanel Server Error: $distinct_id must not be missing"
    assert emulator.events() == []


@contextmanager
def over_tls(folder: Path, url: str) -> Iterator[str]:
    """Provide an HTTPS address in front of an HTTP address."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    files = ["-keyout", "key.pem", "-out", "cert.pem"]
    call(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *name, *files], folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    started: Future[int] = Future()
    stopping: Future[None] = Future()
    thread = threading.Thread(target=lambda: asyncio.run(_proxy(context, url, started, stopping)))
    thread.start()
    try:
        yield f"https://localhost:{started.result()}"
    finally:
        stopping.set_result(None)
        thread.join()


async def _proxy(context: ssl.SSLContext, url: str, started: Future[int], stopping: Future[None]) -> None:
    address = urlsplit(url)

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65_536):
            sink.write(data)
            await sink.drain()
        sink.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind_reader, behind = await asyncio.open_connection(address.hostname, address.port)
        try:
            await asyncio.gather(pump(reader, behind), pump(behind_reader, writer))
        except (OSError, asyncio.CancelledError):
            # The client has disconnected, or the test has ended. asyncio logs cancelled stream server tasks as errors.
            behind.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        started.set_result(server.sockets[0].getsockname()[1])
        await asyncio.wrap_future(stopping)
