"""Client on a disk that is or becomes full: `python spool_disk_program.py FOLDER MOMENT FREE`.

Prints the number of records that were accepted, and ends like a killed process.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "support"))

from spool_harness import SpoolHarness, record

from mixpanel_async import Overflow, QueueFullError

RECORDS = 40


def fill(folder: Path, free: int) -> None:
    """Fill the disk except for this number of kilobytes."""
    reserved = [folder / f"reserved-{number}" for number in range(free)]
    for one in reserved:
        one.write_bytes(b"." * 1_000)
    os.sync()
    with (folder / "fill").open("ab", buffering=0) as file:
        for size in (1 << 20, 1 << 16, 4_096, 1_024, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"." * size)
    for one in reserved:
        one.unlink()
    # Blocks of deleted files are free from then on, and all mapped pages are clean.
    os.sync()


def main(folder: Path, moment: str, free: int) -> None:
    (folder / "spool").mkdir(exist_ok=True)
    if moment != "during":
        fill(folder, free)
    harness = SpoolHarness(folder / "spool" / "spool.db", overflow=Overflow.RAISE)
    accepted = 0
    for number in range(RECORDS):
        if moment == "during" and number == RECORDS // 2:
            fill(folder, free)
        try:
            group = harness.offer(record(number, 3_000), awaited=True)
        except QueueFullError:
            continue
        harness.step()
        assert group is not None
        assert group.is_done
        accepted += group.error is None
    print(accepted, flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
