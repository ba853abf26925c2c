"""Everything beside ingestion that the emulator answers: the live page, `/_emulator/`, and reading data back.

With `app`, the only modules that know Starlette. What an answer holds is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl

import anyio.to_thread
from starlette.requests import Request

from ..page.files import INDEX, page_file, page_names
from ..project.export import EXPORT, MAX_QUERY_BYTES, QUERIES, ProfileQueries, Query, export
from ..project.responses import Answer, refused
from .app import JsonRoute, State, TooSlowError, read_body
from .delivery import DeliveredResponse, Receive, Scope, Send
from .faults import PlannedDelivery
from .guard import CONTROL
from .inspection import CONTROLS, MAX_CONTROL_BYTES, VIEWS, control, index, view
from .stream import Viewers

if TYPE_CHECKING:
    from .. import Emulator

_MAX_FORM_FIELDS: Final = 100

ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
Endpoint = Callable[[Request], Awaitable[ASGIApp]]


def routes_of(emulator: Emulator, state: State) -> list[JsonRoute]:
    """The routes for looking at an emulator and for steering it.

    Args:
        emulator: for what has a method in Python.
        state: of the same emulator, for what reads it piece by piece.
    """
    viewers = Viewers(state, state.lock, id_merge=emulator.id_merge.value, token=emulator.token)
    queries = ProfileQueries()
    return [
        *(JsonRoute(path, _index(), ["GET"]) for path in (CONTROL, f"{CONTROL}/")),
        *(JsonRoute(f"{CONTROL}/{name}", _view(emulator, name), ["GET"]) for name in VIEWS),
        *(JsonRoute(f"{CONTROL}/{name}", _control(emulator, name), ["POST"]) for name in CONTROLS),
        JsonRoute(f"{CONTROL}/stream", viewers, ["GET"]),
        JsonRoute(EXPORT, _export(state), ["GET"]),
        *(JsonRoute(path, _profiles(state, queries, path), ["GET", "POST"]) for path in QUERIES),
        JsonRoute("/", _page(INDEX), ["GET"]),
        *(JsonRoute(f"/{name}", _page(name), ["GET"]) for name in page_names()),
    ]


def _index() -> Endpoint:
    async def endpoint(_: Request) -> ASGIApp:
        return _sent(index())

    return endpoint


def _view(emulator: Emulator, name: str) -> Endpoint:
    async def endpoint(request: Request) -> ASGIApp:
        return _sent(view(emulator, name, request.query_params))

    return endpoint


def _control(emulator: Emulator, name: str) -> Endpoint:
    async def endpoint(request: Request) -> ASGIApp:
        try:
            body = await read_body(request, MAX_CONTROL_BYTES)
        except TooSlowError as error:
            return _sent(error.answer(request.url.path))
        # In a thread, because it may write to the disk.
        answer = await anyio.to_thread.run_sync(partial(control, emulator, name, request.query_params, body))
        return _sent(answer)

    return endpoint


def _export(state: State) -> Endpoint:
    async def endpoint(request: Request) -> ASGIApp:
        query = _query(request, {})
        with state.lock:
            project = state.project
        answer = export(query, project, state.lock, state.access, request.headers.get("accept-encoding", ""))
        return _sent(answer) if isinstance(answer, Answer) else answer

    return endpoint


def _profiles(state: State, queries: ProfileQueries, path: str) -> Endpoint:
    async def endpoint(request: Request) -> ASGIApp:
        try:
            body = await read_body(request, MAX_QUERY_BYTES)
            if len(body) > MAX_QUERY_BYTES:
                return _sent(refused(path, 413, f"request exceeds max limit of {MAX_QUERY_BYTES} bytes"))
            fields = dict(parse_qsl(body.decode("utf-8", "replace"), max_num_fields=_MAX_FORM_FIELDS))
        except TooSlowError as error:
            return _sent(error.answer(path))
        except ValueError:
            return _sent(refused(path, 400, "form has too many fields"))
        with state.lock:
            return _sent(queries.answer(_query(request, fields), state.project, state.access, state.now()))

    return endpoint


def _query(request: Request, fields: Mapping[str, str]) -> Query:
    return Query(
        path=request.url.path,
        authorization=request.headers.get("authorization", ""),
        parameters={**request.query_params, **fields},
    )


def _page(name: str) -> Endpoint:
    async def endpoint(request: Request) -> ASGIApp:  # noqa: ARG001  the signature of an endpoint
        return _sent(page_file(name))

    return endpoint


def _sent(answer: Answer) -> DeliveredResponse:
    return DeliveredResponse(PlannedDelivery(answer=answer))
