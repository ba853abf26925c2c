"""Local evaluation: the variant of a flag for a context. Pure.

The result is that of the official SDK 5.4.1 wherever that SDK can evaluate. Where it raises, this module also raises or
treats the rule as not met. The caller turns exceptions into a fallback.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from .definitions import Flag, Rollout
from .hashing import BUCKETS
from .model import FallbackReason, SelectedVariant
from .rules import fold

StateOf = Callable[[str], int]

_NO_MATCH: Final = FallbackReason.no_rollout_match()


class UndecidableError(Exception):
    """The percentage of a rollout, or a share of its variants, is not a number."""


def evaluate(flag: Flag, context: Mapping[str, Any], state_of: StateOf) -> SelectedVariant | FallbackReason:
    """Return the variant, or the reason for a fallback.

    Args:
        flag: the definition.
        context: `distinct_id`, the attribute by which the flag is rolled out, and `custom_properties` for rules.
        state_of: `hashing.state_of`, or a cached version of it.

    Raises:
        UndecidableError: the evaluation reached an invalid part of the definition.
        Exception: any exception that a value in the context raises.
    """
    subject = context.get(flag.context)
    if not subject:
        return flag.missing
    if flag.testers and (forced := _tester_variant(flag, context)) is not None:
        return _unshared(flag, forced)
    state = state_of(subject if subject.__class__ is str else str(subject)) if flag.is_drawn else 0
    rollout = _assigned(flag, state, context)
    if rollout is None:
        return _NO_MATCH
    chosen = rollout.forced or rollout.only or rollout.by_bucket[flag.variant_salt.bucket(state)]
    if chosen is None:
        raise UndecidableError
    return chosen if flag.is_shared else _unshared(flag, chosen)


def _assigned(flag: Flag, state: int, context: Mapping[str, Any]) -> Rollout | None:
    """Return the first rollout that includes this context."""
    properties: Mapping[Any, Any] | None = None
    for rollout in flag.rollouts:
        buckets = rollout.buckets
        if buckets is None:
            raise UndecidableError
        if buckets < BUCKETS and rollout.salt.bucket(state) >= buckets:
            continue
        if rollout.is_ruled or rollout.legacy is not None:
            properties = _properties(context) if properties is None else properties
            if not properties or not _is_met(rollout, properties):
                continue
        return rollout
    return None


def _tester_variant(flag: Flag, context: Mapping[str, Any]) -> SelectedVariant | None:
    user = context.get("distinct_id")
    name = flag.testers.get(user) if user else None
    return None if name is None else flag.named.get(name)


def _unshared(flag: Flag, variant: SelectedVariant) -> SelectedVariant:
    """Return the variant with a copied value, so that a caller's changes to it do not affect other callers."""
    return variant if flag.is_shared else replace(variant, variant_value=_copied(variant.variant_value))


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


def _properties(context: Mapping[str, Any]) -> Mapping[Any, Any]:
    """Return the folded properties for rules. Without properties no rule is met."""
    found = context.get("custom_properties")
    if not found or not isinstance(found, dict):
        return {}
    try:
        folded: Mapping[Any, Any] = fold(found)
    except RecursionError:
        return {}
    return folded


def _is_met(rollout: Rollout, properties: Mapping[Any, Any]) -> bool:
    if rollout.legacy is not None:
        return all(_equals(properties.get(key), text) for key, text in rollout.legacy.items())
    if rollout.rule is None:
        return False
    try:
        return bool(rollout.rule(properties))
    except Exception:  # noqa: BLE001  unsuitable values may raise anything; the rule is then not met
        return False


def _equals(value: object, text: str | None) -> bool:
    return isinstance(value, str) and value.casefold() == text
