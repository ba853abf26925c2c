"""No host leaves a socket, a task or an event loop to the garbage collector when its event loops change."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from mixpanel_async.emulator import Emulator

HEADER: Final = """
import asyncio, gc, os, unittest
import anyio, pytest
from mixpanel_async import AsyncMixpanel

mp = AsyncMixpanel("token", api_host=os.environ["MIXPANEL"])

async def use(number: int):
    await mp.track("user", "Event", {"number": number})
    await mp.people_increment("user", {"uses": 1})
    if number % 2:
        await mp.flush()

def teardown_module():
    gc.collect()
"""
CLOSE: Final = """
@pytest.fixture(scope="session", autouse=True)
def close():
    yield
    asyncio.run(mp.aclose())
"""
HOSTS: Final = {
    "asyncio.run": "for number in range(6):\n    asyncio.run(use(number))\n    gc.collect()",
    "anyio.run": """
for number in range(6):
    anyio.run(use, number, backend=["asyncio", "trio"][number // 2 % 2])
    gc.collect()
""",
    "threads": """
import threading
for number in range(6):
    thread = threading.Thread(target=asyncio.run, args=[use(number)])
    thread.start()
    thread.join()
    gc.collect()
""",
    "blocking": """
for number in range(0, 6, 2):
    with AsyncMixpanel("token", api_host=os.environ["MIXPANEL"]).in_thread() as blocking:
        blocking.run(use, number)
        blocking.track("user", "Event", {"number": number + 1})
        blocking.people_increment("user", {"uses": 1})
    gc.collect()
""",
    "pytest-asyncio": """
@pytest.mark.asyncio
@pytest.mark.parametrize("number", range(6))
async def test_it(number):
    await use(number)
""",
    "pytest-asyncio, module loop": """
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("number", range(6))
async def test_it(number):
    await use(number)
""",
    "anyio plugin": """
@pytest.mark.anyio
@pytest.mark.parametrize("number", range(3))
async def test_it(number, anyio_backend_name):
    await use(number + 3 * (anyio_backend_name == "trio"))
""",
    "IsolatedAsyncioTestCase": """
class Tests(unittest.IsolatedAsyncioTestCase):
    async def test_a(self):
        await use(0)
        await use(1)

    async def test_b(self):
        await use(2)
        await use(3)

    async def test_c(self):
        await use(4)
        await use(5)
""",
    "TestClient": """
import warnings
from fastapi import FastAPI
with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)
    from starlette.testclient import TestClient

app = FastAPI()
app.get("/{number}")(use)

@pytest.mark.parametrize("number", range(4))
def test_plain(number):
    assert TestClient(app).get(f"/{number}").status_code == 200

@pytest.mark.parametrize("number", [4, 5])
def test_entered(number):
    with TestClient(app) as client:
        assert client.get(f"/{number}").status_code == 200
""",
}


@pytest.mark.parametrize("host", HOSTS)
def test_host_leaves_no_sockets(host: str, tmp_path: Path) -> None:
    program = HOSTS[host]
    is_suite = "def test_" in program
    file = tmp_path / "test_host.py"
    file.write_text(HEADER + (CLOSE if is_suite else "") + program, encoding="utf-8")
    # Unrelated plugins take seconds to import.
    plugins = [f"-pno:{name}" for name in ("cacheprovider", "hypothesispytest", "respx", "xdist", "timeout", "django")]
    scope = ["-o", "asyncio_default_fixture_loop_scope=function"]
    runner = ["-m", "pytest", "-q", "-W", "error", *plugins, *scope] if is_suite else []
    command = [sys.executable, "-X", "dev", "-W", "error", *runner, str(file)]
    emulator = Emulator()
    with emulator.serve() as server:
        environment = {**os.environ, "MIXPANEL": server.url}
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=25, env=environment, cwd=tmp_path, check=False
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert sorted(event["properties"]["number"] for event in emulator.events("Event")) == list(range(6))
    assert (emulator.profile("user") or {})["uses"] == 6
