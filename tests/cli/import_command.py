"""Helpers that run the command `mixpanel-async import` and read its checkpoint and rejects files."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
from forked_python import popen
from typer.testing import CliRunner

from mixpanel_async.cli.app import app

TOKEN = "a-token-that-must-not-be-shown"
# Background jobs of a shell inherit an ignored SIGINT, so the child restores the default handler.
RESTORE_SIGINT = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
MAIN = "from mixpanel_async.cli import main; main()"
RUN = [sys.executable, "-W", "error", "-c", f"{RESTORE_SIGINT}\n{MAIN}", "import"]
NOW = int(time.time()) - 86_400


class Result:
    """Exit status and output of a run. Checks that there is no traceback and no token in the output."""

    def __init__(self, status: int, output: str, errors: str) -> None:
        self.status = status
        self.output = output
        self.errors = errors
        assert "Traceback" not in errors, errors
        assert TOKEN not in output + errors

    def __repr__(self) -> str:
        return f"<{self.status}>\n{self.output}\n{self.errors}"


def event(number: int, /, **properties: Any) -> dict[str, Any]:
    """Return an event in Mixpanel's own form, without an insert id."""
    return {"event": "Sold", "properties": {"distinct_id": f"u{number % 50}", "time": NOW + number, **properties}}


def write(path: Path, records: Iterable[object]) -> Path:
    """Write a file with one record per line. Records of type bytes are written unchanged."""
    with path.open("wb") as file:
        for record in records:
            file.write(record if isinstance(record, bytes) else orjson.dumps(record))
            file.write(b"\n")
    return path


def feed(path: Path, content: bytes) -> None:
    """Make a named pipe, which can be read only once, and write its content when a command opens it."""

    def write_content() -> None:
        path.write_bytes(content)

    os.mkfifo(path)
    threading.Thread(target=write_content, daemon=True).start()


def run(*arguments: object, host: str = "", **environment: str) -> Result:
    """Run the command in this process."""
    given = [str(one) for one in arguments]
    if host:
        given += ["--token", TOKEN, "--api-host", host]
    result = CliRunner().invoke(app, ["import", "--quiet", *given], env=environment)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Result(result.exit_code, result.stdout, result.stderr)


def start(*arguments: object, host: str = "", stdin: int | io.BufferedReader = subprocess.DEVNULL) -> Any:
    """Start the command in a child process."""
    given = [str(one) for one in arguments]
    environment = {**os.environ, "MIXPANEL_TOKEN": TOKEN, "MIXPANEL_API_HOST": host}
    environment.pop("FORCE_COLOR", None)
    return popen(
        [*RUN, *given],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def finish(process: Any, timeout: float = 60) -> Result:
    """Wait for the end of a child process."""
    output, errors = process.communicate(timeout=timeout)
    return Result(process.returncode, output, errors)


def wait_until(condition: Callable[[], bool], process: Any = None, timeout: float = 60.0) -> None:
    """Wait for a condition that another process causes."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "timeout"
        assert process is None or process.poll() is None, finish(process)
        time.sleep(0.002)


def wait_for_message(process: Any, text: str) -> None:
    """Read lines from the standard error of the command up to one that contains a text."""
    seen: list[str] = []
    while text not in (line := process.stderr.readline()):
        assert line, f"no {text!r} in {seen}"
        seen.append(line)


def read_checkpoint(path: Path) -> Mapping[str, Any]:
    """Return the checkpoint of a file, or an empty one before the first commit."""
    try:
        found: dict[str, Any] = orjson.loads(path.with_name(path.name + ".import-state").read_bytes())
    except FileNotFoundError:
        return {"position": {"offset": 0, "line": 0}, "complete": False}
    return found


def read_rejects(path: Path) -> Sequence[dict[str, Any]]:
    """Return the entries of the rejects of a file. Checks that they are private and without the token."""
    rejects_path = path if path.suffix == ".rejects" else path.with_name(path.name + ".import-rejects")
    assert TOKEN.encode() not in rejects_path.read_bytes()
    assert rejects_path.stat().st_mode & 0o077 == 0
    return [orjson.loads(line) for line in rejects_path.read_bytes().splitlines()]


def sent_properties(event: dict[str, Any]) -> dict[str, Any]:
    """Return the properties of a stored event, without those that the client adds."""
    added = {"token", "mp_lib", "$lib_version", "$import"}
    return {key: value for key, value in event["properties"].items() if key not in added and not key.startswith("$mp_")}
