"""Command `mixpanel-async demo`: narration, expectations and exit status."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from forked_python import popen
from forked_python import run as run_forked
from rich.console import Console
from typer.testing import CliRunner

from mixpanel_async import IdMerge, __version__
from mixpanel_async.cli.app import app
from mixpanel_async.cli.demo.command import run_demo
from mixpanel_async.emulator import Emulator

RUN = "import sys; from mixpanel_async.cli import main; main()"


def run_command(*arguments: str, hidden: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run the console command in a child process, with some modules hidden from import."""
    run = subprocess.run if hidden else run_forked
    hide = "".join(f"sys.modules[{name!r}] = None; " for name in hidden)
    return run(
        [sys.executable, "-W", "error", "-c", f"import sys; {hide}{RUN}", *arguments],
        capture_output=True,
        text=True,
        timeout=25,
        env={key: value for key, value in os.environ.items() if key not in {"COLUMNS", "FORCE_COLOR"}},
    )


def run_captured(emulator: Emulator, *, width: int = 80, events: int = 50) -> tuple[bool, str]:
    """Run the demo in this process. Return whether all expectations hold, and the output."""
    console = Console(file=io.StringIO(), width=width, highlight=False)
    with console.capture() as capture:
        all_hold = run_demo(emulator, console, events=events)
    return all_hold, capture.get()


def test_demo_succeeds_and_prints_its_steps() -> None:
    result = run_command("demo")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    assert "FAILED" not in result.stdout
    for sentence in (
        "laptop and account are one person",
        "all four ids are one person",
        "the two profiles are merged into one",
        "a worker tracked 20,000 events",
        "events per second",
        "HTTP 503",
        "19 of 19 expectations hold",
    ):
        assert sentence in result.stdout


def test_demo_ends_with_next_steps_that_exist() -> None:
    steps = run_captured(Emulator(id_merge=IdMerge.ORIGINAL))[1].partition("Next steps\n")[2]
    root = Path(__file__).parents[2]
    for step in (line.split("  ")[1].strip() for line in steps.splitlines()):
        if step.startswith("mixpanel-async "):
            assert CliRunner().invoke(app, [*step.split()[1:], "--help"]).exit_code == 0
        else:
            assert (root / step).is_file()
    assert len(steps.splitlines()) >= 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_served_demo_keeps_its_data_until_a_signal(number: signal.Signals) -> None:
    command = [sys.executable, "-W", "error", "-c", RUN, "demo", "--events", "50", "--serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = next(found.group() for line in process.stdout if (found := re.search(r"http://\S+(?= until)", line)))
        events = httpx.get(f"{address}/_emulator/events", trust_env=False).json()
        assert len(events) > 50
        assert "<html" in httpx.get(address, trust_env=False).text
        process.send_signal(number)
        _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (0, "")


@pytest.mark.parametrize("arguments", [("--serve", "--redis", "redis://127.0.0.1:1"), ("--port", "70000")])
def test_options_that_cannot_be_used_are_reported(arguments: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, ["demo", *arguments])
    assert result.exit_code == 2
    assert arguments[0] in result.output


def test_port_in_use_is_reported_in_one_line() -> None:
    with Emulator().serve() as server:
        result = run_command("demo", "--port", server.url.rpartition(":")[2])
    assert result.returncode == 2
    assert "cannot listen on port" in result.stderr
    assert result.stderr.count("\n") == 1


def test_output_is_plain_text_within_80_columns_without_a_terminal() -> None:
    all_hold, text = run_captured(Emulator(id_merge=IdMerge.ORIGINAL))
    assert all_hold
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_demo_runs_on_an_ascii_terminal() -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", RUN, "demo", "--events", "50"],
        capture_output=True,
        env=environment,
        timeout=25,
    )
    assert result.returncode == 0, result.stderr.decode()
    assert result.stdout.isascii()


def test_failed_expectation_is_printed_with_expected_and_actual_values() -> None:
    all_hold, text = run_captured(Emulator(id_merge=IdMerge.ORIGINAL, cluster_limit=3))
    assert not all_hold
    assert "FAILED all four ids are one person" in text
    failure = text.rpartition("FAILED all four ids are one person")[2]
    assert "expected:" in failure
    assert "maya@work.example" in failure
    assert "actual:" in failure


def test_failed_expectation_sets_exit_status_1() -> None:
    script = (
        "import typer; import mixpanel_async.emulator as emulator; from mixpanel_async.cli.app import app\n"
        "real = emulator.Emulator\n"
        "emulator.Emulator = lambda **options: real(**options, cluster_limit=2)\n"
        "app()"
    )
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, "demo", "--events", "50"],
        capture_output=True,
        text=True,
        timeout=25,
    )
    assert result.returncode == 1, result.stderr
    assert "FAILED" in result.stdout
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "hidden", "extra"),
    [
        (["demo"], ("typer",), "demo"),
        (["demo"], ("rich",), "demo"),
        (["--help"], ("typer", "rich"), "cli"),
        (["demo"], ("starlette",), "demo"),
        (["demo"], ("uvicorn",), "demo"),
    ],
)
def test_missing_extra_is_reported_in_one_line(arguments: list[str], hidden: tuple[str, ...], extra: str) -> None:
    result = run_command(*arguments, hidden=hidden)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert f'pip install ".[{extra}]"' in result.stderr
    assert all(name in result.stderr for name in hidden)


def test_importing_the_cli_package_imports_no_extra() -> None:
    # rich is left out of the check: httpx imports it where it is installed.
    script = "import sys, mixpanel_async.cli; print({'typer', 'starlette', 'uvicorn'} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=25, check=True
    )
    assert result.stdout.strip() == "set()"


def test_control_c_ends_the_demo_without_a_traceback() -> None:
    # Background jobs of a shell inherit an ignored SIGINT, so the child restores the default handler.
    restore_handler = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    with popen(
        [sys.executable, "-W", "error", "-c", f"{restore_handler}; {RUN}", "demo", "--events", "200000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdout is not None
        assert "demo" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=25)
    assert process.returncode == 130, output + errors
    assert "Interrupted." in output
    assert "Traceback" not in errors


def test_version_option_prints_the_version() -> None:
    result = run_command("--version")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"mixpanel-async {__version__}\n", "")


@pytest.mark.skipif(sys.platform == "win32", reason="closed pipes raise other errors there")
@pytest.mark.parametrize("command", [["demo", "--events", "50"], ["--help"], ["emulator", "--help"]])
def test_closed_pipe_ends_a_command_quietly(command: list[str]) -> None:
    with popen(
        [sys.executable, "-W", "error", "-c", RUN, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for _ in range(5):
            process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=25) in {0, 1}
