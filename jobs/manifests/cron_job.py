"""A schedule for KubeRay without RayCronJob: a CronJob whose pod creates a RayJob and waits for its end."""

from jobs.manifests.cluster_shape import ClusterShape
from jobs.manifests.cron_fields import portable_cron
from jobs.manifests.pods import Manifest, labels_of
from jobs.manifests.starter import build_starter_job_spec, build_starter_resources
from jobs.scheduling.schedule import Schedule

# How late the CronJob controller may be without missing a time; it checks every 10 s.
MIN_STARTING_DEADLINE_S = 60
CONCURRENCY = {"skip": "Forbid", "queue": "Forbid", "replace": "Replace"}


def build_cron_job(schedule: Schedule, shape: ClusterShape, entrypoint: str) -> list[Manifest]:
    """Return the CronJob and what its pod needs, see `jobs.manifests.starter`.

    The pod lives as long as its RayJobs, so that concurrencyPolicy counts it.
    """
    return [
        *build_starter_resources(shape, entrypoint),
        {
            "apiVersion": "batch/v1",
            "kind": "CronJob",
            "metadata": {"name": shape.name, "namespace": shape.namespace, "labels": labels_of(shape)},
            "spec": {
                "schedule": portable_cron(schedule.cron, "Kubernetes"),
                "timeZone": schedule.time_zone,
                "suspend": schedule.is_paused,
                "concurrencyPolicy": CONCURRENCY[schedule.overlap],
                "startingDeadlineSeconds": starting_deadline_s(schedule),
                "successfulJobsHistoryLimit": 3,
                "failedJobsHistoryLimit": 3,
                "jobTemplate": {"spec": build_starter_job_spec(shape, _arguments(schedule))},
            },
        },
    ]


def starting_deadline_s(schedule: Schedule) -> int:
    """Return how many seconds after its time a missed firing may start."""
    if schedule.catch_up == "none":
        return MIN_STARTING_DEADLINE_S
    return max(MIN_STARTING_DEADLINE_S, int(schedule.catch_up_window_s))


def stop_deadline_s(schedule: Schedule) -> int | None:
    """Return the seconds after which Kubernetes ends the job, counted from its start, not from its scheduled time."""
    is_stopped = schedule.deadline_s is not None and schedule.on_deadline == "stop"
    return int(schedule.deadline_s or 0) if is_stopped else None


def _arguments(schedule: Schedule) -> tuple[str, ...]:
    own_run = ("--run-of-its-own",) if schedule.mode == "full" else ()
    jitter = ("--jitter-s", f"{schedule.jitter_s:g}") if schedule.jitter_s else ()
    return (*own_run, *jitter)
