"""Flags evaluated in this process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final

from .._model.errors import ClientClosedError, ValidationError
from .._runtime.environment import Environment
from .evaluate import evaluate
from .exposures import ExposureMethods, Exposures
from .hashing import state_of
from .metrics import FlagMetrics
from .model import FallbackReason, SelectedVariant, as_variant
from .poller import Listener, Poller

# Size of the hash cache: one web request usually evaluates several flags for one user.
_CACHED_USERS: Final = 1024
_NO_FLAG: Final = FallbackReason.flag_not_found()


class LocalFeatureFlagsProvider(ExposureMethods):
    """`AsyncMixpanel.local_flags`: evaluates flags without a request, in microseconds, from any thread.

    An evaluation never raises and never waits. Without definitions every flag is `FLAG_NOT_FOUND`. Definitions stay in
    use until Mixpanel returns newer ones; a failed fetch does not remove them.

    A `context` is a mapping with `distinct_id`, the other attributes by which flags are rolled out (such as a group
    key), and `custom_properties`, a dict, for runtime rules. Pass ids as strings: 42 and 42.0 are different users.
    """

    def __init__(self, poller: Poller, exposures: Exposures, metrics: FlagMetrics, environment: Environment) -> None:
        super().__init__(exposures)
        self._poller = poller
        self._metrics = metrics
        self._clock = environment.monotonic
        self._state_of = lru_cache(_CACHED_USERS)(state_of)

    @property
    def ready(self) -> bool:
        """True once definitions were fetched successfully. A disabled client is ready, without definitions."""
        return self._poller.is_ready

    def are_flags_ready(self) -> bool:
        """Return `ready`. The name is that of the official SDK."""
        return self._poller.is_ready

    async def wait_ready(self, timeout: float = 10.0) -> bool:
        """Wait for the first definitions.

        Args:
            timeout: seconds, at least 0.

        Returns:
            True if there are definitions, or the client is disabled. False at the timeout, or if the client is closed.

        Raises:
            ValidationError: `timeout` is negative or not a number.
            ClientClosedError: the client is in use in another event loop that is still running.
        """
        if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout >= 0:
            raise ValidationError("timeout", "must be a number of seconds, at least 0")
        return await self._poller.wait_ready(float(timeout))

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call a function when definitions arrive, change, or cannot be fetched.

        Args:
            listener: a plain function that takes a `FlagsUpdate`. It is called in the event loop. An exception in it
                is logged.

        Returns:
            A function that ends the subscription. It may be called from any thread.
        """
        return self._poller.subscribe(listener)

    def get_variant(
        self,
        flag_key: str,
        fallback_value: SelectedVariant,
        context: Mapping[str, Any],
        report_exposure: bool = True,  # noqa: FBT001, FBT002  the official signature
    ) -> SelectedVariant:
        """Return the variant of a flag for a context.

        Example:
            ```python
            import asyncio

            from mixpanel_async import AsyncMixpanel
            from mixpanel_async.flags import LocalFlags, SelectedVariant


            async def main() -> None:
                async with AsyncMixpanel("PROJECT_TOKEN", local_flags=LocalFlags()) as mp:
                    await mp.local_flags.wait_ready(timeout=2.0)
                    variant = mp.local_flags.get_variant("button", SelectedVariant("blue"), {"distinct_id": "user-1"})
                    print(variant.variant_value, variant.fallback_reason)


            asyncio.run(main())
            ```

        Args:
            flag_key: name of the flag.
            fallback_value: returned, with the reason, if there is no variant.
            context: identifies the user and holds the attributes for rules.
            report_exposure: track that the user was shown the variant. Fallbacks are never tracked.

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
        report_exposure: bool = True,  # noqa: FBT001, FBT002  as in get_variant
    ) -> Any:
        """Return the value of a flag's variant, or `fallback_value`. See `get_variant`."""
        variant = self.get_variant(flag_key, SelectedVariant(fallback_value), context, report_exposure)
        return variant.variant_value

    def is_enabled(
        self,
        flag_key: str,
        context: Mapping[str, Any],
        report_exposure: bool = True,  # noqa: FBT001, FBT002  as in get_variant
    ) -> bool:
        """Return True only if the value of a flag's variant is `True`. See `get_variant`."""
        return self.get_variant_value(flag_key, False, context, report_exposure) is True  # noqa: FBT003

    def get_all_variants(self, context: Mapping[str, Any]) -> dict[str, SelectedVariant]:
        """Return the variants of all flags that have one for a context, by flag. No exposure is tracked.

        Args:
            context: identifies the user and holds the attributes for rules, as in `get_variant`.
        """
        found = {key: self._decide(key, context) for key in self._poller.flags}
        return {key: one for key, one in found.items() if isinstance(one, SelectedVariant)}

    def _decide(self, flag_key: str, context: Mapping[str, Any]) -> SelectedVariant | FallbackReason:
        poller = self._poller
        if poller.is_idle:
            self._wake()
        try:
            flag = poller.flags.get(flag_key)
            return _NO_FLAG if flag is None else evaluate(flag, context, self._state_of)
        except Exception as error:  # noqa: BLE001  an evaluation must never break the caller
            self._metrics.count_evaluation_failure()
            message = f"the flag could not be evaluated ({type(error).__name__})"
            text = "flags: %r could not be evaluated (%s); the caller gets its fallback"
            self._metrics.record_failure("evaluation", message, text, flag_key, type(error).__name__)
            return FallbackReason.backend_error(message)

    def _wake(self) -> None:
        """Start polling in the caller's event loop, if there is one. Perhaps no other call of the client does so."""
        with contextlib.suppress(ClientClosedError):
            self._poller.wake()

    def __repr__(self) -> str:
        return f"<LocalFeatureFlagsProvider flags={len(self._poller.flags)} ready={self.ready}>"
