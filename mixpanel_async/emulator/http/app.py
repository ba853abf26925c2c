"""ASGI application of the emulator. Only this module, `routes` and `read_routes` use Starlette.

The application reads a request within size and time limits, handles it under one lock, and applies planned faults. The
lock is needed because `serve()` runs the application in its own thread, while tests read the state from theirs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Any, Final

import anyio
import anyio.to_thread
from starlette.requests import ClientDisconnect, Request
from starlette.routing import Route, Router

from ..flags.flags import FLAG_METHODS, FlagDefinitions
from ..project.access import Access
from ..project.bodies import MAX_WIRE_BYTES, too_large
from ..project.bounded_log import BoundedLog
from ..project.browser import BROWSER_METHODS, Recordings, respond_to_browser
from ..project.checks import Problem
from ..project.ingestion import ENDPOINTS, IngestionRequest, ingest
from ..project.project import Project
from ..project.responses import EmulatorResponse, error_response
from ..storage.store import ProjectStore, StoreError
from .asgi_response import AsgiResponse, Receive, Scope, Send
from .cors import CrossOriginAccess
from .faults import ConnectionDroppedError, Fault, FaultPlan, PlannedResponse
from .guard import CONTROL_PREFIX, ASGIApp, Guard
from .request_log import Outcome, RequestLog, RequestWatch, mark_of, outcome_since, set_logged

REQUEST_LOG_LIMIT: Final = 10_000

_BODY_SECONDS: Final = 60.0
_MAX_CLOCK_ERROR: Final = 36_525 * 86_400.0
_SECRET_HEADERS: Final = frozenset({"authorization", "cookie", "proxy-authorization"})
_SECRET_PARAMETERS: Final = frozenset({"api_key", "data"})


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRequest:
    """Request that the emulator received.

    Args:
        method: HTTP method.
        path: endpoint, such as `/track`.
        query: parameters of the URL, with `api_key` and `data` masked. Values are cut at 1,000 characters, and what is
            above 10,000 characters together is left out.
        headers: headers by lower-case name, with credentials masked, and the same limits.
        status: HTTP status of the response, or None if the connection was closed without a response.
        records: number of records; 0 if the request was refused, or failed as planned, before it was decoded.
        body_bytes: size of the body in bytes as received, before decompression. If the declared size is above the
            limit, the body is not read, and this is the declared size.
    """

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    status: int | None
    records: int
    body_bytes: int


# Maximum length of one value, and of all headers or parameters of a request together, in the request log.
_MAX_LOGGED_VALUE: Final = 1_000
_MAX_LOGGED: Final = 10_000
# Memory that a name and its value take besides their characters, in characters.
_LOGGED_PAIR: Final = 100


class Clock:
    """Clock of the emulator: seconds since the epoch.

    Args:
        now: the clock without error.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._error = 0.0

    def __call__(self) -> float:
        return self._now() + self._error

    def set_error(self, seconds: float) -> None:
        """Let the clock be ahead by some seconds, or behind if negative.

        Raises:
            ValueError: if that is more than 100 years.
        """
        if not abs(seconds) <= _MAX_CLOCK_ERROR:
            raise ValueError(
                f"seconds must be between -{_MAX_CLOCK_ERROR:,.0f} and {_MAX_CLOCK_ERROR:,.0f}, not {seconds}"
            )
        self._error = float(seconds)


class EmulatorState:
    """State shared by the application and its inspection. Hold `lock` to access anything but `latency` and `now`.

    Args:
        new_project: creates an empty project, at the start and at each reset.
        access: access rules of the project.
        now: clock of the emulator.
        store: storage of the project, or None to keep it in memory only.
        flags: feature flags of the project.
    """

    def __init__(
        self,
        new_project: Callable[[], Project],
        access: Access,
        now: Clock,
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
        self.log = RequestLog(time.monotonic)
        self.store = store
        self.flags = flags
        self.recordings = Recordings()
        self.project = new_project()
        self._new_project = new_project

    def reset(self) -> None:
        """Delete all data, requests and planned faults, and restore the initial flags.

        Call `flush` afterwards, without the lock.
        """
        if self.store is not None:
            self.store.changes.clear()
        self.project = self._new_project()
        self.faults.clear()
        self.flags.reset()
        self.recordings = Recordings()
        self.requests = BoundedLog(REQUEST_LOG_LIMIT)
        self.log.reset()

    def log_other_request(self, method: str, path: str, status: int | None, reason: str) -> None:
        """Log a request that no ingestion or flag endpoint has answered."""
        with self.lock:
            self.log.append(at=self.now(), method=method, path=path, status=status, outcome=Outcome(reason=reason))

    def log_unread_request(self, status: int | None, reason: str) -> None:
        """Log a request that the server could not read."""
        self.log_other_request("", "", status, reason)

    def flush(self) -> None:
        """Write all changes to disk, if there is a store. Blocks. Call it without the lock.

        Raises:
            StoreError: if the changes cannot be written.
        """
        if self.store is not None:
            self.store.flush(self.lock)


class JsonRoute(Route):
    """Route that accepts only the given methods, and answers other methods in Mixpanel's format."""

    def __init__(self, path: str, endpoint: Callable[..., Any], methods: Sequence[str]) -> None:
        super().__init__(path, endpoint, methods=list(methods))
        # Starlette would add HEAD to GET, which the live stream does not support.
        self._allowed_methods = frozenset(methods)

    async def handle(self, scope: Any, receive: Any, send: Any) -> None:
        app = (
            self.app
            if scope["method"] in self._allowed_methods
            else _not_allowed(scope["path"], sorted(self._allowed_methods))
        )
        await app(scope, receive, send)


class LargeBodyError(Exception):
    """The body of a request is larger than the limit.

    Args:
        size: declared size in bytes, or the size received so far.
    """

    def __init__(self, size: int) -> None:
        super().__init__(f"the body has {size} bytes or more")
        self.size = size


class SlowBodyError(Exception):
    """The body of a request did not arrive in time."""

    def response(self, path: str) -> EmulatorResponse:
        """Return the response to the client.

        It closes the connection, because the rest of the body could be mistaken for the next request.

        Args:
            path: path of the endpoint.
        """
        return replace(error_response(path, 408, "the body did not arrive in time"), headers={"Connection": "close"})


def build_app(state: EmulatorState, extra_routes: Sequence[JsonRoute], allow_origins: frozenset[str]) -> ASGIApp:
    """Return the ASGI application of an emulator.

    It is a plain router without error middleware, so that the exception of `drop_connections` reaches the server.

    Args:
        state: state of the emulator.
        extra_routes: routes other than ingestion, flags and the endpoints of browser SDKs.
        allow_origins: origins whose pages may read the responses of ingestion and flags, besides those of this machine.
    """
    methods = {**dict.fromkeys(ENDPOINTS, ("GET", "POST")), **FLAG_METHODS, **BROWSER_METHODS}
    routes = [JsonRoute(at, _endpoint(state, path), methods[path]) for path in methods for at in (path, path + "/")]
    router = Router([*routes, *extra_routes], redirect_slashes=False, default=_not_found)
    return RequestWatch(Guard(CrossOriginAccess(router, allow_origins)), state.log_other_request)


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    reason = "Mixpanel has no such endpoint, or the emulator does not know it"
    error = "not found"
    if f"{scope['path']}/".startswith(f"{CONTROL_PREFIX}/"):
        error = f"not found; GET {CONTROL_PREFIX}/ lists the endpoints and their parameters"
    response = error_response("", 404, error, reason=reason)
    await AsgiResponse(PlannedResponse(response=response))(scope, receive, send)


def _not_allowed(path: str, methods: Sequence[str]) -> AsgiResponse:
    response = error_response(path.rstrip("/"), 405, f"method not allowed; use {' or '.join(methods)}")
    return AsgiResponse(PlannedResponse(response=replace(response, headers={"Allow": ", ".join(methods)})))


def _endpoint(state: EmulatorState, path: str) -> Callable[[Request], Awaitable[AsgiResponse]]:
    async def endpoint(request: Request) -> AsgiResponse:
        try:
            body = await read_body(request, MAX_WIRE_BYTES)
            size = len(body)
        except LargeBodyError as error:
            body, size = None, error.size
        except SlowBodyError as error:
            return AsgiResponse(PlannedResponse(response=error.response(path)))
        with state.lock:
            fault = state.faults.take(path)
        if fault is not None and fault.seconds_before_effect > 0:
            await anyio.sleep(fault.seconds_before_effect)
        received = IngestionRequest(
            method=request.method,
            path=path,
            query=dict(request.query_params),
            # Looking up each name would search the list of all headers.
            headers=dict(request.headers.items()),
            body=body or b"",
            client=_sender(request),
            refused_indexes=frozenset() if fault is None else fault.refused_indexes,
        )
        delivery, records, outcome = await _process_request(state, fault, received, is_too_large=body is None)
        response = delivery.response
        status = None if response is None else response.status
        set_logged(request.scope)
        with state.lock:
            state.requests.append(
                RecordedRequest(
                    method=received.method,
                    path=path,
                    query=_mask(received.query, _SECRET_PARAMETERS),
                    headers=_mask(received.headers, _SECRET_HEADERS),
                    status=status,
                    records=records,
                    body_bytes=size,
                )
            )
            state.log.append(
                at=state.now(),
                method=received.method,
                path=path,
                status=status,
                records=records,
                outcome=outcome,
                fault="" if fault is None else fault.kind,
                body_bytes=size,
            )
        if state.latency > 0:
            await anyio.sleep(state.latency)
        return AsgiResponse(delivery)

    return endpoint


async def _process_request(
    state: EmulatorState, fault: Fault | None, received: IngestionRequest, *, is_too_large: bool
) -> tuple[PlannedResponse, int, Outcome]:
    """Process a request, write its changes to disk, and return the response, the number of records and the outcome."""
    if state.store is not None and state.store.has_unwritten_changes:
        # A request whose changes cannot be written must not take effect. Otherwise its retry would be counted twice.
        error = await _flush_to_disk(state, received.path, None)
        if error is not None:
            return error, 0, Outcome(reason="the data directory cannot be written")
    with state.lock:
        before = mark_of(state.project)
        delivery, records = _process_in_memory(state, fault, received, is_too_large=is_too_large)
        outcome = outcome_since(before, state.project)
    if fault is None and not outcome.reason and delivery.response is not None:
        outcome = Outcome(outcome.stored, outcome.rejected, delivery.response.reason)
    if state.store is not None:
        delivery = await _flush_to_disk(state, received.path, delivery) or delivery
    return delivery, records, outcome


def _process_in_memory(
    state: EmulatorState, fault: Fault | None, received: IngestionRequest, *, is_too_large: bool
) -> tuple[PlannedResponse, int]:
    """Process a request in memory. Return the response with the fault applied, and the number of records."""
    path = received.path
    if fault is not None and not fault.takes_effect:
        return fault.plan(path, None), 0
    if is_too_large:
        state.project.log_rejection(path, Problem("", f"413: {too_large().message}"), None)
        response = error_response(path, 413, too_large().message)
    elif path in FLAG_METHODS:
        posted = received.body if received.method == "POST" else b""
        response = state.flags.respond(path, received.query, received.headers, posted, state.access)
    elif path in BROWSER_METHODS:
        response = respond_to_browser(
            path, received.query, received.headers, len(received.body), state.recordings, state.access
        )
    else:
        response = ingest(received, state.project, state.access, state.now())
    return PlannedResponse(response=response) if fault is None else fault.plan(path, response), response.records


def _sender(request: Request) -> str:
    """Return the IP address of the sender; a proxy for browsers names its client in `X-Forwarded-For`.

    Source: the configuration in https://github.com/mixpanel/tracking-proxy.
    """
    forwarded = request.headers.get("x-forwarded-for", "").partition(",")[0].strip()
    if forwarded:
        try:
            return str(ip_address(forwarded))
        except ValueError:
            # Mixpanel's reaction is not known. A wrong header must not become a place.
            pass
    return "" if request.client is None else request.client.host


async def _flush_to_disk(state: EmulatorState, path: str, planned: PlannedResponse | None) -> PlannedResponse | None:
    """Write all changes to disk before the request is confirmed. Return the response, or an error response."""
    try:
        # In a thread, so that other requests continue. Their changes join the next transaction.
        await anyio.to_thread.run_sync(state.flush)
    except StoreError as error:
        return PlannedResponse(response=error_response(path, 503, str(error)))
    return planned


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Read the body of a request.

    A declared size above the limit is refused without reading the body. The server closes the connection after the
    response, and discards what the client still sends.

    Args:
        request: the request.
        max_bytes: maximum size of the body in bytes.

    Raises:
        ConnectionDroppedError: if the client disconnects before the end.
        LargeBodyError: if the body is too large.
        SlowBodyError: if the body does not arrive in time.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise LargeBodyError(int(declared))
    chunks: list[bytes] = []
    size = 0
    try:
        with anyio.fail_after(_BODY_SECONDS):
            async for chunk in request.stream():
                chunks.append(chunk)
                size += len(chunk)
                if size > max_bytes:
                    raise LargeBodyError(size)
    except ClientDisconnect:
        raise ConnectionDroppedError from None
    except TimeoutError:
        raise SlowBodyError from None
    return b"".join(chunks)


def _mask(values: Mapping[str, str], secret: frozenset[str]) -> dict[str, str]:
    masked: dict[str, str] = {}
    left = _MAX_LOGGED
    for name, value in values.items():
        shown = "***" if name in secret else value[:_MAX_LOGGED_VALUE]
        left -= len(name) + len(shown) + _LOGGED_PAIR
        if left < 0:
            break
        masked[name] = shown
    return masked
