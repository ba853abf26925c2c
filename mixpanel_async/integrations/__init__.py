"""Integrations with web frameworks, OpenTelemetry and OpenFeature.

Each module needs the extra of the same name and imports only public names of `mixpanel_async`. The web frameworks share
`_base.py` (client lifetime, current request), `_visitors.py` (cookies), `_headers.py` and `_proxies.py` (request
headers). `starlette.py` and `fastapi.py` build on `asgi.py`; `_lifespan.py` serves ASGI apps without a lifespan.

Start reading at `asgi.py`, or for Django at `django/__init__.py`.
"""
