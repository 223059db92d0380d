"""Decides which runs may be removed, and why each other run is kept; pure, without storage."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from pipeline.errors import SpecError
from pipeline.maintenance.survey import RunInfo
from pipeline.output.deletions import has_deletions
from pipeline.text import count_of

# A run that was stopped may still be resumed; after a week that is unlikely.
INCOMPLETE_KEPT_FOR = timedelta(days=7)
_AGE = re.compile(r"(\d+)\s*([hdw])")
_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


@dataclass(frozen=True)
class PruneDecision:
    """The decision about one run; `kept_because` is empty when it may be removed."""

    info: RunInfo
    kept_because: str

    @property
    def is_removed(self) -> bool:
        """Whether it may be removed."""
        return not self.kept_because


@dataclass(frozen=True)
class PrunePolicy:
    """How many runs are kept.

    keep_last: how many of the newest runs with all rows are kept. older_than: runs younger than this are kept.
    withdrawn_from: the catalogs (`Publication.place`) from which runs are withdrawn before they are removed.
    """

    keep_last: int
    older_than: timedelta | None = None
    withdrawn_from: Collection[tuple[str, str]] = ()


def read_age(text: str) -> timedelta:
    """Read an age such as 30d, 12h or 4w.

    Raises:
        SpecError: it is not an age.
    """
    match = _AGE.fullmatch(text.strip())
    if match is None:
        raise SpecError(f"--older-than takes a number and a unit, h, d or w, such as 30d, not {text!r}.")
    try:
        return int(match.group(1)) * _UNITS[match.group(2)]
    except OverflowError:
        raise SpecError(f"--older-than {text} is too long.") from None


def decide_runs(
    runs: Sequence[RunInfo], needed: Collection[str], policy: PrunePolicy, now: datetime
) -> list[PruneDecision]:
    """Decide for each run, oldest first.

    Args:
        runs: all runs, oldest first.
        needed: those without which the view `current` would have other rows.
        now: UTC.
    """
    complete = [each.run for each in runs if each.has_all_rows]
    last = set(complete[-policy.keep_last :]) if policy.keep_last else set()
    decisions: list[PruneDecision] = []
    for index, info in enumerate(runs):
        reason = _state_reason(info, now, is_newest=index == len(runs) - 1)
        if not reason and info.run in last:
            reason = "the newest complete run" if policy.keep_last == 1 else f"one of the last {policy.keep_last}"
        if not reason and policy.older_than is not None and now - info.began < policy.older_than:
            reason = f"only {_age(now - info.began)} old"
        if not reason and info.run in needed:
            reason = "the view current needs it"
        reason = reason or _published_reason(info, policy)
        reason = reason or _deletions_reason(info, decisions, needed)
        decisions.append(PruneDecision(info, reason))
    return decisions


def _state_reason(info: RunInfo, now: datetime, *, is_newest: bool) -> str:
    if info.holder:
        return f"{info.holder} works on it"
    if info.has_all_rows:
        return ""
    if is_newest:
        return "incomplete, and the newest: the next run resumes it"
    if now - info.began < INCOMPLETE_KEPT_FOR:
        return f"incomplete, and only {_age(now - info.began)} old"
    return ""


def _published_reason(info: RunInfo, policy: PrunePolicy) -> str:
    left = [each for each in info.publications if each.place not in policy.withdrawn_from]
    return f"published in {left[0].catalog}, namespace {left[0].namespace}" if left else ""


def _deletions_reason(info: RunInfo, older: Sequence[PruneDecision], needed: Collection[str]) -> str:
    """Keep deletion records that may hide rows of an older run that is kept for another reason than `needed`."""
    if not has_deletions(info.record):
        return ""
    kept = next((each for each in older if not each.is_removed and each.info.run not in needed), None)
    return f"its deletion records may hide rows of the run {kept.info.run}" if kept else ""


def _age(age: timedelta) -> str:
    return count_of(age.days, "day") if age >= timedelta(days=1) else count_of(int(age.total_seconds() // 3600), "hour")
