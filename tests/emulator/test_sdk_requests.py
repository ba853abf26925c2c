"""Requests in the form of Mixpanel's SDKs for Java, Go, Ruby, PHP, React Native and Node, written from their sources.

Each request carries one record for `/track`, `/import`, `/engage` or `/groups`.
"""

from __future__ import annotations

import base64
import gzip
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, quote_plus, urlencode

import pytest
from emulator_wire import Wire

from mixpanel_async.emulator import Emulator

TOKEN: Final = "tok"
SECRET: Final = "sec"
ACCOUNT: Final = ("robot", "s3cret", "42")
# Its base64 has both characters that a form changes.
ODD: Final = "ü~~>>>???~~~ß &+%"
NOW: Final = int(time.time()) - 60
FORM: Final = "application/x-www-form-urlencoded"

EVENT: Final = {
    "event": "Viewed",
    "properties": {"token": TOKEN, "distinct_id": "u", "time": NOW, "$insert_id": "id-1", "odd": ODD},
}
RECORDS: Final[Mapping[str, dict[str, Any]]] = {
    "/track": EVENT,
    "/import": EVENT,
    "/engage": {"$token": TOKEN, "$distinct_id": "u", "$set": {"odd": ODD}},
    "/groups": {"$token": TOKEN, "$group_key": "company", "$group_id": "acme", "$set": {"odd": ODD}},
}


@dataclass(frozen=True, kw_only=True)
class Sent:
    """Request of an SDK, and the response that it takes for success."""

    method: str = "POST"
    query: str = ""
    headers: Mapping[str, str]
    body: bytes = b""
    answer: str | dict[str, Any] = "1"


Form = Callable[[str, list[Any]], Sent]

IMPORTED: Final[dict[str, Any]] = {"code": 200, "num_records_imported": 1, "status": "OK"}
VERBOSE: Final[dict[str, Any]] = {"error": None, "status": 1}


def basic(user: str, password: str = "") -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def base64_json(records: object) -> str:
    return base64.b64encode(json.dumps(records).encode()).decode()


def java(path: str, records: list[Any], *, compress: bool = False) -> Sent:
    encoding = {"content-encoding": "gzip"} if compress else {}
    answer: str | dict[str, Any]
    if path == "/import":
        body = json.dumps(records).encode()
        headers = {"content-type": "application/json", **basic(TOKEN), **encoding}
        query, answer = "?strict=1", IMPORTED
    else:
        body = f"data={quote_plus(base64_json(records))}".encode()
        headers = {"content-type": f"{FORM};charset=utf8", **encoding}
        query, answer = "?ip=0", "1"
    return Sent(query=query, headers=headers, body=gzip.compress(body) if compress else body, answer=answer)


def java_gzip(path: str, records: list[Any]) -> Sent:
    return java(path, records, compress=True)


def go(path: str, records: list[Any]) -> Sent:
    headers = {"content-type": "application/json"}
    if path == "/import":
        headers |= {**basic(*ACCOUNT[:2]), "content-encoding": "gzip", "accept": "application/json"}
        query = f"?project_id={ACCOUNT[2]}&strict=1&verbose=1"
        return Sent(query=query, headers=headers, body=gzip.compress(json.dumps(records).encode()), answer=IMPORTED)
    if path == "/track":
        headers |= {"accept": "application/json"}
        return Sent(query="?verbose=1", headers=headers, body=json.dumps(records).encode(), answer=VERBOSE)
    return Sent(headers={**headers, "accept": "text/plain"}, body=json.dumps(records).encode())


def go_identity(path: str, records: list[Any]) -> Sent:
    """Return the form in which the SDK sends `$create_alias` and `$merge`."""
    headers = {"content-type": FORM, "accept": "text/plain", **(basic(SECRET) if path == "/import" else {})}
    return Sent(headers=headers, body=urlencode({"data": json.dumps(records[0])}).encode())


def ruby(path: str, records: list[Any]) -> Sent:
    key = {"api_key": SECRET} if path == "/import" else {}
    body = urlencode({"data": base64_json(records[0]), "verbose": 1, **key})
    return Sent(headers={"content-type": FORM}, body=body.encode(), answer=VERBOSE)


def ruby_buffered(path: str, records: list[Any]) -> Sent:
    # Imports are never buffered.
    return ruby(path, [records] if path != "/import" else records)


def ruby_tracking_url(path: str, records: list[Any]) -> Sent:
    data = base64.urlsafe_b64encode(json.dumps(records[0]).encode()).decode()
    return Sent(method="GET", query=f"?data={data}&verbose=1&ip=1", headers=basic(TOKEN), answer=VERBOSE)


def php(path: str, records: list[Any]) -> Sent:
    headers = {"content-type": FORM, "accept": "application/json", **(basic(SECRET) if path == "/import" else {})}
    # Not percent-encoded.
    return Sent(headers=headers, body=f"data={base64_json(records)}".encode())


def react_native(path: str, records: list[Any]) -> Sent:
    # `encodeURIComponent`.
    body = "data=" + quote(json.dumps(records, ensure_ascii=False), safe="!'()*~")
    headers = {"content-type": FORM, **(basic(TOKEN) if path == "/import" else {})}
    return Sent(query="?ip=1", headers=headers, body=body.encode())


def node(path: str, records: list[Any]) -> Sent:
    key = f"&api_key={SECRET}" if path == "/import" else ""
    data = quote(base64_json(records[0]), safe="")
    return Sent(method="GET", query=f"?ip=0&verbose=0{key}&data={data}", headers={})


def node_batch(path: str, records: list[Any]) -> Sent:
    key = f"&api_key={SECRET}" if path == "/import" else ""
    body = f"data={base64_json(records)}".encode()
    return Sent(query=f"?ip=0&verbose=0{key}", headers={"content-type": FORM}, body=body)


def gzip_json(path: str, records: list[Any]) -> Sent:
    headers = {"content-type": "application/json", "content-encoding": "gzip", **basic(TOKEN)}
    body = gzip.compress(json.dumps(records).encode())
    return Sent(query="?verbose=1", headers=headers, body=body, answer=IMPORTED if path == "/import" else VERBOSE)


FORMS: Final[list[Form]] = [
    java, java_gzip, go, go_identity, ruby, ruby_buffered, ruby_tracking_url, php, react_native, node, node_batch,
    gzip_json,
]  # fmt: skip


def send(mixpanel: Wire, path: str, sent: Sent) -> Any:
    return mixpanel.request(sent.method, path + sent.query, headers=dict(sent.headers), content=sent.body)


@pytest.fixture
def mixpanel() -> Wire:
    return Wire(Emulator(token=TOKEN, secret=SECRET, service_account=ACCOUNT))


@pytest.mark.parametrize("slash", ["", "/"], ids=["plain", "slash"])
@pytest.mark.parametrize("path", RECORDS)
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_request_of_sdk_stores_its_record(mixpanel: Wire, form: Form, path: str, slash: str) -> None:
    sent = form(path, [RECORDS[path]])
    response = send(mixpanel, path + slash, sent)
    assert response.status_code == 200
    assert (response.text if isinstance(sent.answer, str) else response.json()) == sent.answer
    if path == "/engage":
        assert (mixpanel.emulator.profile("u") or {})["odd"] == ODD
    elif path == "/groups":
        assert mixpanel.emulator.group("company", "acme") == {"odd": ODD}
    else:
        assert [event["properties"]["odd"] for event in mixpanel.emulator.events("Viewed")] == [ODD]


@pytest.mark.parametrize("path", RECORDS)
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_request_of_sdk_with_a_malformed_record_fails(mixpanel: Wire, form: Form, path: str) -> None:
    sent = form(path, [{"event": "", "properties": 1}])
    response = send(mixpanel, path, sent)
    answer = response.text if isinstance(sent.answer, str) else response.json()
    # Without `strict`, an import succeeds with no record.
    assert answer != sent.answer
    assert mixpanel.emulator.events() == []
    assert mixpanel.emulator.rejected()


# Imports with `api_key` alone


def import_with_key(mixpanel: Wire, key: str, *, in_query: bool) -> Any:
    fields = {"data": base64_json(EVENT), **({} if in_query else {"api_key": key})}
    query = f"?api_key={quote(key)}" if in_query else ""
    return mixpanel.request("POST", f"/import{query}", data=fields)


@pytest.mark.parametrize("in_query", [True, False], ids=["query", "form"])
@pytest.mark.parametrize(
    ("access", "key", "status"),
    [
        ({}, "any", 200),
        ({}, "", 401),
        ({"secret": SECRET}, SECRET, 200),
        ({"token": TOKEN}, TOKEN, 200),
        ({"secret": SECRET, "token": TOKEN}, "other", 401),
        ({"service_account": ACCOUNT}, ACCOUNT[1], 401),
    ],
)
def test_import_with_api_key_alone(access: dict[str, Any], key: str, status: int, in_query: bool) -> None:
    mixpanel = Wire(Emulator(**access))
    assert import_with_key(mixpanel, key, in_query=in_query).status_code == status
    assert len(mixpanel.emulator.events()) == (1 if status == 200 else 0)
    assert "sec" not in str(mixpanel.emulator.requests())


def test_wrong_authorization_is_not_replaced_by_a_key(mixpanel: Wire) -> None:
    response = mixpanel.request("POST", f"/import?api_key={SECRET}", json=[EVENT], auth=("wrong", ""))
    assert response.status_code == 401
    assert mixpanel.emulator.rejected()[-1]["message"] == "401: invalid credentials"
