"""Firings on a Ray cluster: each a job, found again by the name of its run."""

import logging
import time
from typing import TYPE_CHECKING

from jobs.scheduling.firing import Ending, Firing
from jobs.scheduling.launching import Sight
from jobs.scheduling.outcomes import ending_of
from jobs.scheduling.schedule import load_job
from pipeline.errors import HtcError, SpecError

if TYPE_CHECKING:
    from jobs.job_state import JobState

log = logging.getLogger(__name__)

# A job is looked at so often, and a cluster that did not answer is asked again so much later.
POLL_S = 10.0
AGAIN_S = 30.0


class ClusterRuns:
    """Submits, finds and stops the jobs of firings on one cluster; a `Launcher`.

    address: the dashboard's, as in `htc submit --address`.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._seen: dict[str, tuple[float, Sight]] = {}
        self._refused: tuple[float, HtcError] | None = None

    def start(self, firing: Firing) -> str:
        """Submit the job, or find that it was submitted."""
        if self._refused is not None and time.monotonic() < self._refused[0]:
            raise self._refused[1]
        try:
            return self._submit(firing)
        except HtcError as error:
            if not isinstance(error, SpecError):
                self._refused = (time.monotonic() + AGAIN_S, error)
            raise

    def _submit(self, firing: Firing) -> str:
        from jobs.cluster_errors import AlreadyGoingError
        from jobs.submit import list_jobs, submit_job

        job = load_job(firing.schedule)
        # The newest first. A job that vanished with its cluster, or that we lost once, is resumed by a new one.
        known = [state for state in list_jobs(address=self._address) if state.run == firing.name]
        if len(known) > firing.starts:
            return known[0].job_id
        try:
            # `begun` is written down before: asked twice, the cluster is given one and the same job id.
            return submit_job(job, address=self._address, run=firing.name, now=firing.begun)
        except AlreadyGoingError as error:
            return error.job_id

    def look(self, firing: Firing) -> Sight:
        """Ask the cluster for the job, every now and then."""
        until, sight = self._seen.get(firing.name, (0.0, Sight("going")))
        if time.monotonic() >= until:
            sight = self._ask(firing)
            self._seen[firing.name] = (time.monotonic() + POLL_S, sight)
        if sight.state in {"ended", "gone"}:
            self._seen.pop(firing.name, None)
        return sight

    def _ask(self, firing: Firing) -> Sight:
        from jobs.cluster_errors import NoSuchJobError
        from jobs.submit import job_state

        if not firing.handle:
            return Sight("gone")
        try:
            state = job_state(firing.handle, address=self._address)
        except NoSuchJobError:
            return Sight("gone")
        except HtcError as error:
            return Sight("unseen", problem=str(error))
        return Sight("ended", _ending(firing, state)) if state.is_ended else Sight("going")

    def stop(self, firing: Firing, *, is_forced: bool) -> None:
        """Ask the cluster to stop the job; Ray itself kills one that does not obey."""
        from jobs.submit import stop_job

        try:
            if firing.handle and not is_forced:
                stop_job(firing.handle, address=self._address)
        except HtcError as error:
            log.warning("%s cannot be stopped yet: %s", firing.name, error)


def _ending(firing: Firing, state: "JobState") -> Ending:
    exit_code = state.final_exit_code or 0
    if state.phase == "stopped":
        return Ending("interrupted", state.message or "The job was stopped.", exit_code)
    try:
        return ending_of(load_job(firing.schedule), firing.name, exit_code, state.message)
    except HtcError:
        # The spec was changed meanwhile, or taken away.
        if exit_code == 0:
            return Ending("complete", "", 0)
        return Ending("failed", state.message, exit_code)
