"""Which variant of a flag a context gets. Pure: a definition and a context in, a verdict out.

Agrees with the official SDK 5.4.1 on everything that it can evaluate. Where it raises, this raises, too, or finds the
rule not met; whoever asks turns what is raised into a fallback.
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
    """A rollout was reached whose share, or whose variants' shares, are no numbers."""


def evaluate(flag: Flag, context: Mapping[str, Any], state_of: StateOf) -> SelectedVariant | FallbackReason:
    """The variant, or why there is none.

    Args:
        flag: the definition.
        context: of the person: `distinct_id`, what the flag is rolled out by, `custom_properties` for rules.
        state_of: `hashing.state_of`, or the same with a memory.

    Raises:
        UndecidableError: if the definition makes no sense where the evaluation got to.
        Exception: whatever a value in the context raises.
    """
    subject = context.get(flag.context)
    if not subject:
        return flag.missing
    if flag.testers and (forced := _of_tester(flag, context)) is not None:
        return _own(flag, forced)
    state = state_of(subject if subject.__class__ is str else str(subject)) if flag.is_drawn else 0
    rollout = _assigned(flag, state, context)
    if rollout is None:
        return _NO_MATCH
    chosen = rollout.forced or rollout.only or rollout.by_bucket[flag.variant_salt.bucket(state)]
    if chosen is None:
        raise UndecidableError
    return chosen if flag.is_shared else _own(flag, chosen)


def _assigned(flag: Flag, state: int, context: Mapping[str, Any]) -> Rollout | None:
    """The first rollout that reaches this context."""
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


def _of_tester(flag: Flag, context: Mapping[str, Any]) -> SelectedVariant | None:
    person = context.get("distinct_id")
    name = flag.testers.get(person) if person else None
    return None if name is None else flag.named.get(name)


def _own(flag: Flag, variant: SelectedVariant) -> SelectedVariant:
    """The variant for a caller: what it does to an object or a list in it must not reach the next caller."""
    return variant if flag.is_shared else replace(variant, variant_value=_copied(variant.variant_value))


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


def _properties(context: Mapping[str, Any]) -> Mapping[Any, Any]:
    """What rules look at; empty if there is nothing, and then no rule is met."""
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
    except Exception:  # noqa: BLE001  values that a rule does not fit may fail in any way, and then it is not met
        return False


def _equals(value: object, text: str | None) -> bool:
    return isinstance(value, str) and value.casefold() == text
