"""Programs that end while another process locks the spool: `python locked_spool_program.py ENDING JSON`.

A program tracks some events, prints a line, waits for a line, tracks more with `track_nowait`, and ends.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import sys
import threading
from collections.abc import Callable
from typing import Any

from mixpanel_async import AsyncMixpanel, BatchPolicy, LostRecord, SqliteSpool

UNUSED_PORT = "http://127.0.0.1:9"
COMMITTED = 50
UNWRITTEN = 10
KEPT: list[AsyncMixpanel] = []


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def on_drop(records: list[LostRecord], reason: Any) -> None:
    say(f"on_drop {len(records)} {reason.value}")


def new_client(given: dict[str, Any]) -> AsyncMixpanel:
    return AsyncMixpanel(
        "emulator-token",
        api_host=UNUSED_PORT,
        spool=SqliteSpool(given["path"], timeout=given["timeout"]),
        batching=BatchPolicy(linger=3600.0),
        shutdown_timeout=0.2,
        loop_end_timeout=0.2,
        on_drop=on_drop,
    )


async def fill(mp: AsyncMixpanel) -> None:
    for number in range(COMMITTED):
        await mp.track("user", "Committed", {"n": number})
    say("ready")
    await asyncio.to_thread(sys.stdin.readline)
    for number in range(UNWRITTEN):
        mp.track_nowait("user", "Unwritten", {"n": number})


def close(given: dict[str, Any]) -> None:
    """End with `aclose`."""

    async def main() -> None:
        mp = new_client(given)
        await fill(mp)
        result = await mp.aclose()
        stats = mp.stats()
        say(f"stats {stats.pending} {stats.losses} result {result.pending} {result.losses}")

    asyncio.run(main())


def end_of_loop(given: dict[str, Any]) -> None:
    """End the event loop and then the interpreter, with a client that is still referenced."""
    KEPT.append(new_client(given))
    asyncio.run(fill(KEPT[0]))


def end_of_loop_without_reference(given: dict[str, Any]) -> None:
    """End the event loop with a client that nothing references any more."""

    async def main() -> None:
        await fill(new_client(given))

    asyncio.run(main())


def garbage_collection(given: dict[str, Any]) -> None:
    """Drop the client after its event loop has ended, and go on for a while."""
    KEPT.append(new_client(given))
    asyncio.run(fill(KEPT[0]))
    reported = threading.Event()
    logging.getLogger("mixpanel_async").addHandler(logging.StreamHandler(sys.stderr))
    KEPT.clear()
    gc.collect()
    reported.wait(1.0)


def garbage_collection_in_the_loop(given: dict[str, Any]) -> None:
    """Drop the client in its running event loop, which goes on for a while."""

    async def main() -> None:
        mp = new_client(given)
        await fill(mp)
        del mp
        gc.collect()
        await asyncio.sleep(3.0)

    asyncio.run(main())


def exit_with_a_stopped_loop(given: dict[str, Any]) -> None:
    """Exit the interpreter with an event loop that was stopped, not closed."""
    KEPT.append(new_client(given))
    asyncio.new_event_loop().run_until_complete(fill(KEPT[0]))


def exit_with_a_loop_in_a_thread(given: dict[str, Any]) -> None:
    """Exit the interpreter while the event loop runs in a daemon thread."""
    KEPT.append(new_client(given))
    filled = threading.Event()

    async def main() -> None:
        await fill(KEPT[0])
        filled.set()
        await asyncio.sleep(3600.0)

    threading.Thread(target=lambda: asyncio.run(main()), daemon=True).start()
    filled.wait()


ENDINGS: dict[str, Callable[[dict[str, Any]], None]] = {
    one.__name__: one
    for one in (
        close,
        end_of_loop,
        end_of_loop_without_reference,
        garbage_collection,
        garbage_collection_in_the_loop,
        exit_with_a_stopped_loop,
        exit_with_a_loop_in_a_thread,
    )
}

if __name__ == "__main__":
    ENDINGS[sys.argv[1]](json.loads(sys.argv[2]))
