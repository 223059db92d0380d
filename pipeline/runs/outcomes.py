"""How a run ended, or stands: the words for it, used in summary.json, by every command, and for the exit codes.

complete: every image has its row, and no more failed than may. over_error_budget: more failed than may, whether the run
was stopped for it or did all its images. interrupted: stopped by Ctrl-C or a signal before every image had its row.
incomplete: it ended otherwise before that, also without a word; or a shard failed for an exception of this program.
running: a driver works on it.

Whether every image has its row is another question: compacting, publishing and pruning ask that, and a run over its
error budget is treated there as a complete one.
"""

from typing import Final, Literal, get_args

Outcome = Literal["complete", "incomplete", "over_error_budget", "interrupted"]
State = Literal[Outcome, "running"]
OUTCOMES: Final[tuple[Outcome, ...]] = get_args(Outcome)

EXIT_COMPLETE: Final = 0
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_INPUT_CHANGED: Final = 3
"""Of a run that was complete before, while its input is another one by now."""
EXIT_INTERRUPTED: Final = 130
"""128 and the number of SIGINT, as shells report it."""


def exit_code_of(outcome: Outcome) -> int:
    """Return what `htc run` exits with."""
    return EXIT_COMPLETE if outcome == "complete" else EXIT_FAILED


def in_words(state: str) -> str:
    """Write an outcome or state for people: "over error budget"; JSON has it as it is."""
    return state.replace("_", " ")
