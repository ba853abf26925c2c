"""Page of the log events: names, levels and data from the code, meanings from the table here."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

import mixpanel_async

from .markdown import code, page, table

PACKAGE: Final = Path(mixpanel_async.__file__).parent
# They share nothing with the client, or print for the user of a command.
_OTHER_PROGRAMS: Final = frozenset({"cli", "emulator"})
_EXTRA: Final = re.compile(r"\{'mixpanel': \{'event': '(\w+)'\}\}")
_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR")

_OF_REQUEST: Final = "`status` is None without a response"
_ONCE_PER_APP: Final = "Once per app."

MEANINGS: Final[dict[str, str]] = {
    "batch_sent": f"One request with a batch. `bytes` is the size as sent; {_OF_REQUEST}.",
    "call_sent": "One attempt of an awaited call, or of a request for flags.",
    "retry_scheduled": "A batch failed. Its records are kept and sent again.",
    "configuration_refused": "Credentials, region or `api_host` are wrong, or the outbox refused (`status` is None). "
    "The records are kept.",
    "records_rejected": "Mixpanel rejected some records of this request.",
    "invalid_data": 'Invalid data with `invalid="drop"`; once for each call site.',
    "invalid_data_unlogged": "`sites` call sites have been logged. Further ones are not.",
    "records_dropped": "Records were dropped by the client. `records` counts those since the last such line, "
    "`total` all of this reason.",
    "records_lost": "Records failed, or are `uncertain`.",
    "identity_deferred": "`sign_in` got no answer in time and has queued its identity event.",
    "sign_in_failed": "The queue did not accept the events of a `sign_in`.",
    "request_not_created": "A request could not be created. Its records are retried.",
    "call_cancelled": "The caller of an awaited call was cancelled, and then the call failed.",
    "environment_ignored": "A variable for proxies or certificates cannot be used. The line names it.",
    "property_renamed": "A property `token` of an event is sent as `token_`. Once per client.",
    "closing": "`records` wait, and closing takes at most `seconds`. A warning after one second.",
    "closed": "Result of closing. `pending` records stay in the spool.",
    "losses_not_reported": "`on_drop` was too slow for the end of the client.",
    "not_started": "`records` wait, and no event loop runs the client.",
    "loop_ended": "An event loop ended before the records were delivered.",
    "not_closed": "Records were left when the interpreter or a worker process ended, or wait in the spool.",
    "delivery_not_awaited": "A signal handler interrupted a call of the same client, so its `close()` or `flush()` "
    "could not wait.",
    "callback_failed": "A callback raised an error. Once per client.",
    "clock_wrong": "The clock of this machine is `seconds` ahead of Mixpanel's.",
    "outbox_unavailable": "A worker cannot reach its outbox and tries again. An error if the outbox refuses it.",
    "outbox_available": "A worker reaches its outbox again.",
    "outbox_newer": "A newer version of this package wrote `entries`, which this worker leaves to others. Once per run "
    "of a worker.",
    "outbox_not_released": "A worker ended and could not say so. The others take over after 15 seconds.",
    "outbox_lost": "The queue in Redis, or a part of it, was removed. `records` waited at the last heartbeat; None if "
    "that is unknown.",
    "outbox_policy_unknown": "Redis hides its `maxmemory-policy`, which must be `noeviction`.",
    "spool_failed": "The disk cannot be used. The client tries again every second.",
    "spool_recovered": "A damaged spool file was set aside, and its readable `rows` were saved.",
    "spool_harmed": "A file of the spool was deleted, moved or overwritten. Records in memory move to a new one.",
    "spool_not_closed": "The disk did not answer within `seconds`. Records that were not written are lost.",
    "spool_shared": "`clients` of other projects have records in the file.",
    "spool_takeover_failed": "The records of an ended client could not be taken over.",
    "spool_not_cleaned": "The spool file could not be cleaned up when it was closed.",
    "flags_failed": "Definitions could not be fetched. An error if the credentials are refused.",
    "flags_recovered": "Definitions are fetched again.",
    "flags_refused": "`flags` definitions are malformed.",
    "flags_unmet": "`flags` flags have rules that can never match.",
    "flags_listener_failed": "A listener of flag updates raised an error.",
    "lifespan_missing": "The app has no lifespan, and the integration answers the server.",
    "request_not_tracked": "The event of `track_requests` could not be tracked, or the visitor could not be read. "
    f"{_ONCE_PER_APP}",
    "cookie_not_sent": f"The cookie with the anonymous id could not be set. {_ONCE_PER_APP}",
    "visitor_replaced": (
        "The visitor cookie of a request had a value that is not an anonymous id, and the visitor got a new one. "
        f"{_ONCE_PER_APP}"
    ),
    "client_not_open": f"The lifespan of the app has not opened the client, or has closed it. {_ONCE_PER_APP}",
    "tracking_off": "The client could not be created or started, so calls do nothing (ASGI and Django).",
    "login_not_tracked": "Login or logout was not tracked (Django). Once.",
    "late_call_failed": "A call failed that an async view did not await (Django). Once.",
    "flush_incomplete": "Records that were not delivered at the end of a task or invocation wait in the queue (Celery, "
    "taskiq, Lambda). Once, until a delivery succeeds.",
    "flush_failed": "No delivery was possible at the end of a task or invocation. Once, until a delivery succeeds.",
    "pool_not_supported": "The worker has the pool eventlet (Celery).",
    "consent_failed": f"`consent` raised an error or did not return a bool. {_ONCE_PER_APP}",
    "user_not_read": f"`user_id` raised an error or did not return an id. {_ONCE_PER_APP}",
}
"""Meaning of each event, in the order of the page."""

# Levels of the events whose level the code computes.
COMPUTED_LEVELS: Final[dict[str, tuple[str, ...]]] = {
    "closed": ("INFO", "WARNING"),
    "outbox_unavailable": ("WARNING", "ERROR"),
    "flags_failed": ("WARNING", "ERROR"),
}


class LogCall(NamedTuple):
    """Call that logs an event; no level if the code computes it."""

    name: str
    level: str | None
    data: tuple[str, ...]


@cache
def sources() -> tuple[tuple[str, ast.Module], ...]:
    """Return the modules of the client, each with its path in the package."""
    paths = {path.relative_to(PACKAGE): path for path in sorted(PACKAGE.rglob("*.py"))}
    return tuple(
        (relative.as_posix(), ast.parse(path.read_text(encoding="utf-8")))
        for relative, path in paths.items()
        if relative.parts[0] not in _OTHER_PROGRAMS
    )


def log_calls() -> Iterator[LogCall]:
    """Yield the calls of `log_event`, and in the integrations also of `_warn` and of the logger."""
    for path, tree in sources():
        for call in ast.walk(tree):
            if isinstance(call, ast.Call):
                yield from _logged(call, path)


def _logged(call: ast.Call, path: str) -> Iterator[LogCall]:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    args = call.args
    if name == "partial" and ast.unparse(args[0]) == "log_event":
        name, args = "log_event", args[1:]
    if name == "log_event":
        level = args[0].attr if isinstance(args[0], ast.Attribute) else None
        yield LogCall(_text(args[1], path), level, tuple(keyword.arg or "" for keyword in call.keywords))
    elif name == "_warn":
        yield LogCall(_text(args[0], path), "WARNING", ())
    for keyword in call.keywords:
        if keyword.arg == "extra" and (found := _EXTRA.fullmatch(ast.unparse(keyword.value))):
            yield LogCall(found[1], name.upper(), ())


def _text(node: ast.expr, path: str) -> str:
    if not (isinstance(node, ast.Constant) and isinstance(node.value, str)):
        raise TypeError(f"{path}:{node.lineno}: the name of a log event must be a constant, not {ast.unparse(node)}")
    return node.value


def levels_of(calls: list[LogCall]) -> tuple[str, ...]:
    """Return the levels of an event in ascending order."""
    levels = {one.level for one in calls if one.level is not None}
    if any(one.level is None for one in calls):
        levels |= set(COMPUTED_LEVELS[calls[0].name])
    return tuple(sorted(levels, key=_LEVELS.index))


def log_events_page() -> str:
    """Return the page of the log events.

    Raises:
        KeyError: if an event of the table does not exist.
    """
    calls: dict[str, list[LogCall]] = {}
    for call in log_calls():
        calls.setdefault(call.name, []).append(call)
    rows = []
    for name, meaning in MEANINGS.items():
        data = dict.fromkeys(key for call in calls[name] for key in call.data)
        rows.append((code(name), ", ".join(levels_of(calls[name])), ", ".join(map(code, data)), meaning))
    return page(
        "Log events",
        "The logger is `mixpanel_async`. The attribute `mixpanel` of a record is a dict with `event` and the data of "
        "this table, for handlers that write JSON. [Monitor delivery](../guides/observability.md) shows a handler.",
        "No line has a payload, a credential or a query. A failure that repeats is logged once, until it has ended. "
        "Losses are logged with their number, at once, and then as a total every 20 seconds and at the end.",
        table(("Event", "Level", "Data", "Meaning"), rows),
    )
