"""A server whose user `default` has no rights: Redis 7 reads its append-only file as this user."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from conformance import TOKEN, numbered
from redis_server import RedisServer

from mixpanel_async._model.errors import ConfigurationError
from mixpanel_async.outbox import QueueStatus, RedisOutbox

pytestmark = pytest.mark.anyio
GUIDE = Path(__file__).parents[2] / "docs/guides/outbox.md"
ADMIN = "user admin on >ADMIN ~* &* +@all"


@pytest.fixture
def anyio_backend() -> Any:
    return ("asyncio", {"debug": True})


async def status_of(outbox: RedisOutbox) -> QueueStatus | None:
    """Return the status of a queue; None if there is no queue."""
    async with outbox.admin() as queue:
        try:
            return await queue.status()
        except ConfigurationError:
            return None


@pytest.mark.parametrize("default", ["of the guide", "user default off"])
async def test_restart_loses_only_a_queue_about_which_the_status_warned(
    default: str, new_redis_server: Callable[..., RedisServer], tmp_path: Path
) -> None:
    user, safe = re.findall(r"^ACL SETUSER (.*)$", GUIDE.read_text("utf-8"), re.MULTILINE)
    rules = f"user {safe}" if default == "of the guide" else default
    users = tmp_path / "users.acl"
    users.write_text(f"user {user}\n{rules}\n{ADMIN}\n", "utf-8")
    server = new_redis_server("--aclfile", str(users), "--appendfsync", "always")
    outbox = RedisOutbox(server.url.replace("//", "//mixpanel:PASSWORD@"))
    assert server.command("EXISTS", "none").startswith(b"-NOAUTH")
    writer, inbox = outbox.writer(TOKEN), outbox.inbox(TOKEN, "w")
    async with aclosing(writer), aclosing(inbox):
        await writer.open()
        await writer.put([*map(numbered, range(3))])
        await inbox.open()
        assert (await inbox.heartbeat()).losses == 0
        before = await status_of(outbox)
        assert before is not None
        is_version_7 = int(before.server.version.partition(".")[0]) >= 7
        expected = default == "of the guide" if is_version_7 else None
        assert before.server.default_user_may_write is expected
        assert any("The user default may not write" in text for text in before.advice) is (expected is False)
        server.kill()
        server.start()
        after = await status_of(outbox)
        # Redis 7.0 loses the queue. A version that does not is no error.
        assert (after is not None and after.records == 3) or expected is False
        held = await inbox.heartbeat()
        assert (held.losses, held.lost_records) == ((0, 0) if after is not None else (1, 3))


async def test_rights_that_the_server_hides_are_unknown(new_redis_server: Callable[..., RedisServer]) -> None:
    server = new_redis_server()
    (user, _) = re.findall(r"^ACL SETUSER (.*)$", GUIDE.read_text("utf-8"), re.MULTILINE)
    server.command("ACL", "SETUSER", *user.replace(" +acl|dryrun", "").split())
    server.command("ACL", "SETUSER", "default", "-xadd")
    outbox = RedisOutbox(server.url.replace("//", "//mixpanel:PASSWORD@"))
    writer = outbox.writer(TOKEN)
    async with aclosing(writer):
        await writer.open()
        hidden = await status_of(outbox)
        server.command("ACL", "SETUSER", "mixpanel", "+acl|dryrun")
        seen = await status_of(outbox)
    assert hidden is not None
    assert seen is not None
    assert hidden.server.default_user_may_write is None
    assert not any("user default" in text for text in hidden.advice)
    assert seen.server.default_user_may_write is (False if seen.server.version.startswith("7") else None)
