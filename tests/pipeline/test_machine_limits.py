"""CPU and memory quotas of containers, on file trees as kernels and container runtimes lay them out."""

import os
from pathlib import Path

import pytest

from pipeline.machine_limits import free_shared_memory, machine_name, usable_cpus, usable_memory

V1_MOUNTS = (
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 {group} /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 {group} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
)
V2_MOUNTS = "30 23 0:27 {group} /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
CORES = 8
GIB = 2**30


@pytest.fixture(autouse=True)
def _eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(CORES)))
    sizes = {"SC_PHYS_PAGES": 64 * GIB // 4096, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__)


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def v2(root: Path, own: str, files: dict[str, str], *, mounted: str = "/") -> Path:
    base = {"proc/self/cgroup": f"0::{own}\n", "proc/self/mountinfo": V2_MOUNTS.format(group=mounted)}
    return tree(root, base | {f"sys/fs/cgroup/{name}": text for name, text in files.items()})


def v1(root: Path, own: str, files: dict[str, str], *, mounted: str = "/") -> Path:
    groups = f"4:memory:{own}\n2:cpu,cpuacct:{own}\n1:name=systemd:{own}\n0::/\n"
    base = {"proc/self/cgroup": groups, "proc/self/mountinfo": V1_MOUNTS.format(group=mounted)}
    return tree(root, base | {f"sys/fs/cgroup/{name}": text for name, text in files.items()})


def quota_v1(group: str, quota: int, period: int = 100_000) -> dict[str, str]:
    folder = f"cpu,cpuacct/{group}" if group else "cpu,cpuacct"
    return {f"{folder}/cpu.cfs_quota_us": f"{quota}\n", f"{folder}/cpu.cfs_period_us": f"{period}\n"}


@pytest.mark.parametrize(
    ("limit", "cpus"),
    [
        ("max 100000", CORES),
        ("100000 100000", 1),
        ("50000 100000", 1),
        ("1000 100000", 1),
        ("250000 100000", 2),
        ("300000 100000", 3),
        ("3200000 100000", CORES),
        ("20000 10000", 2),
        ("100000 0", CORES),
        ("100000", CORES),
        ("", CORES),
        ("nonsense here", CORES),
    ],
)
def test_a_quota_of_version_2(tmp_path: Path, limit: str, cpus: int) -> None:
    assert usable_cpus(v2(tmp_path, "/", {"cpu.max": limit})) == cpus


@pytest.mark.parametrize(("quota", "cpus"), [(-1, CORES), (100_000, 1), (50_000, 1), (250_000, 2), (0, CORES)])
def test_a_quota_of_version_1(tmp_path: Path, quota: int, cpus: int) -> None:
    assert usable_cpus(v1(tmp_path, "/", quota_v1("", quota))) == cpus


@pytest.mark.parametrize("make", [v1, v2])
@pytest.mark.parametrize(("outer", "middle", "inner"), [(2, 4, 6), (4, 2, 6), (6, 4, 2), (2, None, None)])
def test_the_lowest_quota_of_nested_groups_counts(
    tmp_path: Path, make: object, outer: int | None, middle: int | None, inner: int | None
) -> None:
    files: dict[str, str] = {}
    for group, cores in (("a", outer), ("a/b", middle), ("a/b/c", inner)):
        if make is v1:
            files |= quota_v1(group, -1 if cores is None else cores * 100_000)
        else:
            files |= {f"{group}/cpu.max": f"{'max' if cores is None else cores * 100_000} 100000"}
    root = (v1 if make is v1 else v2)(tmp_path, "/a/b/c", files)
    assert usable_cpus(root) == 2


@pytest.mark.parametrize("make", [v1, v2])
def test_a_container_with_the_hosts_path_and_only_its_own_group_mounted(tmp_path: Path, make: object) -> None:
    own = "/docker/3e0a"
    if make is v1:
        root = v1(tmp_path, own, quota_v1("", 300_000), mounted=own)
    else:
        root = v2(tmp_path, own, {"cpu.max": "300000 100000"}, mounted=own)
    assert usable_cpus(root) == 3


def test_a_group_outside_the_mount_counts_as_the_mounted_one(tmp_path: Path) -> None:
    assert usable_cpus(v2(tmp_path, "/../../other", {"cpu.max": "300000 100000"})) == 3
    assert usable_cpus(v2(tmp_path / "2", "/elsewhere", {"cpu.max": "300000 100000"}, mounted="/docker/1")) == 3


def test_without_proc_the_mount_points_of_runtimes_are_used(tmp_path: Path) -> None:
    assert usable_cpus(tree(tmp_path / "2", {"sys/fs/cgroup/cpu.max": "100000 100000"})) == 1
    files = {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}
    assert usable_cpus(tree(tmp_path / "1", files)) == 1


def test_a_lower_affinity_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    assert usable_cpus(v2(tmp_path, "/", {"cpu.max": "400000 100000"})) == 1


def test_without_groups_the_systems_cores_and_memory_count(tmp_path: Path) -> None:
    assert usable_cpus(tmp_path) == CORES
    assert usable_memory(tmp_path) == 64 * GIB


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"memory.max": "max"}, 64 * GIB),
        ({"memory.max": str(2 * GIB)}, 2 * GIB),
        ({"memory.max": str(4 * GIB), "a/memory.max": str(2 * GIB)}, 2 * GIB),
        ({"memory.max": str(2 * GIB), "a/memory.max": "max"}, 2 * GIB),
        ({"memory.max": "max", "memory.high": str(3 * GIB)}, 3 * GIB),
        ({"memory.max": str(128 * GIB)}, 64 * GIB),
    ],
)
def test_a_memory_limit_of_version_2(tmp_path: Path, files: dict[str, str], limit: int) -> None:
    assert usable_memory(v2(tmp_path, "/a", files)) == limit


@pytest.mark.parametrize(("text", "limit"), [("9223372036854771712", 64 * GIB), (str(GIB), GIB), ("-1", 64 * GIB)])
def test_a_memory_limit_of_version_1(tmp_path: Path, text: str, limit: int) -> None:
    assert usable_memory(v1(tmp_path, "/a", {"memory/a/memory.limit_in_bytes": text})) == limit


def test_without_shared_memory_nothing_is_free(tmp_path: Path) -> None:
    assert free_shared_memory(tmp_path / "none") == 0
    assert free_shared_memory(tmp_path) > 0


@pytest.mark.parametrize(
    ("device", "cpuinfo", "name"),
    [
        ("cpu", "processor\t: 0\nmodel name\t: AMD EPYC 9B14\nprocessor\t: 1\nmodel name\t: x", "AMD EPYC 9B14, "),
        ("cpu", "", ", "),
        ("cuda NVIDIA H100 80GB", "model name: x", "NVIDIA H100 80GB"),
        ("cuda", "", "cuda"),
    ],
)
def test_a_machine_is_named_by_its_cpu_or_gpu(tmp_path: Path, device: str, cpuinfo: str, name: str) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(cpuinfo)
    named = machine_name(device, tmp_path)
    assert named.endswith("cores" if CORES > 1 else "core") if device == "cpu" else named == name
    assert name in named
