"""Worked examples of local evaluation. The expected results come from the official SDK 5.4.1."""

from __future__ import annotations

from typing import Any

import pytest
from flags_server import CT, ON, Server, flag, local

from mixpanel_async.flags import FallbackReason, SelectedVariant
from mixpanel_async.flags.hashing import Salt, fnv1a64, state_of

pytestmark = pytest.mark.anyio

SALT = "0123456789abcdef0123456789abcdef"
NO_MATCH = FallbackReason.no_rollout_match()


@pytest.fixture
def anyio_backend() -> Any:
    """Run on one backend: nothing here depends on the event loop."""
    return "asyncio"


async def decided(definition: dict[str, Any], *contexts: dict[str, Any]) -> list[Any]:
    """Return the key of the variant, or the fallback reason, for each context."""
    async with local(Server(), [definition], poll_interval=None) as mp:
        found = [
            mp.local_flags.get_variant(definition["key"], SelectedVariant(None), context, report_exposure=False)
            for context in contexts
        ]
    assert all((one.variant_source == "local") == (one.fallback_reason is None) for one in found)
    return [one.fallback_reason or one.variant_key for one in found]


def users(*ids: str) -> list[dict[str, Any]]:
    return [{"distinct_id": one} for one in ids]


def test_hashes_equal_the_official_sdk() -> None:
    assert fnv1a64(b"user-1checkoutvariant") == 4816443311749250001
    assert fnv1a64(b"user-1checkoutrollout") == 12593174793069640013
    assert fnv1a64(b"") % 100 == 37
    assert Salt("variant").bucket(state_of("abc")) == 72
    assert Salt("variant").bucket(state_of("def")) == 21
    expected = {"user-1": (13, 1), "user-2": (34, 86), "user-3": (35, 19), "alice": (68, 44), "zoë": (73, 53)}
    for user, buckets in {**expected, "42": (68, 12)}.items():
        state = state_of(user)
        assert (Salt("checkoutrollout").bucket(state), Salt("checkoutvariant").bucket(state)) == buckets


async def test_e1_variants_are_sorted_by_key() -> None:
    variants = [
        {"key": "treatment", "value": True, "is_control": False, "split": 0.5},
        {"key": "control", "value": False, "is_control": True, "split": 0.5},
    ]
    definition = flag("checkout", {"variants": variants, "rollout": [{"rollout_percentage": 1.0}]})
    found = await decided(definition, *users("user-1", "user-2", "user-3"))
    assert found == ["control", "treatment", "control"]


async def test_e2_salt_and_two_rollouts_select_users() -> None:
    rollouts = [
        {"rollout_percentage": 0.5},
        {"rollout_percentage": 0.6, "variant_splits": {"control": 0.0, "treatment": 1.0}},
    ]
    definition = flag("checkout", {"variants": CT, "rollout": rollouts}, hash_salt=SALT)
    found = await decided(definition, *users("user-1", "user-2", "user-4", "user-5", "user-6", "alice"))
    assert found == [NO_MATCH, NO_MATCH, "treatment", "control", "treatment", "control"]


async def test_e3_splits_are_summed_as_floats() -> None:
    variants = [
        {"key": key, "value": at, "is_control": False, "split": split}
        for at, (key, split) in enumerate([("a", 0.1), ("b", 0.2), ("c", 0.7)])
    ]
    definition = flag("tri", {"variants": variants, "rollout": [{"rollout_percentage": 1.0}]})
    assert await decided(definition, *users("u264", "u189", "u119")) == ["b", "b", "c"]


@pytest.mark.parametrize("share", [0.005, 0.01])
async def test_e4_percentages_are_compared_in_hundredths(share: float) -> None:
    definition = flag("gate", {"variants": ON, "rollout": [{"rollout_percentage": share}]})
    assert await decided(definition, *users("u17", "u283")) == ["on", NO_MATCH]


async def test_e5_last_variant_takes_the_remaining_buckets() -> None:
    variants = [{"key": key, "value": 1, "is_control": False, "split": 0.1} for key in "azm"]
    definition = flag("s", {"variants": variants, "rollout": [{"rollout_percentage": 1.0}]})
    assert await decided(definition, *users("user-1", "user-2", "user-3", "alice")) == ["m", "z", "z", "z"]


async def test_e6_rollout_can_force_a_variant() -> None:
    for name, expected, is_tester in (("TREATMENT", "treatment", True), ("nope", "control", None)):
        rollouts = [{"rollout_percentage": 1.0, "variant_override": {"key": name}}]
        definition = flag("checkout", {"variants": CT, "rollout": rollouts}, experiment_id="exp-1")
        async with local(Server(), [definition], poll_interval=None) as mp:
            found = mp.local_flags.get_variant("checkout", SelectedVariant(0), {"distinct_id": "user-1"})
        assert found == SelectedVariant(
            variant_value=expected[0],
            variant_key=expected,
            experiment_id="exp-1",
            is_qa_tester=is_tester,
            variant_source="local",
        )


async def test_e7_test_users_get_their_variant_and_context_is_required() -> None:
    users = {"qa-1": "Treatment", "qa-2": "ghost"}
    ruleset = {"variants": CT, "rollout": [{"rollout_percentage": 0.0}], "test": {"users": users}}
    missing = FallbackReason.missing_context_key("company_id")
    found = await decided(
        flag("checkout", ruleset, context="company_id"),
        {"distinct_id": "qa-1", "company_id": "X"},
        {"distinct_id": "qa-1"},
        {"distinct_id": "qa-1", "company_id": 0},
        {"distinct_id": "qa-2", "company_id": "X"},
        {"distinct_id": "QA-1", "company_id": "X"},
    )
    assert found == ["treatment", missing, missing, NO_MATCH, NO_MATCH]


async def test_e8_rules_ignore_case_and_need_properties() -> None:
    rule = {"==": [{"var": "Plan"}, "ENTERPRISE"]}
    rollouts = [{"rollout_percentage": 1.0, "runtime_evaluation_rule": rule}]
    properties: list[Any] = [{"PLAN": "Enterprise"}, {"plan": "free"}, {}, None, "str"]
    contexts = [{"distinct_id": "user-1", "custom_properties": one} for one in properties]
    found = await decided(flag("f", {"variants": ON, "rollout": rollouts}), *contexts, {"distinct_id": "user-1"})
    assert found == ["on", *[NO_MATCH] * 5]


async def test_e9_versions_and_times_are_compared() -> None:
    rule = {
        "and": [
            {"semver_compare": [{"var": "appVersion"}, ">=", "1.10.0"]},
            {"datetime_compare": [{"var": "signup"}, "<", 1784160000000]},
        ]
    }
    rollouts = [{"rollout_percentage": 1.0, "runtime_evaluation_rule": rule}]
    early = "2026-07-15T23:59:59.999Z"
    cases = [
        ("v1.10", early), ("1.9.9", early), ("1.10.0-rc1", early),
        ("v1.10", "2026-07-16T00:00:00Z"), ("v1.10", "2026-07-15"),
    ]  # fmt: skip
    contexts = [{"distinct_id": "u", "custom_properties": {"appVersion": a, "signup": s}} for a, s in cases]
    assert await decided(flag("f", {"variants": ON, "rollout": rollouts}), *contexts) == ["on", *[NO_MATCH] * 4]


async def test_e10_ids_are_hashed_as_python_strings() -> None:
    definition = flag("checkout", {"variants": CT, "rollout": [{"rollout_percentage": 1.0}]}, context="company_id")
    contexts = [{"distinct_id": "u", "company_id": one} for one in (42, "42", 42.0, True, "")]
    missing = FallbackReason.missing_context_key("company_id")
    assert await decided(definition, *contexts) == ["control", "control", "treatment", "control", missing]


@pytest.mark.parametrize(
    ("operator", "operands", "expected"),
    [
        ("semver_compare", ["1.2.3.4", "!==", "1.2.3"], False),
        ("semver_compare", ["1.0.0+a", "===", "1.0.0+b"], True),
        ("semver_compare", ["1.0.0-2", "<", "1.0.0-10"], True),
        ("datetime_compare", ["2026-07-16T00:00:00+05:30", "<", 1784160000000], True),
        ("datetime_compare", ["2026-07-16T00:00:00Z", "===", 1784160000999], True),
        ("datetime_compare", ["2026-07-16T00:00:00Z", "===", "1784160000000"], False),
    ],
)
async def test_e11_operators_compare_values(operator: str, operands: list[Any], expected: bool) -> None:
    rollouts = [{"rollout_percentage": 1.0, "runtime_evaluation_rule": {operator: operands}}]
    context = {"distinct_id": "u", "custom_properties": {"any": 1}}
    found = await decided(flag("f", {"variants": ON, "rollout": rollouts}), context)
    assert found == ["on" if expected else NO_MATCH]
