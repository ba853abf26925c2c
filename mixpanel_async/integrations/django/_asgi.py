"""ASGI app of a Django project, with a lifespan that opens and closes the client."""

from __future__ import annotations

from django.core import asgi

from .._lifespan import ASGIApp
from ._host import HOST


def wrap_asgi(app: ASGIApp) -> ASGIApp:
    """Add a lifespan to an ASGI app that contains Django, such as a `ProtocolTypeRouter` of Channels.

    Args:
        app: the outermost ASGI app.
    """
    return HOST.wrap(app)


def get_asgi_application() -> ASGIApp:
    """Return Django's ASGI app with a lifespan: the client opens with the server, and the end of the server delivers.

    Import it in `asgi.py` instead of Django's function of this name. With Django's function, each request ends with a
    delivery after its response, which needs more requests to Mixpanel.
    """
    return wrap_asgi(asgi.get_asgi_application())
