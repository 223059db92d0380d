"""Kills a run half-way with SIGKILL, runs the same command again, and checks with SQL that each image has one row.

Usage: python benchmarks/kill_resume.py IMAGES OUTPUT [--limit 200] [--model htc_r50_fpn] [--workers 2]

The process group of `htc run` (the driver, and Ray with its workers where they share the group) gets SIGKILL as soon as
half of the shards are committed: no process can clean up. Prints the result of each step and, last, one JSON line. The
exit status is 0 if every listed image has exactly one row, 1 otherwise.
"""

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PROOF_SQL = """
SELECT count(*) AS rows, count(DISTINCT uri) AS distinct_images, count(DISTINCT image_id) AS distinct_ids,
       sum(instances) AS instances_counted,
       (SELECT count(*) FROM instances) AS instance_rows,
       (SELECT count(*) FROM (SELECT image_id, instance FROM instances GROUP BY ALL HAVING count(*) > 1)) AS doubled
FROM images
"""


def htc(*arguments: str) -> list[str]:
    """Return the command line of `htc` in this interpreter's environment."""
    return [sys.executable, "-m", "jobs", *arguments]


def committed_parts(output: Path) -> int:
    """Count the committed shards: each has exactly one part in `images`."""
    return len(list(output.glob("images/run=*/part-*.parquet")))


def kill_at_half(command: list[str], output: Path, shards: int) -> tuple[int, float]:
    """Start the command in its own process group, and send the group SIGKILL when half of the shards are committed."""
    started = time.monotonic()
    process = subprocess.Popen(command, start_new_session=True)
    while committed_parts(output) < math.ceil(shards / 2):
        if process.poll() is not None:
            sys.exit(f"the run ended by itself with status {process.returncode} before it could be killed")
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return committed_parts(output), time.monotonic() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images")
    parser.add_argument("output", type=Path)
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--model", default="htc_r50_fpn")
    parser.add_argument("--weights", default="untrained")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--shard-images", type=int, default=10)
    options = parser.parse_args()
    if committed_parts(options.output):
        sys.exit(f"{options.output} already holds a run; name an empty folder")

    command = htc(
        "run", options.images, str(options.output),
        "--model", options.model, "--weights", options.weights, "--workers", str(options.workers),
        "--shard-images", str(options.shard_images), "--limit", str(options.limit),
    )  # fmt: skip
    shards = math.ceil(options.limit / options.shard_images)
    before, killed_after_s = kill_at_half(command, options.output, shards)
    stamps = {part: part.stat().st_mtime_ns for part in options.output.glob("images/run=*/part-*.parquet")}
    print(f"killed after {killed_after_s:.0f} s with {before} of {shards} shards committed", flush=True)

    started = time.monotonic()
    status = subprocess.run(command, check=False).returncode
    resumed_s = time.monotonic() - started
    redone = sum(part.stat().st_mtime_ns != stamp for part, stamp in stamps.items())
    answer = subprocess.run(
        htc("query", str(options.output), PROOF_SQL, "--format", "json"),
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    (proof,) = json.loads(answer.stdout)
    print(PROOF_SQL.strip())
    leftovers = [str(p) for p in options.output.rglob("*") if p.name.startswith(".") or p.suffix == ".tmp"]
    report = {
        "benchmark": "kill_resume", "model": options.model, "shards": shards, "committed_at_kill": before,
        "redone_shards": redone, "exit_status": status, "resumed_s": round(resumed_s, 1), "temp_files": leftovers,
        **proof,
    }  # fmt: skip
    print(json.dumps(report))
    is_one_row_each = proof["rows"] == proof["distinct_images"] == proof["distinct_ids"] == options.limit
    has_all_instances = proof["instances_counted"] == proof["instance_rows"] and proof["doubled"] == 0
    return 0 if is_one_row_each and has_all_instances and status == 0 and redone == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
