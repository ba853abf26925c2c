"""In-process HTTP requests to the emulator, so that its tests do not depend on this package's client."""

from __future__ import annotations

import time
import uuid
from typing import Any

import anyio
import httpx

from mixpanel_async.emulator import Emulator

TOKEN = "t"


class Wire:
    """HTTP requests to an emulator from synchronous code. `served` imitates the scope of a server."""

    def __init__(self, emulator: Emulator, *, served: bool = False) -> None:
        self.emulator = emulator
        self._state: dict[str, Any] = {"state": {}} if served else {}

    def request(self, method: str, url: str, **options: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            async def app(scope: Any, receive: Any, send: Any) -> None:
                await self.emulator.app({**scope, **self._state}, receive, send)

            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
                return await http.request(method, url, **options)

        return anyio.run(send)

    def post(self, url: str, records: Any = None, **options: Any) -> httpx.Response:
        if records is not None:
            options["json"] = records
        if url.startswith("/import"):
            options.setdefault("auth", (TOKEN, ""))
        return self.request("POST", url, **options)

    def track(self, distinct_id: str | None, name: str = "Viewed", **properties: Any) -> None:
        sent = properties if distinct_id is None else {"distinct_id": distinct_id, **properties}
        response = self.post("/track", [{"event": name, "properties": {"token": TOKEN, **sent}}])
        assert (response.status_code, response.text) == (200, "1")

    def identify(self, identified_id: str, anon_id: str) -> dict[str, Any]:
        return self.verb("/track", "$identify", {"$identified_id": identified_id, "$anon_id": anon_id})

    def alias(self, distinct_id: str, alias: str) -> dict[str, Any]:
        return self.verb("/track", "$create_alias", {"distinct_id": distinct_id, "alias": alias})

    def merge(self, first: str, second: str) -> dict[str, Any]:
        return self.verb("/import?strict=1", "$merge", {"$distinct_ids": [first, second]})

    def verb(self, url: str, name: str, properties: dict[str, Any]) -> dict[str, Any]:
        """Send an identity call, which never causes an HTTP error, and return its log entry."""
        response = self.post(url, [{"event": name, "properties": {"token": TOKEN, **properties}}])
        assert response.status_code == 200
        return self.emulator.identity_log()[-1]

    def engage(self, distinct_id: str, **record: Any) -> str:
        """Send one profile update. Operations are given without the dollar sign, which Python names cannot have."""
        body = {"$token": TOKEN, "$distinct_id": distinct_id, **{f"${name}": value for name, value in record.items()}}
        return self.post("/engage", [body]).text

    def groups(self, group_key: str, group_id: str, **record: Any) -> str:
        body = {"$token": TOKEN, "$group_key": group_key, "$group_id": group_id}
        return self.post("/groups", [body | {f"${name}": value for name, value in record.items()}]).text

    def counted(self, name: str = "Viewed") -> list[str]:
        """Return the canonical id that each event with this name counts for now."""
        return [event["properties"]["distinct_id"] for event in self.emulator.events(name)]


def imported(**properties: Any) -> dict[str, Any]:
    """Return an event that `/import?strict=1` accepts, with the given properties. None removes a property."""
    full = {"time": int(time.time()) - 60, "distinct_id": "user", "$insert_id": uuid.uuid4().hex, **properties}
    return {"event": "Imported", "properties": {name: value for name, value in full.items() if value is not None}}
