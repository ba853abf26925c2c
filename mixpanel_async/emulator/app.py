"""The emulator as an ASGI application; the only module that knows Starlette.

It reads a request within its limits, has it answered under one lock, and carries out planned failures. The lock is
there because `serve()` runs the application in a thread of its own while tests look at the state from theirs.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

import anyio
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route, Router

from .answers import Answer, refused
from .bodies import MAX_WIRE_BYTES, too_large
from .faults import ConnectionDroppedError, FaultPlan
from .ingest import ENDPOINTS, Access, Received, handle
from .project import Project

REQUEST_LOG_LIMIT: Final = 10_000

_MAX_DRAINED_BYTES: Final = 8 * MAX_WIRE_BYTES
_SECRET_HEADERS: Final = frozenset({"authorization", "cookie", "proxy-authorization"})
_SECRET_PARAMETERS: Final = frozenset({"api_key", "data"})


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRequest:
    """A request that the emulator received.

    Args:
        method: HTTP method.
        path: the endpoint, such as `/track`.
        query: parameters of the URL; `api_key` and `data` are masked.
        headers: by their names in lower case; credentials are masked.
        status: HTTP status answered, or None if the connection was closed without an answer.
        records: how many records it held; 0 if it was refused, or failed as planned, without being read.
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
    return Router(
        [Route(at, _endpoint(state, path), methods=["GET", "POST"]) for path in ENDPOINTS for at in (path, path + "/")]
    )


def _endpoint(state: State, path: str) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        body = await _read(request)
        with state.lock:
            answer, records = _take(state, path, request, body)
            state.requests.append(
                RecordedRequest(
                    method=request.method,
                    path=path,
                    query=_masked(request.query_params, _SECRET_PARAMETERS),
                    headers=_masked(request.headers, _SECRET_HEADERS),
                    status=None if answer is None else answer.status,
                    records=records,
                    body_bytes=len(body),
                )
            )
        if state.latency > 0:
            await anyio.sleep(state.latency)
        if answer is None:
            raise ConnectionDroppedError
        return Response(answer.body, answer.status, headers=dict(answer.headers), media_type=answer.media_type)

    return endpoint


def _take(state: State, path: str, request: Request, body: bytes) -> tuple[Answer | None, int]:
    """The answer to a request, or None if its connection is to be dropped; and how many records it held."""
    fault = state.faults.take(path)
    if fault is not None and not fault.apply:
        return fault.answer(path, records=0), 0
    if len(body) > MAX_WIRE_BYTES:
        true = refused(path, 413, too_large().message)
    else:
        received = Received(
            method=request.method,
            path=path,
            query=dict(request.query_params),
            headers=dict(request.headers),
            body=body,
            client=request.client.host if request.client is not None else "",
        )
        true = handle(received, state.project, state.access, state.now())
    return true if fault is None else fault.answer(path, records=true.records), true.records


async def _read(request: Request) -> bytes:
    """The body; of one that is too large only as much as shows it.

    The rest is read and thrown away, within reason, because a client that is still sending does not see an answer.
    """
    chunks: list[bytes] = []
    size = 0
    try:
        async for chunk in request.stream():
            if size <= MAX_WIRE_BYTES:
                chunks.append(chunk)
            size += len(chunk)
            if size > _MAX_DRAINED_BYTES:
                break
    except ClientDisconnect:
        raise ConnectionDroppedError from None
    return b"".join(chunks)


def _masked(values: Mapping[str, str], secret: frozenset[str]) -> dict[str, str]:
    return {name: "***" if name in secret else value for name, value in values.items()}
