"""Which images a run does: manifest, shards, and the history of earlier runs."""

from typing import TYPE_CHECKING

from htc_model.lazy_exports import attach

if TYPE_CHECKING:
    from pipeline.planning.incremental import IncrementalPlan, NewRun
    from pipeline.planning.input_changes import InputChanges, compare_input
    from pipeline.planning.manifest import Manifest, ManifestReader
    from pipeline.planning.planner import Planner
    from pipeline.planning.shard_size import ShardSizing
    from pipeline.planning.survey import InputSurvey, survey_input
    from pipeline.planning.worker_plan import WorkerPlan, plan_workers

__all__ = [
    "IncrementalPlan",
    "InputChanges",
    "InputSurvey",
    "Manifest",
    "ManifestReader",
    "NewRun",
    "Planner",
    "ShardSizing",
    "WorkerPlan",
    "compare_input",
    "plan_workers",
    "survey_input",
]

__getattr__ = attach(
    __name__,
    {
        "incremental": ["IncrementalPlan", "NewRun"],
        "input_changes": ["InputChanges", "compare_input"],
        "manifest": ["Manifest", "ManifestReader"],
        "planner": ["Planner"],
        "shard_size": ["ShardSizing"],
        "survey": ["InputSurvey", "survey_input"],
        "worker_plan": ["WorkerPlan", "plan_workers"],
    },
)
