"""Properties of a bound client."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .._encoding.arguments import derive_distinct_id
from .._encoding.event_template import encode_nothing
from .._model.config import IdMerge
from .._model.interruption import raise_interruption

if TYPE_CHECKING:
    from .._delivery.staging import Encode, Stage, StagingBuffer
    from .._encoding.records import RecordEncoder
    from .._model.errors import ValidationError
    from .base import Properties
    from .client import AsyncMixpanel
    from .invalid import InvalidData


@dataclass(frozen=True, kw_only=True, slots=True)
class BoundServices:
    """Policies and functions shared by all bound clients of one client. They do not refer to it: that would be a cycle.

    Args:
        invalid: policy for data that Mixpanel would not accept.
        silent: returns the client of visitors who have not consented to tracking.
        on_failure: called with an error that `sign_in` does not raise, and whether the ids stay separate.
        make_tracker: encodes bound properties.
        enqueue: enqueues an encoded event, and waits as `AsyncMixpanel.track` does.
        id_merge: the project's ID Merge system.
    """

    invalid: InvalidData
    silent: Callable[[], AsyncMixpanel]
    on_failure: Callable[[Exception, bool], None]
    make_tracker: Callable[[Properties], BoundTracker]
    enqueue: Callable[[bytes], Awaitable[None]]
    id_merge: IdMerge | None


class BoundTracker:
    """Arguments of `StagingBuffer.try_append` for plain events of the bound clients that share properties.

    It refers to no client, so that a client ends as soon as the user drops it.

    Args:
        staging: takes the events.
        stage: stage of the lane of events.
        encoder: encoder of the client.
        properties: bound properties as JSON values, which are encoded now.

    Attributes:
        staging: takes the events.
        stage: stage of the lane of events.
        encode: encodes a plain event.
    """

    __slots__ = ("_template", "encode", "stage", "staging")

    def __init__(self, staging: StagingBuffer, stage: Stage, encoder: RecordEncoder, properties: Properties) -> None:
        # An event for which functions of the user are called is not plain.
        template = None if encoder.is_hooked else encoder.template
        self._template = None if template is None else template.with_properties(properties, after_ids=True)
        self.staging, self.stage = staging, stage
        self.encode: Encode = encode_nothing if self._template is None else self._template.encode

    def bind(
        self, distinct_id: str | None, ip: str | None, user_id: str | None, device_id: str | None
    ) -> tuple[str | None, bytes]:
        """Return the first and the last argument of `encode` for these ids. Derive a `distinct_id` that is None."""
        try:
            shared = b"" if self._template is None else self._template.with_ids(ip, user_id, device_id)
            return (derive_distinct_id(user_id, device_id) if distinct_id is None else distinct_id), shared
        except Exception as error:  # noqa: BLE001  the general encoder raises the error for the user
            raise_interruption(error)
            # No event without a `distinct_id` is plain.
            return None, b""


class BoundProperties:
    """Bound properties, which all copies of a bound client share. They are validated once, and encoded once.

    Args:
        values: the properties as JSON values.
        services: policies and functions of the client.
        problem: why the properties cannot be sent; None if they can.
    """

    __slots__ = ("_tracker", "problem", "services", "values")

    def __init__(self, values: Properties, services: BoundServices, problem: ValidationError | None = None) -> None:
        self.values = values
        self.services = services
        self.problem = problem
        self._tracker: BoundTracker | None = None

    @property
    def tracker(self) -> BoundTracker:
        """Tracker of plain events with these properties."""
        if self._tracker is None:
            # With the first event: many bound clients track nothing.
            self._tracker = self.services.make_tracker(self.values)
        return self._tracker

    def added_to(self, earlier: BoundProperties) -> BoundProperties:
        """Return the earlier properties together with these, which have precedence."""
        return BoundProperties({**earlier.values, **self.values}, self.services, earlier.problem or self.problem)
