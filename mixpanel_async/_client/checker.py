"""What the client checks at the call, for those who want to know and not to send."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from .._encoding.records import RecordEncoder, SerializerOption
from .._model.errors import MixpanelException
from .._model.records import NonIdempotentRecord
from .._runtime.clock import real_environment
from .base import Meta, Properties, unreadable_arguments


class Checked(NamedTuple):
    """A record that a client would take.

    Args:
        body_bytes: its size as JSON, as it would be sent.
        repeatable: whether it may be sent twice with the effect of once. Events may, by their `$insert_id`; an update
            with `$add`, `$append` or `$remove` may not.
    """

    body_bytes: int
    repeatable: bool


class Checker:
    """Checks events and profile updates exactly as `AsyncMixpanel` does when they are queued, and sends nothing.

    For dry runs, and for tests of what an app tracks. It needs no event loop and is safe from any thread.

    Args:
        token: put into every record, as it counts in its size; any will do.
        serializer: as the client's.
        recent: events must be of the last five days, as for `/track`; without it of any age, as for `/import`.

    Raises:
        ConfigurationError: if `serializer` is of no use.
    """

    __slots__ = ("_encoder", "_new_id", "_wall")

    def __init__(self, token: str = "", *, serializer: SerializerOption = None, recent: bool = False) -> None:
        runtime = real_environment()
        self._encoder = RecordEncoder(token, serializer=serializer, recent=recent)
        self._wall = runtime.wall_time
        self._new_id = runtime.new_id

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
        """Check an event. The arguments are those of `AsyncMixpanel.track`.

        Raises:
            ValidationError: naming the path of what Mixpanel would not take.
        """
        now = self._wall()
        try:
            item = self._encoder.event(
                distinct_id,
                event_name,
                properties,
                meta,
                now=now,
                new_id=self._new_id,
                user_id=user_id,
                device_id=device_id,
                ip=ip,
                time=time,
                insert_id=insert_id,
            )
        except MixpanelException:
            raise
        except Exception as error:  # noqa: BLE001  a user's types may fail in any way
            raise unreadable_arguments(error) from None
        return Checked(len(item), True)  # noqa: FBT003  by position, as this runs for every line of a file

    def update(self, message: Mapping[str, Any], meta: Meta = None) -> Checked:
        """Check an update of a user's or a group's profile, in Mixpanel's own form.

        Args:
            message: as `AsyncMixpanel.people_update` or `group_update` takes it.
            meta: merged beside the operation.

        Raises:
            ValidationError: naming the path of what Mixpanel would not take.
        """
        try:
            item = self._encoder.profile(message, meta, now=self._wall())
        except MixpanelException:
            raise
        except Exception as error:  # noqa: BLE001  a user's types may fail in any way
            raise unreadable_arguments(error) from None
        return Checked(len(item), not isinstance(item, NonIdempotentRecord))
