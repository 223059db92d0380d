"""Schedules: add, list, pause, run now, and the scheduler that fires them."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from jobs.cli.app import app
from jobs.cli.flag_groups import AlsoFlag, with_flag_groups
from jobs.cli.metrics import Listen

schedule_app = typer.Typer(
    help="Schedules: job specs that run at set times.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(schedule_app, name="schedule")

Home = Annotated[
    Path | None,
    typer.Option("--home", metavar="DIR", help="Folder of the schedules. [default: $HTC_HOME or ~/.local/state/htc]"),
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The schedule's name.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON line instead of a table.")]


@schedule_app.command()
@with_flag_groups
def add(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="The schedule's name.", show_default=False)] = None,
    spec: Annotated[
        str | None,
        typer.Argument(metavar="SPEC", help="Job spec (YAML), read again for each run.", show_default=False),
        AlsoFlag("--spec"),
    ] = None,
    *,
    file: Annotated[
        str | None, typer.Option("--file", metavar="FILE", help="A schedule in YAML; flags override it.")
    ] = None,
    cron: Annotated[
        str | None,
        typer.Option("--cron", metavar="EXPR", help='Minute, hour, day, month, weekday: "30 2 * * *"; or @daily.'),
    ] = None,
    time_zone: Annotated[
        str | None, typer.Option("--time-zone", metavar="ZONE", help="Such as Europe/Berlin. [default: UTC]")
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(
            "--mode",
            metavar="incremental|full",
            help="Only what is new or changed, or everything. [default: incremental]",
        ),
    ] = None,
    overlap: Annotated[
        str | None,
        typer.Option(
            "--overlap", metavar="skip|queue|replace", help="When the last run is still running. [default: skip]"
        ),
    ] = None,
    catch_up: Annotated[
        str | None,
        typer.Option(
            "--catch-up", metavar="none|last|all", help="Which missed firings to make up for. [default: last]"
        ),
    ] = None,
    catch_up_window: Annotated[
        str | None,
        typer.Option(
            "--catch-up-window", metavar="TIME", help="How old a missed firing may be: 90s, 30m, 6h, 2d. [default: 1d]"
        ),
    ] = None,
    deadline: Annotated[
        str | None,
        typer.Option(
            "--deadline", metavar="TIME", help="Time after the scheduled time by which the run must have ended."
        ),
    ] = None,
    on_deadline: Annotated[
        str | None,
        typer.Option(
            "--on-deadline", metavar="notify|stop", help="What to do with a run that has not. [default: notify]"
        ),
    ] = None,
    jitter: Annotated[
        str | None,
        typer.Option("--jitter", metavar="TIME", help="Begin up to this much later, at random. [default: 0]"),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option("--address", metavar="URL", help="Ray cluster's dashboard. [default: the scheduler's machine]"),
    ] = None,
    runtime_env: Annotated[
        str | None,
        typer.Option("--runtime-env", metavar="code|image|pip", help="As in `htc submit`. [default: code]"),
    ] = None,
    webhook_url_env: Annotated[
        str | None,
        typer.Option(
            "--webhook-url-env",
            metavar="VARIABLE",
            help="Environment variable with the URL of a webhook to notify (Slack).",
        ),
    ] = None,
    webhook_url_file: Annotated[
        str | None, typer.Option("--webhook-url-file", metavar="FILE", help="The same, with the URL in a file.")
    ] = None,
    exit_hook: Annotated[
        str | None,
        typer.Option("--exit-hook", metavar="COMMAND", help="Command to run at the end; see docs/schedules.md."),
    ] = None,
    paused: Annotated[bool, typer.Option("--paused", help="Add the schedule paused.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Replace the schedule of this name.")] = False,
    home: Home = None,
) -> None:
    """Add a schedule: a job spec and the times at which it runs."""
    from jobs.scheduling.commands import add_schedule
    from jobs.scheduling.durations import parse_duration
    from jobs.scheduling.home import resolve_home

    notify = {
        "webhook_url_env": webhook_url_env,
        "webhook_url_file": webhook_url_file,
        "exit_hook": shlex.split(exit_hook) if exit_hook else None,
    }
    keys = {
        "name": name,
        "spec": spec,
        "cron": cron,
        "time_zone": time_zone,
        "mode": mode,
        "overlap": overlap,
        "catch_up": catch_up,
        "catch_up_window_s": parse_duration(catch_up_window, "--catch-up-window"),
        "deadline_s": parse_duration(deadline, "--deadline"),
        "on_deadline": on_deadline,
        "jitter_s": parse_duration(jitter, "--jitter"),
        "address": address,
        "runtime_env": runtime_env,
        "notify": {key: value for key, value in notify.items() if value is not None} or None,
        "is_paused": paused or None,
    }
    add_schedule(resolve_home(home), file, keys, is_replaced=replace)


@schedule_app.command("list")
def list_(*, as_json: AsJson = False, home: Home = None) -> None:
    """List the schedules: times, next time, last outcome."""
    from jobs.scheduling.commands import list_schedules
    from jobs.scheduling.home import resolve_home

    list_schedules(resolve_home(home), is_json=as_json)


@schedule_app.command()
def show(name: Name, *, as_json: AsJson = False, home: Home = None) -> None:
    """Show one schedule's settings and next times."""
    from jobs.scheduling.commands import show_schedule
    from jobs.scheduling.home import resolve_home

    show_schedule(resolve_home(home), name, is_json=as_json)


@schedule_app.command()
def pause(name: Name, *, home: Home = None) -> None:
    """Pause a schedule until it is resumed."""
    from jobs.scheduling.commands import pause_schedule
    from jobs.scheduling.home import resolve_home

    pause_schedule(resolve_home(home), name, is_paused=True)


@schedule_app.command()
def resume(name: Name, *, home: Home = None) -> None:
    """Resume a paused schedule, from its next time on."""
    from jobs.scheduling.commands import pause_schedule
    from jobs.scheduling.home import resolve_home

    pause_schedule(resolve_home(home), name, is_paused=False)


@schedule_app.command()
def remove(name: Name, *, home: Home = None) -> None:
    """Remove a schedule; its history and tables stay."""
    from jobs.scheduling.commands import remove_schedule
    from jobs.scheduling.home import resolve_home

    remove_schedule(resolve_home(home), name)


@schedule_app.command("run-now")
def run_now_(name: Name, *, home: Home = None) -> None:
    """Start a schedule's run now."""
    from jobs.scheduling.commands import run_now
    from jobs.scheduling.home import resolve_home

    run_now(resolve_home(home), name)


@schedule_app.command()
def stop(name: Name, *, home: Home = None) -> None:
    """Stop a schedule's current run; committed results stay."""
    from jobs.scheduling.commands import stop_runs
    from jobs.scheduling.home import resolve_home

    stop_runs(resolve_home(home), name)


@schedule_app.command()
def history(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="[default: all]", show_default=False)] = None,
    *,
    last: Annotated[int, typer.Option("--last", metavar="N", min=1, help="Only the newest N.")] = 20,
    as_json: AsJson = False,
    home: Home = None,
) -> None:
    """Show the outcomes of past firings, newest first."""
    from jobs.scheduling.commands import show_history
    from jobs.scheduling.home import resolve_home

    show_history(resolve_home(home), name, limit=last, is_json=as_json)


@app.command()
def scheduler(
    *,
    local_runs: Annotated[
        int, typer.Option("--local-runs", metavar="N", min=1, help="Runs at once on this machine.")
    ] = 1,
    once: Annotated[bool, typer.Option("--once", help="Run what is due, wait for its end, and exit.")] = False,
    drain: Annotated[
        bool, typer.Option("--drain", help="When stopped, wait for the runs to end; without it they continue alone.")
    ] = False,
    listen: Listen = None,
    home: Home = None,
) -> None:
    """Run the schedules until stopped by Ctrl-C or SIGTERM."""
    from jobs.scheduling.home import resolve_home
    from jobs.scheduling.service import run_scheduler

    exit_code = run_scheduler(resolve_home(home), local_runs=local_runs, is_once=once, is_drained=drain, listen=listen)
    raise typer.Exit(exit_code)
