"""`docs/many-hosts.md`: its snippets run, its commands exist, its user has the rights, its metrics are those served."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import typer.main
from redis_server import RedisServer

from mixpanel_async import AsyncMixpanel, OutboxError
from mixpanel_async.cli.app import app
from mixpanel_async.emulator import Emulator
from mixpanel_async.integrations import otel
from mixpanel_async.outbox import RedisOutbox
from mixpanel_async.worker import Worker

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = (ROOT / "docs/many-hosts.md").read_text(encoding="utf-8")
README: Final = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLE: Final = (ROOT / "examples/outbox/README.md").read_text(encoding="utf-8")
SNIPPETS: Final = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
COMMANDS: Final = [line.strip() for line in re.findall(r"^ *mixpanel-async .*", PAGE, re.MULTILINE)]
TOKEN: Final = "0123456789abcdef0123456789abcdef"
QUEUE: Final = "redis://queue:6379/0"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
async def test_snippet_runs(snippet: str, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    emulator = Emulator(token=TOKEN)
    monkeypatch.setenv("MIXPANEL_TOKEN", TOKEN)
    body = "".join(f"    {line}\n" for line in snippet.replace(QUEUE, redis_server.url).splitlines())
    namespace: dict[str, Any] = {}
    exec(f"async def run():\n{body}    return locals()\n", namespace)
    with emulator.serve() as server:
        monkeypatch.setenv("MIXPANEL_API_HOST", server.url)
        made = await namespace["run"]()
    assert isinstance(made.get("outbox"), RedisOutbox) or isinstance(made.get("worker"), Worker)
    if "outbox" in made:
        await made["outbox"].client.aclose()


def command_of(words: list[str]) -> tuple[Any, list[str]]:
    """Return a command of the application, and the words after its name."""
    found: Any = typer.main.get_command(app)
    while words and words[0] in getattr(found, "commands", {}):
        found, words = found.commands[words[0]], words[1:]
    return found, words


@pytest.mark.parametrize("line", COMMANDS)
def test_command_and_its_options_exist(line: str) -> None:
    command, words = command_of(shlex.split(line)[1:])
    assert not hasattr(command, "commands")
    known = {name for parameter in command.params for name in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


def test_every_command_of_a_queue_is_on_the_page() -> None:
    group, _ = command_of(["queue"])
    assert len(group.commands) == 5
    for name in group.commands:
        assert f"mixpanel-async queue {name}" in PAGE
        assert f"mixpanel-async queue {name}" in README


def test_metrics_are_those_of_the_integration() -> None:
    rows = dict(re.findall(r"^\| `(mixpanel\.[a-z_.]+)` \| `(mixpanel_[a-z_]+)` \|", PAGE, re.MULTILINE))
    documented = re.findall(r"^\| `(mixpanel\.(?:worker|queue)\.[a-z_.]+)` \|", otel.__doc__ or "", re.MULTILINE)
    assert set(rows) == set(documented)
    for instrument, name in rows.items():
        base = instrument.replace(".", "_")
        assert name in {base, f"{base}_total"}


@pytest.mark.parametrize("text", [PAGE, EXAMPLE], ids=["page", "example"])
def test_linked_files_exist(text: str) -> None:
    folder = ROOT / ("docs" if text is PAGE else "examples/outbox")
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text)]
    assert links
    assert [link for link in links if not (folder / link).exists()] == []


@pytest.mark.anyio
async def test_user_of_the_page_has_the_rights(new_redis_server: Callable[..., RedisServer]) -> None:
    server = new_redis_server()
    (line,) = re.findall(r"^ACL SETUSER .*", PAGE, re.MULTILINE)
    assert server.command(*line.split()) == b"+OK\r\n"
    outbox = RedisOutbox(server.url.replace("//", "//mixpanel:PASSWORD@"))
    emulator = Emulator(token=TOKEN)
    async with AsyncMixpanel(TOKEN, outbox=outbox) as mp:
        await mp.track("ada", "Viewed")
        await mp.people_increment("ada", {"visits": 1})
        assert (await mp.flush()).delivered == 2
    with emulator.serve() as mixpanel:
        async with Worker(outbox, TOKEN, api_host=mixpanel.url) as worker:
            assert await worker.drain()
    assert (len(emulator.events("Viewed")), emulator.profile("ada")) == (1, {"visits": 1})
    async with outbox.admin() as queue:
        status = await queue.status()
        assert (status.records, status.server.append_fsync, status.server.policy) == (0, "everysec", "noeviction")
        assert [one async for one in queue.records()] == []
        assert await queue.retry() == 0
        await queue.purge(dead=True, waiting=True)
        await queue.purge(distinct_id="ada")
        await queue.remove()
    # A batch whose script Redis ends in its middle is taken for a known one when it is repeated, so look into the log.
    # `remove` does without SCAN, and the library without CLIENT SETINFO.
    refused = set(re.findall(rb"object\r\n\$\d+\r\n(\S+)", server.command("ACL", "LOG")))
    # Redis 6 names commands without their subcommand.
    assert refused <= {b"scan", b"client|setinfo", b"client"}
    with pytest.raises(OutboxError, match="refuses"):
        await open_writer(RedisOutbox(server.url.replace("//", "//mixpanel:PASSWORD@"), name="other"))


async def open_writer(outbox: RedisOutbox) -> None:
    writer = outbox.writer(TOKEN)
    try:
        await writer.open()
    finally:
        await writer.aclose()
