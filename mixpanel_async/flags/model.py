"""Result of an evaluation. Names, fields and meanings are those of the official SDK (`mixpanel` 5.4.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

FallbackKind = Literal["FLAG_NOT_FOUND", "MISSING_CONTEXT_KEY", "NO_ROLLOUT_MATCH", "BACKEND_ERROR"]
Source = Literal["local", "remote", "fallback"]


class VariantSource:
    """Values of `SelectedVariant.variant_source`."""

    LOCAL: Final = "local"
    """Evaluated in this process."""
    REMOTE: Final = "remote"
    """Evaluated by Mixpanel."""
    FALLBACK: Final = "fallback"
    """The caller's own value. `SelectedVariant.fallback_reason` says why."""


@dataclass(frozen=True, slots=True)
class FallbackReason:
    """Reason why an evaluation returned the caller's fallback.

    Args:
        kind: `FLAG_NOT_FOUND` (no such flag; in remote evaluation also: the user is not enrolled),
            `MISSING_CONTEXT_KEY` (the context lacks the attribute by which the flag is rolled out),
            `NO_ROLLOUT_MATCH` (the flag is not rolled out to this context), or `BACKEND_ERROR` (no usable response, or
            a definition that cannot be evaluated).
        message: the missing attribute, or a description of the error without secrets and URLs; else None.
    """

    kind: FallbackKind
    message: str | None = None

    @classmethod
    def flag_not_found(cls) -> FallbackReason:
        """Return the reason for an unknown flag."""
        return _FLAG_NOT_FOUND

    @classmethod
    def no_rollout_match(cls) -> FallbackReason:
        """Return the reason for a flag that is not rolled out to the context."""
        return _NO_ROLLOUT_MATCH

    @classmethod
    def missing_context_key(cls, key: str) -> FallbackReason:
        """Return the reason for a context without the attribute `key`.

        Args:
            key: the missing attribute.
        """
        return cls("MISSING_CONTEXT_KEY", key)

    @classmethod
    def backend_error(cls, message: str) -> FallbackReason:
        """Return the reason for a failed evaluation.

        Args:
            message: description of the error, without secrets and URLs.
        """
        return cls("BACKEND_ERROR", message)


_FLAG_NOT_FOUND: Final = FallbackReason("FLAG_NOT_FOUND")
_NO_ROLLOUT_MATCH: Final = FallbackReason("NO_ROLLOUT_MATCH")


@dataclass(frozen=True, slots=True)
class SelectedVariant:
    """Variant of a flag for one context, or the caller's fallback.

    Args:
        variant_value: any JSON value. An object or a list is a copy that the caller may change.
        variant_key: name of the variant; None in most fallbacks.
        experiment_id: id of the flag's experiment, if there is one.
        is_experiment_active: whether that experiment is running.
        is_qa_tester: True for a test user and for a forced variant; None otherwise.
        variant_source: one of `VariantSource`; None in a fallback that the caller creates.
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
        """Return a copy with this source and without a fallback reason.

        Args:
            source: one of `VariantSource`.
        """
        return self._copy(source, None)

    def as_fallback(self, reason: FallbackReason) -> SelectedVariant:
        """Return a copy that is marked as the caller's fallback, with the reason.

        Args:
            reason: why there is no variant.
        """
        return self._copy(VariantSource.FALLBACK, reason)

    def _copy(self, source: Source, reason: FallbackReason | None) -> SelectedVariant:
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
    """Return a caller's fallback as a variant. A bare value becomes the variant's value."""
    return fallback if isinstance(fallback, SelectedVariant) else SelectedVariant(fallback)
