"""Validation without sending: the checks that the client applies at the call."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from .._encoding.arguments import EventArguments
from .._encoding.hooks import SerializerOption
from .._encoding.records import RecordEncoder
from .._model.config import NestingOption, check_nesting
from .._model.errors import MixpanelException
from .._model.records import NonIdempotentRecord
from .._runtime.environment import real_environment
from .base import Meta, Properties
from .invalid import as_refusal


class Checked(NamedTuple):
    """Properties of a valid record.

    Args:
        body_bytes: size of the record as JSON, in bytes, as it would be sent.
        repeatable: whether sending it twice has the same effect as sending it once. True for events, because of their
            `$insert_id`. False for an update with `$add`, `$append` or `$remove`.
    """

    body_bytes: int
    repeatable: bool


class Checker:
    """Validator of events and profile updates. It applies the checks of `AsyncMixpanel` and sends nothing.

    Use it for dry runs, and in tests of the events that an app tracks. It needs no event loop and is thread-safe.

    Example:
        ```python
        from mixpanel_async import Checker, ValidationError

        checker = Checker()
        print(checker.event("user-1", "Order placed", {"amount": 19.99}).body_bytes)
        try:
            checker.event("user-1", "")
        except ValidationError as error:
            print(error.path, error.problem)
        ```

    Args:
        token: token of the records. Any text will do; it counts in their size.
        serializer: as in `AsyncMixpanel`.
        recent: reject events that are more than five days old, as `/track` does. By default events may be of any age
            since 1971, as for `/import`.
        nesting: as in `AsyncMixpanel`. It has no effect with `recent`.

    Raises:
        ConfigurationError: if `serializer` is neither a callable nor a `json.JSONEncoder` class, or if `nesting` is
            none of its values.
    """

    __slots__ = ("_encoder", "_new_id", "_wall_time")

    def __init__(
        self,
        token: str = "",
        *,
        serializer: SerializerOption = None,
        recent: bool = False,
        nesting: NestingOption = "text",
    ) -> None:
        check_nesting(nesting)
        environment = real_environment()
        self._encoder = RecordEncoder(token.strip(), serializer=serializer, recent=recent, nesting=nesting)
        self._wall_time = environment.wall_time
        self._new_id = environment.new_id

    def event(
        self,
        distinct_id: str | None,
        event_name: str,
        properties: Properties | None = None,
        meta: Meta = None,
        *,
        user_id: str | None = None,
        device_id: str | None = None,
        ip: str | None = None,
        time: float | datetime | None = None,
        insert_id: str | None = None,
    ) -> Checked:
        """Check an event. See `AsyncMixpanel.track`.

        Raises:
            ValidationError: if Mixpanel would not accept the event. `path` names the offending part.
        """
        event = EventArguments(distinct_id, event_name, properties, meta, user_id, device_id, ip, time, insert_id)
        try:
            record = self._encoder.encode_event(event, now=self._wall_time(), new_id=self._new_id)
        except MixpanelException:
            raise
        except Exception as error:  # noqa: BLE001  a user's types may raise anything
            raise as_refusal(error) from None
        return Checked(len(record), True)  # noqa: FBT003  positional for speed: an import checks every line of a file

    def update(self, message: Mapping[str, Any], meta: Meta = None) -> Checked:
        """Check an update of a user or group profile in Mixpanel's own form.

        Args:
            message: as in `AsyncMixpanel.people_update` or `group_update`.
            meta: merged into the update, next to the operation.

        Raises:
            ValidationError: if Mixpanel would not accept the update. `path` names the offending part.
        """
        try:
            record = self._encoder.encode_profile(message, meta, now=self._wall_time())
        except MixpanelException:
            raise
        except Exception as error:  # noqa: BLE001  a user's types may raise anything
            raise as_refusal(error) from None
        return Checked(len(record), not isinstance(record, NonIdempotentRecord))
