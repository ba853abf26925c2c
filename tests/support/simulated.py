"""Clients and workers with other clocks, random numbers and ids than the real ones."""

from __future__ import annotations

from typing import Any

from mixpanel_async import AsyncMixpanel
from mixpanel_async._http.asgi import asgi_client
from mixpanel_async._runtime.environment import Environment
from mixpanel_async.emulator import Emulator
from mixpanel_async.outbox import Outbox
from mixpanel_async.worker import Worker


def client_in(environment: Environment, token: str, **options: Any) -> AsyncMixpanel:
    """Create a client that uses this environment."""

    class SimulatedClient(AsyncMixpanel):
        _make_environment = staticmethod(lambda: environment)

    return SimulatedClient(token, **options)


def emulator_client_in(
    environment: Environment, emulator: Emulator, token: str = "emulator-token", **options: Any
) -> AsyncMixpanel:
    """Create a client that uses this environment and talks to an emulator in-process."""
    http = asgi_client(emulator.app)
    return client_in(environment, token, **{"api_host": "http://127.0.0.1", "http_client": http, **options})


def worker_in(environment: Environment, outbox: Outbox, token: str, **options: Any) -> Worker:
    """Create a worker that uses this environment."""

    class SimulatedWorker(Worker):
        _make_environment = staticmethod(lambda: environment)

    return SimulatedWorker(outbox, token, **options)
