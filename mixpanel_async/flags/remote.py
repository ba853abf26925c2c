"""Flags evaluated by Mixpanel."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from .._delivery.sender import Sender
from .._http.transport import Transport
from .._model.errors import MixpanelException
from .._model.outcomes import Request, Response, TransportFailure
from .._runtime.clock import Environment
from .exposures import Exposures, Reporting
from .metrics import FlagMetrics
from .model import FallbackReason, SelectedVariant, as_variant
from .options import RemoteFlags
from .wire import ContextError, FlagsEncoder, ReplyError, read_variants

_EPISODE = "remote"


class RemoteFeatureFlagsProvider(Reporting):
    """`AsyncMixpanel.remote_flags`: asks Mixpanel for the variant each time, which takes a request.

    An evaluation raises nothing but cancellation. It ends within its timeout; a connection that Mixpanel had closed in
    the meantime is replaced once within that time.

    A `context` is a mapping that JSON can carry, with `distinct_id`, whatever else flags are rolled out by, and
    `custom_properties` for runtime rules. It is sent in the URL of the request.
    """

    def __init__(
        self,
        options: RemoteFlags,
        *,
        timeout: float,
        encoder: FlagsEncoder,
        sender: Sender,
        transport: Transport,
        exposures: Exposures,
        tally: FlagMetrics,
        runtime: Environment,
    ) -> None:
        super().__init__(exposures)
        self._options = options
        self._timeout = timeout
        self._encoder = encoder
        self._sender = sender
        self._transport = transport
        self._tally = tally
        self._runtime = runtime

    async def get_variant(
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
            The variant, with `variant_source` `remote`, or the fallback with its `fallback_reason`. A person who is not
            enrolled gets `FLAG_NOT_FOUND`, as Mixpanel does not tell that from a flag that does not exist.
        """
        began, started = self._runtime.wall_time(), self._runtime.monotonic()
        found = await self._ask(context, flag_key)
        if isinstance(found, FallbackReason):
            return as_variant(fallback_value).as_fallback(found)
        if flag_key not in found:
            return as_variant(fallback_value).as_fallback(FallbackReason.flag_not_found())
        variant = found[flag_key]
        if variant is None:
            return as_variant(fallback_value).as_fallback(self._failed("the variant in the answer is malformed"))
        if report_exposure:
            took = self._runtime.monotonic() - started
            timing = {
                "Variant fetch start time": _iso(began),
                "Variant fetch complete time": _iso(began + took),
                "Variant fetch latency (ms)": took * 1000,
            }
            self._exposures.report(flag_key, variant, context, timing)
        return variant

    async def get_variant_value(
        self,
        flag_key: str,
        fallback_value: Any,
        context: Mapping[str, Any],
        report_exposure: bool = True,  # noqa: FBT001, FBT002  as of get_variant
    ) -> Any:
        """The value of a flag's variant, or `fallback_value`. Arguments are those of `get_variant`."""
        variant = await self.get_variant(flag_key, SelectedVariant(fallback_value), context, report_exposure)
        return variant.variant_value

    async def is_enabled(
        self,
        flag_key: str,
        context: Mapping[str, Any],
        report_exposure: bool = True,  # noqa: FBT001, FBT002  as of get_variant
    ) -> bool:
        """Whether the value of a flag's variant is `True`, and nothing else. Arguments are those of `get_variant`."""
        return await self.get_variant_value(flag_key, False, context, report_exposure) is True  # noqa: FBT003

    async def get_all_variants(self, context: Mapping[str, Any]) -> dict[str, SelectedVariant] | None:
        """The variant of every flag that the person is enrolled in, by flag. No exposure is tracked.

        Returns:
            None if Mixpanel gave no usable answer.
        """
        found = await self._ask(context, None)
        if isinstance(found, FallbackReason):
            return None
        return {key: variant for key, variant in found.items() if variant is not None}

    async def _ask(
        self, context: Mapping[str, Any], flag_key: str | None
    ) -> Mapping[str, SelectedVariant | None] | FallbackReason:
        try:
            request = self._encoder.variants(context, flag_key, self._options.max_bytes)
            # In a task of the package's own: a caller that is cancelled must not take a request down half-way.
            job = self._sender.spawn(lambda: self._request(request), "mixpanel flags", _nothing)
            reply = await job.result()
            if isinstance(reply, TransportFailure) or reply.status != 200:
                status = None if isinstance(reply, TransportFailure) else reply.status
                told = f"HTTP {status}" if status is not None else self._encoder.words(request, reply)
                return self._failed(self._encoder.words(request, reply), told)
            found = read_variants(reply.body)
        except (ContextError, ReplyError, MixpanelException) as error:
            return self._failed(str(error))
        except Exception as error:  # noqa: BLE001  whatever it is, it must not break the caller
            return self._failed(f"the evaluation failed ({type(error).__name__})")
        self._tally.record_recovery(_EPISODE)
        return found

    async def _request(self, request: Request) -> Response | TransportFailure:
        started = self._runtime.monotonic()
        self._tally.remote_requests += 1
        reply = await self._transport.send(request, timeout=self._timeout)
        took = self._runtime.monotonic() - started
        if isinstance(reply, TransportFailure) and reply.sent and took < self._timeout / 2:
            # Most likely a connection that lay idle and that the other side has closed.
            self._tally.remote_requests += 1
            reply = await self._transport.send(request, timeout=self._timeout - took)
        return reply

    def _failed(self, words: str, told: str | None = None) -> FallbackReason:
        """Note a failure; `told` is what may be logged, where a server's words may not."""
        self._tally.remote_failures += 1
        text = "flags: no variant could be had from Mixpanel (%s); fallbacks are given"
        self._tally.record_failure(_EPISODE, f"/flags: {words}", text, words if told is None else told)
        return FallbackReason.backend_error(words)

    def __repr__(self) -> str:
        return "<RemoteFeatureFlagsProvider>"


def _nothing() -> None:
    return None


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat()
