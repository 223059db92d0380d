"""Compares `htc run` with Ray Data and with a bare loop: the same images, model object, columns and masks.

    python benchmarks/vs_ray_data.py [--images 240] [--rounds 5] [--small] [--json FILE [--resume]]

Four programs take turns, in another order each round (what each of them does: `benchmarks/engine_jobs.py`):

htc        this project, with `--workers` workers. ray_data: Ray Data with as many actors, checkpoints on.
bare       the loop in one process: what one worker cannot beat. bare_all: as many such processes as there are workers.

Of each run: wall and CPU seconds of all its processes (the kernel's count where control groups may be used), their
peak memory, the seconds until the first table, and, from the model's own log, start-up (until the first call), work
(until the last call has ended) and the rate in between. The programs' rows are compared with each other: masks, boxes
and scores must be the same, or the benchmark fails.

Then faults, one run each on `--fault-images` images: SIGKILL of all processes when half of the images are committed,
and the same command again; 1 % damaged images; one image that ends the process that segments it (a made model
object does so when it meets an image of a certain size).

`--small` uses few images and a short side of 160 pixels: minutes, to try the benchmark itself. Each run is written to
`--json` when it ends, and `--resume` does only the runs that are missing there. The last line is JSON.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import record  # noqa: E402
from benchmarks.engine_jobs import ENTRY, LETHAL_SIZE, Job, read_tables  # noqa: E402
from benchmarks.process_meter import Usage, run_metered  # noqa: E402

PHOTOS = sorted((ROOT / "examples" / "photos").glob("*.jpg"))
PROGRAMS = ("htc", "ray_data", "bare", "bare_all")
# Ray Data's actors are started again for ever when an image ends them. A run with a fault is ended after the larger of
# this time and three times the longest run without one.
MIN_FAULT_LIMIT_S = 120.0
Metrics = dict[str, Any]


class Bench:
    """Runs programs in a temporary folder and keeps what was measured in a record."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self._options = options
        self._folder = folder
        self._count = 0
        self._record = record.begin(["python", "benchmarks/vs_ray_data.py", *sys.argv[1:]])
        self._settings = {
            name: getattr(options, name)
            for name in ("images", "fault_images", "workers", "shard_images", "model", "weights", "small")
        }
        self.rounds: list[dict[str, Metrics]] = []
        self.faults: dict[str, Metrics] = {}
        self._digests: dict[str, dict[str, str]] = {}
        if options.resume and options.json.exists():
            self._load(json.loads(options.json.read_text()))

    def _load(self, earlier: dict[str, Any]) -> None:
        if earlier["results"]["settings"] != self._settings:
            sys.exit(f"{self._options.json} holds another measurement: {earlier['results']['settings']}")
        self.rounds, self.faults = earlier["rounds"], earlier["results"]["faults"]

    def save(self, **results: Any) -> dict[str, Any]:
        """Write what is known so far; returns the record."""
        printed = {"benchmark": "vs_ray_data", "settings": self._settings, "faults": self.faults, **results}
        done = record.complete(self._record, printed | {"rounds": self.rounds, "ratios": ratios(self.rounds)})
        if self._options.json:
            record.write(self._options.json, done)
        return done

    def fault_limit_s(self) -> float:
        """Return the time after which a run with a fault is ended."""
        longest = max((metrics["wall_s"] for each in self.rounds for metrics in each.values()), default=0.0)
        return max(MIN_FAULT_LIMIT_S, 3.0 * longest)

    def images(self, name: str, count: int) -> Path:
        """Return a folder of `count` copies of the example photos."""
        folder = self._folder / name
        if not folder.exists():
            folder.mkdir()
            for index in range(count):
                shutil.copy(PHOTOS[index % len(PHOTOS)], folder / f"{index:05d}.jpg")
        return folder

    def job(self, photos: Path, program: str, **changes: Any) -> Job:
        """Return a job with an output of its own."""
        self._count += 1
        here, options = self._folder / f"{self._count:03d}-{program}", self._options
        workers = 1 if program == "bare" else options.workers
        job = Job(
            str(photos), str(here / "out"), str(here / "calls"), options.model, options.weights, workers,
            options.shard_images, small=options.small,
        )  # fmt: skip
        here.mkdir()
        return replace(job, **changes)

    def run(
        self, program: str, job: Job, *, limit_s: float | None = None, until: Callable[[], bool] = lambda: False
    ) -> Usage:
        """Run one program on a job; what it prints stays in the folder of its output."""
        # Of its own, because the addresses of Ray's sockets may have only 107 bytes.
        with tempfile.TemporaryDirectory(prefix="vr-") as ray_folder:
            environment = {
                **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_TMPDIR": ray_folder,
                "RAY_USAGE_STATS_ENABLED": "0",
            }  # fmt: skip
            command = [sys.executable, "-c", ENTRY, program.removesuffix("_all"), json.dumps(asdict(job))]
            return run_metered(
                command, log=log_of(job), environment=environment, folder=ROOT, limit_s=limit_s, until=until
            )

    def measure(self, program: str, number: int) -> Metrics:
        """Run one program without faults, and return its metrics; ends the benchmark when its rows are not right."""
        photos = self.images("photos", self._options.images)
        job, load = self.job(photos, program), os.getloadavg()[0]
        usage = self.run(program, job)
        if usage.status != 0:
            sys.exit(f"{program} ended with status {usage.status}:\n{log_of(job).read_text()[-3000:]}")
        metrics = describe(program, job, usage) | {"load_before": round(load, 2)}
        digests = digests_of(program, Path(job.output))
        if len(digests) != self._options.images or digests != self._digests.setdefault("all", digests):
            sys.exit(f"{program} in round {number}: its rows are not those of the other programs")
        shutil.rmtree(Path(job.output).parent)
        return metrics


def log_of(job: Job) -> Path:
    """Return the file with what a job printed."""
    return Path(job.output).parent / "log.txt"


def calls_of(job: Job) -> list[tuple[float, float, int]]:
    """Return the model's calls: Unix time of begin and end, and images."""
    lines = [line.split() for log in Path(job.calls).glob("*.txt") for line in log.read_text().splitlines()]
    return sorted((float(began), float(ended), int(images)) for began, ended, images in lines)


def tables_of(program: str, job: Job) -> list[Path]:
    """Return the Parquet files whose rows are committed images."""
    pattern = {"htc": "images/run=*/part-*.parquet", "ray_data": "*.parquet"}.get(program, "images-*.parquet")
    return list(Path(job.output).glob(pattern))


def committed(program: str, job: Job) -> int:
    """Return how many images are committed: those that the same command would not do again."""
    import pyarrow.parquet as pq

    parts = tables_of("htc", job)
    if program == "ray_data":
        parts = [part for part in Path(f"{job.output}-checkpoint").glob("*.parquet") if ".pending" not in part.name]
    return sum(pq.read_metadata(part).num_rows for part in parts)


def describe(program: str, job: Job, usage: Usage) -> Metrics:
    """Return the metrics of a run that has ended."""
    images, calls = len(list(Path(job.photos).iterdir())), calls_of(job)
    began, ended = calls[0][0], max(call[1] for call in calls)
    work_s, model_s = ended - began, sum(call[1] - call[0] for call in calls)
    first_table = min((part.stat().st_mtime for part in tables_of(program, job)), default=None)
    return {
        "wall_s": round(usage.wall_s, 2),
        "cpu_s": round(usage.cpu_s, 2),
        "is_cpu_exact": usage.is_exact,
        "images_per_s": round(images / usage.wall_s, 4),
        "cpu_s_per_image": round(usage.cpu_s / images, 4),
        "start_s": round(began - usage.started_at, 2),
        "work_s": round(work_s, 2),
        "end_s": round(usage.started_at + usage.wall_s - ended, 2),
        "work_images_per_s": round(sum(call[2] for call in calls) / work_s, 4),
        "work_images_per_s_per_worker": round(sum(call[2] for call in calls) / work_s / job.workers, 4),
        "model_s_per_image": round(model_s / sum(call[2] for call in calls), 4),
        "model_share": round(model_s / work_s / job.workers, 4),
        "first_table_s": None if first_table is None else round(first_table - usage.started_at, 2),
        "peak_mib": round(usage.peak_mib),
        "other_cpu_s": round(usage.other_cpu_s, 1),
    }


def digests_of(program: str, output: Path) -> dict[str, str]:
    """Return a digest of each image's instances by the image's name: category, score, box, area and mask."""
    digests = {}
    for name, _, instances in read_tables(program.removesuffix("_all"), output):
        keys = ("instance", "category_id", "score", "bbox", "area", "mask")
        rows = sorted(json.dumps([each[key] for key in keys], sort_keys=True) for each in instances)
        digests[name] = hashlib.sha256("\n".join(rows).encode()).hexdigest()
    return digests


def outcome(program: str, job: Job, usage: Usage) -> Metrics:
    """Return what came out of a run with a fault."""
    rows = list(read_tables(program, Path(job.output))) if tables_of(program, job) else []
    names = Counter(name for name, _, _ in rows)
    return {
        "status": "still running: ended" if usage.was_ended else usage.status,
        "wall_s": round(usage.wall_s, 1),
        "cpu_s": round(usage.cpu_s, 1),
        "images": len(list(Path(job.photos).iterdir())),
        "images_with_a_row": len(names),
        "doubled": sum(names.values()) - len(names),
        "statuses": dict(Counter(row["status"] for _, row, _ in rows)),
        "model_images": sum(call[2] for call in calls_of(job)),
    }


def kill_and_resume(bench: Bench, program: str, images: int) -> Metrics:
    """Kill all processes of a run when half of its images are committed, and run the same command again."""
    job = bench.job(bench.images("fault-photos", images), program)
    first = bench.run(program, job, until=lambda: committed(program, job) * 2 >= images)
    if not first.was_ended:
        sys.exit(f"{program} ended with status {first.status} before it could be killed: {log_of(job).read_text()}")
    done, computed = committed(program, job), sum(call[2] for call in calls_of(job))
    # The actor that leaves out what the checkpoint holds needs a core more.
    again = replace(job, calls=f"{job.calls}-again", extra_cpus=job.extra_cpus + 1)
    second = bench.run(program, again, limit_s=bench.fault_limit_s() + first.wall_s)
    metrics = outcome(program, again, second)
    calls = calls_of(again)
    return metrics | {
        "killed_after_s": round(first.wall_s, 1),
        "committed_at_kill": done,
        "computed_at_kill": computed,
        "redone_images": metrics["model_images"] - (images - done),
        "resumed_start_s": round(calls[0][0] - second.started_at, 1) if calls else None,
    }


def damaged(bench: Bench, program: str, images: int, **changes: Any) -> Metrics:
    """Run with one image in a hundred cut off in its middle, at least one."""
    photos = bench.images("damaged-photos", images)
    for index in range(0, images, 100):
        payload = PHOTOS[index % len(PHOTOS)].read_bytes()
        (photos / f"{index:05d}.jpg").write_bytes(payload[: len(payload) // 2])
    job = bench.job(photos, program, **changes)
    return outcome(program, job, bench.run(program, job, limit_s=bench.fault_limit_s()))


def lethal(bench: Bench, program: str, images: int, **changes: Any) -> Metrics:
    """Run with one image that ends the process that segments it."""
    from PIL import Image

    photos = bench.images("lethal-photos", images)
    Image.new("RGB", LETHAL_SIZE[::-1], "grey").save(photos / f"{images // 2:05d}.jpg")
    job = bench.job(photos, program, **changes)
    return outcome(program, job, bench.run(program, job, limit_s=bench.fault_limit_s()))


SKIPPING = {"catches": False, "max_errored_blocks": -1}
FAULTS: dict[str, tuple[Callable[..., Metrics], str, dict[str, Any]]] = {
    "killed at half: htc": (kill_and_resume, "htc", {}),
    "killed at half: ray_data": (kill_and_resume, "ray_data", {}),
    "1 % damaged: htc": (damaged, "htc", {}),
    "1 % damaged: ray_data, the function catches": (damaged, "ray_data", {}),
    "1 % damaged: ray_data, max_errored_blocks=-1": (damaged, "ray_data", SKIPPING),
    "1 % damaged: ray_data, its defaults": (damaged, "ray_data", {"catches": False}),
    "one lethal: htc": (lethal, "htc", {}),
    "one lethal: ray_data, its defaults": (lethal, "ray_data", {}),
    "one lethal: ray_data, max_task_retries=3, max_errored_blocks=-1": (
        lethal,
        "ray_data",
        {"max_task_retries": 3, "max_errored_blocks": -1},
    ),
}


def ratios(rounds: list[dict[str, Metrics]]) -> dict[str, float]:
    """Return ratios of programs in the same round, each the median of all complete rounds.

    Above 1 is better for this project in `..._over_ray_data` of rates, below 1 in those of seconds and memory;
    `..._share_of_bare...` are at most 1 where the noise is smaller than the difference.
    """
    whole = [each for each in rounds if set(PROGRAMS) <= set(each)]
    if not whole:
        return {}

    def middle(ratio: Callable[[dict[str, Metrics]], float]) -> float:
        return round(statistics.median(map(ratio, whole)), 3)

    found = {
        f"htc_{key}_over_ray_data": middle(lambda each, key=key: each["htc"][key] / each["ray_data"][key])  # type: ignore[misc]
        for key in ("images_per_s", "work_images_per_s", "cpu_s_per_image", "start_s", "first_table_s", "peak_mib")
    }
    key = "work_images_per_s_per_worker"
    for program in ("htc", "ray_data"):
        for limit in ("bare", "bare_all"):
            found[f"{program}_share_of_{limit}"] = middle(
                lambda each, program=program, limit=limit: each[program][key] / each[limit][key]  # type: ignore[misc]
            )
    return found


def noise_note(rounds: list[dict[str, Metrics]]) -> str:
    """Return what is wrong when a worker was faster than the bare loop in the same round; empty when none was.

    Only where workers and loops fill all cores: with cores to spare, a worker reads and decodes beside its model.
    """
    key = "work_images_per_s_per_worker"
    faster = [
        f"{program} in round {number}: {each[program][key] / each[limit][key]:.2f} times {limit}"
        for number, each in enumerate(rounds, start=1)
        for program in ("htc", "ray_data")
        for limit in ("bare", "bare_all")
        if {program, limit} <= set(each) and each[program][key] > each[limit][key]
    ]
    if not faster:
        return ""
    return (
        f"A worker was faster than the bare loop ({'; '.join(faster)}), which cannot be: there the noise is larger "
        "than the difference. Repeat on an idle machine."
    )


def work(bench: Bench, options: argparse.Namespace) -> None:
    """Do the runs that are missing."""
    start = time.monotonic()
    for number in range(options.rounds):
        if number == len(bench.rounds):
            bench.rounds.append({})
        turn = number % len(PROGRAMS)
        for program in [*PROGRAMS[turn:], *PROGRAMS[:turn]]:
            if program in bench.rounds[number]:
                continue
            metrics = bench.rounds[number][program] = bench.measure(program, number + 1)
            bench.save()
            print(f"round {number + 1}: {program:9} {json.dumps(metrics)}", flush=True)
        if not number:
            each_s = sum(metrics["wall_s"] for metrics in bench.rounds[0].values())
            print(f"estimate: {each_s * options.rounds / 60:.0f} min for the rounds, then the faults", flush=True)
    for name, (fault, program, changes) in FAULTS.items():
        if name not in bench.faults and not options.no_faults:
            bench.faults[name] = fault(bench, program, options.fault_images, **changes)
            bench.save()
            print(f"{name}: {json.dumps(bench.faults[name])}", flush=True)
    print(f"{time.monotonic() - start:.0f} s in all", flush=True)


def medians(rounds: list[dict[str, Metrics]]) -> dict[str, Metrics]:
    """Return the median of each metric of each program."""
    found: dict[str, Metrics] = {}
    for program in PROGRAMS:
        runs = [each[program] for each in rounds if program in each]
        keys = [key for key, value in (runs[0] if runs else {}).items() if isinstance(value, int | float)]
        found[program] = {key: round(statistics.median(run[key] for run in runs), 4) for key in keys}
    return found


def main() -> None:
    """Measure, and print the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int)
    parser.add_argument("--fault-images", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--shard-images", type=int, default=8, help="images per shard, and per block of Ray Data")
    parser.add_argument("--model", default="htc_lite0_fpn")
    parser.add_argument("--weights", default="demo")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--no-faults", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    usual = (32, 32, 2) if options.small else (240, 64, 5)
    for name, value in zip(("images", "fault_images", "rounds"), usual, strict=True):
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.resume and not options.json:
        parser.error("--resume needs --json")
    # So that the program that is being measured is ended as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="vs-ray-data-") as folder:
        bench = Bench(options, Path(folder))
        work(bench, options)
        note = noise_note(bench.rounds) if options.workers >= (os.cpu_count() or 1) else ""
        if note:
            print(note)
        done = bench.save(medians=medians(bench.rounds), noise=note)
    print(json.dumps({"benchmark": done["benchmark"], **done["results"], "ratios": done["ratios"]}))


if __name__ == "__main__":
    main()
