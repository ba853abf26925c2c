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

from ..flags.flags import FLAG_PATHS, Flags
from ..project.bodies import MAX_WIRE_BYTES, too_large
from ..project.bounded_log import BoundedLog
from ..project.checks import Problem
from ..project.ingestion import ENDPOINTS, Access, Received, handle
from ..project.project import Project
from ..project.responses import Answer, refused
from ..storage.store import ProjectStore, StoreError
from .delivery import DeliveredResponse, Receive, Scope, Send
from .faults import ConnectionDroppedError, Fault, FaultPlan, PlannedDelivery
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
_KEPT_OF_A_VALUE: Final = 1_000


class State:
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
        flags: Flags,
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
            self.store.ledger.clear()
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
        self._taken = frozenset(methods)

    async def handle(self, scope: Any, receive: Any, send: Any) -> None:
        app = self.app if scope["method"] in self._taken else _not_allowed(scope["path"], sorted(self._taken))
        await app(scope, receive, send)


class TooSlowError(Exception):
    """The body of a request took too long to arrive."""

    def answer(self, path: str) -> Answer:
        """What the client is told. What it may still send is no next request, so the connection ends.

        Args:
            path: of the endpoint.
        """
        return replace(refused(path, 408, "the body did not arrive in time"), headers={"Connection": "close"})


def build_app(state: State, further: Sequence[JsonRoute]) -> Guard:
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
    return Guard(Router([*ingestion, *flags, *further], redirect_slashes=False, default=_not_found))


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    await DeliveredResponse(PlannedDelivery(answer=refused("", 404, "not found")))(scope, receive, send)


def _not_allowed(path: str, methods: Sequence[str]) -> DeliveredResponse:
    answer = refused(path.rstrip("/"), 405, "method not allowed")
    return DeliveredResponse(PlannedDelivery(answer=replace(answer, headers={"Allow": ", ".join(methods)})))


def _endpoint(state: State, path: str) -> Callable[[Request], Awaitable[DeliveredResponse]]:
    async def endpoint(request: Request) -> DeliveredResponse:
        try:
            body = await read_body(request, MAX_WIRE_BYTES)
        except TooSlowError as error:
            return DeliveredResponse(PlannedDelivery(answer=error.answer(path)))
        with state.lock:
            fault = state.faults.take(path)
        if fault is not None and fault.hold > 0:
            await anyio.sleep(fault.hold)
        delivery, records = await _taken(state, path, fault, request, body)
        answer = delivery.answer
        with state.lock:
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
        return DeliveredResponse(delivery)

    return endpoint


async def _taken(
    state: State, path: str, fault: Fault | None, request: Request, body: bytes
) -> tuple[PlannedDelivery, int]:
    """What `_take` gives, once it is on disk if it is to be kept there."""
    if state.store is not None and state.store.is_behind:
        # What cannot be kept must not take effect: a client that tries again would have it counted twice.
        behind = await _written(state, path, None)
        if behind is not None:
            return behind, 0
    with state.lock:
        delivery, records = _take(state, path, fault, request, body)
    if state.store is not None:
        delivery = await _written(state, path, delivery) or delivery
    return delivery, records


def _take(state: State, path: str, fault: Fault | None, request: Request, body: bytes) -> tuple[PlannedDelivery, int]:
    """The answer to a request with what a failure makes of it, and how many records it held."""
    if fault is not None and not fault.takes_effect:
        return fault.delivery(path, None), 0
    if path in FLAG_PATHS:
        true = state.flags.answer(path, dict(request.query_params), dict(request.headers), state.access)
    elif len(body) > MAX_WIRE_BYTES:
        state.project.note_refusal(path, Problem("", f"413: {too_large().message}"), None)
        true = refused(path, 413, too_large().message)
    else:
        received = Received(
            method=request.method,
            path=path,
            query=dict(request.query_params),
            headers=dict(request.headers),
            body=body,
            client=request.client.host if request.client is not None else "",
            refuse=frozenset() if fault is None else fault.refuse,
        )
        true = handle(received, state.project, state.access, state.now())
    return PlannedDelivery(answer=true) if fault is None else fault.delivery(path, true), true.records


async def _written(state: State, path: str, delivery: PlannedDelivery | None) -> PlannedDelivery | None:
    """The same delivery once the request is on disk, as nothing may be confirmed before."""
    try:
        # In a thread, where it holds up no other request and joins those that came meanwhile in one transaction.
        await anyio.to_thread.run_sync(state.flush)
    except StoreError as error:
        return PlannedDelivery(answer=refused(path, 503, str(error)))
    return delivery


async def read_body(request: Request, most: int) -> bytes:
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
                if size <= most:
                    chunks.append(chunk)
                size += len(chunk)
                if size > _MAX_DRAINED_BYTES:
                    break
    except ClientDisconnect:
        raise ConnectionDroppedError from None
    except TimeoutError:
        raise TooSlowError from None
    return b"".join(chunks)


def _masked(values: Mapping[str, str], secret: frozenset[str]) -> dict[str, str]:
    return {name: "***" if name in secret else value[:_KEPT_OF_A_VALUE] for name, value in values.items()}
