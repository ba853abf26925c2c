"""Helpers that run the commands `mixpanel-async identity plan`, `apply` and `verify`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson
from emulator_export import exported_lines
from forked_python import ForkedPython, popen
from import_command import MAIN, RESTORE_SIGINT, TOKEN, Result
from typer.testing import CliRunner

from mixpanel_async.cli.app import app
from mixpanel_async.emulator import Emulator

RUN = [sys.executable, "-W", "error", "-c", f"{RESTORE_SIGINT}\n{MAIN}", "identity"]


def anonymous(number: int) -> str:
    """Return an id that `identify` accepts as anonymous."""
    return f"0b1fba6c-16d3-4e3f-9a4e-{number:012x}"


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> Path:
    path.write_bytes(b"".join(orjson.dumps(one) + b"\n" for one in records))
    return path


def write_export(emulator: Emulator, path: Path) -> Path:
    """Write the raw export of an emulator."""
    path.write_bytes(exported_lines(emulator))
    return path


def run(*arguments: object, host: str = "", **environment: str | None) -> Result:
    """Run a command of the group in this process, which has no terminal."""
    given = [str(one) for one in arguments]
    if host:
        given += ["--token", TOKEN, "--api-host", host]
    environment = {"MIXPANEL_ID_MERGE": None, "MIXPANEL_API_SECRET": "any", **environment}
    result = CliRunner().invoke(app, ["identity", *given], env=environment)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Result(result.exit_code, result.stdout, result.stderr)


def start(*arguments: object, host: str) -> ForkedPython:
    """Start a command of the group in a child process."""
    environment = {**os.environ, "MIXPANEL_TOKEN": TOKEN, "MIXPANEL_API_HOST": host}
    environment.pop("FORCE_COLOR", None)
    return popen(
        [*RUN, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


class PlanText:
    """Lines of a plan, by what they say."""

    def __init__(self, path: Path) -> None:
        lines = path.read_text().splitlines()
        self.calls = [_call(line.split(" ", 1)[1]) for line in lines if line.startswith("send ")]
        self.left_out = [
            (line.split(" ", 2)[1], _call(line.split(" ", 2)[2]), line.partition(" # ")[2].split(":")[0])
            for line in lines
            if line.startswith("skip ")
        ]
        """Word for the reason, the call, and Mixpanel's code or the beginning of the explanation."""
        self.persons = [frozenset(_strings(line)) for line in lines if line.startswith("person ")]
        self.findings = [line for line in lines if line.startswith(("conflict ", "left-behind "))]


def _call(text: str) -> tuple[str, str, str]:
    kind, rest = text.split(" ", 1)
    first, second, *_ = _strings(rest)
    return kind, first, second


def _strings(text: str) -> list[str]:
    """Return the JSON strings in a line."""
    found, at, decoder = [], text.find('"'), json.JSONDecoder()
    while at != -1:
        value, end = decoder.raw_decode(text, at)
        found.append(value)
        at = text.find('"', end)
    return found


def journal_lines(plan: Path) -> list[dict[str, Any]]:
    """Return the complete lines of the journal of a plan, without the first."""
    data = plan.with_name(plan.name + ".journal").read_bytes()
    return [orjson.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()[1:]]


def states(plan: Path) -> dict[int, str]:
    """Return the latest state of each call in the journal."""
    return {line["call"]: line["state"] for line in journal_lines(plan)}
