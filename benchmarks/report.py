"""Writes docs/benchmarks.md and its plots from the records in benchmarks/results.

    python benchmarks/report.py [--results FOLDER] [--page FILE] [--no-plots]

Every number of the page comes from a record (`benchmarks/record.py`): change the record by running its benchmark again,
never the page. What has no record stands there as not measured.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.record import RESULTS  # noqa: E402

PAGE = ROOT / "docs" / "benchmarks.md"
Record = dict[str, Any]
# Said by the section itself, or no number.
HIDDEN = {"benchmark", "settings", "noise"}


@dataclass(frozen=True)
class Section:
    """A part of the page.

    names: of the benchmarks whose records it shows. command: what measures it. about: what the numbers mean, and the
    physical limit that they are compared with. needs_gpu: whether a machine without one cannot measure it.
    """

    title: str
    names: tuple[str, ...]
    command: str
    about: str
    needs_gpu: bool = False


SECTIONS = (
    Section(
        "The network on a CPU",
        ("model_cpu",),
        "benchmarks/model_cpu.py",
        "Seconds for one image, one thread, from the encoded file to encoded masks, and a peer with the same input in "
        "the same run.",
    ),
    Section(
        "Operations and synchronisations",
        ("dispatch_count",),
        "benchmarks/dispatch_count.py",
        "Operations that one image's inference dispatches, and how often it waits for a result of the device: on a "
        "GPU, these decide whether the card is busy. Counted, so the machine does not matter.",
    ),
    Section("Masks", ("masks",), "benchmarks/masks.py", "100 masks of one image to COCO RLE."),
    Section(
        "The driver",
        ("scale",),
        "benchmarks/scale.py",
        "Everything the driver does for a shard, with workers that answer at once. Goal: 2,000 shards per CPU second.",
    ),
    Section("Resuming", ("resume",), "benchmarks/resume.py", "Goal: a million committed shards in a minute and 1 GB."),
    Section("Listing", ("listing", "listing_local"), "benchmarks/listing.py", "Listing an input and writing its plan."),
    Section("Incremental runs", ("nightly",), "benchmarks/nightly.py", "Planning a run over images that are known."),
    Section(
        "Queries",
        ("query", "compaction"),
        "benchmarks/query.py",
        "`htc query`, and DuckDB itself on the same files in the same run, which is the limit. Goal: at most 1.2 times "
        "its CPU seconds.",
    ),
    Section(
        "Full batches", ("batch_fill",), "benchmarks/batch_fill.py", "Images in a batch, of those that it has room for."
    ),
    Section(
        "A worker's memory", ("worker_memory",), "benchmarks/worker_memory.py", "Two shards of large images at once."
    ),
    Section(
        "Against Ray Data",
        ("vs_ray_data",),
        "benchmarks/vs_ray_data.py",
        "The same images, model object, columns and masks through this project, through Ray Data with a pool of actors "
        "and checkpoints, and through a bare loop, taking turns. `bare` is one process, `bare_all` as many as there "
        "are workers: the limit that no engine can pass.",
    ),
    Section("The network on a GPU", ("gpu_model",), "benchmarks/gpu_model.py", "Images per second.", needs_gpu=True),
    Section(
        "The whole job on a GPU",
        ("gpu_pipeline",),
        "benchmarks/gpu_pipeline.py",
        "Encoded files in, Parquet out.",
        needs_gpu=True,
    ),
)


def load_records(folder: Path) -> list[Record]:
    """Read the records of a folder, by the names of their files.

    Raises:
        ValueError: a file is no record.
    """
    records = []
    for path in sorted(folder.glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        missing = {"benchmark", "command", "machine", "versions", "commit", "date", "results"} - set(found)
        if missing:
            raise ValueError(f"{path} is no record of benchmarks/record.py: it lacks {', '.join(sorted(missing))}")
        records.append(found)
    return records


def number(value: object) -> str:
    """Write a value: three significant digits below 100, whole numbers with separators."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ""}[value]
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {number(each)}" for key, each in value.items()) or "none"
    if isinstance(value, list):
        is_shape = all(isinstance(each, int) for each in value)
        return (" x " if is_shape else " / ").join(str(each) if is_shape else number(each) for each in value)
    return str(value).replace("|", "\\|")


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Write a Markdown table."""
    lines = [header, ["---"] * len(header), *([number(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def columns_of(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Return the keys of all rows in the order in which they come."""
    return list(dict.fromkeys(key for row in rows for key in row if key not in HIDDEN))


@dataclass
class _Parts:
    """What a record's results hold: single numbers, and tables by their names."""

    single: list[tuple[str, object]] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)

    def add(self, name: str, value: object) -> None:
        """Add a value; objects of objects and lists of objects become tables of their own."""
        if isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
            keys = columns_of(value)
            self.tables.append(table([_words(key) for key in keys], ([row.get(key) for key in keys] for row in value)))
        elif isinstance(value, dict):
            inner = {label: each for label, each in value.items() if isinstance(each, dict)}
            for key, each in value.items():
                if key not in inner:
                    self.add(f"{name}: {key}", each)
            if inner:
                keys = columns_of(inner.values())
                rows = ([_words(label), *(row.get(key) for key in keys)] for label, row in inner.items())
                self.tables.append(table([_words(name), *map(_words, keys)], rows))
        else:
            self.single.append((_words(name), value))


def _words(name: str) -> str:
    return name.replace("_", " ")


def results_of(record: Record) -> str:
    """Write the results and ratios of a record as tables."""
    parts = _Parts()
    for name, value in record["results"].items():
        if name not in HIDDEN:
            parts.add(name, value)
    written = [table(["measured", ""], parts.single)] if parts.single else []
    written += parts.tables
    ratios = peer_ratios(record) | record.get("ratios", {})
    if ratios:
        written.append(table(["ratio in the same run", ""], ((_words(name), value) for name, value in ratios.items())))
    return "\n\n".join(written)


def peer_ratios(record: Record) -> dict[str, float]:
    """Return a peer's seconds over ours, for results that have both under `peer` (`ours_..._s` beside `peer_..._s`)."""
    peer = {name: value for name, value in record["results"].get("peer", {}).items() if name.endswith("_s")}
    ours = {name: value for name, value in peer.items() if name.startswith("ours_")}
    return {
        f"{name} over {_words(own)}": value / ours[own]
        for own in ours
        for name, value in ((_words(name), value) for name, value in peer.items() if name not in ours)
    }


def against_ray_data(record: Record) -> str:
    """Write the comparison with Ray Data: the medians side by side, then the faults."""
    results = record["results"]
    medians, faults = results.get("medians", {}), results.get("faults", {})
    rounds, settings = record["rounds"], results["settings"]
    said = [
        f"{settings['images']} images, {settings['workers']} workers, `{settings['model']}` with {settings['weights']} "
        f"weights{', short side 160' if settings['small'] else ''}; the median of {len(rounds)} rounds."
    ]
    if medians:
        keys = [key for key in columns_of(medians.values()) if key != "is_cpu_exact"]
        said.append(
            table(
                ["", *map(_words, medians)],
                ([_words(key), *(row.get(key) for row in medians.values())] for key in keys),
            )
        )
    if record.get("ratios"):
        ratios = ((_words(name), value) for name, value in record["ratios"].items())
        said.append(table(["ratio, median of the rounds", ""], ratios))
    if results.get("noise"):
        said.append(f"**{results['noise']}**")
    if faults:
        keys = columns_of(faults.values())
        said.append(
            f"With faults, {settings['fault_images']} images each:\n\n"
            + table(
                ["fault", *map(_words, keys)],
                ([name, *(row.get(key) for key in keys)] for name, row in faults.items()),
            )
        )
    return "\n\n".join(said)


RENDERERS: dict[str, Callable[[Record], str]] = {"vs_ray_data": against_ray_data}


def machine_key(record: Record) -> str:
    """Return what makes two records of one machine with the same versions."""
    machine = {key: value for key, value in record["machine"].items() if key not in {"threads", "load"}}
    return json.dumps([machine, record["versions"]], sort_keys=True)


def describe_machines(records: Sequence[Record]) -> tuple[dict[str, str], str]:
    """Return the letter of each machine by its key, and their table."""
    letters: dict[str, str] = {}
    rows = []
    for record in records:
        key = machine_key(record)
        if key in letters:
            continue
        letters[key] = chr(ord("A") + len(letters))
        machine = record["machine"]
        processor = machine["cpu"] + (f", {machine['gpu']}" if machine.get("gpu") else "")
        flags, versions = " ".join(machine.get("flags", [])), record["versions"]
        libraries = ", ".join(f"{name} {version}" for name, version in versions.items())
        rows.append([letters[key], processor, machine["cores"], flags, f"{machine.get('memory_gib')} GiB", libraries])
    return letters, table(["machine", "processor", "cores", "instructions", "memory", "versions"], rows)


def render(records: Sequence[Record], plots: Sequence[str] = ()) -> str:
    """Write the page.

    Args:
        plots: file names in docs/plots, each named after a benchmark.
    """
    letters, machines = describe_machines(records)
    page = [
        "# Benchmarks",
        "Written by `benchmarks/report.py` from the records in `benchmarks/results/`, each made by the command beside "
        "it; `python benchmarks/record.py run -- python benchmarks/masks.py` makes one. Peers are measured in the same "
        "run as ours. Seconds are wall time unless they are called CPU seconds; the load is the machine's before "
        "the run.",
    ]
    known = {name for section in SECTIONS for name in section.names}
    others = sorted({record["benchmark"] for record in records} - known)
    sections = [*SECTIONS, *(Section(_words(name).capitalize(), (name,), "", "") for name in others)]
    for section in sections:
        page += [f"## {section.title}", *([section.about] if section.about else [])]
        found = [record for record in records if record["benchmark"] in section.names]
        if not found:
            where = " It needs a GPU." if section.needs_gpu else ""
            page.append(f"Not measured.{where} Command: python {section.command}")
        for record in found:
            threads = f", {record['machine']['threads']} thread(s)" if "threads" in record["machine"] else ""
            page += [
                f"`{record['command']}`: machine {letters[machine_key(record)]}{threads}, {record['date']}, commit "
                f"{record['commit']}, load {record.get('load_before', 'unknown')} before",
                RENDERERS.get(record["benchmark"], results_of)(record),
            ]
        page += [f"![{section.title}](plots/{name})" for name in plots if Path(name).stem in section.names]
    if records:
        page += ["## Machines", machines]
    return "\n\n".join(part for part in page if part) + "\n"


def draw_vs_ray_data(record: Record, path: Path) -> bool:
    """Draw the rates of work of each round, and the CPU seconds per image; return whether there was any to draw."""
    rounds = [each for each in record["rounds"] if len(each) > 1]
    if not rounds:
        return False
    figure, axes = _figure(2)
    programs = list(rounds[0])
    panels = (("work_images_per_s_per_worker", "images/s per process"), ("cpu_s_per_image", "CPU seconds per image"))
    for axis, (key, label) in zip(axes, panels, strict=True):
        values = [[each[program][key] for each in rounds if program in each] for program in programs]
        axis.bar(range(len(programs)), [sum(each) / len(each) for each in values], color="#9bbcd8")
        for place, each in enumerate(values):
            axis.plot([place] * len(each), each, "o", color="#20435c", markersize=3)
        axis.set_xticks(range(len(programs)), [_words(program) for program in programs])
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
    _save(figure, path)
    return True


def draw_model_cpu(record: Record, path: Path) -> bool:
    """Draw the parts of one image's processing; return whether there were any to draw."""
    parts = {
        name: seconds for name, seconds in record["results"].get("parts_s", {}).items() if not name.endswith("_whole")
    }
    if not parts:
        return False
    figure, (axis,) = _figure(1)
    axis.barh([_words(name) for name in parts], list(parts.values()), color="#9bbcd8")
    axis.invert_yaxis()
    axis.set_xlabel("seconds")
    _save(figure, path)
    return True


def draw_scale(record: Record, path: Path) -> bool:
    """Draw the CPU milliseconds of a tick by the number of workers; return whether there were any to draw."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for name, value in record["results"].items():
        situation, _, rest = name.partition("_")
        workers = rest.removesuffix("_ms_per_tick")
        if workers != rest and workers.isdigit():
            lines.setdefault(situation, []).append((int(workers), float(value)))
    if not lines:
        return False
    figure, (axis,) = _figure(1)
    for situation, points in lines.items():
        axis.plot(*zip(*sorted(points), strict=True), "o-", label=situation)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("workers")
    axis.set_ylabel("CPU ms per tick")
    axis.legend(frameon=False)
    _save(figure, path)
    return True


PLOTS: dict[str, Callable[[Record, Path], bool]] = {
    "vs_ray_data": draw_vs_ray_data,
    "model_cpu": draw_model_cpu,
    "scale": draw_scale,
}


def _figure(panels: int) -> tuple[Any, Any]:
    import matplotlib as mpl

    mpl.use("Agg")
    # The same numbers give the same file.
    mpl.rcParams.update({"svg.hashsalt": "htc", "font.size": 8, "axes.spines.top": False, "axes.spines.right": False})
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, panels, figsize=(3.6 * panels, 2.4), squeeze=False)
    return figure, axes[0]


def _save(figure: Any, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def draw(records: Sequence[Record], folder: Path) -> list[str]:
    """Draw the plots of those records that have one; returns the files' names.

    Of several records of one benchmark the last is drawn.
    """
    latest = {record["benchmark"]: record for record in records if record["benchmark"] in PLOTS}
    if latest:
        folder.mkdir(parents=True, exist_ok=True)
    return [f"{name}.svg" for name, record in latest.items() if PLOTS[name](record, folder / f"{name}.svg")]


def main() -> None:
    """Write the page and its plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--no-plots", action="store_true", help="leave out the plots, which need matplotlib")
    options = parser.parse_args()
    records = load_records(options.results)
    plots = [] if options.no_plots else draw(records, options.page.parent / "plots")
    options.page.write_text(render(records, plots), encoding="utf-8")
    print(f"{options.page}: {len(records)} records, {len(plots)} plots")


if __name__ == "__main__":
    main()
