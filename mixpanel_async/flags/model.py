"""What an evaluation gives: names, fields and meanings are the official SDK's (`mixpanel` 5.4.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

FallbackKind = Literal["FLAG_NOT_FOUND", "MISSING_CONTEXT_KEY", "NO_ROLLOUT_MATCH", "BACKEND_ERROR"]
Source = Literal["local", "remote", "fallback"]


class VariantSource:
    """The values of `SelectedVariant.variant_source`."""

    LOCAL: Final = "local"
    """Evaluated in this process."""
    REMOTE: Final = "remote"
    """Evaluated by Mixpanel."""
    FALLBACK: Final = "fallback"
    """The caller's own value; `SelectedVariant.fallback_reason` says why."""


@dataclass(frozen=True, slots=True)
class FallbackReason:
    """Why the caller's fallback came back.

    Args:
        kind: `FLAG_NOT_FOUND` (no such flag; evaluated remotely also: not enrolled), `MISSING_CONTEXT_KEY` (the context
            lacks what the flag is rolled out by), `NO_ROLLOUT_MATCH` (the flag is not rolled out to this context), or
            `BACKEND_ERROR` (no usable answer, or a definition that cannot be evaluated).
        message: the missing attribute, or what went wrong, in words without secrets or URLs; else None.
    """

    kind: FallbackKind
    message: str | None = None

    @classmethod
    def flag_not_found(cls) -> FallbackReason:
        return _FLAG_NOT_FOUND

    @classmethod
    def no_rollout_match(cls) -> FallbackReason:
        return _NO_ROLLOUT_MATCH

    @classmethod
    def missing_context_key(cls, key: str) -> FallbackReason:
        return cls("MISSING_CONTEXT_KEY", key)

    @classmethod
    def backend_error(cls, message: str) -> FallbackReason:
        return cls("BACKEND_ERROR", message)


_FLAG_NOT_FOUND: Final = FallbackReason("FLAG_NOT_FOUND")
_NO_ROLLOUT_MATCH: Final = FallbackReason("NO_ROLLOUT_MATCH")


@dataclass(frozen=True, slots=True)
class SelectedVariant:
    """The variant of a flag for one context, or the caller's fallback.

    Args:
        variant_value: any JSON value; an object or a list is the caller's own copy.
        variant_key: the variant's name; None in most fallbacks.
        experiment_id: of the experiment that the flag belongs to, if it does to one.
        is_experiment_active: whether that experiment runs.
        is_qa_tester: True for a test user and for a forced variant; None otherwise.
        variant_source: one of `VariantSource`; None in a fallback that a caller makes.
        fallback_reason: set if `variant_source` is `fallback`, else None.
    """

    variant_value: Any
    variant_key: str | None = None
    experiment_id: str | None = None
    is_experiment_active: bool | None = None
    is_qa_tester: bool | None = None
    variant_source: Source | None = None
    fallback_reason: FallbackReason | None = None

    def with_source(self, source: Source) -> SelectedVariant:
        """A copy that says where it came from, and is no fallback."""
        return self._as(source, None)

    def as_fallback(self, reason: FallbackReason) -> SelectedVariant:
        """A copy that says that it is the caller's own value, and why."""
        return self._as(VariantSource.FALLBACK, reason)

    def _as(self, source: Source, reason: FallbackReason | None) -> SelectedVariant:
        # `dataclasses.replace` takes three times as long.
        return SelectedVariant(
            self.variant_value,
            self.variant_key,
            self.experiment_id,
            self.is_experiment_active,
            self.is_qa_tester,
            source,
            reason,
        )


def as_variant(fallback: object) -> SelectedVariant:
    """The fallback as a caller gives it; a bare value, which type checkers refuse, is taken for the variant's value."""
    return fallback if isinstance(fallback, SelectedVariant) else SelectedVariant(fallback)
