"""Integrations with web frameworks, OpenTelemetry and OpenFeature.

Each module needs the extra of the same name and imports only public names of `mixpanel_async`. The web frameworks share
`_base.py` (client lifetime, current request), `_visitors.py` (cookies) and `_headers.py` (request headers). Start
reading at `starlette.py`.
"""
