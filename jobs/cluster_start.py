"""Where a job that brought its own code begins on the cluster: `python -m jobs.cluster_start run ...` is `htc run ...`.

Only the standard library, and only what every Python 3 understands, until it is sure that the rest is there.
"""

from __future__ import annotations

import importlib.util
import sys

OLDEST_PYTHON = (3, 11)
# What `htc run` imports, by the name that pip knows it by.
NEEDED = {
    "PIL": "pillow",
    "duckdb": "duckdb",
    "fsspec": "fsspec",
    "numpy": "numpy",
    "pyarrow": "pyarrow",
    "pycocotools": "pycocotools",
    "pydantic": "pydantic",
    "ray": "ray",
    "rich": "rich",
    "s3fs": "s3fs",
    "safetensors": "safetensors",
    "tenacity": "tenacity",
    "timm": "timm",
    "torch": "torch",
    "torchvision": "torchvision",
    "typer": "typer",
    "yaml": "pyyaml",
}
EXIT_USAGE = 2


def complaint() -> str:
    """Say what the cluster's Python lacks; empty when it has all that is needed."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        return f"The cluster runs Python {version}, and htc-batch needs {oldest} or later; use another image."
    missing = sorted(name for module, name in NEEDED.items() if importlib.util.find_spec(module) is None)
    if "ray" in missing:
        return (
            f"The cluster's `python` ({version}, {sys.executable}) is not the one that Ray runs on: put that one's "
            "folder first on the PATH where `ray start` is called."
        )
    if missing:
        return (
            f"The cluster's Python ({version}, {sys.executable}) lacks {', '.join(missing)}; submit with "
            "--runtime-env pip to have Ray install it, or use an image that has htc-batch."
        )
    return ""


def main() -> None:
    """Run `htc` with this process's arguments, or say why that cannot be."""
    problem = complaint()
    if problem:
        sys.stderr.write(problem + "\n")
        sys.exit(EXIT_USAGE)
    from jobs.cli import main as htc

    htc()


if __name__ == "__main__":
    main()
