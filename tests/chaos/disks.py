"""Full disks: pretended, really full, or with a limit on the size of a file."""

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tests.chaos.checks import Expected
from tests.chaos.plan import Plan
from tests.chaos.round import PLANNED, SLOW, Round

# A run of two dozen images takes a quarter of it.
SMALL_DISK_BYTES = 2**20


def disk_full(it: Round) -> Expected:
    """No space left for any write from some instant on; then there is space again, and the same command resumes."""
    mark = it.scene.folder / "full"
    it.scene.start(Plan(delay_s=SLOW.delay_s, full_disk=str(mark)))
    it.scene.wait_for_log(PLANNED)
    mark.touch()
    it.scene.end()
    mark.unlink()
    it.scene.run_until_done(SLOW, most=2)
    return Expected(says=("No space left",), commands=2)


def small_disk_full(it: Round) -> Expected:
    """The output is on a disk that another program fills to the last byte; then it deletes its file."""
    output = Path(it.scene.output_uri)
    with small_disk(output):
        it.scene.start(SLOW)
        it.scene.wait_for_log(PLANNED)
        ballast = output / ".ballast"
        fill(ballast)
        it.scene.end()
        ballast.unlink()
        it.scene.run_until_done(SLOW, most=2)
        # The checks run after the disk is unmounted.
        kept = it.scene.folder / "kept"
        subprocess.run(["cp", "-a", str(output), str(kept)], check=True)
    output.rmdir()
    kept.rename(output)
    return Expected(says=("No space left",), commands=2)


def file_too_large(it: Round) -> Expected:
    """No file of a worker may grow beyond two kilobytes; then it may, and the same command resumes."""
    it.scene.run(replace(SLOW, largest_file=2048))
    it.scene.run_until_done(SLOW, most=2)
    return Expected(says=("No space left",), commands=2)


def can_mount() -> bool:
    """Return whether this user may mount a file system; only root may."""
    return os.geteuid() == 0


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Mount a small file system for the time of the block."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK_BYTES}", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(ballast: Path) -> None:
    """Write until the disk is full."""
    with ballast.open("wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
