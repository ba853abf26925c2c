"""One file of an import: where it begins, how far it came, and what became of its records."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from .checkpoint import Checkpoint, CheckpointStore, Counts
from .inputs import Input
from .rejects import Rejects
from .source import Position


@dataclass(slots=True, kw_only=True)
class FileImport:
    """A file and its import.

    Args:
        input: the file.
        rejects: where its rejected records go.
        store: keeps its checkpoint; None if it has none.
        checkpoint: what was known of it when this import began, and is now; None if it has none.
    """

    input: Input
    rejects: Rejects
    store: CheckpointStore | None = None
    checkpoint: Checkpoint | None = None
    start: Position = field(init=False)
    before: Counts = field(init=False)
    fed: Counts = field(init=False)
    """Of the records handed to the client, this program's own refusals included."""
    settled: Counts = field(init=False)
    """Of the records of which it is known what became of them."""
    unsure: int = field(init=False)
    """Line up to which an interrupted import may have sent updates."""
    done: int = 0
    """Bytes of the file that are read."""
    damage: str | None = None
    is_complete: bool = False
    noted: Counts = field(default_factory=Counts)
    """Of this run, the records that are written down as rejected, also where the next run reads them again."""
    _lost: list[tuple[int | None, bool]] = field(default_factory=list)
    _lost_settled: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        known = self.checkpoint
        self.start = Position() if known is None else known.position
        self.before = self.fed = self.settled = Counts() if known is None else known.counts
        self.unsure = 0 if known is None else known.sending
        self.is_complete = known is not None and known.complete

    @property
    def name(self) -> str:
        return self.input.name

    @property
    def refused(self) -> int:
        """Records that are known not to be imported."""
        return self.before.refused + self.noted.refused

    def note(self, *, uncertain: bool) -> None:
        """Count a record that is not imported."""
        self.noted = self.noted.plus(rejected=not uncertain, uncertain=uncertain)

    def lost(self, line: int | None, *, uncertain: bool) -> None:
        """Note a record that the client could not deliver."""
        self._lost.append((line, uncertain))

    def settle(self, mark: ImportPosition) -> bool:
        """Everything up to a mark is settled. Returns False if that was known."""
        if mark.counts.read < self.settled.read or (self.is_complete and not mark.complete):
            return False
        kept: list[tuple[int | None, bool]] = []
        for line, uncertain in self._lost:
            if line is not None and line > mark.position.line:
                kept.append((line, uncertain))
            else:
                self._lost_settled = self._lost_settled.plus(rejected=not uncertain, uncertain=uncertain)
        self._lost = kept
        lost = self._lost_settled
        self.settled = mark.counts.plus(rejected=lost.rejected, uncertain=lost.uncertain)
        self.is_complete = mark.complete
        return True

    def save(self, mark: ImportPosition) -> None:
        """Bring what was settled to the disk: the rejected records first, so that none is forgotten.

        Raises:
            OSError: if that fails.
        """
        self.rejects.sync()
        if self.store is not None and self.checkpoint is not None:
            self.checkpoint = replace(
                self.checkpoint,
                position=mark.position,
                counts=self.settled,
                sending=self.unsure if self.unsure > mark.position.line else 0,
                complete=mark.complete,
            )
            self.store.save(self.checkpoint)

    def announce(self, line: int) -> None:
        """Bring to the disk that updates up to a line are about to be sent.

        Raises:
            OSError: if that fails.
        """
        if self.store is not None and self.checkpoint is not None:
            self.checkpoint = replace(self.checkpoint, sending=max(line, self.unsure))
            self.store.save(self.checkpoint)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportPosition:
    """A place in a file that everything before it was handed to the client."""

    position: Position
    counts: Counts
    complete: bool
