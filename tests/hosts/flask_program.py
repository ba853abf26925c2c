"""Flask app with a blocking and an async view, and its development server as a program."""

from __future__ import annotations

import logging
import os
import signal
import sys

from flask import Flask
from werkzeug.serving import make_server

from mixpanel_async import AsyncMixpanel

logging.basicConfig(level=logging.WARNING)
client = AsyncMixpanel("token", api_host=os.environ["MIXPANEL"])
blocking = client.start_in_thread() if os.environ["VIEW"] == "blocking" else None
app = Flask(__name__)


@app.get("/blocking/<int:number>")
def blocking_view(number: int) -> str:
    assert blocking is not None
    blocking.track("user", "Event", {"number": number})
    blocking.people_increment("user", {"visits": 1})
    return ""


@app.get("/async/<int:number>")
async def async_view(number: int) -> str:
    await client.track("user", "Event", {"number": number})
    await client.people_increment("user", {"visits": 1})
    return ""


@app.get("/stats")
def stats() -> dict[str, int]:
    stats = client.stats()
    return {"uncertain": stats.uncertain, "failed": stats.failed, "dropped": stats.dropped}


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server = make_server("127.0.0.1", 0, app, threaded=True)
    sys.stdout.write(f"http://127.0.0.1:{server.server_port}\n")
    server.serve_forever()
