"""The scheduler under the real clock, with a real run of the real network."""

from pathlib import Path

import pytest

from pipeline.output.results import open_results
from tests.support.builders.images import encoded, gradient
from tests.support.servers.real_cluster import htc
from tests.support.servers.scheduler_process import (
    finish_with_another_scheduler,
    firings,
    kill_scheduler_while_a_run_goes_on,
)


# Up to a minute until the next full minute, and the run.
@pytest.mark.slow
def test_a_due_run_is_started_and_outlives_its_scheduler(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (tmp_path / "photos").mkdir()
    for name in "ab":
        (tmp_path / "photos" / f"{name}.png").write_bytes(encoded(gradient(), "PNG"))
    job = tmp_path / "job.yaml"
    job.write_text(
        f"input: {{uri: {tmp_path}/photos}}\noutput: {{uri: {tmp_path}/out}}\ncompute: {{workers: 1}}\n"
        "model: {preset: htc_lite0_fpn, weights: untrained, score_threshold: 0.99}\n"
    )
    hook = f"sh -c 'echo $HTC_EVENT $HTC_STATUS $HTC_IMAGES >> {tmp_path}/told'"
    added = htc(
        *["schedule", "add", "minutely", str(job), "--home", str(home)],
        *["--cron", "* * * * *", "--exit-hook", hook],
    )
    assert added.code == 0, added.err
    kill_scheduler_while_a_run_goes_on(home)
    htc("schedule", "pause", "minutely", "--home", str(home))
    said = finish_with_another_scheduler(home)
    (firing,) = firings(home)
    assert firing.starts == 1
    assert firing.ending is not None, said
    assert (firing.ending.outcome, firing.ending.exit_code, firing.ending.counts["images"]) == ("complete", 0, 2)
    assert (tmp_path / "told").read_text() == "end complete 2\n"
    rows = open_results(str(tmp_path / "out")).images(None).to_pylist()
    assert [row["run"] for row in rows] == [firing.name] * 2
