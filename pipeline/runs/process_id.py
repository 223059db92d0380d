"""An identity of this process by which another process can find out that it has ended.

A process number alone is not enough: numbers are reused, start again when the machine boots, and every container counts
its own. Linux has all of it in /proc; on other systems no process is taken for dead.
"""

import os
import socket
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def identify_process() -> str:
    """Return boot, process namespace, number and start of this process; empty where the system does not know them."""
    boot, started = _boot(), _started(os.getpid())
    return f"{boot} {os.getpid()} {started}" if boot and started else ""


def is_alive_here(host: str, process: str) -> bool:
    """Return whether the process that identified itself as `process` on `host` runs on this machine."""
    return _judge(host, process) is True


def is_dead_here(host: str, process: str) -> bool:
    """Return whether the process that identified itself as `process` on `host` was one of this machine and has ended.

    False also when that cannot be known from here.
    """
    return _judge(host, process) is False


def _judge(host: str, process: str) -> bool | None:
    """Return whether it runs; None when that cannot be known from here."""
    boot, pid, started = [*process.rsplit(" ", 2), "", ""][:3]
    if host != socket.gethostname() or not boot or boot != _boot() or not pid.isdigit():
        return None
    return _started(int(pid)) == started


def _boot() -> str:
    """Return this boot of the machine and this process's namespace; empty where the system does not know them."""
    try:
        return f"{_BOOT_ID.read_text(encoding='ascii').strip()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Return when a process was started, in clock ticks since boot; empty when there is none, or only a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    # The name in parentheses may hold any character. After it: 3 state, ... 22 starttime (proc(5)).
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else fields[19]
