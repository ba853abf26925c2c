"""Drop-in compatibility: for the same calls this client sends the same requests as the official `mixpanel` 5.4.1.

Both SDKs run down to the HTTP request. The official SDK's requests are captured where `requests` would open a socket,
ours where httpx would. One test sends everything through real sockets. The listed deliberate differences are applied to
the official request, which must then equal ours in every field, including the order of JSON keys. A test fails if a
listed difference no longer exists.
"""

from __future__ import annotations

import base64
import copy
import functools
import gzip
import inspect
import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, NamedTuple, cast
from urllib.parse import parse_qsl, urlsplit
from uuid import UUID

import anyio
import httpx
import mixpanel as official
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import client_in

from mixpanel_async import AsyncMixpanel, ConfigurationError, MixpanelException, ServiceAccountCredentials
from mixpanel_async._model.version import VERSION
from mixpanel_async._runtime.environment import Environment

DIFFERENCES: Final[Mapping[str, str]] = {
    "time": "Mixpanel's schema has whole milliseconds; seconds as a float lose the duplicate key to rounding",
    "library": "mp_lib and $lib_version name the SDK that sent the event",
    "json": "a JSON array is what /import documents and what all of /track, /engage and /groups take in bulk",
    "flags": "verbose and ip are documented as parameters of the URL; a JSON body has no place for them",
    "strict": "/import?strict=1 names each record that it refuses; without it, bad records vanish",
    "api_key": "Mixpanel no longer documents it",
    "token signs": "/import refuses a request that nobody signed; the token is one of the documented users",
    "events by import": "with a service account /import can be had for ordinary events, too",
    "alias host": "the official alias goes to the US whatever the host, and is lost for projects elsewhere",
    "client headers": "each SDK names itself; ours asks for JSON, and for no compression of an answer of 20 bytes",
    "gzip": "/track and /import take it, and a batch shrinks to a tenth",
    # A request does not show the other differences. Each has its own table or test.
    "time zones": "Mixpanel reads dates as UTC: dropping the offset, as the official SDK does, moves them by hours",
    "more types": "the official SDK raises TypeError for what can be sent without loss",
    "refused": "what Mixpanel would ignore, reject or misread is refused at the caller's line",
    "merge by keyword": "the documentation leaves out api_key, which the official signature demands",
    "charge": "the official people_track_charge writes $amount into the caller's dict",
    "token": "a property called token would replace the project's, and Mixpanel would answer 200 and lose the event",
    "credentials": "a service account that cannot be sent is a ConfigurationError, whatever is wrong with it",
}

TOKEN: Final = "project-token"
SECRET: Final = "project-secret"
ACCOUNT: Final = ("sdk.1a2b3c.mp-service-account", "account-secret", "2195193")
NOW: Final = 1_767_225_600.25
INSERT_ID: Final = "0123456789abcdef0123456789abcd00"
# The client's ids have a random prefix, and two digits that count within a millisecond.
COUNTED: Final = re.compile(f"(?<={INSERT_ID[:-2]})[0-9a-f]{{2}}")
RUNTIME: Final = Environment(
    wall_time=lambda: NOW, monotonic=time.monotonic, random=lambda: 0.0, new_id=lambda: INSERT_ID
)
OFFICIAL_VERSION: Final = "5.4.1"

LOOKED_AT_APART: Final = frozenset({"authorization", "host", "content-length", "connection"})
"""Headers that are compared as what they mean, or that belong to the connection."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Options of both clients."""

    account: tuple[str, str, str] | None = None
    origin: str = "https://api.mixpanel.com"
    ours: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Call:
    """Call of a method that both SDKs have."""

    method: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def on(self, client: Any) -> Any:
        """Make the call with a copy of its arguments, because an SDK may change them."""
        return getattr(client, self.method)(*copy.deepcopy(self.args), **copy.deepcopy(dict(self.kwargs)))


def call(method: str, /, *args: Any, **kwargs: Any) -> Call:
    return Call(method=method, args=args, kwargs=kwargs)


@dataclass(frozen=True, kw_only=True)
class Wire:
    """Request split into fields for comparison."""

    method: str
    url: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    signed_by: str | None
    """User and password of HTTP Basic, joined by a colon."""
    form: Mapping[str, str]
    """The fields of a form beside `data`."""
    is_array: bool
    messages: tuple[str, ...]
    """Each message as JSON with its keys in the order sent, so that 1, 1.0 and true are three values."""

    def each(self, change: Callable[[dict[str, Any]], None]) -> Wire:
        """Return a copy with a function applied to every message."""
        messages = [json.loads(message) for message in self.messages]
        for message in messages:
            change(message)
        return replace(self, messages=tuple(map(json.dumps, messages)))


def taken_apart(method: str, url: str, headers: Iterable[tuple[str, str]], body: bytes) -> Wire:
    parts = urlsplit(url)
    named = {name.lower(): value for name, value in headers}
    if named.get("content-encoding") == "gzip":
        body = gzip.decompress(body)
    form: dict[str, str] = {}
    text = body.decode()
    if named["content-type"] == "application/x-www-form-urlencoded":
        form = dict(parse_qsl(text, keep_blank_values=True, strict_parsing=True))
        text = form.pop("data")
    content = json.loads(text)
    signature = named.get("authorization")
    return Wire(
        method=method,
        url=f"{parts.scheme}://{parts.netloc}{parts.path}",
        query=dict(parse_qsl(parts.query, keep_blank_values=True)),
        headers={name: value for name, value in named.items() if name not in LOOKED_AT_APART},
        signed_by=None if signature is None else base64.b64decode(signature.removeprefix("Basic ")).decode(),
        form=form,
        is_array=isinstance(content, list),
        messages=tuple(map(json.dumps, content if isinstance(content, list) else [content])),
    )


# Adapters: each removes one difference from the official request.

ADAPTERS: Final[dict[str, Callable[[Wire, Setup], Wire]]] = {}


def adapter(name: str) -> Callable[[Callable[[Wire, Setup], Wire]], Callable[[Wire, Setup], Wire]]:
    assert name in DIFFERENCES

    def register(function: Callable[[Wire, Setup], Wire]) -> Callable[[Wire, Setup], Wire]:
        ADAPTERS[name] = function
        return function

    return register


@adapter("time")
def milliseconds(wire: Wire, setup: Setup) -> Wire:
    def change(message: dict[str, Any]) -> None:
        properties = message.get("properties", {})
        if "time" in properties:
            seconds_end = 1e11
            properties["time"] = round(properties["time"] * (1000 if properties["time"] < seconds_end else 1))

    return wire.each(change)


@adapter("library")
def our_name(wire: Wire, setup: Setup) -> Wire:
    def change(message: dict[str, Any]) -> None:
        properties = message.get("properties", {})
        for name, theirs, ours in (
            ("mp_lib", "python", "python-async"),
            ("$lib_version", OFFICIAL_VERSION, VERSION),
        ):
            if properties.get(name) == theirs:
                properties[name] = ours

    return wire.each(change)


@adapter("events by import")
def by_import(wire: Wire, setup: Setup) -> Wire:
    def is_event(message: str) -> bool:
        return json.loads(message).get("event") not in {None, "$create_alias"}

    if setup.account is None or "events_endpoint" in setup.ours or not wire.url.endswith("/track"):
        return wire
    if not all(map(is_event, wire.messages)):
        return wire
    user, password, project_id = setup.account
    url = wire.url.removesuffix("/track") + "/import"
    return replace(wire, url=url, signed_by=f"{user}:{password}", query={**wire.query, "project_id": project_id})


@adapter("json")
def json_array(wire: Wire, setup: Setup) -> Wire:
    return replace(wire, is_array=True, headers={**wire.headers, "content-type": "application/json"})


@adapter("flags")
def flags_in_url(wire: Wire, setup: Setup) -> Wire:
    form = dict(wire.form)
    flags = {name: form.pop(name) for name in ("verbose", "ip")}
    return replace(wire, form=form, query={**wire.query, **flags})


@adapter("strict")
def strict(wire: Wire, setup: Setup) -> Wire:
    if not wire.url.endswith("/import"):
        return wire
    query = {name: value for name, value in wire.query.items() if name != "verbose"}
    form = {name: value for name, value in wire.form.items() if name != "verbose"}
    return replace(wire, form=form, query={**query, "strict": "1"})


@adapter("api_key")
def without_api_key(wire: Wire, setup: Setup) -> Wire:
    return replace(wire, form={name: value for name, value in wire.form.items() if name != "api_key"})


@adapter("token signs")
def signed_by_token(wire: Wire, setup: Setup) -> Wire:
    if not wire.url.endswith("/import") or wire.signed_by is not None:
        return wire
    return replace(wire, signed_by=f"{TOKEN}:")


@adapter("alias host")
def configured_host(wire: Wire, setup: Setup) -> Wire:
    if wire.url != "https://api.mixpanel.com/track" or json.loads(wire.messages[0])["event"] != "$create_alias":
        return wire
    return replace(wire, url=f"{setup.origin}/track")


@adapter("client headers")
def our_headers(wire: Wire, setup: Setup) -> Wire:
    ours = {"user-agent": f"mixpanel-async/{VERSION}", "accept": "application/json", "accept-encoding": "identity"}
    return replace(wire, headers={**wire.headers, **ours})


@adapter("gzip")
def gzipped(wire: Wire, setup: Setup) -> Wire:
    size = len(orjson.dumps([json.loads(message) for message in wire.messages]))
    if size < 1024 or not wire.url.endswith(("/track", "/import")):
        return wire
    return replace(wire, headers={**wire.headers, "content-encoding": "gzip"})


def translated(wire: Wire, setup: Setup, *, without: str | None = None) -> Wire:
    for name, adapt in ADAPTERS.items():
        if name != without:
            wire = adapt(wire, setup)
    return wire


# Requests of both SDKs


def pinned(mp: Any) -> Any:
    """Return an official client with fixed time and ids."""
    mp._now = lambda: NOW
    mp._make_insert_id = lambda: INSERT_ID
    return mp


@contextmanager
def official_requests() -> Iterator[list[Wire]]:
    """Capture the requests of the official SDK where `requests` would open a socket."""
    seen: list[Wire] = []
    requests = official.requests

    def send(adapter: object, request: Any, **options: Any) -> Any:
        body = request.body.encode() if isinstance(request.body, str) else request.body
        seen.append(taken_apart(request.method, request.url, request.headers.items(), body))
        response = requests.Response()
        response.status_code = 200
        response._content = b'{"status":1,"error":null}'
        response.request, response.url = request, request.url
        return response

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(requests.adapters.HTTPAdapter, "send", send)
        yield seen


def official_client(setup: Setup) -> Any:
    credentials = None if setup.account is None else official.ServiceAccountCredentials(*setup.account)
    if setup == Setup(account=setup.account):
        return pinned(official.Mixpanel(TOKEN, credentials=credentials))
    host = setup.origin.removeprefix("https://")
    return pinned(official.Mixpanel(TOKEN, consumer=official.Consumer(api_host=host, credentials=credentials)))


def official_wire(one: Call, setup: Setup) -> Wire:
    with official_requests() as seen:
        one.on(official_client(setup))
    (wire,) = seen
    return wire


async def our_wires(calls: Iterable[Call], setup: Setup) -> list[Wire]:
    """Return our requests for these calls, captured where httpx would open a socket."""
    seen: list[Wire] = []

    def answer(request: httpx.Request) -> httpx.Response:
        wire = taken_apart(request.method, str(request.url), request.headers.items(), request.content)
        seen.append(replace(wire, messages=tuple(COUNTED.sub("00", message) for message in wire.messages)))
        return httpx.Response(200, json={"status": 1, "error": None})

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http_client:
        options: dict[str, Any] = {"api_host": setup.origin.removeprefix("https://"), "nesting": "keep", **setup.ours}
        if setup.account is not None:
            options["credentials"] = ServiceAccountCredentials(*setup.account)
        async with client_in(RUNTIME, TOKEN, http_client=http_client, **options) as mp:
            for one in calls:
                await one.on(mp)
    assert mp.stats().pending == mp.stats().retries == 0, mp.stats().last_error
    return seen


async def our_wire(one: Call, setup: Setup) -> Wire:
    (wire,) = await our_wires([one], setup)
    return wire


# Calls

PROPERTIES: Final[Mapping[str, Any]] = {
    "page": "/pricing",
    "Grüße 🎉 \u2028 \x00 \"'\\": "ä",
    "count": 3,
    "price": 9.5,
    "whole": 1.0,
    "yes": True,
    "nothing": None,
    "list": ["a", 1, {"deep": [1.5]}],
    "tuple": (1, 2),
    "when": datetime(2026, 1, 2, 3, 4, 5, 678901),
}
META: Final[Mapping[str, Any]] = {"$ip": "203.0.113.7", "$ignore_time": True, "nested": {"a": [1]}}
PERSON: Final[dict[str, Any]] = {"distinct_id": "u1", "properties": PROPERTIES, "meta": META}
GROUP: Final[dict[str, Any]] = {"group_key": "company", "group_id": "Acme", "properties": PROPERTIES, "meta": META}

FULL: Final[Mapping[str, Mapping[str, Any]]] = {
    "track": {"distinct_id": "u1", "event_name": "Page viewed", "properties": PROPERTIES, "meta": META},
    "import_data": {
        "api_key": "project-key",
        "distinct_id": "u1",
        "event_name": "Signed up",
        "timestamp": 1_000_000_000,
        "properties": PROPERTIES,
        "meta": META,
        "api_secret": SECRET,
    },
    "alias": {"alias_id": "user-1", "original": "visitor-1", "meta": META},
    "merge": {
        "api_key": "project-key",
        "distinct_id1": "user-1",
        "distinct_id2": "user-2",
        "meta": META,
        "api_secret": SECRET,
    },
    "people_set": PERSON,
    "people_set_once": PERSON,
    "people_increment": PERSON | {"properties": {"logins": 1, "balance": -2.5}},
    "people_append": PERSON,
    "people_union": PERSON | {"properties": {"colours": ["red", "blue"], "one": "red"}},
    "people_unset": PERSON | {"properties": ["plan", "city"]},
    "people_remove": PERSON,
    "people_delete": {"distinct_id": "u1", "meta": {"$ignore_alias": True}},
    "people_track_charge": {
        "distinct_id": "u1",
        "amount": 9.5,
        "properties": {"$time": "2026-01-02T03:04:05", "$amount": 1, "sku": "a"},
        "meta": META,
    },
    "people_clear_charges": {"distinct_id": "u1", "meta": META},
    "people_update": {"message": {"$distinct_id": "u1", "$set": PROPERTIES, "$time": 7, "$token": TOKEN}, "meta": META},
    "group_set": GROUP,
    "group_set_once": GROUP,
    "group_union": GROUP | {"properties": {"colours": ["red", "blue"]}},
    "group_unset": GROUP | {"properties": ["plan", "city"]},
    "group_remove": GROUP,
    "group_delete": {"group_key": "company", "group_id": "Acme", "meta": META},
    "group_update": {
        "message": {"$set": PROPERTIES, "$group_id": "Acme", "$time": 7, "$group_key": "company", "$token": TOKEN},
        "meta": META,
    },
}

SETUPS: Final[Mapping[str, Setup]] = {
    "plain": Setup(),
    "service account": Setup(account=ACCOUNT),
    "service account, events to /track": Setup(account=ACCOUNT, ours={"events_endpoint": "track"}),
    "another host": Setup(origin="https://api-eu.mixpanel.com"),
    "another region": Setup(origin="https://api-in.mixpanel.com", ours={"region": "in", "api_host": None}),
}

MORE: Final[Mapping[str, Call]] = {
    "no user": call("track", "", "Server started"),
    "empty mappings": call("track", "u1", "Page viewed", {}, {}),
    "properties win over the SDK's own": call(
        "track",
        "u1",
        "Page viewed",
        {
            "token": TOKEN,
            "distinct_id": "u2",
            "time": NOW - 60,
            "$insert_id": "a-1",
            "mp_lib": "b",
            "$lib_version": "c",
        },
    ),
    "a time in milliseconds": call("track", "u1", "Page viewed", {"time": int(NOW * 1000) - 1}),
    "meta for the event": call("track", "u1", "Page viewed", None, {"$ignore": True}),
    "a large event": call("track", "u1", "Page viewed", {"text": "x" * 2000}),
    "import with a key alone": call("import_data", "project-key", "u1", "Signed up", 1_000_000_000),
    "import with a fraction": call("import_data", None, "u1", "Signed up", 1_234_567_890.125, {}, {}, SECRET),
    "import of a large event": call("import_data", None, "u1", "Signed up", 1_000_000_000, {"text": "x" * 2000}),
    "a large profile": call("people_set", "u1", {"text": "x" * 2000}),
    "a large group": call("group_set", "company", "Acme", {"text": "x" * 2000}),
    "a charge alone": call("people_track_charge", "u1", 50),
    "a charge with nothing": call("people_track_charge", "u1", 50, {}, {}),
    "an unset of a tuple": call("people_unset", "u1", ("plan",)),
    "several operations": call("people_update", {"$distinct_id": "u1", "$set": {"a": 1}, "$add": {"b": 1}}),
    "an operation of the future": call("people_update", {"$distinct_id": "u1", "$shuffle": {"a": [1]}}),
    "meta wins over the message": call("people_update", {"$distinct_id": "u1", "$set": {}, "$time": 7}, {"$time": 8}),
}


def forms(method: str) -> list[Call]:
    """Yield the call with positional arguments, with keyword arguments, and with required arguments only."""
    full = FULL[method]
    parameters = official_parameters(method)
    assert list(full) == list(parameters), "every argument of the method must be in the table"
    needed = {name: full[name] for name, one in parameters.items() if one.default is one.empty}
    if "api_key" in needed:
        needed["api_key"] = None
    return [call(method, *full.values()), call(method, **full), call(method, **needed)]


def shared_methods() -> list[str]:
    return [
        name for name, member in inspect.getmembers(official.Mixpanel, inspect.isfunction) if not name.startswith("_")
    ]


def official_parameters(method: str) -> dict[str, inspect.Parameter]:
    parameters = dict(inspect.signature(getattr(official.Mixpanel, method)).parameters)
    del parameters["self"]
    return parameters


def has_credentials(one: Call, setup: Setup) -> bool:
    """Return whether a call has credentials. A separate test covers `merge` without them."""
    return one.method != "merge" or setup.account is not None or SECRET in (*one.args, *one.kwargs.values())


def test_table_contains_every_method_of_the_official_sdk() -> None:
    assert official.__version__ == OFFICIAL_VERSION
    assert sorted(FULL) == shared_methods()


@pytest.mark.loops_in_turn
@pytest.mark.anyio
@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.parametrize("method", FULL)
async def test_every_method_sends_the_same_payload(method: str, setup: str) -> None:
    for one in forms(method):
        if has_credentials(one, SETUPS[setup]):
            wire = official_wire(one, SETUPS[setup])
            assert await our_wire(one, SETUPS[setup]) == translated(wire, SETUPS[setup]), one


@pytest.mark.anyio
@pytest.mark.parametrize("setup", ["plain", "service account"])
@pytest.mark.parametrize("name", MORE)
async def test_every_call_form_sends_the_same_payload(name: str, setup: str) -> None:
    wire = official_wire(MORE[name], SETUPS[setup])
    assert await our_wire(MORE[name], SETUPS[setup]) == translated(wire, SETUPS[setup])


@pytest.mark.anyio
async def test_documented_merge_call_equals_merge_with_api_key_none() -> None:
    documented = call("merge", api_secret=SECRET, distinct_id1="user-1", distinct_id2="user-2")
    with pytest.raises(TypeError, match="api_key"):
        documented.on(official_client(Setup()))
    wire = official_wire(call("merge", None, "user-1", "user-2", api_secret=SECRET), Setup())
    assert await our_wire(documented, Setup()) == translated(wire, Setup())
    account = Setup(account=ACCOUNT)
    wire = official_wire(call("merge", None, "user-1", "user-2"), account)
    assert await our_wire(call("merge", distinct_id1="user-1", distinct_id2="user-2"), account) == translated(
        wire, account
    )


def test_every_listed_difference_exists() -> None:
    """Without any one of the adapters, some request differs."""
    calls = [*MORE.values(), *(one for method in FULL for one in forms(method))]
    pairs = [(one, setup) for setup in SETUPS.values() for one in calls if has_credentials(one, setup)]

    async def all_of_ours() -> list[Wire]:
        return [await our_wire(one, setup) for one, setup in pairs]

    theirs = [official_wire(one, setup) for one, setup in pairs]
    triples = list(zip(theirs, anyio.run(all_of_ours), (setup for _, setup in pairs), strict=True))
    idle = [
        name
        for name in ADAPTERS
        if all(translated(theirs, setup, without=name) == ours for theirs, ours, setup in triples)
    ]
    assert idle == []


# Imports are separate: the official consumer keeps the credentials of its last call and sends them to every endpoint.
BATCHES: Final[Mapping[str, tuple[Call, ...]]] = {
    "events and profiles": (
        call("track", "u1", "Page viewed", {"page": 1}),
        call("people_set", "u1", {"plan": "free"}),
        call("track", "u2", "Page viewed", {"page": 2}),
        call("group_set", "company", "Acme", {"plan": "free"}),
        call("people_unset", "u1", ["plan"]),
        call("track", "u1", "Page left", {"page": 1}),
        call("group_unset", "company", "Acme", ["plan"]),
    ),
    "imports": tuple(call("import_data", None, f"u{n}", "Signed up", 10**9 + n, None, None, SECRET) for n in range(3)),
}


@pytest.mark.anyio
@pytest.mark.parametrize("name", BATCHES)
async def test_batch_equals_the_batch_of_the_buffered_consumer(name: str) -> None:
    batch = BATCHES[name]
    consumer = official.BufferedConsumer()
    with official_requests() as seen:
        for one in batch:
            one.on(pinned(official.Mixpanel(TOKEN, consumer=consumer)))
        consumer.flush()
    assert all(wire.is_array for wire in seen)
    assert sum(len(wire.messages) for wire in seen) == len(batch)
    ours = {wire.url: wire for wire in await our_wires(batch, Setup())}
    assert ours == {wire.url: translated(wire, Setup()) for wire in seen}


class Sink(ThreadingHTTPServer):
    """Local server that accepts and stores every request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), SinkHandler)
        self.seen: list[Wire] = []
        self.origin = f"http://127.0.0.1:{self.server_port}"


class SinkHandler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        sink = cast("Sink", self.server)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        sink.seen.append(taken_apart(self.command, sink.origin + self.path, self.headers.items(), body))
        answer = b'{"status":1,"error":null}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:
        """Suppress the log line on standard error."""


@pytest.fixture
def sink() -> Iterator[Sink]:
    with Sink() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.anyio
@pytest.mark.parametrize("account", [None, ACCOUNT], ids=["no account", "service account"])
async def test_payloads_are_the_same_over_real_sockets(
    sink: Sink, account: tuple[str, str, str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Send all calls over sockets, to prove that the captured requests are the ones that arrive."""
    setup = Setup(account=account, origin=sink.origin)
    calls = [one for method in FULL for one in forms(method)[:2]]
    paths = {"events_url": "/track", "people_url": "/engage", "groups_url": "/groups", "import_url": "/import"}
    urls = {name: sink.origin + path for name, path in paths.items()}
    # `alias` creates its own consumer, without arguments.
    monkeypatch.setattr(official, "Consumer", functools.partial(official.Consumer, **urls))
    theirs = None if account is None else official.ServiceAccountCredentials(*account)
    for one in calls:
        one.on(pinned(official.Mixpanel(TOKEN, credentials=theirs)))
    expected = [translated(wire, setup) for wire in sink.seen]
    assert len(expected) == len(calls)
    sink.seen.clear()
    ours = None if account is None else ServiceAccountCredentials(*account)
    for one in calls:
        async with client_in(RUNTIME, TOKEN, api_host=sink.origin, credentials=ours) as mp:
            await one.on(mp)
    assert sink.seen == expected


# Generated calls

# Ids that Mixpanel rejects (fact sheet, section 3.3).
PLACEHOLDERS: Final = frozenset(
    {
        "00000000-0000-0000-0000-000000000000", "anon", "anonymous", "nil", "none", "null", "n/a", "na", "undefined",
        "unknown", "<nil>", "0", "-1", "true", "false", "[]", "{}", "lmy47d",
    }
)  # fmt: skip
STAMPED: Final = frozenset(
    {"token", "distinct_id", "time", "$insert_id", "mp_lib", "$lib_version", "$user_id", "$device_id"}
)
OPERATIONS: Final = ("$set", "$set_once", "$append", "$remove")

texts = st.text(st.characters(codec="utf-8"), max_size=8)
ids = texts.filter(lambda text: text.strip() != "" and text.lower() not in PLACEHOLDERS)
numbers = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
leaves = st.none() | st.booleans() | numbers | texts | st.datetimes(min_value=datetime(1000, 1, 1))
lists_of_names = st.lists(texts, min_size=1, max_size=3)


def values(depth: int) -> st.SearchStrategy[Any]:
    if not depth:
        return leaves
    inner = values(depth - 1)
    return leaves | st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3)


def mappings(depth: int = 5, *, without: frozenset[str] = frozenset()) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(texts.filter(lambda key: key not in without), values(depth), max_size=4)


overrides = st.fixed_dictionaries(
    {},
    optional={
        "token": st.just(TOKEN),
        "distinct_id": ids,
        "time": st.floats(NOW - 400_000, NOW + 3_000) | st.integers(int(NOW) - 400_000, int(NOW) + 3_000),
        "$insert_id": st.from_regex(r"[A-Za-z0-9-]{1,36}", fullmatch=True).filter(
            lambda text: text.lower() not in PLACEHOLDERS
        ),
        "mp_lib": texts,
        "$lib_version": texts,
    },
)
event_properties = st.none() | st.builds(
    lambda free, known: {**free, **known}, mappings(without=STAMPED), overrides | st.just({})
)
event_meta = st.none() | mappings(without=frozenset({"event", "properties"}))
envelope = st.fixed_dictionaries(
    {}, optional={"$ip": texts, "$ignore_time": st.booleans(), "$time": numbers | texts, "$token": st.just(TOKEN)}
)
profile_meta = st.none() | envelope | mappings().filter(lambda meta: not any(key.startswith("$") for key in meta))
pairs = st.lists(ids, min_size=2, max_size=2, unique=True)
secrets = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=8)
updates = st.one_of(
    st.builds(lambda operation, value: {operation: value}, st.sampled_from(OPERATIONS), mappings()),
    st.builds(lambda value: {"$add": value}, st.dictionaries(texts, numbers, max_size=3)),
    st.builds(lambda value: {"$union": value}, st.dictionaries(texts, st.lists(leaves, max_size=3), max_size=3)),
    st.builds(lambda value: {"$unset": value}, lists_of_names),
    st.just({"$delete": ""}),
)


def calls_of(method: str) -> st.SearchStrategy[Call]:
    """Return a strategy for valid calls of this method."""
    usual: dict[str, st.SearchStrategy[Any]] = {
        "distinct_id": ids | st.just("") if method in {"track", "import_data"} else ids,
        "event_name": ids,
        "properties": mappings(),
        "meta": profile_meta,
        "timestamp": st.integers(31_536_000, int(NOW)) | st.floats(31_536_000, NOW),
        "api_key": st.none() | texts,
        "api_secret": secrets,
        "alias_id": ids,
        "original": ids,
        "distinct_id1": ids,
        "distinct_id2": ids,
        "amount": numbers,
        "group_key": ids,
        "group_id": ids,
    }
    if method in {"track", "import_data", "alias", "merge"}:
        usual |= {"meta": event_meta, "properties": event_properties}
    elif method == "people_increment":
        usual["properties"] = st.dictionaries(texts, numbers, max_size=3)
    elif method.endswith("_unset"):
        usual["properties"] = lists_of_names
    elif method == "people_track_charge":
        usual["properties"] = st.none() | mappings(2)
    elif method == "people_update":
        usual["message"] = st.builds(
            lambda to, known, update: {"$distinct_id": to, **known, **update}, ids, envelope, updates
        )
    elif method == "group_update":
        usual["message"] = st.builds(
            lambda pair, known, update: {"$group_key": pair[0], **known, **update, "$group_id": pair[1]},
            pairs,
            envelope,
            updates,
        )
    names = list(official_parameters(method))
    arguments = st.tuples(*(usual[name] for name in names))
    if method in {"alias", "merge"}:
        first = names.index("alias_id" if method == "alias" else "distinct_id1")
        arguments = arguments.filter(lambda given: given[first] != given[first + 1])
    by_position = arguments.map(lambda given: call(method, *given))
    by_name = arguments.map(lambda given: call(method, **dict(zip(names, given, strict=True))))
    return by_position | by_name


@settings(max_examples=200, deadline=None, database=None)
@given(one=st.sampled_from(sorted(FULL)).flatmap(calls_of), setup=st.sampled_from([Setup(), Setup(account=ACCOUNT)]))
def test_any_call_sends_the_same_payload(one: Call, setup: Setup) -> None:
    assert anyio.run(our_wire, one, setup) == translated(official_wire(one, setup), setup)


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.anyio
@pytest.mark.parametrize("setup", [Setup(), Setup(account=ACCOUNT)], ids=["token", "account"])
@pytest.mark.parametrize("levels", [4, 6, 100])
async def test_deeply_nested_values_are_sent_as_they_are(levels: int, setup: Setup) -> None:
    properties = {"p": nested(levels), "q": {"r": nested(levels - 1)}}
    for one in (
        call("track", "u1", "E", properties, properties),
        call("import_data", None, "u1", "E", int(NOW), properties, api_secret=SECRET),
        call("people_set", "u1", properties),
        call("group_set", "company", "Acme", properties),
    ):
        assert await our_wire(one, setup) == translated(official_wire(one, setup), setup)


# Differences in accepted values

EAST: Final = timezone(timedelta(hours=5, minutes=30))
WEST: Final = timezone(timedelta(hours=-8))


@dataclass(frozen=True)
class Moment:
    value: datetime
    theirs: str
    ours: str


MOMENTS: Final = (
    Moment(datetime(2026, 1, 2, 3, 4, 5, 999_999), "2026-01-02T03:04:05", "2026-01-02T03:04:05"),
    Moment(datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc), "2026-01-02T03:04:05", "2026-01-02T03:04:05"),
    Moment(datetime(2026, 1, 2, 3, 4, 5, tzinfo=EAST), "2026-01-02T03:04:05", "2026-01-01T21:34:05"),
    Moment(datetime(2026, 1, 2, 22, 4, 5, tzinfo=WEST), "2026-01-02T22:04:05", "2026-01-03T06:04:05"),
)


def properties_of(wire: Wire) -> dict[str, Any]:
    message = json.loads(wire.messages[0])
    properties: dict[str, Any] = message["properties"] if "properties" in message else message["$set"]
    return properties


@pytest.mark.anyio
@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment.value.isoformat())
async def test_datetime_is_converted_to_utc(moment: Moment) -> None:
    for one in (
        call("track", "u1", "Page viewed", {"when": moment.value}),
        call("people_set", "u1", {"when": moment.value}),
    ):
        assert properties_of(official_wire(one, Setup()))["when"] == moment.theirs
        assert properties_of(await our_wire(one, Setup()))["when"] == moment.ours
        in_utc = moment.value if moment.value.tzinfo is None else moment.value.astimezone(timezone.utc)
        wire = official_wire(replace(one, args=(*one.args[:-1], {"when": in_utc})), Setup())
        assert await our_wire(one, Setup()) == translated(wire, Setup())


@pytest.mark.anyio
async def test_property_called_token_does_not_replace_the_token_of_the_project() -> None:
    one = call("track", "u1", "Coins swapped", {"token": "ETH"})
    assert properties_of(official_wire(one, Setup()))["token"] == "ETH"
    ours = properties_of(await our_wire(one, Setup()))
    assert (ours["token"], ours["token_"]) == (TOKEN, "ETH")


class Colour(Enum):
    RED = "red"


@dataclass
class Price:
    amount: Decimal
    currency: str


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("value", "sent"),
    [
        (date(2026, 1, 2), "2026-01-02"),
        (Decimal("9.50"), 9.5),
        (Decimal(3), 3),
        (UUID(int=1 << 100), "00000010-0000-0000-0000-000000000000"),
        (Colour.RED, "red"),
        ({"b", "a"}, ["a", "b"]),
        (frozenset({1}), [1]),
        (Price(Decimal("1.5"), "EUR"), {"amount": 1.5, "currency": "EUR"}),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_additional_types_are_accepted(value: Any, sent: Any) -> None:
    for one in (call("track", "u1", "Page viewed", {"p": value}), call("people_set", "u1", {"p": value})):
        with pytest.raises(TypeError):
            official_wire(one, Setup())
        assert properties_of(await our_wire(one, Setup()))["p"] == sent


class Pair(NamedTuple):
    left: int
    right: str


class Word(str, Enum):
    HELLO = "hello"


class Level(int, Enum):
    HIGH = 3


class Text(str):
    __slots__ = ()


@pytest.mark.anyio
@pytest.mark.parametrize("value", [Pair(1, "a"), Word.HELLO, Level.HIGH, Text("text"), [Level.HIGH], {"k": Word.HELLO}])
async def test_subclasses_of_json_types_are_sent_as_by_the_official_sdk(value: Any) -> None:
    for one in (call("track", "u1", "Page viewed", {"p": value}), call("people_set", "u1", {"p": value})):
        assert await our_wire(one, Setup()) == translated(official_wire(one, Setup()), Setup())


class Rational:
    """Type that neither SDK supports."""


class OwnSerializer(official.DatetimeSerializer):  # type: ignore[misc]  # it has no types
    """Serializer as in the official SDK's tests, for a new type and for one that our SDK converts differently."""

    def default(self, value: Any) -> Any:
        if isinstance(value, Rational):
            return "1/2"
        if isinstance(value, Decimal):
            return value.to_eng_string()
        return super().default(value)


@pytest.mark.anyio
@pytest.mark.parametrize("value", [Rational(), datetime(2026, 1, 2), Decimal("12.05")], ids=lambda v: type(v).__name__)
@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("track", ["u1", "Page viewed"]),
        ("people_set", ["u1"]),
        ("track", ["u1", "Page viewed", None]),
        ("alias", ["user-1", "visitor-1"]),
    ],
    ids=["event", "profile", "meta of an event", "meta of an alias"],
)
async def test_serializer_class_of_the_official_sdk_has_the_same_effect(
    method: str, arguments: list[Any], value: Any
) -> None:
    one = call(method, *arguments, {"p": value})
    with official_requests() as seen:
        one.on(pinned(official.Mixpanel(TOKEN, serializer=OwnSerializer)))
    setup = Setup(ours={"serializer": OwnSerializer})
    assert await our_wire(one, setup) == translated(seen[0], setup)


@dataclass(frozen=True)
class Refusal:
    """Call that the official SDK sends, and the path in our error."""

    call: Call
    path: str


REFUSALS: Final = (
    Refusal(call("track", "anonymous", "E"), "distinct_id"),
    Refusal(call("track", 42, "E"), "distinct_id"),
    Refusal(call("track", None, "E"), "distinct_id"),
    Refusal(call("track", "u1", ""), "event"),
    Refusal(call("track", "u1", "E" * 256), "event"),
    Refusal(call("track", "u1", "E", {"p": float("nan")}), "properties.p"),
    Refusal(call("track", "u1", "E", {"p": [float("inf")]}), "properties.p[0]"),
    Refusal(call("track", "u1", "E", {"p": "\ud800"}), "properties.p"),
    Refusal(call("track", "u1", "E", {"p": 2**70}), "properties.p"),
    Refusal(call("track", "u1", "E", {1: "a"}), "properties.<int>"),
    Refusal(call("track", "u1", "E", {"p": nested(101)}), "properties.p" + 100 * "[0]"),
    Refusal(call("track", "u1", "E", {str(n): n for n in range(250)}), "properties"),
    Refusal(call("track", "u1", "E", {"$insert_id": "a b"}), "properties.$insert_id"),
    Refusal(call("track", "u1", "E", {"time": "yesterday"}), "properties.time"),
    Refusal(call("track", "u1", "E", {"time": NOW - 6 * 86_400}), "properties.time"),
    Refusal(call("track", "u1", "E", None, {"event": "F"}), "meta.event"),
    Refusal(call("import_data", None, "u1", "E", NOW + 7_200), "timestamp"),
    Refusal(call("import_data", None, "u1", "E", 0), "timestamp"),
    Refusal(call("import_data", None, "u1", "E", None), "timestamp"),
    Refusal(call("alias", "", "visitor"), "alias_id"),
    Refusal(call("alias", "user", "null"), "original"),
    Refusal(call("alias", "user", "user"), "alias_id"),
    Refusal(call("merge", None, "user", 42, None, SECRET), "distinct_id2"),
    Refusal(call("merge", None, "user", "user", None, SECRET), "distinct_id1"),
    Refusal(call("people_set", "", {"a": 1}), "$distinct_id"),
    Refusal(call("people_set", "u1", [1]), "$set"),
    Refusal(call("people_increment", "u1", {"a": "1"}), "$add.a"),
    Refusal(call("people_unset", "u1", "plan"), "$unset"),
    Refusal(call("people_unset", "u1", []), "$unset"),
    Refusal(call("people_track_charge", "u1", "9.50"), "amount"),
    Refusal(call("group_set", "", "Acme", {"a": 1}), "$group_key"),
    Refusal(call("group_set", "company", 1, {"a": 1}), "$group_id"),
    Refusal(call("group_update", {"$set": {"a": 1}}), "$group_id"),
)


@pytest.mark.loops_in_turn
@pytest.mark.anyio
@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: f"{refusal.call.method} {refusal.path}")
async def test_invalid_input_that_the_official_sdk_sends_is_rejected(refusal: Refusal) -> None:
    with official_requests() as seen, pytest.MonkeyPatch.context() as patch:
        # NaN is not valid JSON: the test only checks that the official SDK sent a request.
        patch.setattr(f"{__name__}.taken_apart", lambda *request: request)
        refusal.call.on(official_client(Setup()))
    assert len(seen) == 1
    with pytest.raises(ValueError) as caught:  # noqa: PT011  a ValidationError is one; its path is what counts here
        await our_wire(refusal.call, Setup())
    assert isinstance(caught.value, MixpanelException)
    assert getattr(caught.value, "path", None) == refusal.path


@pytest.mark.anyio
async def test_merge_without_a_secret_is_authenticated_by_the_token() -> None:
    one = call("merge", None, "user-1", "user-2")
    assert official_wire(one, Setup()).signed_by is None
    assert (await our_wire(one, Setup())).signed_by == f"{TOKEN}:"


@pytest.mark.anyio
async def test_charge_does_not_change_the_dict_of_the_caller() -> None:
    theirs, ours = {"sku": "a"}, {"sku": "a"}
    with official_requests():
        official_client(Setup()).people_track_charge("u1", 9.5, theirs)
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json=1))
    async with httpx.AsyncClient(transport=transport) as http, AsyncMixpanel(TOKEN, http_client=http) as mp:
        await mp.people_track_charge("u1", 9.5, ours)
    assert theirs == {"sku": "a", "$amount": 9.5}
    assert ours == {"sku": "a"}


# Signatures and credentials


@pytest.mark.parametrize("method", sorted(FULL))
def test_shared_methods_have_the_same_parameters(method: str) -> None:
    """Shared methods have the same names in the same order. Our additions are keyword-only or optional."""
    theirs = list(official_parameters(method).values())
    function = getattr(AsyncMixpanel, method)
    ours = [one for one in inspect.signature(function).parameters.values() if one.name != "self"]
    assert inspect.iscoroutinefunction(function)
    assert [one.name for one in ours if one.kind is not one.KEYWORD_ONLY] == [one.name for one in theirs]
    for their, our in zip(theirs, ours, strict=False):
        assert our.kind is their.kind
        if their.default is not their.empty:
            assert our.default == their.default
        elif method != "merge":
            assert our.default is our.empty
    assert all(one.default is not one.empty for one in ours if one.kind is one.KEYWORD_ONLY)


def test_service_account_credentials_have_the_same_fields() -> None:
    arguments = ("  sdk.1a2b3c ", "\tsecret-words ", " 2195193\n")
    theirs, ours = official.ServiceAccountCredentials(*arguments), ServiceAccountCredentials(*arguments)
    assert (
        inspect.signature(ServiceAccountCredentials).parameters.keys()
        == inspect.signature(official.ServiceAccountCredentials).parameters.keys()
    )
    for name in ("username", "secret", "project_id"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert repr(ours) == repr(theirs)
    assert "secret-words" not in repr(ours)
    assert "secret='***'" in repr(ours)


@pytest.mark.parametrize("at", range(3))
def test_service_account_credentials_reject_the_same_values(at: int) -> None:
    def arguments(value: object) -> list[Any]:
        return [value if here == at else "fine" for here in range(3)]

    for blank in ("", " \t"):
        with pytest.raises(ValueError, match="cannot be empty"):
            official.ServiceAccountCredentials(*arguments(blank))
        with pytest.raises(ValueError, match="cannot be blank"):
            ServiceAccountCredentials(*arguments(blank))
    with pytest.raises(TypeError, match="must be a string"):
        official.ServiceAccountCredentials(*arguments(7))
    with pytest.raises(ConfigurationError, match="must be a string"):
        ServiceAccountCredentials(*arguments(7))


TESTED_APART: Final = {
    "time zones": test_datetime_is_converted_to_utc,
    "more types": test_additional_types_are_accepted,
    "refused": test_invalid_input_that_the_official_sdk_sends_is_rejected,
    "merge by keyword": test_documented_merge_call_equals_merge_with_api_key_none,
    "charge": test_charge_does_not_change_the_dict_of_the_caller,
    "token": test_property_called_token_does_not_replace_the_token_of_the_project,
    "credentials": test_service_account_credentials_reject_the_same_values,
}


def test_every_difference_is_listed_once_with_a_reason() -> None:
    assert sorted([*ADAPTERS, *TESTED_APART]) == sorted(DIFFERENCES)
    assert all(DIFFERENCES.values())
