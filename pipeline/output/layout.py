"""Where the files of an output lie."""

from typing import Literal

from pipeline.storage.uris import join

TOMBSTONE = "pruned.json"


def run_folder(output_uri: str, run: str) -> str:
    """Return the folder of a run's record, manifest and summary."""
    return join(output_uri, "runs", run)


def tombstone_uri(output_uri: str, run: str) -> str:
    """Name the file that says that a run is being pruned: from then on nobody takes it for a run."""
    return join(run_folder(output_uri, run), TOMBSTONE)


TableName = Literal["images", "instances"]
TABLES = ("images", "instances", "deletions")
"""The folders of an output's tables, in the order in which a run's files are removed from them."""


def partition_folder(output_uri: str, table: str, run: str) -> str:
    """Name the folder of a run's files in a table."""
    return join(output_uri, table, f"run={run}")
