"""Whole outputs: survey, compaction, removal, publications, doctor."""

from typing import TYPE_CHECKING

from htc_model.lazy_exports import attach

if TYPE_CHECKING:
    from pipeline.maintenance.compaction import compact_run
    from pipeline.maintenance.needed_runs import needed_runs
    from pipeline.maintenance.publications import Publication
    from pipeline.maintenance.removal import remove_run
    from pipeline.maintenance.survey import RunInfo, survey_runs

__all__ = ["Publication", "RunInfo", "compact_run", "needed_runs", "remove_run", "survey_runs"]

__getattr__ = attach(
    __name__,
    {
        "compaction": ["compact_run"],
        "needed_runs": ["needed_runs"],
        "publications": ["Publication"],
        "removal": ["remove_run"],
        "survey": ["RunInfo", "survey_runs"],
    },
)
