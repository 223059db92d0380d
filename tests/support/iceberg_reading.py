"""An output of several runs, and its Iceberg tables as pyiceberg reads them."""

from pathlib import Path
from typing import Any

from pyiceberg.catalog import load_catalog

from jobs.maintenance.publish import publish_output
from tests.support.builders.finished_runs import finish_run, write_inputs

# The exit code of publishing while the run "cut" of `make_runs` is left out.
LEFT_OUT = 1


def make_runs(tmp_path: Path) -> Path:
    """Make a folder with an awkward name, with two complete runs and an unfinished one in its `out`."""
    folder = tmp_path / "a b#c%20 ü[1]"
    images = write_inputs(folder / "in", 4)
    for night in range(2):
        finish_run(images, str(folder / "out"), f"night-{night}", day=night, is_ok=lambda uri: "0001" not in uri)
    finish_run(images, str(folder / "out"), "cut", day=2, only_shards=1)
    return folder


def catalog_of(folder: Path) -> str:
    """The URL of the folder's catalog, as in SQLAlchemy."""
    return f"sqlite:///{folder}/catalog.db".replace("%", "%25")


def publish(folder: Path, **options: Any) -> int:
    """Do what `htc publish` does."""
    return publish_output(str(folder / "out"), catalog_of(folder), **options)


def load(folder: Path, table: str) -> Any:
    """Open a table as described in the documentation."""
    return load_catalog("htc", type="sql", uri=catalog_of(folder)).load_table(f"htc.{table}")


def published(folder: Path, table: str = "images") -> list[str]:
    """All rows, as sorted text."""
    return sorted(map(str, load(folder, table).scan().to_arrow().to_pylist()))


def runs_in(folder: Path, table: str = "images") -> set[str]:
    """The runs of the rows."""
    return set(load(folder, table).scan(selected_fields=("run",)).to_arrow().column("run").to_pylist())


def snapshots(folder: Path, table: str = "images") -> list[Any]:
    """All snapshots, oldest first."""
    return list(load(folder, table).metadata.snapshots)
