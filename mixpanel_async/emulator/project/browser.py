"""Endpoints that only browser SDKs use: `/settings`, `/decide` and `/record`.

Mixpanel documents none of them. The sources are the requests of mixpanel-browser 2.31 to 2.83, and the responses that
its code reads.

    GET /settings   remote settings of the project, in 2.76 and later, if `remote_settings_mode` asks for them
    GET /decide     in-app messages and the visual editor, in 2.41 and earlier; also sent as a POST
    POST /record    a batch of a session recording: gzip with `format=gzip`, else JSON, as `application/octet-stream`

Decisions where Mixpanel's documents are silent
    - `/settings` and `/record` accept the credentials of `/import`; the SDK sends the token. `/decide` needs none.
    - A project has no remote settings and no messages.
    - The content of a recording is neither decoded nor kept. `Recordings` counts batches and bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from .access import Access
from .responses import EmulatorResponse, error_response, json_response

SETTINGS: Final = "/settings"
DECIDE: Final = "/decide"
RECORD: Final = "/record"
BROWSER_METHODS: Final[Mapping[str, tuple[str, ...]]] = {
    SETTINGS: ("GET",),
    DECIDE: ("GET", "POST"),
    RECORD: ("POST",),
}
"""Methods of each endpoint."""

MAX_RECORDINGS: Final = 1_000

_MAX_ID: Final = 255


@dataclass(frozen=True, slots=True)
class Recording:
    """Session recording.

    Args:
        replay_id: id of the recording.
        distinct_id: id of the user in the latest batch.
        batches: number of batches received.
        body_bytes: size of the batches in bytes as received.
        seconds: length of the recording in seconds, as the latest batch states it.
    """

    replay_id: str
    distinct_id: str
    batches: int
    body_bytes: int
    seconds: float


class Recordings:
    """Session recordings of a project, without their content. Not thread-safe.

    The latest 1,000 recordings are kept.
    """

    def __init__(self) -> None:
        self._recordings: dict[str, Recording] = {}

    def add(self, query: Mapping[str, str], body_bytes: int) -> str | None:
        """Add a batch. Return the reason if it is refused.

        Args:
            query: parameters of the URL.
            body_bytes: size of the batch in bytes.
        """
        replay_id = query.get("replay_id", "")
        if not 1 <= len(replay_id) <= _MAX_ID:
            return f"replay_id must have 1 to {_MAX_ID} characters"
        if not body_bytes:
            return "the body is empty"
        try:
            seconds = float(query.get("replay_length_ms", 0)) / 1000
        except ValueError:
            seconds = math.nan
        if not math.isfinite(seconds):
            return "replay_length_ms must be a number"
        earlier = self._recordings.pop(replay_id, None)
        self._recordings[replay_id] = Recording(
            replay_id=replay_id,
            distinct_id=query.get("distinct_id", "")[:_MAX_ID],
            batches=1 if earlier is None else earlier.batches + 1,
            body_bytes=body_bytes if earlier is None else earlier.body_bytes + body_bytes,
            seconds=seconds,
        )
        if len(self._recordings) > MAX_RECORDINGS:
            del self._recordings[next(iter(self._recordings))]
        return None

    def all(self) -> list[Recording]:
        """Return the recordings in order of their latest batch."""
        return list(self._recordings.values())


def respond_to_browser(
    path: str,
    query: Mapping[str, str],
    headers: Mapping[str, str],
    body_bytes: int,
    recordings: Recordings,
    access: Access,
) -> EmulatorResponse:
    """Return the response to a request, and count a batch of a recording.

    Args:
        path: a key of `BROWSER_METHODS`.
        query: parameters of the URL.
        headers: headers by lower-case name.
        body_bytes: size of the body in bytes.
        recordings: recordings of the project.
        access: access rules of the project.
    """
    if path == DECIDE:
        return json_response(200, {"notifications": [], "config": {"enable_collect_everything": False}})
    if not access.may_import(headers.get("authorization", ""), query.get("project_id")):
        return error_response(path, 401)
    if path == SETTINGS:
        return json_response(200, {"code": 200, "sdk_config": None})
    problem = recordings.add(query, body_bytes)
    if problem is not None:
        return error_response(path, 400, problem)
    return json_response(200, {"code": 200, "status": "OK"})
