"""Options of feature flags, checked when they are set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from .._model.config import check_count, check_number

_LONGEST: Final = 86_400.0
_MOST_BYTES: Final = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFlags:
    """Evaluate flags by asking Mixpanel each time.

    Args:
        timeout: seconds for one evaluation, its second try included; 0.001 to 3,600. None, or more than that, is the
            client's `timeout`.
        exposure_window: seconds in which the same exposure (flag, variant, `distinct_id`) is reported once; 0 to
            86,400. 0, the default, reports each, as the official SDK does. The last 50,000 and more are remembered.
        max_bytes: size of the largest answer that is taken; 1,024 to 268,435,456.

    Raises:
        ConfigurationError: if a value is out of bounds.
    """

    timeout: float | None = None
    exposure_window: float = 0.0
    max_bytes: int = 16 * 1024 * 1024

    def __post_init__(self) -> None:
        if self.timeout is not None:
            check_number("timeout", self.timeout, minimum=0.001, maximum=3600.0)
        check_number("exposure_window", self.exposure_window, minimum=0.0, maximum=_LONGEST)
        check_count("max_bytes", self.max_bytes, minimum=1024, maximum=_MOST_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalFlags:
    """Evaluate flags in this process, from definitions that are fetched in the background.

    Args:
        poll_interval: seconds from one fetch to the next, give or take a tenth; 0.01 to 86,400. None fetches until
            there are definitions, and then no more.
        timeout: seconds for one fetch; 0.001 to 3,600. None, or more than that, is the client's `timeout`.
        exposure_window: as of `RemoteFlags`.
        max_bytes: size of the largest answer that is taken; 1,024 to 268,435,456.

    Raises:
        ConfigurationError: if a value is out of bounds.
    """

    poll_interval: float | None = 60.0
    timeout: float | None = None
    exposure_window: float = 0.0
    max_bytes: int = 16 * 1024 * 1024

    def __post_init__(self) -> None:
        if self.poll_interval is not None:
            check_number("poll_interval", self.poll_interval, minimum=0.01, maximum=_LONGEST)
        if self.timeout is not None:
            check_number("timeout", self.timeout, minimum=0.001, maximum=3600.0)
        check_number("exposure_window", self.exposure_window, minimum=0.0, maximum=_LONGEST)
        check_count("max_bytes", self.max_bytes, minimum=1024, maximum=_MOST_BYTES)
