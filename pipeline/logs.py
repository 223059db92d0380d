"""The program's log on stderr: text for people, or one JSON object per line for log collectors.

`--log-format` and `--log-level` set HTC_LOG_FORMAT and HTC_LOG_LEVEL, which the processes that this one starts inherit.
Every line of the JSON form has the keys of `KEYS`. Secrets are removed from both forms.
"""

import json
import logging
import math
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal, NamedTuple, TextIO

from pipeline.redaction import RedactingFormatter, redact

FORMAT_VARIABLE = "HTC_LOG_FORMAT"
LEVEL_VARIABLE = "HTC_LOG_LEVEL"
FORMATS = ("text", "json")
LEVELS = ("debug", "info", "warning", "error")
KEYS = ("time", "level", "event", "run", "shard", "worker", "attempt", "message", "fields")
_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# For the last lines of libraries when the process ends.
DRAIN_S = 1.0


class EventKind(NamedTuple):
    """A named event: its usual level and what it means."""

    level: Literal["debug", "info", "warning", "error"]
    meaning: str


EVENTS: Mapping[str, EventKind] = {
    # A run, by its driver.
    "run_started": EventKind("info", "A session of a run begins: fields state, images, shards, shards_left, output."),
    "run_planned": EventKind("info", "The input is listed to its end: fields images, shards."),
    "heartbeat": EventKind("info", "Every ten seconds while a driver works: fields as in progress.json."),
    "error_budget": EventKind("warning", "The run may end over its error budget; its input is still being listed."),
    "early_stop": EventKind("error", "The run cannot end within its error budget and stops."),
    "interrupted": EventKind("warning", "A signal stops the command."),
    "run_ended": EventKind("info", "A session ended (error unless complete): fields status, exit_code and totals."),
    "shard_committed": EventKind("debug", "A shard's tables are written: fields images, instances, seconds."),
    "shard_retried": EventKind("warning", "An attempt ended without a commit: fields kind, reason."),
    "shard_given_up": EventKind("error", "A shard's last attempt failed; its images are `failed`."),
    "shard_copied": EventKind("info", "An idle worker starts a speculative copy of a shard that takes long."),
    "image_failed": EventKind("warning", "An image's row is not `ok`: fields uri, status, reason. At most 1,000."),
    "images_failed": EventKind("warning", "More than 1,000 images failed; the table `images` has them all."),
    "worker_started": EventKind("info", "A worker has its model: fields device, batch_size, load_s."),
    "worker_not_started": EventKind("warning", "A worker could not load its model: fields reason, is_permanent."),
    "worker_lost": EventKind("warning", "A worker's process or node is gone: fields reason, lost_shards."),
    "worker_retired": EventKind("info", "A worker reached its limits and is replaced."),
    "store_retry": EventKind("warning", "A store did not answer well; at most one line in ten seconds: field retries."),
    "damaged_file": EventKind("warning", "A file of the output is damaged, and the command can do without it."),
    # Training.
    "training_progress": EventKind("info", "Every ten seconds of a training: fields step, steps, losses."),
    "training_scores": EventKind("info", "A training was scored: fields epoch, evaluation, classes, is_best."),
    # The scheduler.
    "firing": EventKind("info", "The scheduler began, stopped or ended a firing: field firing."),
    "notification_failed": EventKind("warning", "A webhook or an exit hook was not reached: field channel."),
    # Commands.
    "error": EventKind("error", "The command ends with an error that its message explains: field exit_code."),
    "usage_error": EventKind("error", "An unknown flag, a missing argument, a wrong value: field exit_code."),
    "failure": EventKind("error", "A bug of this program: fields exit_code, traceback, report."),
    "warning": EventKind("warning", "A warning of Python or of a library."),
    "output": EventKind("info", "A line that a library or a child process wrote to stderr."),
    "note": EventKind("info", "A sentence without a name of its own."),
    "log": EventKind("info", "A line of a module's log: field logger."),
}


class Note(str):
    """A sentence for people, with the event that it reports; displays of text show it as any other."""

    event: str
    place: Mapping[str, object]
    fields: Mapping[str, object]
    level: str | None


def note(event: str, sentence: str, *, level: str | None = None, **values: object) -> Note:
    """Return a sentence that carries an event of `EVENTS`; values as for `log_event`."""
    made = Note(sentence)
    made.event, made.level = event, level
    made.place, made.fields = _split(values)
    return made


def log_event(log: logging.Logger, event: str, sentence: str, *, level: str | None = None, **values: object) -> None:
    """Log an event of `EVENTS`.

    Args:
        level: instead of the event's usual one.
        values: run, shard, worker and attempt are keys of the line of their own, others its fields.
    """
    number = logging.getLevelName((level or EVENTS[event].level).upper())
    # Without a handler Python would write warnings as they are: the commands show what people are to read themselves.
    if log.isEnabledFor(number) and log.hasHandlers():
        place, fields = _split(values)
        extra = {"htc_event": event, "htc_place": place, "htc_fields": fields}
        log.log(number, "%s", sentence, extra=extra)


def log_note(log: logging.Logger, sentence: str, *, event: str = "note") -> None:
    """Log a sentence; one that is a `Note` as its event."""
    if isinstance(sentence, Note):
        log_event(log, sentence.event, str(sentence), level=sentence.level, **sentence.place, **sentence.fields)
    else:
        log_event(log, event, sentence)


_PLACES = ("run", "shard", "worker", "attempt")


def _split(values: Mapping[str, object]) -> tuple[dict[str, object], dict[str, object]]:
    place = {name: value for name, value in values.items() if name in _PLACES}
    return place, {name: value for name, value in values.items() if name not in _PLACES}


# Of the whole process, and of what one thread does.
_process_place: dict[str, object] = {}
_place: ContextVar[Mapping[str, object]] = ContextVar("place", default={})  # noqa: B039 - never changed


def set_place(**place: object) -> None:
    """Have every further line of this process name this run, or this worker."""
    _process_place.update(place)


@contextmanager
def placed(**place: object) -> Iterator[None]:
    """Have every line that this thread logs in the block name this shard and attempt."""
    token = _place.set({**_place.get(), **place})
    try:
        yield
    finally:
        _place.reset(token)


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON with the keys of `KEYS`; redacts every text in it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        fields: dict[str, object] = dict(getattr(record, "htc_fields", {}))
        event = getattr(record, "htc_event", None)
        if event is None:
            event = "warning" if record.name == "py.warnings" else "log"
            fields["logger"] = record.name
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        place = {**_process_place, **_place.get(), **getattr(record, "htc_place", {})}
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")[:-6] + "Z",
            "level": record.levelname.lower(),
            "event": event,
            **{key: place.get(key) for key in _PLACES},
            "message": record.getMessage(),
            "fields": fields,
        }
        return json.dumps(_clean(line))


def _clean(value: object) -> object:
    """Return a value that JSON can express, its texts redacted; NaN and infinity become null."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _clean(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean(each) for each in value]
    return redact(str(value))


def log_format() -> str:
    """Return "text" or "json", as HTC_LOG_FORMAT says.

    Raises:
        ValueError: it says something else; one sentence.
    """
    return _setting(FORMAT_VARIABLE, FORMATS, "text")


def log_level(default: str = "info") -> str:
    """Return the level of HTC_LOG_LEVEL.

    Raises:
        ValueError: it is no level; one sentence.
    """
    return _setting(LEVEL_VARIABLE, LEVELS, default)


def _setting(variable: str, known: Sequence[str], default: str) -> str:
    value = os.environ.get(variable, "").strip().lower() or default
    if value not in known:
        raise ValueError(f"{variable} is {value!r}; set it to one of {', '.join(known)}, or leave it unset.")
    return value


def inherited() -> dict[str, str]:
    """Return the variables of the log that are set, for a process that does not inherit this one's environment."""
    return {name: os.environ[name] for name in (FORMAT_VARIABLE, LEVEL_VARIABLE) if os.environ.get(name)}


def chosen_level() -> str:
    """Return the level of HTC_LOG_LEVEL, "" where none is set or it holds something unknown."""
    value = os.environ.get(LEVEL_VARIABLE, "").strip().lower()
    return value if value in LEVELS else ""


def is_json() -> bool:
    """Return whether this process logs JSON; False where HTC_LOG_FORMAT holds something unknown."""
    return os.environ.get(FORMAT_VARIABLE, "").strip().lower() == "json"


def _text_formatter() -> logging.Formatter:
    formatter = RedactingFormatter(_TEXT, datefmt="%Y-%m-%dT%H:%M:%SZ")
    formatter.converter = time.gmtime
    return formatter


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to sys.stderr as it is at the time, or to where it was before `capture_output`."""

    def __init__(self) -> None:
        # Not StreamHandler's, which keeps today's sys.stderr.
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return _own_stderr or sys.stderr

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Drop a line that cannot be written: its reader is gone, or the disk is full."""


_own_stderr: TextIO | None = None


def configure(*, is_service: bool = False) -> None:
    """Send this process's log to stderr, in the format and from the level on that the environment names.

    In text, a command logs nothing below its usual warnings unless a level was chosen, because it says what it has to
    say itself; a service (the scheduler, a worker) logs from `info` on. Called again, it replaces its own handler.

    Raises:
        ValueError: the environment names an unknown format or level.
    """
    root = logging.getLogger()
    for handler in [each for each in root.handlers if isinstance(each, _Stderr)]:
        root.removeHandler(handler)
    # First the handler, so that an error about the level is logged as well.
    has_json = log_format() == "json"
    level = (chosen_level() or "info").upper()
    if not has_json and not is_service and not os.environ.get(LEVEL_VARIABLE):
        return
    if root.handlers and not has_json:
        # The program that imports this one has its own.
        return
    handler = _Stderr()
    handler.setFormatter(JsonFormatter() if has_json else _text_formatter())
    root.addHandler(handler)
    root.setLevel(max(logging.INFO, logging.getLevelName(level)))
    for name in ("htc_batch", "htc_model", "jobs", "pipeline"):
        # `debug` is this program's: the libraries' fills a disk.
        logging.getLogger(name).setLevel(level)
    for name in ("fsspec", "s3fs", "botocore", "aiobotocore", "urllib3", "ray", "asyncio"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLevelName(level)))
    if has_json:
        logging.captureWarnings(True)
        warnings.showwarning = _show_warning
        sys.excepthook = _log_uncaught
        threading.excepthook = _log_thread
        sys.unraisablehook = _log_unraisable
    log_level()


def _show_warning(  # noqa: PLR0917 - the signature of warnings.showwarning
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    del file, line
    log_event(
        logging.getLogger("py.warnings"), "warning", str(message), category=category.__name__, at=f"{filename}:{lineno}"
    )


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    _log_failure(f"{kind.__name__}: {error}", (kind, error, trace))


def _log_thread(arguments: threading.ExceptHookArgs) -> None:
    if arguments.exc_value is not None and not isinstance(arguments.exc_value, SystemExit):
        what = (arguments.exc_type, arguments.exc_value, arguments.exc_traceback)
        _log_failure(f"{arguments.exc_type.__name__} in a thread: {arguments.exc_value}", what)


def _log_unraisable(arguments: Any) -> None:
    what = (arguments.exc_type, arguments.exc_value, arguments.exc_traceback)
    _log_failure(f"{arguments.exc_type.__name__} that nothing could catch: {arguments.exc_value}", what)


def _log_failure(sentence: str, what: Any) -> None:
    extra = {"htc_event": "failure", "htc_place": {}, "htc_fields": {}}
    logging.getLogger(__name__).error("%s", sentence, exc_info=what, extra=extra)


_drained: threading.Event | None = None
_END = "\0end of the log\n"


def capture_output() -> None:
    """Turn every line that anything in this process writes to stderr past the log into an `output` line.

    That is C libraries, and children that inherit stderr. Call once, in a process of one's own, after `configure`.
    """
    global _own_stderr, _drained  # noqa: PLW0603 - one process, one stderr
    if _own_stderr is not None:
        return
    try:
        own, (read_end, write_end) = os.dup(2), os.pipe()
    except OSError:
        # Started with stderr closed: there is no reader.
        return
    _own_stderr = os.fdopen(own, "w", encoding="utf-8", errors="backslashreplace", buffering=1)
    if sys.stderr is not None:
        sys.stderr.flush()
    os.dup2(write_end, 2)
    os.close(write_end)
    # The old object may believe that it writes to a file, in which it can seek.
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)
    _drained = threading.Event()
    threading.Thread(target=_relay, args=(read_end, _drained), daemon=True, name="stderr").start()


def _relay(read_end: int, drained: threading.Event) -> None:
    with os.fdopen(read_end, encoding="utf-8", errors="backslashreplace") as lines:
        for line in lines:
            if line == _END:
                drained.set()
            elif line.strip():
                relay_line(line.rstrip())


def parse_line(line: str) -> dict[str, Any] | None:
    """Return a line of the JSON log as a dict; None for any other text."""
    if not line.startswith("{"):
        return None
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and value.keys() >= set(KEYS) else None


def relay_line(line: str) -> None:
    """Log a line of another program; one that is a line of this log already is passed on."""
    if parse_line(line):
        stream = _own_stderr or sys.stderr
        stream.write(line + "\n")
        stream.flush()
    else:
        log_event(logging.getLogger(__name__), "output", line)


def relay_lines(lines: Sequence[str]) -> None:
    """Pass on the lines of a worker, see `relay_line`; does nothing where the log is text."""
    if lines and is_json():
        for line in lines:
            relay_line(line)


def drain() -> None:
    """Wait until the captured lines are written, at most `DRAIN_S`."""
    if _drained is None:
        return
    try:
        if sys.stderr is not None:
            sys.stderr.flush()
        os.write(2, _END.encode())
    except OSError:
        return
    _drained.wait(DRAIN_S)
