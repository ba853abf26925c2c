"""Routes of the endpoints that read data: export, profile query, and those of Mixpanel that are not emulated.

Only this module, `app` and `routes` use Starlette.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final

from starlette.requests import Request
from starlette.routing import Match

from ..project.export import EXPORT, export
from ..project.profile_query import QUERIES, ProfileQueries
from ..project.queries import InvalidQueryError, ReadRequest, body_fields
from ..project.responses import EmulatorResponse, error_response
from .app import EmulatorState, JsonRoute, LargeBodyError, SlowBodyError, read_body
from .asgi_response import AsgiResponse, ExportResponse, unplanned
from .reads import reads

_MAX_QUERY_BYTES: Final = 1024 * 1024
_METHODS: Final = ("DELETE", "GET", "PATCH", "POST", "PUT")

ReadEndpoint = Callable[[Request], Awaitable[AsgiResponse | ExportResponse]]


class ReadRoute(JsonRoute):
    """Route that also matches other methods, which it refuses, so that the last route does not take them."""

    def matches(self, scope: Any) -> tuple[Match, Any]:
        match, child_scope = super().matches(scope)
        return Match.NONE if match is Match.NONE else Match.FULL, child_scope


def read_routes(state: EmulatorState) -> list[JsonRoute]:
    """Return the routes that read data.

    Args:
        state: state of the emulator.
    """
    queries = ProfileQueries(state.lock)
    return [
        *(ReadRoute(at, _export(state), ["GET"]) for at in (EXPORT, EXPORT + "/")),
        *(
            ReadRoute(at, _profiles(state, queries, path), ["GET", "POST"])
            for path in QUERIES
            for at in (path, path + "/")
        ),
        # Last, because it matches every path below `/api`.
        JsonRoute("/api/{path:path}", _unsupported(state), _METHODS),
    ]


def _export(state: EmulatorState) -> ReadEndpoint:
    async def endpoint(request: Request) -> AsgiResponse | ExportResponse:
        query = _read_request(request, {})
        with state.lock:
            project = state.project
        response = export(query, project, state.lock, state.access, request.headers.get("accept-encoding", ""))
        return unplanned(response) if isinstance(response, EmulatorResponse) else ExportResponse(response)

    return endpoint


def _profiles(state: EmulatorState, queries: ProfileQueries, path: str) -> ReadEndpoint:
    async def endpoint(request: Request) -> AsgiResponse:
        query = await _query(request, path)
        if isinstance(query, EmulatorResponse):
            return unplanned(query)
        with state.lock:
            project = state.project
        return unplanned(await reads().run(partial(queries.respond, query, project, state.access, state.now())))

    return endpoint


def _unsupported(state: EmulatorState) -> ReadEndpoint:
    async def endpoint(request: Request) -> AsgiResponse:
        with state.lock:
            response = state.project.unsupported.respond(request.method, request.url.path, state.now())
        return unplanned(response)

    return endpoint


async def _query(request: Request, path: str) -> ReadRequest | EmulatorResponse:
    """Read a request with its body, or return the response that refuses it."""
    try:
        fields = body_fields(await read_body(request, _MAX_QUERY_BYTES))
    except LargeBodyError:
        return error_response(path, 413, f"request exceeds max limit of {_MAX_QUERY_BYTES} bytes")
    except SlowBodyError as error:
        return error.response(path)
    except InvalidQueryError as error:
        return error_response(path, 400, str(error))
    return _read_request(request, fields)


def _read_request(request: Request, fields: Mapping[str, str]) -> ReadRequest:
    return ReadRequest(
        path=request.url.path,
        authorization=request.headers.get("authorization", ""),
        parameters={**request.query_params, **fields},
    )
