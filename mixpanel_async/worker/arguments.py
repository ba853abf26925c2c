"""Types of the options of the worker, for functions that pass them on."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from .._delivery.callbacks import OnDelivered, OnDrop
    from .._http.transport import HttpClient
    from .._model.config import BatchPolicy, EventsEndpoint, Region, RetryPolicy
    from .._model.credentials import ServiceAccountCredentials


class WorkerArguments(TypedDict, total=False):
    """Options of `Worker`, which describes them. For functions that pass options on, so that they are checked."""

    credentials: ServiceAccountCredentials | None
    region: Region
    api_host: str | None
    events_endpoint: EventsEndpoint
    batching: BatchPolicy
    retry: RetryPolicy
    kinds: Collection[str] | None
    name: str | None
    concurrency: int
    shutdown_timeout: float
    timeout: float
    http_client: HttpClient | None
    allow_http: bool
    on_drop: OnDrop | None
    on_delivered: OnDelivered | None
