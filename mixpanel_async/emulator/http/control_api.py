"""HTTP API `/_emulator/` to inspect and control the emulator, for tests in any language.

Every response is JSON in the structure that the Python method of the same name returns, with sets as sorted lists.

    GET /_emulator/events         list of events, resolved and deduplicated; name, distinct_id (any id of the person),
                                  limit
    GET /_emulator/profile        the person's properties as an object, or 404; distinct_id
    GET /_emulator/profiles       object of profiles by canonical id; limit
    GET /_emulator/group          the group's properties as an object, or 404; group_key, group_id
    GET /_emulator/resolve        {"distinct_id": the canonical id}; distinct_id
    GET /_emulator/cluster        list of all ids of the person; distinct_id
    GET /_emulator/clusters       list of such lists; limit
    GET /_emulator/identity-log   list of entries, with "advice" if the call failed; name (of the call), limit
    GET /_emulator/audit          what is wrong with the ids of the stored events, as `mixpanel-async identity audit
                                  --json` prints it: persons, ids, outcomes of calls, findings with cases and advice
    GET /_emulator/requests       list of requests; limit
    GET /_emulator/rejected       list of records and requests that were not stored, with field and message; limit
    GET /_emulator/lookup-tables  object of lookup tables by id, each a list of rows
    GET /_emulator/unsupported    list of endpoints asked for and not emulated: {"method", "path" (ids as "{id}"),
                                  "count", "first", "last" (seconds since the epoch)}, latest last; limit
    GET /_emulator/recordings     list of session recordings of browser SDKs, without their content; limit
    GET /_emulator/flags          list of definitions of feature flags
    GET /_emulator/stats          {"events": {"stored", "ingested", "duplicates"}, "profiles", "groups", "clusters",
                                  "requests", "rejected", "identity": {outcome: number}, "id_merge", "started",
                                  "uptime"}
    GET /_emulator/stream         server-sent events, see `stream`
    GET /_emulator/               all names, with the parameters of each

    POST /_emulator/reset             delete all data; `latency` stays
    POST /_emulator/fail-next         status, times, retry_after, path, body, apply
    POST /_emulator/drop-connections  n, path, apply
    POST /_emulator/break-next        kind, times, path, apply, seconds, before, rate, indexes, location
    POST /_emulator/random-faults     seed, rate, kinds, paths, seconds
    POST /_emulator/stop-faults       remove all planned faults
    POST /_emulator/latency           seconds
    POST /_emulator/clock-error       seconds that the emulator's clock is ahead, negative if behind
    POST /_emulator/set-flags         flags: a list of definitions that replaces all flags

`limit` returns the last items only, 1 to 1,000,000. A POST accepts its arguments as a JSON object or as URL parameters,
with lists separated by commas, and answers `{"status": "ok"}`. A `ValueError` of the Python method, a missing parameter
and an unknown parameter are answered with status 400 and `{"error": message}`.

Fields of `stats`: `stored` is the number of events kept, duplicates included, and `ingested` the number received since
the start, plus those loaded from disk. `duplicates` is the number of extra copies among the stored events. `rejected`
is the number of records and requests that were not stored, silently dropped ones included. `started` is in seconds
since the epoch, and `uptime` in seconds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson

from ..project.hints import hint
from ..project.responses import EmulatorResponse, json_response

if TYPE_CHECKING:
    from .. import Emulator

MAX_LIMIT: Final = 1_000_000
MAX_CONTROL_BYTES: Final = 64 * 1024
_ENCODED_AT_ONCE: Final = 1_000


class BadParameterError(Exception):
    """A parameter is missing, unknown or malformed. The message names the parameter and the problem."""


class NotFoundError(Exception):
    """The requested object does not exist. The message names it."""


Parameters = Mapping[str, str]
Read = Callable[["Emulator", Parameters], object]


@dataclass(frozen=True, slots=True)
class _ViewEndpoint:
    """Endpoint of a GET request.

    Args:
        read: function that returns the content.
        required: required parameters.
        optional: optional parameters.
    """

    read: Read
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


def view(emulator: Emulator, name: str, parameters: Parameters) -> EmulatorResponse:
    """Return the response to `GET /_emulator/<name>`.

    Args:
        emulator: the emulator.
        name: a key of `VIEWS`.
        parameters: parameters of the URL.
    """
    endpoint = VIEWS[name]
    try:
        _check_names(parameters, required=endpoint.required, optional=endpoint.optional)
        return EmulatorResponse(status=200, body=_encode(endpoint.read(emulator, parameters)))
    except BadParameterError as error:
        return json_response(400, {"error": str(error)})
    except NotFoundError as error:
        return json_response(404, {"error": str(error)})


def _encode(content: object) -> bytes:
    """Encode JSON. Long lists are encoded in parts, because orjson does not let other threads run meanwhile."""
    if not isinstance(content, list) or len(content) <= _ENCODED_AT_ONCE:
        return orjson.dumps(content)
    starts = range(0, len(content), _ENCODED_AT_ONCE)
    return b"[%b]" % b",".join(orjson.dumps(content[start : start + _ENCODED_AT_ONCE])[1:-1] for start in starts)


def _events(emulator: Emulator, parameters: Parameters) -> object:
    events = emulator.events(parameters.get("name"))
    if "distinct_id" in parameters:
        person = emulator.resolve(parameters["distinct_id"])
        events = [event for event in events if event["properties"]["distinct_id"] == person]
    return _limited(events, parameters)


def _profile(emulator: Emulator, parameters: Parameters) -> object:
    profile = emulator.profile(parameters["distinct_id"])
    if profile is None:
        raise NotFoundError("the person with this distinct_id has no profile")
    return profile


def _profiles(emulator: Emulator, parameters: Parameters) -> object:
    return dict(_limited(list(emulator.profiles().items()), parameters))


def _group(emulator: Emulator, parameters: Parameters) -> object:
    group = emulator.group(parameters["group_key"], parameters["group_id"])
    if group is None:
        raise NotFoundError("the group with this group_key and group_id has no profile")
    return group


def _resolve(emulator: Emulator, parameters: Parameters) -> object:
    return {"distinct_id": emulator.resolve(parameters["distinct_id"])}


def _cluster(emulator: Emulator, parameters: Parameters) -> object:
    return sorted(emulator.cluster(parameters["distinct_id"]))


def _clusters(emulator: Emulator, parameters: Parameters) -> object:
    return _limited([sorted(cluster) for cluster in emulator.clusters()], parameters)


def _identity_log(emulator: Emulator, parameters: Parameters) -> object:
    name = parameters.get("name")
    entries = _limited([entry for entry in emulator.identity_log() if name in {None, entry["event"]}], parameters)
    return [
        {
            **entry,
            "advice": hint(entry["event"], entry["outcome"], entry["$failure_reason"], entry["$failure_description"]),
        }
        for entry in entries
    ]


def _audit(emulator: Emulator, _: Parameters) -> object:
    return emulator.audit().as_dict()


def _requests(emulator: Emulator, parameters: Parameters) -> object:
    return [dataclasses.asdict(request) for request in _limited(emulator.requests(), parameters)]


def _rejected(emulator: Emulator, parameters: Parameters) -> object:
    return _limited(emulator.rejected(), parameters)


def _lookup_tables(emulator: Emulator, _: Parameters) -> object:
    return emulator.lookup_tables()


def _unsupported(emulator: Emulator, parameters: Parameters) -> object:
    return _limited(emulator.unsupported(), parameters)


def _recordings(emulator: Emulator, parameters: Parameters) -> object:
    return _limited(emulator.recordings(), parameters)


def _flags(emulator: Emulator, _: Parameters) -> object:
    return emulator.flags()


def _stats(emulator: Emulator, _: Parameters) -> object:
    return emulator.stats()


VIEWS: Final[Mapping[str, _ViewEndpoint]] = {
    "events": _ViewEndpoint(_events, optional=("name", "distinct_id", "limit")),
    "profile": _ViewEndpoint(_profile, required=("distinct_id",)),
    "profiles": _ViewEndpoint(_profiles, optional=("limit",)),
    "group": _ViewEndpoint(_group, required=("group_key", "group_id")),
    "resolve": _ViewEndpoint(_resolve, required=("distinct_id",)),
    "cluster": _ViewEndpoint(_cluster, required=("distinct_id",)),
    "clusters": _ViewEndpoint(_clusters, optional=("limit",)),
    "identity-log": _ViewEndpoint(_identity_log, optional=("name", "limit")),
    "audit": _ViewEndpoint(_audit),
    "requests": _ViewEndpoint(_requests, optional=("limit",)),
    "rejected": _ViewEndpoint(_rejected, optional=("limit",)),
    "lookup-tables": _ViewEndpoint(_lookup_tables),
    "unsupported": _ViewEndpoint(_unsupported, optional=("limit",)),
    "recordings": _ViewEndpoint(_recordings, optional=("limit",)),
    "flags": _ViewEndpoint(_flags),
    "stats": _ViewEndpoint(_stats),
}


def index() -> EmulatorResponse:
    """Return the response to `GET /_emulator/`: all names, with their parameters."""
    read = {name: [*entry.required, *entry.optional] for name, entry in VIEWS.items()}
    control_parameters = {name: list(entry.arguments) for name, entry in CONTROLS.items()}
    return json_response(200, {"GET": read, "POST": control_parameters})


def _limited(items: Sequence[Any], parameters: Parameters) -> Sequence[Any]:
    text = parameters.get("limit")
    if text is None:
        return items
    if not (text.isascii() and text.isdecimal() and len(text) <= 7 and 1 <= int(text) <= MAX_LIMIT):
        raise BadParameterError(f"limit must be a whole number from 1 to {MAX_LIMIT}")
    return items[-int(text) :]


def _check_names(given: Mapping[str, object], *, required: Sequence[str], optional: Sequence[str]) -> None:
    for name in required:
        if given.get(name) is None or given[name] == "":
            raise BadParameterError(f"{name} is missing")
    known = [*required, *optional]
    for name in given:
        if name not in known:
            raise BadParameterError(f"unknown parameter {name!r:.50}; known parameters: {', '.join(known) or 'none'}")


# Arguments of control endpoints.


def _boolean(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if value in ("1", "true"):
        return True
    if value in ("0", "false"):
        return False
    raise ValueError


def _integer(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and len(value) <= 18:
        return int(value)
    raise ValueError


def _number(value: object) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str) and len(value) <= 30:
        return float(value)
    raise ValueError


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    raise ValueError


def _seconds_or_text(value: object) -> float | str:
    try:
        return _number(value)
    except ValueError:
        return _text(value)


def _number_or_text(value: object) -> int | str:
    try:
        return _integer(value)
    except ValueError:
        return _text(value)


def _bytes(value: object) -> bytes:
    return _text(value).encode()


def _list_of(convert: Callable[[object], Any]) -> Callable[[object], list[Any]]:
    def convert_all(value: object) -> list[Any]:
        items = value.split(",") if isinstance(value, str) else value
        if not isinstance(items, list):
            raise ValueError  # noqa: TRY004  reported as an invalid value
        return [convert(item) for item in items]

    return convert_all


def _objects(value: object) -> list[Any]:
    if isinstance(value, list):
        return value
    raise ValueError


# Value that a conversion function expects, for the error message; lists if it is not here.
_EXPECTED: Final[Mapping[Callable[[object], Any], str]] = {
    _boolean: "true or false",
    _integer: "a whole number",
    _number: "a number",
    _text: "text",
    _bytes: "text",
    _seconds_or_text: "a number of seconds, or text",
    _number_or_text: "a whole number, or text",
    _objects: "a list of objects",
}


@dataclass(frozen=True, slots=True)
class _ControlEndpoint:
    """Endpoint of a POST request.

    Args:
        action: function that performs the action, called with converted arguments.
        arguments: conversion function of each argument, which raises `ValueError` for an invalid value.
        required: required arguments.
    """

    action: Callable[..., None]
    arguments: Mapping[str, Callable[[object], Any]]
    required: tuple[str, ...] = ()


def _set_latency(emulator: Emulator, seconds: float) -> None:
    emulator.latency = seconds


CONTROLS: Final[Mapping[str, _ControlEndpoint]] = {
    "reset": _ControlEndpoint(lambda emulator: emulator.reset(), {}),
    "fail-next": _ControlEndpoint(
        lambda emulator, **arguments: emulator.fail_next(**arguments),
        {
            "status": _integer,
            "times": _integer,
            "retry_after": _seconds_or_text,
            "path": _text,
            "body": _bytes,
            "apply": _boolean,
        },
    ),
    "drop-connections": _ControlEndpoint(
        lambda emulator, **arguments: emulator.drop_connections(**arguments),
        {"n": _integer, "path": _text, "apply": _boolean},
    ),
    "break-next": _ControlEndpoint(
        lambda emulator, **arguments: emulator.break_next(**arguments),
        {
            "kind": _text,
            "times": _integer,
            "path": _text,
            "apply": _boolean,
            "seconds": _number,
            "before": _boolean,
            "rate": _number,
            "indexes": _list_of(_integer),
            "location": _text,
        },
        required=("kind",),
    ),
    "random-faults": _ControlEndpoint(
        lambda emulator, **arguments: emulator.random_faults(**arguments),
        {
            "seed": _number_or_text,
            "rate": _number,
            "kinds": _list_of(_text),
            "paths": _list_of(_text),
            "seconds": _number,
        },
        required=("seed",),
    ),
    "stop-faults": _ControlEndpoint(lambda emulator: emulator.stop_faults(), {}),
    "set-flags": _ControlEndpoint(
        lambda emulator, flags: emulator.set_flags(flags), {"flags": _objects}, required=("flags",)
    ),
    "latency": _ControlEndpoint(_set_latency, {"seconds": _number}, required=("seconds",)),
    "clock-error": _ControlEndpoint(
        lambda emulator, seconds: emulator.set_clock_error(seconds), {"seconds": _number}, required=("seconds",)
    ),
}


def control(emulator: Emulator, name: str, parameters: Parameters, body: bytes) -> EmulatorResponse:
    """Perform `POST /_emulator/<name>` and return the response. Blocks while data is written to disk.

    Args:
        emulator: the emulator.
        name: a key of `CONTROLS`.
        parameters: parameters of the URL.
        body: a JSON object of at most `MAX_CONTROL_BYTES`, or empty.
    """
    endpoint = CONTROLS[name]
    try:
        given = {**parameters, **_parse_object(body)}
        optional = [argument for argument in endpoint.arguments if argument not in endpoint.required]
        _check_names(given, required=endpoint.required, optional=optional)
        # As in Python, null selects the default.
        arguments = {key: _convert(endpoint, key, value) for key, value in given.items() if value is not None}
        endpoint.action(emulator, **arguments)
    except (BadParameterError, ValueError) as error:
        return json_response(400, {"error": str(error)})
    except OSError as error:
        return json_response(503, {"error": str(error)})
    return json_response(200, {"status": "ok"})


def _parse_object(body: bytes) -> dict[str, Any]:
    if not body.strip():
        return {}
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        parsed = None
    if not isinstance(parsed, dict):
        raise BadParameterError("body must be a JSON object")
    return parsed


def _convert(endpoint: _ControlEndpoint, name: str, value: object) -> Any:
    convert = endpoint.arguments[name]
    try:
        return convert(value)
    except (ValueError, OverflowError):
        raise BadParameterError(f"{name} must be {_EXPECTED.get(convert, 'a list')}") from None
