"""Tests of requests and responses against Mixpanel's OpenAPI files.

The files belong to Mixpanel and are not part of this repository. The tests search for them in MIXPANEL_OPENAPI_DIR, or
in `shared/openapi` next to the repository.
"""

from __future__ import annotations

import json
import os
import re
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import anyio
import httpx
import pytest
from emulator_wire import imported

from mixpanel_async import AsyncMixpanel, IdMerge, ServiceAccountCredentials
from mixpanel_async.emulator import Emulator

with warnings.catch_warnings():
    # The official package depends on libraries that emit warnings on newer versions of Python.
    warnings.simplefilter("ignore")
    official_sdk = pytest.importorskip("mixpanel")
pytest.importorskip("jsonschema")
pytest.importorskip("yaml")

from emulator_openapi import ON_PURPOSE, Recorder, Spec

FOLDER: Final = Path(os.environ.get("MIXPANEL_OPENAPI_DIR") or Path(__file__).resolve().parents[3] / "shared/openapi")
A1: Final = "0b1fba6c-16d3-4e3f-9a4e-2f0c1b7d0001"
WRONG: Final = {"Content-Type": "application/json", ON_PURPOSE: "1"}

pytestmark = pytest.mark.skipif(
    not (FOLDER / "ingestion.openapi.yaml").is_file(),
    reason="Mixpanel's OpenAPI files not found; set MIXPANEL_OPENAPI_DIR to their directory",
)

# Known deviations that are not errors of the client or the emulator, with their reasons.
SLIPS: Final[dict[str, str]] = {
    r"(/engage|/groups|/track)\S*: request as application/x-www-form-urlencoded is not documented": (
        "the pages say in prose that a form with `data` is taken, and the official Python SDK sends nothing else"
    ),
    r"/import: request as application/x-www-form-urlencoded is not documented": (
        "the official Python SDK posts imports and merges as forms"
    ),
    r"/import: parameter strict is missing": "called required with a default; the official Python SDK never sends it",
    r"/import: parameter project_id is missing": (
        "the prose asks for it with a service account only; a token or the project's secret decides the project"
    ),
    r"/import: parameter ip is not documented": (
        "sent to keep Mixpanel from locating users at the server, as the official SDK does in its forms"
    ),
    r"identity /track#\S+: request as application/json is not documented": (
        "verbs are events, and the ingestion file documents JSON arrays for /track; the official Go SDK sends both"
    ),
    r"identity /track#\S+: parameter (verbose|ip) is not documented": (
        "they are parameters of /track, which the ingestion file documents"
    ),
    r"#(profile|group)-batch-update: request: .* is not of type 'string'": (
        "the schema describes the sample text and not the JSON list that the description asks for"
    ),
    r"/groups#group-union: request: '\$unset' is a required property": "`$unset` stands where `$union` should",
    r"/groups#group-delete: request: '\$set' is a required property": "`$set` stands where `$delete` should",
    r"(/engage#profile|/groups#group)-delete: parameter ip is not documented": "every other operation has it",
    r"request properties\.time: [\d.]+ is not of type 'integer'": "the official Python SDK sends fractions of a second",
    r"(/engage|/groups|/track)\S*: answer (400|413) is not documented": (
        "of a request that cannot be read the files say nothing; every other refusal has this form"
    ),
    r"(/engage|/groups|/track)\S*: answer (429|500) is not documented": (
        "only the description of /import has 429, and none has 5xx, though the prose advises to try both again"
    ),
    r"/import: answer 500 is not documented": "the prose advises to try it again",
    r"/import: answer 200 .*(has no|is not of type 'string')": (
        "to a form the official Python SDK needs the answer of `verbose=1`, or raises KeyError"
    ),
    r"ingestion /import: answer 400 failed_records: 'identity events are not allowed.*' is not of type 'object'": (
        "observed: in a Simplified project the failed records are texts"
    ),
    r"ingestion /import: request properties: '.*' is a required property": (
        "the official buffered consumer puts merges, which have none of these, into one batch with imports"
    ),
}


def official(url: str, buffered: bool = False, credentials: Any = None) -> Any:
    kind = official_sdk.BufferedConsumer if buffered else official_sdk.Consumer
    addresses = {"events": "track", "people": "engage", "import": "import", "groups": "groups"}
    options = {f"{name}_url": f"{url}/{path}" for name, path in addresses.items()}
    return official_sdk.Mixpanel("tok", consumer=kind(**options, credentials=credentials))


def profiles_and_groups(client: Any) -> list[Any]:
    """Call every profile and group operation. Await the results if the client is asynchronous."""
    return [
        client.people_set("u", {"a": 1}),
        client.people_set_once("u", {"a": 1}),
        client.people_increment("u", {"a": 1}),
        client.people_append("u", {"b": "x"}),
        client.people_union("u", {"b": ["x", 2]}),
        client.people_remove("u", {"b": "x"}),
        client.people_unset("u", ["a"]),
        client.people_track_charge("u", 9.5),
        client.people_clear_charges("u"),
        client.people_delete("u", meta={"$ignore_alias": True}),
        client.group_set("company", "acme", {"a": 1}),
        client.group_set_once("company", "acme", {"a": 1}),
        client.group_union("company", "acme", {"b": ["x", 2]}),
        client.group_remove("company", "acme", {"b": "x"}),
        client.group_unset("company", "acme", ["a"]),
        client.group_delete("company", "acme"),
    ]


def by_our_client(emulator: Emulator) -> None:
    async def talk(client: AsyncMixpanel) -> None:
        async with client as mp:
            await mp.track("u", "Viewed", {"long": "x" * 2_000})
            await mp.import_data(None, "u", "Imported", time.time() - 60)
            await mp.alias("u", A1)
            await mp.identify("u2", A1.replace("1", "2"))
            await mp.merge(None, "u", "u2", api_secret="secret")
            await mp.flush()
            # First one by one, for a separate request of each kind, then all at once.
            for call in profiles_and_groups(mp):
                await call
                await mp.flush()
            for call in profiles_and_groups(mp):
                await call

    anyio.run(talk, emulator.client())
    anyio.run(talk, emulator.client(credentials=ServiceAccountCredentials("robot", "secret", "42")))


def by_the_official_sdk(emulator: Emulator) -> None:
    with emulator.serve() as server:
        account = official_sdk.ServiceAccountCredentials("robot", "secret", "42")
        for client in (official(server.url), official(server.url, credentials=account), official(server.url, True)):
            client.track("u", "Viewed", {"n": 1})
            profiles_and_groups(client)
            # Last, because the buffered consumer loses the secret at the next call of another kind.
            client.import_data(None, "u", "Imported", time.time() - 60, api_secret="secret")
            client.merge(None, "a", "b", api_secret="secret")
            if isinstance(client._consumer, official_sdk.BufferedConsumer):
                client._consumer.flush()


def by_hand(emulator: Emulator) -> None:
    """Send requests that no client sends, and use every response mode."""

    async def send() -> None:
        transport = httpx.ASGITransport(app=emulator.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            await _modes(http)
            await _imports(http)
            await _refusals(http, emulator)

    anyio.run(send)


async def _modes(http: httpx.AsyncClient) -> None:
    good = {
        "/track": {"event": "Viewed", "properties": {"token": "tok", "distinct_id": "u", "time": 1_700_000_000}},
        "/engage": {"$token": "tok", "$distinct_id": "u", "$set": {"a": 1}},
        "/groups": {"$token": "tok", "$group_key": "company", "$group_id": "acme", "$set": {"a": 1}},
    }
    for path, record in good.items():
        modes = ["", "?verbose=0", "?verbose=1", "?ip=1"]
        modes += ["?img=1"] if path == "/track" else ["?strict=0", "?strict=1", "?strict=1&verbose=1"]
        modes += [] if path == "/groups" else ["?callback=done", "?callback=done&verbose=1"]
        for mode in modes:
            await http.post(path + mode, json=[record])
            await http.post(path + mode, json=["no record"], headers=WRONG)
    for verb, properties in (
        ("$identify", {"$identified_id": "u", "$anon_id": A1}),
        ("$create_alias", {"distinct_id": "u", "alias": A1}),
    ):
        event = {"event": verb, "properties": {"token": "tok", **properties}}
        await http.post("/track", data={"data": json.dumps(event)})


async def _imports(http: httpx.AsyncClient) -> None:
    merge = {"event": "$merge", "properties": {"$distinct_ids": ["a", "b"], "token": "tok"}}
    for strict in "01":
        url = f"/import?strict={strict}&project_id=42"
        for auth in (httpx.BasicAuth("robot", "secret"), httpx.Auth()):
            await http.post(url, json=[imported()], auth=auth)
            await http.post(url, json=[merge], auth=auth)
        await http.post(url, json=[imported(), imported(time=-1), imported(**{"$insert_id": "!"})], auth=("s", ""))


async def _refusals(http: httpx.AsyncClient, emulator: Emulator) -> None:
    big = b'["' + b"x" * (10 * 1024 * 1024) + b'"]'
    for path in ("/track", "/engage", "/groups", "/import?strict=1&project_id=42"):
        for body in (b"{", big):
            await http.post(path, content=body, headers=WRONG, auth=("s", ""))
        for status in (401, 403, 429, 500) if path.startswith(("/track", "/engage", "/groups")) else (401, 429, 500):
            emulator.fail_next(status, times=1)
            await http.post(path, content=b"[]", headers=WRONG, auth=("s", ""))


def verbs_in_a_simplified_project(emulator: Emulator) -> None:
    async def send() -> None:
        transport = httpx.ASGITransport(app=emulator.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            event = imported(**{"$identified_id": "u", "$anon_id": A1}) | {"event": "$identify"}
            await http.post("/import?strict=1&project_id=42", json=[event], auth=("s", ""))

    anyio.run(send)


def lookup_tables(emulator: Emulator) -> None:
    async def send() -> None:
        transport = httpx.ASGITransport(app=emulator.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            # The body is a string in the files, and has no further rules.
            csv = {"Content-Type": "text/csv", ON_PURPOSE: "1"}
            for path, body in ((A1, b"id,a\n1,2\n"), (A1, b"id,a\n,2\n3\n"), ("a%20b", b""), (A1, b"x" * 11_000_000)):
                url = f"/lookup-tables/{path}?project_id=42"
                await http.put(url, content=body, headers=csv, auth=("robot", "secret"))
            await http.put(f"/lookup-tables/{A1}?project_id=42", headers=csv)
            for auth in (httpx.BasicAuth("robot", "secret"), httpx.Auth()):
                await http.get("/lookup-tables?project_id=42", headers=csv, auth=auth)

    anyio.run(send)


Talk = Callable[[Emulator], None]
TALKS: Final[dict[Talk, IdMerge]] = {
    by_our_client: IdMerge.ORIGINAL,
    by_the_official_sdk: IdMerge.ORIGINAL,
    by_hand: IdMerge.ORIGINAL,
    verbs_in_a_simplified_project: IdMerge.SIMPLIFIED,
    lookup_tables: IdMerge.ORIGINAL,
}


@pytest.fixture(scope="module")
def recorders() -> dict[Talk, Recorder]:
    """Provide the recorded exchanges of each client."""
    recorders = {}
    for talk, id_merge in TALKS.items():
        emulator = Emulator(id_merge)
        recorder = Recorder(emulator.app)
        emulator.app = recorder
        talk(emulator)
        recorders[talk] = recorder
    return recorders


@pytest.fixture(scope="module")
def spec() -> Spec:
    return Spec(FOLDER)


@pytest.mark.parametrize("talk", TALKS, ids=lambda talk: talk.__name__)
def test_exchanges_match_openapi_files(talk: Talk, recorders: dict[Talk, Recorder], spec: Spec) -> None:
    complaints = {complaint for exchange in recorders[talk].exchanges for complaint in spec.complaints(exchange)}
    unexplained = [one for one in sorted(complaints) if not any(re.search(slip, one) for slip in SLIPS)]
    assert unexplained == []


def test_every_known_deviation_occurs(recorders: dict[Talk, Recorder], spec: Spec) -> None:
    exchanges = [exchange for recorder in recorders.values() for exchange in recorder.exchanges]
    complaints = {complaint for exchange in exchanges for complaint in spec.complaints(exchange)}
    assert [slip for slip in SLIPS if not any(re.search(slip, one) for one in complaints)] == []


def test_every_documented_response_occurs(recorders: dict[Talk, Recorder], spec: Spec) -> None:
    exchanges = [exchange for recorder in recorders.values() for exchange in recorder.exchanges]
    assert {one.status for one in recorders[lookup_tables].exchanges} == {200, 400, 401, 404, 413}
    assert spec.documented_answers() <= {(exchange.path, str(exchange.status)) for exchange in exchanges}
