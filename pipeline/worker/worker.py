"""The worker, a Ray actor: loads the model once, then turns shards into committed tables, two at a time."""

import logging
import os
import platform
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import HtcError
from pipeline.inputs.formats.bands import AS_STORED, BandRule
from pipeline.inputs.shard import Shard
from pipeline.job_spec.job import ImagesSection
from pipeline.job_spec.model import ModelSection
from pipeline.job_spec.tiles import TilesSection
from pipeline.logs import placed
from pipeline.machine_limits import machine_name
from pipeline.messages import (
    Assignment,
    PartialResult,
    ShardFailure,
    ShardResult,
    WorkerFailure,
    WorkerProgress,
    WorkerReady,
)
from pipeline.otel import OtelSettings, begin_in_worker, flush_worker
from pipeline.storage.config import StorageSection
from pipeline.storage.storage import Storage
from pipeline.telemetry import WorkerMetrics
from pipeline.text import one_line
from pipeline.worker.commit_claim import CommitClaim, DriverLiveness
from pipeline.worker.error_boundaries import DeviceLostError, MemberLostError, shard_boundary
from pipeline.worker.log_relay import LogRelay
from pipeline.worker.model_time import ModelTime

if TYPE_CHECKING:
    # The driver imports this module and may run on a machine without torch.
    from pipeline.worker.members import OpenMembers
    from pipeline.worker.segmenter import LoadModel
    from pipeline.worker.shard_processor import ShardProcessor

log = logging.getLogger(__name__)

# Two shards, the calls for progress and for abandoning a commit, and one more so that none waits for another.
MAX_CONCURRENCY = 5
# sysexits.h EX_SOFTWARE; distinguishes a deliberate end from a crash in the driver's log.
DEVICE_LOST_EXIT_CODE = 70


@dataclass(frozen=True)
class WorkerSettings:
    """Everything a worker needs to know.

    run: the run's name.
    input_uri: decides how many reads run at once.
    batch_size: images per inference; None chooses it by the device's memory.
    image_timeout_s: for one image in one step, see `RetrySection`; None for no limit.
    load_model: takes the model section, returns the model; None loads the section's preset and weights.
    open_members: starts the members of an ensemble in processes of their own; None has them in the worker's.
    cpus, gpus: what Ray reserves for this worker; fractions allowed.
    mask_processes: that make the masks' text beside a worker with a GPU; 0 makes it in the worker.
    otel: how this process sends telemetry; None for not at all.
    number: the worker's in its pool. log_format, log_level: the driver's, see `pipeline.logs`.
    model_name: the value of the tables' column `model`, see `pipeline.weights.naming`; "" is the preset.
    search_path: where the factory of a model of one's own is searched, see `pipeline.models.factory`.
    rule: how the bands of an image become its colours.
    tiles: how huge images are cut; None for not at all.
    """

    run: str
    input_uri: str
    output_uri: str
    model: ModelSection
    images: ImagesSection
    storage: StorageSection
    batch_size: int | None = None
    image_timeout_s: float | None = None
    load_model: "LoadModel | None" = None
    open_members: "OpenMembers | None" = None
    cpus: float = 1.0
    gpus: float = 0.0
    mask_processes: int = 0
    otel: OtelSettings | None = None
    number: int = 0
    log_format: str = "text"
    log_level: str = ""
    model_name: str = ""
    search_path: tuple[str, ...] = ()
    rule: BandRule = AS_STORED
    tiles: TilesSection | None = None

    @property
    def model_label(self) -> str:
        """The value of the tables' column `model`."""
        return self.model_name or self.model.preset


class Worker:
    """One model in one process; the driver wraps the class into an actor.

    The constructor does nothing that can fail: an exception there would reach the driver as text only.
    """

    def __init__(self, settings: WorkerSettings, *, driver: DriverLiveness | None = None) -> None:
        """`driver`: records its heartbeats; by default a new one with the store's patience."""
        self._settings = settings
        self._model_time = ModelTime()
        self._processor: ShardProcessor | None = None
        self._images_done: dict[int, int] = {}
        self._claims: dict[int, CommitClaim] = {}
        self._lock = threading.Lock()
        self._driver = driver or DriverLiveness(settings.storage.patience_s)
        self._metrics = WorkerMetrics(settings.run)
        self._relay = LogRelay(settings.log_format, settings.log_level)
        # The raylet starts the workers of its node; when it dies, the system gives its children another parent.
        self._parent = os.getppid()

    def start(self) -> WorkerReady | WorkerFailure:
        """Load the model; failures come back as values, never as exceptions."""
        self._relay.begin(self._settings.run, self._settings.number)
        begin_in_worker(self._settings.otel)
        start = time.perf_counter()
        outcome = _start_boundary(self._load)
        if isinstance(outcome, WorkerFailure):
            return outcome
        self._processor = outcome
        self._model_time.started()
        return WorkerReady(
            outcome.device_name,
            outcome.batch_size,
            load_s=time.perf_counter() - start,
            precision=outcome.precision,
            fast_path=outcome.fast_path,
            host=platform.node(),
            machine=machine_name(outcome.device_name),
        )

    def run_shard(self, shard: Shard, assignment: Assignment) -> ShardResult | PartialResult | ShardFailure:
        """Segment the shard's images, or some of them; a failed attempt is returned as a value.

        Returns:
            A report when the two parts are committed; a partial result with the rows when the driver commits them.
        """
        processor = self._processor
        if processor is None:
            return ShardFailure(shard.index, "bug", "the worker was given a shard before its model was loaded")
        self._heartbeat()
        claim = CommitClaim(self._driver)
        with self._lock:
            self._claims[shard.index] = claim
        try:
            with placed(shard=shard.index, attempt=assignment.attempt):
                return shard_boundary(
                    shard.index,
                    lambda: processor.process(shard, assignment, claim=claim, on_images=self._count(shard.index)),
                )
        except DeviceLostError as error:
            lost = str(error) if isinstance(error, MemberLostError) else "the accelerator is lost"
            log.exception("%s; this process ends so that a new one can take over", lost)
            logging.shutdown()
            os._exit(DEVICE_LOST_EXIT_CODE)
        finally:
            self._metrics.export(processor.totals())
            with self._lock:
                self._images_done.pop(shard.index, None)
                del self._claims[shard.index]

    def progress(self) -> WorkerProgress:
        """Return the images done in the shards in flight, the images that hang, and whether the raylet has died."""
        self._heartbeat()
        hang = report = None
        if self._processor is not None:
            hang, report = self._processor.hang(), self._processor.report()
            # The driver asks about once a second, which is often enough for the metrics as well.
            self._metrics.export(self._processor.totals())
        with self._lock:
            done = dict(self._images_done)
        lost = os.getppid() != self._parent
        return WorkerProgress(done, hang, has_lost_raylet=lost, worker=report, log_lines=self._relay.take())

    def abandon(self, index: int, *, is_queued: bool = False) -> bool:
        """Leave the commit of a shard to the driver; return False when it has begun or the attempt has ended.

        Args:
            is_queued: only when none of its images is done yet; False is returned otherwise.
        """
        with self._lock:
            claim = self._claims.get(index)
            if is_queued and self._images_done.get(index):
                return False
        return claim is not None and claim.abandon()

    def flush(self) -> None:
        """Send the telemetry that waits; called before this process is ended."""
        flush_worker()

    def _heartbeat(self) -> None:
        # A call may have waited here while this process or its node was suspended and other workers got the shards.
        if self._driver.heartbeat():
            with self._lock:
                for claim in self._claims.values():
                    claim.revoke()

    def _count(self, index: int) -> Callable[[int], None]:
        def count(images: int) -> None:
            with self._lock:
                self._images_done[index] = self._images_done.get(index, 0) + images

        return count

    def _load(self) -> "ShardProcessor":
        import torch

        from pipeline.worker.batch_encoding import BatchEncoder
        from pipeline.worker.choose_jpeg import choose_jpeg_decoder
        from pipeline.worker.fast_path import choose_fast_model
        from pipeline.worker.memory import keep_freed_memory
        from pipeline.worker.open_model import open_model
        from pipeline.worker.segmenter import Segmenter, pick_device
        from pipeline.worker.shard_pipeline import WorkerResources
        from pipeline.worker.shard_processor import ShardProcessor

        settings = self._settings
        torch.set_num_threads(max(1, int(settings.cpus)))
        storage, device = Storage(settings.storage), pick_device(settings.gpus)
        if device.type == "cpu":
            keep_freed_memory()
        model, precision = open_model(
            settings.model,
            storage,
            device,
            gpus=settings.gpus,
            load=settings.load_model,
            folders=settings.search_path,
            open_members=settings.open_members,
        )
        segmenter = Segmenter(
            model,
            device,
            precision=precision,
            batch_size=settings.batch_size,
            # Its plans are for one view of an image.
            fast=choose_fast_model(model, device, precision.precision, wants_semantic=settings.model.wants_semantic),
            encoder=BatchEncoder(device, processes=settings.mask_processes) if device.type == "cuda" else None,
            wants_semantic=settings.model.wants_semantic,
        )
        resources = WorkerResources(
            segmenter,
            input_uri=settings.input_uri,
            storage=settings.storage,
            images=settings.images,
            rule=settings.rule,
            tiles=settings.tiles,
            panoptic=settings.model.panoptic,
            image_timeout_s=settings.image_timeout_s,
            cpus=settings.cpus,
            jpeg=choose_jpeg_decoder(settings.images, segmenter.device),
            model_time=self._model_time,
        )
        return ShardProcessor(
            resources,
            output_uri=settings.output_uri,
            run=settings.run,
            model_label=settings.model_label,
            map_tables=settings.model.map_tables,
        )


def _is_users_error(error: ValueError) -> bool:
    """Return whether the message explains the error in the weights or the network without a traceback."""
    from htc_model.config import ModelConfigError
    from htc_model.weights.openmmlab import WeightsError

    return isinstance(error, WeightsError | ModelConfigError)


def _start_boundary(load: "Callable[[], ShardProcessor]") -> "ShardProcessor | WorkerFailure":
    # Wrong weights and unknown presets (both ValueErrors of the network's package) fail in every process. Other
    # errors, such as a card that another process has filled, may not occur in another process.
    try:
        return load()
    except HtcError as error:
        return WorkerFailure(one_line(error), is_permanent=True, exit_code=error.exit_code)
    except ValueError as error:
        if _is_users_error(error):
            return WorkerFailure(str(error), is_permanent=True, exit_code=2)
        log.exception("the model cannot be loaded")
        return WorkerFailure(str(error), is_permanent=True, exit_code=2, traceback=traceback.format_exc())
    except (RuntimeError, OSError, ImportError, MemoryError) as error:
        log.exception("the model cannot be loaded")
        return WorkerFailure(one_line(error), is_permanent=False, traceback=traceback.format_exc())
