"""Django integration.

INSTALLED_APPS = [..., "mixpanel_async.integrations.django"]
MIDDLEWARE = [..., "mixpanel_async.integrations.django.MixpanelMiddleware"]
MIXPANEL = {"TOKEN": "...", "ID_MERGE": "simplified"}

def view(request):
    request.mixpanel.track("Page viewed")

async def async_view(request):
    await request.mixpanel.track("Page viewed")

In `asgi.py`, import `get_asgi_application` from here, so that the client opens and closes with the server. WSGI needs
nothing.

One client for each process runs in a background thread (`_host.py`). `_settings.py` reads the setting,
`_checks.py` checks it, `_facade.py` has `request.mixpanel`, `_middleware.py` adds it to requests.
"""

from __future__ import annotations

from typing import Final

try:
    import django  # noqa: F401  fails here if the extra is missing
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "django":
        raise
    raise ImportError(
        'the Django integration needs an extra: run pip install ".[django]" in a clone of the repository',
        name=error.name,
    ) from error

from .._visitors import CookiePolicy
from ._asgi import get_asgi_application, wrap_asgi
from ._facade import ClientFacade, RequestMixpanel
from ._host import HOST
from ._middleware import MixpanelMiddleware, current_mixpanel

__all__ = [
    "CookiePolicy",
    "MixpanelMiddleware",
    "RequestMixpanel",
    "current_mixpanel",
    "get_asgi_application",
    "mixpanel",
    "using",
    "wrap_asgi",
]

mixpanel: Final = ClientFacade(HOST)
"""The client of this process, for code outside requests."""
using: Final = HOST.using
