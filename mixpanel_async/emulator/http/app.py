"""The emulator as an ASGI application; with `routes` the only module that knows Starlette.

It reads a request within its limits, has it answered under one lock, and carries out planned failures. The lock is
there because `serve()` runs the application in a thread of its own while tests look at the state from theirs.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import anyio
import anyio.to_thread
from starlette.requests import ClientDisconnect, Request
from starlette.routing import Route, Router

from ..flags.flags import FLAG_PATHS, FlagDefinitions
from ..project.access import Access
from ..project.bodies import MAX_WIRE_BYTES, too_large
from ..project.bounded_log import BoundedLog
from ..project.checks import Problem
from ..project.ingestion import ENDPOINTS, IngestionRequest, ingest
from ..project.project import Project
from ..project.responses import EmulatorResponse, error_response
from ..storage.store import ProjectStore, StoreError
from .asgi_response import AsgiResponse, Receive, Scope, Send
from .faults import ConnectionDroppedError, Fault, FaultPlan, PlannedResponse
from .guard import Guard

REQUEST_LOG_LIMIT: Final = 10_000

_BODY_SECONDS: Final = 60.0
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


# Characters of a header or a parameter that the log of requests keeps.
_MAX_LOGGED_VALUE: Final = 1_000


class EmulatorState:
    """What the application and those who inspect it share. Hold `lock` to touch anything but `latency`.

    Args:
        new_project: makes an empty project; called again at a reset.
        access: who may write.
        now: the clock, in seconds since the epoch.
        store: where the project is kept over a restart, or None to keep it in memory only.
        flags: the project's feature flags.
    """

    def __init__(
        self,
        new_project: Callable[[], Project],
        access: Access,
        now: Callable[[], float],
        store: ProjectStore | None,
        flags: FlagDefinitions,
    ) -> None:
        self.lock = threading.Lock()
        self.access = access
        self.now = now
        self.latency = 0.0
        self.faults = FaultPlan()
        self.started = now()
        self.requests: BoundedLog[RecordedRequest] = BoundedLog(REQUEST_LOG_LIMIT)
        self.store = store
        self.flags = flags
        self.project = new_project()
        self._new_project = new_project

    def reset(self) -> None:
        """Forget all data, requests and planned failures, and have the flags of the beginning. Call `flush` afterwards,
        without the lock."""
        if self.store is not None:
            self.store.changes.clear()
        self.project = self._new_project()
        self.faults.clear()
        self.flags.reset()
        self.requests = BoundedLog(REQUEST_LOG_LIMIT)

    def flush(self) -> None:
        """Have what happened so far on disk, if it is kept there. Blocks; call it without the lock.

        Raises:
            StoreError: if it cannot be written.
        """
        if self.store is not None:
            self.store.flush(self.lock)


class JsonRoute(Route):
    """A route that takes no other methods than those named, and says so in Mixpanel's form."""

    def __init__(self, path: str, endpoint: Callable[..., Any], methods: Sequence[str]) -> None:
        super().__init__(path, endpoint, methods=list(methods))
        # Starlette adds HEAD to GET, and nobody asks for the head of a stream.
        self._allowed_methods = frozenset(methods)

    async def handle(self, scope: Any, receive: Any, send: Any) -> None:
        app = (
            self.app
            if scope["method"] in self._allowed_methods
            else _not_allowed(scope["path"], sorted(self._allowed_methods))
        )
        await app(scope, receive, send)


class SlowBodyError(Exception):
    """The body of a request took too long to arrive."""

    def response(self, path: str) -> EmulatorResponse:
        """What the client is told. What it may still send is no next request, so the connection ends.

        Args:
            path: of the endpoint.
        """
        return replace(error_response(path, 408, "the body did not arrive in time"), headers={"Connection": "close"})


def build_app(state: EmulatorState, extra_routes: Sequence[JsonRoute]) -> Guard:
    """The ASGI application over a state.

    A bare router, so that an exception planned by `drop_connections` comes out of it and is not made into a 500.

    Args:
        state: what it changes.
        further: routes beside those of the ingestion endpoints and of flags.
    """
    ingestion = [
        JsonRoute(at, _endpoint(state, path), ["GET", "POST"]) for path in ENDPOINTS for at in (path, path + "/")
    ]
    flags = [JsonRoute(at, _endpoint(state, path), ["GET"]) for path in FLAG_PATHS for at in (path, path + "/")]
    return Guard(Router([*ingestion, *flags, *extra_routes], redirect_slashes=False, default=_not_found))


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    await AsgiResponse(PlannedResponse(response=error_response("", 404, "not found")))(scope, receive, send)


def _not_allowed(path: str, methods: Sequence[str]) -> AsgiResponse:
    answer = error_response(path.rstrip("/"), 405, "method not allowed")
    return AsgiResponse(PlannedResponse(response=replace(answer, headers={"Allow": ", ".join(methods)})))


def _endpoint(state: EmulatorState, path: str) -> Callable[[Request], Awaitable[AsgiResponse]]:
    async def endpoint(request: Request) -> AsgiResponse:
        try:
            body = await read_body(request, MAX_WIRE_BYTES)
        except SlowBodyError as error:
            return AsgiResponse(PlannedResponse(response=error.response(path)))
        with state.lock:
            fault = state.faults.take(path)
        if fault is not None and fault.seconds_before_effect > 0:
            await anyio.sleep(fault.seconds_before_effect)
        delivery, records = await _process_request(state, path, fault, request, body)
        answer = delivery.response
        with state.lock:
            state.requests.append(
                RecordedRequest(
                    method=request.method,
                    path=path,
                    query=_mask(request.query_params, _SECRET_PARAMETERS),
                    headers=_mask(request.headers, _SECRET_HEADERS),
                    status=None if answer is None else answer.status,
                    records=records,
                    body_bytes=len(body),
                )
            )
        if state.latency > 0:
            await anyio.sleep(state.latency)
        return AsgiResponse(delivery)

    return endpoint


async def _process_request(
    state: EmulatorState, path: str, fault: Fault | None, request: Request, body: bytes
) -> tuple[PlannedResponse, int]:
    """What `_take` gives, once it is on disk if it is to be kept there."""
    if state.store is not None and state.store.has_unwritten_changes:
        # What cannot be kept must not take effect: a client that tries again would have it counted twice.
        behind = await _flush_to_disk(state, path, None)
        if behind is not None:
            return behind, 0
    with state.lock:
        delivery, records = _process_in_memory(state, path, fault, request, body)
    if state.store is not None:
        delivery = await _flush_to_disk(state, path, delivery) or delivery
    return delivery, records


def _process_in_memory(
    state: EmulatorState, path: str, fault: Fault | None, request: Request, body: bytes
) -> tuple[PlannedResponse, int]:
    """The answer to a request with what a failure makes of it, and how many records it held."""
    if fault is not None and not fault.takes_effect:
        return fault.plan(path, None), 0
    if path in FLAG_PATHS:
        true = state.flags.respond(path, dict(request.query_params), dict(request.headers), state.access)
    elif len(body) > MAX_WIRE_BYTES:
        state.project.log_rejection(path, Problem("", f"413: {too_large().message}"), None)
        true = error_response(path, 413, too_large().message)
    else:
        received = IngestionRequest(
            method=request.method,
            path=path,
            query=dict(request.query_params),
            headers=dict(request.headers),
            body=body,
            client=request.client.host if request.client is not None else "",
            refused_indexes=frozenset() if fault is None else fault.refused_indexes,
        )
        true = ingest(received, state.project, state.access, state.now())
    return PlannedResponse(response=true) if fault is None else fault.plan(path, true), true.records


async def _flush_to_disk(state: EmulatorState, path: str, planned: PlannedResponse | None) -> PlannedResponse | None:
    """The same delivery once the request is on disk, as nothing may be confirmed before."""
    try:
        # In a thread, where it holds up no other request and joins those that came meanwhile in one transaction.
        await anyio.to_thread.run_sync(state.flush)
    except StoreError as error:
        return PlannedResponse(response=error_response(path, 503, str(error)))
    return planned


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The body of a request; of one that is too large only as much as shows it.

    The rest is read and thrown away, within reason, because a client that is still sending does not see an answer.

    Args:
        request: not yet read.
        most: the length in bytes beyond which a body is too large.

    Raises:
        ConnectionDroppedError: if the client leaves before the end.
        TooSlowError: if the end does not come in time.
    """
    chunks: list[bytes] = []
    size = 0
    try:
        with anyio.fail_after(_BODY_SECONDS):
            async for chunk in request.stream():
                if size <= max_bytes:
                    chunks.append(chunk)
                size += len(chunk)
                if size > _MAX_DRAINED_BYTES:
                    break
    except ClientDisconnect:
        raise ConnectionDroppedError from None
    except TimeoutError:
        raise SlowBodyError from None
    return b"".join(chunks)


def _mask(values: Mapping[str, str], secret: frozenset[str]) -> dict[str, str]:
    return {name: "***" if name in secret else value[:_MAX_LOGGED_VALUE] for name, value in values.items()}
