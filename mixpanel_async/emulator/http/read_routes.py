"""Routes of the endpoints that read data: export, profile query, and those of Mixpanel that are not emulated.

Only this module, `app` and `routes` use Starlette.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.routing import Match

from ..project.export import EXPORT, MAX_QUERY_BYTES, QUERIES, ProfileQueries, ReadRequest, export
from ..project.responses import EmulatorResponse, error_response
from .app import EmulatorState, JsonRoute, LargeBodyError, SlowBodyError, read_body
from .asgi_response import AsgiResponse, ExportResponse, unplanned
from .reads import reads

_MAX_FORM_FIELDS: Final = 100
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
    queries = ProfileQueries()
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
        try:
            body = await read_body(request, MAX_QUERY_BYTES)
            fields = dict(parse_qsl(body.decode("utf-8", "replace"), max_num_fields=_MAX_FORM_FIELDS))
        except LargeBodyError:
            return unplanned(error_response(path, 413, f"request exceeds max limit of {MAX_QUERY_BYTES} bytes"))
        except SlowBodyError as error:
            return unplanned(error.response(path))
        except ValueError:
            return unplanned(error_response(path, 400, "form has too many fields"))
        query = _read_request(request, fields)

        def respond() -> EmulatorResponse:
            with state.lock:
                return queries.respond(query, state.project, state.access, state.now())

        return unplanned(await reads().run(respond))

    return endpoint


def _unsupported(state: EmulatorState) -> ReadEndpoint:
    async def endpoint(request: Request) -> AsgiResponse:
        with state.lock:
            response = state.project.unsupported.respond(request.method, request.url.path, state.now())
        return unplanned(response)

    return endpoint


def _read_request(request: Request, fields: Mapping[str, str]) -> ReadRequest:
    return ReadRequest(
        path=request.url.path,
        authorization=request.headers.get("authorization", ""),
        parameters={**request.query_params, **fields},
    )
