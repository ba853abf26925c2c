"""Ids that the project has: the people of its events, and the ids that are users."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from mixpanel_async.identity import DEVICE_PREFIX, IDENTIFY, VERBS, History, as_id, is_anonymous

from ...importing.project_time import to_seconds

# The year 2100.
_MAX_SECONDS: Final = 4_102_444_800


class KnownIds:
    """The ids of a project and the people they form.

    Args:
        history: history of the project's ID merge system, without events.
        watched: ids whose last event matters.
    """

    def __init__(self, history: History, *, watched: frozenset[str] = frozenset()) -> None:
        self._history = history
        self.graph = history.graph
        """The ids and, after `replay`, the people."""
        self._end = 0
        self._users: set[str] = set()
        self._user_of: dict[str, str | None] = {}
        self._last_seen: dict[str, float] = dict.fromkeys(watched, 0.0)

    @property
    def event_count(self) -> int:
        return self._history.event_count

    def add(self, event: Mapping[str, Any]) -> None:
        """Add one event, in any order.

        Raises:
            ValidationError: if it is no event.
        """
        self._history.add(event)
        properties = event["properties"]
        user = as_id(properties.get("$user_id"))
        if user:
            self._users.add(user)
        if event["event"] not in VERBS:
            self._note_time(properties, user)

    def _note_time(self, properties: Mapping[str, Any], user: str) -> None:
        """Note the time of an ordinary event for the ids that it was sent with."""
        time = properties.get("time")
        if type(time) is not int and type(time) is not float:
            return
        seconds = to_seconds(time)
        if not 0 < seconds < _MAX_SECONDS:
            return
        device = as_id(properties.get("$device_id")).removeprefix(DEVICE_PREFIX)
        sent = as_id(properties.get("$distinct_id_before_identity")) or as_id(properties.get("distinct_id"))
        for one in (sent, user, device, DEVICE_PREFIX + device):
            if one in self._last_seen:
                self._last_seen[one] = max(self._last_seen[one], seconds)

    def all_seen_since(self, ids: Iterable[str]) -> float | None:
        """Return a time since when each of some watched ids has an event, in seconds; None if that is not known."""
        return min((self._last_seen.get(one, 0.0) for one in ids), default=0.0) or None

    def replay(self) -> None:
        """Apply the identity calls of all events, in the order of the history."""
        for call in self._history.replay():
            if call.verb == IDENTIFY:
                self._users.add(call.first)

    def end_history(self) -> None:
        """Note that later ids are those of pairs."""
        self._end = len(self.graph)

    def count_unknown(self, ids: Iterable[str]) -> int:
        """Return how many of the ids of calls are in no event of the history."""
        return sum(self.graph.add(one) >= self._end for one in {*ids})

    def is_user(self, distinct_id: str) -> bool:
        """Return whether an id names a user: it was one in an event, or has not the form of an anonymous id."""
        if distinct_id in self._users:
            return True
        return not (is_anonymous(distinct_id) or distinct_id.startswith(DEVICE_PREFIX))

    def add_user(self, distinct_id: str) -> None:
        """Note that a call names this id as a user."""
        self._users.add(distinct_id)

    def user_of(self, person: str) -> str | None:
        """Return the id of a user among the ids of a person, or None if the person is anonymous.

        Args:
            person: canonical id.
        """
        if person not in self._user_of:
            users = (one for one in self.graph.cluster(person) if self.is_user(one))
            self._user_of[person] = person if self.is_user(person) else min(users, default=None)
        return self._user_of[person]

    def note_join(self, person: str, user: str | None) -> None:
        """Note the user of a person that a call has made out of two.

        Args:
            person: canonical id after the call.
            user: id of a user among its ids, or None.
        """
        self._user_of[person] = user
