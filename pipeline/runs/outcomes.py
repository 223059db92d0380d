"""Outcomes and states of a run, as in summary.json and in every command, and the exit codes.

complete: every image has its row, and the failures are within the error budget. over_error_budget: more images failed
than allowed, whether the run was stopped early or did all its images. interrupted: stopped by Ctrl-C, a signal, its
deadline or its largest cost before every image had its row. incomplete: it ended otherwise before that, also when its
driver was killed; or a shard failed with an exception of this program. running: a driver works on it.

Compacting, publishing and pruning ask something else, namely whether every image has its row (`state.has_all_rows`): a
run over its error budget with all rows is treated there like a complete one.
"""

from typing import Final, Literal, get_args

Outcome = Literal["complete", "incomplete", "over_error_budget", "interrupted"]
State = Literal[Outcome, "running"]
OUTCOMES: Final[tuple[Outcome, ...]] = get_args(Outcome)

EXIT_COMPLETE: Final = 0
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_INPUT_CHANGED: Final = 3
"""The run was complete before, and its input has changed since."""
EXIT_INTERRUPTED: Final = 130
"""128 and the number of SIGINT, as shells report it."""


def exit_code_of(outcome: Outcome) -> int:
    """Return the exit code of `htc run`."""
    return EXIT_COMPLETE if outcome == "complete" else EXIT_FAILED


def in_words(state: str) -> str:
    """Return an outcome or state as text: "over error budget"; JSON has it unchanged."""
    return state.replace("_", " ")
