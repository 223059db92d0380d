"""Submit, status, logs, stop, list: jobs on a Ray cluster."""

import enum
from typing import Annotated

import typer

from jobs.cli import options
from jobs.cli.app import app
from jobs.cli.flag_groups import AlsoFlag, with_flag_groups

Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="URL",
        help="The cluster's dashboard. [default: $RAY_API_SERVER_ADDRESS, $RAY_ADDRESS, or http://127.0.0.1:8265]",
        show_default=False,
    ),
]
Job = Annotated[str, typer.Argument(metavar="JOB", help="A job's id, as `htc submit` prints it.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]


class RuntimeEnv(enum.StrEnum):
    """What a job brings to the cluster."""

    CODE = "code"
    IMAGE = "image"
    PIP = "pip"


@app.command()
@with_flag_groups
def submit(
    spec: Annotated[
        str | None, typer.Argument(metavar="SPEC", help="Job spec (YAML); flags override it."), AlsoFlag("--spec")
    ] = None,
    *,
    address: Address = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Follow the job to its end, and exit as `htc run` would.")
    ] = False,
    runtime_env: Annotated[
        RuntimeEnv,
        typer.Option(
            "--runtime-env",
            help="code: upload this htc-batch; image: the cluster's image has it; pip: Ray installs the libraries too.",
        ),
    ] = RuntimeEnv.CODE,
    env: Annotated[
        list[str] | None,
        typer.Option(
            "--env",
            metavar="NAME[=VALUE]",
            help="Set in the job, by default to its value here; repeatable. Not for secrets: the dashboard shows it.",
            show_default=False,
        ),
    ] = None,
    shared_paths: Annotated[
        bool, typer.Option("--shared-paths", help="Local paths are the same on all nodes of the cluster.")
    ] = False,
    input_uri: Annotated[
        str | None, typer.Option("--input", metavar="URI", help="Images, as for `htc run`.", show_default=False)
    ] = None,
    output_uri: Annotated[
        str | None, typer.Option("--output", metavar="URI", help="Folder or prefix for the tables.", show_default=False)
    ] = None,
    job: options.JobFlags,
    budget: options.BudgetFlags,
    as_json: AsJson = False,
) -> None:
    """Start a job on a Ray cluster.

    Submit the same job again to resume; --fresh starts over in a new run.
    """
    from jobs.cluster.submit_command import submit_and_report

    code = submit_and_report(
        options.load_job_spec(spec, job, input_uri=input_uri, output_uri=output_uri, budget=budget),
        address=address,
        run=job.run_name,
        fresh=job.fresh,
        runtime_env=runtime_env.value,
        env=env or [],
        is_shared=shared_paths,
        is_waited_for=wait,
        is_json=as_json,
    )
    raise typer.Exit(code)


@app.command()
@with_flag_groups
def status(
    target: Annotated[
        str | None,
        typer.Argument(metavar="[JOB|OUTPUT]", help="A job's id, or an output folder. [default: the newest job]"),
        AlsoFlag("--output"),
    ] = None,
    *,
    run_name: options.StoredRun = None,
    address: Address = None,
    storage: options.StorageFlags,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show workers and shards as well, until the run ends; see `htc top`.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the progress of a job or a run.

    For an output folder, everything is read from the folder; no cluster is needed.
    """
    from jobs.cluster.status_command import report_status, watch_status

    if watch and as_json:
        raise typer.BadParameter("--watch shows a view, not JSON; for JSON of it: htc top OUTPUT --json")
    if watch:
        raise typer.Exit(watch_status(target, run=run_name, address=address, storage_section=storage.section()))
    report_status(
        target,
        run=run_name,
        address=address,
        storage_section=storage.section(),
        is_json=as_json,
    )


@app.command()
def logs(
    job: Job,
    *,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Follow until the job has ended.")] = False,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Show a job's output."""
    from jobs.cluster.job_commands import report_logs

    report_logs(job, address=address, is_followed=follow, is_json=as_json)


@app.command()
def stop(
    job: Job,
    *,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it has ended.")] = True,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Stop a job.

    Committed results stay; submit the job again to resume.
    """
    from jobs.cluster.job_commands import report_stop

    raise typer.Exit(report_stop(job, address=address, is_waited_for=wait, is_json=as_json))


@app.command("list")
def list_all(*, address: Address = None, as_json: AsJson = False) -> None:
    """List a cluster's jobs, newest first."""
    from jobs.cluster.job_commands import report_list

    report_list(address=address, is_json=as_json)
