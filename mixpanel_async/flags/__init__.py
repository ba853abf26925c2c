"""Feature flags, evaluated in this process or by Mixpanel: `AsyncMixpanel(local_flags=..., remote_flags=...)`.

May import `_delivery`, `_http`, `_encoding`, `_runtime` and `_model`, but not `_client`.

Start reading at `local.py` and `evaluate.py` for local evaluation, at `poller.py` for the definitions, and at
`remote.py` for remote evaluation. `endpoints.py` holds the requests.
"""

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
