"""Entry point of a job that brings its own code to the cluster.

`python -m jobs.entrypoints.cluster_job run ...` is `htc run ...`.

Uses only the standard library and syntax of every Python 3 until it has checked the environment.
"""

from __future__ import annotations

import datetime
import importlib.util
import json
import os
import sys

OLDEST_PYTHON = (3, 11)
# The modules that `htc run` imports, and their names for pip.
NEEDED = {
    "PIL": "pillow",
    "charset_normalizer": "charset-normalizer",
    "duckdb": "duckdb",
    "fsspec": "fsspec",
    "ijson": "ijson",
    "imagecodecs": "imagecodecs",
    "numpy": "numpy",
    "pi_heif": "pi-heif",
    "psutil": "psutil",
    "pyarrow": "pyarrow",
    "pycocotools": "pycocotools",
    "pydantic": "pydantic",
    "pytz": "pytz",
    "ray": "ray",
    "rich": "rich",
    "s3fs": "s3fs",
    "safetensors": "safetensors",
    "tenacity": "tenacity",
    "tifffile": "tifffile",
    "timm": "timm",
    "torch": "torch",
    "torchvision": "torchvision",
    "typer": "typer",
    "yaml": "pyyaml",
}
EXIT_USAGE = 2


def environment_problem(version: tuple[int, ...] = sys.version_info[:3], needed: dict[str, str] = NEEDED) -> str:
    """Return what the cluster's Python lacks, as text; empty if nothing is missing.

    Args:
        version: of Python. needed: names for pip by module.
    """
    running = ".".join(map(str, version))
    if version[:2] < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        return f"The cluster runs Python {running}, and htc-batch needs {oldest} or later; use another image."
    missing = sorted(name for module, name in needed.items() if importlib.util.find_spec(module) is None)
    if "ray" in missing:
        return (
            f"The cluster's `python` ({running}, {sys.executable}) is not the one that Ray runs on: put that one's "
            "folder first on the PATH where `ray start` is called."
        )
    if missing:
        return (
            f"The cluster's Python ({running}, {sys.executable}) lacks {', '.join(missing)}; submit with "
            "--runtime-env pip to have Ray install it, or use an image that has htc-batch."
        )
    return ""


def as_line(problem: str) -> str:
    """Return the problem as the log's form wants it; `pipeline.logs`, which may not run here, has the same keys."""
    if os.environ.get("HTC_LOG_FORMAT", "").strip().lower() != "json":
        return problem
    # Not datetime.UTC, which older Pythons lack.
    now = datetime.datetime.now(datetime.timezone.utc)  # noqa: UP017
    line = {
        "time": f"{now:%Y-%m-%dT%H:%M:%S}.{now.microsecond // 1000:03d}Z",
        "level": "error",
        "event": "error",
        "run": None,
        "shard": None,
        "worker": None,
        "attempt": None,
        "message": problem,
        "fields": {"exit_code": EXIT_USAGE},
    }
    return json.dumps(line)


def forget_current_folder() -> None:
    """Remove the folder that `python -m` puts first on the search path, unless this program is in it."""
    # Not pathlib, which imports much, and from that very folder.
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # noqa: PTH120
    if not getattr(sys.flags, "safe_path", False) and sys.path and os.path.realpath(sys.path[0]) != root:
        del sys.path[0]


def main() -> None:
    """Run `htc` with this process's arguments, or report what the environment lacks."""
    problem = environment_problem()
    if problem:
        sys.stderr.write(as_line(problem) + "\n")
        sys.exit(EXIT_USAGE)
    from jobs.cli.program import main as htc

    htc()


if __name__ == "__main__":
    forget_current_folder()
    main()
