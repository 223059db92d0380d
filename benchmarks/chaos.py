"""Cause every fault many times and check that the tables are the same as without faults.

Usage: python benchmarks/chaos.py [--rounds 20] [--each 2] [--seed 0] [--only NAME ...] [--folder DIR] [--json FILE]
                                  [--resume]

A reference run without faults; then the same input, on the disk or in S3, under each fault (--each rounds)
and under all of them at random (--rounds rounds). After every round the tables are compared with the reference's,
rows and masks. Prints a table, and one JSON line last. Exit status 1 when a round was not survived; its log and
its complaints stay in the folder. The network is a fast stand-in whose masks follow from the pixels: the benchmark
tests everything around it. --json keeps every round as it ends; --resume reads such a file and plays only the rounds
that it lacks.
"""

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from tests.chaos import disks, faults, store_faults  # noqa: E402
from tests.chaos.arena import Arena, Outcome, Place  # noqa: E402
from tests.chaos.round import Play  # noqa: E402
from tests.support.servers.s3_server import WRITER, S3Server, ServerUnavailableError  # noqa: E402

EVERYTHING = "everything at random"
Case = tuple[str, Play, tuple[Place, ...]]
BOTH: tuple[Place, ...] = ("local", "s3")

CASES: tuple[Case, ...] = (
    ("worker killed", faults.worker_killed, BOTH),
    ("worker killed at a write", faults.worker_killed_at_write, BOTH),
    ("driver killed", faults.driver_killed, BOTH),
    *((f"driver killed {name}", play, BOTH) for name, play in faults.DRIVER_DEATHS.items()),
    ("raylet killed", faults.raylet_killed, ("s3",)),
    ("500", store_faults.store_fault("error_500", 0.2), ("s3",)),
    ("503 SlowDown", store_faults.store_fault("slow_down", 0.2), ("s3",)),
    ("403 in the middle", store_faults.forbidden_in_the_middle, ("s3",)),
    ("400 RequestTimeout", store_faults.store_fault("request_timeout", 0.2), ("s3",)),
    ("connection cut", store_faults.store_fault("cut", 0.2), ("s3",)),
    ("answer to a write lost", store_faults.store_fault("lost_answer", 0.3, methods=("PUT",)), ("s3",)),
    ("body truncated", store_faults.store_fault("truncated", 0.2, methods=("GET",)), ("s3",)),
    ("body of a wrong length", store_faults.store_fault("wrong_length", 0.2, methods=("GET",)), ("s3",)),
    ("stall of 30 s", store_faults.stalled, ("s3",)),
    ("time-out", store_faults.timed_out, ("s3",)),
    ("store restarted", store_faults.store_restarted, ("s3",)),
    ("disk full", disks.disk_full, ("local",)),
    ("disk full, a real one", disks.small_disk_full, ("local",)),
    ("file too large", disks.file_too_large, ("local",)),
    ("object deleted", faults.object_deleted, BOTH),
    ("object replaced", faults.object_replaced, BOTH),
    ("poison image, segfault", faults.poison_segfault, BOTH),
    ("poison image, hangs", faults.poison_hang, ("local",)),
    ("object store memory", faults.object_store_pressure, ("local",)),
)


def rounds_of(options: argparse.Namespace, has_server: bool) -> Iterator[tuple[str, Play, Place, int]]:
    """Yield every round to play, as fault, place and seed."""
    wanted: list[str] = options.only
    cases = [(case, options.each) for case in CASES if case[1] is not disks.small_disk_full or disks.can_mount()]
    cases.append(((EVERYTHING, faults.everything, ("s3", "s3", "s3", "local")), options.rounds))
    for (name, play, places), count in cases:
        if wanted and not any(word in name for word in wanted):
            continue
        here = [place for place in places if place == "local" or has_server]
        for number, place in zip(range(count), itertools.cycle(here), strict=False):
            yield name, play, place, options.seed + number


def start_server(folder: Path, console: Console) -> S3Server | None:
    """Start and return the S3 server, or print why there is none and return None."""
    try:
        server = S3Server(folder / "store")
        server.start()
    except ServerUnavailableError as error:
        console.print(f"No S3 server here, so local files only: {error}")
        return None
    return server


def print_table(outcomes: list[Outcome], console: Console) -> None:
    """Print a table of the faults with their rounds."""
    table = Table("fault", "rounds", "survived", "commands", "seconds", "requests broken")
    for name, group in itertools.groupby(outcomes, key=lambda outcome: outcome.fault):
        rounds = list(group)
        survived = sum(outcome.is_survived for outcome in rounds)
        table.add_row(
            name,
            str(len(rounds)),
            str(survived) if survived == len(rounds) else f"[red]{survived}[/red]",
            str(sum(len(outcome.exit_codes) for outcome in rounds)),
            f"{sum(outcome.seconds for outcome in rounds):.0f}",
            str(sum(sum(outcome.injected.values()) for outcome in rounds) or ""),
        )
    console.print(table)


def play_all(options: argparse.Namespace, folder: Path, console: Console) -> list[Outcome]:
    """Play every round that was not played before, and print a line for each."""
    outcomes = load_outcomes(options.json) if options.resume else []
    played = {(outcome.fault, outcome.place, outcome.seed) for outcome in outcomes}
    server = start_server(folder, console)
    try:
        arena = Arena(folder, server)
        for name, play, place, seed in rounds_of(options, has_server=server is not None):
            if (name, place, seed) in played:
                continue
            outcome = arena.play(name, play, place=place, seed=seed)
            outcomes.append(outcome)
            if options.json:
                options.json.write_text(json.dumps([each.to_dict() for each in outcomes], indent=1))
            verdict = "survived" if outcome.is_survived else "NOT SURVIVED"
            console.print(f"{name} ({place}, seed {seed}): {verdict}, {outcome.seconds:.0f} s", highlight=False)
            for complaint in outcome.complaints[:10]:
                console.print(f"    {complaint}", markup=False, highlight=False)
    finally:
        if server is not None:
            server.kill()
    order = [case[0] for case in CASES] + [EVERYTHING]
    return sorted(outcomes, key=lambda outcome: (order.index(outcome.fault), outcome.seed))


def load_outcomes(path: Path | None) -> list[Outcome]:
    """Read the rounds of an earlier call; none where there is no file."""
    if path is None or not path.exists():
        return []
    return [Outcome.from_dict(values) for values in json.loads(path.read_text())]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="under everything at random")
    parser.add_argument("--each", type=int, default=2, help="under each fault alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="faults with one of these in their names")
    parser.add_argument("--folder", type=Path, help="for inputs, outputs and logs; a temporary one by default")
    parser.add_argument("--json", type=Path, help="write every round's outcome there")
    parser.add_argument("--resume", action="store_true", help="skip the rounds in --json")
    options = parser.parse_args()
    if options.resume and not options.json:
        parser.error("--resume needs --json FILE")
    folder = options.folder or Path(tempfile.mkdtemp(prefix="htc-chaos-bench-"))
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.update(WRITER.environment())
    console = Console(width=140 if not sys.stdout.isatty() else None)
    start = time.monotonic()
    outcomes = play_all(options, folder, console)
    print_table(outcomes, console)
    lost = [outcome for outcome in outcomes if not outcome.is_survived]
    report = {
        "benchmark": "chaos",
        "rounds": len(outcomes),
        "survived": len(outcomes) - len(lost),
        "not_survived": [f"{outcome.fault}, {outcome.place}, seed {outcome.seed}" for outcome in lost],
        "requests_broken": sum(sum(outcome.injected.values()) for outcome in outcomes),
        "seconds": round(time.monotonic() - start),
        "folder": str(folder),
    }
    print(json.dumps(report))
    return 1 if lost or not outcomes else 0


if __name__ == "__main__":
    sys.exit(main())
