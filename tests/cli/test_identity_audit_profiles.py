"""Tests of `mixpanel-async identity audit` with user profiles, from files and from the project."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from repair_command import run, write_lines

from mixpanel_async.cli.identity import profile_query
from mixpanel_async.emulator import Emulator

EVENTS = [{"event": "Viewed", "properties": {"distinct_id": one, "time": 1}} for one in ("u1", "u2", "u3")]
EMAILS = {"u1": "ann@example.com", "u2": " Ann@Example.com", "u3": "bob@example.com", "bob@example.com": "", "U3": None}
PROFILES = [{"$distinct_id": one, "$properties": {"$email": email}} for one, email in EMAILS.items()]


@pytest.fixture
def export(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "export.ndjson", EVENTS)


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    emulator = Emulator("original")
    with emulator.serve() as server:
        updates = [
            {"$token": "t", "$distinct_id": one, "$set": {"$email": email} if email else {"plan": "pro"}}
            for one, email in EMAILS.items()
        ]
        assert httpx.post(f"{server.url}/engage?verbose=1", json=updates).json()["status"] == 1
        yield server.url


def cases(report: dict[str, Any]) -> dict[str, list[list[str]]]:
    return {one["kind"]: [case["ids"] for case in one["cases"]] for one in report["findings"]}


FOUND = {
    "split_by_email": [["u1", "u2"]],
    "mixed_id_kinds": [["bob@example.com", "u3"]],
    "id_variants": [["u3", "U3"]],
}


def audit(export: Path, *options: object) -> dict[str, Any]:
    result = run("audit", export, "--id-merge", "original", "--json", *options)
    assert (result.status, result.errors) == (0, ""), result
    found: dict[str, Any] = json.loads(result.output)
    return found


def test_profiles_show_who_is_split(export: Path, tmp_path: Path) -> None:
    assert cases(audit(export)) == {}
    found = audit(export, "--profiles", write_lines(tmp_path / "people.ndjson", PROFILES))
    assert cases(found) == FOUND
    assert (found["profiles"], found["ids"], found["events"]) == (5, 5, 3)


def test_ids_of_a_case_are_ids_also_if_the_address_is_one(export: Path, tmp_path: Path) -> None:
    people = [{"$distinct_id": one, "$properties": {"$email": "ann@example.com"}} for one in ("ann@example.com", 17)]
    found = audit(export, "--profiles", write_lines(tmp_path / "people.ndjson", people))
    (finding,) = (one for one in found["findings"] if one["kind"] == "split_by_email")
    (case,) = finding["cases"]
    # A numeric id counts as its text, as in events.
    assert (case["ids"], case["detail"]) == (["ann@example.com", "17"], "2 persons with ann@example.com")


def test_answer_of_the_profile_query_is_read_from_a_file(export: Path, tmp_path: Path, host: str) -> None:
    answer = httpx.post(f"{host}/api/2.0/engage", auth=("secret", "")).json()
    lines = write_lines(tmp_path / "people.ndjson", answer["results"])
    assert cases(audit(export, "--profiles", lines)) == FOUND
    assert cases(audit(export, "--profiles", write_lines(tmp_path / "answer.ndjson", [answer]))) == FOUND


def test_profiles_are_read_from_the_project(export: Path, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--read-profiles", "--api-secret", "secret", "--api-host", host)
    found = audit(export, *options)
    assert (cases(found), found["profiles"]) == (FOUND, 5)
    monkeypatch.setattr(profile_query, "_MAX_PAGES", 0)
    result = run("audit", export, "--id-merge", "original", *options)
    assert (result.status, "more profiles than 0 queries return" in result.errors) == (1, True), result


def test_hostile_lines_are_counted_and_left_out(export: Path, tmp_path: Path) -> None:
    evil = "\x1b[31m<script>\u202e"
    people = tmp_path / "people.ndjson"
    emails = [["a@x.y"], {"a": 1}, 7, True, "  ", evil, evil]
    lines = [json.dumps({"$distinct_id": f"p{n}", "$properties": {"$email": one}}) for n, one in enumerate(emails)]
    lines += ["[]", "null", '{"$distinct_id": ""}', '{"$distinct_id": true}', '{"secret-value"', '{"results": [1, {}]}']
    people.write_text("\n".join(lines) + "\n")
    page = tmp_path / "page.html"
    given = ("audit", export, "--id-merge", "original", "--profiles", people, "--html", page)
    result = run(*given)
    assert result.status == 0
    assert [one for one in result.output + result.errors if not one.isprintable() and one != "\n"] == []
    assert result.errors.splitlines()[0] == f"{people}:8 is no profile: it has no $distinct_id"
    assert result.errors.splitlines()[-1] == "7 lines are no profiles and were left out"
    assert "secret-value" not in result.errors
    assert ("<script>" in page.read_text(), "Lines that are no profiles" in page.read_text()) == (False, True)
    found = json.loads(run(*given, "--json").output)
    assert (found["profiles"], found["unreadable"], found["unreadable_profiles"]) == (7, 0, 7)
    assert cases(found) == {"split_by_email": [["p5", "p6"]]}


@pytest.mark.parametrize(
    ("profiles", "options", "message"),
    [
        ("missing", (), "cannot read"),
        ("noise", (), "noise is neither NDJSON nor CSV"),
        ("people", ("--html", "people"), "already used"),
    ],
)
def test_unusable_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, profiles: str, options: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "export", EVENTS)
    people = write_lines(tmp_path / "people", PROFILES).read_bytes()
    (tmp_path / "noise").write_bytes(b"\x00\xff\x01" * 100)
    result = run("audit", "export", "--id-merge", "original", "--profiles", profiles, *options)
    assert (result.status, message in result.errors) == (2, True), result
    assert (tmp_path / "people").read_bytes() == people
    result = run("audit", "-", "--id-merge", "original", "--profiles", "-")
    assert (result.status, "standard input" in result.errors) == (2, True), result


def test_read_profiles_needs_credentials(export: Path) -> None:
    result = run("audit", export, "--id-merge", "original", "--read-profiles", MIXPANEL_API_SECRET=None)
    assert (result.status, "SECRET" in result.errors) == (2, True), result
