"""Flags evaluated by Mixpanel."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from functools import partial
from typing import Any, Final

from .._delivery.sender import Sender
from .._model.errors import ApiError, MixpanelException, TransportError
from .._runtime.environment import Environment
from .endpoints import FlagsEndpoints
from .exposures import ExposureMethods, Exposures
from .metrics import FlagMetrics
from .model import FallbackReason, SelectedVariant, as_variant
from .variants import ContextError, ResponseError, encode_context

_SUBJECT: Final = "remote"


class RemoteFeatureFlagsProvider(ExposureMethods):
    """`AsyncMixpanel.remote_flags`: evaluates flags with one request to Mixpanel each.

    An evaluation raises nothing but cancellation. It ends within its timeout. If the connection was closed by Mixpanel
    while it was idle, there is one more attempt within that time.

    A `context` is a mapping that can be encoded as JSON, with `distinct_id`, the attributes by which flags are rolled
    out, and `custom_properties` for runtime rules. It is sent in the URL of the request.
    """

    def __init__(
        self,
        endpoints: FlagsEndpoints,
        sender: Sender,
        exposures: Exposures,
        metrics: FlagMetrics,
        environment: Environment,
    ) -> None:
        super().__init__(exposures)
        self._endpoints = endpoints
        self._sender = sender
        self._metrics = metrics
        self._environment = environment

    async def get_variant(
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
            from mixpanel_async.flags import RemoteFlags, SelectedVariant


            async def main() -> None:
                async with AsyncMixpanel("PROJECT_TOKEN", remote_flags=RemoteFlags()) as mp:
                    context = {"distinct_id": "user-1"}
                    variant = await mp.remote_flags.get_variant("button", SelectedVariant("blue"), context)
                    print(variant.variant_value, variant.fallback_reason)


            asyncio.run(main())
            ```

        Args:
            flag_key: name of the flag.
            fallback_value: returned, with the reason, if there is no variant.
            context: identifies the user and holds the attributes for rules.
            report_exposure: track that the user was shown the variant. Fallbacks are never tracked.

        Returns:
            The variant, with `variant_source` `remote`, or the fallback with its `fallback_reason`. A user who is not
            enrolled gets `FLAG_NOT_FOUND`: Mixpanel does not distinguish that from a flag that does not exist.
        """
        wall_start, started = self._environment.wall_time(), self._environment.monotonic()
        found = await self._fetch(context, flag_key)
        if isinstance(found, FallbackReason):
            return as_variant(fallback_value).as_fallback(found)
        if flag_key not in found:
            return as_variant(fallback_value).as_fallback(FallbackReason.flag_not_found())
        variant = found[flag_key]
        if variant is None:
            reason = self._failed("the variant in the response is malformed")
            return as_variant(fallback_value).as_fallback(reason)
        if report_exposure:
            latency = self._environment.monotonic() - started
            timing = {
                "Variant fetch start time": _iso(wall_start),
                "Variant fetch complete time": _iso(wall_start + latency),
                "Variant fetch latency (ms)": latency * 1000,
            }
            self._exposures.report(flag_key, variant, context, timing)
        return variant

    async def get_variant_value(
        self,
        flag_key: str,
        fallback_value: Any,
        context: Mapping[str, Any],
        report_exposure: bool = True,  # noqa: FBT001, FBT002  as in get_variant
    ) -> Any:
        """Return the value of a flag's variant, or `fallback_value`. See `get_variant`."""
        variant = await self.get_variant(flag_key, SelectedVariant(fallback_value), context, report_exposure)
        return variant.variant_value

    async def is_enabled(
        self,
        flag_key: str,
        context: Mapping[str, Any],
        report_exposure: bool = True,  # noqa: FBT001, FBT002  as in get_variant
    ) -> bool:
        """Return True only if the value of a flag's variant is `True`. See `get_variant`."""
        return await self.get_variant_value(flag_key, False, context, report_exposure) is True  # noqa: FBT003

    async def get_all_variants(self, context: Mapping[str, Any]) -> dict[str, SelectedVariant] | None:
        """Return the variants of all flags in which the user is enrolled, by flag. No exposure is tracked.

        Args:
            context: identifies the user and holds the attributes for rules, as in `get_variant`.

        Returns:
            None if there was no usable response.
        """
        found = await self._fetch(context, None)
        if isinstance(found, FallbackReason):
            return None
        return {key: variant for key, variant in found.items() if variant is not None}

    async def _fetch(
        self, context: Mapping[str, Any], flag_key: str | None
    ) -> Mapping[str, SelectedVariant | None] | FallbackReason:
        try:
            request = partial(self._endpoints.variants, encode_context(context), flag_key)
            # In a background task: a cancelled caller must not interrupt the request.
            found = await self._sender.request(request, "mixpanel flags")
        except ApiError as error:
            status = f"HTTP {error.status}"
            # The server's message may repeat personal data, so it is not logged.
            return self._failed(f"{status}: {error.message}", log_as=status)
        except TransportError as error:
            return self._failed(error.message)
        except (ContextError, ResponseError, MixpanelException) as error:
            return self._failed(str(error))
        except Exception as error:  # noqa: BLE001  an evaluation must never break the caller
            return self._failed(f"the evaluation failed ({type(error).__name__})")
        self._metrics.record_recovery(_SUBJECT)
        return found

    def _failed(self, message: str, log_as: str | None = None) -> FallbackReason:
        self._metrics.count_remote_failure()
        text = "flags: remote evaluation failed (%s); callers get their fallbacks"
        self._metrics.record_failure(_SUBJECT, f"/flags: {message}", text, log_as or message)
        return FallbackReason.backend_error(message)

    def __repr__(self) -> str:
        return "<RemoteFeatureFlagsProvider>"


class DisabledRemoteProvider(RemoteFeatureFlagsProvider):
    """Provider of a disabled client: no user is enrolled in a flag, and there is no request."""

    async def _fetch(self, context: Mapping[str, Any], flag_key: str | None) -> Mapping[str, SelectedVariant | None]:  # noqa: ARG002
        return {}


def _nothing() -> None:
    return None


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat()
