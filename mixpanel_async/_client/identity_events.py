"""Check of identity events that are tracked like ordinary events, as apps on the official SDK do. Pure."""

from __future__ import annotations

from typing import Final

from .._encoding.event_template import IDENTITY_EVENTS
from .._encoding.validation import is_anonymous_id
from .._model.config import IdMerge
from .._model.errors import IdentityError

NOT_AN_ANON_ID: Final = (
    "must be a UUID with dashes, such as str(uuid.uuid4()), or an id of Mixpanel's browser SDK (five groups of "
    "hexadecimal digits), because Mixpanel silently ignores other ids; use alias or merge for an id of another form"
)


def no_effect(id_merge: IdMerge) -> str:
    """Return the problem of an identity call that projects with this system ignore."""
    is_simplified = id_merge is IdMerge.SIMPLIFIED
    hint = "track an event with user_id and device_id instead" if is_simplified else "use alias instead"
    return f"has no effect in a project with {id_merge.value} ID merge; {hint}"


def check_tracked_event(event_name: object, properties: object, id_merge: IdMerge | None, *, recent: bool) -> None:
    """Reject an identity event that the project ignores. Other events pass, and all events if the system is not known.

    Args:
        event_name: name of the event.
        properties: properties of the event.
        id_merge: system of the project; None if it is not known.
        recent: the event goes to `/track`.

    Raises:
        IdentityError: if the event has no effect.
    """
    if id_merge is None or not isinstance(event_name, str) or event_name not in IDENTITY_EVENTS:
        return
    if id_merge is IdMerge.SIMPLIFIED or (id_merge is IdMerge.LEGACY and event_name != "$create_alias"):
        raise IdentityError(event_name, no_effect(id_merge))
    if event_name == "$merge" and recent:
        raise IdentityError(event_name, "has no effect on /track; call merge, which sends it to /import")
    if event_name == "$identify" and isinstance(properties, dict):
        anon_id = properties.get("$anon_id")
        if isinstance(anon_id, str) and not is_anonymous_id(anon_id):
            raise IdentityError("properties.$anon_id", NOT_AN_ANON_ID)
