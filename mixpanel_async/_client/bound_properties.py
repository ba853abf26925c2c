"""Properties of a bound client."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .._model.errors import ValidationError
    from .base import Ids, PlainTracker, PlainTrackers, Properties


class BoundProperties:
    """Bound properties, which all copies of a bound client share. They are validated once, and encoded once.

    Args:
        values: the properties as JSON values.
        make_trackers: encodes the properties, and returns a function that makes the trackers of bound clients.
        problem: why the properties cannot be sent; None if they can.
    """

    __slots__ = ("_make_trackers", "_trackers", "problem", "values")

    def __init__(
        self,
        values: Properties,
        make_trackers: Callable[[Properties], PlainTrackers],
        problem: ValidationError | None = None,
    ) -> None:
        self.values = values
        self.problem = problem
        self._make_trackers = make_trackers
        self._trackers: PlainTrackers | None = None

    def tracker(self, distinct_id: str | None, ids: Ids) -> PlainTracker:
        """Return a function that stages the plain events with these properties.

        Args:
            distinct_id: `distinct_id` of the events; None to derive it.
            ids: IP address, user id and device id.
        """
        trackers = self._trackers
        if trackers is None:
            # With the first event: many bound clients track nothing.
            trackers = self._trackers = self._make_trackers(self.values)
        return trackers(distinct_id, ids)

    def added_to(self, earlier: BoundProperties) -> BoundProperties:
        """Return the earlier properties together with these, which have precedence."""
        values = {**earlier.values, **self.values}
        return BoundProperties(values, self._make_trackers, earlier.problem or self.problem)
