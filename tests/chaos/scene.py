"""The scene of one round: a folder, a command that runs there repeatedly, and its processes."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.chaos.plan import ENVIRONMENT_NAME, Plan
from tests.support.paths import ROOT, TESTS
from tests.support.processes import command_of, is_alive

COMMAND = TESTS / "chaos" / "htc.py"
# A run takes half a minute on a busy core; one that takes this long hangs.
PATIENCE_S = 240.0
TICK_S = 0.05
# Ray's agents detect after ten seconds that their raylet is gone, and then try for a minute to report it to the control
# service, which is gone as well (ray/_private/process_watcher.py). They hold nothing of the run.
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")


class HungError(Exception):
    """Something did not happen in time; the message says what."""


@dataclass
class Scene:
    """The folder, command and processes of one round.

    folder: the round's own, for log and marks.
    input_uri, output_uri: as given to the command.
    endpoint_url: of the store as the command sees it, "" for local files.
    environment: on top of this process's.
    exit_codes: of the commands so far; a killed one has the signal's negative number.
    ray_folder: for the files of this scene's Ray.
    """

    folder: Path
    input_uri: str
    output_uri: str
    endpoint_url: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    exit_codes: list[int] = field(default_factory=list)
    ray_folder: str = ""
    _process: "subprocess.Popen[bytes] | None" = None
    _family: dict[int, psutil.Process] = field(default_factory=dict)

    @property
    def log(self) -> str:
        """The output of the commands so far."""
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def prepare(self, plan: Plan) -> dict[str, str]:
        """Create the folders and return the command's environment."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.ray_folder:
            # Ray's sockets are in it, and a socket's path has at most 107 characters.
            self.ray_folder = tempfile.mkdtemp(prefix="htc-chaos-")
        own = {
            ENVIRONMENT_NAME: plan.to_json(),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "RAY_TMPDIR": self.ray_folder,
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        return os.environ | own | dict(self.environment)

    def start(self, plan: Plan) -> None:
        """Start the command in its own process group."""
        environment = self.prepare(plan)
        command = [
            sys.executable, str(COMMAND), "run", self.input_uri, self.output_uri, "--model", "htc_lite0_fpn",
            "--weights", "untrained", "--workers", "2", "--shard-images", "4", "--max-error-rate", "0.2", *self.flags,
        ]  # fmt: skip
        if self.endpoint_url:
            command += ["--endpoint-url", self.endpoint_url]
        with (self.folder / "log").open("ab") as log:
            # This checkout, so that no other folder's modules can be imported.
            self._process = subprocess.Popen(
                command, env=environment, cwd=ROOT, stdout=log, stderr=log, start_new_session=True
            )

    def run(self, plan: Plan) -> int:
        """Run the command to its end and return its exit code."""
        self.start(plan)
        return self.end()

    def run_until_done(self, plan: Plan, *, most: int) -> None:
        """Run the command until its exit code is 0, at most `most` times."""
        while len(self.exit_codes) < most:
            if self.run(plan) == 0:
                return

    def end(self) -> int:
        """Wait for the command's end and return its exit code."""
        process = self._running()
        self.wait_until(lambda: process.poll() is not None, "the command did not end")
        self.exit_codes.append(process.returncode)
        return process.returncode

    def kill_driver(self) -> None:
        """SIGKILL to the driver alone; Ray must detect it by itself."""
        self._note_family()
        self._running().kill()
        self._running().wait()
        self.exit_codes.append(-signal.SIGKILL)

    def kill_a_worker(self, pick: Callable[[list[int]], int]) -> bool:
        """SIGKILL to one worker, if there is one."""
        self._note_family()
        workers = sorted(pid for pid, each in self._family.items() if command_of(each).startswith("ray::Worker"))
        if not workers:
            return False
        with suppress(ProcessLookupError):
            os.kill(pick(workers), signal.SIGKILL)
        return True

    @property
    def is_running(self) -> bool:
        """Whether the command still runs."""
        return self._process is not None and self._process.poll() is None

    def wait_for_log(self, pattern: str) -> None:
        """Wait until the log matches, or the command has ended."""
        self.wait_until(
            lambda: not self.is_running or re.search(pattern, self.log), f"the log never matched {pattern!r}"
        )

    def wait_until(self, is_so: Callable[[], object], complaint: str) -> None:
        """Wait until `is_so`, and record meanwhile which processes the command has.

        Raises:
            HungError: it is not so after PATIENCE_S.
        """
        deadline = time.monotonic() + PATIENCE_S
        while not is_so():
            if time.monotonic() > deadline:
                raise HungError(f"{complaint} in {PATIENCE_S:g} s")
            self._note_family()
            time.sleep(TICK_S)

    def survivors(self, within_s: float) -> list[str]:
        """Return the commands' processes that are alive after `within_s`, except Ray's agents."""
        awaited = [each for each in self._family.values() if not command_of(each).startswith(AGENTS)]
        _, alive = psutil.wait_procs(awaited, timeout=within_s)
        return [command_of(each) for each in alive if is_alive(each)]

    def clear(self) -> None:
        """Kill this scene's processes that are left, and remove Ray's folder."""
        for each in self._family.values():
            with suppress(psutil.Error):
                each.kill()
        if self.is_running:
            os.killpg(self._running().pid, signal.SIGKILL)
        if self._process is not None:
            self._process.wait()
        shutil.rmtree(self.ray_folder, ignore_errors=True)

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._process is None:
            raise ValueError("no command was started")
        return self._process

    def _note_family(self) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        with suppress(psutil.Error):
            for each in psutil.Process(self._process.pid).children(recursive=True):
                self._family.setdefault(each.pid, each)
