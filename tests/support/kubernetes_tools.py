"""kubectl and helm for tests: beside this Python, where infra/kuberay/get_tools.py puts them, or on the PATH."""

import shutil
import sys
from pathlib import Path


def find_tool(name: str) -> str | None:
    """Return the program's path, None where it is not installed."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name)
