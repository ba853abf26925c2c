"""Terminal output of `mixpanel-async emulator`: hints, a line for each request, and readers that are slow or gone."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

import httpx
import pytest
from forked_python import popen
from rich.console import Console

from mixpanel_async.cli.emulator_output import RequestLines, entry_line, first_steps, printable, styler
from mixpanel_async.emulator import Emulator, RequestEntry

RUN: Final = [sys.executable, "-W", "error", "-c", "from mixpanel_async.cli import main; main()", "emulator"]
EVENT: Final = {"event": "Viewed", "properties": {"token": "t", "distinct_id": "u"}}
# Of Linux. A pipe of one page is full after a few lines.
SET_PIPE_SIZE: Final = 1031


def plain(_: str, text: str) -> str:
    return text


@contextmanager
def running(*arguments: str, stderr: int | IO[bytes], **variables: str) -> Iterator[tuple[Any, str]]:
    """Run the command. Yields the process and the address that it printed."""
    inherited = {key: value for key, value in os.environ.items() if key not in {"NO_COLOR", "FORCE_COLOR"}}
    with popen(
        [*RUN, *arguments], stdout=subprocess.PIPE, stderr=stderr, env={**inherited, "TERM": "xterm", **variables}
    ) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().decode().removesuffix("\n")
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
            assert process.stdout.read() == b""


def post(url: str, content: object, **options: Any) -> int:
    return httpx.post(url, json=content, trust_env=False, timeout=30, **options).status_code


def read_until(stream: IO[bytes], text: str) -> list[str]:
    lines = []
    for line in stream:
        lines.append(line.decode().removesuffix("\n"))
        if text in lines[-1]:
            return lines
    raise AssertionError(f"the output has ended without {text!r}: {lines}")


def entry(**changes: Any) -> RequestEntry:
    return RequestEntry(
        **{"number": 1, "received_at": 0.0, "method": "POST", "path": "/track", "status": 200, **changes}
    )


async def sent(emulator: Emulator, path: str, *contents: Any, **options: Any) -> None:
    transport = httpx.ASGITransport(app=emulator.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        for content in contents:
            await http.post(path, json=content, **options)


def texts(emulator: Emulator, lines: RequestLines, elapsed: float = 0.1) -> list[str]:
    """Return new lines without the time."""
    return [
        line[9:] if line[2] == ":" else line.strip()
        for line in lines.lines(emulator.request_log(after=lines.seen, across_resets=True), elapsed)
    ]


def test_each_request_has_a_line_on_standard_error() -> None:
    with running("--token", "project-token", stderr=subprocess.PIPE) as (process, url):
        post(f"{url}/track", [{"event": "Paid", "properties": {"token": "project-token"}}] * 3)
        post(f"{url}/track?api_key=key-in-url", [EVENT])
        post(f"{url}/import?strict=1", [EVENT], auth=("wrong-secret", ""))
        post(f"{url}/nothing?secret=in-query", [])
        post(f"{url}/_emulator/fail-next", {"status": 503})
        post(f"{url}/engage", [])
        httpx.get(url, trust_env=False)
        lines = read_until(process.stderr, "planned fault")
    hints = [line for line in lines if line[2:3] != ":"]
    assert f"The live page is {url}/" in hints[0]
    assert f"MIXPANEL_API_HOST={url}" in "\n".join(hints)
    assert "--quiet" in hints[-1]
    assert [line[9:] for line in lines[len(hints) :]] == [
        "200 POST /track          3 records",
        "200 POST /track          1 record, 1 not stored: silently dropped: the token belongs to another project",
        "401 POST /import         refused: invalid credentials",
        "404 POST /nothing        Mixpanel has no such endpoint, or the emulator does not know it",
        "503 POST /engage         planned fault",
    ]
    for secret in ("project-token", "key-in-url", "wrong-secret", "in-query", "Paid", "Viewed", '"t"'):
        assert secret not in "\n".join(lines)


def test_hints_come_only_at_the_first_start(tmp_path: Path) -> None:
    # The directory of an earlier run.
    with running("--data-dir", str(tmp_path), stderr=subprocess.PIPE) as (process, url):
        post(f"{url}/track", [EVENT])
        assert len(read_until(process.stderr, "1 record")) == 1


def test_hints_name_addresses_that_clients_accept(tmp_path: Path) -> None:
    options = ("--host", "0.0.0.0", "--allow-remote", "--tls", "--tls-dir", str(tmp_path), "--id-merge", "original")
    with popen([*RUN, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        port = process.stdout.readline().decode().strip().rpartition(":")[2]
        hints = "\n".join(read_until(process.stderr, "Ctrl-C"))
        process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=20)
        finally:
            process.kill()
    assert f"export MIXPANEL_API_HOST=http://127.0.0.1:{port} MIXPANEL_ID_MERGE=original MIXPANEL_TOKEN=any" in hints
    assert f"https://localhost:{port}" in hints
    assert "0.0.0.0" not in hints


def test_terminal_gets_colors() -> None:
    ours, theirs = os.openpty()
    with open(ours, "rb", buffering=0) as terminal, running(stderr=theirs) as (_, url):
        os.close(theirs)
        post(f"{url}/track", [EVENT])
        output = b""
        while b"1 record" not in output:
            output += terminal.read(1024)
    assert b"\x1b[32m200\x1b[0m" in output


@pytest.mark.parametrize(
    ("is_terminal", "variables", "has_colors"),
    [
        (True, {"TERM": "xterm"}, True),
        (True, {"TERM": "xterm", "NO_COLOR": "1"}, False),
        (True, {"TERM": "dumb"}, False),
        (False, {"TERM": "xterm"}, False),
    ],
)
def test_colors_honour_the_environment(
    is_terminal: bool, variables: dict[str, str], has_colors: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Rich reads these from the environment, some of them only from there.
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    style = styler(Console(force_terminal=is_terminal))
    assert (style("good", "200") != "200") == has_colors


def test_emulator_goes_on_when_the_reader_of_its_output_has_gone() -> None:
    ours, theirs = os.pipe()
    with running(stderr=theirs) as (_, url):
        os.close(theirs)
        with open(ours, "rb") as reader:
            read_until(reader, "Ctrl-C")
        assert [post(f"{url}/track", [EVENT]) for _ in range(20)] == [200] * 20


def test_emulator_goes_on_and_stops_when_nothing_reads_its_output() -> None:
    ours, theirs = os.pipe()
    fcntl.fcntl(theirs, SET_PIPE_SIZE, 4096)
    with running(stderr=theirs) as (_, url), httpx.Client(trust_env=False, timeout=30) as http:
        os.close(theirs)
        # The lines of 100 requests are larger than the pipe.
        for _ in range(200):
            assert http.post(f"{url}/track", json=[EVENT]).text == "1"
        assert http.get(f"{url}/_emulator/stats").json()["requests"] == 200
    os.close(ours)


@pytest.mark.anyio
async def test_lines_say_why_records_have_no_effect() -> None:
    emulator = Emulator("original")
    lines = RequestLines(plain)
    identify = {"event": "$identify", "properties": {"token": "t", "$identified_id": "u", "$anon_id": "v"}}
    await sent(emulator, "/track", [identify], [{"event": ""}, EVENT])
    await sent(emulator, "/import?strict=1", [EVENT], auth=("t", ""))
    assert texts(emulator, lines) == [
        "200 POST /track          1 record: $identify joined no ids: errAnonDistinctIdNonGUIDForm",
        "200 POST /track          2 records, 1 not stored: 'event' must not be missing or blank",
        "400 POST /import         1 record, 1 not stored: 'properties.time' is invalid: must not be missing",
    ]


@pytest.mark.anyio
async def test_requests_above_the_rate_are_summarised() -> None:
    emulator = Emulator()
    lines = RequestLines(plain)
    await sent(emulator, "/track", *[[EVENT]] * 300, [{"event": ""}])
    assert len(texts(emulator, lines, elapsed=0.0)) == 100
    assert texts(emulator, lines, elapsed=0.0) == [
        "... 201 more requests, 201 records, 1 not stored: 'event' must not be missing or blank"
    ]
    assert texts(emulator, lines, elapsed=0.0) == []
    await sent(emulator, "/track", *[[EVENT]] * 20)
    # A tenth of a second allows five lines.
    assert len(texts(emulator, lines)) == 5
    assert list(lines.rest()) == ["     ... 15 more requests, 15 records"]
    assert list(lines.rest()) == []


@pytest.mark.anyio
async def test_resets_hide_no_lines() -> None:
    emulator = Emulator()
    lines = RequestLines(plain)
    await sent(emulator, "/track", [EVENT], [EVENT])
    assert len(texts(emulator, lines)) == 2
    # As a suite of tests does, faster than lines are written.
    for _ in range(3):
        await sent(emulator, "/track", [EVENT])
        await sent(emulator, "/engage", [])
        emulator.reset()
    assert texts(emulator, lines) == ["200 POST /track          1 record", "200 POST /engage"] * 3
    assert texts(emulator, lines) == []
    lines = RequestLines(plain)
    await sent(emulator, "/track", *[[EVENT]] * 150)
    emulator.reset()
    assert len(texts(emulator, lines, elapsed=0.0)) == 100
    assert list(lines.rest()) == ["     ... 58 more requests, 58 records"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("method", "path", "options", "line"),
    [
        ("GET", "/api/2.0/export", {}, "400 GET  /api/2.0/export  from_date must be a date as YYYY-MM-DD"),
        (
            "GET",
            "/api/2.0/export?from_date=2026-01-01&to_date=2026-01-02&where=properties[%22a%22]=%22ada%22",
            {},
            "400 GET  /api/2.0/export  where is invalid at character 16: unexpected '='",
        ),
        (
            "GET",
            "/api/2.0/export",
            {"auth": ("user", "key")},
            "401 GET  /api/2.0/export  refused: the service account needs project_id in the URL",
        ),
        (
            "GET",
            "/api/2.0/export?project_id=8",
            {"auth": ("user", "key")},
            "401 GET  /api/2.0/export  refused: project_id is another project",
        ),
        (
            "POST",
            "/api/query/engage",
            {"auth": ("ada", "")},
            "401 POST /api/query/engage  refused: invalid credentials",
        ),
        (
            "POST",
            "/api/query/engage",
            {"auth": ("project", "")},
            (
                "401 POST /api/query/engage  refused: the project token cannot read data; "
                "use the secret or a service account"
            ),
        ),
        (
            "PUT",
            "/lookup-tables/a",
            {"content": b"id,name\n1"},
            "400 PUT  /lookup-tables/a  invalid row: wrong number of fields",
        ),
        ("PUT", "/lookup-tables/a", {"auth": ("ada", "")}, "401 PUT  /lookup-tables/a  refused: invalid credentials"),
        (
            "POST",
            "/import",
            {"auth": ("user", "key"), "json": [EVENT]},
            "401 POST /import         refused: the service account needs project_id in the URL",
        ),
        (
            "POST",
            "/import",
            {"auth": None, "json": [EVENT]},
            "401 POST /import         refused: no credentials in the header Authorization (HTTP Basic)",
        ),
        (
            "POST",
            "/import?api_key=ada",
            {"auth": None, "json": [EVENT]},
            "401 POST /import         refused: invalid api_key",
        ),
        (
            "GET",
            "/flags/definitions",
            {"auth": ("user", "key")},
            "401 GET  /flags/definitions  refused: the service account needs project_id in the URL",
        ),
        ("GET", "/flags", {}, "400 GET  /flags          context must be a JSON object"),
        ("POST", "/api/2.0/jql", {}, "501 POST /api/2.0/jql    not emulated"),
        ("DELETE", "/track", {}, "405 DELETE /track          method not allowed; use GET or POST"),
        ("OPTIONS", "/track", {"headers": {"origin": "http://localhost:5173"}}, None),
        (
            "OPTIONS",
            "/flags",
            {"headers": {"origin": "https://ada.example"}},
            (
                "200 OPTIONS /flags          the page's origin is not allowed; "
                "add it with --allow-origin, or allow_origins in Python"
            ),
        ),
    ],
)
async def test_lines_say_why_a_request_failed(
    method: str, path: str, options: dict[str, Any], line: str | None
) -> None:
    emulator = Emulator(token="project", secret="key", service_account=("user", "key", "7"))
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=emulator.app), base_url="http://127.0.0.1", auth=("key", "")
    ) as http:
        await http.request(method, path, **options)
    assert texts(emulator, RequestLines(plain)) == ([] if line is None else [line])


def test_lines_say_which_option_allows_a_host() -> None:
    with running(stderr=subprocess.PIPE) as (process, url):
        post(f"{url}/track", [EVENT], headers={"Host": "mixpanel.test"})
        assert "--allow-host" in read_until(process.stderr, "403")[-1]


@pytest.mark.parametrize(
    "text", ["\x1b[2J\x07\r\n", "\x9b31m", "\u202eabc\u2066", "a\x00b\x7f\u2028", "\ud800", "\u200b"]
)
def test_no_request_can_control_the_terminal(text: str) -> None:
    for line in (entry_line(entry(path=f"/{text}"), plain), entry_line(entry(reason=text, method="GET"), plain)):
        assert line.isprintable()
        assert line.encode()


def test_long_text_is_cut() -> None:
    assert len(entry_line(entry(path="/" + "x" * 5_000, reason="y" * 5_000), plain)) < 300
    assert printable("abcdef", 4) == "abc…"


@pytest.mark.parametrize(
    ("changes", "result"),
    [
        ({"status": None, "fault": "drop"}, "--- POST /track          planned fault drop"),
        ({"status": None}, "--- POST /track          no response"),
        ({"fault": "slow", "records": 2}, "200 POST /track          2 records, planned fault slow"),
        ({"path": "/flags", "method": "GET"}, "200 GET  /flags"),
        ({"status": None, "method": "", "path": "", "reason": "why"}, "---                      why"),
    ],
)
def test_result_names_the_fault(changes: dict[str, Any], result: str) -> None:
    assert entry_line(entry(**changes), plain)[9:] == result


def test_hints_do_not_contain_the_token() -> None:
    hints: Sequence[str] = first_steps(
        "http://127.0.0.1:8080", https_url=None, id_merge="original", has_token=True, style=plain
    ).splitlines()
    # The shell must not take it for a redirection.
    assert "MIXPANEL_ID_MERGE=original MIXPANEL_TOKEN='<the token of --token>'" in hints[1]
    assert "https" not in "".join(hints)
    assert all(line.isprintable() for line in hints)
