"""The schedule model: a job spec, the times at which it runs, and the policies for late, overlapping or failed runs."""

import copy
import difflib
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import available_timezones

from pydantic import AfterValidator, Field, ValidationError, ValidationInfo, field_validator

from jobs.scheduling.cron import check_cron
from pipeline.errors import RunError, SpecError, TransientStorageError
from pipeline.job_spec.job import JobSpec, load_spec
from pipeline.job_spec.messages import describe_problems
from pipeline.job_spec.notify import NotifyTargets
from pipeline.job_spec.parsing import parse_yaml, read_spec_text
from pipeline.settings import NAME_PATTERN, Section
from pipeline.storage.config import Uri
from pipeline.storage.uris import absolute_uri

Overlap = Literal["skip", "queue", "replace"]
CatchUp = Literal["none", "last", "all"]
Mode = Literal["incremental", "full"]
RuntimeEnv = Literal["code", "image", "pip"]
Event = Literal["end", "failure", "deadline"]

_FLAGS = {"name": "NAME", "spec": "SPEC", "cron": "--cron '30 2 * * *'"}


@functools.cache
def _zones() -> frozenset[str]:
    # Cached, because it walks over hundreds of files.
    return frozenset(available_timezones())


def _known_zone(name: str) -> str:
    zones = _zones()
    if name in zones:
        return name
    if re.fullmatch(r"(?:UTC|GMT)?[+-]\d{1,2}(?::?\d{2})?", name):
        raise ValueError(f"{name} is an offset, which is wrong in summer time; name a place, such as Europe/Berlin")
    lowered = {zone.lower(): zone for zone in sorted(zones)}
    cities = {zone.rpartition("/")[2]: zone for zone in lowered}
    wanted = name.strip().lower().replace(" ", "_")
    nearest = difflib.get_close_matches(wanted, lowered, n=1, cutoff=0.75) or difflib.get_close_matches(
        wanted, cities, n=1, cutoff=0.75
    )
    meant = lowered.get(cities.get(nearest[0], nearest[0])) if nearest else None
    way_out = f"did you mean {meant}?" if meant else "write a place such as Europe/Berlin, or UTC"
    raise ValueError(f"{name!r} is not a time zone; {way_out}")


class NotifySection(NotifyTargets):
    """Where a schedule's notifications go, and for which events.

    events: "end" is a complete run, "failure" a run that is incomplete or could not begin, "deadline" a run that has
        not ended by its deadline.
    """

    events: list[Event] = Field(
        default=["end", "failure", "deadline"], description='a list of "end", "failure" and "deadline"'
    )


class Schedule(Section):
    """When a job spec runs, and the policies for late, overlapping or failed runs.

    spec: the path or URI of a job spec, read again at each firing, or the spec itself.
    cron: five fields, see `jobs.scheduling.cron`; aliases such as `@daily` are expanded.
    time_zone: the IANA name of the time zone of `cron`.
    mode: "incremental" runs what is new or changed, "full" everything.
    overlap: what happens to a firing while the schedule's last run is in progress: "skip" it, "queue" it, or stop
        the other run and "replace" it.
    catch_up: which firings to make up for that were missed because no scheduler was running: "none", the "last", or
        "all" of them, one after the other; only those of the last `catch_up_window_s`.
    deadline_s: from the scheduled time; a run that has not ended by then is reported and, with `on_deadline: stop`,
        stopped; its committed results stay, and the next run continues from them.
    jitter_s: each firing begins up to this much later, so that many schedules do not begin in the same second.
    address: URL of the Ray cluster's dashboard ("http://head:8265"); None runs on the scheduler's own machine.
    runtime_env: what the job brings to the cluster, as in `htc submit --runtime-env`.
    """

    name: str = Field(
        pattern=NAME_PATTERN,
        max_length=60,
        description="letters, digits, dots, dashes and underscores, starting with a letter or digit, 60 at most",
    )
    spec: str | dict[str, Any] = Field(description="the path of a job spec, or a job spec's keys")
    cron: Annotated[str, AfterValidator(check_cron)] = Field(description='five fields, such as "30 2 * * *"')
    time_zone: Annotated[str, AfterValidator(_known_zone)] = Field(
        default="UTC", description='a time zone, such as "Europe/Berlin"'
    )
    mode: Mode = Field(default="incremental", description='"incremental" or "full"')
    overlap: Overlap = Field(default="skip", description='"skip", "queue" or "replace"')
    catch_up: CatchUp = Field(default="last", description='"none", "last" or "all"')
    catch_up_window_s: float = Field(
        default=86_400, gt=0, le=31_622_400, description="seconds, more than 0, a year at most"
    )
    jitter_s: float = Field(default=0, ge=0, le=86_400, description="a number of seconds from 0 to 86400")
    deadline_s: float | None = Field(default=None, gt=0, description="seconds, more than 0, or null for none")
    on_deadline: Literal["notify", "stop"] = Field(default="notify", description='"notify" or "stop"')
    address: Uri | None = Field(default=None, min_length=1, description='a URL such as "http://head:8265", or null')
    runtime_env: RuntimeEnv = Field(default="code", description='"code", "image" or "pip"')
    notify: NotifySection = NotifySection()
    is_paused: bool = Field(default=False, description="true or false")

    @field_validator("deadline_s")
    @classmethod
    def _after_jitter(cls, deadline_s: float | None, fields: ValidationInfo) -> float | None:
        if deadline_s is not None and deadline_s <= fields.data.get("jitter_s", 0):
            raise ValueError("it counts from the scheduled time and must be more than jitter_s")
        return deadline_s

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON-able values, from which `build_schedule` builds it again."""
        return self.model_dump(mode="json")


def build_schedule(tree: Mapping[str, Any], *, source: str | Path | None = None) -> Schedule:
    """Check a schedule's keys, and make its local paths absolute; a job spec in a file is not read.

    Raises:
        SpecError: one sentence per problem, all problems at once.
    """
    try:
        schedule = Schedule.model_validate(dict(tree))
    except ValidationError as error:
        problems = describe_problems(error, Schedule, dict(tree), source=source, name="schedule", flags=_FLAGS)
        raise SpecError(problems) from None
    if isinstance(schedule.spec, str):
        return schedule.model_copy(update={"spec": absolute_uri(schedule.spec)})
    return schedule.model_copy(update={"spec": load_job(schedule).to_dict()})


def load_schedule(path: str | Path, overrides: Mapping[str, object] | None = None) -> Schedule:
    """Read a schedule from a YAML file and override its keys by the flags.

    Args:
        overrides: values by key; None stands for a flag not given.

    Raises:
        SpecError: as `build_schedule`, or the file cannot be read.
    """
    tree = parse_yaml(read_spec_text(path, name="schedule"), str(path), name="schedule")
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    return build_schedule({**tree, **given}, source=path)


def load_job(schedule: Schedule) -> JobSpec:
    """Read and check the current job spec of a schedule, with the schedule's mode.

    Raises:
        SpecError: the file cannot be read, or the spec is wrong.
        RunError: the store of the file cannot be reached now.
    """
    if not isinstance(schedule.spec, str):
        return load_spec(None, {**copy.deepcopy(schedule.spec), "select.mode": schedule.mode})
    try:
        return load_spec(schedule.spec, {"select.mode": schedule.mode})
    except SpecError as error:
        # A wrong spec fails its firing at once; a store that is unreachable for a minute must not.
        if isinstance(error.__context__, TransientStorageError):
            raise RunError(str(error)) from error
        raise
