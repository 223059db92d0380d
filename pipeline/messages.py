"""The messages between driver and workers; plain values that survive pickling."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, get_args

from pipeline.errors import ImageStatus
from pipeline.inputs.image_ref import ReadVersion

if TYPE_CHECKING:
    from pipeline.output.map_rows import MapRows
    from pipeline.output.rows import ImageRow, InstanceRow

# Seconds of a shard by stage. Stages overlap, so their sum exceeds the wall clock: read and decode are summed
# over threads, wait is the time the model stood idle for want of decoded images.
Stage = Literal["read", "decode", "wait", "infer", "encode", "write"]
STAGES: tuple[Stage, ...] = ("read", "decode", "wait", "infer", "encode", "write")

# What a worker's model does, or waits for: exactly one at each moment, so that the seconds add up to the worker's wall
# time. start_up: until it has its model. read, decode: the next image. upload: its copy to the accelerator. infer: the
# network computes. encode: the masks of images before. write: the tables of its last shard. no_shard: it holds none,
# because the input is still being listed, or shards wait for their next attempt. tail: no shard is left for it.
Cause = Literal["start_up", "read", "decode", "upload", "infer", "encode", "write", "no_shard", "tail"]
CAUSES: Final[tuple[Cause, ...]] = get_args(Cause)


class WorkerReport(NamedTuple):
    """A worker as it is now; a tuple, because thousands of workers send one every few seconds.

    seconds: its wall time so far by cause, in the order of `CAUSES`; only the driver knows the last one.
    cause: of now. cause_s: for how long.
    images: done since it started, discarded attempts included.
    batch_images, batch_slots: images in the batches that ran, and how many they had room for.
    memory_bytes: resident memory of the process.
    gpu_share: how busy the whole GPU is, 0 to 1; None without NVML. gpu_bytes: its memory that this process holds.
    tiles_done, tiles_total: of the images that are being cut into tiles now.
    """

    seconds: tuple[float, ...]
    cause: Cause = "start_up"
    cause_s: float = 0.0
    images: int = 0
    batch_images: int = 0
    batch_slots: int = 0
    memory_bytes: int = 0
    gpu_share: float | None = None
    gpu_bytes: int = 0
    tiles_done: int = 0
    tiles_total: int = 0


@dataclass(frozen=True)
class ImageFailure:
    """One image that has no instances because something is wrong with it.

    uri: the image.
    status: its row's status.
    reason: its row's error, one line.
    traceback: set when the exception was unforeseen, that is, a bug of this program.
    read: the version that was read, None when nothing was.
    """

    uri: str
    status: ImageStatus
    reason: str
    traceback: str | None = None
    read: ReadVersion | None = None


@dataclass(frozen=True)
class ShardResult:
    """One shard, committed.

    index: the shard.
    statuses: number of images by status.
    instances: rows written to `instances`.
    stage_s: seconds by stage.
    bytes_read: encoded bytes of the images.
    seconds: wall time from the shard's start to its commit.
    failures: every image whose status is not ok.
    repeats: how many of these were not ok before either, see `ImageRef.failed_before`.
    batch_size: the batch size in use at the end. memory_bytes: the resident memory of the worker's process then.
    worker: the worker at the end of the shard.
    """

    index: int
    statuses: Mapping[ImageStatus, int]
    instances: int
    stage_s: Mapping[Stage, float]
    bytes_read: int
    seconds: float
    failures: tuple[ImageFailure, ...] = ()
    repeats: int = 0
    batch_size: int = 1
    memory_bytes: int = 0
    worker: WorkerReport | None = None

    @property
    def images(self) -> int:
        """Images of the shard, whatever their status."""
        return sum(self.statuses.values())

    @property
    def new_errors(self) -> int:
        """Images that are not ok and are no repeats: these count against the error budget."""
        return self.images - self.statuses.get("ok", 0) - self.repeats


@dataclass(frozen=True)
class PartialResult:
    """Some or all of a shard's images, done but not committed: the driver commits them with the others.

    positions: the images by their place in the shard, ascending.
    report: as of a committed shard.
    image_rows: one per position; instance_rows: of all of them, in the same order; map_rows likewise.
    """

    index: int
    positions: tuple[int, ...]
    report: ShardResult
    image_rows: "tuple[ImageRow, ...]"
    instance_rows: "tuple[InstanceRow, ...]"
    map_rows: "MapRows" = field(default_factory=dict)


@dataclass(frozen=True)
class ShardFailure:
    """One attempt that ended without a commit.

    kind: "storage" when reading failed for now, "commit" when the tables could not be written, "bug" for an unforeseen
        exception, "death" when the worker's process or node went away, "hang" when it was ended because an image took
        too long, "abandoned" when the driver asked to leave the commit to another attempt, "orphaned" when the worker
        was cut off from the driver for so long that another worker may be doing the shard.
    reason: one line.
    is_charged: whether the attempt counts against the shard; the loss of a preempted node does not.
    suspects: positions in the shard of the images that were being processed, when that is known.
    """

    index: int
    kind: Literal["storage", "commit", "bug", "death", "hang", "abandoned", "orphaned"]
    reason: str
    traceback: str | None = None
    is_charged: bool = True
    suspects: tuple[int, ...] = ()


@dataclass(frozen=True)
class WorkerReady:
    """The worker has loaded its model.

    device: "cpu" or "cuda" with the card's name.
    batch_size: the batch size it starts with.
    load_s: seconds from the start of loading until the model was ready.
    precision: what the network computes in, and why: "fp32, TF32 off; ...".
    fast_path: "on", "off (reason)", or "" where there is none, see `pipeline.worker.fast_path`.
    host: the machine's name.
    machine: its CPU or GPU, see `pipeline.machine_limits.machine_name`.
    """

    device: str
    batch_size: int
    load_s: float
    precision: str = ""
    fast_path: str = ""
    host: str = ""
    machine: str = ""


@dataclass(frozen=True)
class WorkerFailure:
    """The worker could not load its model.

    reason: one sentence for the user.
    is_permanent: whether every other worker would fail in the same way (wrong weights, unknown preset).
    exit_code: of the run when it ends for this.
    """

    reason: str
    is_permanent: bool
    exit_code: int = 1
    traceback: str | None = None


@dataclass(frozen=True)
class Hang:
    """Images that take longer than the spec allows.

    index: their shard; positions: their places in it, several for a batch.
    reason: one line, with the seconds.
    is_shared: whether images of another shard of the worker are in the same batch; either may be the cause.
    """

    index: int
    positions: tuple[int, ...]
    reason: str
    is_shared: bool = False


@dataclass(frozen=True)
class WorkerProgress:
    """The progress of one worker.

    images_done: images done in shards that are not committed yet, by shard.
    hang: the images that hang, if any do.
    has_lost_raylet: whether the raylet that started the worker's process is dead; Ray ends such a process within a
        second or so, and declares its node dead much later.
    worker: the worker itself; None before it has its model.
    log_lines: what the worker logged since it was last asked, each a line of JSON; none where the log is text.
    """

    images_done: Mapping[int, int] = field(default_factory=dict)
    hang: Hang | None = None
    has_lost_raylet: bool = False
    worker: WorkerReport | None = None
    log_lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Assignment:
    """One shard, or a piece of it, for one worker.

    attempt: 1 for the first, counting attempts that were not charged too.
    is_last: whether the shard is given up when this attempt fails.
    positions: the images to do, by their place in the shard; empty for all of them.
    is_speculative: whether another worker is doing the same shard. is_sampled: whether it was sampled at random.
    traceparent: the W3C context of the attempt's span; empty without telemetry.
    """

    index: int
    attempt: int
    is_last: bool
    positions: tuple[int, ...] = ()
    is_speculative: bool = False
    is_sampled: bool = False
    traceparent: str = ""

    @property
    def is_committed_by_worker(self) -> bool:
        """Whether the worker writes the tables itself; else it sends its rows, and the driver does."""
        return not self.positions and not self.is_speculative


@dataclass(frozen=True)
class ShardOutcome:
    """A shard whose images are all settled, for the driver to commit.

    pieces: the images that are done. verdicts: reasons of those that fail, by position.
    rest: why all others fail, when the shard is given up.
    """

    index: int
    attempts: int
    pieces: Sequence[PartialResult] = ()
    verdicts: Mapping[int, str] = field(default_factory=dict)
    rest: ShardFailure | None = None


@dataclass(frozen=True)
class CommitRequest:
    """A speculative copy is done before the shard itself: `worker` must leave the commit to the driver."""

    worker: int
    index: int
