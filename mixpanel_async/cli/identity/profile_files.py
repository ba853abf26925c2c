"""User profiles in files, as the profile query returns them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from mixpanel_async.identity import as_id

from ..importing.inputs import InputFile, find_inputs
from ..importing.record_source import UnreadableRow
from .reading import check_readable, read_rows

Profile = tuple[str, Mapping[str, Any]]
"""Id of a user profile, and its properties."""

_MAX_SHOWN: Final = 5


class ProfileFiles:
    """Files of user profiles, one object per line, and saved answers of the profile query.

    Args:
        names: files and glob patterns; `-` is standard input.

    Raises:
        InputError: if a file does not exist, cannot be read or has an unknown format.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._inputs = find_inputs(names)[0] if names else []
        self.unreadable = 0
        """Number of lines and records that are no profiles."""
        self.problems: list[str] = []
        """The first of them, each as one line without content."""
        self.paths = frozenset(os.path.realpath(one.name) for one in self._inputs if one.identity is not None)
        """Absolute paths of the files."""
        self.has_stream = any(one.identity is None for one in self._inputs)
        """Whether a file, such as standard input, can be read only once."""
        check_readable(self._inputs)

    def profiles(self) -> Iterator[Profile]:
        """Yield the profiles, in the order of the files. Anything else is counted and left out.

        Raises:
            InputError: if a file cannot be opened.
            DamagedError: if the rest of a file cannot be read. The message names the file.
        """
        return read_profiles(self._inputs, self._note)

    def _note(self, problem: str) -> None:
        self.unreadable += 1
        if len(self.problems) < _MAX_SHOWN:
            self.problems.append(problem)


def read_profiles(inputs: Iterable[InputFile], note: Callable[[str], object] | None = None) -> Iterator[Profile]:
    """Yield the user profiles in files, in order.

    Args:
        inputs: the files.
        note: is called with one line, without content, for each record that is no profile.

    Raises:
        InputError: if a file cannot be opened.
        DamagedError: if the rest of a file cannot be read. The message names the file.
    """
    for one in inputs:
        for number, row in read_rows([one]):
            # An unreadable row is no profile either.
            problem = row.problem if isinstance(row, UnreadableRow) else "is no profile: it has no $distinct_id"
            for record in _records(row):
                profile = as_profile(record)
                if profile is not None:
                    yield profile
                elif note is not None:
                    note(f"{one.name}:{number} {problem}")


def _records(row: object) -> Sequence[object]:
    """Return the profiles in a saved answer of the profile query, or else the row itself."""
    if isinstance(row, Mapping) and "$distinct_id" not in row and "distinct_id" not in row:
        results = row.get("results")
        if isinstance(results, list):
            return results
    return [row]


def as_profile(record: object) -> Profile | None:
    """Return the profile in a record of an export: `$distinct_id` with `$properties`, or one column per property.

    Returns None if the record is not a profile.
    """
    if not isinstance(record, Mapping):
        return None
    distinct_id, nested = as_id(record.get("$distinct_id", record.get("distinct_id"))), record.get("$properties")
    if not distinct_id:
        return None
    if isinstance(nested, Mapping):
        return distinct_id, nested
    return distinct_id, {name: value for name, value in record.items() if name not in {"$distinct_id", "distinct_id"}}
