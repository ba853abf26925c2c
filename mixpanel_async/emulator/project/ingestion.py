"""One request to an ingestion endpoint: who may send it, what is in it, what becomes of each record, what to answer.

Pure: it takes the request as a value, with the time, and returns the answer as one.

Sources: https://docs.mixpanel.com/reference/import-events, /reference/track-event, /reference/authentication and
/reference/service-accounts (read 2026-08-21).

Decisions where Mixpanel's documents are silent
    - Without `strict=1`, `/import` drops what it would have refused and says nothing.
    - In a Simplified project `/import?strict=1` refuses the identity verbs with a text instead of an object, as
      observed, and takes the other records of the batch; everywhere else the verbs are stored without effect.
    - More than 2,000 records: 400 for the request as a whole.
    - `ip=1` on `/track` without a `distinct_id` makes a hash of the address into one. Events are not geolocated, nor
      are groups; what `ip` does on `/engage` is said in `profiles`.
    - The credentials decide the project on `/import`; a record's `token` is not looked at there. `/track` ignores
      events with none or with another project's, `/engage` and `/groups` ignore another project's and refuse none.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from .access import Access
from .bodies import BadBodyError, DecodedBody, decode_body, decode_data
from .checks import Problem, check_import, check_track, encode_properties, is_ignored, too_old_for_track
from .identity import VERBS, as_id
from .profiles import InvalidUpdateError
from .project import Project
from .responses import (
    EmulatorResponse,
    error_response,
    import_failure_response,
    import_response,
    ingestion_response,
    is_enabled,
)

ENDPOINTS: Final = ("/track", "/import", "/engage", "/groups")

_NO_IDENTITY_EVENTS: Final = "identity events are not allowed when project is using simplified identity management"

# What Mixpanel drops without a word to the sender; the words are for the live page alone.
_NO_TOKEN: Final = Problem("properties.token", "dropped in silence: the event has no token")
_OTHER_TOKEN: Final = Problem("properties.token", "dropped in silence: the token is another project's")
_OTHER_TOKEN_OF_UPDATE: Final = Problem("$token", "dropped in silence: the token is another project's")
_TOO_OLD: Final = Problem("properties.time", "dropped in silence: older than the five days of /track; /import takes it")
_IGNORED: Final = Problem("properties.$ignore", "dropped in silence: $ignore asks for it")
_REFUSED_ON_DEMAND: Final = Problem("properties", "'properties' is invalid: refused on demand")


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestionRequest:
    """A request as it arrived, complete and within the limits of size.

    Args:
        method: `POST` or `GET`.
        path: one of `ENDPOINTS`.
        query: parameters of the URL.
        headers: by their names in lower case.
        body: as received, not yet decompressed.
        client: address of the sender.
        refuse: indexes of records to be refused whatever they hold, as a failure on demand.
    """

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    client: str
    refused_indexes: frozenset[int] = frozenset()


def ingest(request: IngestionRequest, project: Project, access: Access, now: float) -> EmulatorResponse:
    """Take one request.

    Args:
        request: what arrived.
        project: where it goes.
        access: who may write.
        now: the clock, in seconds since the epoch.
    """
    if request.path == "/import" and not access.may_import(
        request.headers.get("authorization", ""), request.query.get("project_id")
    ):
        project.log_rejection(request.path, Problem("", "401: invalid credentials"), None)
        return error_response(request.path, 401)
    try:
        body = _decode_request(request)
    except BadBodyError as error:
        project.log_rejection(request.path, Problem("", f"{error.status}: {error.message}"), None)
        return error_response(request.path, error.status, error.message)
    fields = {**body.fields, **request.query}
    if request.path == "/import":
        return _import(body, fields, request.refused_indexes, project, now)
    if request.path == "/track":
        return _track(body, fields, request, project, access, now)
    return _update_profiles(request, body, fields, project, access, now)


def _decode_request(request: IngestionRequest) -> DecodedBody:
    if request.method == "GET":
        data = request.query.get("data", "").encode("utf-8", "surrogateescape")
        return DecodedBody(records=decode_data(data), fields={}, is_form=True)
    encoding = request.headers.get("content-encoding", "")
    if request.path == "/engage" and encoding.strip().lower() == "gzip":
        raise BadBodyError(400, "gzip is not supported on /engage")
    return decode_body(request.body, content_type=request.headers.get("content-type", ""), content_encoding=encoding)


def _import(
    body: DecodedBody, fields: Mapping[str, str], refused_indexes: frozenset[int], project: Project, now: float
) -> EmulatorResponse:
    strict = is_enabled(fields.get("strict"))
    simplified = project.is_simplified
    now_ms = _ceil_milliseconds(now)
    arrival = ("/import", now)
    failed: list[dict[str, Any] | str] = []
    first: str | None = None
    for index, event in enumerate(body.records):
        problem = (
            _REFUSED_ON_DEMAND
            if index in refused_indexes
            else check_import(event, now_ms, simplified=simplified, strict=strict)
        )
        if problem is None:
            name, properties = event["event"], event["properties"]
            if strict and simplified and name in VERBS:
                project.log_refused_identity_event(name, properties, _NO_IDENTITY_EVENTS)
                project.log_rejection("/import", Problem("event", _NO_IDENTITY_EVENTS), event)
                failed.append(_NO_IDENTITY_EVENTS)
                continue
            if is_ignored(properties):
                project.log_rejection("/import", _IGNORED, event, silent=True)
                continue
            problem = project.store_event(name, properties, arrival)
            if problem is None:
                continue
        project.log_rejection("/import", problem, event, silent=not strict)
        failed.append(_failed_record(index, event, problem))
        first = first or problem.message
    records = len(body.records)
    number = records - len(failed)
    if strict and failed:
        return import_failure_response(failed, number, records=records)
    if body.is_form:
        return ingestion_response(fields, valid=number, records=records, error=first)
    return import_response(number, records=records)


def _track(
    body: DecodedBody,
    fields: Mapping[str, str],
    request: IngestionRequest,
    project: Project,
    access: Access,
    now: float,
) -> EmulatorResponse:
    now_ms = _ceil_milliseconds(now)
    hashed = hashlib.sha256(request.client.encode()).hexdigest()[:32] if is_enabled(fields.get("ip")) else None
    arrival = ("/track", now)
    valid = 0
    error: str | None = None
    for index, event in enumerate(body.records):
        problem = _REFUSED_ON_DEMAND if index in request.refused_indexes else check_track(event, now_ms)
        if problem is None:
            properties = event["properties"]
            unwanted = _silent_rejection(properties, access, now_ms)
            if unwanted is not None:
                project.log_rejection("/track", unwanted, event, silent=True)
            else:
                if hashed is not None and properties.get("distinct_id") is None:
                    properties["distinct_id"] = hashed
                problem = project.store_event(event["event"], properties, arrival)
        if problem is None:
            valid += 1
        else:
            project.log_rejection("/track", problem, event)
            error = error or problem.message
    return ingestion_response(fields, valid=valid, records=len(body.records), error=error)


def _silent_rejection(properties: Mapping[str, Any], access: Access, now_ms: int) -> Problem | None:
    """Why `/track` takes an event for valid and drops it all the same; None if it does not."""
    token = properties.get("token")
    if not token:
        return _NO_TOKEN
    if access.is_foreign(token):
        return _OTHER_TOKEN
    if too_old_for_track(properties, now_ms):
        return _TOO_OLD
    return _IGNORED if is_ignored(properties) else None


def _update_profiles(
    request: IngestionRequest,
    body: DecodedBody,
    fields: Mapping[str, str],
    project: Project,
    access: Access,
    now: float,
) -> EmulatorResponse:
    address = request.client if is_enabled(fields.get("ip", "1")) else ""
    failed: list[dict[str, Any]] = []
    for index, record in enumerate(body.records):
        if index in request.refused_indexes:
            error: str | None = _REFUSED_ON_DEMAND.message
        else:
            error = _apply_update(request.path, record, address, project, access, now)
        if error is not None:
            project.log_rejection(request.path, Problem("", error), record)
            failed.append({"index": index, "message": error})
    records = len(body.records)
    return ingestion_response(
        fields,
        valid=records - len(failed),
        records=records,
        error=failed[0]["message"] if failed else None,
        failed=failed if is_enabled(fields.get("strict")) else None,
    )


def _apply_update(path: str, record: Any, address: str, project: Project, access: Access, now: float) -> str | None:
    try:
        if path == "/engage":
            (distinct_id,) = _profile_ids(record, "$distinct_id")
            if access.is_foreign(record["$token"]):
                project.log_rejection(path, _OTHER_TOKEN_OF_UPDATE, record, silent=True)
            else:
                project.update_profile(distinct_id, record, now, address)
        else:
            key, group_id = _profile_ids(record, "$group_key", "$group_id")
            if access.is_foreign(record["$token"]):
                project.log_rejection(path, _OTHER_TOKEN_OF_UPDATE, record, silent=True)
            else:
                project.update_group(key, group_id, record, now)
    except InvalidUpdateError as error:
        return str(error)
    return None


def _profile_ids(record: Any, *names: str) -> list[str]:
    if type(record) is not dict:
        raise InvalidUpdateError("record must be a JSON object")
    problem = encode_properties(record)
    if isinstance(problem, Problem):
        raise InvalidUpdateError(problem.message)
    for name in ("$token", *names):
        if not as_id(record.get(name)):
            raise InvalidUpdateError(f"{name} must not be missing")
    return [as_id(record[name]) for name in names]


def _failed_record(index: int, event: Any, problem: Problem) -> dict[str, Any]:
    properties = event.get("properties") if type(event) is dict else None
    insert_id = properties.get("$insert_id") if type(properties) is dict else None
    return {
        "index": index,
        "$insert_id": insert_id if type(insert_id) is str and insert_id.isascii() else "",
        "field": problem.field.encode("utf-8", "replace").decode(),
        "message": problem.message.encode("utf-8", "replace").decode(),
    }


def _ceil_milliseconds(now: float) -> int:
    # Rounded up: a client that rounds its own clock to the nearest millisecond is not ahead of it.
    return math.ceil(now * 1000)
