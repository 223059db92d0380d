"""Why a worker died, from Ray's exceptions."""

from pipeline.text import without_colors


def worker_deaths() -> tuple[type[Exception], ...]:
    """Return the Ray exceptions after which a worker is gone and its shard goes to another one.

    Named one by one because they share no base: NodeDiedError, WorkerCrashedError and OutOfMemoryError are not
    RayActorErrors. An ActorUnavailableError (a RayActorError) may be temporary, but waiting costs more than a new
    worker.
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
    """Return whether the node was taken away, so that no shard caused the death."""
    from ray import exceptions

    return isinstance(error, exceptions.NodeDiedError) or bool(getattr(error, "preempted", False))


def describe_death(error: BaseException) -> str:
    """Return one line about how a worker died, or what one raised, without Ray's general advice and colours."""
    from ray import exceptions

    lines = [line.strip() for line in without_colors(str(error)).splitlines() if line.strip()]
    if isinstance(error, exceptions.RayTaskError):
        # The first line is about the process and its ids; the traceback's last one says what happened.
        return f"the worker raised {lines[-1].rstrip('.')}"
    for line in lines:
        if "exit detail:" in line:
            detail = line.split("exit detail:", 1)[1]
            return f"the worker died: {detail.split('. Some common causes', 1)[0].strip().rstrip('.')}"
    if getattr(error, "actor_init_failed", False):
        return f"the worker could not begin: {lines[-1].rstrip('.')}"
    return f"the worker died: {lines[0].rstrip('.') if lines else type(error).__name__}"
