"""What a place that runs firings can do; the scheduler's own machine and a cluster are two of them."""

from dataclasses import dataclass, field
from typing import Literal, Protocol

from jobs.scheduling.firing import Ending, Firing


@dataclass(frozen=True)
class LaunchStatus:
    """What is seen of a firing's run.

    state: "going"; "ended", as `ending` says; "gone", without having said how it ended; or "unseen", because the
        place cannot be reached just now, as `problem` says.
    """

    state: Literal["going", "ended", "gone", "unseen"]
    ending: Ending = field(default_factory=lambda: Ending("lost"))
    problem: str = ""


class Launcher(Protocol):
    """Starts firings somewhere, finds them again and stops them."""

    def start(self, firing: Firing) -> str:
        """Start a firing's run, or find that it was started: to call it twice starts one run.

        Returns:
            By what it is known there.

        Raises:
            SpecError: it can never begin so.
            HtcError: it cannot begin now.
        """
        ...

    def check(self, firing: Firing) -> LaunchStatus:
        """Look what has become of it; never raises for a place that is away."""
        ...

    def stop(self, firing: Firing, *, is_forced: bool) -> None:
        """Ask its run to end, or with `is_forced` end it; what is committed stays.

        Never raises for a place that is away.
        """
        ...
