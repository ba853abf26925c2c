"""Help of every command in a terminal of 80 columns, completion, and reports of bad input."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, Final

import pytest
import typer.main
from typer.testing import CliRunner

from mixpanel_async.cli.app import app
from mixpanel_async.cli.examples import EXAMPLES

RUN: Final = "from mixpanel_async.cli import main; main()"


def walk(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield the program, its groups and its commands, by the words after the program's name."""
    yield " ".join(words), command
    for name, child in getattr(command, "commands", {}).items():
        yield from walk(child, (*words, name))


COMMANDS: Final = dict(walk(typer.main.get_command(app)))
LEAVES: Final = [path for path, command in COMMANDS.items() if not getattr(command, "commands", {})]


def help_of(path: str) -> str:
    result = CliRunner().invoke(app, [*path.split(), "--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"})
    assert result.exit_code == 0
    return result.stdout


@pytest.mark.parametrize("path", COMMANDS)
def test_help_fits_80_columns_and_shortens_nothing(path: str) -> None:
    text = help_of(path)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    # Click shortens descriptions of commands with three dots, and breaks long words at their hyphens.
    assert not [line for line in text.splitlines() if line.endswith("...") and not line.startswith("Usage:")]
    assert not re.search(r"(--[\w-]*-|MIXPANEL\w*_)$", text, re.MULTILINE)
    for parameter in COMMANDS[path].params:
        names = (*parameter.opts, *parameter.secondary_opts) if parameter.param_type_name == "option" else ()
        assert all(re.search(rf"(?<![\w-]){name}(?![\w-])", text) for name in names)
        assert (parameter.envvar or "") in text
        assert getattr(parameter, "help", None)


@pytest.mark.parametrize("path", COMMANDS)
def test_help_ends_with_examples_that_can_be_parsed(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIXPANEL_ID_MERGE", "original")
    monkeypatch.setenv("MIXPANEL_OUTBOX", "redis://queue:6379/0")
    shown = help_of(path).partition("  Examples:\n")[2].replace("\\\n", " ")
    lines = [" ".join(line.split()) for line in shown.strip().splitlines()]
    assert lines == [" ".join(line.split()) for line in EXAMPLES[path]]
    for line in lines:
        words = shlex.split(line)[1:]
        found: Any = COMMANDS[""]
        while words and words[0] in getattr(found, "commands", {}):
            found, words = found.commands[words[0]], words[1:]
        # Parses the values too, and does not run the command.
        found.make_context("mixpanel-async", words)


def test_examples_have_no_other_command() -> None:
    assert set(EXAMPLES) == set(COMMANDS)


@pytest.mark.parametrize("arguments", [["--unknown"], ["one", "two", "three"], ["\0", "--unknown=\n"]])
@pytest.mark.parametrize("path", LEAVES)
def test_bad_input_prints_no_traceback(path: str, arguments: list[str]) -> None:
    result = CliRunner().invoke(app, [*path.split(), *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    assert result.exit_code in {1, 2}


def complete(line: str, shell: str = "bash") -> list[str]:
    """Return what the command offers to a shell after this line."""
    words = line.split(" ")
    variables = {"_MIXPANEL_ASYNC_COMPLETE": f"complete_{shell}", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", RUN],
        capture_output=True,
        text=True,
        timeout=25,
        env={**os.environ, **variables},
    )
    assert result.stderr == ""
    return result.stdout.split()


def test_shell_completes_commands_and_options() -> None:
    assert complete("mixpanel-async de") == ["demo"]
    assert "--service-account-secret" in complete("mixpanel-async import --service")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_calls_the_command(shell: str) -> None:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", RUN, "--show-completion", shell],
        capture_output=True,
        text=True,
        timeout=25,
        env={**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
    )
    assert result.returncode == 0, result.stderr
    assert "_MIXPANEL_ASYNC_COMPLETE" in result.stdout
    assert "mixpanel-async" in result.stdout
