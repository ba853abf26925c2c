"""An async-native SDK for Mixpanel. The names below are the public ones; everything else may change."""

from ._bound import BoundMixpanel
from ._client import AsyncMixpanel
from ._config import VERSION, BatchPolicy, IdMerge, Overflow, Region, RetryPolicy
from ._credentials import ServiceAccountCredentials
from ._errors import (
    ApiError,
    AuthenticationError,
    ClientClosedError,
    ConfigurationError,
    FailedRecord,
    IdentityError,
    MixpanelException,
    PayloadTooLargeError,
    QueueFullError,
    RateLimitError,
    SpoolError,
    TransportError,
    ValidationError,
)
from ._records import Delivery, DropReason, FlushResult, LostRecord, Stats
from ._spool import SqliteSpool
from ._spool.report import Purged, SpoolCount, SpooledRecord, SpoolStatus

__version__ = VERSION

__all__ = [
    "ApiError",
    "AsyncMixpanel",
    "AuthenticationError",
    "BatchPolicy",
    "BoundMixpanel",
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
]
