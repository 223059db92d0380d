"""ModelTime: a worker's wall time by what its model did or waited for.

Stages overlap: while the model computes, the next images are read and decoded. Busy seconds of the stages therefore do
not show what holds a worker up; what the model waits for does. At each moment one cause counts, the first that applies:

    start_up            the model is not loaded
    infer, encode       a batch is in the model; its thread waits for the masks of earlier images
    upload              a batch is being copied to the accelerator
    read, decode        the shard whose turn it is waits for its next image, which is not read or not decoded yet
    infer               it has an image, and is about to add it to a batch
    read                the shards at hand have not asked for their first image yet
    encode, write       all images of the shards at hand went through the model; their masks, then their tables
    no_shard            the worker holds no shard

Other threads report a change when it happens; that costs about a microsecond, a few times an image.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, Protocol

from pipeline.messages import CAUSES, Cause


class Awaited(Protocol):
    """The images that the shard whose turn it is waits for."""

    @property
    def awaits(self) -> Literal["read", "decode"]:
        """What the next image still needs."""


class ShardTime:
    """One shard on its way through the worker."""

    def __init__(self, owner: "ModelTime") -> None:
        self._owner = owner
        self.phase: Literal["begin", "feed", "encode", "write"] = "begin"

    def feeding(self) -> None:
        """Record that it asks for images."""
        if self.phase == "begin":
            self._enter("feed")

    def fed(self) -> None:
        """Record that all of its images are loaded."""
        self._enter("encode")

    def writing(self) -> None:
        """Record that its tables are being written."""
        self._enter("write")

    def _enter(self, phase: Literal["feed", "encode", "write"]) -> None:
        self.phase = phase
        self._owner.note()


class ModelTime:
    """Adds up the seconds by cause; used from all threads of a worker."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        """Begin with `start_up`. `clock`: in seconds."""
        self._clock = clock
        self._lock = threading.Lock()
        self._seconds: dict[Cause, float] = dict.fromkeys(CAUSES, 0.0)
        self._cause: Cause = "start_up"
        # When the cause began, and until when its seconds are counted.
        self._since = self._counted = clock()
        self._is_started = False
        self._busy: Literal["infer", "encode"] | None = None
        self._is_uploading = False
        self._awaited: Awaited | None = None
        self._shards: list[ShardTime] = []

    def started(self) -> None:
        """Record that the model is loaded."""
        self._is_started = True
        self.note()

    @contextmanager
    def shard(self) -> Iterator[ShardTime]:
        """Hold a shard during the block."""
        shard = ShardTime(self)
        with self._lock:
            self._shards.append(shard)
        self.note()
        try:
            yield shard
        finally:
            with self._lock:
                self._shards.remove(shard)
            self.note()

    @contextmanager
    def busy(self, cause: Literal["infer", "encode"]) -> Iterator[None]:
        """Count the block, which runs on the model's thread; blocks may be nested."""
        former, self._busy = self._busy, cause
        self.note()
        try:
            yield
        finally:
            self._busy = former
            self.note()

    @contextmanager
    def uploading(self) -> Iterator[None]:
        """Copy a batch to the accelerator during the block."""
        self._is_uploading = True
        self.note()
        try:
            yield
        finally:
            self._is_uploading = False
            self.note()

    @contextmanager
    def awaiting(self, awaited: Awaited) -> Iterator[None]:
        """Wait for the next image during the block."""
        self._awaited = awaited
        self.note()
        try:
            yield
        finally:
            self._awaited = None
            self.note()

    def note(self) -> None:
        """Take note that something has changed: the seconds until now belong to the cause until now."""
        with self._lock:
            now = self._clock()
            self._seconds[self._cause] += now - self._counted
            self._counted = now
            cause = self._find_cause()
            if cause != self._cause:
                self._cause, self._since = cause, now

    def so_far(self) -> tuple[tuple[float, ...], Cause, float]:
        """Return the seconds in the order of `CAUSES`, the cause of now, and for how many seconds."""
        self.note()
        with self._lock:
            return tuple(self._seconds.values()), self._cause, self._counted - self._since

    def _find_cause(self) -> Cause:
        awaited, phases = self._awaited, {shard.phase for shard in self._shards}
        if not self._is_started:
            return "start_up"
        if self._busy is not None:
            return self._busy
        if self._is_uploading:
            return "upload"
        if awaited is not None:
            return awaited.awaits
        for phase, cause in _OF_PHASE:
            if phase in phases:
                return cause
        return "no_shard"


_OF_PHASE: tuple[tuple[str, Cause], ...] = (
    ("feed", "infer"),
    ("begin", "read"),
    ("encode", "encode"),
    ("write", "write"),
)
