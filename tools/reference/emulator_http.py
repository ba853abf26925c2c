"""Page of the HTTP API of the emulator, from the routes of its application. The texts are here."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any, Final, NamedTuple

from mixpanel_async.emulator import KINDS, Emulator
from mixpanel_async.emulator.http.control_api import CONTROLS, MAX_CONTROL_BYTES, MAX_LIMIT, VIEWS
from mixpanel_async.emulator.http.guard import CONTROL_PREFIX
from mixpanel_async.emulator.http.stream import MAX_VIEWERS
from mixpanel_async.emulator.page.files import page_names

from .markdown import code, page, section, table


class Text(NamedTuple):
    """Description of a route.

    Args:
        purpose: what a request does.
        answer: content of the response if the request succeeds.
    """

    purpose: str
    answer: str


VIEW_TEXTS: Final[dict[str, Text]] = {
    "events": Text(
        "Events as reports show them: deduplicated, each under the person it counts for. `distinct_id` is any id of "
        "the person.",
        "list of events",
    ),
    "profile": Text("Profile of a person, by any id of the person.", "object of properties; 404 without a profile"),
    "profiles": Text("All user profiles.", "object of profiles by canonical id"),
    "group": Text("Profile of a group.", "object of properties; 404 without a profile"),
    "resolve": Text("Canonical id of an id. An unknown id is its own canonical id.", '`{"distinct_id": ...}`'),
    "cluster": Text("All ids of the person with this id.", "sorted list of ids"),
    "clusters": Text("The ids of each person.", "list of lists of ids"),
    "identity-log": Text(
        "Identity calls with their outcomes; `name` selects one kind of call, such as `$identify`.",
        "list of entries: `event`, `properties`, `outcome` (`merged`, `unchanged`, `failed` or `ignored`), "
        "`$failure_reason`, `$failure_description`, and `advice` if the call failed",
    ),
    "audit": Text(
        "Mistakes in the ids of the stored events, as `mixpanel-async identity audit --json` prints them.",
        "object: persons, ids, outcomes of calls, and findings with cases and advice",
    ),
    "requests": Text(
        "Requests to the endpoints of ingestion and flags, without credentials.",
        "list of [`RecordedRequest`](emulator.md#mixpanel_async.emulator.RecordedRequest) objects",
    ),
    "rejected": Text(
        "Records and whole requests that were not stored.",
        "list of entries: `endpoint`, `field`, `message`, `record` and `silent`",
    ),
    "lookup-tables": Text("Lookup tables.", "object by id of the table, each a list of rows"),
    "unsupported": Text(
        "Endpoints of Mixpanel that were asked for and are not emulated, the latest last.",
        "list of entries: `method`, `path`, `count`, `first`, `last` (seconds since the epoch)",
    ),
    "recordings": Text(
        "Session recordings of browser SDKs, without their content.",
        "list of entries: `replay_id`, `distinct_id`, `batches`, `body_bytes`, `seconds`",
    ),
    "flags": Text("Definitions of all feature flags.", "list of definitions"),
    "stats": Text(
        "Numbers of everything. `stored` counts each copy of an event, also the `duplicates`.",
        "object: `events` (`stored`, `ingested`, `duplicates`), `profiles`, `groups`, `clusters`, `requests`, "
        "`rejected`, `identity` by outcome, `id_merge`, `started` (seconds since the epoch), `uptime` (seconds)",
    ),
}
"""Texts of the requests that read, by name."""

CONTROL_TEXTS: Final[dict[str, str]] = {
    "reset": "Delete all data and planned faults, and restore the initial flags. `latency` stays.",
    "fail-next": "Answer the next `times` requests to `path` with `status`, and with a `Retry-After` header or a "
    "`body` if given. With `apply`, they take effect all the same.",
    "drop-connections": "Close the connection of the next `n` requests to `path` without a response.",
    "break-next": f"Break the next `times` requests to `path`. `kind` is one of {', '.join(map(code, KINDS))}. See "
    "[`Emulator.break_next`](emulator.md#mixpanel_async.emulator.Emulator.break_next).",
    "random-faults": "Break requests at random, the same ones for the same `seed`. See "
    "[`Emulator.random_faults`](emulator.md#mixpanel_async.emulator.Emulator.random_faults).",
    "stop-faults": "Remove all planned faults.",
    "set-flags": "Replace all feature flags by a list of definitions.",
    "latency": "Delay each response to ingestion and flags by some seconds.",
    "clock-error": "Let the clock of the emulator, and its `Date` header, be ahead by some seconds; behind if "
    "negative.",
}
"""Texts of the requests that change something, by name."""

ENDPOINT_TEXTS: Final[dict[str, Text]] = {
    "/track": Text("Events and identity calls.", '`1`, or `{"status": 1, "error": null}` with `verbose=1`'),
    "/import": Text("Events of any age. Needs HTTP Basic credentials.", "number of imported records, or an error"),
    "/engage": Text("Updates of user profiles.", "as `/track`"),
    "/groups": Text("Updates of group profiles.", "as `/track`"),
    "/flags": Text("Evaluation of the enabled feature flags for a person.", "the selected variants"),
    "/flags/definitions": Text("Definitions for local evaluation.", "enabled flags, with an `ETag`"),
    "/settings": Text("Remote settings that browser SDKs ask for.", "no settings"),
    "/decide": Text("In-app messages that old browser SDKs ask for.", "no messages"),
    "/record": Text("Batch of a session recording. Its content is not kept.", "success"),
    "/api/2.0/export": Text("Raw export of events; the parameters are Mixpanel's.", "one JSON object for each line"),
    "/api/2.0/engage": Text("Profile query, in pages.", "profiles"),
    "/api/query/engage": Text("Profile query, in pages.", "profiles"),
    "/api/2.0/events/properties/top": Text("Most frequent properties of events.", "counts by property"),
    "/api/query/events/properties/top": Text("Most frequent properties of events.", "counts by property"),
    "/api/2.0/engage/properties": Text("Properties of profiles.", "counts and types by property"),
    "/api/query/engage/properties": Text("Properties of profiles.", "counts and types by property"),
    "/api/2.0/cohorts/list": Text("Cohorts. An emulated project has none.", "empty list"),
    "/api/query/cohorts/list": Text("Cohorts. An emulated project has none.", "empty list"),
    "/lookup-tables": Text("Lookup tables of the project.", "list of ids and names"),
    "/lookup-tables/{id}": Text("Replace a lookup table by a CSV file.", "success"),
    "/api/{path}": Text("Any other endpoint of Mixpanel.", "501; `unsupported` lists it"),
}
"""Texts of the endpoints that Mixpanel has, by path."""


class Endpoint(NamedTuple):
    """Route of the application.

    Args:
        path: path without a slash at its end.
        methods: methods that it accepts.
    """

    path: str
    methods: tuple[str, ...]


def endpoints() -> Iterator[Endpoint]:
    """Yield the routes of the application, those of the live page excepted."""
    app: Any = Emulator().app
    while not hasattr(app, "routes"):
        app = app._app
    files = {"/", *(f"/{name}" for name in page_names())}
    seen: set[str] = set()
    for route in app.routes:
        path = route.path.replace(":path}", "}")
        path = path.rstrip("/") or path
        if path not in files and path not in seen:
            seen.add(path)
            # Starlette adds HEAD to GET.
            yield Endpoint(path, tuple(sorted(route.methods - {"HEAD"})))


def emulator_http_page() -> str:
    """Return the page.

    Raises:
        KeyError: if a route has no text.
    """
    prefix = f"{CONTROL_PREFIX}/"
    views: list[tuple[str, ...]] = [
        (code("GET " + prefix), "", "All names of this table and the next, with their parameters.", "object"),
        (code(f"GET {prefix}stream"), "", f"Changes as they happen, for at most {MAX_VIEWERS} viewers.", _STREAM),
    ]
    controls, others = [], []
    for path, methods in endpoints():
        name = path.removeprefix(prefix)
        if path.startswith(prefix) and name in VIEWS:
            view = VIEWS[name]
            views.append(
                (code(f"GET {path}"), _names((*view.required, *view.optional), view.required), *VIEW_TEXTS[name])
            )
        elif path.startswith(prefix) and name in CONTROLS:
            control = CONTROLS[name]
            controls.append((code(f"POST {path}"), _names(control.arguments, control.required), CONTROL_TEXTS[name]))
        elif path not in (CONTROL_PREFIX, f"{prefix}stream"):
            others.append((code(path), ", ".join(methods), *ENDPOINT_TEXTS[path]))
    return page(
        "HTTP API of the emulator",
        "Tests in any language read and control an emulator by HTTP. Start it with "
        "[`mixpanel-async emulator`](commands.md#mixpanel-async-emulator) or with "
        "[`Emulator.serve`](emulator.md#mixpanel_async.emulator.Emulator.serve).",
        "For example, this makes the next two requests to `/track` fail, and reads the last event of a name:",
        _EXAMPLE,
        section(
            "Read the project",
            "Every response is JSON. A missing or an unknown parameter is answered with status 400 and "
            f'`{{"error": message}}`. `limit` returns only the last items, 1 to {MAX_LIMIT:,}. '
            "Required parameters are bold.",
            table(("Request", "Parameters", "Purpose", "Response"), views),
        ),
        section(
            "Control the emulator",
            "Arguments are a JSON object in the body, or parameters of the URL with lists separated by commas. "
            "Required arguments are bold. The body has at most "
            f'{MAX_CONTROL_BYTES // 1024} KiB. The response is `{{"status": "ok"}}`. An invalid argument is answered '
            "with status 400, and a data directory that cannot be written with 503.",
            table(("Request", "Arguments", "Effect"), controls),
        ),
        section(
            "Endpoints of Mixpanel",
            "[Fidelity](../explanation/fidelity.md) says how they differ from Mixpanel's. A slash at the end of a path "
            "is ignored.",
            table(("Path", "Methods", "Purpose", "Response"), others),
        ),
        section(
            "Access from web pages",
            "Pages of this machine, and of the origins of `--allow-origin`, can read the responses of ingestion and "
            f"flags. Pages of other origins can use neither `{prefix}` nor the endpoints that read data. A `Host` "
            "header that names another machine is refused, unless `--allow-host` names it.",
        ),
    )


def _names(names: Iterable[str], required: Collection[str]) -> str:
    return ", ".join(f"**{code(one)}**" if one in required else code(one) for one in names)


_EXAMPLE: Final = """
```console
mixpanel-async emulator --port 8080
curl http://127.0.0.1:8080/_emulator/fail-next -d '{"status": 503, "times": 2, "path": "/track"}'
curl 'http://127.0.0.1:8080/_emulator/events?name=Signed+up&limit=1'
```
"""
_STREAM: Final = "server-sent events `hello`, `batch` and `reset`"
