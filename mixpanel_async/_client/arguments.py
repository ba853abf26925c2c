"""Types of the options of the client, for functions that pass them on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from .._delivery.callbacks import OnDelivered, OnDrop
    from .._encoding.hooks import BeforeSend, SerializerOption
    from .._http.transport import HttpClient
    from .._model.config import (
        BatchPolicy,
        EventsEndpoint,
        IdMergeOption,
        InvalidOption,
        NestingOption,
        Overflow,
        Region,
        RetryPolicy,
    )
    from .._model.credentials import ServiceAccountCredentials
    from .._spool.spool import SqliteSpool
    from ..flags.options import LocalFlags, RemoteFlags
    from ..outbox.protocol import Outbox


class ClientArguments(TypedDict, total=False):
    """Options of `AsyncMixpanel`, which describes them. For functions that pass options on, so that they are checked.

    Example:
        ```python
        from mixpanel_async import AsyncMixpanel
        from mixpanel_async.types import ClientArguments

        EUROPE: ClientArguments = {"region": "eu", "timeout": 5.0}
        mp = AsyncMixpanel("PROJECT_TOKEN", **EUROPE)
        print(mp.api_host)
        ```
    """

    credentials: ServiceAccountCredentials | None
    region: Region
    api_host: str | None
    id_merge: IdMergeOption | None
    batching: BatchPolicy
    retry: RetryPolicy
    identity_retry: RetryPolicy
    overflow: Overflow
    events_endpoint: EventsEndpoint
    super_properties: Mapping[str, Any] | None
    serializer: SerializerOption
    before_send: BeforeSend | None
    on_drop: OnDrop | None
    on_delivered: OnDelivered | None
    spool: SqliteSpool | None
    outbox: Outbox | None
    local_flags: LocalFlags | None
    remote_flags: RemoteFlags | None
    http_client: HttpClient | None
    timeout: float
    shutdown_timeout: float
    loop_end_timeout: float
    allow_http: bool
    invalid: InvalidOption
    nesting: NestingOption
    enabled: bool
