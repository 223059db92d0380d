"""Specs for the end-to-end tests, and their tables as plain rows."""

from pathlib import Path

from pipeline.job_spec.job import JobSpec, load_spec
from pipeline.output.results import open_results

Row = dict[str, object]
# What may differ between a run that met faults and one that did not.
UNSTABLE = {"run", "attempts"}


def spec_with(folder: Path, **overrides: object) -> JobSpec:
    """Images in folder/in, tables in folder/out, shards of four, two workers; `__` in an override is a dot."""
    values: dict[str, object] = {
        "input.uri": str(folder / "in"),
        "output.uri": str(folder / "out"),
        "model.preset": "htc_lite0_fpn",
        "model.weights": "untrained",
        "compute.workers": 2,
        "compute.shard_images": 4,
    }
    values.update({key.replace("__", "."): value for key, value in overrides.items()})
    return load_spec(None, values)


def image_rows(spec: JobSpec, run: str | None = None) -> list[Row]:
    """All rows of `images`, as a reader of the output sees them."""
    rows: list[Row] = open_results(spec.output.uri).images(run).to_pylist()
    return rows


def instance_rows(spec: JobSpec, run: str | None = None) -> list[Row]:
    """All rows of `instances`."""
    rows: list[Row] = open_results(spec.output.uri).instances(run).to_pylist()
    return rows


def stable(rows: list[Row]) -> list[Row]:
    """The rows without what faults and names of runs may change."""
    return [{name: value for name, value in row.items() if name not in UNSTABLE} for row in rows]


def statuses(spec: JobSpec, run: str | None = None) -> dict[str, str]:
    """Status by file name."""
    return {Path(str(row["uri"])).name: str(row["status"]) for row in image_rows(spec, run)}
