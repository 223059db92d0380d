"""Byte budgets of the images on their way to the model, shared by the shards of one worker.

A shard requests its images' bytes in the order of its images and gets them in that order, so that the image that its
consumer waits for is never behind a later one. Two rules keep two shards from blocking each other:

- The image that a consumer waits for always enters: only it can free bytes again. So at most one image exceeds the
  bound, and an image that is larger than the bound goes through alone.
- A shard whose consumer waits for the model's turn holds at most a quarter, and the shard whose turn it is leaves it a
  quarter. Neither can fill the budget with images that the model will not take for a while.
"""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

# Of the budget, for a shard that waits for the model's turn.
WAITING_SHARE = 0.25


class ByteGauge:
    """A number of bytes, counted up and down from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bytes = 0

    @property
    def value(self) -> int:
        """Bytes held now."""
        with self._lock:
            return self._bytes

    def add(self, count: int) -> None:
        """Add `count` bytes; a negative count takes them away."""
        with self._lock:
            self._bytes += count


class LaneClosedError(Exception):
    """The shard has ended meanwhile; the bytes are not needed any more."""


class ByteBudget:
    """Admits bytes in the order of the requests, a bounded number at once.

    A request that is larger than the whole budget enters alone. For steps that end by themselves; where bytes are given
    back only after other bytes have entered, use `SharedBudget`.
    """

    def __init__(self, most: int) -> None:
        """`most`: the bound, in bytes."""
        self._most = most
        self._held = 0
        self._queue: deque[object] = deque()
        self._change = threading.Condition()

    @property
    def held(self) -> int:
        """Bytes held now."""
        with self._change:
            return self._held

    @contextmanager
    def hold(self, count: int) -> Iterator[None]:
        """Hold `count` bytes during the block, waiting until there is room for them."""
        ticket = object()
        with self._change:
            self._queue.append(ticket)
            try:
                self._change.wait_for(lambda: self._queue[0] is ticket and self._has_room(count))
                self._held += count
            finally:
                self._queue.remove(ticket)
                self._change.notify_all()
        try:
            yield
        finally:
            with self._change:
                self._held -= count
                self._change.notify_all()

    def _has_room(self, count: int) -> bool:
        return self._held == 0 or self._held + count <= self._most


class SharedBudget:
    """A budget of bytes that the shards of a worker share; each opens a `Lane`.

    Attributes:
        most: the bound, in bytes.
        lanes: the open ones; read with `change` held.
        change: notified whenever the bytes or the lanes change.
    """

    def __init__(self, most: int) -> None:
        """`most`: the bound, in bytes."""
        self.most = most
        self.change = threading.Condition()
        self.lanes: list[Lane] = []

    @property
    def held(self) -> int:
        """Bytes held now by all lanes."""
        with self.change:
            return self._total()

    def open_lane(self) -> "Lane":
        """Open a lane for one more shard; close it when the shard has ended."""
        lane = Lane(self)
        with self.change:
            self.lanes.append(lane)
        return lane

    def may_take(self, lane: "Lane", count: int) -> bool:
        """Return whether there is room for `count` more bytes in this lane; called with `change` held."""
        if self._total() + count > self.most:
            return False
        if not lane.is_consumed:
            # Not even its first image may be larger: it would be in memory beside the one that enters without room.
            return lane.held + count <= WAITING_SHARE * self.most
        is_alone = len(self.lanes) == 1
        return lane.held == 0 or is_alone or lane.held + count <= (1 - WAITING_SHARE) * self.most

    def drop(self, lane: "Lane") -> None:
        """Remove a lane; called with `change` held."""
        if lane in self.lanes:
            self.lanes.remove(lane)

    def _total(self) -> int:
        return sum(lane.held for lane in self.lanes)


class Lane:
    """The bytes of one shard's images, which are numbered 0, 1, 2, ... in the order in which they are consumed.

    Each number is passed once: by `take`, or by `skip` when it needs no bytes. Used from all threads that load.

    Attributes:
        held: bytes held now; read with the budget's `change` held.
        is_consumed: whether its consumer has begun to request images, so that it has the model's turn.
    """

    def __init__(self, budget: SharedBudget) -> None:
        self.held = 0
        self.is_consumed = False
        self._budget = budget
        self._awaited = -1
        self._next = 0
        self._passed: set[int] = set()
        self._held_by: dict[int, int] = {}
        self._is_closed = False

    def take(self, number: int, count: int, *, is_passed: bool = True) -> None:
        """Wait until all before `number` are passed and there is room, then hold `count` bytes for it.

        Args:
            is_passed: False to keep those behind it waiting until `skip`: it is loaded alone.

        Raises:
            LaneClosedError: the lane was closed meanwhile.
        """
        budget = self._budget
        with budget.change:
            budget.change.wait_for(lambda: self._is_closed or self._may_enter(number, count))
            if self._is_closed:
                raise LaneClosedError(f"image {number}")
            self._set(number, count)
            if is_passed:
                self._pass(number)
            budget.change.notify_all()

    def skip(self, number: int) -> None:
        """Let the numbers behind `number` enter; its own bytes stay held. Does nothing when it is passed already."""
        with self._budget.change:
            self._pass(number)
            self._budget.change.notify_all()

    def resize(self, number: int, count: int) -> None:
        """Hold `count` bytes for a number from now on, more or fewer, without waiting."""
        with self._budget.change:
            if not self._is_closed:
                self._set(number, count)
                self._budget.change.notify_all()

    def give_back(self, number: int) -> None:
        """Free the bytes of a number; does nothing when it holds none."""
        self.resize(number, 0)

    def await_number(self, number: int) -> None:
        """Record that the consumer waits for this number: it enters without room."""
        with self._budget.change:
            self.is_consumed = True
            self._awaited = number
            self._budget.change.notify_all()

    def close(self) -> None:
        """Free all bytes and wake all waiting threads; may be called again."""
        with self._budget.change:
            self._is_closed = True
            self._held_by.clear()
            self.held = 0
            self._budget.drop(self)
            self._budget.change.notify_all()

    def _may_enter(self, number: int, count: int) -> bool:
        if number != self._next:
            return False
        return number <= self._awaited or self._budget.may_take(self, count)

    def _set(self, number: int, count: int) -> None:
        self.held += count - self._held_by.pop(number, 0)
        if count:
            self._held_by[number] = count

    def _pass(self, number: int) -> None:
        if number >= self._next:
            self._passed.add(number)
        while self._next in self._passed:
            self._passed.remove(self._next)
            self._next += 1
