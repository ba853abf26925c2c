"""An async-native SDK for Mixpanel. The names below are the public ones; everything else may change."""

from ._bound import BoundMixpanel
from ._checker import Checked, Checker
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
    TransportError,
    ValidationError,
)
from ._records import Delivery, DropReason, FlushResult, LostRecord, Stats

__version__ = VERSION

__all__ = [
    "ApiError",
    "AsyncMixpanel",
    "AuthenticationError",
    "BatchPolicy",
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
    "Overflow",
    "PayloadTooLargeError",
    "QueueFullError",
    "RateLimitError",
    "Region",
    "RetryPolicy",
    "ServiceAccountCredentials",
    "Stats",
    "TransportError",
    "ValidationError",
    "__version__",
]
