"""Integrations with web frameworks, task queues, AWS Lambda, OpenTelemetry and OpenFeature.

A module that needs a library has an extra of the same name. All import only public names of `mixpanel_async`.

The web frameworks share `_base.py` (client lifetime, current request), `_visitors.py` (cookies), `_headers.py` and
`_proxies.py` (request headers). `starlette.py` and `fastapi.py` build on `asgi.py`; `_lifespan.py` serves ASGI apps
without a lifespan.

`celery.py`, `taskiq.py` and `aws_lambda.py` share `_worker.py`: a client that is created in the process that runs the
tasks, and delivers after each task or at the end of the process.

Start reading at `asgi.py`, or for Django at `django/__init__.py`.
"""
