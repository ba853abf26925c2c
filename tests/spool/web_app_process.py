"""Web server with an application that owns a client: `python web_app_process.py uvicorn|gunicorn JSON`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from typing import Any

from mixpanel_async import AsyncMixpanel, BatchPolicy, SqliteSpool


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)]


async def app(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] == "lifespan"
    given = json.loads(os.environ["GIVEN"])
    before = handlers()
    mp = AsyncMixpanel(
        "token",
        api_host=given["url"],
        spool=SqliteSpool(given["path"]) if given["path"] else None,
        batching=BatchPolicy(linger=3600.0),
    )
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            await mp.start()
            # Two kinds, because a full batch would be sent at once.
            for _ in range(1_000):
                mp.track_nowait("user", "E")
            await asyncio.gather(*(mp.people_set(f"user-{number}", {"n": number}) for number in range(1_000)))
            await send({"type": "lifespan.startup.complete"})
        else:
            await mp.aclose()
            await send({"type": "lifespan.shutdown.complete"})
            return
        if handlers() == before:
            print(f"{mp.stats().pending} pending, handlers as before", flush=True)


def serve(server: str, given: str) -> None:
    os.environ["GIVEN"] = given
    if server == "uvicorn":
        import uvicorn

        uvicorn.run(app, port=0, log_level="error")
        return
    sys.argv = ["gunicorn", "web_app_process:app", "-k", "uvicorn_worker.UvicornWorker", "-b", "127.0.0.1:0", "-w", "1"]
    from gunicorn.app.wsgiapp import run

    run()


if __name__ == "__main__":
    serve(*sys.argv[1:3])
