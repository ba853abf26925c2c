"""Forked child processes and the client of their parent."""

from __future__ import annotations

import asyncio
import os

import pytest

from mixpanel_async import (
    AsyncMixpanel,
    BatchPolicy,
)
from mixpanel_async.emulator import Emulator

LINGERING = BatchPolicy(linger=3600.0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_child_does_not_send_records_of_its_parent() -> None:
    emulator = Emulator()

    async def main(mp: AsyncMixpanel, name: str) -> None:
        await mp.track("user", name)
        await mp.aclose()

    with emulator.serve() as server:
        mp = AsyncMixpanel("token", api_host=server.url, batching=LINGERING)

        async def begin() -> None:
            await mp.people_increment("user", {"visits": 1})

        asyncio.run(begin())
        child = os.fork()
        if not child:
            status = 1
            try:
                asyncio.run(main(mp, "Child"))
                status = 0 if mp.stats().delivered == mp.stats().accepted == 1 else 2
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        asyncio.run(main(mp, "Parent"))
    assert os.waitstatus_to_exitcode(status) == 0
    assert (emulator.profile("user") or {})["visits"] == 1
    assert {event["event"] for event in emulator.events()} == {"Child", "Parent"}
