"""Import of one file: start position, progress and counts of its records."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from .checkpoint import Checkpoint, CheckpointStore, RecordCounts
from .inputs import InputFile
from .record_source import Position
from .rejects_file import RejectsFile


@dataclass(slots=True, kw_only=True)
class FileImport:
    """Import of one file.

    Args:
        input: the file.
        rejects: receives its rejected records.
        store: persists its checkpoint; None without checkpoints.
        checkpoint: the checkpoint of an earlier run, replaced as this run proceeds; None without checkpoints.
    """

    input: InputFile
    rejects: RejectsFile
    store: CheckpointStore | None = None
    checkpoint: Checkpoint | None = None
    start: Position = field(init=False)
    earlier: RecordCounts = field(init=False)
    """Counts of earlier runs."""
    submitted: RecordCounts = field(init=False)
    """Counts of records handed to the client, including those that this program rejected itself."""
    settled: RecordCounts = field(init=False)
    """Counts of records with a known outcome."""
    possibly_sent_line: int = field(init=False)
    """Line up to which an interrupted run may have sent updates."""
    bytes_read: int = 0
    damage: str | None = None
    is_complete: bool = False
    recorded: RecordCounts = field(default_factory=RecordCounts)
    """Rejected and uncertain records of this run, including those that the next run reads again."""
    _losses: list[tuple[int | None, bool]] = field(default_factory=list)
    _settled_losses: RecordCounts = field(default_factory=RecordCounts)

    def __post_init__(self) -> None:
        checkpoint = self.checkpoint
        self.start = Position() if checkpoint is None else checkpoint.position
        self.earlier = self.submitted = self.settled = RecordCounts() if checkpoint is None else checkpoint.counts
        self.possibly_sent_line = 0 if checkpoint is None else checkpoint.sending
        self.is_complete = checkpoint is not None and checkpoint.complete

    @property
    def name(self) -> str:
        return self.input.name

    @property
    def not_imported(self) -> int:
        """Number of rejected and uncertain records, including earlier runs."""
        return self.earlier.not_imported + self.recorded.not_imported

    def set_bytes_read(self, bytes_read: int) -> None:
        self.bytes_read = bytes_read

    def mark_damaged(self, reason: str) -> None:
        """Record why the file cannot be read to its end."""
        self.damage = reason

    def mark_complete(self) -> None:
        self.is_complete = True

    def add_submitted(self, *, read: int, rejected: int, uncertain: int) -> RecordCounts:
        """Count records handed to the client. Return the new total."""
        self.submitted = self.submitted.plus(read=read, rejected=rejected, uncertain=uncertain)
        return self.submitted

    def add_checked(self, *, read: int, rejected: int) -> None:
        """Count records of a dry run."""
        self.settled = self.add_submitted(read=read, rejected=rejected, uncertain=0)

    def add_recorded(self, *, uncertain: bool) -> None:
        """Count a record that was written to the rejects file."""
        self.recorded = self.recorded.plus(rejected=not uncertain, uncertain=uncertain)

    def add_loss(self, line: int | None, *, uncertain: bool) -> None:
        """Count a record that the client could not deliver."""
        self._losses.append((line, uncertain))

    def settle(self, reached: ImportPosition) -> bool:
        """Record that every record up to a position has a known outcome. Return False if that is not new."""
        if reached.counts.read < self.settled.read or (self.is_complete and not reached.complete):
            return False
        later: list[tuple[int | None, bool]] = []
        for line, uncertain in self._losses:
            if line is not None and line > reached.position.line:
                later.append((line, uncertain))
            else:
                self._settled_losses = self._settled_losses.plus(rejected=not uncertain, uncertain=uncertain)
        self._losses = later
        losses = self._settled_losses
        self.settled = reached.counts.plus(rejected=losses.rejected, uncertain=losses.uncertain)
        self.is_complete = reached.complete
        return True

    def save(self, reached: ImportPosition) -> None:
        """Persist the settled records: first the rejects file, then the checkpoint, so that no reject is lost.

        As long as every record was rejected, the checkpoint stays at the start: the next run, maybe with other options,
        reads the whole file again.

        Raises:
            OSError: if either cannot be written.
        """
        self.rejects.sync()
        if self.store is None or self.checkpoint is None:
            return
        if self._has_only_rejects:
            position, counts, complete = Position(), RecordCounts(), False
        else:
            position, counts, complete = reached.position, self.settled, reached.complete
        sending = self.possibly_sent_line if self.possibly_sent_line > reached.position.line else 0
        self.checkpoint = replace(self.checkpoint, position=position, counts=counts, sending=sending, complete=complete)
        self.store.save(self.checkpoint)

    @property
    def _has_only_rejects(self) -> bool:
        """Whether no record was imported, nor possibly imported by an interrupted run."""
        return 0 < self.settled.rejected == self.settled.read and not self.possibly_sent_line

    def record_intent(self, line: int) -> None:
        """Persist that updates up to a line are about to be sent.

        Raises:
            OSError: if the checkpoint cannot be written.
        """
        if self.store is not None and self.checkpoint is not None:
            self.checkpoint = replace(self.checkpoint, sending=max(line, self.possibly_sent_line))
            self.store.save(self.checkpoint)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportPosition:
    """Position in a file up to which all records were handed to the client.

    Args:
        position: the position.
        counts: counts of the records before it.
        complete: whether it is the end of the file.
    """

    position: Position
    counts: RecordCounts
    complete: bool
