"""`python -m benchmarks.flags`: compare the cost of a flag evaluation with the official SDK.

Both libraries evaluate the same definitions for the same contexts in this process, with interleaved rounds of 1,000
evaluations, for new users or for 100 returning users. Figures are CPU time, medians over the rounds. Exposures are not
sent: the official SDK passes them to a tracker that does nothing (its default tracker would send a request and wait),
mixpanel-async enqueues them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import sys
import time
import warnings
from collections.abc import Callable
from datetime import datetime, timezone
from statistics import median
from typing import Any, Final, NamedTuple

import anyio
import httpx

from mixpanel_async import AsyncMixpanel, BatchPolicy
from mixpanel_async.flags import LocalFlags, SelectedVariant

from .report import machine

with warnings.catch_warnings():
    # The official package depends on libraries that warn on newer Pythons.
    warnings.simplefilter("ignore")
    from mixpanel.flags.local_feature_flags import LocalFeatureFlagsProvider
    from mixpanel.flags.types import LocalFlagsConfig
    from mixpanel.flags.types import SelectedVariant as OfficialVariant

_EVALUATIONS: Final = 1_000
_SALT: Final = "0123456789abcdef0123456789abcdef"
_VARIANTS: Final = (
    {"key": "control", "value": False, "is_control": True, "split": 0.5},
    {"key": "treatment", "value": True, "is_control": False, "split": 0.5},
)
_RULE: Final = {
    "and": [
        {"==": [{"var": "plan"}, "Enterprise"]},
        {"in": [{"var": "country"}, ["DE", "FR", "NL"]]},
        {">=": [{"var": "age"}, 18]},
    ]
}
_SHORT: Final = "user-{:05}"
_UUID: Final = "3f2b0a52-1c1c-4b6e-9d7e-0a4f2c{:06}"
_KNOWN: Final = 100


class _Case(NamedTuple):
    title: str
    key: str
    person: str = _SHORT
    known: bool = False
    exposes: bool = False
    bar: float | None = None
    """Limit in microseconds; None for no limit."""


_CASES: Final = (
    _Case("no rules, returning users", "plain", known=True, bar=5.0),
    _Case("no rules, new users", "plain", bar=5.0),
    _Case("no rules, new users with UUIDs", "plain", _UUID, bar=5.0),
    _Case("a typical rule", "ruled", bar=50.0),
    _Case("a rule on a version", "versioned", bar=50.0),
    _Case("unknown flag", "ghost"),
    _Case("no rules, with exposure", "plain", exposes=True),
)


def _definition(key: str, rule: object = None) -> dict[str, Any]:
    rollout = {"rollout_percentage": 0.9} | ({} if rule is None else {"runtime_evaluation_rule": rule})
    return {
        "id": key,
        "name": key,
        "key": key,
        "status": "enabled",
        "project_id": 1,
        "context": "distinct_id",
        "hash_salt": _SALT,
        "ruleset": {"variants": list(_VARIANTS), "rollout": [rollout]},
    }


_DEFINITIONS: Final = json.dumps(
    {
        "flags": [
            _definition("plain"),
            _definition("ruled", _RULE),
            _definition("versioned", {"semver_compare": [{"var": "appVersion"}, ">=", "1.10.0"]}),
        ]
    }
).encode()


def _context(person: str) -> dict[str, Any]:
    properties = {"plan": "enterprise", "country": "de", "age": 30, "appVersion": "2.1.0", "tags": ["a", "b"]}
    return {"distinct_id": person, "custom_properties": properties}


def _official() -> LocalFeatureFlagsProvider:
    provider = LocalFeatureFlagsProvider("token", LocalFlagsConfig(), "5.4.1", lambda *_: None)
    now = datetime.now(timezone.utc)
    request = httpx.Request("GET", "https://api.mixpanel.com")
    provider._handle_response(httpx.Response(200, content=_DEFINITIONS, request=request), now, now)
    return provider


async def _answer(request: httpx.Request) -> httpx.Response:
    is_flags = request.url.path.startswith("/flags")
    return httpx.Response(200, content=_DEFINITIONS if is_flags else b'{"status": 1}')


def _timed(evaluate: Callable[..., Any], case: _Case, fallback: Any, contexts: list[Any]) -> float:
    """Return the CPU time of one evaluation in microseconds."""
    key, exposes = case.key, case.exposes
    started = time.process_time()
    for context in contexts:
        evaluate(key, fallback, context, exposes)
    return (time.process_time() - started) / len(contexts) * 1e6


async def _measured(rounds: int) -> dict[str, tuple[list[float], list[float]]]:
    theirs = _official()
    client = httpx.AsyncClient(transport=httpx.MockTransport(_answer))
    # A long linger prevents requests during the measurement.
    batching = BatchPolicy(linger=3600, max_events=2_000, max_pending_events=10_000_000)
    async with AsyncMixpanel(
        "token", http_client=client, local_flags=LocalFlags(poll_interval=None), batching=batching
    ) as mp:
        if not await mp.local_flags.wait_ready():
            sys.exit("no flag definitions were fetched")
        seen: dict[str, tuple[list[float], list[float]]] = {case.title: ([], []) for case in _CASES}
        people = itertools.count()
        for _ in range(rounds):
            for case in _CASES:
                numbers = [at % _KNOWN if case.known else next(people) for at in range(_EVALUATIONS)]
                contexts = [_context(case.person.format(number)) for number in numbers]
                ours, official = seen[case.title]
                ours.append(_timed(mp.local_flags.get_variant, case, SelectedVariant(None), contexts))
                official.append(_timed(theirs.get_variant, case, OfficialVariant(None), contexts))
        return seen


def main() -> None:
    """Measure and print."""
    description = "Measure the cost of a flag evaluation."
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flags", description=description)
    parser.add_argument("--rounds", type=int, default=30, help="rounds of each case (default: 30)")
    options = parser.parse_args()
    # The official SDK logs every fallback, which would distort the comparison.
    logging.getLogger("mixpanel.flags").setLevel(logging.CRITICAL)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    seen = anyio.run(_measured, options.rounds)
    print(*machine(), sep="\n")
    print(f"{_EVALUATIONS:,} evaluations per round, medians of {options.rounds} rounds\n")
    print(f"{'CPU for one get_variant':32}{'mixpanel-async':>16}{'mixpanel':>12}{'ratio':>8}{'limit':>9}")
    for case in _CASES:
        ours, theirs = (median(times) for times in seen[case.title])
        limit = "" if case.bar is None else f"{case.bar:.0f} us"
        print(f"{case.title:32}{ours:13.2f} us{theirs:9.2f} us{theirs / ours:7.1f}x{limit:>9}")


if __name__ == "__main__":
    main()
