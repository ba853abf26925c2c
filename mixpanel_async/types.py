"""Public types for annotations: options, callbacks and the arguments of functions that pass options on.

from typing_extensions import Unpack
from mixpanel_async import AsyncMixpanel
from mixpanel_async.types import ClientArguments

def make_client(**options: Unpack[ClientArguments]) -> AsyncMixpanel:
    return AsyncMixpanel.from_env(region="eu", **options)
"""

from __future__ import annotations

from ._client.arguments import ClientArguments
from ._client.base import Meta, Properties
from ._delivery.callbacks import OnDelivered, OnDrop
from ._encoding.hooks import BeforeSend, SerializerOption
from ._http.transport import HttpClient
from ._model.config import EventsEndpoint, IdMergeOption, InvalidOption, NestingOption
from .worker.arguments import WorkerArguments

__all__ = [
    "BeforeSend",
    "ClientArguments",
    "EventsEndpoint",
    "HttpClient",
    "IdMergeOption",
    "InvalidOption",
    "Meta",
    "NestingOption",
    "OnDelivered",
    "OnDrop",
    "Properties",
    "SerializerOption",
    "WorkerArguments",
]
