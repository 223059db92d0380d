"""What can go wrong between this machine and a cluster, each said in one sentence with the way out."""

from pipeline.errors import RunError, SpecError
from pipeline.lease import RunHeldError


class ClusterError(RunError):
    """The cluster cannot be reached, or refuses."""


class NoSuchJobError(SpecError):
    """The cluster knows no job of this id."""


class AlreadyGoingError(RunHeldError):
    """A job of this cluster is at the same run; `job_id` names it."""

    def __init__(self, job_id: str, message: str) -> None:
        super().__init__(message)
        self.job_id = job_id

    def __reduce__(self) -> tuple[type["AlreadyGoingError"], tuple[str, str]]:
        return AlreadyGoingError, (self.job_id, str(self))
