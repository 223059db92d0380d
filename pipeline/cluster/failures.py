"""Why a worker died, from Ray's exceptions."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


def worker_deaths() -> tuple[type[Exception], ...]:
    """The Ray exceptions after which a worker is gone and its shard is worth another one.

    Named one by one because they share no base: NodeDiedError, WorkerCrashedError and OutOfMemoryError are
        not RayActorErrors. ActorUnavailableError (a RayActorError) may heal, but waiting for it costs more
        than a new worker.
    """
    from ray import exceptions

    return (
        exceptions.RayActorError,
        exceptions.WorkerCrashedError,
        exceptions.NodeDiedError,
        exceptions.OutOfMemoryError,
        exceptions.OutOfDiskError,
        exceptions.ObjectLostError,
    )


def was_preempted(error: BaseException) -> bool:
    """Whether the node was taken away, which nobody's shard is to blame for."""
    from ray import exceptions

    return isinstance(error, exceptions.NodeDiedError) or bool(getattr(error, "preempted", False))


def describe_death(error: BaseException) -> str:
    """One line saying how a worker ended, without Ray's general advice."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    for line in lines:
        if "exit detail:" in line:
            detail = line.split("exit detail:", 1)[1]
            return f"the worker died: {detail.split('. Some common causes', 1)[0].strip().rstrip('.')}"
    if getattr(error, "actor_init_failed", False):
        return f"the worker could not begin: {lines[-1].rstrip('.')}"
    return f"the worker died: {lines[0].rstrip('.') if lines else type(error).__name__}"
