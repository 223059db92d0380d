"""The commands `htc schedule ...`: store schedules, and show their firings."""

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from jobs.scheduling.cron import due_times
from jobs.scheduling.deadlines import schedule_warning
from jobs.scheduling.engine import plan_firing
from jobs.scheduling.firing import Firing
from jobs.scheduling.formatting import (
    describe_duration,
    describe_firing,
    describe_times,
    firing_values,
    local_time,
    next_time,
    schedule_values,
    shown,
)
from jobs.scheduling.home import is_scheduler_running
from jobs.scheduling.local_launcher import LOG_FILE, firing_folder
from jobs.scheduling.schedule import Schedule, build_schedule, load_job, load_schedule
from jobs.scheduling.store import ScheduleStore, StoredSchedule
from jobs.terminal.console import say, write_line, write_table
from pipeline.errors import HtcError, SpecError

NEXT_SHOWN = 5
# Firings that are looked at for runs that were complete.
HISTORY_COMPARED = 20


def add_schedule(home: Path, file: str | None, keys: Mapping[str, Any], *, is_replaced: bool) -> None:
    """Check a schedule and its job spec, and store it.

    Args:
        file: a YAML file of a schedule; `keys` override it.
        keys: values by name; None stands for a key not given.

    Raises:
        SpecError: the schedule or its job spec is wrong, or the name is taken.
    """
    given = {key: value for key, value in keys.items() if value is not None}
    schedule = load_schedule(file, given) if file else build_schedule(given)
    load_job(schedule)
    with closing(ScheduleStore(home)) as store:
        former = store.find(schedule.name)
        if former is not None and not is_replaced:
            raise SpecError(
                f"A schedule {schedule.name} already exists (htc schedule show {schedule.name}); replace it with "
                "--replace, or choose another name."
            )
        neighbours = _neighbours(store, schedule)
        store.put(schedule, datetime.now(UTC))
        history = store.history(schedule.name, HISTORY_COMPARED)
    write_line(f"{'Replaced' if former else 'Added'} {schedule.name}: {describe_times(schedule)}.")
    if not schedule.is_paused:
        write_line(f"Next: {local_time(next_time(schedule), schedule)}")
    for warning in _warnings(schedule, neighbours, home, history):
        say(warning)


def list_schedules(home: Path, *, is_json: bool) -> None:
    """Write one line for each schedule: times, next time, last outcome."""
    with closing(ScheduleStore(home)) as store:
        rows = [(stored, _last_of(store, stored.schedule.name)) for stored in store.schedules()]
    if is_json:
        write_line(json.dumps([{**schedule_values(stored), "last": firing_values(last)} for stored, last in rows]))
        return
    if not rows:
        say(f"There are no schedules in {home}; add one with: htc schedule add NAME job.yaml --cron '30 2 * * *'")
        return
    cells = [
        (
            stored.schedule.name,
            describe_times(stored.schedule),
            "paused" if stored.schedule.is_paused else local_time(next_time(stored.schedule), stored.schedule),
            describe_firing(last) if last else "",
            "here" if stored.schedule.address is None else stored.schedule.address,
        )
        for stored, last in rows
    ]
    write_table(["schedule", "times", "next", "last", "runs on"], cells)
    _say_no_scheduler(home)


def show_schedule(home: Path, name: str, *, is_json: bool) -> None:
    """Write one schedule's settings, its next times, and its last firing."""
    with closing(ScheduleStore(home)) as store:
        stored = _require(store, name)
        last = _last_of(store, name)
        history = store.history(name, HISTORY_COMPARED)
        neighbours = _neighbours(store, stored.schedule)
    schedule = stored.schedule
    if is_json:
        write_line(json.dumps({**schedule_values(stored), "last": firing_values(last)}))
        return
    rows = [(key, shown(value)) for key, value in schedule.to_dict().items() if key != "notify"]
    rows += [(f"notify.{key}", shown(value)) for key, value in schedule.notify.model_dump(mode="json").items()]
    rows.append(("times", describe_times(schedule)))
    times = islice(due_times(schedule.cron, schedule.time_zone, datetime.now(UTC)), NEXT_SHOWN)
    rows.extend(("next", local_time(moment, schedule)) for moment in times)
    if last is not None:
        rows.append(("last", describe_firing(last)))
    write_table(["", ""], rows, has_header=False)
    for warning in _warnings(schedule, neighbours, home, history):
        say(warning)


def pause_schedule(home: Path, name: str, *, is_paused: bool) -> None:
    """Pause or resume a schedule; firings that were due while it was paused are not made up for."""
    with closing(ScheduleStore(home)) as store:
        schedule = _require(store, name).schedule
        if schedule.is_paused != is_paused:
            store.put(schedule.model_copy(update={"is_paused": is_paused}), datetime.now(UTC))
    if is_paused:
        write_line(f"Paused {name}; a run in progress continues. Resume it with: htc schedule resume {name}")
    else:
        write_line(f"Resumed {name}. Next: {local_time(next_time(schedule), schedule)}")


def remove_schedule(home: Path, name: str) -> None:
    """Remove a schedule; a run in progress continues, and the history stays."""
    with closing(ScheduleStore(home)) as store:
        # Removes also a schedule that cannot be read.
        if not store.has(name):
            _require(store, name)
        store.remove(name)
    write_line(f"Removed {name}; its history (htc schedule history {name}) and its tables stay.")


def run_now(home: Path, name: str) -> None:
    """Fire a schedule once, now, even if it is paused."""
    with closing(ScheduleStore(home)) as store:
        schedule = _require(store, name).schedule
        load_job(schedule)
        firing = plan_firing(schedule, datetime.now(UTC).replace(microsecond=0), "manual")
        store.insert(firing)
    write_line(f"Requested {firing.name}; follow it with: htc schedule history {name}")
    _say_no_scheduler(home)


def stop_runs(home: Path, name: str) -> None:
    """Stop a schedule's running and waiting firings; committed results stay."""
    with closing(ScheduleStore(home)) as store:
        names = store.ask_to_stop(name)
        if not names:
            _require(store, name)
    if not names:
        write_line(f"No run of {name} is in progress.")
        return
    write_line(f"Asked to stop {', '.join(names)}; the schedule stays active (htc schedule pause {name} pauses it).")
    _say_no_scheduler(home)


def show_history(home: Path, name: str | None, *, limit: int, is_json: bool) -> None:
    """Write the newest firings and their outcomes."""
    with closing(ScheduleStore(home)) as store:
        firings = store.history(name, limit)
        if name is not None and not firings:
            _require(store, name)
        problems = {firing.name: store.failed_notifications(firing.name) for firing in firings}
    if is_json:
        write_line(json.dumps([firing_values(firing) for firing in firings]))
        return
    rows = [
        (firing.name, local_time(firing.scheduled, firing.schedule), describe_firing(firing), describe_duration(firing))
        for firing in firings
    ]
    write_table(["run", "scheduled", "outcome", "took"], rows)
    for firing in firings:
        for notification in problems[firing.name]:
            say(f"{firing.name}: the {notification.channel} was not notified: {notification.problem}.")
    log = next((firing_folder(home, firing.name) / LOG_FILE for firing in firings if firing.starts), None)
    if log is not None and log.exists():
        say(f"The newest run's log: {log}")


def _warnings(schedule: Schedule, neighbours: list[str], home: Path, history: Sequence[Firing]) -> list[str]:
    from jobs.notifications.delivery import find_problems

    warnings = [
        f"Notifications cannot be sent from here: {problem}; the scheduler needs it."
        for problem in find_problems(schedule.notify, ("webhook", "apprise")).values()
    ]
    if neighbours:
        write = "writes" if len(neighbours) == 1 else "write"
        warnings.append(
            f"{', '.join(neighbours)} {write} to the same output; while a run of one is in progress, one of the other "
            "is refused. Give each its own output, or times far enough apart."
        )
    if late := schedule_warning(schedule, history):
        warnings.append(late)
    if not is_scheduler_running(home):
        warnings.append(_NO_SCHEDULER)
    return warnings


_NO_SCHEDULER = "No scheduler is running to start it; start one with: htc scheduler"


def _say_no_scheduler(home: Path) -> None:
    if not is_scheduler_running(home):
        say(_NO_SCHEDULER)


def _neighbours(store: ScheduleStore, schedule: Schedule) -> list[str]:
    """Return the names of the other schedules that write to the schedule's output."""
    output = _output_of(schedule)
    others = (stored.schedule for stored in store.schedules() if stored.schedule.name != schedule.name)
    return [other.name for other in others if output is not None and _output_of(other) == output]


def _output_of(schedule: Schedule) -> str | None:
    try:
        return load_job(schedule).output.uri.rstrip("/")
    except HtcError:
        return None


def _require(store: ScheduleStore, name: str) -> StoredSchedule:
    known = {stored.schedule.name: stored for stored in store.schedules()}
    if name not in known:
        names = f"there are {', '.join(known)}" if known else "there are none"
        raise SpecError(f"There is no schedule {name} in {store.home}; {names}.")
    return known[name]


def _last_of(store: ScheduleStore, name: str) -> Firing | None:
    return next(iter(store.history(name, 1)), None)
