"""The Ray actor: loads the model once, then turns shards into committed tables, two at a time."""

import logging
import os
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import HtcError
from pipeline.inputs.shard import Shard
from pipeline.job_spec.job import JobSpec
from pipeline.messages import (
    Assignment,
    PartialResult,
    ShardFailure,
    ShardResult,
    WorkerFailure,
    WorkerProgress,
    WorkerReady,
)
from pipeline.redaction import log_without_secrets
from pipeline.storage.storage import Storage
from pipeline.telemetry import WorkerMetrics
from pipeline.text import one_line
from pipeline.worker.commit_claim import CommitClaim, DriverLiveness
from pipeline.worker.error_boundaries import DeviceLostError, shard_boundary

if TYPE_CHECKING:
    # The driver imports this module and may run on a machine without torch.
    from pipeline.worker.segmenter import LoadModel
    from pipeline.worker.shard_processor import ShardProcessor

log = logging.getLogger(__name__)

# Two shards, the questions for progress and for a commit, and one to spare so that none waits for another.
MAX_CONCURRENCY = 5
# sysexits.h EX_SOFTWARE; tells the driver's log a deliberate end from a crash.
DEVICE_LOST_EXIT_CODE = 70


@dataclass(frozen=True)
class WorkerSettings:
    """Everything a worker needs to know.

    run: the run's name.
    model_label: what the tables' `model` column says.
    cpus, gpus: what Ray reserved for this worker; fractions allowed.
    load_model: takes the model section, returns the model; None loads the spec's preset and weights.
    """

    spec: JobSpec
    run: str
    model_label: str
    cpus: float
    gpus: float
    load_model: "LoadModel | None" = None


class Worker:
    """One model in one process; the driver wraps the class into an actor.

    The constructor does nothing that can fail: an exception there would reach the driver as text only.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._processor: ShardProcessor | None = None
        self._images_done: dict[int, int] = {}
        self._claims: dict[int, CommitClaim] = {}
        self._lock = threading.Lock()
        self._contact = DriverLiveness(settings.spec.storage.patience_s)
        self._metrics = WorkerMetrics(settings.run)
        # The raylet starts the workers of its node; when it dies, the system gives its children another parent.
        self._parent = os.getppid()

    def start(self) -> WorkerReady | WorkerFailure:
        """Load the model; failures come back as values, never as exceptions."""
        log_without_secrets()
        start = time.perf_counter()
        outcome = _at_start_border(self._load)
        if isinstance(outcome, WorkerFailure):
            return outcome
        self._processor = outcome
        return WorkerReady(outcome.device_name, outcome.batch_size, time.perf_counter() - start)

    def run_shard(self, shard: Shard, assignment: Assignment) -> ShardResult | PartialResult | ShardFailure:
        """Segment the shard's images, or some of them; what ends an attempt comes back as a value.

        Returns:
            A report when the two parts are committed; a piece with the rows when the driver commits them.
        """
        processor = self._processor
        if processor is None:
            return ShardFailure(shard.index, "bug", "the worker was given a shard before its model was loaded")
        self._hear()
        claim = CommitClaim(self._contact)
        with self._lock:
            self._claims[shard.index] = claim
        try:
            return shard_boundary(
                shard.index,
                lambda: processor.process(shard, assignment, claim=claim, on_images=self._count(shard.index)),
            )
        except DeviceLostError:
            log.exception("the accelerator is lost; this process ends so that a new one can take over")
            logging.shutdown()
            os._exit(DEVICE_LOST_EXIT_CODE)
        finally:
            self._metrics.tell(processor.totals())
            with self._lock:
                self._images_done.pop(shard.index, None)
                del self._claims[shard.index]

    def progress(self) -> WorkerProgress:
        """Images done in the shards that are under way, what hangs, and whether the raylet is still there."""
        self._hear()
        hang = None
        if self._processor is not None:
            hang = self._processor.hang()
            # The driver asks about once a second, which is often enough for them as well.
            self._metrics.tell(self._processor.totals())
        with self._lock:
            return WorkerProgress(dict(self._images_done), hang, has_lost_raylet=os.getppid() != self._parent)

    def abandon(self, index: int, *, is_queued: bool = False) -> bool:
        """Leave the commit of a shard to the driver; False when it has begun or the attempt has ended.

        Args:
            is_queued: only when none of its images is done yet; False is returned otherwise.
        """
        with self._lock:
            claim = self._claims.get(index)
            if is_queued and self._images_done.get(index):
                return False
        return claim is not None and claim.abandon()

    def _hear(self) -> None:
        # A question may have waited here while this process, or its node, was away and the shards were given to others.
        if self._contact.hear():
            with self._lock:
                for claim in self._claims.values():
                    claim.lose()

    def _count(self, index: int) -> Callable[[int], None]:
        def count(images: int) -> None:
            with self._lock:
                self._images_done[index] = self._images_done.get(index, 0) + images

        return count

    def _load(self) -> "ShardProcessor":
        import torch

        from pipeline.worker.segmenter import Segmenter, load_model, pick_device
        from pipeline.worker.shard_processor import ShardProcessor

        settings = self._settings
        compute, section = settings.spec.compute, settings.spec.model
        torch.set_num_threads(max(1, int(settings.cpus)))
        if settings.load_model is None:
            model = load_model(section, Storage(settings.spec.storage))
        else:
            model = settings.load_model(section)
        segmenter = Segmenter(
            model,
            pick_device(settings.gpus),
            precision=section.precision,
            batch_size=None if compute.batch_size == "auto" else compute.batch_size,
        )
        return ShardProcessor(
            segmenter, settings.spec, run=settings.run, model_label=settings.model_label, cpus=settings.cpus
        )


def _is_for_a_person(error: ValueError) -> bool:
    """Whether the message says all there is to say about the weights or the network, without a traceback."""
    from htc_model.config import ModelConfigError
    from htc_model.weights.openmmlab import WeightsError

    return isinstance(error, WeightsError | ModelConfigError)


def _at_start_border(load: "Callable[[], ShardProcessor]") -> "ShardProcessor | WorkerFailure":
    # Wrong weights and unknown presets (both ValueErrors of the network's package) fail everywhere in the
    # same way; anything else, such as a card that somebody else fills, may go well in another process.
    try:
        return load()
    except HtcError as error:
        return WorkerFailure(one_line(error), is_permanent=True, exit_code=error.exit_code)
    except ValueError as error:
        if _is_for_a_person(error):
            return WorkerFailure(str(error), is_permanent=True, exit_code=2)
        log.exception("the model cannot be loaded")
        return WorkerFailure(str(error), is_permanent=True, exit_code=2, traceback=traceback.format_exc())
    except (RuntimeError, OSError, ImportError, MemoryError) as error:
        log.exception("the model cannot be loaded")
        return WorkerFailure(one_line(error), is_permanent=False, traceback=traceback.format_exc())
