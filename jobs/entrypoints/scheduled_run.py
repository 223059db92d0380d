"""The process of a firing on this machine: `htc run`, then it writes the ending.

python -m jobs.entrypoints.scheduled_run FOLDER LOCK RUN, where LOCK is the descriptor of the open, locked file that
shows other processes that this one lives.
"""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from jobs.cli import program as cli
from jobs.scheduling.local_launcher import ENDING_FILE, LOG_FILE, PROCESS_FILE, SPEC_FILE
from jobs.terminal.output_file import atomic_output
from pipeline import logs
from pipeline.runs.outcomes import EXIT_FAILED


def main() -> None:
    """Run the job spec in the folder, and write its ending there."""
    folder, lock, run = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    # Ray's processes outlive a killed driver and must not inherit its lock.
    os.set_inheritable(lock, False)
    with atomic_output(folder / PROCESS_FILE) as file:
        file.write(str(os.getpid()).encode())
    exit_code = EXIT_FAILED
    if logs.is_json():
        logs.configure()
        logs.capture_output()
    try:
        # stdout and the log share a file; with JSON, every line of it is.
        as_json = ["--json"] if logs.is_json() else []
        cli.main(["run", "--spec", str(folder / SPEC_FILE), "--run", run, *as_json])
    except SystemExit as leaving:
        exit_code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    logs.drain()
    _write_ending(folder, run, exit_code)
    cli.leave_soon(exit_code)
    sys.exit(exit_code)


def _write_ending(folder: Path, run: str, exit_code: int) -> None:
    from jobs.scheduling.endings import ending_of, last_line
    from pipeline.job_spec.job import load_spec

    sys.stdout.flush()
    said = (folder / LOG_FILE).read_text(encoding="utf-8", errors="backslashreplace")
    ending = ending_of(load_spec(folder / SPEC_FILE), run, exit_code, last_line(said))
    with atomic_output(folder / ENDING_FILE) as file:
        file.write(json.dumps(asdict(ending)).encode())


if __name__ == "__main__":
    main()
