"""Tests of all body formats of official clients, and of the responses in each mode."""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from emulator_wire import TOKEN, Wire, imported

from mixpanel_async import IdMerge
from mixpanel_async.emulator import Emulator

# Their base64 contains a plus sign, which the Node SDK does not percent-encode.
EVENT = {"event": "Viewed", "properties": {"token": TOKEN, "distinct_id": "u", "text": "a>>>b>>>c ~~~ é"}}
FORM = {"content-type": "application/x-www-form-urlencoded"}
GZIP = {"content-type": "application/json", "content-encoding": "gzip"}


@pytest.fixture
def mixpanel() -> Wire:
    return Wire(Emulator(IdMerge.ORIGINAL))


def compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


BODIES = {
    "array": (compact([EVENT]), {"content-type": "application/json"}),
    "object": (compact(EVENT), {"content-type": "application/json"}),
    "gzip": (gzip.compress(compact([EVENT])), GZIP),
    "form, raw object": (urlencode({"data": compact(EVENT), "verbose": 0, "ip": 0}).encode(), FORM),
    "form, raw array": (b"data=" + quote(compact([EVENT])).encode(), FORM),
    "form, base64 encoded": (urlencode({"data": base64.b64encode(compact([EVENT]))}).encode(), FORM),
    "form, base64 bare": (b"data=" + base64.b64encode(compact([EVENT])), FORM),
    "form, base64 without padding": (b"data=" + base64.b64encode(compact(EVENT)).rstrip(b"="), FORM),
    "form, no content type": (b"data=" + base64.b64encode(compact(EVENT)), {}),
    "JSON under a form's content type": (compact([EVENT]), FORM),
    "form, gzip": (gzip.compress(b"data=" + quote(compact(EVENT)).encode()), FORM | {"content-encoding": "gzip"}),
}


@pytest.mark.parametrize("form", BODIES)
def test_every_client_body_format_is_decoded(mixpanel: Wire, form: str) -> None:
    body, headers = BODIES[form]
    response = mixpanel.post("/track", content=body, headers=headers)
    assert (response.status_code, response.text) == (200, "1")
    (event,) = mixpanel.emulator.raw_events()
    assert EVENT["properties"].items() <= event["properties"].items()  # type: ignore[attr-defined]


@pytest.mark.parametrize("shift", range(6))
def test_long_form_is_decoded_across_chunks(mixpanel: Wire, shift: int) -> None:
    long = "x" * shift + "é" * 40_000
    event = {"event": "Viewed", "properties": {"token": TOKEN, "distinct_id": long}}
    assert mixpanel.post("/track", data={"data": json.dumps(event, ensure_ascii=False)}).text == "1"
    assert mixpanel.emulator.events()[0]["properties"]["distinct_id"] == long


def test_unencoded_base64_contains_plus_sign() -> None:
    assert b"+" in BODIES["form, base64 bare"][0]


@pytest.mark.parametrize("path", ["/track", "/track/"])
def test_get_request_of_node_sdk_is_decoded(mixpanel: Wire, path: str) -> None:
    data = base64.b64encode(compact(EVENT)).decode()
    response = mixpanel.request("GET", f"{path}?data={data}&ip=0&verbose=1")
    assert response.json() == {"error": None, "status": 1}
    assert len(mixpanel.emulator.events("Viewed")) == 1


def test_ndjson_accepts_valid_lines_and_reports_invalid_ones(mixpanel: Wire) -> None:
    lines = [compact(imported(**{"$insert_id": "a"})), b"", b"{broken", compact(imported(**{"$insert_id": "b"})), b""]
    response = mixpanel.post(
        "/import?strict=1", content=b"\n".join(lines), headers={"content-type": "application/x-ndjson"}
    )
    assert response.status_code == 400
    assert [failed["index"] for failed in response.json()["failed_records"]] == [1]
    assert [event["properties"]["$insert_id"] for event in mixpanel.emulator.events()] == ["a", "b"]


@pytest.mark.parametrize("damage", [b"\xff\xfe", b"\\ud800"])
def test_invalid_utf8_fails_only_its_record(mixpanel: Wire, damage: bytes) -> None:
    body = compact([imported(utm_source="DAMAGE"), imported()]).replace(b"DAMAGE", damage)
    response = mixpanel.post("/import?strict=1", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    (failed,) = response.json()["failed_records"]
    assert failed["field"] == "properties.utm_source"
    assert failed["message"] == "properties.utm_source is invalid: string should be valid utf8"
    assert len(mixpanel.emulator.events()) == 1


JSON = {"content-type": "application/json"}
UNREADABLE: dict[str, tuple[bytes, dict[str, str], int]] = {
    "nothing": (b"", {}, 400),
    "blanks": (b"   ", JSON, 400),
    "half an array": (b"[", JSON, 400),
    "a text": (b'"text"', JSON, 400),
    "NaN": (b"[NaN]", JSON, 400),
    "NaN beside text": ('["é", NaN]'.encode(), JSON, 400),
    "deep nesting": (b"[" * 100_000, JSON, 400),
    "deep nesting beside text": (b'["\xff",' + b"[" * 100_000, JSON, 400),
    "form: no base64": (b"data=%%%", FORM, 400),
    "form: empty data": (b"data=", FORM, 400),
    "form: no data": (b"verbose=1", FORM, 400),
    "form: too many fields": (b"&" * 100_000, FORM, 400),
    "form: a number": (b"data=" + base64.b64encode(b"17"), FORM, 400),
    "form: too large": (b"data=%5B" + b"%20" * 10_486_000 + b"]", FORM, 413),
    "no gzip": (b"not gzip", GZIP, 400),
    "half a gzip": (gzip.compress(b"[]")[:-4], GZIP, 400),
    "gzip with more behind it": (gzip.compress(b"[]") + b"more", GZIP, 400),
    "gzip bomb": (gzip.compress(b" " * 100_000_000, 1), GZIP, 413),
    "too many records": (b"[" + b"{}," * 2_000 + b"{}]", JSON, 400),
    "too large": (b" " * 11_000_000 + b"[]", JSON, 413),
    "far too large": (b" " * 40_000_000, JSON, 413),
    "unknown encoding": (b"[]", {"content-encoding": "br"}, 400),
}


@pytest.mark.parametrize("case", UNREADABLE)
@pytest.mark.parametrize("path", ["/track", "/import", "/engage", "/groups"])
def test_unreadable_bodies_are_refused(path: str, case: str) -> None:
    body, headers, status = UNREADABLE[case]
    mixpanel = Wire(Emulator())
    response = mixpanel.post(path, content=body, headers=headers)
    assert response.status_code == status
    content = response.json()
    assert content["error"]
    if path == "/import":
        assert content["code"] == status
        assert content["status"] == {400: "Bad Request", 413: "Request Entity Too Large"}[status]
    else:
        assert content["status"] == "error"
    assert mixpanel.emulator.requests()[-1].status == status


@pytest.mark.parametrize("path", ["/track", "/engage", "/groups"])
@pytest.mark.parametrize("in_form", [True, False])
def test_track_engage_and_groups_answer_in_each_mode(mixpanel: Wire, path: str, in_form: bool) -> None:
    good = {
        "/track": EVENT,
        "/engage": {"$token": TOKEN, "$distinct_id": "u", "$set": {}},
        "/groups": {"$token": TOKEN, "$group_key": "k", "$group_id": "g", "$set": {}},
    }[path]

    def answer(records: list[Any], **flags: str) -> Any:
        if in_form:
            response = mixpanel.post(path, data={"data": json.dumps(records), **flags})
        else:
            response = mixpanel.post(path, records, params=flags)
        assert response.status_code == 200
        return response

    assert answer([good]).text == "1"
    assert answer([good, {}]).text == "1"
    assert answer([{}]).text == "0"
    assert answer([good]).headers["content-type"].startswith("text/plain")
    assert answer([good], verbose="1").json() == {"error": None, "status": 1}
    refused = answer([{}], verbose="1").json()
    assert refused["status"] == 0
    assert isinstance(refused["error"], str)
    called = answer([good], callback="app.done")
    assert called.text == "app.done(1);"
    assert called.headers["content-type"].startswith("text/javascript")
    assert answer([good], callback="alert(1)//").text == "1"
    assert answer([good], img="1").headers["content-type"] == "image/gif"
    assert answer([good], img="0").text == "1"


def test_import_answers_json_with_table_and_form_like_track(mixpanel: Wire) -> None:
    assert mixpanel.post("/import?strict=1&verbose=1", [imported()]).json() == {
        "code": 200,
        "num_records_imported": 1,
        "status": "OK",
    }
    form = {"data": json.dumps(imported()), "verbose": "1"}
    assert mixpanel.post("/import", data=form).json() == {"error": None, "status": 1}
    assert mixpanel.post("/import", data={"data": json.dumps(imported())}).text == "1"


def test_import_without_strict_silently_drops_invalid_records(mixpanel: Wire) -> None:
    response = mixpanel.post("/import", [imported(), imported(time=None)])
    assert response.json() == {"code": 200, "num_records_imported": 1, "status": "OK"}
    assert len(mixpanel.emulator.events()) == 1


def test_strict_import_reports_invalid_records_and_keeps_others(mixpanel: Wire) -> None:
    bad = imported(time="yesterday")
    response = mixpanel.post("/import?strict=1", [imported(), bad])
    assert response.status_code == 400
    assert response.json() == {
        "code": 400,
        "error": "some data points in the request failed validation",
        "failed_records": [
            {
                "index": 1,
                "$insert_id": bad["properties"]["$insert_id"],
                "field": "properties.time",
                "message": "'properties.time' is invalid: must be specified as seconds since epoch",
            }
        ],
        "num_records_imported": 1,
        "status": "Bad Request",
    }
    assert len(mixpanel.emulator.events()) == 1


@pytest.mark.parametrize("path", ["/engage", "/groups"])
def test_strict_updates_report_invalid_records(mixpanel: Wire, path: str) -> None:
    good = {"$token": TOKEN, "$distinct_id": "u", "$group_key": "k", "$group_id": "g", "$set": {"a": 1}}
    answer = mixpanel.post(f"{path}?strict=1", [good, {**good, "$set": 3}]).json()
    assert answer["num_good_events"] == 1
    assert [failed["index"] for failed in answer["failed_records"]] == [1]
