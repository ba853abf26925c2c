"""A spool on disks of all kinds that are or become full: SQLite's shared memory never kills the process."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fork_server import ForkServer, fork_server
from spool_harness import SpoolHarness, record

from mixpanel_async._spool import files

PROGRAM = Path(__file__).with_name("spool_disk_program.py")
MOUNTS = (
    "36 35 98:0 / / rw,noatime - ext4 /dev/sda rw\n"
    "37 35 98:1 / /mnt/b rw - btrfs /dev/sdb rw\n"
    "38 35 98:2 / /mnt/b/x rw - xfs /dev/sdc rw\n"
)
# Name of the file system, size of its image in MiB, options of its mkfs.
DISKS = {
    "ext4 1024": ("ext4", 16, "-b 1024"),
    "ext4 2048": ("ext4", 16, "-b 2048"),
    "ext4 4096": ("ext4", 16, "-b 4096"),
    "btrfs": ("btrfs", 120, ""),
    "tmpfs": ("tmpfs", 4, ""),
}


def run(*command: object) -> bool:
    return subprocess.run([str(one) for one in command], capture_output=True, check=False).returncode == 0


@pytest.fixture(params=DISKS)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Mounted small file system."""
    kind, size, options = DISKS[request.param]
    mkfs = shutil.which(f"mkfs.{kind}", path=f"{os.environ.get('PATH', '')}:/sbin:/usr/sbin")
    if os.geteuid() or not (kind == "tmpfs" or mkfs):
        pytest.skip(f"needs root and mkfs.{kind}")
    point, image = tmp_path / "disk", tmp_path / "image"
    point.mkdir()
    if kind == "tmpfs":
        is_mounted = run("mount", "-t", "tmpfs", "-o", f"size={size}m", "tmpfs", point)
    else:
        with image.open("wb") as file:
            file.truncate(size << 20)
        is_mounted = run(mkfs, "-q", *options.split(), image) and run("mount", "-o", "loop", image, point)
    if not is_mounted:
        pytest.skip("cannot mount file systems here")
    yield point
    assert run("umount", "-l", point)


@pytest.fixture(scope="module")
def forks() -> Iterator[ForkServer]:
    with fork_server("-W", "error", modules=("spool_harness",)) as server:
        yield server


@pytest.mark.parametrize("moment", ["before", "during", "moved"])
def test_g5_full_disk_of_any_block_size_does_not_kill_the_process(
    disk: Path, tmp_path: Path, moment: str, forks: ForkServer
) -> None:
    path = disk / "spool" / "spool.db"
    for free in (0, 8, 16, 32, 64):
        if moment == "moved":
            # With a log, as a killed process leaves it on a usual disk.
            first = SpoolHarness(tmp_path / f"{free}" / "spool.db")
            for number in range(10):
                first.offer(record(1_000 + number))
            first.run_until_idle()
            first.crash(tmp_path / f"left {free}")
            shutil.copytree(tmp_path / f"left {free}", path.parent)
        status, output, errors = forks.run(PROGRAM, disk, moment, free, timeout=60.0)
        assert status == 0, (free, status, errors)
        # The disk has room again, and the next client finds everything that was accepted.
        (disk / "fill").unlink()
        later = SpoolHarness(path)
        assert later.step()
        accepted = int(output)
        assert accepted >= (20 if moment == "during" else 0)
        assert later.queue.stats().recovered == accepted + (10 if moment == "moved" else 0)
        later.abandon()
        shutil.rmtree(path.parent)


@pytest.mark.parametrize(
    ("folder", "block", "may"),
    [("/a", 4096, True), ("/a", 65536, True), ("/a", 1024, False), ("/a", 512, False), ("/mnt/b/y", 4096, False),
     ("/mnt/b/x/y", 4096, True), ("/mnt/b", 4096, False)],
)  # fmt: skip
def test_g5_disks_where_shared_memory_can_fail_are_detected(folder: str, block: int, may: bool) -> None:
    assert files.is_mapping_safe(Path(folder), block, MOUNTS) == may
