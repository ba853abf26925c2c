"""Routes other than ingestion and flags: the live page, `/_emulator/` and the endpoints that read data.

Only this module and `app` use Starlette. Other modules decide the content of the responses.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl

import anyio.to_thread
from starlette.requests import Request

from ..page.files import INDEX, page_file, page_names
from ..project.export import EXPORT, MAX_QUERY_BYTES, QUERIES, ProfileQueries, ReadRequest, export
from ..project.responses import EmulatorResponse, error_response, json_response
from .app import EmulatorState, JsonRoute, LargeBodyError, SlowBodyError, read_body
from .asgi_response import AsgiResponse, ExportResponse, Receive, Scope, Send
from .control_api import CONTROLS, MAX_CONTROL_BYTES, VIEWS, control, index, view
from .faults import PlannedResponse
from .guard import CONTROL_PREFIX
from .reads import reads
from .stream import LiveStream

if TYPE_CHECKING:
    from .. import Emulator

_MAX_FORM_FIELDS: Final = 100

ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
Endpoint = Callable[[Request], Awaitable[ASGIApp]]


def routes_of(emulator: Emulator, state: EmulatorState) -> list[JsonRoute]:
    """Return the routes to inspect and control an emulator.

    Args:
        emulator: the emulator, for routes that call its methods.
        state: state of the same emulator, for routes that stream data.
    """
    viewers = LiveStream(state, state.lock, id_merge=emulator.id_merge.value, token=emulator.token)
    queries = ProfileQueries()
    return [
        *(JsonRoute(path, _index(), ["GET"]) for path in (CONTROL_PREFIX, f"{CONTROL_PREFIX}/")),
        *(JsonRoute(f"{CONTROL_PREFIX}/{name}", _view(emulator, name), ["GET"]) for name in VIEWS),
        *(JsonRoute(f"{CONTROL_PREFIX}/{name}", _control(emulator, name), ["POST"]) for name in CONTROLS),
        JsonRoute(f"{CONTROL_PREFIX}/stream", viewers, ["GET"]),
        JsonRoute(EXPORT, _export(state), ["GET"]),
        *(JsonRoute(path, _profiles(state, queries, path), ["GET", "POST"]) for path in QUERIES),
        JsonRoute("/", _page(INDEX), ["GET"]),
        *(JsonRoute(f"/{name}", _page(name), ["GET"]) for name in page_names()),
    ]


def _index() -> Endpoint:
    async def endpoint(_: Request) -> ASGIApp:
        return _send(index())

    return endpoint


def _view(emulator: Emulator, name: str) -> Endpoint:
    async def endpoint(request: Request) -> ASGIApp:
        parameters = request.query_params
        key = (id(emulator), name, tuple(parameters.items()))
        return _send(await reads().run_shared(key, partial(view, emulator, name, parameters)))

    return endpoint


def _control(emulator: Emulator, name: str) -> Endpoint:
    async def endpoint(request: Request) -> ASGIApp:
        try:
            body = await read_body(request, MAX_CONTROL_BYTES)
        except LargeBodyError:
            return _send(json_response(400, {"error": f"body has more than {MAX_CONTROL_BYTES} bytes"}))
        except SlowBodyError as error:
            return _send(error.response(request.url.path))
        # In a thread, because it may write to disk.
        response = await anyio.to_thread.run_sync(partial(control, emulator, name, request.query_params, body))
        return _send(response)

    return endpoint


def _export(state: EmulatorState) -> Endpoint:
    async def endpoint(request: Request) -> ASGIApp:
        query = _read_request(request, {})
        with state.lock:
            project = state.project
        response = export(query, project, state.lock, state.access, request.headers.get("accept-encoding", ""))
        return _send(response) if isinstance(response, EmulatorResponse) else ExportResponse(response)

    return endpoint


def _profiles(state: EmulatorState, queries: ProfileQueries, path: str) -> Endpoint:
    async def endpoint(request: Request) -> ASGIApp:
        try:
            body = await read_body(request, MAX_QUERY_BYTES)
            fields = dict(parse_qsl(body.decode("utf-8", "replace"), max_num_fields=_MAX_FORM_FIELDS))
        except LargeBodyError:
            return _send(error_response(path, 413, f"request exceeds max limit of {MAX_QUERY_BYTES} bytes"))
        except SlowBodyError as error:
            return _send(error.response(path))
        except ValueError:
            return _send(error_response(path, 400, "form has too many fields"))
        query = _read_request(request, fields)

        def respond() -> EmulatorResponse:
            with state.lock:
                return queries.respond(query, state.project, state.access, state.now())

        return _send(await reads().run(respond))

    return endpoint


def _read_request(request: Request, fields: Mapping[str, str]) -> ReadRequest:
    return ReadRequest(
        path=request.url.path,
        authorization=request.headers.get("authorization", ""),
        parameters={**request.query_params, **fields},
    )


def _page(name: str) -> Endpoint:
    async def endpoint(request: Request) -> ASGIApp:  # noqa: ARG001  the signature of an endpoint
        return _send(page_file(name))

    return endpoint


def _send(response: EmulatorResponse) -> AsgiResponse:
    return AsgiResponse(PlannedResponse(response=response))
