"""Where the files of an output lie."""

from collections.abc import Mapping
from typing import Any, Final, Literal

from pipeline.job_spec.map_tables import MAP_TABLES, MapTable, map_tables_of
from pipeline.storage.uris import join

TableName = Literal["images", "instances"] | MapTable
TABLES: Final = ("images", "instances", *MAP_TABLES, "deletions")
"""All tables. A run is removed in this order: readers must not find an image whose instances are gone."""
COMMIT_ORDER: Final[tuple[TableName, ...]] = (*MAP_TABLES, "instances", "images")
"""The tables of rows in the order in which their parts are written: the part of `images` comes last and commits.

Those of maps only in runs that were asked for them.
"""
TOMBSTONE = "pruned.json"


def run_folder(output_uri: str, run: str) -> str:
    """Return the folder of a run's record, manifest and summary."""
    return join(output_uri, "runs", run)


def manifest_folder(output_uri: str, run: str) -> str:
    """Return the folder of a run's manifest."""
    return join(run_folder(output_uri, run), "manifest")


def counts_folder(output_uri: str, run: str) -> str:
    """Return the folder of the files with the counts of a run's committed shards."""
    return join(run_folder(output_uri, run), "counts")


def record_uri(output_uri: str, run: str) -> str:
    """Return the uri of a run's run.json."""
    return join(run_folder(output_uri, run), "run.json")


def tombstone_uri(output_uri: str, run: str) -> str:
    """Return the uri of the file that marks a run as being pruned: readers and drivers ignore the run from then on."""
    return join(run_folder(output_uri, run), TOMBSTONE)


def partition_folder(output_uri: str, table: str, run: str) -> str:
    """Return the folder of a run's files in a table."""
    return join(output_uri, table, f"run={run}")


def tables_of(spec: Mapping[str, Any]) -> tuple[TableName, ...]:
    """Return the tables of rows that a run has, in the order in which their parts are written.

    Args:
        spec: the run's, as run.json holds it; of an earlier release it may lack sections.
    """
    found = map_tables_of(spec.get("model") or {})
    return (*found, "instances", "images")
