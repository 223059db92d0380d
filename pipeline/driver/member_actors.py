"""Ensembles whose members are Ray actors: each worker starts its own, which live and end with it.

    driver --starts--> placement group: [worker | member | member ...]     as a whole, or not at all
    worker --starts--> its members, inside the group; owns them, so that they end when it does

A member that dies ends its worker, and the driver replaces both, as it replaces any worker that dies.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pipeline.cluster.failures import describe_death, worker_deaths
from pipeline.errors import HtcError
from pipeline.planning.worker_plan import WorkerPlan
from pipeline.storage.config import StorageSection
from pipeline.text import one_line
from pipeline.worker.error_boundaries import MemberLostError
from pipeline.worker.worker import MAX_CONCURRENCY, WorkerSettings

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.job_spec.model import ModelSection
    from pipeline.worker.members import LoadedMember

# Ray counts resources in ten-thousandths; a bundle of none at all is refused.
_RESOURCE_UNITS = 10_000
_LEAST_CPUS = 0.001


class MemberNotStartedError(HtcError):
    """A member of an ensemble cannot be loaded anywhere; the message is its own sentence."""


@dataclass(frozen=True)
class Shares:
    """What a worker and each of its members reserve: cores, and GPUs of each member."""

    worker_cpus: float
    member_cpus: float
    member_gpus: float


def share_out(plan: WorkerPlan, members: int) -> Shares:
    """Divide what one worker of the plan reserves between it and its members.

    With GPUs the members compute on them, and the worker keeps the cores, where it reads, decodes and encodes masks;
    shares are such that whole members fit on each GPU. Without, all have equal shares of the cores.
    """
    if not plan.gpus:
        each = max(_LEAST_CPUS, _floor(plan.cpus / (members + 1)))
        return Shares(each, each, 0.0)
    whole = math.floor(plan.gpus)
    if whole >= members:
        gpus = float(whole // members)
    elif whole:
        gpus = _floor(1 / math.ceil(members / whole))
    else:
        gpus = _floor(plan.gpus / members)
    return Shares(max(_LEAST_CPUS, plan.cpus), _LEAST_CPUS, gpus)


def _floor(value: float) -> float:
    return math.floor(value * _RESOURCE_UNITS + 1e-6) / _RESOURCE_UNITS


class SpreadWorkers:
    """Starts workers with members of their own; `ended` frees what an ended one had reserved."""

    def __init__(self, plan: WorkerPlan, members: int, actor: Any) -> None:
        """`actor`: the worker's class, wrapped by `ray.remote`."""
        self._shares = share_out(plan, members)
        self._members = members
        self._actor = actor
        self._groups: dict[Any, Any] = {}

    def start(self, settings: WorkerSettings) -> Any:
        """Request a worker and room for its members; return its handle."""
        from ray.util import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        shares = self._shares
        member = {"CPU": shares.member_cpus} | ({"GPU": shares.member_gpus} if shares.member_gpus else {})
        group = placement_group([{"CPU": shares.worker_cpus}, *[member] * self._members], strategy="PACK")
        handle = self._actor.options(
            max_concurrency=MAX_CONCURRENCY,
            max_restarts=0,
            num_cpus=shares.worker_cpus,
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                group, placement_group_bundle_index=0, placement_group_capture_child_tasks=True
            ),
        ).remote(
            replace(
                settings,
                cpus=shares.worker_cpus,
                gpus=0.0,
                open_members=RayMembers(settings.storage, shares.member_cpus, shares.member_gpus),
            )
        )
        self._groups[handle] = group
        return handle

    def ended(self, handle: Any) -> None:
        """Free the room of a worker that was killed; Ray kills what is left in it."""
        from ray.util import remove_placement_group

        group = self._groups.pop(handle, None)
        if group is not None:
            remove_placement_group(group)


@dataclass(frozen=True)
class RayMembers:
    """Starts the members of an ensemble as actors of the process that calls it.

    storage: how weights are reached. cpus, gpus: what each member reserves.
    """

    storage: StorageSection
    cpus: float
    gpus: float

    def __call__(self, section: "ModelSection") -> "Sequence[LoadedMember]":
        """Start all members, and wait until each has its network.

        Raises:
            MemberNotStartedError: the weights of one are wrong or not available.
            RuntimeError: a member's process died, or failed for a reason that another one may not have.
        """
        import ray

        from pipeline.worker.members import LoadedMember, RemoteMember

        actor: Any = ray.remote(MemberActor).options(
            num_cpus=self.cpus, num_gpus=self.gpus, max_restarts=0, max_concurrency=1
        )
        hosts = [actor.remote(member, self.storage, cpus=self.cpus, gpus=self.gpus) for member in section.members]
        names = section.ensemble.labels if section.ensemble else ()
        begun = [host.begin.remote() for host in hosts]
        shared = _SharedImages()
        loaded = []
        for name, host, ref in zip(names, hosts, begun, strict=True):
            try:
                ready = ray.get(ref)
            except worker_deaths() as error:
                raise RuntimeError(f"the member {name}: {describe_death(error)}") from error
            if isinstance(ready, _NotStarted):
                if not ready.is_permanent:
                    raise RuntimeError(f"the member {name}: {ready.reason}")
                failure = MemberNotStartedError(ready.reason)
                failure.exit_code = ready.exit_code
                raise failure
            member = RemoteMember(_RayCalls(host, name, shared), ready.config)
            loaded.append(LoadedMember(member, ready.precision, ready.device))
        return loaded


@dataclass(frozen=True)
class _NotStarted:
    """A member that could not be loaded, as a value, since an exception would arrive as text."""

    reason: str
    is_permanent: bool
    exit_code: int = 2


class MemberActor:
    """A `MemberHost` as an actor."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        """Arguments as for `MemberHost`."""
        from pipeline.worker.members import MemberHost

        self._host = MemberHost(*arguments, **settings)

    def begin(self) -> Any:
        """Load the network: a `MemberReady`, or why not."""
        from htc_model.config import ModelConfigError
        from htc_model.weights.openmmlab import WeightsError

        try:
            return self._host.start()
        except HtcError as error:
            return _NotStarted(one_line(error), is_permanent=True, exit_code=error.exit_code)
        except (WeightsError, ModelConfigError) as error:
            return _NotStarted(str(error), is_permanent=True)
        except (RuntimeError, OSError, ImportError, MemoryError) as error:
            return _NotStarted(one_line(error), is_permanent=False)

    def step(self, name: str, *arguments: Any) -> Any:
        """Do one step of `MemberHost`."""
        return getattr(self._host, name)(*arguments)


class _SharedImages:
    """The images that all members see now, once in Ray's store."""

    def __init__(self) -> None:
        self._images: Sequence[Tensor] | None = None
        self._reference: Any = None

    def put(self, images: "Sequence[Tensor]") -> Any:
        """Return their reference; that of the images before is forgotten."""
        import ray

        if images is not self._images:
            self._images, self._reference = images, ray.put([each.cpu().numpy() for each in images])
        return self._reference

    def forget(self) -> None:
        """Forget the images."""
        self._images = self._reference = None


class _RayCalls:
    """`members.Calls` to one actor."""

    def __init__(self, host: Any, name: str, shared: _SharedImages) -> None:
        self._host = host
        self._name = name
        self._shared = shared

    def call(self, step: str, *arguments: Any) -> Callable[[], Any]:
        """Begin a step; the answer waits for it."""
        if step == "forget":
            self._shared.forget()
        reference = self._host.step.remote(step, *arguments)
        return lambda: self._wait(reference)

    def share(self, images: "Sequence[Tensor]") -> Any:
        """Put the images into Ray's store, once for all members."""
        return self._shared.put(images)

    def _wait(self, reference: Any) -> Any:
        import ray

        try:
            return ray.get(reference)
        except worker_deaths() as error:
            raise MemberLostError(
                f"the member {self._name} of the ensemble is gone: {describe_death(error)}"
            ) from error
