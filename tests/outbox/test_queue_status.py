"""Advice of `QueueStatus`."""

from __future__ import annotations

from typing import Any

import pytest

from mixpanel_async.outbox import QueueServer, QueueStatus, QueueWorker

GOOD: dict[str, Any] = {
    "name": "redis",
    "version": "7.2.4",
    "role": "master",
    "replicas": 1,
    "append_only": True,
    "append_fsync": "everysec",
    "append_status": "ok",
    "policy": "noeviction",
    "memory": 10,
    "max_memory": 100,
}
WORKER = QueueWorker(name="w", kinds=(), alive_for=9.0, held=0, lanes=())


def advice(server: dict[str, Any], **values: Any) -> tuple[str, ...]:
    given: dict[str, Any] = {
        "name": "mixpanel",
        "format": 1,
        "partitions": 8,
        "records": 1,
        "bytes": 1,
        "oldest": 1.0,
        "waiting": {},
        "dead": {},
        "counters": {},
        "workers": (WORKER,),
        "pauses": {},
        "erased": 0,
        "newer_lanes": (),
        **values,
    }
    return QueueStatus(server=QueueServer(**{**GOOD, **server}), **given).advice


def test_good_queue_needs_no_advice() -> None:
    assert advice({}) == advice({"default_user_may_write": True}) == ()
    assert advice({"version": "unknown", "memory": None, "max_memory": None}, workers=(), records=0) == ()


@pytest.mark.parametrize(
    ("server", "text"),
    [
        ({"version": "6.0.16"}, "6.0.16 is too old"),
        ({"role": "slave"}, "is a replica"),
        ({"append_only": False}, "set appendonly yes"),
        ({"append_fsync": "no"}, "set it to everysec"),
        ({"append_status": "err"}, "check its disk"),
        ({"default_user_may_write": False}, "the queue is empty after a restart"),
        ({"policy": None}, "does not tell its maxmemory-policy"),
        ({"policy": "volatile-ttl"}, "set noeviction"),
        ({"policy": "allkeys-lru"}, "set it to noeviction"),
        ({"max_memory": 0}, "has no maxmemory"),
        ({"memory": 95}, "nearly full"),
    ],
)
def test_server_is_advised(server: dict[str, Any], text: str) -> None:
    (found,) = advice(server)
    assert text in found


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"workers": ()}, "No worker is alive"),
        ({"pauses": {"/import": 12.4}}, "At Mixpanel's limit: it asked to pause requests to /import, for 12 s more"),
        ({"newer_lanes": ("events",)}, "update the workers"),
        ({"counters": {"lost": 3}}, "3 records were lost"),
    ],
)
def test_queue_is_advised(values: dict[str, Any], text: str) -> None:
    (found,) = advice({}, **values)
    assert text in found
