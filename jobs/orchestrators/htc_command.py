"""HtcCommand: one run as a step of an orchestrator, through the `htc` command alone.

An orchestrator's environment rarely holds torch and Ray. So everything here goes through `htc`, which may be another
environment's, and reads what it writes as JSON; nothing but PyYAML is imported.
"""

import hashlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import yaml

from pipeline.runs.outcomes import EXIT_COMPLETE, EXIT_FAILED, EXIT_INPUT_CHANGED, EXIT_USAGE

log = logging.getLogger(__name__)

THIS_HTC = (sys.executable, "-m", "jobs")
# A driver that is asked to end lets a shard in flight go, writes its summary and releases its lease.
STOP_WAIT_S = 120.0
POLL_S = 5.0
# A head node that is replaced, or a tunnel that is opened again.
PATIENCE_S = 120.0
MAX_NAME = 100


class HtcRunFailed(Exception):  # noqa: N818 - the name that users catch; it is not an error of this program
    """A run that did not succeed, with one sentence.

    is_retriable: whether the same step again may succeed, because it resumes the run.
    """

    def __init__(self, message: str, *, is_retriable: bool, result: "RunResult | None" = None) -> None:
        super().__init__(message)
        self.is_retriable = is_retriable
        self.result = result


@dataclass(frozen=True)
class RunResult:
    """What a step did.

    run: its name. output: the URI of the tables. status: as in `htc status`. exit_code: of `htc run`.
    images, images_done, instances, statuses: see `htc status --json`. images_per_s, seconds: of this session.
    reason: why it is not complete. note: what its owner should know though it is.
    job, link: the cluster's job and its page on the dashboard; "" on this machine.
    """

    run: str
    output: str
    exit_code: int
    status: str = ""
    images: int | None = None
    images_done: int | None = None
    instances: int | None = None
    statuses: Mapping[str, int] = field(default_factory=dict)
    images_per_s: float | None = None
    seconds: float | None = None
    reason: str = ""
    note: str = ""
    job: str = ""
    link: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able values, without those that are not known."""
        return {key: value for key, value in asdict(self).items() if value not in (None, "", {})}


@dataclass
class HtcCommand:
    """One run: `execute` it once, in one thread; `stop` may be called from another.

    spec: a job spec as a dict, or its YAML text. run: the run's name; a second attempt under the same name resumes.
    address: a Ray cluster's dashboard, to which the run is submitted; None runs it on this machine.
    command: how `htc` is called. arguments: further flags of `htc run` or `htc submit`.
    environment: variables in addition to this process's. on_line: gets each line that htc writes for people.
    """

    spec: Mapping[str, Any] | str
    run: str
    address: str | None = None
    command: Sequence[str] = THIS_HTC
    arguments: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: str | None = None
    on_line: Callable[[str], None] = log.info

    def __post_init__(self) -> None:
        self.run = run_name(self.run)
        self._process: subprocess.Popen[str] | None = None
        self._job = ""
        self._is_stopped = False

    def execute(self) -> RunResult:
        """Do the run to its end.

        Raises:
            HtcRunFailed: it did not succeed: wrong usage, spec or input (never retriable), over its error budget (not
                retriable either: nothing would change), or anything else.
        """
        with self._spec_file() as path:
            result = self._on_cluster(path) if self.address else self._here(path)
        return _judged(result)

    def stop(self) -> None:
        """Ask the run to end, wait for it, and end it if it does not; what is committed stays."""
        self._is_stopped = True
        if self._job:
            self._ask("stop", self._job)
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_WAIT_S)
        except subprocess.TimeoutExpired:
            process.kill()

    def _here(self, spec: Path) -> RunResult:
        words = ["run", "--spec", str(spec), "--run", self.run, "--json", *self.arguments]
        code, out, last = self._stream(words)
        known = _json_of(out)
        if not known and code == EXIT_INPUT_CHANGED:
            # Nothing was done, so that there is no outcome of a session.
            known = _json_of(self._ask("status", _output_of(self.spec), "--run", self.run, "--json")).get("run") or {}
        return self._result(code, known, last)

    def _on_cluster(self, spec: Path) -> RunResult:
        """Submit the run, or find the job that does it already: an earlier attempt of this step may have died."""
        code, out, last = self._stream(
            ["submit", str(spec), "--run", self.run, "--json", *self._where, *self.arguments]
        )
        self._job = str(_json_of(out).get("job", ""))
        if code and not self._job:
            self._job = self._find_job()
            if not self._job:
                return self._result(code, {}, last)
            self.on_line(f"Following the job {self._job}, which does this run already.")
        return self._follow()

    def _follow(self) -> RunResult:
        since = time.monotonic()
        last = ""
        while True:
            # Its output from the beginning; a connection that breaks is no end of the job.
            _, _, last = self._stream(["logs", self._job, "-f", *self._where], has_json=False)
            known = _json_of(self._ask("status", self._job, "--json"))
            job = known.get("job") or {}
            if job.get("phase") in ("succeeded", "failed", "stopped"):
                code = job.get("exit_code")
                code = code if code is not None else EXIT_COMPLETE if job["phase"] == "succeeded" else EXIT_FAILED
                return self._result(code, known.get("run") or {}, last)
            if job:
                since = time.monotonic()
            elif time.monotonic() - since > PATIENCE_S:
                reason = f"The cluster at {self.address} does not answer; the job {self._job} may still be running."
                raise HtcRunFailed(reason, is_retriable=True)
            time.sleep(POLL_S)

    def _find_job(self) -> str:
        jobs = _json_of(self._ask("list", "--json"), default=[])
        output = _output_of(self.spec).rstrip("/")
        alive = [each for each in jobs if each.get("phase") in ("pending", "running") and each.get("run") == self.run]
        return next((str(each["job"]) for each in alive if str(each.get("output")).rstrip("/") == output), "")

    @property
    def _where(self) -> list[str]:
        return ["--address", self.address] if self.address else []

    def _result(self, code: int, known: Mapping[str, Any], last: str) -> RunResult:
        link = f"{self.address.rstrip('/')}/#/jobs/{self._job}" if self.address and self._job else ""
        result = RunResult(self.run, _output_of(self.spec), code, reason=last if code else "", job=self._job, link=link)
        names = set(RunResult.__dataclass_fields__) - {"run", "output", "exit_code", "job", "link"}
        found = {name: known[name] for name in names if known.get(name) not in (None, "")}
        state = known.get("state")
        return replace(result, **({"status": state} if state else {}), **found)

    def _ask(self, *words: str) -> str:
        """Return what a short command writes to stdout, "" when it fails."""
        done = subprocess.run(  # noqa: S603 - the command that the step's author names
            [*self.command, *words, *self._where],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **self.environment},
            cwd=self.folder,
        )
        if done.returncode:
            self.on_line(done.stderr.strip())
            return ""
        return done.stdout

    def _stream(self, words: Sequence[str], *, has_json: bool = True) -> tuple[int, str, str]:
        """Run a command, pass its lines on; return its exit code, its stdout, and its last line for people.

        Args:
            has_json: whether its stdout is JSON, and not for people.
        """
        if self._is_stopped:
            raise HtcRunFailed("The run was stopped before it began.", is_retriable=True)
        try:
            # A session of its own: a signal to the step's processes does not reach it, `stop` ends it in order.
            self._process = subprocess.Popen(  # noqa: S603 - as above
                [*self.command, *words],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, **self.environment},
                cwd=self.folder,
                start_new_session=True,
            )
        except OSError as error:
            reason = f"{self.command[0]} cannot be started: {error.strerror}; name the htc to use with `command`."
            raise HtcRunFailed(reason, is_retriable=False) from error
        streams = {"out": self._process.stdout, "err": self._process.stderr}
        lines: dict[str, list[str]] = {name: [] for name in streams}
        shown = {"err"} if has_json else {"err", "out"}
        readers = [
            threading.Thread(target=self._read, args=(stream, lines[name], name in shown), daemon=True)
            for name, stream in streams.items()
        ]
        with self._process as process:
            for reader in readers:
                reader.start()
            for reader in readers:
                reader.join()
            code = process.wait()
        said = [line.strip() for name in sorted(shown) for line in lines[name] if line.strip()]
        return code, "".join(lines["out"]), said[-1] if said else ""

    def _read(self, stream: IO[str], lines: list[str], is_shown: bool) -> None:
        for line in stream:
            lines.append(line)
            if is_shown and line.strip():
                self.on_line(line.rstrip("\n"))

    @contextmanager
    def _spec_file(self) -> Iterator[Path]:
        text = self.spec if isinstance(self.spec, str) else yaml.safe_dump(dict(self.spec), sort_keys=False)
        with tempfile.TemporaryDirectory(prefix="htc-step-") as folder:
            path = Path(folder) / "job.yaml"
            path.write_text(text, encoding="utf-8")
            yield path


def read_spec(spec: Mapping[str, Any] | str, render: Callable[[str], str]) -> Mapping[str, Any] | str:
    """Return a step's spec: a dict as it is, the file that a path names as text in which `render` fills in the times.

    Raises:
        HtcRunFailed: there is no such file.
    """
    if not isinstance(spec, str):
        return spec
    if "\n" in spec:
        return render(spec)
    try:
        return render(Path(spec).expanduser().read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise HtcRunFailed(f"The job spec {spec} cannot be read: {error}.", is_retriable=False) from error


def run_name(text: str) -> str:
    """Return a name for a run that a text identifies: letters, digits, dots, dashes, underscores, 100 at most."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._") or "run"
    if len(name) <= MAX_NAME:
        return name
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{name[: MAX_NAME - 9]}-{digest}"


def _judged(result: RunResult) -> RunResult:
    if result.exit_code == EXIT_COMPLETE:
        return result
    if result.exit_code == EXIT_INPUT_CHANGED:
        return replace(result, note=result.reason or "The run was complete; its input has changed since.", reason="")
    what = result.reason or "htc gave no reason."
    if result.exit_code == EXIT_USAGE:
        raise HtcRunFailed(what, is_retriable=False, result=result)
    is_over = result.status == "over_error_budget"
    raise HtcRunFailed(
        f"The run {result.run} is not complete (exit code {result.exit_code}): {what}",
        is_retriable=not is_over,
        result=result,
    )


def _output_of(spec: Mapping[str, Any] | str) -> str:
    try:
        tree = yaml.safe_load(spec) if isinstance(spec, str) else spec
        return str(tree["output"]["uri"])
    except (yaml.YAMLError, KeyError, TypeError):
        # htc refuses such a spec with its own sentence.
        return ""


def _json_of(text: str, default: Any = None) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return {} if default is None else default
