"""Flags evaluated in this process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final

from .._model.errors import ClientClosedError, ValidationError
from .._runtime.clock import Environment
from .evaluate import evaluate
from .exposures import ExposureMethods, Exposures
from .hashing import state_of
from .metrics import FlagMetrics
from .model import FallbackReason, SelectedVariant, as_variant
from .poller import Listener, Poller

# A request asks for several flags of one person, most often.
_PEOPLE: Final = 1024
_NO_FLAG: Final = FallbackReason.flag_not_found()


class LocalFeatureFlagsProvider(ExposureMethods):
    """`AsyncMixpanel.local_flags`: evaluates flags without asking Mixpanel, in microseconds, from any thread.

    An evaluation never raises and never waits. Without definitions every flag is `FLAG_NOT_FOUND`; once there are
    some, they stay whatever Mixpanel answers later, until it answers with others.

    A `context` is a mapping with `distinct_id`, whatever else flags are rolled out by (such as a group key), and
    `custom_properties`, a dict, for runtime rules. Pass ids as text: 42 and 42.0 are different people.
    """

    def __init__(self, poller: Poller, exposures: Exposures, metrics: FlagMetrics, runtime: Environment) -> None:
        super().__init__(exposures)
        self._poller = poller
        self._metrics = metrics
        self._clock = runtime.monotonic
        self._state_of = lru_cache(_PEOPLE)(state_of)

    @property
    def ready(self) -> bool:
        """Whether there are definitions: Mixpanel has given a usable answer at least once."""
        return self._poller.is_ready

    def are_flags_ready(self) -> bool:
        """The same as `ready`, by the official SDK's name."""
        return self._poller.is_ready

    async def wait_ready(self, timeout: float = 10.0) -> bool:
        """Wait for the first definitions.

        Args:
            timeout: seconds, at least 0.

        Returns:
            Whether there are definitions now. False also if the client was closed.

        Raises:
            ValidationError: if `timeout` is negative or not a number.
            ClientClosedError: if the client is in use in another event loop that is still running.
        """
        if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout >= 0:
            raise ValidationError("timeout", "must be a number of seconds, at least 0")
        return await self._poller.wait_ready(float(timeout))

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Have a function called when definitions arrive, change, or cannot be had.

        Args:
            listener: a plain function that takes a `FlagsUpdate`. It is called in the event loop; what it raises is
                logged.

        Returns:
            A function that ends the subscription, from any thread.
        """
        return self._poller.subscribe(listener)

    def get_variant(
        self,
        flag_key: str,
        fallback_value: SelectedVariant,
        context: Mapping[str, Any],
        report_exposure: bool = True,  # noqa: FBT001, FBT002  the official signature
    ) -> SelectedVariant:
        """The variant of a flag for a context.

        Args:
            flag_key: name of the flag.
            fallback_value: what is returned, with the reason, when there is no variant.
            context: of the person.
            report_exposure: track that the person was shown the variant. Fallbacks are never tracked.

        Returns:
            The variant, with `variant_source` `local`, or the fallback with its `fallback_reason`.
        """
        started = self._clock() if report_exposure else 0.0
        found = self._decide(flag_key, context)
        if found.__class__ is not SelectedVariant:
            return as_variant(fallback_value).as_fallback(found)  # type: ignore[arg-type]
        if report_exposure:
            timing = {"Variant fetch latency (ms)": (self._clock() - started) * 1000}
            self._exposures.report(flag_key, found, context, timing)
        return found

    def get_variant_value(
        self,
        flag_key: str,
        fallback_value: Any,
        context: Mapping[str, Any],
        report_exposure: bool = True,  # noqa: FBT001, FBT002  as of get_variant
    ) -> Any:
        """The value of a flag's variant, or `fallback_value`. Arguments are those of `get_variant`."""
        variant = self.get_variant(flag_key, SelectedVariant(fallback_value), context, report_exposure)
        return variant.variant_value

    def is_enabled(
        self,
        flag_key: str,
        context: Mapping[str, Any],
        report_exposure: bool = True,  # noqa: FBT001, FBT002  as of get_variant
    ) -> bool:
        """Whether the value of a flag's variant is `True`, and nothing else. Arguments are those of `get_variant`."""
        return self.get_variant_value(flag_key, False, context, report_exposure) is True  # noqa: FBT003

    def get_all_variants(self, context: Mapping[str, Any]) -> dict[str, SelectedVariant]:
        """The variant of every flag that has one for a context, by flag. No exposure is tracked."""
        found = {key: self._decide(key, context) for key in self._poller.flags}
        return {key: one for key, one in found.items() if isinstance(one, SelectedVariant)}

    def _decide(self, flag_key: str, context: Mapping[str, Any]) -> SelectedVariant | FallbackReason:
        poller = self._poller
        if poller.is_idle:
            self._wake()
        try:
            flag = poller.flags.get(flag_key)
            return _NO_FLAG if flag is None else evaluate(flag, context, self._state_of)
        except Exception as error:  # noqa: BLE001  neither a definition nor a value in the context may break the caller
            self._metrics.count_evaluation_failure()
            words = f"the flag could not be evaluated ({type(error).__name__})"
            text = "flags: %r could not be evaluated (%s); the fallback is given"
            self._metrics.record_failure("evaluation", words, text, flag_key, type(error).__name__)
            return FallbackReason.backend_error(words)

    def _wake(self) -> None:
        """Start to poll in the caller's event loop, if there is one, as nothing else may call upon the client."""
        with contextlib.suppress(ClientClosedError):
            self._poller.wake()

    def __repr__(self) -> str:
        return f"<LocalFeatureFlagsProvider flags={len(self._poller.flags)} ready={self.ready}>"
