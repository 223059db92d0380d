"""RoomWatch: what workers that have not begun are waiting for, and how many there is room for by now."""

import time
from collections.abc import Callable

from pipeline.errors import RunError
from pipeline.planning.node_shapes import ClusterNodes, describe_shapes, describe_size
from pipeline.planning.worker_plan import WorkerPlan, most_workers_on
from pipeline.text import count_of, format_duration

# An autoscaler decides within seconds and brings a node within minutes; a cluster that is not full begins at once.
NOTE_AFTER_S = 30.0
NOTE_EVERY_S = 600.0
# Nodes come and go within minutes; each look is two calls to the cluster's head.
LOOK_EVERY_S = 10.0


class RoomWatch:
    """Looks at the cluster's nodes now and then; called from one thread.

    Ray starts a worker as soon as a node has room, and its autoscaler brings nodes for those that wait. A run therefore
    never ends because some workers wait while others work, nor because other jobs use the cluster; only when no node
    has ever had room for one worker, for as long as a worker may take to start.
    """

    def __init__(
        self,
        plan: WorkerPlan,
        shapes: Callable[[], ClusterNodes],
        *,
        start_timeout_s: float | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`shapes`: returns the nodes; `start_timeout_s`: after which a run without any worker ends, None for never."""
        self._plan = plan
        self._shapes = shapes
        self._start_timeout_s = start_timeout_s
        self._clock = clock
        self._max_workers = plan.workers
        self._next_look = clock() + LOOK_EVERY_S
        self._waiting_since: float | None = None
        self._none_since: float | None = None
        self._next_note = clock() + NOTE_AFTER_S
        self._is_told = False

    @property
    def max_workers(self) -> int:
        """The most workers that the cluster has or may get room for, as far as it is known."""
        return self._max_workers

    def check(self, *, asked: int, begun: int) -> str:
        """Return a sentence for the user when workers wait for room; mostly empty.

        Args:
            asked: the workers that were asked for, and are alive or waiting. begun: those whose process runs.

        Raises:
            RunError: no node has had room for a single worker for so long that none is expected.
        """
        now = self._clock()
        self._waiting_since = None if asked == begun else self._waiting_since or now
        self._none_since = None if begun else self._none_since or now
        if self._waiting_since is None or (not begun and self._is_told):
            self._is_told = False
            self._next_note = now + NOTE_AFTER_S
        if now < self._next_look:
            return ""
        self._next_look = now + LOOK_EVERY_S
        may_note = self._waiting_since is not None and not self._is_told and now >= self._next_note
        limit_s = self._start_timeout_s
        may_end = self._none_since is not None and limit_s is not None and now - self._none_since >= limit_s
        if not (may_note or may_end or self._plan.is_growing):
            return ""
        nodes = self._shapes()
        if self._plan.is_growing:
            self._max_workers = max(self._max_workers, most_workers_on(nodes, self._plan))
        has_room = any(shape.holds(cpus=self._plan.cpus, gpus=self._plan.gpus) for shape in nodes.now)
        if may_end and not has_room:
            raise RunError(
                f"No node came for the workers within {format_duration(limit_s)}: {self._situation(nodes, asked)}. "
                "Add such nodes, lower compute.cpus_per_worker or compute.gpus_per_worker, or wait longer with "
                "retry.start_timeout_s."
            )
        if not may_note:
            return ""
        # While others work, once is enough.
        self._is_told = begun > 0
        self._next_note = now + NOTE_EVERY_S
        return self._sentence(nodes, asked=asked, begun=begun, has_room=has_room)

    def _sentence(self, nodes: ClusterNodes, *, asked: int, begun: int, has_room: bool) -> str:
        situation = self._situation(nodes, asked)
        if begun:
            return f"{begun} of the workers have begun: {situation}. The others join when there is room."
        if has_room:
            return f"No worker has begun: {situation}. Other jobs seem to use what there is; waiting."
        limit_s = self._start_timeout_s
        patience = "for ever" if limit_s is None else f"at most {format_duration(limit_s)} (retry.start_timeout_s)"
        return f"No worker has begun: {situation}. Waiting {patience} for a node."

    def _situation(self, nodes: ClusterNodes, asked: int) -> str:
        size = describe_size(self._plan.cpus, self._plan.gpus)
        later = "what its autoscaler may bring, if it has one, is not known"
        if nodes.possible is not None:
            later = f"its autoscaler may bring {describe_shapes(nodes.possible)}"
        were = "was" if asked == 1 else "were"
        wanted = f"{count_of(asked, 'worker')} of {size} {were} asked for"
        return f"{wanted}; the cluster has {describe_shapes(nodes.now)}, and {later}"
