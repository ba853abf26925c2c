"""The emulator as an ASGI application; the only module that knows Starlette.

It reads a request within its limits, has it answered under one lock, and carries out planned failures. The lock is
there because `serve()` runs the application in a thread of its own while tests look at the state from theirs.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import anyio
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router

from .answers import Answer, refused
from .bodies import MAX_WIRE_BYTES, BadBodyError, too_large
from .faults import FaultPlan
from .ingest import ENDPOINTS, Access, Received, handle
from .project import Project

REQUEST_LOG_LIMIT: Final = 10_000

_SECRET_HEADERS: Final = frozenset({"authorization", "cookie", "proxy-authorization"})
_SECRET_PARAMETERS: Final = frozenset({"api_key", "data"})


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRequest:
    """A request that the emulator received.

    Args:
        method: HTTP method.
        path: the endpoint, such as `/track`.
        query: parameters of the URL; `api_key` is masked, and `data` stands for itself without its content.
        headers: by their names in lower case; credentials are masked.
        status: HTTP status answered, or None if the connection was closed without an answer.
        records: how many records it held; 0 if it was refused unread.
        body_bytes: size of the body on the wire, before decompression.
    """

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    status: int | None
    records: int
    body_bytes: int


class State:
    """What the application and those who inspect it share. Hold `lock` to touch anything but `latency`.

    Args:
        new_project: makes an empty project; called again at a reset.
        access: who may write.
        now: the clock, in seconds since the epoch.
    """

    def __init__(self, new_project: Callable[[], Project], access: Access, now: Callable[[], float]) -> None:
        self.lock = threading.Lock()
        self.access = access
        self.now = now
        self.latency = 0.0
        self.faults = FaultPlan()
        self.requests: deque[RecordedRequest] = deque(maxlen=REQUEST_LOG_LIMIT)
        self.project = new_project()
        self._new_project = new_project

    def reset(self) -> None:
        """Forget all data, requests and planned failures."""
        self.project = self._new_project()
        self.faults.clear()
        self.requests.clear()


def build_app(state: State) -> Router:
    """The ASGI application over a state.

    A bare router, so that an exception planned by `drop_connections` comes out of it and is not made into a 500.
    """

    async def endpoint(request: Request) -> Response:
        path = request.url.path.removesuffix("/")
        try:
            body = await _read(request)
        except BadBodyError as error:
            with state.lock:
                answer = refused(path, error.status, error.message)
                state.requests.append(_recorded(request, path, answer, body_bytes=MAX_WIRE_BYTES))
            return _response(answer)
        received = Received(
            method=request.method,
            path=path,
            query=dict(request.query_params),
            headers=dict(request.headers),
            body=body,
            client=request.client.host if request.client is not None else "",
        )
        with state.lock:
            answer, dropped = _answer(state, received)
            state.requests.append(_recorded(request, path, None if dropped else answer, body_bytes=len(body)))
        if state.latency > 0:
            await anyio.sleep(state.latency)
        if dropped is not None:
            raise dropped
        return _response(answer)

    return Router([Route(at, endpoint, methods=["GET", "POST"]) for path in ENDPOINTS for at in (path, path + "/")])
