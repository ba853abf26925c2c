"""The live stream: server-sent events for any number of viewers up to a bound.

    hello   {"id_merge", "token", "started", "stats"}: who this is; first on every connection, and after a reset
    batch   {"events", "dropped", "identity", "rejected", "requests", "people", "stats"}: what is new, see `feed`
    reset   {}: forget everything; a new beginning follows

A connection begins with the last 2,000 events, in batches that hold 200 each and, but for the last, nothing else. One
that returns with `Last-Event-ID` is given what it missed instead, or a `reset` if that was too much. `id` is an integer
that grows. A batch counts its `requests` and tells of the `people` whose ids or profile changed.

Each viewer reads at its own pace, and what it is too slow for is left out for it alone: nothing waits for a viewer.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from typing import Any, Final

import anyio

from ..page.feed import BATCH, HISTORY, ActivityLog, Feed, FeedPosition, activity_counts, sse_message
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
    """Everybody who watches one emulator.

    Args:
        watched: where to read.
        lock: held for whatever is read.
        id_merge: name of the project's identity system.
        token: the project's token, or None if any is taken.
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
        """Serve one viewer until it leaves or the server stops."""
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
            # One that comes or returns is given as much as it missed; one that is too slow, the newest alone.
            head = self._feed.latest_position(force=True)
            seen = seen or self._feed.history_start(head)
            messages = self._messages(seen, head, HISTORY)
        await _write(send, b"retry: 1000\n\n" + first)
        seen, quiet = head, 0.0
        while True:
            for one in messages:
                await _write(send, one)
            quiet = 0.0 if messages else quiet + _INTERVAL
            if quiet >= _KEEP_ALIVE:
                await _write(send, b": still here\n\n")
                quiet = 0.0
            await anyio.sleep(_INTERVAL)
            with self._lock:
                head = self._feed.latest_position()
                anew = [] if head.epoch == seen.epoch else [sse_message("reset", {}), self._hello()]
                messages = anew + self._messages(self._feed.history_start(head) if anew else seen, head, BATCH)
            seen = head

    def _hello(self) -> bytes:
        hello = {
            "id_merge": self._id_merge,
            "token": self._token,
            "started": self._activity.started,
            "stats": activity_counts(self._activity),
        }
        return sse_message("hello", hello)

    def _messages(self, seen: FeedPosition, head: FeedPosition, history: int) -> list[bytes]:
        return [] if seen.id == head.id else self._feed.batches(seen, head, history)


async def _write(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


def _last_event_id(scope: Scope) -> int | None:
    """The `Last-Event-ID` of a viewer that returns; -1, which no mark has, if it is none of ours."""
    for name, value in scope["headers"]:
        if name == b"last-event-id":
            return int(value) if value.isdigit() and len(value) <= 18 else -1
    return None
