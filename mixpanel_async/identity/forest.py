"""Ids as numbers, and the sets of ids that are one person, in a few bytes per id. Pure."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Final

# Larger blocks of zeros are appended than needed, so that a growing forest rarely grows its arrays.
_GROWTH: Final = 1024


class IdTable:
    """Numbers ids in order of first appearance, so that other structures hold numbers instead of texts."""

    __slots__ = ("_names", "_numbers")

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._names: list[str] = []

    def __len__(self) -> int:
        return len(self._names)

    def number(self, name: str) -> int:
        """Return the number of an id, which is added if it is new."""
        try:
            return self._numbers[name]
        except KeyError:
            self._numbers[name] = len(self._names)
            self._names.append(name)
            return len(self._names) - 1

    def find(self, name: str) -> int | None:
        """Return the number of an id, or None if it is not in the table."""
        return self._numbers.get(name)

    def name(self, number: int) -> str:
        return self._names[number]

    def names(self) -> Iterator[str]:
        """Yield all ids in order of first appearance."""
        return iter(self._names)


class Forest:
    """Disjoint sets of numbers: union-find, in which each set has a label and can be listed.

    A number that was never united is a set of one, labelled with itself, and takes no memory.
    """

    __slots__ = ("_labels", "_next", "_parents", "_sizes")

    def __init__(self) -> None:
        self._parents = array("i")
        self._sizes = array("i")
        self._labels = array("i")
        # Circular lists: the members of a set follow each other.
        self._next = array("i")

    def root(self, number: int) -> int:
        """Return the number that represents the set. It changes when the set is united with another."""
        parents = self._parents
        if number >= len(parents):
            return number
        while (parent := parents[number]) != number:
            # Path halving keeps the tree flat.
            parents[number] = number = parents[parent]
        return number

    def label(self, number: int) -> int:
        """Return the label of the set with this number."""
        return number if number >= len(self._parents) else self._labels[self.root(number)]

    def size(self, number: int) -> int:
        """Return how many numbers the set with this number has."""
        return 1 if number >= len(self._parents) else self._sizes[self.root(number)]

    def members(self, number: int) -> Iterator[int]:
        """Yield the numbers of the set with this number, which comes first."""
        yield number
        if number < len(self._next):
            other = self._next[number]
            while other != number:
                yield other
                other = self._next[other]

    def unite(self, kept: int, absorbed: int) -> tuple[int, int]:
        """Unite two sets. The label of the first one stays. Nothing changes if they are one set already.

        Returns:
            The root of the united set, and the number that was the root of the other part.
        """
        self._grow(max(kept, absorbed) + 1)
        label = self.label(kept)
        large, small = self.root(kept), self.root(absorbed)
        if large == small:
            return large, small
        if self._sizes[large] < self._sizes[small]:
            large, small = small, large
        self._parents[small] = large
        self._sizes[large] += self._sizes[small]
        self._labels[large] = label
        self._next[large], self._next[small] = self._next[small], self._next[large]
        return large, small

    def _grow(self, size: int) -> None:
        have = len(self._parents)
        if size > have:
            added = range(have, size + max(_GROWTH, have // 8))
            self._parents.extend(added)
            self._labels.extend(added)
            self._next.extend(added)
            self._sizes.extend(1 for _ in added)
