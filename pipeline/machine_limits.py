"""What this process may use of the machine: cores and memory, by affinity and by the quotas of containers.

A container's quota is not in what the system says of its processors. It is in the files of control groups (cgroups(7);
the kernel's Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/): of the process's own group and of all groups above
it, as far as they are visible, each of which may be narrower.
"""

import math
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

# Where /proc does not say: what container runtimes mount.
_USUAL_MOUNTS = {"": ("sys/fs/cgroup",), "cpu": ("sys/fs/cgroup/cpu", "sys/fs/cgroup/cpu,cpuacct")}
_USUAL_MOUNTS["memory"] = ("sys/fs/cgroup/memory",)
# The system's, not a file of ours.
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # nosec B108


@dataclass(frozen=True)
class _Mount:
    """A hierarchy of groups in the file tree: where it is mounted, and which group of it stands there."""

    point: Path
    group: str
    is_v2: bool
    controllers: frozenset[str]


def usable_cpus(root: Path = Path("/")) -> int:
    """The cores that this process may use: by its affinity and by the quotas of its groups; at least 1.

    A quota of 2.5 cores counts as 2: a third worker would make all of them wait for their turns.

    Args:
        root: of the file tree; another one in tests.
    """
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return max(1, min([cores, *(math.floor(quota + 1e-9) for quota in _cpu_quotas(root))]))


def usable_memory(root: Path = Path("/")) -> int | None:
    """The bytes of memory that this process and its neighbours in the container may use; None when not known."""
    limits = list(_memory_limits(root))
    # Not every system has these names.
    with suppress(OSError, ValueError):
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(limits, default=None)


def free_shared_memory(folder: Path = SHARED_MEMORY) -> int:
    """The bytes that are free in the file system of shared memory, 64 MB in many containers; 0 without one."""
    try:
        return shutil.disk_usage(folder).free if os.access(folder, os.W_OK) else 0
    except OSError:
        return 0


def _cpu_quotas(root: Path) -> Iterator[float]:
    """The quotas in cores, of every group that has one."""
    for folder, is_v2 in _groups(root, "cpu"):
        if is_v2:
            words = _read(folder / "cpu.max").split()
        else:
            words = [_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")]
        # "max 100000" and -1 say that there is none.
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[0]) and int(words[1]):
            yield int(words[0]) / int(words[1])


def _memory_limits(root: Path) -> Iterator[int]:
    for folder, is_v2 in _groups(root, "memory"):
        for name in ("memory.max", "memory.high") if is_v2 else ("memory.limit_in_bytes",):
            text = _read(folder / name)
            # Version 1 says "no limit" by a number that no machine has, version 2 by "max".
            if text.isdigit() and int(text):
                yield int(text)


def _groups(root: Path, controller: str) -> Iterator[tuple[Path, bool]]:
    """The folders of this process's group and of those above it, and whether each is of version 2."""
    own = _own_groups(root)
    seen: set[Path] = set()
    for mount in _mounts(root, controller):
        group = own.get("" if mount.is_v2 else controller, "/")
        # A container that sees the whole path of its group, but only its own folder mounted.
        below = group[len(mount.group.rstrip("/")) :] if _is_below(group, mount.group) else ""
        folder = mount.point / below.lstrip("/") if ".." not in below.split("/") else mount.point
        while True:
            if folder not in seen:
                seen.add(folder)
                yield folder, mount.is_v2
            if folder == mount.point or mount.point not in folder.parents:
                break
            folder = folder.parent


def _is_below(group: str, top: str) -> bool:
    return top in {"/", group} or group.startswith(top.rstrip("/") + "/")


def _own_groups(root: Path) -> dict[str, str]:
    """This process's group by controller; that of version 2 has the empty name."""
    found = {}
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        for controller in controllers.split(",") if number != "0" or controllers else [""]:
            found[controller] = path
    return found


def _mounts(root: Path, controller: str) -> Iterator[_Mount]:
    """The mounted hierarchies that may limit what `controller` controls (proc(5), mountinfo)."""
    for line in _read(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 5 or len(kind) < 3 or kind[0] not in ("cgroup", "cgroup2"):
            continue
        mount = _Mount(root / fields[4].lstrip("/"), fields[3], kind[0] == "cgroup2", frozenset(kind[2].split(",")))
        if mount.is_v2 or controller in mount.controllers:
            yield mount
    yield _Mount(root / _USUAL_MOUNTS[""][0], "/", is_v2=True, controllers=frozenset())
    for name in _USUAL_MOUNTS[controller]:
        yield _Mount(root / name, "/", is_v2=False, controllers=frozenset([controller]))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
