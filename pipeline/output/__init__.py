"""The output folder: tables, records, and reading them."""

from typing import TYPE_CHECKING

from htc_model.lazy_exports import attach

if TYPE_CHECKING:
    from pipeline.output.commit import commit_shard
    from pipeline.output.results import Results, open_results
    from pipeline.output.run_record import RunRecord
    from pipeline.output.schema import IMAGES_SCHEMA, INSTANCES_SCHEMA, SCHEMA_VERSION
    from pipeline.output.views import connect, open_database

__all__ = [
    "IMAGES_SCHEMA",
    "INSTANCES_SCHEMA",
    "SCHEMA_VERSION",
    "Results",
    "RunRecord",
    "commit_shard",
    "connect",
    "open_database",
    "open_results",
]

__getattr__ = attach(
    __name__,
    {
        "commit": ["commit_shard"],
        "results": ["Results", "open_results"],
        "run_record": ["RunRecord"],
        "schema": ["IMAGES_SCHEMA", "INSTANCES_SCHEMA", "SCHEMA_VERSION"],
        "views": ["connect", "open_database"],
    },
)
