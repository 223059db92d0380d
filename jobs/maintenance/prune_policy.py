"""Which runs may be removed, and why each of the others is kept; pure, without storage."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from pipeline.errors import SpecError
from pipeline.maintenance.survey import RunInfo
from pipeline.output.deletions import counts
from pipeline.text import count_of

# Somebody may still want to resume a run that was stopped; after a week nobody does.
INCOMPLETE_KEPT_FOR = timedelta(days=7)
_AGE = re.compile(r"(\d+)\s*([hdw])")
_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


@dataclass(frozen=True)
class PruneDecision:
    """What becomes of one run; `kept_because` is empty when it may be removed."""

    standing: RunInfo
    kept_because: str

    @property
    def is_removed(self) -> bool:
        """Whether it is to be removed."""
        return not self.kept_because


@dataclass(frozen=True)
class PrunePolicy:
    """How much is kept.

    keep_last: the newest complete runs. older_than: runs that began later are kept.
    withdrawn_from: the catalogs' places from which runs are withdrawn before they are removed.
    """

    keep_last: int
    older_than: timedelta | None = None
    withdrawn_from: Collection[tuple[str, str]] = ()


def read_age(text: str) -> timedelta:
    """Read an age such as 30d, 12h or 4w.

    Raises:
        SpecError: it is none.
    """
    match = _AGE.fullmatch(text.strip())
    if match is None:
        raise SpecError(f"--older-than takes a number and a unit, h, d or w, such as 30d, not {text!r}.")
    try:
        return int(match.group(1)) * _UNITS[match.group(2)]
    except OverflowError:
        raise SpecError(f"--older-than {text} is before the beginning of time.") from None


def choose_runs(
    standings: Sequence[RunInfo], needed: Collection[str], rules: PrunePolicy, now: datetime
) -> list[PruneDecision]:
    """Decide for each run, oldest first.

    Args:
        standings: all runs, oldest first.
        needed: those without which the view `current` would answer something else.
        now: UTC.
    """
    complete = [each.run for each in standings if each.has_all_rows]
    last = set(complete[-rules.keep_last :]) if rules.keep_last else set()
    choices: list[PruneDecision] = []
    for index, standing in enumerate(standings):
        reason = _standing_reason(standing, now, is_newest=index == len(standings) - 1)
        if not reason and standing.run in last:
            reason = "the newest complete run" if rules.keep_last == 1 else f"one of the last {rules.keep_last}"
        if not reason and rules.older_than is not None and now - standing.began < rules.older_than:
            reason = f"only {_age(now - standing.began)} old"
        if not reason and standing.run in needed:
            reason = "the view current needs it"
        reason = reason or _published_reason(standing, rules)
        reason = reason or _deletions_reason(standing, choices, needed)
        choices.append(PruneDecision(standing, reason))
    return choices


def _standing_reason(standing: RunInfo, now: datetime, *, is_newest: bool) -> str:
    if standing.holder:
        return f"{standing.holder} works on it"
    if standing.has_all_rows:
        return ""
    if is_newest:
        return "incomplete, and the newest: the next run goes on with it"
    if now - standing.began < INCOMPLETE_KEPT_FOR:
        return f"incomplete, and only {_age(now - standing.began)} old"
    return ""


def _published_reason(standing: RunInfo, rules: PrunePolicy) -> str:
    left = [each for each in standing.publications if each.place not in rules.withdrawn_from]
    return f"published in {left[0].catalog}, namespace {left[0].namespace}" if left else ""


def _deletions_reason(standing: RunInfo, older: Sequence[PruneDecision], needed: Collection[str]) -> str:
    """Keep marks of deleted images that may hide rows of an older run, kept for a reason that `needed` knows not."""
    if not counts(standing.record):
        return ""
    kept = next((each for each in older if not each.is_removed and each.standing.run not in needed), None)
    return f"its marks of deleted images may hide rows of the run {kept.standing.run}" if kept else ""


def _age(age: timedelta) -> str:
    return count_of(age.days, "day") if age >= timedelta(days=1) else count_of(int(age.total_seconds() // 3600), "hour")
