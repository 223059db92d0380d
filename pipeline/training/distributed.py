"""Training by several processes, on one machine or many, under Ray Train."""

import contextlib
import json
import os
import shutil
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cluster.connection import ray_cluster
from pipeline.errors import HtcError, RunError
from pipeline.job_spec.job import ComputeSection
from pipeline.planning.worker_plan import WorkerPlan
from pipeline.storage.config import StorageSection
from pipeline.storage.storage import Storage

if TYPE_CHECKING:
    from htc_model.training.loop import OnLine, OnStep
    from htc_model.training.spec import TrainingSpec

POLL_S = 1.0


def train_on_workers(
    spec: "TrainingSpec",
    *,
    storage: StorageSection | None = None,
    on_step: "OnStep | None" = None,
    on_evaluation: "OnLine | None" = None,
) -> Path:
    """Train with `spec.workers` processes; gradients are averaged, so one step sees workers x batch_size images.

    Ray is the cluster that RAY_ADDRESS names, or started here. All machines must see the output folder.
    Nothing is retried: the same command resumes a run whose worker died.

    Args:
        spec: from `load_training_spec`; paths are relative to the current folder.
        storage: how annotations and images are reached.
        on_step: called with the logged steps only.
        on_evaluation: called after each evaluation with its line of metrics.

    Raises:
        HtcError: a worker raised it; see `pipeline.training.run.train`.
        RunError: the cluster cannot be reached or is too small, or a worker died.
    """
    compute = ComputeSection(
        workers=spec.workers, gpus_per_worker=spec.gpus_per_worker, cpus_per_worker=spec.cpus_per_worker
    )
    output = Path(spec.output).absolute()
    output.mkdir(parents=True, exist_ok=True)
    # Only Ray Train's own records.
    records = output / f".ray-{uuid.uuid4().hex[:8]}"
    # Ray Train reads these when it is imported: its second version, and workers that stay in the current folder.
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    try:
        with ray_cluster(compute, shards=spec.workers) as plan:
            _check_room(plan)
            follower = _MetricsFollower(output / "metrics.jsonl", on_step, on_evaluation)
            _fit(spec, plan, records, storage or StorageSection(), follower)
    finally:
        shutil.rmtree(records, ignore_errors=True)
    return output / "weights.safetensors"


def _check_room(plan: WorkerPlan) -> None:
    """Refuse more workers than the cluster has room for; Ray would wait for it forever."""
    import ray

    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    for resource, each in (("CPU", plan.cpus), ("GPU", plan.gpus)):
        available = resources.get(resource, 0.0)
        if plan.workers * each > available:
            raise RunError(
                f"{plan.workers} workers with {each:g} {resource} each need {plan.workers * each:g}, but there are "
                f"{available:g}; lower workers or {resource.lower()}s_per_worker."
            )


def _fit(
    spec: "TrainingSpec", plan: WorkerPlan, records: Path, storage: StorageSection, follower: "_MetricsFollower"
) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    trainer = TorchTrainer(
        _train_one,
        train_loop_config={
            "spec": spec.model_dump(mode="json"),
            "storage": storage.model_dump(mode="json"),
            "folder": str(Path.cwd()),
            "threads": max(1, int(plan.cpus)),
        },
        torch_config=TorchConfig(backend="nccl" if plan.gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=plan.workers,
            use_gpu=plan.gpus > 0,
            resources_per_worker={"CPU": plan.cpus} | ({"GPU": plan.gpus} if plan.gpus else {}),
        ),
        run_config=RunConfig(name="train", storage_path=str(records), failure_config=FailureConfig(max_failures=0)),
    )
    failures: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:  # noqa: BLE001 - passed to the caller
            failures.append(error)

    # In its own thread: in the main one, Ray would handle Ctrl-C itself and end with exit code 0.
    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    while thread.is_alive():
        follower.poll()
        thread.join(POLL_S)
    follower.poll()
    if failures:
        raise _translate(failures[0]) from failures[0]


def _translate(error: BaseException) -> BaseException:
    """Return the worker's own error from Ray's exception, or a RunError with its last line."""
    reasons: Mapping[int, BaseException] = getattr(error, "worker_failures", {})
    for reason in reasons.values():
        cause: BaseException | None = reason
        while cause is not None:
            if isinstance(cause, HtcError):
                return cause
            cause = cause.__cause__
    if reasons:
        rank, reason = next(iter(reasons.items()))
        last = (str(reason).strip() or type(reason).__name__).splitlines()[-1]
        return RunError(f"Training worker {rank} failed: {last} The same command resumes from the last checkpoint.")
    return error


def _train_one(settings: dict[str, Any]) -> None:
    """Train in one worker; Ray has joined the processes by torch.distributed before."""
    import torch
    from ray.train.torch import get_device

    from htc_model.training.spec import TrainingSpec
    from pipeline.training.single import train_alone

    # The spec's paths are relative to the folder of the command.
    with contextlib.suppress(OSError):
        os.chdir(settings["folder"])
    torch.set_num_threads(settings["threads"])
    spec = TrainingSpec.model_validate(settings["spec"])
    train_alone(spec, storage=Storage(StorageSection(**settings["storage"])), device=str(get_device()))


class _MetricsFollower:
    """Passes on the steps and evaluations that the first worker has logged since the last poll."""

    def __init__(self, path: Path, on_step: "OnStep | None", on_evaluation: "OnLine | None" = None) -> None:
        self._path = path
        self._on_step = on_step
        self._on_evaluation = on_evaluation
        # What an earlier command logged is not shown again.
        self._evaluated = {json.dumps(line) for line in _evaluations(path)}
        self._read_until = time.time()
        self._step = 0

    def poll(self) -> None:
        """Call `on_evaluation` with each new evaluation, and `on_step` with the newest logged step, if it is new."""
        from htc_model.training.metrics_file import read_metrics

        if not self._path.exists() or self._path.stat().st_mtime <= self._read_until:
            return
        self._read_until = self._path.stat().st_mtime
        for line in _evaluations(self._path):
            if json.dumps(line) not in self._evaluated:
                self._evaluated.add(json.dumps(line))
                if self._on_evaluation is not None:
                    self._on_evaluation(line)
        lines = [line for line in read_metrics(self._path) if "losses" in line]
        if self._on_step is not None and lines and lines[-1]["step"] != self._step:
            self._step = lines[-1]["step"]
            self._on_step(self._step, lines[-1]["steps"], lines[-1]["losses"])


def _evaluations(path: Path) -> list[dict[str, Any]]:
    from htc_model.training.metrics_file import read_metrics

    return [line for line in read_metrics(path) if "evaluation" in line]
