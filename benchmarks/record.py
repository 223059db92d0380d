"""One shape for the results of every benchmark: what was run, where, with which versions, and what it printed.

    python benchmarks/record.py run [--results FOLDER] [--name NAME] -- python benchmarks/masks.py

`run` executes a benchmark, passes its output on, and writes its last line, which must be a JSON object, into
`benchmarks/results/NAME.json` together with the command, the machine, the versions and the load before it began; JSON
objects in earlier lines are kept as `lines`. `benchmarks/report.py` turns these files into `docs/benchmarks.md`.

Keys of such a file:

benchmark   its name. command: as it was typed. commit: of the code that ran; ends in "+" when files were changed.
date        the day, UTC. load_before: the load average of the last minute when it began.
machine     cpu, cores, flags (those of the processor's instruction sets that matter here), memory_gib.
versions    of Python and of the libraries that do the work.
cpu_s       CPU seconds of the benchmark and all of its children that ended before it.
rounds      one object per round, where the benchmark reports rounds; otherwise empty.
results     the remaining keys of its last line. ratios: to a peer in the same run, where the benchmark reports any.
"""

import argparse
import json
import os
import platform
import resource
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
# The instruction sets that decide which kernels oneDNN and NNPACK take.
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd")
LIBRARIES = ("torch", "torchvision", "ray", "pyarrow", "duckdb", "numpy", "pillow", "triton", "openvino", "mmdet")


def machine() -> dict[str, Any]:
    """Describe the machine: cpu, cores (those that this process may use), flags, memory_gib, and gpu where one is."""
    listing = Path("/proc/cpuinfo")
    fields: dict[str, str] = {}
    for line in listing.read_text().splitlines() if listing.exists() else []:
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    known = set((fields.get("flags") or fields.get("Features") or "").split())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    described = {
        "cpu": fields.get("model name") or platform.processor() or platform.machine(),
        "cores": cores,
        "flags": [flag for flag in FLAGS if flag in known],
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
    }
    gpu = _gpu_name()
    return described | ({"gpu": gpu} if gpu else {})


def _gpu_name() -> str:
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def versions() -> dict[str, str]:
    """Return the versions of Python and of those LIBRARIES that are installed; nothing is imported."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """Return the commit of the code, with "+" when tracked files differ from it; "unknown" outside a repository."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], check=False, capture_output=True, text=True)
    if head.returncode != 0:
        return "unknown"
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], check=False).returncode != 0
    return head.stdout.strip() + ("+" if changed else "")


def begin(command: list[str]) -> dict[str, Any]:
    """Return what has to be noted before a benchmark begins; `complete` adds the rest."""
    return {
        "command": shlex.join(command),
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def complete(begun: dict[str, Any], printed: dict[str, Any]) -> dict[str, Any]:
    """Merge what `begin` noted with a benchmark's last line.

    Keys of the last line that say the same are left out; what it says of the machine beyond that (threads) is kept.
    """
    described = printed.get("machine")
    if isinstance(described, dict):
        begun = {**begun, "machine": {**described, **begun["machine"]}}
    rest = {key: value for key, value in printed.items() if key not in {*begun, "benchmark", "rounds", "ratios"}}
    return {
        "benchmark": str(printed.get("benchmark", "unknown")),
        **begun,
        "rounds": printed.get("rounds", []),
        "results": rest,
        "ratios": printed.get("ratios", {}),
    }


def write(path: Path, record: dict[str, Any]) -> None:
    """Write a record so that an interruption leaves either the former file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def objects_in(text: str) -> dict[str, Any]:
    """Return the JSON object in the last line of an output that is one, with those before it as its key `lines`.

    Raises:
        ValueError: no line is a JSON object.
    """
    found: list[dict[str, Any]] = []
    for line in text.splitlines():
        if line.startswith("{"):
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    if not found:
        raise ValueError("the benchmark printed no line that is a JSON object")
    return found[-1] | ({"lines": found[:-1]} if len(found) > 1 else {})


def run(command: list[str], results: Path, name: str | None) -> int:
    """Execute a benchmark and write its record; returns its exit status, and writes nothing when that is not 0."""
    record = begin(command)
    lines: list[str] = []
    # "python" in a command means this interpreter, so that it works without an activated environment.
    words = [sys.executable if word == "python" and not index else word for index, word in enumerate(command)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            lines.append(line)
    if process.returncode != 0:
        print(f"the benchmark ended with status {process.returncode}: nothing is recorded", file=sys.stderr)
        return process.returncode
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    record["cpu_s"] = round(used.ru_utime + used.ru_stime, 1)
    record = complete(record, objects_in("".join(lines)))
    path = results / f"{name or record['benchmark']}.json"
    write(path, record)
    print(f"recorded in {path}", file=sys.stderr)
    return 0


def main() -> int:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run"])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--name", help="of the file; by default the benchmark's own name")
    # Divided here: argparse would take an option before the command for a part of it.
    words = sys.argv[1:]
    own, command = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    options = parser.parse_args(own)
    if not command:
        parser.error("name the command after --")
    return run(command, options.results, options.name)


if __name__ == "__main__":
    sys.exit(main())
