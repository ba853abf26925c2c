"""Commands of a Typer program, in real processes: each way to end, with Mixpanel reachable or not."""

from __future__ import annotations

import re
import signal
import time
from typing import Final

import pytest
from host_process import HERE, HostProcess, host_process

from mixpanel_async.emulator import Emulator

pytestmark = pytest.mark.sample(every=3)

# How a command ends -> exit status without tracking.
STATUSES: Final = {"success": 0, "exception": 1, "exit": 3, "interrupt": 130}
COMMANDS: Final = ("plain", "async", "no-loop")
# Seconds: `shutdown_timeout` and `loop_end_timeout` of the program are 1, two more for the last steps.
LONGEST_END: Final = 3.5


def run(command: str, ending: str, mixpanel: str) -> tuple[int, str, str, float]:
    """Return exit status, stdout, stderr and the seconds that the end took."""
    with host_process(str(HERE / "typer_program.py"), command, ending, MIXPANEL=mixpanel) as host:
        host.wait_for(re.compile("ready"))
        began = time.monotonic()
        status = host.stop(signal.SIGINT) if ending == "interrupt" else host.process.wait(20.0)
        return status, host.stdout, host.stderr, time.monotonic() - began


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("ending", STATUSES)
def test_command_delivers_and_keeps_status_and_output(command: str, ending: str) -> None:
    emulator = Emulator()
    with emulator.serve() as server:
        status, output, errors, _ = run(command, ending, server.url)
    assert sorted(event["properties"]["number"] for event in emulator.events("Event")) == [*range(5)]
    assert (status, output) == (STATUSES[ending], "ready\n")
    if ending == "exception":
        assert errors.splitlines()[-1] == "ValueError: the command failed"
    else:
        assert errors.strip() in {"", "Aborted."}


@pytest.mark.parametrize("ending", ["exception", "interrupt"])
@pytest.mark.parametrize("command", COMMANDS)
def test_command_ends_in_time_while_offline(command: str, ending: str) -> None:
    status, output, errors, seconds = run(command, ending, "http://127.0.0.1:9")
    assert (status, output) == (STATUSES[ending], "ready\n")
    assert seconds < LONGEST_END
    assert re.search(r"\b5 records", errors), errors


@pytest.mark.parametrize("ending", STATUSES)
def test_statuses_of_the_program_without_tracking(ending: str) -> None:
    assert run("plain", ending, "")[:2] == (STATUSES[ending], "ready\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_second_interrupt_ends_the_wait(command: str) -> None:
    emulator = Emulator()
    emulator.latency = 30.0
    with emulator.serve() as server:
        program = str(HERE / "typer_program.py")
        with host_process(program, command, "interrupt", MIXPANEL=server.url) as host:
            host.wait_for(re.compile("ready"))
            interrupt_until_end(host)
            assert host.process.returncode != 0
            assert host.stdout == "ready\n"
        emulator.latency = 0.0


def interrupt_until_end(host: HostProcess) -> None:
    began = time.monotonic()
    while host.process.poll() is None:
        host.process.send_signal(signal.SIGINT)
        assert time.monotonic() - began < LONGEST_END
        time.sleep(0.1)
