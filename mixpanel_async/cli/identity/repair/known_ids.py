"""Ids that the project has: the people of its events, and the ids that are users."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mixpanel_async.identity import DEVICE_PREFIX, IDENTIFY, History, as_id, is_anonymous


class KnownIds:
    """The ids of a project and the people they form.

    Args:
        history: history of the project's ID merge system, without events.
    """

    def __init__(self, history: History) -> None:
        self._history = history
        self.graph = history.graph
        """The ids and, after `replay`, the people."""
        self._end = 0
        self._users: set[str] = set()
        self._user_of: dict[str, str | None] = {}

    @property
    def event_count(self) -> int:
        return self._history.event_count

    def add(self, event: Mapping[str, Any]) -> None:
        """Add one event, in any order.

        Raises:
            ValidationError: if it is no event.
        """
        self._history.add(event)
        user = as_id(event["properties"].get("$user_id"))
        if user:
            self._users.add(user)

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
