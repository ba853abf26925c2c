"""Guides of delivery: the user of Redis has the rights; commands, defaults and the Deployment are those that exist."""

from __future__ import annotations

import re
from collections.abc import Callable
from inspect import signature
from typing import Any, Final

import pytest
import typer.main
import yaml
from page_snippets import DOCS, ROOT, blocks_of
from redis_server import RedisServer

from mixpanel_async import AsyncMixpanel, BatchPolicy, OutboxError, RetryPolicy, SqliteSpool
from mixpanel_async.cli.app import app
from mixpanel_async.emulator import Emulator
from mixpanel_async.flags import LocalFlags
from mixpanel_async.outbox import RedisOutbox
from mixpanel_async.worker import Worker

GUIDE: Final = DOCS / "guides/outbox.md"
PAGE: Final = GUIDE.read_text("utf-8")
EXAMPLE: Final = ROOT / "examples/outbox/README.md"
TOKEN: Final = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.parametrize(("group", "page"), [("queue", "outbox"), ("spool", "spool")])
def test_every_command_is_on_its_page(group: str, page: str) -> None:
    text = (DOCS / f"guides/{page}.md").read_text("utf-8")
    application: Any = typer.main.get_command(app)
    names = application.commands[group].commands
    assert len(names) == 5
    for name in names:
        assert f"\nmixpanel-async {group} {name}" in text


@pytest.mark.parametrize(
    ("page", "options"),
    [
        ("guides/configuration.md", (AsyncMixpanel, BatchPolicy, RetryPolicy)),
        ("explanation/delivery.md", (AsyncMixpanel, BatchPolicy, RetryPolicy)),
        ("guides/spool.md", (SqliteSpool,)),
        ("guides/outbox.md", (RedisOutbox,)),
        ("guides/feature-flags.md", (LocalFlags,)),
    ],
)
def test_defaults_on_the_page_are_those_of_the_options(page: str, options: tuple[Callable[..., Any], ...]) -> None:
    """Check texts such as "`max_bytes` (4 GiB)"."""
    defaults = {name: one.default for kind in options for name, one in signature(kind).parameters.items()}
    text = (DOCS / page).read_text("utf-8")
    found = re.findall(r"`(\w+)`\s\(([\d,.]+)(?: (seconds|MiB|GiB))?\)", text)
    assert found
    for name, number, unit in found:
        factor = {"MiB": 1024**2, "GiB": 1024**3}.get(unit, 1)
        assert float(number.replace(",", "")) * factor == defaults[name], name


def test_files_linked_by_the_example_exist() -> None:
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", EXAMPLE.read_text("utf-8"))]
    assert links
    assert [link for link in links if not (EXAMPLE.parent / link).exists()] == []


def test_deployment_of_the_page_is_that_of_the_example() -> None:
    (block,) = [one for one in blocks_of(GUIDE) if one.language == "yaml"]
    example = yaml.safe_load((EXAMPLE.parent / "kubernetes.yaml").read_text("utf-8"))
    assert is_part_of(yaml.safe_load(block.code), example)


def is_part_of(part: Any, whole: Any) -> bool:
    """Return whether each value of `part` has the same place in `whole`."""
    if isinstance(part, dict):
        return all(is_part_of(value, whole.get(name)) for name, value in part.items())
    if isinstance(part, list):
        return len(part) == len(whole) and all(map(is_part_of, part, whole))
    return bool(part == whole)


@pytest.mark.anyio
async def test_user_of_the_page_has_the_rights(new_redis_server: Callable[..., RedisServer]) -> None:
    server = new_redis_server()
    lines = re.findall(r"^ACL SETUSER .*", PAGE, re.MULTILINE)
    admin = ["AUTH", "admin", "ADMIN"]
    server.command("ACL", "SETUSER", "admin", "on", ">ADMIN", "~*", "&*", "+@all")
    assert [server.commands(admin, line.split()) for line in lines] == [b"+OK\r\n"] * 2
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
    refused = set(re.findall(rb"object\r\n\$\d+\r\n(\S+)", server.commands(admin, ["ACL", "LOG"])))
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
