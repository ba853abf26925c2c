"""Plain views of a FastAPI app under uvicorn, with a client that an integration runs, or nothing."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import pytest
from host_process import HERE, HostProcess, host_process

from mixpanel_async.emulator import Emulator

pytestmark = pytest.mark.sample(every=2)

NUMBERS: Final = [*range(10)]
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def visited(emulator: Emulator, run: str) -> Iterator[HostProcess]:
    """Start the app and request all pages."""
    arguments = ("-m", "uvicorn", "--app-dir", str(HERE), "--port", "0", "fastapi_program:app")
    with emulator.serve() as mixpanel, host_process(*arguments, MIXPANEL=mixpanel.url, RUN=run) as app:
        app.listen()
        with app.browser() as browser:
            assert [browser.get(f"/plain/{number}").status_code for number in NUMBERS] == [200] * len(NUMBERS)
        yield app


def numbers_of(emulator: Emulator) -> list[int]:
    return sorted(event["properties"]["number"] for event in emulator.events("Event"))


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("run", ["lifespan", "wrap"])
def test_lifespan_runs_the_client(run: str, number: signal.Signals) -> None:
    emulator = Emulator()
    with visited(emulator, run) as app:
        assert app.stop(number) in {0, -number}
        assert "mixpanel" not in app.stderr
    assert numbers_of(emulator) == NUMBERS


def test_client_that_nothing_runs_is_reported_and_delivers_at_exit() -> None:
    """uvicorn returns after SIGINT, so that the interpreter exits."""
    emulator = Emulator()
    with visited(emulator, "nothing") as app:
        warning = app.wait_for(re.compile(r"(\d+) records are waiting and no event loop runs the client: .*lifespan.*"))
        assert warning[1] == str(len(NUMBERS))
        assert app.stop(signal.SIGINT) == 0
    assert numbers_of(emulator) == NUMBERS


def test_uvicorn_kills_itself_at_sigterm() -> None:
    """The reason why the warning names the lifespan: nothing runs after it, not even the functions of `atexit`."""
    emulator = Emulator()
    with visited(emulator, "nothing") as app:
        assert app.stop(signal.SIGTERM) == -signal.SIGTERM
    assert numbers_of(emulator) == []
