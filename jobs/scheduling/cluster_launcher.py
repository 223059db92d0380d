"""Firings on a Ray cluster: each is a job, found again by the name of its run."""

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from jobs.scheduling.deadlines import with_deadline
from jobs.scheduling.endings import ending_of, last_line
from jobs.scheduling.firing import Ending, Firing
from jobs.scheduling.launcher import LaunchStatus
from jobs.scheduling.schedule import load_job
from pipeline.errors import HtcError, SpecError
from pipeline.runs.outcomes import EXIT_COMPLETE, EXIT_INPUT_CHANGED

if TYPE_CHECKING:
    from jobs.cluster.client import JobsClient
    from jobs.cluster.job_state import JobState

log = logging.getLogger(__name__)

# Interval between checks of a job, and before another request to a cluster that did not answer.
POLL_S = 10.0
AGAIN_S = 30.0


class ClusterLauncher:
    """Submits, finds and stops the jobs of firings on one cluster; a `Launcher`.

    address: URL of the dashboard, as in `htc submit --address`. connect: opens a connection; by default to `address`.
    """

    def __init__(
        self,
        address: str,
        *,
        connect: "Callable[[], JobsClient] | None" = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._address = address
        self._connect = connect or self._open
        self._clock = clock or time.monotonic
        self._seen: dict[str, tuple[float, LaunchStatus]] = {}
        self._stop_asked: dict[str, float] = {}
        self._refused: tuple[float, HtcError] | None = None

    def start(self, firing: Firing) -> str:
        """Submit the job, or find that it was submitted before."""
        if self._refused is not None and self._clock() < self._refused[0]:
            raise self._refused[1]
        try:
            return self._submit(firing)
        except HtcError as error:
            if not isinstance(error, SpecError):
                self._refused = (self._clock() + AGAIN_S, error)
            raise

    def check(self, firing: Firing) -> LaunchStatus:
        """Return the job's state, requested from the cluster every `POLL_S`."""
        until, status = self._seen.get(firing.name, (0.0, LaunchStatus("going")))
        if self._clock() >= until:
            status = self._ask(firing)
            self._seen[firing.name] = (self._clock() + POLL_S, status)
        if status.state in {"ended", "gone"}:
            self._seen.pop(firing.name, None)
            self._stop_asked.pop(firing.name, None)
        return status

    def stop(self, firing: Firing, *, is_forced: bool) -> None:
        """Ask the cluster to stop the job, at most every `AGAIN_S`; Ray itself kills a job that does not end."""
        if self._clock() < self._stop_asked.get(firing.name, 0.0):
            return
        self._stop_asked[firing.name] = self._clock() + AGAIN_S
        try:
            client = self._connect()
            job_id = _find(client, firing)
            if job_id:
                client.stop(job_id)
        except HtcError as error:
            log.warning("%s cannot be stopped yet: %s", firing.name, error)

    def _submit(self, firing: Firing) -> str:
        from jobs.cluster.errors import JobRunningError
        from jobs.cluster.submit import submit_job

        job = with_deadline(load_job(firing.schedule), firing)
        client = self._connect()
        # `starts` counts the jobs that have vanished; one more was submitted by a scheduler that died right after.
        known = [state for state in client.states() if state.run == firing.name]
        if len(known) > firing.starts:
            return known[0].job_id
        if job.name is None:
            job = job.model_copy(update={"name": firing.schedule.name})
        try:
            # `begun` was stored before, so that a second submission has the same job id.
            return submit_job(
                job, run=firing.name, runtime_env=firing.schedule.runtime_env, client=client, now=firing.begun
            )
        except JobRunningError as error:
            if client.state(error.job_id).run != firing.name:
                # Another job at this output that names no run; it has to end first.
                raise
            return error.job_id

    def _ask(self, firing: Firing) -> LaunchStatus:
        from jobs.cluster.errors import NoSuchJobError

        try:
            client = self._connect()
            job_id = _find(client, firing)
            state = client.state(job_id) if job_id else None
        except NoSuchJobError:
            return LaunchStatus("gone")
        except HtcError as error:
            return LaunchStatus("unseen", problem=str(error))
        if state is None:
            return LaunchStatus("gone")
        return LaunchStatus("ended", _ending(firing, state, client)) if state.is_ended else LaunchStatus("going")

    def _open(self) -> "JobsClient":
        from jobs.cluster.client import connect

        return connect(self._address)


def _find(client: "JobsClient", firing: Firing) -> str | None:
    if firing.handle:
        return firing.handle
    return next((state.job_id for state in client.states() if state.run == firing.name), None)


def _ending(firing: Firing, state: "JobState", client: "JobsClient") -> Ending:
    exit_code = state.final_exit_code or 0
    if state.phase == "stopped":
        return Ending("interrupted", "The job was stopped.", exit_code)
    reason = "" if exit_code == 0 else _last_words(state, client)
    try:
        return ending_of(load_job(firing.schedule), firing.name, exit_code, reason)
    except HtcError:
        # The spec was changed or removed meanwhile.
        is_complete = exit_code in (EXIT_COMPLETE, EXIT_INPUT_CHANGED)
        return Ending("complete", "", 0) if is_complete else Ending("failed", reason, exit_code)


def _last_words(state: "JobState", client: "JobsClient") -> str:
    # Ray's own message holds only the exit code.
    try:
        said = last_line(client.logs(state.job_id)) if state.exit_code is not None else ""
    except HtcError:
        said = ""
    return said or last_line(state.message)
