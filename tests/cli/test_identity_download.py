"""Tests of `mixpanel-async identity audit --from-api`: against the emulator, and with failing responses."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from mixpanel_async import ConfigurationError
from mixpanel_async.cli.app import app
from mixpanel_async.cli.identity.download import (
    MAX_REQUESTS,
    DownloadError,
    ExportAccess,
    ExportDownload,
    day_ranges,
    export_access,
)
from mixpanel_async.emulator import Emulator

SECRET = "a-secret-that-must-not-be-shown"
ACCOUNT = ("robot", SECRET, "77")
ACCESS = ExportAccess(origin="https://data.mixpanel.com", user="robot", password=SECRET, project_id="77")
VISITOR = "3f2b8c1e-9d4a-4b7e-8c1d-2a5e6f7b8c9d"
LINE = b'{"event":"Viewed","properties":{"distinct_id":"user-1"}}\n'


def run(*arguments: object, **environment: str) -> tuple[int, str, str]:
    variables = {"MIXPANEL_SERVICE_ACCOUNT_USERNAME": "robot", "MIXPANEL_SERVICE_ACCOUNT_SECRET": SECRET, **environment}
    given = ["identity", "audit", "--id-merge", "original", "--from-api", *map(str, arguments)]
    result = CliRunner().invoke(app, given, env=variables)
    assert SECRET not in result.stdout + result.stderr
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    emulator = Emulator("original", service_account=ACCOUNT)
    now = datetime.now(timezone.utc)
    events = [
        {"event": "Viewed", "properties": {"distinct_id": VISITOR}},
        {"event": "$identify", "properties": {"$identified_id": "user-1", "$anon_id": VISITOR}},
        {"event": "$identify", "properties": {"$identified_id": "user-2", "$anon_id": VISITOR}},
    ]
    for number, event in enumerate(events):
        event["properties"]["time"] = int((now - timedelta(days=3 - number)).timestamp())  # type: ignore[index]
    with emulator.serve() as running:
        answer = httpx.post(f"{running.url}/import?project_id=77", json=events, auth=ACCOUNT[:2])
        assert answer.status_code == 200
        yield running.url


def test_export_is_fetched_and_kept(server: str, tmp_path: Path) -> None:
    today = datetime.now(timezone.utc).date()
    options = ["--from-date", today - timedelta(days=3), "--to-date", today, "--download-dir", tmp_path, "--json"]
    options += ["--api-host", server, "--project-id", "77"]
    status, output, errors = run(*options)
    assert status == 0, errors
    report = json.loads(output)
    assert (report["events"], report["persons"], report["findings"][0]["reason"]) == (
        3, 2, "errAnonDistinctIdAssignedAlready",
    )  # fmt: skip
    assert len(list(tmp_path.glob("export-*.ndjson.gz"))) == 4
    _, again, errors = run(*options)
    assert json.loads(again) == report
    lines = errors.splitlines()
    # Yesterday ends last at UTC-12.
    assert [line.endswith("is there already") for line in lines[:2]] == [True, True]
    assert lines[-1] == f"fetching {today} to {today}"


def test_refused_credentials_are_explained(server: str, tmp_path: Path) -> None:
    options = ["--from-date", "2024-01-01", "--to-date", "2024-01-02", "--download-dir", tmp_path]
    status, _, errors = run(*options, "--api-host", server, "--project-id", "78")
    assert status == 1
    assert "refused with HTTP 401: check the credentials and the project id" in errors
    assert list(tmp_path.glob("*.gz")) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--to-date", "2024-01-01"], "--from-api needs --from-date as YYYY-MM-DD"),
        (["--from-date", "2024-01-01", "--to-date", "soon"], "--to-date must be a day as YYYY-MM-DD, not 'soon'"),
        (["--from-date", "2024-01-02", "--to-date", "2024-01-01"], "--to-date 2024-01-01 is before --from-date"),
        (["--from-date", "2024-01-02", "--to-date", "2999-01-01"], "--to-date 2999-01-01 is in the future"),
        (["--from-date", "2024-01-02", "--to-date", "2024-01-02"], "needs its secret and the project id"),
        (["file.ndjson"], "give FILE or --from-api, not both"),
    ],
)
def test_invalid_options_are_explained(options: list[str], words: str) -> None:
    status, _, errors = run(*options)
    assert (status, words in errors) == (2, True), errors


@pytest.mark.parametrize("days", [1, 7, MAX_REQUESTS, MAX_REQUESTS + 1, 365, 1_830])
def test_days_are_divided_among_few_requests(days: int) -> None:
    first = date(2020, 1, 1)
    ranges = list(day_ranges(first, first + timedelta(days=days - 1)))
    covered = [start + timedelta(days=n) for start, end in ranges for n in range((end - start).days + 1)]
    assert covered == [first + timedelta(days=n) for n in range(days)]
    assert len(ranges) <= MAX_REQUESTS
    assert days > MAX_REQUESTS or len(ranges) == days


Report = Callable[[str], None] | None


class Served:
    """Download whose requests are answered by a function, and whose waits are recorded."""

    def __init__(
        self,
        directory: Path,
        *answers: Callable[[], httpx.Response],
        access: ExportAccess = ACCESS,
        report_wait: Report = None,
    ) -> None:
        self.waits: list[float] = []
        self.lines: list[str] = []
        self.queries: list[dict[str, str]] = []
        self._answers = list(answers)
        self._download = ExportDownload(
            access,
            directory,
            report=self.lines.append,
            report_wait=report_wait,
            sleep=self.waits.append,
            transport=httpx.MockTransport(self._answer),
        )

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.queries.append(dict(request.url.params))
        return self._answers.pop(0)()

    def run(self, days: int = 1) -> list[bytes]:
        paths = self._download.run(date(2024, 1, 1), date(2024, 1, days))
        return [gzip.decompress(path.read_bytes()) for path in paths]


def good() -> httpx.Response:
    return httpx.Response(200, content=LINE)


def broken() -> httpx.Response:
    def body() -> Iterator[bytes]:
        yield LINE[:20]
        raise httpx.ReadError("gone")

    return httpx.Response(200, content=body())


def status(code: int, **headers: str) -> Callable[[], httpx.Response]:
    return lambda: httpx.Response(code, headers=headers, text=f"no {SECRET}")


def test_requests_have_the_parameters_of_the_export(tmp_path: Path) -> None:
    served = Served(tmp_path, good, good)
    assert served.run(days=2) == [LINE, LINE]
    assert served.queries[1] == {
        "from_date": "2024-01-02", "to_date": "2024-01-02", "time_in_ms": "true", "project_id": "77",
    }  # fmt: skip
    assert served.waits == [0.34]


def test_interrupted_download_resumes(tmp_path: Path) -> None:
    def interrupted() -> httpx.Response:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Served(tmp_path, good, interrupted).run(days=3)
    served = Served(tmp_path, good, good)
    assert served.run(days=3) == [LINE, LINE, LINE]
    assert [query["from_date"] for query in served.queries] == ["2024-01-02", "2024-01-03"]


@pytest.mark.parametrize(
    "failure",
    [broken, status(503), lambda: httpx.Response(200, content=LINE + b"terminated early\n")],
    ids=["connection", "503", "terminated early"],
)
def test_temporary_failure_is_repeated(tmp_path: Path, failure: Callable[[], httpx.Response]) -> None:
    served = Served(tmp_path, failure, failure, good)
    assert served.run() == [LINE]
    assert served.waits == [2.0, 4.0]


def test_repeated_failure_ends_the_download(tmp_path: Path) -> None:
    served = Served(tmp_path, *[broken] * 6)
    with pytest.raises(DownloadError, match="6 attempts failed, the last with: ReadError"):
        served.run()
    assert list(tmp_path.glob("*.gz")) == []


def test_rate_limit_is_waited_for(tmp_path: Path) -> None:
    served = Served(tmp_path, status(429, **{"Retry-After": "90"}), status(429), good)
    assert served.run() == [LINE]
    assert served.waits == [90.0, 600.0]
    with pytest.raises(DownloadError, match="limited"):
        Served(tmp_path / "other", *[status(429)] * 8).run()


def test_wait_is_shown_without_the_requests(tmp_path: Path) -> None:
    lines: list[str] = []
    served = Served(tmp_path, status(429, **{"Retry-After": "7"}), good, report_wait=lines.append)
    assert served.run() == [LINE]
    assert lines == ["waiting 7 s before the next attempt"]
    assert len(served.lines) == 2


def test_refusal_does_not_show_the_secret(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"HTTP 400 \(no \*\*\*\)"):
        Served(tmp_path, status(400)).run()


def test_empty_days_are_files_too(tmp_path: Path) -> None:
    assert Served(tmp_path, lambda: httpx.Response(200)).run() == [b""]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "https://data.mixpanel.com"),
        ({"REGION": "EU"}, "https://data-eu.mixpanel.com"),
        ({"REGION": "in"}, "https://data-in.mixpanel.com"),
        ({"API_HOST": "data.example.com"}, "https://data.example.com"),
        ({"API_HOST": "http://localhost:8080/"}, "http://localhost:8080"),
    ],
)
def test_origin_follows_region_and_host(variables: dict[str, str], expected: str) -> None:
    given: dict[str, Any] = {f"MIXPANEL_{name}": value for name, value in variables.items()}
    access = export_access({"MIXPANEL_API_SECRET": SECRET, **given}, allow_http=False)
    assert (access.origin, access.user, access.password) == (expected, SECRET, "")


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({}, "needs a service account, or the secret .* MIXPANEL_API_SECRET"),
        ({"API_SECRET": "s", "REGION": "us2"}, "region must be us, eu or in"),
        ({"API_SECRET": "s", "API_HOST": "http://example.com"}, "must use https"),
        ({"API_SECRET": "s", "API_HOST": "https://user@example.com"}, "must be a host name"),
        ({"API_SECRET": "s", "API_HOST": "https://example.com/path"}, "must be a host name"),
        ({"API_SECRET": "s", "API_HOST": "http://exa mple:port"}, "no valid host name"),
    ],
)
def test_unusable_access_is_refused(variables: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        export_access({f"MIXPANEL_{name}": value for name, value in variables.items()}, allow_http=False)


def test_file_from_before_the_end_of_its_day_is_fetched_again(tmp_path: Path) -> None:
    assert Served(tmp_path, good, good).run(days=2) == [LINE, LINE]
    first, second = sorted(tmp_path.iterdir())
    for path, written in ((first, "2024-01-02T12:00:00+00:00"), (second, "2024-01-03T11:59:59+00:00")):
        seconds = datetime.fromisoformat(written).timestamp()
        os.utime(path, (seconds, seconds))
    served = Served(tmp_path, lambda: httpx.Response(200, content=LINE * 2))
    assert served.run(days=2) == [LINE, LINE * 2]


def test_files_of_another_project_are_not_taken(tmp_path: Path) -> None:
    Served(tmp_path, good).run()
    other = Served(tmp_path, lambda: httpx.Response(200, content=LINE * 2), access=replace(ACCESS, project_id="78"))
    assert other.run() == [LINE * 2]
    assert Served(tmp_path).run() == [LINE]
