"""Identity commands with hostile files, answers and terminals: no traceback, no raw control character, nothing lost."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from repair_command import anonymous, journal_lines, run, states, write_lines
from test_identity_apply import merges, planned, sent

from mixpanel_async.cli.identity.download import DownloadError, ExportAccess
from mixpanel_async.cli.identity.profile_query import ProfileQuery
from mixpanel_async.cli.identity.repair.journal import CallState, Journal
from mixpanel_async.emulator import Emulator, Server

EVIL = "\x1b[31m[red]\x9b1m\x07<script>\u202e\r\n" + "x" * 400
HUGE = "1" + "0" * 400


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[Emulator, Server]]:
    emulator = Emulator("original")
    with emulator.serve() as server:
        yield emulator, server


@pytest.fixture
def emulator(running: tuple[Emulator, Server]) -> Emulator:
    running[0].reset()
    return running[0]


@pytest.fixture
def server(running: tuple[Emulator, Server]) -> Server:
    return running[1]


def events_of(evil: str) -> list[dict[str, Any]]:
    """Return events with a text in every place that a report shows."""
    return [
        {"event": "Viewed", "properties": {"distinct_id": "a1", "time": 1}},
        {"event": "$create_alias", "properties": {"distinct_id": evil, "alias": "a1", "time": 2}},
        {"event": "$create_alias", "properties": {"distinct_id": "a1", "alias": evil + "2", "time": 3}},
        {"event": "$identify", "properties": {"$identified_id": evil, "$anon_id": evil + "3", "time": 4}},
        {
            "event": "$identify",
            "properties": {
                "$identified_id": "a",
                "$anon_id": "b",
                "$failure_reason": evil,
                "$failure_description": evil,
            },
        },
        *(
            {
                "event": "Viewed",
                "properties": {
                    "distinct_id": one,
                    "$user_id": evil + one,
                    "$device_id": "d" + evil,
                    "$email": evil + "@x.y",
                },
            }
            for one in ("p", "q")
        ),
    ]


def controls(text: str) -> list[str]:
    return [one for one in text if not one.isprintable() and one != "\n"]


@pytest.mark.parametrize("system", ["legacy", "original", "simplified"])
@pytest.mark.parametrize("evil", [EVIL, "\ud800"], ids=["controls", "surrogate"])
def test_reports_show_hostile_ids_escaped(tmp_path: Path, system: str, evil: str) -> None:
    # An array is read by a parser that accepts lone surrogates.
    export, page, people = (tmp_path / name for name in ("export.json", "page.html", "people.ndjson"))
    export.write_text(json.dumps(events_of(evil)))
    given = (export, "--id-merge", system)
    text = run("audit", *given, "--html", page, "--persons", people)
    simulated = run("simulate", *given, "--from", "original")
    assert (text.status, simulated.status) == (0, 0)
    assert controls(text.output + text.errors + simulated.output + page.read_text()) == []
    assert "<script>" not in page.read_text()
    assert max(map(len, page.read_text().splitlines())) < 3_000
    ids = [one for line in people.read_text().splitlines() for one in json.loads(line)["ids"]]
    assert len(set(ids)) == len(ids) == json.loads(run("audit", *given, "--json").output)["ids"]
    assert run("audit", *given, "--json").output.isascii()


@pytest.mark.parametrize("encoding", ["ascii"])
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_output_that_cannot_encode_an_id_escapes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, options: tuple[str, ...]
) -> None:
    export = write_lines(tmp_path / "export.ndjson", events_of("日本" * 60))
    shown = tmp_path / "shown"
    with shown.open("w", encoding=encoding) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        from mixpanel_async.cli.identity.messages import write_output

        write_output("日本…\n", "audit")
    assert shown.read_bytes().startswith(b"\\u65e5\\u672c")
    monkeypatch.undo()
    assert run("audit", export, "--id-merge", "original", *options).status == 0


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_full_disk_under_the_report_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    from mixpanel_async.cli.app import app

    export = write_lines(tmp_path / "export.ndjson", events_of("a"))
    full = open("/dev/full", "w", encoding="utf-8")  # noqa: SIM115  closing it raises
    monkeypatch.setattr(sys, "stdout", full)
    status = app(["identity", "audit", str(export), "--id-merge", "original", *options], standalone_mode=False)
    monkeypatch.undo()
    with pytest.raises(OSError, match="No space"):
        full.close()
    assert (status, "the report cannot be written: No space" in capsys.readouterr().err) == (1, True)


@pytest.mark.parametrize("time", ["NaN", "-Infinity", HUGE, '"2024"', "[1]"])
@pytest.mark.parametrize("name", ["time", "$mp_api_timestamp_ms"])
def test_impossible_times_do_not_disturb_the_order_of_others(tmp_path: Path, name: str, time: str) -> None:
    pair = '"$identified_id": "u%s", "$anon_id": "' + anonymous(1) + '"'
    impossible = f'"{name}": {time}'
    lines = [
        '{"event": "$identify", "properties": {"time": 30, ' + pair % 3 + "}}",
        '{"event": "Viewed", "properties": {"distinct_id": "x", ' + impossible + "}}",
        '{"event": "$identify", "properties": {"time": 20, ' + pair % 2 + "}}",
        '{"event": "$merge", "properties": {"$distinct_ids": ["y", "z"], ' + impossible + "}}",
        '{"event": "$identify", "properties": {"time": 10, ' + pair % 1 + "}}",
    ]
    export = tmp_path / "export.json"
    export.write_text(f"[{','.join(lines)}]")
    people = tmp_path / "people"
    assert run("audit", export, "--id-merge", "original", "--persons", people).status == 0
    assert {"person": "u1", "ids": ["u1", anonymous(1)]} in [json.loads(one) for one in people.read_text().splitlines()]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("audit", "noise", "--id-merge", "original"), "noise is no raw export"),
        (("plan", "noise", "--without-history", "--id-merge", "original"), "noise is neither CSV nor NDJSON"),
        (
            ("plan", "pairs.csv", "--without-history", "--profiles", "noise", "--id-merge", "original"),
            "noise is neither NDJSON nor CSV",
        ),
        (("audit", "good.ndjson", "damaged.json", "--id-merge", "original"), "damaged.json is damaged after line 1"),
        (("audit", "good.ndjson", "--id-merge", "original", "--persons", "good.ndjson"), "already used"),
        (("audit", "good.ndjson", "--id-merge", "original", "--html", "x", "--persons", "x"), "already used"),
        (
            ("plan", "pairs.csv", "--without-history", "--id-merge", "original", "-o", "pairs.csv", "--replace"),
            "pairs.csv is an input",
        ),
        (("audit", "no\x1b[31m", "--id-merge", "original"), "no\\x1b[31m"),
    ],
)
def test_message_names_the_file_and_nothing_is_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("noise").write_bytes(bytes(range(256)) * 10)
    Path("damaged.json").write_text('[{"event": "V", "properties": {"distinct_id": "u"}},')
    Path("pairs.csv").write_text(f"u1,{anonymous(1)}\n")
    write_lines(Path("good.ndjson"), events_of("a"))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    result = run(*command)
    assert (result.status in {1, 2}, message in result.errors, "--format" in result.errors) == (True, True, False)
    assert controls(result.errors) == []
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("header", ["email,userid", "old_id,new_id", "Customer ID,E-Mail"])
def test_header_with_unknown_names_is_no_pair(tmp_path: Path, header: str) -> None:
    (tmp_path / "pairs.csv").write_text(f"{header}\nu1,{anonymous(1)}\n")
    result = run("plan", tmp_path / "pairs.csv", "--without-history", "--id-merge", "original", "--allow-user-merge")
    assert (result.status, "--columns" in result.errors) == (2, True)


@pytest.mark.parametrize("pair", [f"u1 ,{anonymous(1)}", f"{anonymous(1)}, u1", f"u1,{anonymous(1)}\t"])
def test_white_space_around_an_id_is_refused_unless_the_project_has_it(tmp_path: Path, pair: str) -> None:
    (tmp_path / "pairs.csv").write_text(pair + "\n")
    given = (tmp_path / "pairs.csv", "--id-merge", "original", "--allow-user-merge", "--replace")
    result = run("plan", *given, "--without-history")
    assert (result.status, "white space" in result.output) == (3, True)
    events = [{"event": "V", "properties": {"distinct_id": one}} for one in pair.split(",")]
    result = run("plan", *given, "--against", write_lines(tmp_path / "export", events))
    assert (result.status, "no event that was read" in result.output) == (0, False)
    result = run("plan", *given, "--against", write_lines(tmp_path / "export", events_of("a")))
    (tmp_path / "pairs.csv").write_text(f"u1,{anonymous(1)}\n")
    result = run("plan", *given, "--against", write_lines(tmp_path / "export", events[:1]))
    assert "of these calls in no event that was read" in result.output


def test_unsent_plan_has_no_journal_and_can_be_replaced(tmp_path: Path, server: Server) -> None:
    plan = planned(tmp_path, merges(1))
    assert run("apply", plan, host=server.url).status == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs.csv", "pairs.csv.plan"]
    assert run("plan", tmp_path / "pairs.csv", "--without-history", "--id-merge", "original", "--replace").status == 0


def test_plan_behind_a_symbolic_link_has_the_same_journal(
    tmp_path: Path,
    emulator: Emulator,
    server: Server,
) -> None:
    plan, link = planned(tmp_path, merges(3)), tmp_path / "link"
    link.symlink_to(plan)
    assert run("apply", plan, "--yes", "--limit", 2, host=server.url).status == 0
    assert run("apply", link, "--yes", host=server.url).status == 0
    assert set(sent(emulator).values()) == {1}
    assert set(states(plan).values()) == {"accepted"}


def test_resumed_merges_do_not_go_to_another_project(tmp_path: Path, emulator: Emulator, server: Server) -> None:
    account = ("--service-account", "robot", "--service-account-secret", "secret", "--project-id")
    plan = planned(tmp_path, merges(2))
    assert run("apply", plan, "--yes", "--limit", 1, *account, "77", host=server.url).status == 0
    result = run("apply", plan, "--yes", *account, "78", host=server.url)
    assert (result.status, "another project" in result.errors, len(emulator.identity_log())) == (2, True, 1)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data + b'{"call": 3, "state": "accepted"}\n',
        lambda data: data + b'{"call": 0, "state": "failed"}\n',
        lambda data: data + b'{"call": 1e400, "state": "failed"}\n',
        lambda data: data + b'{"call": 1, "sta{"call": 2, "state": "accepted"}\n',
        lambda _: b"another file without a line break",
        lambda _: b"\xff\xfe\n",
        lambda _: b"[]\n",
    ],
)
def test_damaged_journal_is_refused(
    tmp_path: Path,
    emulator: Emulator,
    server: Server,
    change: Callable[[bytes], bytes],
) -> None:
    plan = planned(tmp_path, merges(2))
    assert run("apply", plan, "--yes", "--limit", 1, host=server.url).status == 0
    journal = plan.with_name(plan.name + ".journal")
    data = change(journal.read_bytes())
    journal.write_bytes(data)
    result = run("apply", plan, "--yes", host=server.url)
    assert (result.status, "is damaged" in result.errors, journal.read_bytes()) == (2, True, data)
    assert len(emulator.identity_log()) == 1


@pytest.mark.parametrize("created", ["1e300", "NaN", "-1e11", "[]"])
def test_impossible_time_in_a_journal_is_explained(tmp_path: Path, created: str) -> None:
    plan = planned(tmp_path, merges(1))
    plan.with_name(plan.name + ".journal").write_text('{"journal": 1, "created": ' + created + "}\n")
    result = run("verify", plan, host="http://127.0.0.1:9")
    assert (result.status, "is damaged" in result.errors, "--from-date" in result.errors) == (2, True, True)


def test_part_of_a_journal_line_is_removed_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, write = tmp_path / "journal", os.write

    def cut(descriptor: int, data: bytes) -> int:
        if len(data) > 10:
            return write(descriptor, data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    with Journal(path, "plan", "project", 1.0, calls=3) as journal:
        journal.write(1, CallState.STARTED)
        before = path.read_bytes()
        monkeypatch.setattr(os, "write", cut)
        with pytest.raises(OSError, match="No space"):
            journal.write(2, CallState.STARTED)
        monkeypatch.undo()
        assert path.read_bytes() == before
        journal.write(1, CallState.ACCEPTED)
    assert {number: one.state for number, one in Journal(path, "plan", "project", 1.0, calls=3).entries.items()} == {
        1: CallState.ACCEPTED
    }


@pytest.mark.parametrize(
    ("statuses", "state"),
    [
        ([500, 429], "uncertain"),
        pytest.param([500, 400], "uncertain", marks=pytest.mark.long),
        pytest.param([200, 200, 200], "uncertain", marks=pytest.mark.long),
        ([400], "failed"),
    ],
)
def test_call_is_failed_only_if_no_attempt_may_have_been_applied(
    tmp_path: Path, emulator: Emulator, server: Server, statuses: list[int], state: str
) -> None:
    plan = planned(tmp_path, [f"alias,u1,{anonymous(1)}"])
    for status in statuses:
        # The client does not wait for an hour: 429 ends the call.
        emulator.fail_next(status, body=b"<html>", retry_after=3_600 if status == 429 else None)
    assert run("apply", plan, "--yes", host=server.url).status == 3
    assert [line["state"] for line in journal_lines(plan)] == ["started", state]


@pytest.mark.parametrize(
    "answer",
    [
        {"results": 5},
        {"results": [5]},
        {"results": [{"$properties": {}}]},
        {"results": [{"$distinct_id": "u1", "$properties": 5}]},
        {"results": [{"$distinct_id": "u1"}], "page_size": "many", "session_id": "s"},
        [],
    ],
)
def test_malformed_answer_to_a_profile_query_is_explained(monkeypatch: pytest.MonkeyPatch, answer: object) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json=answer))
    client = httpx.Client
    monkeypatch.setattr(httpx, "Client", lambda **options: client(transport=transport, **options))
    access = ExportAccess(origin="https://data.mixpanel.com", user="robot", password="s", project_id="7")
    with pytest.raises(DownloadError, match="profile query"):
        [*ProfileQuery(access).profiles(["u1"])]


def test_live_page_gets_a_report_of_hostile_ids(emulator: Emulator, server: Server) -> None:
    answer = httpx.post(f"{server.url}/import", json=[*events_of(EVIL), *events_of("\ud7ff")], auth=("any", ""))
    assert answer.status_code in {200, 400}
    report = httpx.get(f"{server.url}/_emulator/audit").json()
    assert report["events"] > 0
