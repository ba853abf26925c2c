"""Feature flags: `AsyncMixpanel(..., local_flags=LocalFlags(), remote_flags=RemoteFlags())`."""

from .local import LocalFeatureFlagsProvider
from .model import FallbackReason, SelectedVariant, VariantSource
from .options import LocalFlags, RemoteFlags
from .poller import FlagsUpdate
from .remote import RemoteFeatureFlagsProvider

__all__ = [
    "FallbackReason",
    "FlagsUpdate",
    "LocalFeatureFlagsProvider",
    "LocalFlags",
    "RemoteFeatureFlagsProvider",
    "RemoteFlags",
    "SelectedVariant",
    "VariantSource",
]
