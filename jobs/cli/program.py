"""Entry point of the `htc` command: arguments in, exit code out, no traceback on the terminal.

Exit codes: 0 complete; 1 incomplete, interrupted, over the error budget or failed; 2 bad usage, spec or input; 3 (`run`
and `plan`) complete before, while the input has changed since; 130 (as shells say) stopped by Ctrl-C. A run that
Ctrl-C, SIGTERM or SIGHUP stops counts as incomplete, has the exit code 1 and says how to resume.

Only the standard library is imported at the top, so that Ctrl-C never shows a traceback of an import; the commands are
in the other files of this folder.
"""

import atexit
import errno
import io
import itertools
import os
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pipeline.runs.outcomes import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE

if TYPE_CHECKING:
    from typer.core import TyperGroup

# Everything is written before this wait begins.
EXIT_GRACE_S = 1.0
# Limit for steps that a signal interrupts before a run exists; ending the process loses nothing.
STUCK_S = 3.0
# A full disk or a used-up quota, as behind `> file`.
_FULL = (errno.ENOSPC, errno.EDQUOT)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit with its exit code.

    Args:
        arguments: the words after `htc`; None takes those of the process.
    """
    try:
        if arguments is None:
            # Before anything else is imported: the handler that is registered first runs last.
            atexit.register(_exit_before_interpreter_shutdown)
            from pipeline.signals import StopRequest

            StopRequest.on_interrupt = staticmethod(_exit_if_stuck)
        _run(arguments)
    except SystemExit as leaving:
        if arguments is None:
            global _exit_code  # noqa: PLW0603 - one process, one exit code
            _exit_code = 0 if leaving.code is None else leaving.code if isinstance(leaving.code, int) else EXIT_FAILED
            leave_soon(_exit_code)
        raise


_exit_code: int | None = None


def _exit_before_interpreter_shutdown() -> None:
    """End the process after all other exit handlers, with its exit code.

    Library threads (pyarrow's release a file a little later than the reader does) may need the interpreter after it
    has shut down. Python then ends the thread inside C++, which aborts the process: a successful command would end
    with "terminate called without an active exception" and exit code 134.
    """
    if _exit_code is None:
        return
    exit_code = _exit_code
    if (logs := sys.modules.get("pipeline.logs")) is not None:
        logs.drain()
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError as error:
            if stream is sys.stdout and not exit_code:
                exit_code = _report_full_disk(error)
    os._exit(exit_code)


def leave_soon(exit_code: int) -> None:
    """End the process soon after a signal has stopped the command, whatever its threads wait for.

    Call it last. Without it, a listing or a read that hangs in a store would keep the process alive for minutes.
    """
    signals = sys.modules.get("pipeline.signals")
    if signals is not None and signals.was_stopped():
        timer = threading.Timer(EXIT_GRACE_S, os._exit, [exit_code])
        timer.daemon = True
        timer.start()


def _exit_if_stuck() -> None:
    def leave() -> None:
        _say("Stopped without waiting for a store that does not answer. Run the same command again to continue.")
        os._exit(EXIT_FAILED)

    timer = threading.Timer(STUCK_S, leave)
    timer.daemon = True
    timer.start()


def _run(arguments: Sequence[str] | None) -> NoReturn:
    try:
        _tolerate_unprintable_text()
        _begin_log(arguments)
        _show_damage()
        load_program().main(args=None if arguments is None else list(arguments), prog_name="htc")
        sys.exit(0)
    except SystemExit as leaving:
        # typer handles Ctrl-C and exits without a message; a command that handles it prints its own.
        if leaving.code == EXIT_INTERRUPTED and _is_caused_by_ctrl_c(leaving):
            _say("Stopped.", "interrupted")
        raise
    except KeyboardInterrupt:
        _say("Stopped.", "interrupted")
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        # The reader (`| head`) has closed the pipe; the interpreter's flush at exit must not fail either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_FAILED)
    except OSError as error:
        sys.exit(_report_full_disk(error) if error.errno in _FULL else _report(error))
    except Exception as error:  # noqa: BLE001 - the process's boundary: every error becomes a message and an exit code
        sys.exit(_report(error))


def _report_full_disk(error: OSError) -> int:
    _say(f"{error.filename or 'The output'} cannot be written: {error.strerror or error}.", "error", exit_code=1)
    return EXIT_FAILED


def _is_caused_by_ctrl_c(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def load_program() -> "TyperGroup":
    """Return `htc` with all its commands."""
    from typer.main import get_group

    from jobs.cli import (  # noqa: F401 - each adds its commands to the app
        browse,
        cluster,
        compare,
        dataset,
        maintenance,
        manifests,
        metrics,
        model,
        report,
        reproduce,
        results,
        run,
        schedule,
        schedule_export,
        top,
        train,
        weights,
    )
    from jobs.cli.app import add_common_flags, app

    return add_common_flags(get_group(app))


def _report(error: Exception) -> int:
    """Print the error as one sentence and return the exit code; the traceback of an unexpected error goes to a file."""
    from pipeline.errors import HtcError
    from pipeline.redaction import redact

    if isinstance(error, HtcError):
        _say(redact(str(error)), "error", exit_code=error.exit_code, kind=type(error).__name__)
        return error.exit_code
    if _is_model_error(error):
        _say(str(error), "error", exit_code=EXIT_USAGE, kind=type(error).__name__)
        return EXIT_USAGE
    summary = redact("".join(traceback.format_exception_only(error)).strip().splitlines()[-1])
    report = _write_report(error)
    sentence = f"Unexpected failure: {summary[:300]} (the full report is in {report})."
    trace = "".join(traceback.format_exception(error))
    _say(sentence, "failure", exit_code=EXIT_FAILED, report=report, traceback=trace)
    return EXIT_FAILED


def _is_model_error(error: Exception) -> bool:
    # htc_model must not import pipeline.errors: it raises its own ValueErrors about presets and weights.
    return isinstance(error, ValueError) and type(error).__module__.split(".")[0] == "htc_model"


def _write_report(error: Exception) -> str:
    text = f"htc {' '.join(sys.argv[1:])}\nPython {sys.version}\n\n{''.join(traceback.format_exception(error))}"
    from pipeline.redaction import redact

    text = redact(text)
    try:
        handle, name = tempfile.mkstemp(prefix=f"htc-failure-{time.strftime('%Y%m%d-%H%M%S')}-", suffix=".log")
        os.close(handle)
        Path(name).write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as reason:
        return f"no file, as it could not be written: {reason.strerror}"
    return name


def _tolerate_unprintable_text() -> None:
    """Escape what the terminal cannot show: object names may hold any bytes, and must not fail a command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _show_damage() -> None:
    """Write the pipeline's reports of damaged files to stderr, each sentence once per command."""
    import logging

    said: set[str] = set()

    class Shown(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            sentence = record.getMessage()
            if sentence not in said:
                said.add(sentence)
                _say(sentence, "damaged_file")

    reports = logging.getLogger("pipeline.storage.damage")
    reports.handlers = [Shown()]
    reports.propagate = False


def _begin_log(arguments: Sequence[str] | None) -> None:
    """Begin the log as flags and environment say, before the commands are loaded: their errors belong in it.

    Raises:
        SpecError: the environment names an unknown format or level.
    """
    from pipeline import logs
    from pipeline.errors import SpecError

    words = list(sys.argv[1:] if arguments is None else arguments)
    for flag, variable, known in (
        ("--log-format", logs.FORMAT_VARIABLE, logs.FORMATS),
        ("--log-level", logs.LEVEL_VARIABLE, logs.LEVELS),
    ):
        given = [word.partition("=")[2] for word in words if word.startswith(f"{flag}=")]
        given += [after for word, after in itertools.pairwise(words) if word == flag]
        # A wrong value gets click's message.
        if given and given[-1] in known:
            os.environ[variable] = given[-1]
    try:
        logs.configure()
    except ValueError as error:
        raise SpecError(str(error)) from error
    if arguments is None and logs.is_json():
        logs.capture_output()


def _say(sentence: str, event: str = "note", **values: Any) -> None:
    # Not through rich: this must work when an import was interrupted.
    try:
        import logging

        from pipeline import logs

        # Without a handler the log has not begun, or could not.
        if logs.is_json() and logging.getLogger().hasHandlers():
            logs.log_event(logging.getLogger(__name__), event, sentence, **values)
            return
        from pipeline.text import printable

        sys.stderr.write(printable(sentence, keep="\n") + "\n")
        sys.stderr.flush()
    except OSError:
        return
