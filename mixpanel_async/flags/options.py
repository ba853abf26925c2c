"""Options of feature flags, validated at construction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from .._model.config import check_count, check_number

_MAX_SECONDS: Final = 86_400.0
_MAX_RESPONSE_BYTES: Final = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFlags:
    """Options of remote evaluation: each evaluation is a request to Mixpanel.

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
        timeout: seconds for one evaluation, including a second attempt; 0.001 to 3,600. Default: the client's
            `timeout`, which is also the upper limit.
        exposure_window: seconds during which the same exposure (flag, variant, `distinct_id`) is reported once; 0 to
            86,400. The default 0 reports each one, like the official SDK. At least the last 50,000 are remembered.
        max_bytes: size of the largest response that is accepted; 1,024 to 268,435,456.

    Raises:
        ConfigurationError: a value is out of bounds.
    """

    timeout: float | None = None
    exposure_window: float = 0.0
    max_bytes: int = 16 * 1024 * 1024

    def __post_init__(self) -> None:
        if self.timeout is not None:
            check_number("timeout", self.timeout, minimum=0.001, maximum=3600.0)
        check_number("exposure_window", self.exposure_window, minimum=0.0, maximum=_MAX_SECONDS)
        check_count("max_bytes", self.max_bytes, minimum=1024, maximum=_MAX_RESPONSE_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalFlags:
    """Options of local evaluation: flags are evaluated in this process, and definitions fetched in the background.

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
        poll_interval: seconds between two fetches, with a jitter of 10 %; 0.01 to 86,400. None stops after the first
            successful fetch.
        timeout: seconds for one fetch; 0.001 to 3,600. Default: the client's `timeout`, which is also the upper limit.
        exposure_window: see `RemoteFlags`.
        max_bytes: size of the largest response that is accepted; 1,024 to 268,435,456.

    Raises:
        ConfigurationError: a value is out of bounds.
    """

    poll_interval: float | None = 60.0
    timeout: float | None = None
    exposure_window: float = 0.0
    max_bytes: int = 16 * 1024 * 1024

    def __post_init__(self) -> None:
        if self.poll_interval is not None:
            check_number("poll_interval", self.poll_interval, minimum=0.01, maximum=_MAX_SECONDS)
        if self.timeout is not None:
            check_number("timeout", self.timeout, minimum=0.001, maximum=3600.0)
        check_number("exposure_window", self.exposure_window, minimum=0.0, maximum=_MAX_SECONDS)
        check_count("max_bytes", self.max_bytes, minimum=1024, maximum=_MAX_RESPONSE_BYTES)
