"""Handling of one request to an ingestion endpoint: access, decoding, validation, storage and response.

Pure: request, current time and response are values.

Sources: https://docs.mixpanel.com/reference/import-events and /reference/track-event (read 2026-08-21).

Decisions where Mixpanel's documents are silent
    - Without `strict=1`, `/import` silently drops invalid records.
    - In a Simplified project, `/import?strict=1` refuses identity calls with a text instead of an object, as observed,
      and accepts the other records of the batch. Otherwise, identity calls are stored without effect.
    - More than 2,000 records: 400 for the whole request.
    - `ip=1` on `/track` uses a hash of the IP address as the `distinct_id` of events without one, but not of identity
      calls. Events and groups are not geolocated. The effect of `ip` on `/engage` is described in `profiles`.
    - On `/import`, the credentials select the project, and the `token` of a record is ignored. `/track` silently
      ignores events without a token or with another project's. `/engage` and `/groups` silently ignore updates with
      another project's token, and refuse updates without one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from mixpanel_async.identity.calls import VERBS, as_id

from .access import Access
from .bodies import BadBodyError, DecodedBody, decode_body, decode_data
from .checks import Problem, check_import, check_track, encode_properties, is_ignored, too_old_for_track
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

# Mixpanel drops these records without an error. The messages are shown on the live page and by `rejected` only.
_NO_TOKEN: Final = Problem("properties.token", "silently dropped: the event has no token")
_OTHER_TOKEN: Final = Problem("properties.token", "silently dropped: the token belongs to another project")
_OTHER_TOKEN_OF_UPDATE: Final = Problem("$token", "silently dropped: the token belongs to another project")
_TOO_OLD: Final = Problem("properties.time", "silently dropped: older than 5 days; send it to /import")
_IGNORED: Final = Problem("properties.$ignore", "silently dropped: $ignore is set")
_REFUSED_ON_DEMAND: Final = Problem("properties", "'properties' is invalid: refused by a planned fault")


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestionRequest:
    """Complete request within the size limits.

    Args:
        method: `POST` or `GET`.
        path: one of `ENDPOINTS`.
        query: parameters of the URL.
        headers: headers by lower-case name.
        body: body as received, not decompressed.
        client: IP address of the sender.
        refused_indexes: indexes of valid records to refuse because of a planned fault.
    """

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    client: str
    refused_indexes: frozenset[int] = frozenset()


def ingest(request: IngestionRequest, project: Project, access: Access, now: float) -> EmulatorResponse:
    """Handle one request and return the response.

    Args:
        request: the request.
        project: project that stores the records.
        access: access rules of the project.
        now: current time in seconds since the epoch.
    """
    authorization = request.headers.get("authorization", "") if request.path == "/import" else ""
    project_id = request.query.get("project_id")
    if authorization and not access.may_import(authorization, project_id):
        return _refuse_credentials(request.path, project, access.import_refusal(authorization, project_id))
    try:
        body = _decode_request(request)
    except BadBodyError as error:
        project.log_rejection(request.path, Problem("", f"{error.status}: {error.message}"), None)
        return error_response(request.path, error.status, error.message)
    fields = {**body.fields, **request.query}
    if request.path == "/import" and not authorization and not access.is_import_key(fields.get("api_key", "")):
        reason = "invalid api_key" if fields.get("api_key") else access.import_refusal("", project_id)
        return _refuse_credentials(request.path, project, reason)
    if request.path == "/import":
        return _import(body, fields, request.refused_indexes, project, now)
    if request.path == "/track":
        return _track(body, fields, request, project, access, now)
    return _update_profiles(request, body, fields, project, access, now)


def _refuse_credentials(path: str, project: Project, reason: str) -> EmulatorResponse:
    project.log_rejection(path, Problem("", f"401: {reason}"), None)
    return error_response(path, 401)


def _decode_request(request: IngestionRequest) -> DecodedBody:
    if request.method == "GET":
        data = request.query.get("data", "").encode("utf-8", "surrogateescape")
        return DecodedBody(records=decode_data(data), fields={}, is_form=True)
    encoding = request.headers.get("content-encoding", "")
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
                if hashed is not None and properties.get("distinct_id") is None and event["event"] not in VERBS:
                    properties["distinct_id"] = hashed
                problem = project.store_event(event["event"], properties, arrival)
        if problem is None:
            valid += 1
        else:
            project.log_rejection("/track", problem, event)
            error = error or problem.message
    return ingestion_response(fields, valid=valid, records=len(body.records), error=error)


def _silent_rejection(properties: Mapping[str, Any], access: Access, now_ms: int) -> Problem | None:
    """Return the reason why `/track` silently drops a valid event; None if it stores the event."""
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
        "field": problem.field,
        "message": problem.message,
    }


def _ceil_milliseconds(now: float) -> int:
    # Rounded up, so that a client that rounds its clock to the nearest millisecond is not in the future.
    return math.ceil(now * 1000)
