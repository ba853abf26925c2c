"""Routes other than ingestion and flags: the live page, `/_emulator/`, and those of `read_routes`.

Only this module, `app` and `read_routes` use Starlette. Other modules decide the content of the responses.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

import anyio.to_thread
from starlette.requests import Request

from ..page.files import INDEX, page_file, page_names
from ..project.responses import json_response
from .app import EmulatorState, JsonRoute, LargeBodyError, SlowBodyError, read_body
from .asgi_response import Receive, Scope, Send, unplanned
from .control_api import CONTROLS, MAX_CONTROL_BYTES, VIEWS, control, index, view
from .guard import CONTROL_PREFIX
from .read_routes import read_routes
from .reads import reads
from .stream import LiveStream

if TYPE_CHECKING:
    from .. import Emulator

ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
Endpoint = Callable[[Request], Awaitable[ASGIApp]]


def routes_of(emulator: Emulator, state: EmulatorState) -> list[JsonRoute]:
    """Return the routes to inspect and control an emulator.

    Args:
        emulator: the emulator, for routes that call its methods.
        state: state of the same emulator, for routes that stream data.
    """
    viewers = LiveStream(state, state.lock, id_merge=emulator.id_merge.value, token=emulator.token)
    return [
        *(JsonRoute(path, _index(), ["GET"]) for path in (CONTROL_PREFIX, f"{CONTROL_PREFIX}/")),
        *(JsonRoute(f"{CONTROL_PREFIX}/{name}", _view(emulator, name), ["GET"]) for name in VIEWS),
        *(JsonRoute(f"{CONTROL_PREFIX}/{name}", _control(emulator, name), ["POST"]) for name in CONTROLS),
        JsonRoute(f"{CONTROL_PREFIX}/stream", viewers, ["GET"]),
        *read_routes(state),
        JsonRoute("/", _page(INDEX), ["GET"]),
        *(JsonRoute(f"/{name}", _page(name), ["GET"]) for name in page_names()),
    ]


def _index() -> Endpoint:
    async def endpoint(_: Request) -> ASGIApp:
        return unplanned(index())

    return endpoint


def _view(emulator: Emulator, name: str) -> Endpoint:
    async def endpoint(request: Request) -> ASGIApp:
        parameters = request.query_params
        key = (id(emulator), name, tuple(parameters.items()))
        return unplanned(await reads().run_shared(key, partial(view, emulator, name, parameters)))

    return endpoint


def _control(emulator: Emulator, name: str) -> Endpoint:
    async def endpoint(request: Request) -> ASGIApp:
        try:
            body = await read_body(request, MAX_CONTROL_BYTES)
        except LargeBodyError:
            return unplanned(json_response(400, {"error": f"body has more than {MAX_CONTROL_BYTES} bytes"}))
        except SlowBodyError as error:
            return unplanned(error.response(request.url.path))
        # In a thread, because it may write to disk.
        response = await anyio.to_thread.run_sync(partial(control, emulator, name, request.query_params, body))
        return unplanned(response)

    return endpoint


def _page(name: str) -> Endpoint:
    async def endpoint(request: Request) -> ASGIApp:  # noqa: ARG001  the signature of an endpoint
        return unplanned(page_file(name))

    return endpoint
