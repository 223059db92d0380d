"""The launcher protocol: starts, checks and stops the runs of firings, on this machine or on a cluster."""

from dataclasses import dataclass, field
from typing import Literal, Protocol

from jobs.scheduling.firing import Ending, Firing


@dataclass(frozen=True)
class LaunchStatus:
    """The state of a firing's run.

    state: "going"; "ended", see `ending`; "gone", if it vanished without an ending; or "unseen", if it cannot be
        checked now, see `problem`.
    """

    state: Literal["going", "ended", "gone", "unseen"]
    ending: Ending = field(default_factory=lambda: Ending("lost"))
    problem: str = ""


class Launcher(Protocol):
    """Starts, finds and stops the runs of firings."""

    def start(self, firing: Firing) -> str:
        """Start a firing's run, or find that it was started. Idempotent: two calls start one run.

        Returns:
            The run's handle: the job id or process number.

        Raises:
            SpecError: the run can never begin with this spec.
            HtcError: the run cannot begin now.
        """
        ...

    def check(self, firing: Firing) -> LaunchStatus:
        """Return the run's state; an unreachable cluster does not raise."""
        ...

    def stop(self, firing: Firing, *, is_forced: bool) -> None:
        """Ask the run to end, or with `is_forced` end it; committed results stay.

        An unreachable cluster does not raise.
        """
        ...
