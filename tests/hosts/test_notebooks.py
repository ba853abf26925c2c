"""Clients in Jupyter notebooks, run by real kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from jupyter_core.utils import run_sync
from nbclient import NotebookClient
from nbformat import v4 as untyped_v4

from mixpanel_async.emulator import Emulator

pytestmark = [
    pytest.mark.skipif("sys.platform == 'win32'", reason="a kernel needs another event loop on Windows"),
    # A kernel takes long to start on a busy machine.
    pytest.mark.timeout(120),
    pytest.mark.sample(every=3),
]

MAKE = """
import os
from mixpanel_async import AsyncMixpanel, BatchPolicy, RetryPolicy
mp = AsyncMixpanel("token", api_host=os.environ["MIXPANEL"])
"""
COLLECT = """
await mp.track('user', 'Event', {{'cell': {0}}})
import asyncio, gc
await asyncio.sleep(0.05)
_ = gc.collect()
"""
RUN_MAIN = """
import asyncio
async def main():
    await mp.track("user", "Event", {"cell": 2})
try:
    asyncio.run(main())
except RuntimeError as error:
    print(error)
"""

Run = Callable[[str], str]
# Parts of the libraries have no types.
v4: Any = untyped_v4


@contextmanager
def kernel(emulator: Emulator, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Run]]:
    """Start a kernel. Its end waits until the process has exited.

    Yields:
        The client of the kernel, and a function that runs a cell and returns its output.
    """
    for name in ("JUPYTER_PLATFORM_DIRS", "IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, "1" if name == "JUPYTER_PLATFORM_DIRS" else str(folder))
    with emulator.serve() as server:
        monkeypatch.setenv("MIXPANEL", server.url)
        notebook = v4.new_notebook()
        where = {"metadata": {"path": folder}}
        client: Any = NotebookClient(notebook, timeout=60, kernel_name="python3", resources=where)

        def run(code: str) -> str:
            cell = v4.new_code_cell(code)
            notebook.cells.append(cell)
            client.execute_cell(cell, len(notebook.cells) - 1)
            return "".join(_text_of(output) for output in cell.outputs)

        with client.setup_kernel():
            yield client, run


def _text_of(output: Any) -> str:
    return str(output.get("text") or output["data"]["text/plain"])


def cells_of(emulator: Emulator) -> list[int]:
    return sorted(event["properties"]["cell"] for event in emulator.events("Event"))


@pytest.mark.parametrize(
    "call",
    [
        "await mp.track('user', 'Event', {{'cell': {0}}})",
        "mp.track_nowait('user', 'Event', {{'cell': {0}}})",
        "mp = mp.start_in_thread()\nmp.track('user', 'Event', {{'cell': {0}}})",
        COLLECT,
    ],
    ids=["await", "nowait", "blocking", "collected while the loop runs"],
)
def test_cell_that_makes_a_client_is_run_again(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run drops the client of the run before. The kernel stops soon after the last."""
    emulator = Emulator()
    with kernel(emulator, tmp_path, monkeypatch) as (_, run):
        for number in range(5):
            assert run(MAKE + call.format(number)) == ""
    assert cells_of(emulator) == [0, 1, 2, 3, 4]


def test_cells_with_top_level_await(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    emulator = Emulator()
    with kernel(emulator, tmp_path, monkeypatch) as (_, run):
        run(MAKE)
        run("await mp.track('user', 'Event', {'cell': 1})")
        assert "delivered=1" in run("await mp.flush()")
        assert cells_of(emulator) == [1]
        run("async with mp:\n    await mp.track('user', 'Event', {'cell': 2})")
        assert cells_of(emulator) == [1, 2]


def test_restarted_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    emulator = Emulator()
    with kernel(emulator, tmp_path, monkeypatch) as (client, run):
        run(MAKE + "await mp.track('user', 'Event', {'cell': 1})")
        run_sync(client.km.restart_kernel)()
        run_sync(client.kc.wait_for_ready)(timeout=60)
        assert cells_of(emulator) == [1]
        run(MAKE + "await mp.track('user', 'Event', {'cell': 2})")
    assert cells_of(emulator) == [1, 2]


def test_asyncio_run_in_a_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel runs an event loop, so it is impossible there; a thread can do it, beside the loop of the kernel."""
    emulator = Emulator()
    with kernel(emulator, tmp_path, monkeypatch) as (_, run):
        run(MAKE + "await mp.track('user', 'Event', {'cell': 1})")
        assert "cannot be called from a running event loop" in run(RUN_MAIN)
        run("await asyncio.to_thread(asyncio.run, main())")
        run("await mp.track('user', 'Event', {'cell': 3})")
    assert cells_of(emulator) == [1, 2, 3]
