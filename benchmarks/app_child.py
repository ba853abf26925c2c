"""One app in a child process: `python -m benchmarks.app_child FRAMEWORK VARIANT` prints its port and serves.

The process stops at SIGTERM.
"""

from __future__ import annotations

import importlib
import socket
import sys
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def serve(framework: str, variant: str) -> None:
    """Serve the plain app, or the example app configured by the environment."""
    # Without an explicit IPPROTO_TCP, asyncio does not recognise TCP and leaves Nagle's algorithm on.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen(1_000)
    print(listener.getsockname()[1], flush=True)
    sys.path.insert(0, str(EXAMPLES))
    if framework == "aiohttp":
        from aiohttp import web

        from . import plain_apps

        made = plain_apps.aiohttp_app()
        if variant != "plain":
            import aiohttp_app

            made = aiohttp_app.create_app()
        web.run_app(made, sock=listener, access_log=None, print=None)
        return
    import uvicorn

    app = _asgi_app(framework, is_plain=variant == "plain")
    uvicorn.Server(uvicorn.Config(app, access_log=False, log_level="error")).run([listener])


def _asgi_app(framework: str, *, is_plain: bool) -> Any:
    if framework == "django":
        # Settings are set once per process.
        return importlib.import_module("benchmarks.plain_django" if is_plain else "django_app").asgi
    if is_plain:
        return importlib.import_module("benchmarks.plain_apps").fastapi_app
    return importlib.import_module("fastapi_app").app


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2])
