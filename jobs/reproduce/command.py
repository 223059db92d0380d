"""`htc reproduce table1`: does the rows one after the other, and writes the table of all of them."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from jobs.reproduce.coco_folder import open_coco
from jobs.reproduce.row_result import RowResult
from jobs.reproduce.run_row import Run, Settings, run_row
from jobs.reproduce.table_rows import TableRow, choose_rows, without_weights
from jobs.reproduce.text import write_rows_csv, write_rows_json, write_text
from jobs.running.weights import DownloadLines
from jobs.terminal.console import say
from pipeline.errors import HtcError, SpecError, StoppedError
from pipeline.output.json_files import read_json, write_json
from pipeline.runs.outcomes import EXIT_COMPLETE, EXIT_FAILED
from pipeline.storage.storage import Storage
from pipeline.storage.uris import absolute_uri, display_uri, join
from pipeline.text import one_line

if TYPE_CHECKING:
    from pipeline.job_spec.job import JobSpec
    from pipeline.runs.summary import RunSummary
    from pipeline.storage.config import StorageSection


@dataclass(frozen=True)
class ReproduceRequest:
    """What `htc reproduce table1` is to do.

    coco: the folder with val2017 and annotations. work: the folder of the outputs, a path or URI. presets, weights: see
    `choose_rows`. limit: the first images only. output_format: "table", "json" or "csv". job: further values of the
    job spec, by dotted key.
    """

    coco: str
    work: str
    presets: Sequence[str] = ()
    weights: Sequence[str] = ()
    limit: int | None = None
    output_format: str = "table"
    job: Mapping[str, object] = field(default_factory=dict)


def report_table1(
    request: ReproduceRequest, *, storage_section: "StorageSection | None" = None, run: Run | None = None
) -> int:
    """Do the rows that are left, write the table of all of them to stdout, and return the exit code.

    Args:
        run: does a job; by default the driver.

    Returns:
        0 when every row is done; 1 when one failed or the command was stopped.

    Raises:
        SpecError: wrong names or files, or a folder that was made with other settings.
        InputError: photos or annotations are missing.
    """
    rows = choose_rows(request.presets, request.weights)
    storage = Storage(storage_section)
    coco = open_coco(request.coco, storage)
    work = absolute_uri(request.work)
    job = dict(request.job)
    if storage_section is not None:
        job |= {f"storage.{key}": value for key, value in storage_section.model_dump(exclude_defaults=True).items()}
    settings = Settings(coco, work, request.limit, job)
    _check_work(settings, storage)
    results, problems, is_stopped = _do_rows(rows, settings, storage, run or _drive)
    if request.output_format == "json":
        write_rows_json(rows, results, problems, coco=display_uri(coco.uri), limit=request.limit)
    elif request.output_format == "csv":
        write_rows_csv(rows, results)
    else:
        write_text(rows, results, problems)
    if is_stopped:
        say("Stopped. Run the same command again to continue.")
    is_failed = any(row.name in problems and row.has_weights for row in rows)
    return EXIT_FAILED if is_stopped or is_failed else EXIT_COMPLETE


def _check_work(settings: Settings, storage: Storage) -> None:
    """Write down what all rows in the folder have in common, or compare it with what is there.

    Raises:
        SpecError: the folder was made with other settings.
    """
    uri = join(settings.work, "reproduce.json")
    precision = settings.job.get("model.precision") or "fp32"
    now = {"coco": settings.coco.uri, "limit": settings.limit, "precision": precision}
    then = read_json(storage, uri)
    if then is None:
        write_json(storage, uri, now)
        return
    for name, value in now.items():
        if then.get(name) != value:
            raise SpecError(
                f"The rows in {display_uri(settings.work)} were made with {_flag(name, then.get(name))}, and not with "
                f"{_flag(name, value)}; give the same, or another folder with --to."
            )


def _flag(name: str, value: object) -> str:
    return f"no --{name}" if value is None else f"--{name} {shlex.quote(str(value))}"


def _do_rows(
    rows: Sequence[TableRow], settings: Settings, storage: Storage, run: Run
) -> tuple[dict[str, RowResult], dict[str, str], bool]:
    """Return the results and the problems by the rows' names, and whether a signal stopped the command."""
    results: dict[str, RowResult] = {}
    problems: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        say(f"{row.name} ({number} of {len(rows)})")
        if not row.has_weights:
            problems[row.name] = without_weights(row)
            say(problems[row.name])
            continue
        try:
            results[row.name] = run_row(row, settings, storage, run=run, on_progress=DownloadLines())
        except StoppedError as stopped:
            say(str(stopped))
            return results, problems, True
        except (HtcError, ValueError) as error:
            if not isinstance(error, HtcError) and type(error).__module__.split(".")[0] != "htc_model":
                raise
            problems[row.name] = one_line(error)
            say(f"{row.name} failed, the other rows go on: {problems[row.name]}")
    return results, problems, False


def _drive(spec: "JobSpec") -> "RunSummary":
    from pipeline.driver import run_job

    return run_job.run(spec)
