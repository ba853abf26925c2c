"""Tests of lookup tables."""

from __future__ import annotations

import gzip
from typing import Any

import pytest
from emulator_wire import TOKEN, Wire

from mixpanel_async.emulator import Emulator

TABLE = "55b4fb2b-e8de-466c-930f-8b36640b9b5e"
CSV = b'id,name,city\n1,"Ada, Lady",London\n2,Bob,\n'
ROWS = [{"id": "1", "name": "Ada, Lady", "city": "London"}, {"id": "2", "name": "Bob", "city": ""}]
OK = {"code": 200, "status": "OK"}


@pytest.fixture
def mixpanel() -> Wire:
    return Wire(Emulator(token=TOKEN, secret="s", service_account=("robot", "pass", "42")))


def put(mixpanel: Wire, body: bytes, table: str = TABLE, **headers: str) -> Any:
    """Send a table as mixpanel-import 3.1 does."""
    url = f"/lookup-tables/{table}?ip=0&verbose=1&strict=1&project_id=42"
    headers = {"Content-Type": "text/csv", "Accept": "application/json", **headers}
    return mixpanel.request("PUT", url, content=body, headers=headers, auth=("robot", "pass"))


def test_table_is_replaced(mixpanel: Wire) -> None:
    assert put(mixpanel, b"id,name\n1,x\n").json() == OK
    assert put(mixpanel, gzip.compress(CSV), **{"Content-Encoding": "gzip"}).json() == OK
    assert put(mixpanel, b"\xef\xbb\xbfkey\r\n\r\na\r\n", "some.lookup.table.id").json() == OK
    listed = mixpanel.request("GET", "/lookup-tables?project_id=42", auth=("robot", "pass")).json()
    names = [TABLE, "some.lookup.table.id"]
    assert listed == {**OK, "results": [{"id": name, "name": name} for name in names]}
    assert mixpanel.emulator.lookup_tables() == {TABLE: ROWS, "some.lookup.table.id": [{"key": "a"}]}
    assert mixpanel.request("GET", "/_emulator/lookup-tables").json() == mixpanel.emulator.lookup_tables()
    mixpanel.emulator.reset()
    assert mixpanel.emulator.lookup_tables() == {}


@pytest.mark.parametrize(
    ("body", "failed"),
    [
        (b"id,a\n1,2\n,3\n4\n5,6,7\n", [(1, "primary key"), (2, "number of fields"), (3, "number of fields")]),
        (b"", [(0, "header is missing")]),
        (b"id\n" + b"1,2\n" * 20, [(index, "number of fields") for index in range(10)]),
    ],
)
def test_invalid_rows_are_refused(mixpanel: Wire, body: bytes, failed: list[tuple[int, str]]) -> None:
    response = put(mixpanel, body)
    answer = response.json()
    assert (response.status_code, answer["code"], answer["status"]) == (400, 400, "Bad Request")
    assert [record["index"] for record in answer["failed_records"]] == [index for index, _ in failed]
    assert all(words in record["message"] for record, (_, words) in zip(answer["failed_records"], failed, strict=True))
    assert mixpanel.emulator.lookup_tables() == {}


@pytest.mark.parametrize(
    ("body", "headers", "status", "words"),
    [
        (b"id\n\xff\n", {}, 400, "not valid UTF-8"),
        (b"id\n" + b"x" * 200_000, {}, 400, "not valid CSV"),
        (b"id\n1\n", {"Content-Encoding": "gzip"}, 400, "not gzip"),
        (b"x" * (10 * 1024 * 1024 + 1), {}, 413, "max limit of 10485760"),
        (gzip.compress(b"x" * (10 * 1024 * 1024 + 1)), {"Content-Encoding": "gzip"}, 413, "max limit of 10485760"),
    ],
    ids=["text", "field", "gzip", "large", "bomb"],
)
def test_unreadable_table_is_refused(
    mixpanel: Wire, body: bytes, headers: dict[str, str], status: int, words: str
) -> None:
    response = put(mixpanel, body, **headers)
    assert response.status_code == response.json()["code"] == status
    assert words in response.json()["error"]


def test_table_id_must_be_plain(mixpanel: Wire) -> None:
    response = put(mixpanel, CSV, "a%20b")
    assert (response.status_code, response.json()["status"]) == (404, "Not Found")


def test_tables_are_bounded(mixpanel: Wire) -> None:
    large = b"id\n" + (b"1" * 99_999 + b"\n") * 104
    statuses = [put(mixpanel, large, f"t{number}").status_code for number in range(11)]
    assert statuses == [200] * 10 + [413]
    assert put(mixpanel, CSV, "t0").status_code == 200


@pytest.mark.parametrize(("method", "path"), [("PUT", f"/lookup-tables/{TABLE}"), ("GET", "/lookup-tables")])
def test_tables_require_credentials(mixpanel: Wire, method: str, path: str) -> None:
    def status(project: str, *auth: str) -> int:
        credentials: dict[str, Any] = {"auth": auth} if auth else {}
        return mixpanel.request(method, f"{path}?project_id={project}", content=CSV, **credentials).status_code

    assert status("42", "robot", "pass") == 200
    assert status("42", "s", "") == 200
    assert [status("41", "robot", "pass"), status("42", TOKEN, ""), status("42")] == [401] * 3
    assert mixpanel.request("DELETE", path).status_code == 405
