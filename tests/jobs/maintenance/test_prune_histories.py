"""Random histories of runs: pruning does not change the view `current`."""

import contextlib
import random
from pathlib import Path

import pytest

from jobs.maintenance.compact import compact_output
from jobs.maintenance.prune import prune_output
from pipeline.output.results import open_results
from pipeline.output.views import open_database
from pipeline.runs.lease import take_lease
from pipeline.storage.storage import Storage
from tests.support.builders.finished_runs import FIRST_DAY, finish_run

NIGHTS = 6
IMAGES = 5


def current(output: str) -> list[tuple[object, ...]]:
    with contextlib.closing(open_database(open_results(output))) as database:
        return database.execute("SELECT * FROM current ORDER BY uri").fetchall()


def live_through(folder: Path, dice: random.Random) -> str:
    """Make runs over images that are added, change, fail, and are removed; some runs are full, some unfinished."""
    images, output = folder / "in", str(folder / "out")
    images.mkdir(parents=True)
    (images / "always.jpg").write_bytes(b"x")
    for night in range(NIGHTS):
        for number in range(IMAGES):
            path = images / f"{number}.jpg"
            match dice.choice(("stay", "stay", "come", "go")):
                case "come":
                    path.write_bytes(b"x" * (1 + night))
                case "go":
                    path.unlink(missing_ok=True)
        failing = {f"{number}.jpg" for number in range(IMAGES) if dice.random() < 0.2}
        finish_run(
            str(images),
            output,
            f"night-{night}",
            day=night,
            shard_images=1,
            mode=dice.choice(("incremental", "incremental", "full")),
            is_ok=lambda uri, failing=failing: Path(uri).name not in failing,  # type: ignore[misc]
            only_shards=dice.choice((None, None, None, 0)),
        )
    return output


@pytest.mark.parametrize("seed", range(8))
def test_current_is_the_same_after_pruning(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    output = live_through(tmp_path, dice)
    before = current(output)
    now = FIRST_DAY.replace(year=2027)
    held = take_lease(Storage(), output, f"night-{dice.randrange(NIGHTS)}") if dice.random() < 0.5 else None
    try:
        assert prune_output(output, keep_last=dice.choice((1, 2)), confirmed=True, now=None if held else now) == 0
        assert current(output) == before
        # A run that another process holds is left as it is, which the exit code says.
        assert compact_output(output) in ((0, 1) if held else (0,))
        assert current(output) == before
    finally:
        if held is not None:
            held.release()
    assert prune_output(output, keep_last=1, confirmed=True, now=now) == 0
    assert current(output) == before
