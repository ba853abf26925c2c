"""Async-native SDK for Mixpanel. The names in `__all__` are public; all others may change."""

from importlib import import_module
from typing import TYPE_CHECKING, Final

from ._client.bound import BoundMixpanel
from ._client.client import AsyncMixpanel
from ._model.config import BatchPolicy, IdMerge, Overflow, Region, RetryPolicy
from ._model.credentials import ServiceAccountCredentials
from ._model.errors import (
    ApiError,
    AuthenticationError,
    ClientClosedError,
    ConfigurationError,
    FailedRecord,
    IdentityError,
    MixpanelException,
    OutboxError,
    PayloadTooLargeError,
    QueueFullError,
    RateLimitError,
    SpoolError,
    TransportError,
    ValidationError,
)
from ._model.records import DropReason
from ._model.stats import Delivery, FlushResult, LostRecord, Stats
from ._model.version import VERSION

__version__ = VERSION
"""Version of the package."""

if TYPE_CHECKING:
    from ._client.blocking import BlockingBound, BlockingMixpanel
    from ._client.checker import Checked, Checker
    from ._encoding.nesting import limit_depth
    from ._spool.report import Purged, SpoolCount, SpooledRecord, SpoolStatus
    from ._spool.spool import SqliteSpool
else:
    # Hidden from type checkers, which would otherwise take any name for one of these.
    _LAZY: Final = {
        "BlockingBound": "._client.blocking",
        "BlockingMixpanel": "._client.blocking",
        "Checked": "._client.checker",
        "Checker": "._client.checker",
        "Purged": "._spool.report",
        "SpoolCount": "._spool.report",
        "SpoolStatus": "._spool.report",
        "SpooledRecord": "._spool.report",
        "SqliteSpool": "._spool.spool",
        "limit_depth": "._encoding.nesting",
    }

    def __getattr__(name: str) -> object:
        """Import a name that few programs use at its first use."""
        if name not in _LAZY:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_LAZY[name], __name__), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *_LAZY})


__all__ = [
    "ApiError",
    "AsyncMixpanel",
    "AuthenticationError",
    "BatchPolicy",
    "BlockingBound",
    "BlockingMixpanel",
    "BoundMixpanel",
    "Checked",
    "Checker",
    "ClientClosedError",
    "ConfigurationError",
    "Delivery",
    "DropReason",
    "FailedRecord",
    "FlushResult",
    "IdMerge",
    "IdentityError",
    "LostRecord",
    "MixpanelException",
    "OutboxError",
    "Overflow",
    "PayloadTooLargeError",
    "Purged",
    "QueueFullError",
    "RateLimitError",
    "Region",
    "RetryPolicy",
    "ServiceAccountCredentials",
    "SpoolCount",
    "SpoolError",
    "SpoolStatus",
    "SpooledRecord",
    "SqliteSpool",
    "Stats",
    "TransportError",
    "ValidationError",
    "__version__",
    "limit_depth",
]
