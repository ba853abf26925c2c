"""Import and raw export of an emulator's events, over HTTP in this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio
import httpx

from mixpanel_async.emulator import Emulator


def exported_lines(emulator: Emulator, first: str = "2000-01-01", last: str = "2100-01-01") -> bytes:
    """Return the export of some days, one event per line."""
    parameters = {"from_date": first, "to_date": last}
    return _request(emulator, "GET", "/api/2.0/export", params=parameters).content


def import_events(emulator: Emulator, events: Sequence[dict[str, Any]]) -> None:
    """Import events in their order. Invalid ones are ignored."""
    _request(emulator, "POST", "/import", json=events)


def _request(emulator: Emulator, method: str, path: str, **options: Any) -> httpx.Response:
    async def request() -> httpx.Response:
        transport = httpx.ASGITransport(app=emulator.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", auth=("any", "")) as http:
            response = await http.request(method, path, **options)
            assert response.status_code == 200, response.text
            return response

    return anyio.run(request)
