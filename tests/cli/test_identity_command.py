"""Tests of `mixpanel-async identity audit` and `simulate`, on files and standard input."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from forked_python import run as run_forked
from typer.testing import CliRunner

from mixpanel_async.cli.app import app

VISITOR = "3f2b8c1e-9d4a-4b7e-8c1d-2a5e6f7b8c9d"
HEALTHY = [
    {"event": "Viewed", "properties": {"distinct_id": VISITOR, "time": 1_700_000_000}},
    {"event": "$identify", "properties": {"time": 1_700_000_001, "$identified_id": "user-1", "$anon_id": VISITOR}},
    {"event": "Bought", "properties": {"distinct_id": "user-1", "time": 1_700_000_002}},
]
FAULTY = [
    *HEALTHY,
    {"event": "Viewed", "properties": {"distinct_id": "<b>undefined</b>", "time": 1_700_000_003}},
    {"event": "$identify", "properties": {"time": 1_700_000_004, "$identified_id": "user-2", "$anon_id": VISITOR}},
]


def run(*arguments: object, stdin: bytes = b"", **environment: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["identity", *map(str, arguments)], input=stdin, env=environment)
    return result.exit_code, result.stdout, result.stderr


def write(path: Path, events: Iterable[object]) -> Path:
    content = "".join(json.dumps(event) + "\n" for event in events).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def audit_json(*arguments: object) -> dict[str, Any]:
    status, output, _ = run("audit", "--id-merge", "original", "--json", *arguments)
    assert status == 0
    found: dict[str, Any] = json.loads(output)
    return found


def test_audit_lists_figures_and_findings_with_advice(tmp_path: Path) -> None:
    path = write(tmp_path / "export.ndjson", FAULTY)
    status, output, errors = run("audit", path, "--id-merge", "original")
    assert (status, errors) == (0, "")
    lines = [line.rstrip() for line in output.splitlines()]
    assert "Persons          3, 1 with several ids" in lines
    assert f"  user-2, {VISITOR} ($identify: the anonymous id is already merged with an" in output
    assert "call reset() in the browser SDK" in " ".join(map(str.strip, lines))
    assert "  <b>undefined</b> (1 event)" in lines


def test_audit_of_a_simplified_project_counts_links_apart_from_calls(tmp_path: Path) -> None:
    linked = {"event": "Viewed", "properties": {"$device_id": VISITOR, "$user_id": "user-1", "time": 1_700_000_000}}
    _, output, _ = run("audit", write(tmp_path / "a.ndjson", [linked]), "--id-merge", "simplified")
    lines = [line.rstrip() for line in output.splitlines()]
    assert "Identity calls          0" in lines
    assert "Calls and device links  1 merged" in lines


def test_healthy_export_has_no_findings(tmp_path: Path) -> None:
    status, output, _ = run("audit", write(tmp_path / "a.ndjson", HEALTHY), "--id-merge", "original", "--fail-on", "0")
    assert status == 0
    assert output.endswith("No findings.\n")


def test_files_are_one_history(tmp_path: Path) -> None:
    """The first call is in the file that is read last."""
    late = write(tmp_path / "a.ndjson.gz", reversed(FAULTY[3:]))
    early = write(tmp_path / "b.ndjson", HEALTHY)
    both = audit_json(late, early)
    assert both == audit_json(tmp_path / "*.ndjson*")
    assert (both["events"], both["persons"], both["outcomes"]) == (5, 3, {"merged": 1, "failed": 1})
    array = tmp_path / "c.json"
    array.write_text(json.dumps(FAULTY, indent=1))
    assert audit_json(array) == both


def test_standard_input_is_read(tmp_path: Path) -> None:
    content = gzip.compress(write(tmp_path / "a.ndjson", FAULTY).read_bytes())
    main = "from mixpanel_async.cli import main; main()"
    command = [sys.executable, "-c", main, "identity", "audit", "-", "--id-merge", "original", "--json"]
    done = run_forked(command, given=content, capture_output=True, timeout=30, check=True)
    assert json.loads(done.stdout)["events"] == 5


@pytest.mark.parametrize(("bound", "expected"), [(0, 3), (1, 3), (2, 0), (9, 0)])
def test_fail_on_sets_the_exit_status(tmp_path: Path, bound: int, expected: int) -> None:
    path = write(tmp_path / "a.ndjson", FAULTY)
    status, _, _ = run("audit", path, "--fail-on", bound, MIXPANEL_ID_MERGE="original")
    assert status == expected


def test_persons_are_written_as_lines(tmp_path: Path) -> None:
    target = tmp_path / "persons.ndjson"
    path = write(tmp_path / "a.ndjson", FAULTY)
    assert run("audit", path, "--id-merge", "original", "--persons", target)[0] == 0
    found = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
    assert max(found, key=str) == {"person": "user-2", "ids": ["user-2"]}
    assert {"person": "user-1", "ids": ["user-1", VISITOR]} in found
    assert len(found) == 3


def test_report_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ndjson", FAULTY)
    status, _, errors = run("audit", path, "--id-merge", "original", "--html", tmp_path / "missing" / "a.html")
    assert status == 1
    assert "a.html: No such file or directory" in errors


class Page(HTMLParser):
    """Tags and references of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for name, value in attrs if name in {"src", "href"}]

    def handle_data(self, data: str) -> None:
        self.words += data


def test_html_page_is_self_contained_and_escaped(tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    assert run("audit", write(tmp_path / "a.ndjson", FAULTY), "--id-merge", "original", "--html", target)[0] == 0
    page = Page(target.read_text(encoding="utf-8"))
    assert (page.references, "script" in page.tags, "b" in page.tags) == ([], False, False)
    assert "<b>undefined</b> (1 event)" in page.words
    assert "Identity calls that Mixpanel refused: errAnonDistinctIdAssignedAlready" in page.words
    assert page.tags.count("details") == 2


def test_unreadable_lines_are_named_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ndjson", [*HEALTHY, {"event": "Viewed"}])
    path.write_bytes(path.read_bytes() + b'{"secret-value"\n')
    status, output, errors = run("audit", path, "--id-merge", "original", "--json")
    assert (status, json.loads(output)["unreadable"]) == (0, 2)
    assert errors.splitlines()[0] == f"{path}:4 is no event: properties: must be an object"
    assert errors.splitlines()[-1] == "2 lines are no events and were left out"
    assert "secret-value" not in errors


@pytest.mark.parametrize("command", [("audit",), ("simulate", "--from", "original")])
def test_unusable_file_is_refused(tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "a.csv").write_text("event,distinct_id\nViewed,user-1\n")
    for name, words in [("a.csv", "a.csv is csv: identity commands read raw exports"), ("no.ndjson", "cannot read")]:
        status, _, errors = run(*command, tmp_path / name, "--id-merge", "legacy")
        assert (status, words in errors) == (2, True), errors


def test_damaged_file_ends_without_a_report(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ndjson.gz", FAULTY * 500)
    path.write_bytes(path.read_bytes()[:-20])
    status, output, errors = run("audit", path, "--id-merge", "original")
    assert (status, output) == (1, "")
    assert "damaged after line" in errors


def test_missing_file_argument_is_explained() -> None:
    status, _, errors = run("audit", "--id-merge", "original")
    assert status == 2
    assert "give the files of an export" in errors


def test_simulation_shows_who_splits(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ndjson", HEALTHY)
    status, output, _ = run("simulate", path, "--from", "original", "--id-merge", "simplified", "--json")
    found = json.loads(output)
    assert status == 0
    assert (found["persons_before"], found["persons_after"], found["split"], found["joined"]) == (1, 2, 1, 0)
    assert found["split_cases"] == [{"person": "user-1", "parts": [[VISITOR], ["user-1"]]}]
    status, output, _ = run("simulate", path, "--id-merge", "simplified")
    assert "Persons that split            1" in output
    assert f"  user-1: {VISITOR} | user-1" in output


def test_simulation_shows_who_joins(tmp_path: Path) -> None:
    device = {"distinct_id": f"$device:{VISITOR}", "$device_id": VISITOR}
    events = [
        {"event": "Viewed", "properties": device},
        {"event": "Viewed", "properties": {"distinct_id": "user-1", "$device_id": VISITOR, "$user_id": "user-1"}},
    ]
    path = write(tmp_path / "a.ndjson", events)
    _, output, _ = run("simulate", path, "--id-merge", "simplified", "--json")
    found = json.loads(output)
    assert (found["persons_before"], found["persons_after"], found["split"], found["joined"]) == (2, 1, 0, 1)


def test_recorded_failures_do_not_bind_another_system(tmp_path: Path) -> None:
    refused = {"distinct_id": "user-1", "alias": "user-2", "$failure_reason": "errAliasAlreadyExists"}
    path = write(tmp_path / "a.ndjson", [{"event": "$create_alias", "properties": refused}])
    _, output, _ = run("simulate", path, "--id-merge", "legacy", "--json")
    found = json.loads(output)
    assert (found["persons_before"], found["persons_after"]) == (2, 1)
