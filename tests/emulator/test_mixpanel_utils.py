"""Tests of Mixpanel's tool `mixpanel-utils` against the emulator on a socket."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from emulator_wire import Wire, imported

from mixpanel_async import IdMerge
from mixpanel_async.emulator import Emulator

with warnings.catch_warnings():
    # The tool was written for old versions of Python.
    warnings.simplefilter("ignore")
    mixpanel_utils = pytest.importorskip("mixpanel_utils", reason="mixpanel-utils is not installed")

A1 = "0b1fba6c-16d3-4e3f-9a4e-2f0c1b7d0001"
DAY = datetime(2026, 3, 1, tzinfo=timezone.utc)
SPAN = {"from_date": "2026-03-01", "to_date": "2026-03-03"}

Connect = Callable[[Emulator], Any]


@pytest.fixture
def emulator() -> Emulator:
    """Provide a project with a person of two ids, three days of events, and more than one page of profiles."""
    emulator = Emulator(IdMerge.ORIGINAL, token="t", service_account=("robot", "s3cret", "42"))
    wire = Wire(emulator)
    events = [imported(time=int((DAY + timedelta(days=day)).timestamp()), distinct_id=A1, day=day) for day in range(4)]
    assert wire.post("/import?strict=1&project_id=42", events, auth=("robot", "s3cret")).status_code == 200
    wire.identify("user-1", A1)
    wire.engage("user-1", set={"plan": "free"}, ignore_time=True)
    people = [{"$token": "t", "$distinct_id": f"p{n}", "$set": {"n": n}, "$ignore_time": True} for n in range(1_100)]
    assert wire.post("/engage", people).text == "1"
    return emulator


@pytest.fixture
def connect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connect]:
    """Return the tool connected to an emulator. Its three hosts are attributes."""
    # The tool writes records that fail to import to the current directory.
    monkeypatch.chdir(tmp_path)
    with ExitStack() as servers:

        def connected(emulator: Emulator) -> Any:
            url = servers.enter_context(emulator.serve()).url
            utils = mixpanel_utils.MixpanelUtils(
                "s3cret", token="t", service_account_username="robot", project_id="42", timeout=10, max_retries=1
            )
            utils.raw_api = utils.formatted_api = f"{url}/api"
            utils.import_api = url
            return utils

        yield connected


@pytest.mark.parametrize("gzip", [False, True])
def test_events_are_exported(emulator: Emulator, connect: Connect, gzip: bool) -> None:
    events = connect(emulator).query_export({**SPAN, "event": json.dumps(["Imported"])}, add_gzip_header=gzip)
    assert [event["properties"]["day"] for event in events] == [0, 1, 2]
    first = events[0]["properties"]
    assert first["time"] == DAY.timestamp()
    # Both ids are one person by now. The export includes the id as sent.
    assert first["distinct_id"] == emulator.resolve(A1)
    assert {first["distinct_id"], first.get("$distinct_id_before_identity", A1)} <= {"user-1", A1}


def test_events_are_exported_to_a_file(emulator: Emulator, connect: Connect, tmp_path: Path) -> None:
    connect(emulator).export_events(str(tmp_path / "events.json"), dict(SPAN))
    events = json.loads((tmp_path / "events.json").read_text())
    assert [event["properties"]["day"] for event in events if event["event"] == "Imported"] == [0, 1, 2]


def test_people_are_exported_page_by_page(emulator: Emulator, connect: Connect, tmp_path: Path) -> None:
    utils = connect(emulator)
    people = {one["$distinct_id"]: one["$properties"] for one in utils.query_engage()}
    assert len(people) == 1_101
    assert people == emulator.profiles()
    utils.export_people(str(tmp_path / "people.json"), {"distinct_id": A1})
    (person,) = json.loads((tmp_path / "people.json").read_text())
    assert person["$properties"] == {"plan": "free"}


def test_project_can_be_copied(emulator: Emulator, connect: Connect, tmp_path: Path) -> None:
    source = connect(emulator)
    copy = Emulator(IdMerge.ORIGINAL, token="t", service_account=("robot", "s3cret", "42"))
    target = connect(copy)
    target.import_events(source.query_export({**SPAN, "event": json.dumps(["Imported"])}), timezone_offset=0)
    target.import_people(source.query_engage())
    assert [event["properties"]["day"] for event in copy.events("Imported")] == [0, 1, 2]
    assert list(tmp_path.iterdir()) == []
    assert copy.profiles() == emulator.profiles()


def test_export_tool_needs_credentials(emulator: Emulator, connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    utils = connect(emulator)
    utils.api_secret = "wrong"
    assert utils.request(utils.raw_api, ["export"], dict(SPAN)) is None
    assert utils.request(utils.formatted_api, ["engage"], {}) is None
    assert caplog.messages.count("HTTP Error Code: 401") == 2


def test_events_and_people_are_selected_by_expression(emulator: Emulator, connect: Connect) -> None:
    utils = connect(emulator)
    events = utils.query_export({**SPAN, "where": 'properties["day"] >= 1 and not properties["day"] == 2'})
    assert [event["properties"]["day"] for event in events] == [1]
    for selector in ({"where": 'properties["n"] < 2'}, {"selector": '(defined (properties["plan"]))'}):
        people = utils.query_engage(dict(selector))
        assert len(people) == (2 if "where" in selector else 1)


def test_jql_is_refused_and_listed(emulator: Emulator, connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(BaseException) as caught:  # noqa: PT011  the type is checked below
        connect(emulator).query_jql("function main() { return People() }")
    # The tool gives up with the base class itself.
    assert type(caught.value) is BaseException
    assert any("POST /api/2.0/jql is not emulated" in message for message in caplog.messages)
    (entry,) = emulator.unsupported()
    assert (entry["method"], entry["path"]) == ("POST", "/api/2.0/jql")
