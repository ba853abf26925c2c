"""Values that need more memory than the process may have."""

from __future__ import annotations

import json
import sys

import pytest
from forked_python import run as run_forked

from mixpanel_async.emulator import Emulator

PROGRAM = """
import asyncio, json, resource, sys, time
from mixpanel_async import AsyncMixpanel, MixpanelException, Overflow

MB = 2**20

class Text(str): pass

def nested(levels):
    value = {}
    for _ in range(levels): value = {"a": value}
    return value

def shared(levels):
    value = "x" * 1000
    for _ in range(levels): value = [value] * 200
    return value

SHAPES = {
    "text": lambda: {"a": "x" * (100 * MB)},
    "text of a subclass": lambda: {"a": Text("x" * (100 * MB))},
    "text with escapes": lambda: {"a": "\\n" * (100 * MB)},
    "texts": lambda: dict.fromkeys(map(str, range(200)), "x" * (60 * MB)),
    "list of texts": lambda: {"a": ["x" * (60 * MB)] * 200},
    "object of texts": lambda: {"a": dict.fromkeys(map(str, range(200)), "x" * (60 * MB))},
    "name of a property": lambda: {"x" * (100 * MB): 1},
    "wide list": lambda: {"a": [1] * 10_000_000},
    "wide object": lambda: {"a": dict.fromkeys(map(str, range(300_000)), 1)},
    "many properties": lambda: dict.fromkeys(map(str, range(300_000)), 1),
    "deep nesting": lambda: {"a": nested(100_000)},
    "shared lists": lambda: {"a": shared(4)},
    "bytes": lambda: {"a": b"x" * (100 * MB)},
    "many large events": lambda: {"a": "x" * 900_000},
}

async def main(url, shape):
    mp = AsyncMixpanel("token", api_host=url, overflow=Overflow.DROP_OLDEST)
    await mp.track("user", "Before", {"a": 1})
    await mp.flush()
    value, errors = SHAPES[shape](), []
    calls = [
        lambda: mp.track("user", "Event", value),
        lambda: mp.track("user", "Event", value, ip="0"),
        lambda: mp.track_immediate("user", "Event", value),
        lambda: mp.people_set("user", value),
        lambda: mp.import_data(None, "user", "Event", time.time(), value),
        lambda: mp.track("user", "Event", {"a": 1}, meta=value),
    ]
    if shape in {"text", "text of a subclass", "text with escapes"}:
        calls.append(lambda: mp.track(value["a"], "Event", {"a": 1}))
        calls.append(lambda: mp.track("user", value["a"], {"a": 1}))
    for call in calls * (30 if shape == "many large events" else 1):
        try:
            await call()
        except (MixpanelException, MemoryError) as error:
            errors.append(type(error).__name__)
    await mp.track("user", "After", {"a": 1})
    await mp.flush()
    stats = mp.stats()
    await mp.aclose()
    rest = stats.accepted - stats.delivered - stats.failed - stats.dropped - stats.uncertain - stats.pending
    print(json.dumps({"calls": len(calls), "errors": errors, "rest": rest, "delivered": stats.delivered}))

resource.setrlimit(resource.RLIMIT_AS, (600 * MB, 600 * MB))
asyncio.run(main(sys.argv[1], sys.argv[2]))
"""
SHAPES = (
    "text",
    "text of a subclass",
    "text with escapes",
    "texts",
    "list of texts",
    "object of texts",
    "name of a property",
    "wide list",
    "wide object",
    "many properties",
    "deep nesting",
    "shared lists",
    "bytes",
    "many large events",
)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit of the address space")
@pytest.mark.parametrize("shape", SHAPES)
def test_value_that_is_too_large_for_the_memory_is_refused(shape: str) -> None:
    emulator = Emulator()
    with emulator.serve() as server:
        program = [sys.executable, "-c", PROGRAM, server.url, shape]
        done = run_forked(program, capture_output=True, text=True, timeout=25, modules=())
    assert done.returncode == 0, (done.returncode, done.stderr)
    result = json.loads(done.stdout)
    assert result["rest"] == 0
    assert [event["event"] for event in emulator.events() if event["event"] in {"Before", "After"}] == [
        "Before",
        "After",
    ]
    if shape == "many large events":
        assert result["delivered"] > result["calls"]
    else:
        # A list may be as long as it likes in a profile, but not as large.
        assert result["errors"] == ["ValidationError"] * result["calls"]
