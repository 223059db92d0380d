"""Runs a program and counts what it and every process below it use: CPU seconds, memory, wall time.

Where this user may create a control group (Linux, as root), the program runs in one of its own: its CPU seconds are
the kernel's count, exact, and no process leaves it. Elsewhere the tree is sampled with psutil, and what a process used
after its last sample is missing. `Usage.is_exact` says which it was.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

SAMPLE_EVERY_S = 0.2
MIB = 2**20
# Version 1 of the control groups counts CPU in a hierarchy of its own, version 2 has one for everything.
_GROUPS = (Path("/sys/fs/cgroup/cpuacct"), Path("/sys/fs/cgroup"))


@dataclass(frozen=True)
class Usage:
    """What a program and the processes below it used.

    started_at: Unix time. wall_s: until the program itself ended. status: its exit status, negative for a signal.
    cpu_s: user and system time of all processes. is_exact: whether that is the kernel's count.
    peak_mib: of their private memory, and of their shared memory counted once, added up at one moment.
    other_cpu_s: what everything else on the machine used meanwhile, the measuring process included.
    was_ended: whether it was ended from here, by the time limit or by `until`.
    """

    started_at: float
    wall_s: float
    status: int
    cpu_s: float
    is_exact: bool
    peak_mib: float
    other_cpu_s: float
    was_ended: bool


class _Group:
    """A control group of its own for the program."""

    is_exact = True

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def launcher(self) -> list[str]:
        """Return the words before a command that make it run in the group."""
        return ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self._folder / "cgroup.procs")]

    def pids(self) -> list[int]:
        return [int(line) for line in (self._folder / "cgroup.procs").read_text().split()]

    def cpu_s(self) -> float:
        usage = self._folder / "cpuacct.usage"
        if usage.exists():
            return int(usage.read_text()) / 1e9
        words = (self._folder / "cpu.stat").read_text().split()
        return int(words[words.index("usage_usec") + 1]) / 1e6

    def close(self) -> None:
        # Refused while a process that was killed is still being removed.
        for _ in range(50):
            with suppress(OSError):
                self._folder.rmdir()
                return
            time.sleep(0.1)


class _Sampled:
    """The tree below this process, as far as its samples show it."""

    is_exact = False

    def __init__(self) -> None:
        self._seen: dict[tuple[int, float], tuple[psutil.Process, float]] = {}

    def launcher(self) -> list[str]:
        return []

    def pids(self) -> list[int]:
        # Processes whose parent has died are no children any more, and were seen before.
        for process in psutil.Process().children(recursive=True):
            self._seen.setdefault((process.pid, process.create_time()), (process, 0.0))
        alive = []
        for key, (process, _) in list(self._seen.items()):
            with suppress(psutil.Error):
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    times = process.cpu_times()
                    self._seen[key] = (process, times.user + times.system)
                    alive.append(process.pid)
        return alive

    def cpu_s(self) -> float:
        return sum(used for _, used in self._seen.values())

    def close(self) -> None:
        pass


def _open_group() -> _Group | _Sampled:
    for root in _GROUPS:
        folder = root / f"meter-{os.getpid()}-{time.monotonic_ns()}"
        with suppress(OSError):
            folder.mkdir()
            if (folder / "cpuacct.usage").exists() or (folder / "cpu.stat").exists():
                return _Group(folder)
            folder.rmdir()
    return _Sampled()


def _memory_mib(pids: Sequence[int]) -> float:
    private, shared = 0, [0]
    for pid in pids:
        with suppress(psutil.Error, OSError, ValueError):
            status = Path(f"/proc/{pid}/status")
            if status.exists():
                fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
                private += int(fields.get("RssAnon", "0").split()[0]) * 1024
                shared.append(int(fields.get("RssShmem", "0").split()[0]) * 1024)
            else:
                private += psutil.Process(pid).memory_info().rss
    return (private + max(shared)) / MIB


def _machine_cpu_s() -> float:
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))


def run_metered(
    command: Sequence[str],
    *,
    log: Path,
    environment: Mapping[str, str],
    folder: Path,
    limit_s: float | None = None,
    until: Callable[[], bool] = lambda: False,
) -> Usage:
    """Run a program to its end, then end what it left behind.

    Args:
        log: gets its output. folder: its current folder.
        limit_s: all its processes are killed after this time.
        until: asked at each sample; when it returns True, all its processes get SIGKILL at once.
    """
    group = _open_group()
    machine_before = _machine_cpu_s()
    started_at, start = time.time(), time.monotonic()
    peak, was_ended = 0.0, False
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*group.launcher(), *command], stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            env=dict(environment), cwd=folder, start_new_session=True,
        )  # fmt: skip
    try:
        while process.poll() is None:
            peak = max(peak, _memory_mib(group.pids()))
            if until() or (limit_s is not None and time.monotonic() - start > limit_s):
                was_ended = True
                break
            with suppress(subprocess.TimeoutExpired):
                process.wait(SAMPLE_EVERY_S)
        wall_s = time.monotonic() - start
    finally:
        # It may not have entered the group yet.
        process.kill()
        _kill(group)
        process.wait()
        cpu_s = group.cpu_s()
        group.close()
    other_cpu_s = max(0.0, _machine_cpu_s() - machine_before - cpu_s)
    return Usage(started_at, wall_s, process.returncode, cpu_s, group.is_exact, peak, other_cpu_s, was_ended)


def _kill(group: _Group | _Sampled) -> None:
    """Send SIGKILL to every process of the program, until none is left."""
    for _ in range(100):
        pids = group.pids()
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not pids:
            return
        time.sleep(0.05)
