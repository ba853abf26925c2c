"""The command `mixpanel-async import`, run as a user runs it, and what it left."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
from typer.testing import CliRunner

from mixpanel_async.cli.app import app

TOKEN = "a-token-that-nobody-may-show"
# A shell that runs the tests in the background has them ignore SIGINT, and children inherit that.
SIGNALS = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
MAIN = "from mixpanel_async.cli import main; main()"
RUN = [sys.executable, "-W", "error", "-c", f"{SIGNALS}\n{MAIN}", "import"]
NOW = int(time.time()) - 86_400


class Result:
    """How a run ended."""

    def __init__(self, status: int, output: str, errors: str) -> None:
        self.status = status
        self.output = output
        self.errors = errors
        assert "Traceback" not in errors, errors
        assert TOKEN not in output + errors

    def __repr__(self) -> str:
        return f"<{self.status}>\n{self.output}\n{self.errors}"


def event(number: int, /, **properties: Any) -> dict[str, Any]:
    """An event in Mixpanel's own form, without an insert id."""
    return {"event": "Sold", "properties": {"distinct_id": f"u{number % 50}", "time": NOW + number, **properties}}


def write(path: Path, records: Iterable[object]) -> Path:
    """A file of one record a line; what is bytes stands as it is."""
    with path.open("wb") as file:
        for record in records:
            file.write(record if isinstance(record, bytes) else orjson.dumps(record))
            file.write(b"\n")
    return path


def run(*arguments: object, host: str = "", **environment: str) -> Result:
    """The command in this process, which ends without a signal."""
    given = [str(one) for one in arguments]
    if host:
        given += ["--token", TOKEN, "--api-host", host]
    result = CliRunner().invoke(app, ["import", "--quiet", *given], env=environment)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Result(result.exit_code, result.stdout, result.stderr)


def started(*arguments: object, host: str = "", stdin: int | io.BufferedReader = subprocess.DEVNULL) -> Any:
    """The command in a process of its own."""
    given = [str(one) for one in arguments]
    environment = {**os.environ, "MIXPANEL_TOKEN": TOKEN, "MIXPANEL_API_HOST": host}
    environment.pop("FORCE_COLOR", None)
    return subprocess.Popen(
        [*RUN, *given],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def ended(process: Any, timeout: float = 60) -> Result:
    output, errors = process.communicate(timeout=timeout)
    return Result(process.returncode, output, errors)


def wait_for_message(process: Any, words: str) -> None:
    """Read lines from the standard error of the command up to one with these words."""
    seen: list[str] = []
    while words not in (line := process.stderr.readline()):
        assert line, f"no {words!r} in {seen}"
        seen.append(line)


def until(condition: Callable[[], bool], process: Any = None, timeout: float = 60.0) -> None:
    """Wait for something that another process does."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "it never happened"
        assert process is None or process.poll() is None, ended(process)
        time.sleep(0.002)


def state(path: Path) -> Mapping[str, Any]:
    """The checkpoint of a file; an empty one if there is none yet."""
    try:
        found: dict[str, Any] = orjson.loads(path.with_name(path.name + ".import-state").read_bytes())
    except FileNotFoundError:
        return {"position": {"offset": 0, "line": 0}, "complete": False}
    return found


def rejects(path: Path) -> Sequence[dict[str, Any]]:
    """What a file's rejects say."""
    beside = path if path.suffix == ".rejects" else path.with_name(path.name + ".import-rejects")
    assert TOKEN.encode() not in beside.read_bytes()
    assert beside.stat().st_mode & 0o077 == 0
    return [orjson.loads(line) for line in beside.read_bytes().splitlines()]
