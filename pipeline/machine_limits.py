"""CPU cores and memory that this process may use, by its affinity and the quotas of its container.

The system's processor count does not include a container's quota. The quota is in the files of control groups
(cgroups(7); the kernel's Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/): those of the process's own group and
of all visible groups above it, each of which may be lower.
"""

import math
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

# The mount points of container runtimes, for when /proc does not show them.
_USUAL_MOUNTS = {"": ("sys/fs/cgroup",), "cpu": ("sys/fs/cgroup/cpu", "sys/fs/cgroup/cpu,cpuacct")}
_USUAL_MOUNTS["memory"] = ("sys/fs/cgroup/memory",)
# The system's shared memory, not a temporary file of this program.
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # nosec B108


@dataclass(frozen=True)
class _Mount:
    """A mounted hierarchy of control groups: its mount point, and the group that is mounted there."""

    point: Path
    group: str
    is_v2: bool
    controllers: frozenset[str]


def usable_cpus(root: Path = Path("/")) -> int:
    """Return the number of cores that this process may use, by its affinity and its groups' quotas; at least 1.

    A quota of 2.5 cores counts as 2: a third worker would slow down all of them.

    Args:
        root: the root of the file tree; tests pass another one.
    """
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return max(1, min([cores, *(math.floor(quota + 1e-9) for quota in _cpu_quotas(root))]))


def usable_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes of memory that all processes of the container may use together; None if unknown."""
    limits = list(_memory_limits(root))
    # Not every system has these names.
    with suppress(OSError, ValueError):
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(limits, default=None)


def machine_name(device: str = "cpu", root: Path = Path("/")) -> str:
    """Return what a worker computes on: the card's name for "cuda NAME", else the CPU's model and the usable cores.

    Args:
        device: as a worker reports it. root: the root of the file tree; tests pass another one.
    """
    kind, _, card = device.partition(" ")
    if kind != "cpu":
        return card or device
    fields = (line.partition(":") for line in _read(root / "proc/cpuinfo").splitlines())
    models = (value.strip() for name, _, value in fields if name.strip() in ("model name", "Model", "cpu model"))
    cores = usable_cpus(root)
    return f"{next(models, platform.machine() or 'CPU')}, {cores} core{'' if cores == 1 else 's'}"


def free_shared_memory(folder: Path = SHARED_MEMORY) -> int:
    """Return the free bytes of shared memory (64 MB in many containers); 0 if there is none."""
    try:
        return shutil.disk_usage(folder).free if os.access(folder, os.W_OK) else 0
    except OSError:
        return 0


def _cpu_quotas(root: Path) -> Iterator[float]:
    """Yield the quota, in cores, of every group that has one."""
    for folder, is_v2 in _groups(root, "cpu"):
        if is_v2:
            words = _read(folder / "cpu.max").split()
        else:
            words = [_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")]
        # "max 100000" and -1 mean no quota.
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[0]) and int(words[1]):
            yield int(words[0]) / int(words[1])


def _memory_limits(root: Path) -> Iterator[int]:
    for folder, is_v2 in _groups(root, "memory"):
        for name in ("memory.max", "memory.high") if is_v2 else ("memory.limit_in_bytes",):
            text = _read(folder / name)
            # For "no limit", version 1 has a number larger than any machine's memory, version 2 has "max".
            if text.isdigit() and int(text):
                yield int(text)


def _groups(root: Path, controller: str) -> Iterator[tuple[Path, bool]]:
    """Yield the folders of this process's group and of those above it, each with whether it is of version 2."""
    own = _own_groups(root)
    seen: set[Path] = set()
    for mount in _mounts(root, controller):
        group = own.get("" if mount.is_v2 else controller, "/")
        # A container may see the whole path of its group while only its own folder is mounted.
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
    """Return this process's group by controller; the group of version 2 is under the empty name."""
    found = {}
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        for controller in controllers.split(",") if number != "0" or controllers else [""]:
            found[controller] = path
    return found


def _mounts(root: Path, controller: str) -> Iterator[_Mount]:
    """Yield the mounted hierarchies that may limit what `controller` controls (proc(5), mountinfo)."""
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
