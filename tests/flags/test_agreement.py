"""Local evaluation agrees with the official SDK 5.4.1 on random definitions and contexts."""

from __future__ import annotations

import copy
import json
from importlib.resources import files
from random import Random
from typing import Any

import pytest
from flags_official import FALLBACK, Official, batches, outcome, silence
from flags_server import Server, flag, local

from mixpanel_async.flags import SelectedVariant

pytestmark = pytest.mark.anyio

FLAG_VECTORS = files("mixpanel.flags").joinpath("test-data")


@pytest.fixture
def anyio_backend() -> Any:
    """Run on one backend: nothing here depends on the event loop."""
    return "asyncio"


@pytest.mark.parametrize(
    ("pairs", "seed"),
    [(20_000, 1), pytest.param(1_000_000, 2, marks=[pytest.mark.long, pytest.mark.timeout(1800)])],
)
async def test_random_definitions_are_evaluated_as_by_the_official_sdk(pairs: int, seed: int) -> None:
    compared = raised = 0
    seen: set[Any] = set()
    official = Official()
    with silence():
        for body, keys, context_of in batches(Random(seed), pairs + pairs // 10):
            assert official.load(body) == set(keys)
            async with local(Server(body), poll_interval=None) as mp:
                for key in keys:
                    for _ in range(20):
                        context = context_of()
                        given = copy.deepcopy(context)
                        ours = mp.local_flags.get_variant(key, SelectedVariant(FALLBACK), context, False)
                        assert repr(context) == repr(given)
                        theirs = official.get_variant(key, context)
                        if theirs is None:
                            raised += 1
                            continue
                        assert outcome(ours) == outcome(theirs), (key, context, json.loads(body)["flags"][int(key[5:])])
                        compared += 1
                        seen.add((ours.variant_source, ours.fallback_reason and ours.fallback_reason.kind))
    assert compared >= pairs
    assert raised < pairs / 10
    assert seen == {("local", None), ("fallback", "NO_ROLLOUT_MATCH"), ("fallback", "MISSING_CONTEXT_KEY")}


async def test_get_all_variants_agrees_with_the_official_sdk() -> None:
    agreed = 0
    official = Official()
    with silence():
        for body, keys, context_of in batches(Random(3), 2_000):
            official.load(body)
            async with local(Server(body), poll_interval=None) as mp:
                for _ in range(20):
                    context = context_of()
                    ours = {key: outcome(one) for key, one in mp.local_flags.get_all_variants(context).items()}
                    for key in keys:
                        # One flag at a time: if one flag raises, the official SDK returns no variants at all.
                        theirs = official.get_variant(key, context)
                        if theirs is None:
                            continue
                        expected = outcome(theirs) if theirs.variant_source == "local" else None
                        assert ours.get(key) == expected
                        agreed += expected is not None
    assert agreed > 300


async def test_exposures_equal_the_official_sdk_except_for_latency() -> None:
    server = Server()
    for body, keys, context_of in batches(Random(4), 3_000):
        server.says = body
        server.events.clear()
        with silence():
            official = Official()
            official.load(body)
            expected = []
            async with local(server, poll_interval=None) as mp:
                for key in keys:
                    context = {**context_of(), "distinct_id": "user-1"}
                    if official.get_variant(key, context, report_exposure=True) is not None:
                        mp.local_flags.get_variant(key, SelectedVariant(FALLBACK), context)
        for distinct_id, event, properties in official.tracked:
            assert properties.pop("Variant fetch latency (ms)") >= 0
            expected.append((distinct_id, event, properties))
        tracked = []
        for arrived in server.events:
            properties = arrived["properties"]
            assert properties.pop("Variant fetch latency (ms)") >= 0
            names = ("token", "time", "$insert_id", "mp_lib", "$lib_version")
            own = {name: value for name, value in properties.items() if name not in names}
            tracked.append((own.pop("distinct_id"), arrived["event"], own))
        assert tracked == expected
        assert len(tracked) > 5


@pytest.mark.parametrize("operator", ["semver_compare", "datetime_compare"])
async def test_custom_operators_pass_the_official_vectors(operator: str) -> None:
    vectors = json.loads(FLAG_VECTORS.joinpath(f"{operator}_tests.json").read_text())
    cases = [vector for vector in vectors if isinstance(vector, list)]
    assert len(cases) > 70
    rollouts = [{"runtime_evaluation_rule": {operator: case[:3]}, "rollout_percentage": 1.0} for case in cases]
    variants = [{"key": "on", "value": True, "is_control": False}]
    flags = [flag(f"{at}", {"variants": variants, "rollout": [rollout]}) for at, rollout in enumerate(rollouts)]
    context = {"distinct_id": "u", "custom_properties": {"any": 1}}
    async with local(Server(), flags, poll_interval=None) as mp:
        for at, case in enumerate(cases):
            assert mp.local_flags.is_enabled(f"{at}", context, False) is case[3], case
