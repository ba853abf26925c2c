"""Group commit: decides for how many records a commit waits."""

from __future__ import annotations

from typing import Final

# Commits without company before one waits to find out whether other records are on their way.
_FIRST_PROBE: Final = 64
_LAST_PROBE: Final = 4096
# Part of the expected number that stays after a smaller group.
_DECAY: Final = 0.9


class CommitPacer:
    """Expects as many records in a commit as were in the commits before.

    Callers that track in parallel then share a commit, whose cost does not depend on its records. A single caller that
    tracks one record after another never has company, so its commits do not wait, except for a rare probe.
    """

    def __init__(self) -> None:
        self._expected = 1.0
        self._probe_every = self._until_probe = _FIRST_PROBE

    @property
    def wanted(self) -> int:
        """Number of records with which a commit begins at once."""
        return max(2, round(self._expected)) if self._until_probe <= 0 else round(self._expected)

    def begin_commit(self, records: int) -> None:
        """Note the number of records in a commit that begins."""
        if records > 1:
            self._probe_every = self._until_probe = _FIRST_PROBE
        elif self._until_probe <= 0:
            # The commit has waited in vain.
            self._probe_every = min(2 * self._probe_every, _LAST_PROBE)
            self._until_probe = self._probe_every
        else:
            self._until_probe -= 1
        self._expected = max(float(records), _DECAY * self._expected)
