"""How many bytes the images on their way to the model may hold, shared by the shards of one worker.

A shard asks for its images' bytes in the order of its images and gets them in that order, so that what its consumer
waits for is never behind what comes later. Two rules keep two shards from blocking each other:

- The image that a consumer waits for is let in whatever is held: only it can bring the bytes down again. So at most one
  image stands over the bound, and one that is larger than the bound goes through alone.
- A shard whose consumer waits for the model's turn holds at most a quarter, and a quarter is left to it by the shard
  whose turn it is. Neither can fill the budget with what the model will not take for a while.
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
    """The shard has ended meanwhile: the bytes are not needed any more."""


class ByteBudget:
    """Lets bytes into memory in the order in which they are asked for, at most so many at once.

    What is larger than the whole budget goes in alone. For steps that end by themselves; where bytes are given back
    only after other bytes were let in, use `SharedBudget`.
    """

    def __init__(self, most: int) -> None:
        """`most`: in bytes."""
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
        """Hold so many bytes, waiting until there is room for them."""
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
    """A number of bytes that the shards of a worker share; each opens a `Lane`."""

    def __init__(self, most: int) -> None:
        """`most`: in bytes."""
        self.most = most
        self.change = threading.Condition()
        self._lanes: list[Lane] = []

    @property
    def held(self) -> int:
        """Bytes held now by all lanes."""
        with self.change:
            return self._total()

    def open_lane(self) -> "Lane":
        """Let one more shard take part; close the lane when it has ended."""
        lane = Lane(self)
        with self.change:
            self._lanes.append(lane)
        return lane

    def may_take(self, lane: "Lane", count: int) -> bool:
        """Tell whether there is room for so many bytes more in this lane; called with `change` held."""
        if self._total() + count > self.most:
            return False
        if not lane.is_consumed:
            # Not even its first image may be larger: it would stand beside the one that is let in without room.
            return lane.held + count <= WAITING_SHARE * self.most
        is_alone = len(self._lanes) == 1
        return lane.held == 0 or is_alone or lane.held + count <= (1 - WAITING_SHARE) * self.most

    def drop(self, lane: "Lane") -> None:
        """Forget a lane; called with `change` held."""
        if lane in self._lanes:
            self._lanes.remove(lane)

    def _total(self) -> int:
        return sum(lane.held for lane in self._lanes)


class Lane:
    """The bytes of one shard's images, which are numbered 0, 1, 2, ... in the order in which they are consumed.

    Each number is passed once: by `take`, or by `skip` when it needs no bytes. Used from all threads that load.

    Attributes:
        held: bytes held now; read with the budget's `change` held.
        is_consumed: whether its consumer has begun to ask for images, so that it has the model's turn.
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
        """Let those behind `number` go on; what it holds stays held. Nothing when it is passed already."""
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
        """Hold nothing for a number any more; nothing happens when it holds nothing."""
        self.resize(number, 0)

    def await_number(self, number: int) -> None:
        """Note that the consumer waits for this number: it is let in without room."""
        with self._budget.change:
            self.is_consumed = True
            self._awaited = number
            self._budget.change.notify_all()

    def close(self) -> None:
        """Give everything back and wake all who wait; may be called again."""
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
