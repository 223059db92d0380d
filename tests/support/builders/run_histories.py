"""Histories of a run in one process: drivers and workers that die at any write, failing stores, late orphans.

What a process of its own would be is a flag here: a driver that has died writes and deletes nothing any more, however
much of its code is still unwound. So hundreds of deaths cost what one real process does.
"""

import errno
import os
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any, ClassVar

import pytest

import pipeline.driver.shard_queue
import pipeline.planning.manifest
import pipeline.runs.lease
import pipeline.runs.run
import pipeline.worker.shard_pipeline
from htc_model.config import load_preset
from htc_model.structures import ImageBatch, RawDetections
from pipeline.driver.events import Event
from pipeline.errors import StorageError, TransientStorageError
from pipeline.inputs.read import fetch_image
from pipeline.job_spec.model import ModelSection
from pipeline.runs.cleanup import remove_leftovers
from pipeline.storage.storage import Storage
from tests.chaos.model import ContentModel
from tests.chaos.plan import POISON_SIZE, Plan
from tests.support.fakes.in_process_pool import Death, InProcessPool, Member


class DriverDeath(BaseException):
    """The driver's process has died."""


@dataclass
class Fate:
    """What happens in one history; budgets are for one session.

    is_poisoned: one image kills every worker that infers it.
    seen: counts of everything that happened, by name.
    """

    dice: Random
    is_poisoned: bool
    seen: Counter[str] = field(default_factory=Counter)
    is_driver_dead: bool = False
    is_disk_full: bool = False
    is_in_worker: bool = False
    is_in_orphan: bool = False
    deaths_left: int = 0
    reads_left: int = 0
    writes_left: int = 0
    driver_deaths_left: int = 0

    def begin_session(self, *, is_calm: bool) -> None:
        """Another driver takes over; a calm one meets nothing but poison."""
        self.is_driver_dead = False
        self.is_disk_full = not is_calm and self.dice.random() < 0.1
        # Few enough that no shard uses up its attempts and no image is accused by chance.
        self.deaths_left = 0 if is_calm else 1 if self.is_poisoned else 3
        self.reads_left = self.writes_left = self.driver_deaths_left = 0 if is_calm else 1

    def strike(self, name: str, chance: float) -> bool:
        """Whether it happens now."""
        is_struck = self.dice.random() < chance
        self.seen[name] += is_struck
        return is_struck

    def die(self, where: str) -> None:
        """Perhaps end the process that is here: a worker's, or the driver's."""
        if self.is_in_orphan:
            return
        if self.is_in_worker and self.deaths_left and self.strike(f"worker {where}", 0.05):
            self.deaths_left -= 1
            raise Death
        if self.driver_deaths_left and self.strike(f"driver {where}", 0.03 if self.is_in_worker else 0.06):
            self.driver_deaths_left -= 1
            self.is_driver_dead = True
            raise DriverDeath


@dataclass(frozen=True)
class FatedLoad:
    """Loads a model that may die at an image."""

    fate: Fate
    identity: ClassVar[str] = "by content"

    def __call__(self, section: ModelSection) -> "FatedModel":
        return FatedModel(load_preset(section.preset), Plan(), self.fate)


@dataclass
class FatedModel(ContentModel):
    """`ContentModel` in a worker with a fate."""

    fate: Fate

    def infer(self, batch: ImageBatch) -> list[RawDetections]:
        if self.fate.is_poisoned and POISON_SIZE in batch.original_sizes:
            raise Death
        self.fate.die("at an image")
        return super().infer(batch)


class FatedPool(InProcessPool):
    """Two workers that take turns at random; shards held by a dead driver's workers are done later, or never."""

    fate: Fate
    orphans: list[tuple[Member, Any, Any]] = []  # noqa: RUF012 - shared by all pools

    def events(self, timeout_s: float) -> list[Event]:
        if self.orphans and self.fate.dice.random() < 0.2:
            self._finish_orphan(*self.orphans.pop())
        members = list(self._members.items())
        self.fate.dice.shuffle(members)
        self._members = dict(members)
        return super().events(timeout_s)

    def shut_down(self) -> None:
        if self.fate.is_driver_dead:
            self.orphans.extend(
                (member, *held)
                for member in self._members.values()
                for held in member.held
                if self.fate.dice.random() < 0.5
            )
        super().shut_down()

    def _step(self, number: int, member: Member) -> Event:
        self.fate.is_in_worker = True
        try:
            return super()._step(number, member)
        finally:
            self.fate.is_in_worker = False

    def _finish_orphan(self, member: Member, shard: Any, assignment: Any) -> None:
        self.fate.is_in_orphan = True
        try:
            with suppress(Death):
                member.worker.run_shard(shard, assignment)
                self.fate.seen["orphan's late commit"] += 1
        finally:
            self.fate.is_in_orphan = False


def enact(fate: Fate, patch: pytest.MonkeyPatch) -> None:
    """Put the fate between the program and its storage, and into `FatedPool`."""
    FatedPool.fate, FatedPool.orphans = fate, []
    patch.setattr(pipeline.driver.shard_queue, "FIRST_BACKOFF_S", 0.0)
    # Several parts of the manifest for two dozen images.
    patch.setattr(pipeline.planning.manifest, "FIRST_PART_IMAGES", 4)
    patch.setattr(pipeline.planning.manifest, "PART_IMAGES", 8)
    # The dead driver's process is this one, and alive.
    patch.setattr(pipeline.runs.lease, "is_dead_here", lambda host, process: True)
    patch.setattr(Storage, "write", _fated_write(fate, Storage.write))
    patch.setattr(Storage, "delete", _unless_dead(fate, Storage.delete))
    patch.setattr(pipeline.runs.run, "remove_leftovers", _unless_dead(fate, remove_leftovers))
    patch.setattr(pipeline.worker.shard_pipeline, "fetch_image", _fated_read(fate, fetch_image))


def _fated_write(fate: Fate, write: Callable[..., None]) -> Callable[..., None]:
    def write_or_fail(storage: Storage, uri: str, *arguments: Any, **keywords: Any) -> None:
        if uri.endswith("progress.json"):
            # From a thread of its own and after some seconds: only on a busy machine, and a thread is no process.
            if not fate.is_driver_dead:
                write(storage, uri, *arguments, **keywords)
            return
        if fate.is_driver_dead and not fate.is_in_orphan:
            raise DriverDeath
        table = next(
            (name for name in ("instances", "images", "manifest", "run.json", "lease") if name in uri), "other"
        )
        fate.die(f"before {table}")
        if fate.is_disk_full:
            raise StorageError(f"No space left to write {uri} ({os.strerror(errno.ENOSPC)}).")
        if fate.is_in_worker and fate.writes_left and fate.strike("write failed", 0.05):
            fate.writes_left -= 1
            raise TransientStorageError(f"Storage could not write {uri} just now.")
        write(storage, uri, *arguments, **keywords)
        fate.die(f"after {table}")

    return write_or_fail


def _fated_read(fate: Fate, fetch: Callable[..., Any]) -> Callable[..., Any]:
    def fetch_or_fail(*arguments: Any, **keywords: Any) -> Any:
        if fate.reads_left and not fate.is_in_orphan and fate.strike("read failed", 0.02):
            fate.reads_left -= 1
            raise TransientStorageError("Storage could not read it just now.")
        return fetch(*arguments, **keywords)

    return fetch_or_fail


def _unless_dead(fate: Fate, action: Callable[..., Any]) -> Callable[..., Any]:
    def act_unless_dead(*arguments: Any, **keywords: Any) -> Any:
        if fate.is_driver_dead and not fate.is_in_orphan:
            raise DriverDeath
        return action(*arguments, **keywords)

    return act_unless_dead
