"""Live stream: server-sent events for a bounded number of viewers.

    hello   {"id_merge", "token", "started", "stats", "rates", "faults"}: describes the emulator; first on every
            connection and after a reset. "rates" has pairs of an age in whole seconds and the events stored then
    batch   {"events", "dropped", "identity", "rejected", "requests", "log", "updates", "people", "groups", "stats"},
            and "faults" and "unsupported" if they have changed: changes, see `page/feed.py`
    reset   {}: all data was deleted; a `hello` follows

A connection starts with the last 2,000 events, in batches of 200. All but the last contain nothing else. A connection
with `Last-Event-ID` receives the missed changes instead, or a `reset` if there are too many. `id` is a growing integer.
A batch contains the number of its `requests`, their entries in the `log` (see `request_log`), profile `updates`, and
the `people` and `groups` whose ids or profile changed.

Each viewer reads at its own speed. If a viewer is too slow, only that viewer misses events. The emulator never waits
for a viewer.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from typing import Any, Final

import anyio

from ..page.feed import BATCH, HISTORY, ActivityLog, Feed, FeedPosition, activity_counts, fault_summary, sse_message
from ..project.responses import json_response
from .asgi_response import AsgiResponse, Receive, Scope, Send
from .faults import PlannedResponse

MAX_VIEWERS: Final = 20

_INTERVAL: Final = 0.1
_KEEP_ALIVE: Final = 15.0
_HEADERS: Final = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
)


class LiveStream:
    """ASGI application that streams the changes of one emulator to all of its viewers.

    Args:
        activity: state of the application.
        lock: lock of the state, held while it is read.
        id_merge: name of the ID merge system of the project.
        token: project token, or None if any is accepted.
    """

    def __init__(
        self, activity: ActivityLog, lock: AbstractContextManager[Any], *, id_merge: str, token: str | None
    ) -> None:
        self._activity = activity
        self._lock = lock
        self._feed = Feed(activity, time.monotonic)
        self._id_merge = id_merge
        self._token = token
        self._viewer_count = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one viewer until it disconnects or the server stops."""
        with self._lock:
            is_full = self._viewer_count >= MAX_VIEWERS
            self._viewer_count += not is_full
        if is_full:
            answer = json_response(503, {"error": f"{MAX_VIEWERS} viewers watch already"})
            await AsgiResponse(PlannedResponse(response=answer))(scope, receive, send)
            return
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._serve_viewer, _last_event_id(scope), send)
                while (await receive())["type"] != "http.disconnect":
                    pass
                tasks.cancel_scope.cancel()
        finally:
            with self._lock:
                self._viewer_count -= 1

    async def _serve_viewer(self, last_id: int | None, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": list(_HEADERS)})
        with self._lock:
            seen = None if last_id is None else self._feed.find_position(last_id)
            first = b"" if last_id is None or seen is not None else sse_message("reset", {})
            first += self._hello()
            # A viewer that connects receives up to `HISTORY` events. A slow viewer receives only the newest `BATCH`.
            latest = self._feed.latest_position(force=True)
            seen = seen or self._feed.history_start(latest)
            messages = self._messages(seen, latest, HISTORY)
        await _write(send, b"retry: 1000\n\n" + first)
        seen, quiet = latest, 0.0
        while True:
            for one in messages:
                await _write(send, one)
            quiet = 0.0 if messages else quiet + _INTERVAL
            if quiet >= _KEEP_ALIVE:
                await _write(send, b": still here\n\n")
                quiet = 0.0
            await anyio.sleep(_INTERVAL)
            with self._lock:
                latest = self._feed.latest_position()
                restart = [] if latest.epoch == seen.epoch else [sse_message("reset", {}), self._hello()]
                messages = restart + self._messages(
                    self._feed.history_start(latest) if restart else seen, latest, BATCH
                )
            seen = latest

    def _hello(self) -> bytes:
        hello = {
            "id_merge": self._id_merge,
            "token": self._token,
            "started": self._activity.started,
            "stats": activity_counts(self._activity),
            "rates": self._activity.log.rates(),
            "faults": fault_summary(self._activity),
        }
        return sse_message("hello", hello)

    def _messages(self, seen: FeedPosition, latest: FeedPosition, history: int) -> list[bytes]:
        return [] if seen.id == latest.id else self._feed.batches(seen, latest, history)


async def _write(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


def _last_event_id(scope: Scope) -> int | None:
    """Return the `Last-Event-ID` of a request; -1, which no position has, if it is malformed."""
    for name, value in scope["headers"]:
        if name == b"last-event-id":
            return int(value) if value.isdigit() and len(value) <= 18 else -1
    return None
