"""Routes of export, queries and lookup tables, and of Mixpanel's endpoints that are not emulated.

Only this module, `app` and `routes` use Starlette.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final

from starlette.requests import Request
from starlette.routing import Match

from ..project.access import Access
from ..project.bodies import MAX_BYTES
from ..project.export import EXPORT, export
from ..project.lookup_tables import LOOKUP_TABLES, decode_table, lookup_error
from ..project.profile_query import QUERIES, ProfileQueries
from ..project.project import Project
from ..project.property_lists import COHORTS, PROFILE_PROPERTIES, TOP_PROPERTIES, PropertyLists, cohorts
from ..project.queries import InvalidQueryError, ReadRequest, body_fields
from ..project.responses import EmulatorResponse, error_response
from .app import EmulatorState, JsonRoute, LargeBodyError, SlowBodyError, read_body
from .asgi_response import AsgiResponse, ExportResponse, unplanned
from .reads import reads

_MAX_QUERY_BYTES: Final = 1024 * 1024
_METHODS: Final = ("DELETE", "GET", "PATCH", "POST", "PUT")

Respond = Callable[[ReadRequest, Project, Access, float], EmulatorResponse]
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
    profiles, lists = ProfileQueries(state.lock), PropertyLists(state.lock)
    queries = (
        *((path, profiles.respond) for path in QUERIES),
        *((path, lists.top_properties) for path in TOP_PROPERTIES),
        *((path, lists.profile_properties) for path in PROFILE_PROPERTIES),
        *((path, cohorts) for path in COHORTS),
    )
    return [
        *(ReadRoute(at, _export(state), ["GET"]) for at in _spellings(EXPORT)),
        *(
            ReadRoute(at, _query(state, path, respond), ["GET", "POST"])
            for path, respond in queries
            for at in _spellings(path)
        ),
        *(ReadRoute(at, _list_lookup_tables(state), ["GET"]) for at in _spellings(LOOKUP_TABLES)),
        ReadRoute(LOOKUP_TABLES + "/{id}", _replace_lookup_table(state), ["PUT"]),
        # Last, because it matches every path below `/api`.
        JsonRoute("/api/{path:path}", _unsupported(state), _METHODS),
    ]


def _spellings(path: str) -> tuple[str, str]:
    return path, path + "/"


def _export(state: EmulatorState) -> ReadEndpoint:
    async def endpoint(request: Request) -> AsgiResponse | ExportResponse:
        query = _read_request(request, {})
        with state.lock:
            project = state.project
        response = export(query, project, state.lock, state.access, request.headers.get("accept-encoding", ""))
        return unplanned(response) if isinstance(response, EmulatorResponse) else ExportResponse(response)

    return endpoint


def _query(state: EmulatorState, path: str, respond: Respond) -> ReadEndpoint:
    async def endpoint(request: Request) -> AsgiResponse:
        try:
            query = _read_request(request, body_fields(await read_body(request, _MAX_QUERY_BYTES)))
        except LargeBodyError:
            return unplanned(error_response(path, 413, f"request exceeds max limit of {_MAX_QUERY_BYTES} bytes"))
        except SlowBodyError as error:
            return unplanned(error.response(path))
        except InvalidQueryError as error:
            return unplanned(error_response(path, 400, str(error)))
        with state.lock:
            project = state.project
        return unplanned(await reads().run(partial(respond, query, project, state.access, state.now())))

    return endpoint


def _list_lookup_tables(state: EmulatorState) -> ReadEndpoint:
    async def endpoint(request: Request) -> AsgiResponse:
        refusal = _lookup_refusal(state, request)
        if refusal is not None:
            return unplanned(refusal)
        with state.lock:
            return unplanned(state.project.lookup_tables.list_all())

    return endpoint


def _replace_lookup_table(state: EmulatorState) -> ReadEndpoint:
    def replace_table(table: str, body: bytes, content_encoding: str) -> EmulatorResponse:
        content = decode_table(table, body, content_encoding)
        if isinstance(content, EmulatorResponse):
            return content
        with state.lock:
            return state.project.lookup_tables.replace(table, content)

    async def endpoint(request: Request) -> AsgiResponse:
        refusal = _lookup_refusal(state, request)
        if refusal is not None:
            return unplanned(refusal)
        try:
            body = await read_body(request, MAX_BYTES)
        except LargeBodyError:
            return unplanned(lookup_error(413))
        except SlowBodyError as error:
            return unplanned(error.response(request.url.path))
        encoding = request.headers.get("content-encoding", "")
        return unplanned(await reads().run(partial(replace_table, request.path_params["id"], body, encoding)))

    return endpoint


def _lookup_refusal(state: EmulatorState, request: Request) -> EmulatorResponse | None:
    reason = _read_request(request, {}).refusal(state.access)
    return replace(lookup_error(401), reason=reason) if reason else None


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
