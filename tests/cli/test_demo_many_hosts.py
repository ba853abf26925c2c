"""Command `mixpanel-async demo --redis` with a real server."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import pytest
from redis_server import RedisServer
from rich.console import Console
from typer.testing import CliRunner

from mixpanel_async.cli.app import app
from mixpanel_async.cli.demo.many_hosts import run_many_hosts
from mixpanel_async.outbox import RedisOutbox

RUN: Final = "from mixpanel_async.cli import main; main()"
NAME: Final = "mixpanel-demo-test"
# The killed worker counts as dead at once, so that the test need not wait for 15 seconds.
END_LEASES: Final = """
for _, worker in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  if string.sub(worker, 1, 9) == 'worker-1#' then redis.call('ZADD', KEYS[1], 1, worker) end
end
local leases = redis.call('HGETALL', KEYS[2])
for i = 1, #leases, 2 do
  local worker = string.match(leases[i + 1], '|(.*)$')
  if string.sub(worker, 1, 9) == 'worker-1#' then redis.call('HSET', KEYS[2], leases[i], '1|' .. worker) end
end
return 1
"""


@contextmanager
def ending_leases_after_the_kill(server: RedisServer, output: io.StringIO) -> Iterator[None]:
    is_over = threading.Event()

    def work() -> None:
        while "is killed" not in output.getvalue() and not is_over.wait(0.05):
            pass
        server.command("EVAL", END_LEASES, "2", f"{{{NAME}}}:workers", f"{{{NAME}}}:leases")

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


@pytest.mark.long
@pytest.mark.timeout(150)
def test_killed_worker_loses_nothing_and_the_queue_is_removed(redis_server: RedisServer) -> None:
    output = io.StringIO()
    console = Console(file=output, width=100, highlight=False)
    with ending_leases_after_the_kill(redis_server, output):
        all_hold = run_many_hosts(console, RedisOutbox(redis_server.url, name=NAME), events=3_000, steps=10)
    text = output.getvalue()
    assert all_hold, text
    assert "each of 3,000 events counts once" in text
    assert "7 of 7 expectations hold" in text
    assert redis_server.command("DBSIZE") == b":0\r\n"


@pytest.mark.long
@pytest.mark.timeout(150)
def test_command_with_redis_succeeds(redis_server: RedisServer) -> None:
    command = [sys.executable, "-W", "error", "-c", RUN, "demo", "--redis", redis_server.url]
    # Settings of another project, with which each request to the emulator would be refused.
    account = {"USERNAME": "another", "SECRET": "account"}
    variables = {f"MIXPANEL_SERVICE_ACCOUNT_{name}": value for name, value in account.items()}
    variables = {**os.environ, **variables, "MIXPANEL_PROJECT_ID": "1"}
    result = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=110)
    assert (result.returncode, result.stderr) == (0, ""), result.stdout
    assert "7 of 7 expectations hold" in result.stdout


@pytest.mark.parametrize(
    ("url", "code", "text"),
    [("http://u:s3cret@queue", 2, "--redis must be like"), ("redis://u:s3cret@127.0.0.1:1/0", 1, "no connection")],
)
def test_wrong_url_is_refused_without_showing_it(url: str, code: int, text: str) -> None:
    result = CliRunner().invoke(app, ["demo", "--redis", url])
    assert result.exit_code == code
    assert text in result.stderr
    assert result.stderr.count("\n") == 1
    assert "s3cret" not in result.stdout + result.stderr
