"""`htc plan` in time and money: sources of the rate, several worker pools, limits, bad input."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from jobs.cli.options import BudgetFlags, PlanFlags, load_job_spec
from pipeline.job_spec.job import load_spec
from pipeline.output.run_record import load_record
from pipeline.planning.estimate import WorkerRate
from pipeline.runs.cost import RunCost, write_cost
from pipeline.runs.measured_rate import format_age, last_rate, rate_of_summary, widened
from pipeline.storage.storage import Storage
from tests.support.builders.finished_runs import FINGERPRINT, begin_run, finish_run, write_inputs
from tests.support.htc import run_htc
from tests.support.paths import PHOTOS
from tests.support.servers.signing_host import signing_host

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight images, of which two are corrupt."""
    folder = tmp_path_factory.mktemp("photos")
    for number, photo in enumerate(sorted(PHOTOS.glob("*.jpg"))[:6]):
        (folder / f"{number}.jpg").write_bytes(photo.read_bytes())
    (folder / "junk.jpg").write_text("no image at all")
    (folder / "empty.jpg").touch()
    return folder


def plan(capsys: Capture, folder: Path, output: Path, *flags: str) -> tuple[int, str, str]:
    return run_htc(capsys, "plan", str(folder), str(output), *flags)


def planned(capsys: Capture, folder: Path, output: Path, *flags: str) -> tuple[int, dict[str, Any]]:
    code, out, _ = plan(capsys, folder, output, "--no-model", "--json", *flags)
    return code, json.loads(out)["estimate"]


GIVEN = ("--images-per-s", "2", "--start-up", "60s", "--no-model")


def test_pools_are_compared_and_the_cheapest_in_time_is_marked(capsys: Capture, photos: Path, tmp_path: Path) -> None:
    flags = ("--workers", "1", "--workers", "2", "--workers", "8", "--shard-images", "1", "--price-per-hour", "3600")
    code, estimate = planned(capsys, photos, tmp_path / "out", *GIVEN[:-1], *flags, "--deadline", "63s")
    pools = estimate["pools"]
    assert code == 0
    assert [(pool["workers_least"], round(pool["seconds"], 2)) for pool in pools] == [(1, 64), (2, 62), (8, 60.5)]
    assert [round(pool["amount"], 1) for pool in pools] == [64, 124, 484]
    assert [pool["in_time"] for pool in pools] == ["no", "yes", "yes"]
    assert [pool["is_cheapest"] for pool in pools] == [False, True, False]
    assert (estimate["keeps_limits"], estimate["rate"]["source"]) == (True, "given")
    code, out, err = plan(capsys, photos, tmp_path / "out", *GIVEN, *flags, "--currency", "CHF", "--deadline", "63s")
    assert (code, "124.00 CHF" in out, "<- cheapest that keeps the limits" in out) == (0, True, True)
    assert "given by hand" in out
    assert err == "" or "Not decoded" in err


def test_a_deadline_that_cannot_be_kept_is_exit_code_1_with_what_would_do(
    capsys: Capture, photos: Path, tmp_path: Path
) -> None:
    flags = (*GIVEN, "--workers", "1", "--shard-images", "1", "--deadline", "61s")
    code, out, _ = plan(capsys, photos, tmp_path / "out", *flags)
    assert code == 1
    assert "cannot end before its deadline" in out
    assert "about 4 workers would be needed" in out
    code, out, _ = plan(capsys, photos, tmp_path / "out", *GIVEN, "--workers", "1", "--deadline", "30s")
    assert (code, "no number of workers would do" in out) == (1, True)


def test_a_largest_cost_that_cannot_be_kept_is_exit_code_1(capsys: Capture, photos: Path, tmp_path: Path) -> None:
    flags = (*GIVEN, "--workers", "2", "--price-per-hour", "3600", "--max-cost", "100")
    code, out, _ = plan(capsys, photos, tmp_path / "out", *flags)
    assert (code, "stop at its largest cost, 100.00" in out) == (1, True)


def test_what_a_resumed_run_has_cost_counts(capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.running.plan.known_fingerprint", lambda *_: FINGERPRINT)
    begun = begin_run(write_inputs(tmp_path / "in", 8), str(tmp_path / "out"), "night")
    write_cost(Storage(), begun.output_uri, "night", RunCost(60.0, 950.0), currency="")
    flags = ("--weights", "untrained", "--model", "htc_r50_fpn", "--shard-images", "2", "--workers", "2")
    priced = (*GIVEN[:-1], *flags, "--price-per-hour", "3600", "--max-cost")
    code, estimate = planned(capsys, tmp_path / "in", tmp_path / "out", *priced, "1000")
    assert (code, estimate["spent"], estimate["pools"][0]["within_cost"]) == (1, 950, "no")
    assert 50 < estimate["pools"][0]["amount"] < 1000
    code, _ = planned(capsys, tmp_path / "in", tmp_path / "out", *priced, "1100")
    assert code == 0


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--price-per-hour", "1"), "A price needs a number of workers"),
        (("--price-per-hour", "1", "--workers", "auto"), "A price needs a number of workers"),
        (("--price-per-node-hour", "8", "--workers-per-node", "8"), "A price needs a number of workers"),
        (("--price-per-hour", "-1", "--workers", "2"), "0 or more"),
        (("--workers", "8:4"), "from a smaller to a larger one"),
        (("--workers", "many"), "such as \"2:8\", not 'many'"),
        (("--workers", "0", "--workers", "2"), "at least 1"),
        (("--probe", "--images-per-s", "3"), "--probe and --images-per-s are different sources"),
        (("--images-per-s", "0"), "--images-per-s must be a number above 0"),
        (("--probe-images", "0"), "--probe-images must be a number above 0"),
        (("--spot-discount", "0.7"), "--spot-share"),
        (("--spot-share", "2", "--workers", "2"), "from 0 to 1"),
        (("--spot-share", "0.5", "--workers", "2", "--price-per-hour", "1"), "what a spot worker costs"),
        (("--spot-share", "0.5", "--spot-discount", "0.5"), "--price-per-hour"),
        (("--max-cost", "5"), "max_cost needs a price"),
        (("--deadline", "soon"), "a clock time"),
        (("--like", "nowhere"), "holds no run"),
        (("--images-per-s", "2", "--start-up", "long"), "--start-up must be a time"),
    ],
)
def test_a_wrong_flag_is_one_sentence_and_exit_code_2(
    capsys: Capture, photos: Path, tmp_path: Path, flags: tuple[str, ...], named: str
) -> None:
    code, out, err = plan(capsys, photos, tmp_path / "out", "--no-model", *flags)
    assert (code, out) == (2, "")
    assert named in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1


def test_without_any_rate_the_ways_to_get_one_are_named(capsys: Capture, photos: Path, tmp_path: Path) -> None:
    code, out, err = plan(capsys, photos, tmp_path / "out", "--no-model", "--workers", "4", "--price-per-hour", "1")
    assert (code, "input" in out) == (2, True)
    assert "no run in" in err
    assert "--probe" in err


def test_a_probe_counts_and_names_corrupt_images(capsys: Capture, photos: Path, tmp_path: Path) -> None:
    code, out, err = plan(capsys, photos, tmp_path / "out", "--probe", "--workers", "2", "--price-per-hour", "1")
    assert code == 0
    assert "8 images" in out
    assert "2 images of them not ok" in out
    assert "Not segmented by the probe: " in err
    assert "junk.jpg: unreadable" in err
    assert "empty.jpg: unreadable" in err
    assert not (tmp_path / "out").exists()
    assert "INFO" not in err


def test_a_probe_of_corrupt_images_alone_gives_no_estimate(capsys: Capture, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.jpg").write_text("junk")
    code, out, err = plan(capsys, folder, tmp_path / "out", "--probe", "--workers", "2")
    assert code == 1
    assert "None of the 4 images of the probe could be segmented, so there is no estimate" in err.splitlines()[-1]
    assert "rate" not in out
    code, out, _ = plan(capsys, folder, tmp_path / "out", "--probe", "--workers", "2", "--json")
    values = json.loads(out)
    assert (code, values["exit_code"], values["estimate"]["rate"]) == (1, 1, None)
    assert len(values["estimate"]["probe"]["failed"]) == 4


@pytest.mark.slow
def test_a_probe_of_signed_urls_reads_them_and_shows_no_signature(capsys: Capture, tmp_path: Path) -> None:
    with signing_host() as host:
        (tmp_path / "list.txt").write_text("\n".join(host.sign("hush-signature-7c7c")))
        code, out, err = plan(capsys, tmp_path / "list.txt", tmp_path / "out", "--probe", "--workers", "2")
    assert code == 0, err
    assert "probe just now" in out
    assert "not ok" not in out
    assert "hush" not in out + err


def finished(folder: Path, **summary: object) -> tuple[str, Path]:
    """A complete run whose summary has these values besides."""
    inputs = write_inputs(folder / "in", 4)
    finish_run(inputs, str(folder / "out"), "night")
    path = folder / "out" / "runs" / "night" / "summary.json"
    values = json.loads(path.read_text()) if path.exists() else {"run": "night", "status": "complete", "images_done": 4}
    path.write_text(json.dumps({**values, **summary}))
    return inputs, folder / "out"


WORKER_TIME = {"busy_s": 200.0, "images_per_s": [4.0, 5.0, 6.0, 5.0], "write_s_per_shard": 0.5}


def rate_in(output: Path, **summary: object) -> Any:
    record = load_record(Storage(), str(output), "night")
    assert record is not None
    return rate_of_summary(summary, record, datetime.now(UTC))


def test_the_rate_of_a_run_is_of_the_time_in_which_its_workers_had_shards(tmp_path: Path) -> None:
    _, output = finished(tmp_path)
    known = {"session_images": 1000, "workers_started": 2, "start_up_s": {"worker": 30.0}, "machine": "EPYC"}
    rate = rate_in(output, **known, worker_use=WORKER_TIME)
    assert (rate.images_per_s, rate.start_up_s, rate.write_s, rate.machine) == (5.0, 30.0, 0.5, "EPYC")
    assert rate.low < 5 < rate.high
    assert "1,000 images on 2 workers" in rate.description


def test_the_range_includes_the_runs_before() -> None:
    rates = [WorkerRate(rate, None, None, "run", f"run {rate}") for rate in (5.0, 3.0, 6.0)]
    last = widened([replace(rates[0], low=4.5, high=5.5), *rates[1:]])
    assert (last.images_per_s, last.low, last.high) == (5.0, 3.0, 6.0)
    assert "includes 2 runs before it" in last.description
    assert widened(rates[:1]) == rates[0]


@pytest.mark.parametrize(
    ("key", "value", "is_same"),
    [
        ("model.score_threshold", 0.5, True),
        ("input.limit", 3, True),
        ("model.precision", "fp32", False),
        ("model.augment", "flip", False),
        ("tiles", "256:64", False),
        ("model.semantic", True, False),
        ("model.panoptic", True, False),
        ("images.jpeg_decoder", "nvjpeg", False),
    ],
)
def test_only_a_run_that_did_the_same_work_gives_its_rate(tmp_path: Path, key: str, value: Any, is_same: bool) -> None:
    inputs, output = finished(tmp_path, session_images=1000, worker_use=WORKER_TIME)
    plain = {"input.uri": inputs, "output.uri": str(output), "model.preset": "htc_r50_fpn"}

    def has_rate(fingerprint: dict[str, Any], identity: dict[str, object]) -> bool:
        return last_rate(Storage(), str(output), fingerprint=fingerprint, identity=identity) is not None

    assert has_rate(FINGERPRINT, load_spec(None, plain).identity())
    assert has_rate(FINGERPRINT, load_spec(None, plain | {key: value}).identity()) == is_same
    assert not has_rate(FINGERPRINT | {"preset": "htc_r50_fpn+htc_r50_fpn"}, load_spec(None, plain).identity())
    # And a run of other work none for a plain one.
    path = output / "runs" / "night" / "run.json"
    record = json.loads(path.read_text())
    record["identity"] = load_spec(None, plain | {key: value}).identity()
    path.write_text(json.dumps(record))
    assert has_rate(FINGERPRINT, load_spec(None, plain).identity()) == is_same
    assert has_rate(FINGERPRINT, load_spec(None, plain | {key: value}).identity())


def test_a_run_of_an_older_release_gives_a_rate_without_a_range(tmp_path: Path) -> None:
    _, output = finished(tmp_path)
    old = {"session_images": 1000, "workers_started": 2, "workers_lost": 0, "seconds": 128.0, "device": "cpu"}
    rate = rate_in(output, **old, start_up_s={"weights": 1.0, "listing": 2.0, "worker": 30.0})
    # Of 128 s since it was opened 28 were start-up.
    assert (rate.images_per_s, rate.low, rate.machine) == (5.0, None, "cpu")
    assert rate_in(output, session_images=0, seconds=10.0) is None
    assert rate_in(output, session_images="many", worker_use=[1], start_up_s=3) is None


def test_the_last_run_of_the_same_model_is_the_source(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.running.plan.known_fingerprint", lambda *_: FINGERPRINT)
    times = {"session_images": 1000, "start_up_s": {"worker": 30.0}, "worker_use": WORKER_TIME}
    inputs, output = finished(tmp_path, **times)
    spec = load_spec(None, {"input.uri": inputs, "output.uri": str(output), "model.weights": "untrained"})
    flags = ("--weights", "untrained", "--model", "htc_r50_fpn", "--fresh", "--workers", "2")
    _, estimate = planned(capsys, Path(inputs), output, *flags)
    assert (estimate["rate"]["source"], estimate["rate"]["images_per_s"], estimate["start_up_s"]) == ("run", 5.0, 30.0)
    assert spec.model.precision == "auto"
    for like in (str(output), f"{output}/night"):
        _, estimate = planned(capsys, Path(inputs), tmp_path / "other", *flags, "--like", like)
        assert "run night" in estimate["rate"]["description"]
    # Another precision is another model.
    code, _, err = plan(
        capsys, Path(inputs), tmp_path / "x", "--no-model", *flags, "--precision", "fp32", "--like", str(output)
    )
    assert (code, "has measured htc_r50_fpn" in err) == (2, True)


def test_ages_are_text() -> None:
    assert format_age(90) == "1 min 30 s ago"
    assert format_age(12 * 86_400) == "12 days ago"


def test_the_flags_of_time_and_money_are_keys_of_the_spec() -> None:
    flags = BudgetFlags(price_per_hour=2.5, max_cost=10, currency="EUR", deadline="6h", refuse_late=True)
    budget = load_job_spec(None, input_uri="in", output_uri="out", budget=flags).budget
    assert budget.model_dump(exclude_defaults=True) == {
        "price_per_hour": 2.5,
        "max_cost": 10,
        "currency": "EUR",
        "deadline": "6h",
        "refuse_late": True,
    }
    assert load_job_spec(None, input_uri="in", output_uri="out", budget=BudgetFlags()).budget.worker_price is None


@pytest.mark.parametrize(("numbers", "expected"), [(["4"], 4), (["auto"], "auto"), (["4:8"], "4:8"), (["4", "8"], 2)])
def test_one_number_of_workers_is_the_specs(tmp_path: Path, numbers: list[str], expected: object) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("input: {uri: in}\noutput: {uri: out}\n" + ("compute: {workers: 2}\n" if expected == 2 else ""))
    assert load_job_spec(str(file), PlanFlags(workers=numbers)).compute.workers == expected


def test_spot_workers_are_priced_by_a_discount(capsys: Capture, photos: Path, tmp_path: Path) -> None:
    flags = ("--workers", "4", "--price-per-hour", "10", "--spot-share", "0.5", "--spot-discount", "0.8")
    _, estimate = planned(capsys, photos, tmp_path / "out", *GIVEN[:-1], *flags, "--spot-interruptions", "1")
    (pool,) = estimate["pools"]
    assert pool["amount"] == pytest.approx(pool["worker_hours"] * 6)
    assert pool["redone_share"] > 0
    code, out, _ = plan(capsys, photos, tmp_path / "out", *GIVEN, *flags)
    assert (code, "50% of the workers, each taken away 0.05 times an hour" in out) == (0, True)


def test_a_cluster_that_grows_is_one_pool(capsys: Capture, photos: Path, tmp_path: Path) -> None:
    flags = ("--workers", "1:4", "--shard-images", "1", "--scale-up", "1s")
    _, estimate = planned(capsys, photos, tmp_path / "out", *GIVEN[:-1], *flags)
    (pool,) = estimate["pools"]
    assert (pool["workers_least"], pool["workers_most"], pool["network_s"]) == (1, 4, pytest.approx(1 + 6 / 8))
