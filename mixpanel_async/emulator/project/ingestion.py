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
    - An OAuth bearer is not accepted.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from .bodies import BadBodyError, DecodedBody, decode, decode_data
from .checks import Problem, check_import, check_track, encode, is_ignored, too_old_for_track
from .identity import VERBS, as_id
from .profiles import RefusedUpdateError
from .project import Project
from .responses import Answer, import_failed, imported, is_on, refused, tracked

ENDPOINTS: Final = ("/track", "/import", "/engage", "/groups")

_NO_VERBS: Final = "identity events are not allowed when project is using simplified identity management"

# What Mixpanel drops without a word to the sender; the words are for the live page alone.
_NO_TOKEN: Final = Problem("properties.token", "dropped in silence: the event has no token")
_OTHER_TOKEN: Final = Problem("properties.token", "dropped in silence: the token is another project's")
_OTHER_TOKEN_OF_UPDATE: Final = Problem("$token", "dropped in silence: the token is another project's")
_TOO_OLD: Final = Problem("properties.time", "dropped in silence: older than the five days of /track; /import takes it")
_IGNORED: Final = Problem("properties.$ignore", "dropped in silence: $ignore asks for it")
_PLANNED: Final = Problem("properties", "'properties' is invalid: refused on demand")


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
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
    refuse: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Who may write. What is None is not configured; with no credentials configured, any will do on `/import`.

    Args:
        token: the project's token.
        secret: the project's secret.
        service_account: user name, secret and project id.
    """

    token: str | None
    secret: str | None
    service_account: tuple[str, str, str] | None

    def may_import(self, authorization: str, project_id: str | None) -> bool:
        """Whether an `Authorization` header opens `/import`."""
        user, password = _basic(authorization)
        if not user:
            return False
        if self.token is None and self.secret is None and self.service_account is None:
            return True
        if self.service_account is not None and (user, password, project_id) == self.service_account:
            return True
        return not password and user in {self.token, self.secret}

    def may_read(self, authorization: str, project_id: str | None) -> bool:
        """Whether an `Authorization` header opens what reads data back; a token, which is no secret, does not."""
        user, password = _basic(authorization)
        if not user:
            return False
        if self.secret is None and self.service_account is None:
            return True
        if self.service_account is not None and (user, password, project_id) == self.service_account:
            return True
        return not password and user == self.secret

    def is_foreign(self, token: object) -> bool:
        """Whether a record's token names another project."""
        return self.token is not None and token != self.token


def handle(request: Received, project: Project, access: Access, now: float) -> Answer:
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
        project.note_refusal(request.path, Problem("", "401: invalid credentials"), None)
        return refused(request.path, 401)
    try:
        body = _body(request)
    except BadBodyError as error:
        project.note_refusal(request.path, Problem("", f"{error.status}: {error.message}"), None)
        return refused(request.path, error.status, error.message)
    fields = {**body.fields, **request.query}
    if request.path == "/import":
        return _import(body, fields, request.refuse, project, now)
    if request.path == "/track":
        return _track(body, fields, request, project, access, now)
    return _update(request, body, fields, project, access, now)


def _body(request: Received) -> DecodedBody:
    if request.method == "GET":
        data = request.query.get("data", "").encode("utf-8", "surrogateescape")
        return DecodedBody(records=decode_data(data), fields={}, is_form=True)
    encoding = request.headers.get("content-encoding", "")
    if request.path == "/engage" and encoding.strip().lower() == "gzip":
        raise BadBodyError(400, "gzip is not supported on /engage")
    return decode(request.body, content_type=request.headers.get("content-type", ""), content_encoding=encoding)


def _import(
    body: DecodedBody, fields: Mapping[str, str], refuse: frozenset[int], project: Project, now: float
) -> Answer:
    strict = is_on(fields.get("strict"))
    simplified = project.is_simplified
    now_ms = _milliseconds(now)
    arrival = ("/import", now)
    failed: list[dict[str, Any] | str] = []
    first: str | None = None
    for index, event in enumerate(body.records):
        problem = _PLANNED if index in refuse else check_import(event, now_ms, simplified=simplified, strict=strict)
        if problem is None:
            name, properties = event["event"], event["properties"]
            if strict and simplified and name in VERBS:
                project.note_rejected(name, properties, _NO_VERBS)
                project.note_refusal("/import", Problem("event", _NO_VERBS), event)
                failed.append(_NO_VERBS)
                continue
            if is_ignored(properties):
                project.note_refusal("/import", _IGNORED, event, silent=True)
                continue
            problem = project.take_event(name, properties, arrival)
            if problem is None:
                continue
        project.note_refusal("/import", problem, event, silent=not strict)
        failed.append(_failed(index, event, problem))
        first = first or problem.message
    records = len(body.records)
    number = records - len(failed)
    if strict and failed:
        return import_failed(failed, number, records=records)
    if body.is_form:
        return tracked(fields, valid=number, records=records, error=first)
    return imported(number, records=records)


def _track(
    body: DecodedBody, fields: Mapping[str, str], request: Received, project: Project, access: Access, now: float
) -> Answer:
    now_ms = _milliseconds(now)
    hashed = hashlib.sha256(request.client.encode()).hexdigest()[:32] if is_on(fields.get("ip")) else None
    arrival = ("/track", now)
    valid = 0
    error: str | None = None
    for index, event in enumerate(body.records):
        problem = _PLANNED if index in request.refuse else check_track(event, now_ms)
        if problem is None:
            properties = event["properties"]
            unwanted = _unwanted(properties, access, now_ms)
            if unwanted is not None:
                project.note_refusal("/track", unwanted, event, silent=True)
            else:
                if hashed is not None and properties.get("distinct_id") is None:
                    properties["distinct_id"] = hashed
                problem = project.take_event(event["event"], properties, arrival)
        if problem is None:
            valid += 1
        else:
            project.note_refusal("/track", problem, event)
            error = error or problem.message
    return tracked(fields, valid=valid, records=len(body.records), error=error)


def _unwanted(properties: Mapping[str, Any], access: Access, now_ms: int) -> Problem | None:
    """Why `/track` takes an event for valid and drops it all the same; None if it does not."""
    token = properties.get("token")
    if not token:
        return _NO_TOKEN
    if access.is_foreign(token):
        return _OTHER_TOKEN
    if too_old_for_track(properties, now_ms):
        return _TOO_OLD
    return _IGNORED if is_ignored(properties) else None


def _update(
    request: Received, body: DecodedBody, fields: Mapping[str, str], project: Project, access: Access, now: float
) -> Answer:
    address = request.client if is_on(fields.get("ip", "1")) else ""
    failed: list[dict[str, Any]] = []
    for index, record in enumerate(body.records):
        if index in request.refuse:
            error: str | None = _PLANNED.message
        else:
            error = _update_error(request.path, record, address, project, access, now)
        if error is not None:
            project.note_refusal(request.path, Problem("", error), record)
            failed.append({"index": index, "message": error})
    records = len(body.records)
    return tracked(
        fields,
        valid=records - len(failed),
        records=records,
        error=failed[0]["message"] if failed else None,
        failed=failed if is_on(fields.get("strict")) else None,
    )


def _update_error(path: str, record: Any, address: str, project: Project, access: Access, now: float) -> str | None:
    try:
        if path == "/engage":
            (distinct_id,) = _addressed(record, "$distinct_id")
            if access.is_foreign(record["$token"]):
                project.note_refusal(path, _OTHER_TOKEN_OF_UPDATE, record, silent=True)
            else:
                project.update_profile(distinct_id, record, now, address)
        else:
            key, group_id = _addressed(record, "$group_key", "$group_id")
            if access.is_foreign(record["$token"]):
                project.note_refusal(path, _OTHER_TOKEN_OF_UPDATE, record, silent=True)
            else:
                project.update_group(key, group_id, record, now)
    except RefusedUpdateError as error:
        return str(error)
    return None


def _addressed(record: Any, *names: str) -> list[str]:
    if type(record) is not dict:
        raise RefusedUpdateError("record must be a JSON object")
    problem = encode(record)
    if isinstance(problem, Problem):
        raise RefusedUpdateError(problem.message)
    for name in ("$token", *names):
        if not as_id(record.get(name)):
            raise RefusedUpdateError(f"{name} must not be missing")
    return [as_id(record[name]) for name in names]


def _failed(index: int, event: Any, problem: Problem) -> dict[str, Any]:
    properties = event.get("properties") if type(event) is dict else None
    insert_id = properties.get("$insert_id") if type(properties) is dict else None
    return {
        "index": index,
        "$insert_id": insert_id if type(insert_id) is str and insert_id.isascii() else "",
        "field": problem.field.encode("utf-8", "replace").decode(),
        "message": problem.message.encode("utf-8", "replace").decode(),
    }


def _milliseconds(now: float) -> int:
    # Rounded up: a client that rounds its own clock to the nearest millisecond is not ahead of it.
    return math.ceil(now * 1000)


def _basic(authorization: str) -> tuple[str, str]:
    """User and password of HTTP Basic; Mixpanel takes the credentials in base64 or as they are."""
    scheme, _, credentials = authorization.partition(" ")
    credentials = credentials.strip()
    if scheme.lower() != "basic" or not credentials:
        return "", ""
    if ":" not in credentials:
        try:
            credentials = base64.b64decode(credentials, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError, ValueError):
            return "", ""
    user, _, password = credentials.partition(":")
    return user, password
