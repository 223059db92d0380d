"""Commands on a machine without torch and Ray."""

import os
import subprocess
import sys

BLOCKER = """
import sys
from importlib.abc import MetaPathFinder

class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "torchvision", "ray", "timm", "safetensors"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""


def run_without_torch(*arguments: str) -> subprocess.CompletedProcess[str]:
    script = f"{BLOCKER}\nfrom jobs import cli\ncli.main({list(arguments)!r})"
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment)
