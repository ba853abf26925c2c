"""Log records have structured data and appear once per episode."""

from __future__ import annotations

import logging
from typing import Any

import anyio.lowlevel
import pytest

from mixpanel_async import BatchPolicy, RetryPolicy
from mixpanel_async.emulator import Emulator

pytestmark = pytest.mark.anyio


async def test_outage_is_logged_once_with_structured_data(caplog: pytest.LogCaptureFixture) -> None:
    emulator = Emulator()
    retry = RetryPolicy(initial=0.0, maximum=0.0)
    with caplog.at_level(logging.WARNING, "mixpanel_async"):
        async with emulator.client(retry=retry, batching=BatchPolicy(max_pending_events=2)) as mp:
            emulator.fail_next(status=503, times=3, path="/track")
            for _ in range(5):
                await mp.track("private-person", "Event", {"private": "value"})
            await mp.flush()
            emulator.break_next("zero", path="/engage")
            await mp.people_set("private-person", {"private": "value"})
            await mp.flush()
    told: list[dict[str, Any]] = [record.mixpanel for record in caplog.records]  # type: ignore[attr-defined]
    assert told == [
        {"event": "records_dropped", "kind": "events", "reason": "queue_full", "records": 1, "total": 1},
        {"event": "retry_scheduled", "kind": "events", "status": 503, "records": 2},
        {"event": "records_lost", "kind": "people", "reason": "rejected", "records": 1, "total": 1},
        {"event": "records_rejected", "kind": "people", "status": 200, "records": 1},
        {"event": "records_dropped", "kind": "events", "reason": "queue_full", "records": 2, "total": 3},
    ]
    assert "private" not in caplog.text


async def test_rejected_credentials_are_logged_as_error(caplog: pytest.LogCaptureFixture) -> None:
    emulator = Emulator()
    emulator.fail_next(status=401, times=1)
    with caplog.at_level(logging.WARNING, "mixpanel_async"):
        async with emulator.client(shutdown_timeout=0.05, batching=BatchPolicy(linger=0.0)) as mp:
            await mp.track("user", "Event")
            while not mp.stats().last_error:
                await anyio.lowlevel.checkpoint()
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.mixpanel == {"event": "configuration_refused", "kind": "events", "status": 401, "records": 1}  # type: ignore[attr-defined]
