"""Requests of Mixpanel's browser SDKs 2.45 and 2.83 and of its React Native SDK 3.8, in the forms that they send.

The shapes are those that the SDKs sent to a server of ours. Tokens, ids and times are invented.
"""

from __future__ import annotations

import base64
import json
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

TOKEN = "0123456789abcdef0123456789abcdef"

Record = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """Request to the emulator, as arguments of `Wire.request`."""

    method: str
    url: str
    options: dict[str, Any]


def _web(version: str, event: str, properties: Record) -> Record:
    common = {"$os": "Linux", "$browser": "Chrome", "$screen_width": 800, "mp_lib": "web", "$lib_version": version}
    stamps = {"$insert_id": secrets.token_hex(8), "time": time.time(), "$initial_referrer": "$direct"}
    return {"event": event, "properties": {**common, **stamps, **properties, "token": TOKEN}}


def _app(event: str, properties: Record) -> Record:
    metadata = {"$mp_event_id": "00ff", "$mp_session_id": "11ee", "$mp_session_seq_id": 0, "$mp_session_start_sec": 1}
    common = {"token": TOKEN, "time": int(time.time() * 1000), "$os": "ios", "mp_lib": "react-native"}
    if event == "$identify":
        common["distinctId"] = properties["distinct_id"]
    # The SDK sends null until a user is known.
    return {"$mp_metadata": metadata, "event": event, "properties": {**common, "$user_id": None, **properties}}


@dataclass(frozen=True)
class Sdk:
    """One SDK.

    Args:
        name: name and version.
        devices: its ids of three devices, as in `$device_id`.
        prefix: what its `distinct_id` of an anonymous visitor has in front of the device's id.
        event: returns an event of this SDK.
        identifies_alias: whether `alias` is followed by an `$identify` with the new id.
    """

    name: str
    devices: tuple[str, str, str]
    prefix: str
    event: Callable[[str, Record], Record]
    identifies_alias: bool

    def visitor(self, number: int) -> str:
        """Return the `distinct_id` of the anonymous visitor on a device, counted from 1."""
        return self.prefix + self.devices[number - 1]

    def anonymous(self, device: int, event: str, **properties: Any) -> Record:
        ids = {"distinct_id": self.visitor(device), "$device_id": self.devices[device - 1]}
        return self.event(event, {**ids, **properties})

    def known(self, user: str, device: int, event: str, **properties: Any) -> Record:
        ids = {"distinct_id": user, "$device_id": self.devices[device - 1], "$user_id": user}
        return self.event(event, {**ids, **properties})

    def identify(self, user: str, device: int, previous: str) -> Record:
        return self.known(user, device, "$identify", **{"$anon_distinct_id": previous})

    def profile_update(self) -> Record:
        ids = {"$token": TOKEN, "$distinct_id": "user-1", "$device_id": self.devices[0], "$user_id": "user-1"}
        return {"$set": {"plan": "free"}, **ids}

    def events(self) -> list[Record]:
        """Return the events of eight pages: two users with a reset between them, and then two mistakes and an alias.

        1 is a first visit, followed by `identify("user-1")`. 2 is another page. 3 follows `reset()`, and 4
        `identify("user-2")`. 5 follows `identify("user-3")` without a reset, and 6 `alias("alias-1")`. 7 follows a
        reset, and 8 `alias("user-4")` by a new visitor.
        """
        aliases = [
            self.known("user-3", 2, "$create_alias", alias="alias-1"),
            self.identify("alias-1", 2, "user-3"),
            self.known("user-3", 2, "Viewed", page=6),
            self.anonymous(3, "Viewed", page=7),
            self.anonymous(3, "$create_alias", alias="user-4"),
            self.identify("user-4", 3, self.visitor(3)),
            self.anonymous(3, "Viewed", page=8),
        ]
        return [
            self.anonymous(1, "Viewed", page=1),
            self.identify("user-1", 1, self.visitor(1)),
            self.known("user-1", 1, "Viewed", page=2),
            self.anonymous(2, "Viewed", page=3),
            self.identify("user-2", 2, self.visitor(2)),
            self.known("user-2", 2, "Viewed", page=4),
            self.identify("user-3", 2, "user-2"),
            self.known("user-3", 2, "Viewed", page=5),
            *(one for one in aliases if self.identifies_alias or one["event"] != "$identify"),
        ]


BROWSER_245 = Sdk(
    "mixpanel-browser 2.45",
    (
        "1a2b3c4d5e6f70-0123456789abcd-1f2e3d4c-75300-1a2b3c4d5e7081",
        "1a2b3c4d5f0123-0fedcba987654-1f2e3d4c-75300-1a2b3c4d5f1234",
        "1A2B3C4D600ABC-0ABCDEF0123456-1F2E3D4C-75300-1A2B3C4D601BCD",
    ),
    "",
    lambda event, properties: _web("2.45.0", event, properties),
    identifies_alias=True,
)
BROWSER_283 = Sdk(
    "mixpanel-browser 2.83",
    (
        "5b1d7c52-6a0e-4f5b-9c7d-10aa20bb30c1",
        "5b1d7c52-6a0e-4f5b-9c7d-10aa20bb30c2",
        "5b1d7c52-6a0e-4f5b-9c7d-10aa20bb30c3",
    ),
    "$device:",
    lambda event, properties: _web("2.83.0", event, properties),
    identifies_alias=True,
)
REACT_NATIVE = Sdk(
    "mixpanel-react-native 3.8",
    (
        "E7A0C1D2-3B4C-4D5E-8F60-718293A4B5C1",
        "E7A0C1D2-3B4C-4D5E-8F60-718293A4B5C2",
        "E7A0C1D2-3B4C-4D5E-8F60-718293A4B5C3",
    ),
    "$device:",
    _app,
    identifies_alias=False,
)


def _form(
    data: str, content_type: str = "application/x-www-form-urlencoded", query: str = "?ip=1&_=1795992127310"
) -> Any:
    options = {"content": f"data={quote(data, safe='')}", "headers": {"content-type": content_type}}
    return lambda path: Request("POST", f"{path}/{query}", options)


def _base64(value: object, indent: int | None = None) -> str:
    return base64.b64encode(json.dumps(value, indent=indent).encode()).decode()


def _singly(encode: Callable[[Record], Callable[[str], Request]]) -> Callable[[str, list[Record]], list[Request]]:
    return lambda path, records: [encode(record)(path) for record in records]


def _get(record: Record) -> Callable[[str], Request]:
    return lambda path: Request("GET", f"{path}/?data={quote(_base64(record), safe='')}&ip=1&_=1795992152282", {})


def _together(
    encode: Callable[[list[Record]], Callable[[str], Request]],
) -> Callable[[str, list[Record]], list[Request]]:
    return lambda path, records: [encode(records)(path)]


FORMS: dict[str, Callable[[str, list[Record]], list[Request]]] = {
    "form, base64": _singly(lambda record: _form(_base64(record))),
    "form, JSON": _singly(lambda record: _form(json.dumps(record))),
    "sendBeacon": _singly(lambda record: _form(_base64(record), "text/plain;charset=UTF-8")),
    "GET": _singly(_get),
    "batch, base64": _together(lambda records: _form(_base64(records, 4), query="?verbose=1&ip=1&_=1795992122436")),
    "batch, JSON": _together(lambda records: _form(json.dumps(records), query="?ip=1")),
}
"""Functions from a path and records to requests: the transports and formats of the SDKs, by name."""

VARIANTS = [(sdk, form) for sdk in (BROWSER_245, BROWSER_283) for form in FORMS if form != "batch, JSON"] + [
    (REACT_NATIVE, "batch, JSON")
]
"""Each SDK with the forms that it sends."""
