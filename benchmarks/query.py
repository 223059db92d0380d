"""Measures `htc query` against plain DuckDB over the same files: many small parts, and the same rows compacted.

Both sides open everything anew for each query, as a command does: `htc query` lists the output, reads the run's record
and opens its views; DuckDB gets a new connection, and the explicit list of files. `htc_batch` is a notebook: one open
output, asked again for another image each time. The rounds are interleaved. Wall seconds are the median of the rounds,
from opening to the last row; CPU seconds are of the whole process, and their ratio is of the query and of both.
The output has eight instances an image and is written for the purpose. Prints tables, and one line of JSON at the end.

    python benchmarks/query.py [--images 1250000] [--parts 2500] [--rounds 5] [--small] [--folder KEPT]
"""

import argparse
import contextlib
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import duckdb
import numpy as np
from large_output import INSTANCES_PER_IMAGE, RUN, compact_copy, ids_of, uris_of, write_run

import htc_batch
from pipeline.output.results import Results
from pipeline.output.views import open_database
from pipeline.storage.storage import Storage

QUERIES = {
    "open": "SELECT 1",
    "count by category": "SELECT category, count(*) FROM instances GROUP BY 1",
    "one image by uri": "SELECT * FROM instances WHERE uri = '{uri}'",
    "one image by image_id": "SELECT * FROM instances WHERE image_id = {image_id}",
    "one folder": "SELECT uri, score FROM instances WHERE uri LIKE '{folder}%'",
    "score > 0.99, count": "SELECT count(*) FROM instances WHERE score > 0.99",
    "category and score, with masks": "SELECT uri, mask FROM instances WHERE category = 'category 7' AND score > 0.9",
    "current, count": "SELECT count(*) FROM current",
    "current_instances by category": "SELECT category, count(*) FROM current_instances GROUP BY 1",
    "current_instances, one image by uri": "SELECT * FROM current_instances WHERE uri = '{uri}'",
}
# Asked of an open output in Python.
DOOR = "one image by uri"
GOALS_S = {"one image by uri": 0.1, "one image by image_id": 0.1, "count by category": 1.0}
"""Of ten million instances, compacted, on two cores."""


def main() -> None:
    """Write the two outputs, and query each in all ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_250_000)
    parser.add_argument("--parts", type=int, default=2500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="20,000 images in 100 parts")
    parser.add_argument("--folder", type=Path, help="where the outputs are written, and kept for the next time")
    given = parser.parse_args()
    images, parts = (20_000, 100) if given.small else (given.images, given.parts)
    answer: dict[str, object] = {"benchmark": "query", "images": images, "instances": images * INSTANCES_PER_IMAGE}
    answer |= {"parts_written": parts}
    with output_folder(given.folder) as folder:
        outputs = {"parts": folder / "parts", "compacted": folder / "compacted"}
        if not outputs["compacted"].is_dir():
            before = time.process_time()
            write_run(outputs["parts"], images, parts)
            answer["write_cpu_s"] = round(time.process_time() - before, 1)
            before = time.process_time()
            compact_copy(outputs["parts"], outputs["compacted"])
            answer["compact_cpu_s"] = round(time.process_time() - before, 1)
        rounds: list[dict[str, dict[str, float]]] = [{} for _ in range(given.rounds)]
        for name in ("compacted", "parts"):
            answer[name] = measure(outputs[name], images, rounds)
    if images * INSTANCES_PER_IMAGE >= 10_000_000:
        compacted: dict[str, dict[str, list[float]]] = answer["compacted"]  # type: ignore[assignment]
        answer["goals_kept"] = {name: compacted[name]["htc"][2] < goal for name, goal in GOALS_S.items()}
    found: dict[str, dict[str, float]] = answer["compacted"]  # type: ignore[assignment]
    ratios = {f"compacted, {name}": found[name]["ratio"] for name in QUERIES if "ratio" in found[name]}
    print(json.dumps(answer | {"ratios": ratios, "rounds": rounds}))


@contextlib.contextmanager
def output_folder(kept: Path | None) -> Iterator[Path]:
    """Return the folder to keep, or a temporary one that is removed at the end."""
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept
        return
    folder = tempfile.mkdtemp(prefix="htc-query-")
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder)


class Taken(NamedTuple):
    """What one query took, in seconds, and its number of rows."""

    open_cpu_s: float
    query_cpu_s: float
    wall_s: float
    rows: int


def measure(output: Path, images: int, rounds: list[dict[str, dict[str, float]]]) -> dict[str, object]:
    """Measure each query in all ways, interleaved, each round with another image.

    Args:
        rounds: gets the wall seconds of each round.
    """
    files = {
        table: sorted(map(str, (output / table / f"run={RUN}").glob("*.parquet"))) for table in ("images", "instances")
    }
    answer: dict[str, object] = {"files": len(files["images"]) + len(files["instances"])}
    chosen = np.random.default_rng(2).integers(0, images, len(rounds) + 1)
    uris, ids = uris_of(chosen).to_pylist(), ids_of(chosen).tolist()
    wanted = [{"uri": uri, "image_id": number} for uri, number in zip(uris, ids, strict=True)]
    opened = htc_batch.open(str(output))
    opened.instances("latest", image=wanted[-1]["uri"])
    print(f"\n{output.name}: {answer['files']} files")
    print(f"{'CPU s to open + to query | wall s':36} {'htc':>23} {'DuckDB':>23} {'ratio of query':>14} {'of both':>8}")
    for name, sql in QUERIES.items():
        taken: dict[str, list[Taken]] = {}
        for number, image in enumerate(wanted[:-1]):
            text = sql.format(**image, folder=str(image["uri"]).rpartition("/")[0] + "/")
            ways: dict[str, Callable[[], Taken]] = {"htc": lambda text=text: through_htc(output, text)}
            if "current" not in text:
                ways["duckdb"] = lambda text=text: through_duckdb(files, text)
            if name == DOOR:
                ways["htc_batch"] = lambda image=image: through_door(opened, str(image["uri"]))
            for way, ask in ways.items():
                taken.setdefault(way, []).append(ask())
            rounds[number][f"{output.name}, {name}"] = {way: round(each[-1].wall_s, 4) for way, each in taken.items()}
            if len({each[-1].rows for each in taken.values()}) != 1:
                raise SystemExit(f"{name}: the ways return different numbers of rows")
        middle = {way: Taken(*map(statistics.median, zip(*each, strict=True))) for way, each in taken.items()}
        ratios = (
            {"query_ratio": ratio(taken, opens=False), "ratio": ratio(taken, opens=True)} if "duckdb" in taken else {}
        )
        answer[name] = {way: [round(seconds, 4) for seconds in each[:3]] for way, each in middle.items()} | ratios
        shown = {
            way: f"{each.open_cpu_s:.3f} + {each.query_cpu_s:.3f} | {each.wall_s:.3f}" for way, each in middle.items()
        }
        line = f"{name:36} {shown['htc']:>23} {shown.get('duckdb', '-'):>23}"
        line += "".join(f" {value:>{width}}" for value, width in zip(ratios.values(), (14, 8), strict=False))
        if "htc_batch" in shown:
            line += f"\n{'  in an open htc_batch.open':36} {shown['htc_batch']:>23}"
        print(line, flush=True)
    return answer


def ratio(taken: dict[str, list[Taken]], *, opens: bool) -> float:
    """Return the median of the rounds' ratios of CPU seconds, htc over DuckDB."""
    pairs = zip(taken["htc"], taken["duckdb"], strict=True)
    seconds = [[each.query_cpu_s + opens * each.open_cpu_s for each in pair] for pair in pairs]
    return round(statistics.median(ours / theirs for ours, theirs in seconds), 2)


def through_htc(output: Path, sql: str) -> Taken:
    """Query as `htc query` does."""
    return timed(lambda: open_database(Results(str(output), Storage())), sql)


def through_duckdb(files: dict[str, list[str]], sql: str) -> Taken:
    """Query with DuckDB alone."""
    for table, paths in files.items():
        sql = sql.replace(f"FROM {table}", f"FROM read_parquet({paths})")
    return timed(duckdb.connect, sql)


def through_door(opened: htc_batch.Results, uri: str) -> Taken:
    """Ask an output that is open already, as a notebook does."""
    begin, wall = time.process_time(), time.perf_counter()
    rows = len(opened.instances("latest", image=uri))
    return Taken(0.0, time.process_time() - begin, time.perf_counter() - wall, rows)


def timed(connect: Callable[[], duckdb.DuckDBPyConnection], sql: str) -> Taken:
    """Open a database, query it and close it; closing counts as opening."""
    begin, wall = time.process_time(), time.perf_counter()
    with contextlib.closing(connect()) as database:
        opened = time.process_time()
        rows = len(database.execute(sql).fetchall())
        queried = time.process_time()
    end = time.process_time()
    return Taken(opened - begin + end - queried, queried - opened, time.perf_counter() - wall, rows)


if __name__ == "__main__":
    main()
