"""Command `mixpanel-async spool`: output, exit status and effect on the file."""

from __future__ import annotations

import json
import os
import pty
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest
from forked_python import popen
from typer.testing import CliRunner, Result

from mixpanel_async import SqliteSpool
from mixpanel_async._spool.database import DeadLetter, lane_start, open_database
from mixpanel_async.cli.app import app
from mixpanel_async.emulator import Emulator

RUN = [sys.executable, "-W", "error", "-c", "from mixpanel_async.cli import main; main()", "spool"]


def body(message: dict[str, Any]) -> bytes:
    return orjson.dumps(message).replace(b'"tok"', b"\x01")


EVENT = body({"event": "Viewed", "properties": {"token": "tok", "distinct_id": "ada", "time": 1_700_000_000_000}})
HOSTILE = body({"event": "Evil\x1b[2J\tname", "properties": {"token": "tok", "distinct_id": "eve"}})
UPDATE = body({"$token": "tok", "$distinct_id": "ada", "$time": 1.0, "$add": {"a": 1}})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Spool with three waiting events, one rejected event and one uncertain update."""
    path = tmp_path / "spool.db"
    db = open_database(path, max_bytes=10**9, timeout=5.0, fsync=False)
    with db.transaction():
        owner = db.add_owner(b"p" * 16, 1_600_000_000.0)
        db.insert([(lane_start(owner, 0) + at, 0, EVENT) for at in range(1, 4)])
        rejected = DeadLetter(lane=0, state=0, reason="rejected", message="bad\nvalue", body=HOSTILE)
        uncertain = DeadLetter(lane=2, state=1, reason="uncertain", message="", body=UPDATE)
        db.add_dead_letters(b"p" * 16, [rejected, uncertain], 1_700_000_000.0, 10)
    db.close()
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["spool", *map(str, arguments)])


def lines(result: Result) -> list[str]:
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout.splitlines()


def test_status_prints_lines_and_json(path: Path) -> None:
    output = lines(run("status", path))
    assert output[0].split("\t")[:4] == ["state", "what", "records", "bytes"]
    assert [line.split("\t")[:3] for line in output[1:4]] == [
        ["waiting", "events", "3"],
        ["dead", "rejected", "1"],
        ["dead", "uncertain", "1"],
    ]
    assert "integrity\tok" in output
    value = json.loads(run("status", path, "--json").stdout)
    assert value["waiting"]["events"] == {"records": 3, "bytes": 3 * len(EVENT), "oldest": 1_700_000_000.0}
    assert (value["is_in_use"], value["projects"]) == (False, 1)
    assert json.loads(run("status", path, "--json", "--no-check").stdout)["integrity"] == "not checked"


@pytest.mark.anyio
async def test_status_shows_a_live_client(tmp_path: Path) -> None:
    emulator = Emulator()
    emulator.fail_next(status=503, times=1_000)
    async with emulator.client(spool=SqliteSpool(tmp_path / "s.db"), shutdown_timeout=0.0) as mp:
        await mp.track("user", "Event")
        output = lines(run("status", tmp_path / "s.db"))
        assert output[1].split("\t")[-1] == "1"
        assert "in use\tby a live client" in output


def test_status_prints_tables_on_a_terminal(path: Path) -> None:
    master, slave = pty.openpty()
    with subprocess.Popen(
        [*RUN, "status", path], stdout=slave, stderr=slave, env={**os.environ, "COLUMNS": "100"}
    ) as process:
        os.close(slave)
        output = b""
        while True:
            try:
                part = os.read(master, 65_536)
            except OSError:
                break
            if not part:
                break
            output += part
    os.close(master)
    assert process.returncode == 0
    assert "│".encode() in output
    assert b"rejected" in output


def test_list_shows_no_person_and_no_control_characters(path: Path) -> None:
    output = lines(run("list", path))
    assert [line.split("\t") for line in output] == [
        ["id", "kind", "reason", "age", "what", "message"],
        ["1", "events", "rejected", output[1].split("\t")[3], "Evil?[2J name", "bad value"],
        ["2", "people", "uncertain", output[2].split("\t")[3], "$add", ""],
    ]
    assert len(lines(run("list", path, "--reason", "rejected"))) == 2
    (only,) = lines(run("list", path, "--json", "--reason", "uncertain"))
    assert json.loads(only)["payload"] == {"$distinct_id": "ada", "$time": 1.0, "$add": {"a": 1}}
    cut = run("list", path, "--limit", "1")
    assert len(cut.stdout.splitlines()) == 2
    assert "more than 1" in cut.stderr


def test_retry_skips_uncertain_records(path: Path) -> None:
    hint = "skipped 1 record that may have been applied already; --reason uncertain includes them\n"
    for count, options in (("0 records", ["--id", "2"]), ("1 record", []), ("0 records", [])):
        output = run("retry", path, *options)
        assert (output.exit_code, output.stdout, output.stderr) == (0, f"put back {count}\n", hint)
    assert run("retry", path, "--id", "1").stderr == ""
    assert run("retry", path, "--reason", "rejected").stderr == ""
    output = run("retry", path, "--reason", "uncertain", "--json")
    assert (json.loads(output.stdout), output.stderr) == ({"retried": 1}, "")
    assert run("retry", path).stderr == ""
    assert SqliteSpool(path).status().waiting["people"].records == 1


@pytest.mark.parametrize(
    ("options", "gone"),
    [
        (["--dead"], (0, 2)),
        (["--reason", "rejected"], (0, 1)),
        (["--id", "2"], (0, 1)),
        (["--older-than", "7d"], (0, 2)),
        (["--older-than", "90000d"], (0, 0)),
        (["--waiting"], (3, 0)),
        (["--waiting", "--dead"], (3, 2)),
        (["--distinct-id", "ada"], (3, 1)),
        (["--distinct-id", "nobody"], (0, 0)),
    ],
)
def test_purge_deletes_the_selected_records(options: list[str], gone: tuple[int, int], path: Path) -> None:
    result = run("purge", path, *options, "--yes", "--json")
    assert json.loads(result.stdout) == {"waiting": gone[0], "dead": gone[1]}
    assert len([*SqliteSpool(path).records()]) == 5 - sum(gone)


@pytest.mark.parametrize(
    "options",
    [
        ["--yes"],
        ["--dead"],
        ["--older-than", "soon", "--yes"],
        ["--distinct-id", "ada", "--dead", "--yes"],
        ["--id", "x"],
    ],
)
def test_ambiguous_purge_deletes_nothing(options: list[str], path: Path) -> None:
    result = run("purge", path, *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert len([*SqliteSpool(path).records()]) == 5


def test_export_prints_json_lines_and_writes_a_private_file(path: Path, tmp_path: Path) -> None:
    found = [json.loads(line) for line in lines(run("export", path))]
    assert [(one["state"], one["kind"]) for one in found] == [("waiting", "events")] * 3 + [
        ("dead", "events"),
        ("dead", "people"),
    ]
    assert "tok" not in json.dumps(found)
    result = run("export", path, "--no-waiting", "--output", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "2 records" in result.stderr
    assert len((tmp_path / "out").read_bytes().splitlines()) == 2
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o600
    assert run("export", path, "--output", tmp_path / "out").exit_code == 1


def test_closed_pipe_causes_no_traceback(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    db = open_database(path, max_bytes=10**9, timeout=5.0, fsync=False)
    with db.transaction():
        owner = db.add_owner(b"p" * 16, 1_600_000_000.0)
        db.insert([(lane_start(owner, 0) + at, 0, EVENT) for at in range(1, 5_001)])
    db.close()
    with popen([*RUN, "export", path], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith(b'{"id":')
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


COMMANDS = (["status"], ["list"], ["retry"], ["purge", "--dead", "--yes"], ["export"])


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_commands_report_missing_foreign_and_damaged_files(command: list[str], path: Path, tmp_path: Path) -> None:
    name, *options = command
    missing = run(name, tmp_path / "missing", *options)
    assert (missing.exit_code, missing.stdout) == (1, "")
    assert missing.stderr == f"mixpanel-async spool: {tmp_path / 'missing'}: there is no spool at this path\n"
    assert not (tmp_path / "missing").exists()
    with sqlite3.connect(tmp_path / "app.db") as db:
        db.execute("CREATE TABLE users (name)")
    db.close()
    foreign = run(name, tmp_path / "app.db", *options)
    assert foreign.stderr == f"mixpanel-async spool: {tmp_path / 'app.db'}: the file is not a spool; check the path\n"
    (tmp_path / "my.env").write_text("KEY=value\n")
    text = run(name, tmp_path / "my.env", *options)
    assert (text.exit_code, text.stderr) == (
        1,
        f"mixpanel-async spool: {tmp_path / 'my.env'}: the file is a text file, not a spool; check the path\n",
    )
    path.write_bytes(b"not SQLite at all" + path.read_bytes()[17:])
    damaged = run(name, path, *options)
    assert (damaged.exit_code, damaged.stdout) == (2, "")
    assert damaged.stderr.startswith(f"mixpanel-async spool: {path}: the spool is damaged (")


def test_status_reports_errors_found_by_the_check(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA writable_schema=ON")
        db.execute(
            "UPDATE sqlite_schema SET rootpage=(SELECT rootpage FROM sqlite_schema WHERE name='dead')"
            " WHERE name='owners'"
        )
    db.close()
    result = run("status", path)
    assert result.exit_code == 2
    # The table shows the error found by the check.
    assert "reference to page" in result.stdout
    advice = "start a client to recover readable records"
    assert result.stderr == f"mixpanel-async spool: {path}: the spool is damaged; {advice}\n"


def test_help_lists_commands_and_exit_statuses() -> None:
    output = " ".join(run("--help").stdout.split())
    assert all(command[0] in output for command in COMMANDS)
    assert "Exit status" in output
