"""The demo tells its story, checks every sentence of it, and says so by its exit status."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys

import pytest
from rich.console import Console

from mixpanel_async import IdMerge, __version__
from mixpanel_async.cli.demo.command import perform
from mixpanel_async.emulator import Emulator

RUN = "import sys; from mixpanel_async.cli import main; main()"


def command(*arguments: str, hidden: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """The console command in a child process, with some modules not to be found."""
    hide = "".join(f"sys.modules[{name!r}] = None; " for name in hidden)
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", f"import sys; {hide}{RUN}", *arguments],
        capture_output=True,
        text=True,
        timeout=25,
        env={key: value for key, value in os.environ.items() if key not in {"COLUMNS", "FORCE_COLOR"}},
    )


def told(emulator: Emulator, *, width: int = 80, events: int = 50) -> tuple[bool, str]:
    """Whether all claims held, and everything that was shown."""
    console = Console(file=io.StringIO(), width=width, highlight=False)
    with console.capture() as capture:
        kept = perform(emulator, console, events=events)
    return kept, capture.get()


def test_the_command_tells_its_story_and_ends_with_success() -> None:
    result = command("demo")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    assert "FAILED" not in result.stdout
    for sentence in (
        "laptop and account are one person",
        "all four ids are one person",
        "her two profiles are one",
        "a worker tracked 20,000 events",
        "events per second",
        "HTTP 503",
        "expectations hold",
    ):
        assert sentence in result.stdout


def test_it_is_plain_text_within_80_columns_when_it_is_not_shown_on_a_terminal() -> None:
    kept, text = told(Emulator(id_merge=IdMerge.ORIGINAL))
    assert kept
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_an_ascii_terminal_can_show_it() -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", RUN, "demo", "--events", "50"],
        capture_output=True,
        env=environment,
        timeout=25,
    )
    assert result.returncode == 0, result.stderr.decode()
    assert result.stdout.isascii()


def test_a_claim_that_does_not_hold_is_named_with_what_was_expected_and_found() -> None:
    kept, text = told(Emulator(id_merge=IdMerge.ORIGINAL, cluster_limit=3))
    assert not kept
    assert "FAILED all four ids are one person" in text
    failure = text.rpartition("FAILED all four ids are one person")[2]
    assert "expected:" in failure
    assert "maya@work.example" in failure
    assert "found:" in failure


def test_a_story_that_did_not_come_out_as_told_ends_with_a_non_zero_status() -> None:
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
def test_a_missing_extra_is_named_in_one_line(arguments: list[str], hidden: tuple[str, ...], extra: str) -> None:
    result = command(*arguments, hidden=hidden)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert f'pip install "mixpanel-async[{extra}]"' in result.stderr
    assert all(name in result.stderr for name in hidden)


def test_importing_the_command_imports_no_extra() -> None:
    # rich is not asked for: httpx imports it by itself where it is installed.
    script = "import sys, mixpanel_async.cli; print({'typer', 'starlette', 'uvicorn'} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=25, check=True
    )
    assert result.stdout.strip() == "set()"


def test_control_c_ends_it_without_a_traceback() -> None:
    # A shell has what it starts in the background ignore Ctrl-C, and so may whoever runs this.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", f"{heed}; {RUN}", "demo", "--events", "200000"],
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


def test_the_command_tells_its_version() -> None:
    done = command("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"mixpanel-async {__version__}\n", "")
