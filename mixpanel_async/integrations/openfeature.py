"""OpenFeature provider backed by the feature flags of a client.

    async with AsyncMixpanel("PROJECT_TOKEN", local_flags=LocalFlags()) as mp:
        await mp.local_flags.wait_ready()
        api.set_provider_and_wait(MixpanelProvider(mp.local_flags))
        client = api.get_client()
        enabled = await client.get_boolean_value_async("checkout", False, EvaluationContext(attributes=context))

Reasons and error codes match Mixpanel's official provider (`mixpanel-openfeature` 0.2.0).
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Protocol

import anyio

from mixpanel_async.flags import FallbackReason, FlagsUpdate, SelectedVariant

try:
    from openfeature.evaluation_context import EvaluationContext
    from openfeature.event import ProviderEventDetails
    from openfeature.exception import ErrorCode, ProviderNotReadyError
    from openfeature.flag_evaluation import FlagResolutionDetails, FlagValueType, Reason
    from openfeature.provider import AbstractProvider, Metadata
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "openfeature":
        raise
    message = 'the OpenFeature provider needs an extra: run pip install ".[openfeature]" in a clone of the repository'
    raise ImportError(message, name=error.name) from error

__all__ = ["MixpanelProvider"]

_NAME: Final = "mixpanel-provider"
_FALLBACKS: Final[Mapping[str, tuple[ErrorCode, Reason]]] = {
    "FLAG_NOT_FOUND": (ErrorCode.FLAG_NOT_FOUND, Reason.DEFAULT),
    "MISSING_CONTEXT_KEY": (ErrorCode.TARGETING_KEY_MISSING, Reason.ERROR),
    "BACKEND_ERROR": (ErrorCode.GENERAL, Reason.ERROR),
}
_ASYNC_ONLY: Final = "remote flags need an HTTP request: use the methods that end in _async"

_Object = Sequence[FlagValueType] | Mapping[str, FlagValueType]


class FlagsProvider(Protocol):
    """Source of flag variants: `AsyncMixpanel.local_flags` or `AsyncMixpanel.remote_flags`."""

    def get_variant(
        self, flag_key: str, fallback_value: SelectedVariant, context: Mapping[str, Any], /
    ) -> SelectedVariant | Awaitable[SelectedVariant]: ...


class MixpanelProvider(AbstractProvider):
    """OpenFeature provider that resolves flags with Mixpanel.

    With local flags, both the plain and the `_async` methods of an OpenFeature client work; remote flags need the
    `_async` methods. Without definitions, flags resolve to their default with `PROVIDER_NOT_READY`.

    The attributes of an evaluation context are passed as Mixpanel's context: `distinct_id`, other keys by which a flag
    is rolled out, and `custom_properties` for runtime rules. Whole floats become integers; datetimes become ISO 8601
    strings.

    Local flags emit these events: `PROVIDER_CONFIGURATION_CHANGED` with the changed flags; `PROVIDER_STALE` when
    fetching definitions fails; `PROVIDER_READY` with the first definitions, and when fetching works again.

    Example:
        ```python
        import asyncio

        from openfeature import api
        from openfeature.evaluation_context import EvaluationContext

        from mixpanel_async import AsyncMixpanel
        from mixpanel_async.flags import LocalFlags
        from mixpanel_async.integrations.openfeature import MixpanelProvider


        async def main() -> None:
            async with AsyncMixpanel("PROJECT_TOKEN", local_flags=LocalFlags()) as mp:
                await mp.local_flags.wait_ready(timeout=2.0)
                api.set_provider(MixpanelProvider(mp.local_flags, targeting_key="distinct_id"))
                print(api.get_client().get_boolean_value("new-checkout", False, EvaluationContext("user-1")))
                api.shutdown()


        asyncio.run(main())
        ```

    Args:
        flags: flags of a client. Shutting down the provider only unsubscribes; the caller closes the client.
        targeting_key: attribute of Mixpanel's context that receives OpenFeature's targeting key. The default is
            `targetingKey`, as in Mixpanel's official provider; use `distinct_id` if the targeting key is a user id.
        ready_timeout: seconds that `initialize` waits for definitions, at least 0. In an event loop `initialize` does
            not wait, because it would block the loop; call `await mp.local_flags.wait_ready()` first.
    """

    def __init__(
        self, flags: FlagsProvider, *, targeting_key: str = "targetingKey", ready_timeout: float = 10.0
    ) -> None:
        super().__init__()
        self._flags = flags
        self._targeting_key = targeting_key
        self._ready_timeout = ready_timeout
        self._unsubscribe: Callable[[], None] | None = None
        self._is_initializing = False
        self._became_ready = threading.Event()

    def get_metadata(self) -> Metadata:
        """Return the name of the provider."""
        return Metadata(name=_NAME)

    def initialize(self, evaluation_context: EvaluationContext) -> None:  # noqa: ARG002  OpenFeature's signature
        """Subscribe to the definitions and wait up to `ready_timeout` for the first.

        Args:
            evaluation_context: ignored. OpenFeature passes its global context.

        Raises:
            ProviderNotReadyError: if no definitions have arrived; `PROVIDER_READY` is emitted when they do.
        """
        subscribe = getattr(self._flags, "subscribe", None)
        if subscribe is None:
            return
        self._is_initializing = True
        try:
            if self._unsubscribe is None:
                self._unsubscribe = subscribe(self._on_update)
            if not self._is_ready() and not _in_event_loop():
                self._became_ready.wait(self._ready_timeout)
        finally:
            self._is_initializing = False
        if not self._is_ready():
            raise ProviderNotReadyError("no flag definitions have been fetched yet; retry after PROVIDER_READY")

    def shutdown(self) -> None:
        """Unsubscribe from the definitions. The client stays open, and evaluations keep working."""
        unsubscribe, self._unsubscribe = self._unsubscribe, None
        if unsubscribe is not None:
            unsubscribe()

    def resolve_boolean_details(
        self,
        flag_key: str,
        default_value: bool,  # noqa: FBT001  OpenFeature's signature
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[bool]:
        """Evaluate a flag whose value is a boolean, for a client of OpenFeature. It does not raise.

        Args:
            flag_key: name of the flag.
            default_value: value of the result if the flag cannot be evaluated, or has a value of another type.
            evaluation_context: attributes by which the flag is rolled out; None for none.

        Returns:
            The value with its reason. `error_code` says why it is the default.
        """
        return self._resolve(flag_key, default_value, bool, evaluation_context)

    def resolve_string_details(
        self, flag_key: str, default_value: str, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[str]:
        """Evaluate a flag whose value is a string. See `resolve_boolean_details`."""
        return self._resolve(flag_key, default_value, str, evaluation_context)

    def resolve_integer_details(
        self, flag_key: str, default_value: int, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[int]:
        """Evaluate a flag whose value is an integer. See `resolve_boolean_details`."""
        return self._resolve(flag_key, default_value, int, evaluation_context)

    def resolve_float_details(
        self, flag_key: str, default_value: float, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[float]:
        """Evaluate a flag whose value is a number. See `resolve_boolean_details`."""
        return self._resolve(flag_key, default_value, float, evaluation_context)

    def resolve_object_details(
        self, flag_key: str, default_value: _Object, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[_Object]:
        """Evaluate a flag whose value is an object or a list. See `resolve_boolean_details`."""
        return self._resolve(flag_key, default_value, None, evaluation_context)

    async def resolve_boolean_details_async(
        self,
        flag_key: str,
        default_value: bool,  # noqa: FBT001  OpenFeature's signature
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[bool]:
        """Evaluate a flag whose value is a boolean. See `resolve_boolean_details`."""
        return await self._resolve_async(flag_key, default_value, bool, evaluation_context)

    async def resolve_string_details_async(
        self, flag_key: str, default_value: str, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[str]:
        """Evaluate a flag whose value is a string. See `resolve_boolean_details`."""
        return await self._resolve_async(flag_key, default_value, str, evaluation_context)

    async def resolve_integer_details_async(
        self, flag_key: str, default_value: int, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[int]:
        """Evaluate a flag whose value is an integer. See `resolve_boolean_details`."""
        return await self._resolve_async(flag_key, default_value, int, evaluation_context)

    async def resolve_float_details_async(
        self, flag_key: str, default_value: float, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[float]:
        """Evaluate a flag whose value is a number. See `resolve_boolean_details`."""
        return await self._resolve_async(flag_key, default_value, float, evaluation_context)

    async def resolve_object_details_async(
        self, flag_key: str, default_value: _Object, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[_Object]:
        """Evaluate a flag whose value is an object or a list. See `resolve_boolean_details`."""
        return await self._resolve_async(flag_key, default_value, None, evaluation_context)

    def _resolve(
        self, flag_key: str, default: Any, kind: type | None, context: EvaluationContext | None
    ) -> FlagResolutionDetails[Any]:
        if not self._is_ready():
            return _error(default, ErrorCode.PROVIDER_NOT_READY)
        fallback = SelectedVariant(default)
        try:
            found = self._flags.get_variant(flag_key, fallback, self._mixpanel_context(context))
        except Exception as error:  # noqa: BLE001  other implementations of FlagsProvider may raise any error
            return _error(default, ErrorCode.GENERAL, str(error))
        if inspect.iscoroutine(found):
            found.close()
            return _error(default, ErrorCode.GENERAL, _ASYNC_ONLY)
        return _details(found, fallback, kind)

    async def _resolve_async(
        self, flag_key: str, default: Any, kind: type | None, context: EvaluationContext | None
    ) -> FlagResolutionDetails[Any]:
        if not self._is_ready():
            return _error(default, ErrorCode.PROVIDER_NOT_READY)
        fallback = SelectedVariant(default)
        try:
            found = self._flags.get_variant(flag_key, fallback, self._mixpanel_context(context))
            if inspect.isawaitable(found):
                found = await found
        except Exception as error:  # noqa: BLE001  other implementations of FlagsProvider may raise any error
            return _error(default, ErrorCode.GENERAL, str(error))
        return _details(found, fallback, kind)

    def _is_ready(self) -> bool:
        """Return whether definitions exist. Remote flags have no definitions and are always ready."""
        is_ready = getattr(self._flags, "are_flags_ready", None)
        return is_ready is None or bool(is_ready())

    def _mixpanel_context(self, context: EvaluationContext | None) -> dict[str, Any]:
        if context is None:
            return {}
        attributes = {name: _json_value(value) for name, value in context.attributes.items()}
        if context.targeting_key:
            attributes[self._targeting_key] = context.targeting_key
        return attributes

    def _on_update(self, update: FlagsUpdate) -> None:
        if update.kind == "changed":
            self.emit_provider_configuration_changed(ProviderEventDetails(flags_changed=list(update.keys)))
        elif update.kind == "failed" and self._is_ready():
            self.emit_provider_stale(ProviderEventDetails(message=update.message))
        elif update.kind == "failed":
            # During `initialize`, the OpenFeature API emits the event from the raised exception.
            if not self._is_initializing:
                self.emit_provider_error(
                    ProviderEventDetails(message=update.message, error_code=ErrorCode.PROVIDER_NOT_READY)
                )
        else:
            self._became_ready.set()
            if not self._is_initializing:
                self.emit_provider_ready(ProviderEventDetails())


def _details(found: Any, fallback: SelectedVariant, kind: type | None) -> FlagResolutionDetails[Any]:
    """Convert a variant to OpenFeature's result; a value of another type than requested is a TYPE_MISMATCH."""
    default = fallback.variant_value
    reason: FallbackReason | None = found.fallback_reason
    if found is fallback and reason is None:
        return FlagResolutionDetails(value=default, error_code=ErrorCode.FLAG_NOT_FOUND, reason=Reason.DEFAULT)
    if reason is not None:
        if reason.kind == "NO_ROLLOUT_MATCH":
            return FlagResolutionDetails(value=default, reason=Reason.DEFAULT)
        code, why = _FALLBACKS.get(reason.kind, (ErrorCode.GENERAL, Reason.ERROR))
        return FlagResolutionDetails(value=default, error_code=code, error_message=reason.message, reason=why)
    value = found.variant_value
    if kind is not None:
        value = _convert_number(value, kind)
        if type(value) is not kind:
            message = f"expected {kind.__name__}, got {type(found.variant_value).__name__}"
            return _error(default, ErrorCode.TYPE_MISMATCH, message)
    experiment = {"experiment_id": found.experiment_id, "is_experiment_active": found.is_experiment_active}
    return FlagResolutionDetails(
        value=value,
        variant=found.variant_key,
        reason=Reason.TARGETING_MATCH,
        flag_metadata={name: one for name, one in experiment.items() if one is not None},
    )


def _error(default: Any, code: ErrorCode, message: str | None = None) -> FlagResolutionDetails[Any]:
    return FlagResolutionDetails(value=default, error_code=code, error_message=message, reason=Reason.ERROR)


def _convert_number(value: Any, kind: type) -> Any:
    """Convert a whole float to a requested int, and an int (except bool) to a requested float."""
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return value
    return value


def _json_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _json_value(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_value(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _in_event_loop() -> bool:
    try:
        anyio.get_current_task()
    except RuntimeError:
        return False
    return True
