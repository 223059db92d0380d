"""Runs the Dockerfile's steps without a container engine, in folders that are entered by chroot, and tries the result.

    sudo python infra/docker/build_in_chroot.py /var/tmp/htc-image

It needs root, unshare, debootstrap, Debian's mirror and PyPI, 16 GB and some minutes; it is run by hand, after changes
of the Dockerfile. `--no-deps` leaves out the packages that htc needs: a minute, and all but the last checks. The base
is Debian bookworm with its Python 3.11, as in python:3.11-slim-bookworm. Instructions that it does not know end it.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PACKAGES = "python3,python3-venv,python-is-python3,ca-certificates"
# What says nothing about the files of the image.
IGNORED = ("LABEL", "HEALTHCHECK", "CMD")
# For pip in the chroot: how this machine reaches PyPI.
PIP_FILES = ("/etc/pip.conf", "/etc/resolv.conf", "/etc/ssl/certs/ca-certificates.crt")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass
class Stage:
    """A stage of the build: its root folder, and what its instructions have set."""

    root: Path
    workdir: str = "/"
    user: str = "0:0"
    environment: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, str] = field(default_factory=dict)


def read_instructions(text: str) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile and what follows each, with continued lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    parts = (line.strip().partition(" ") for line in joined.splitlines() if line.strip())
    return [(word.upper(), rest.strip()) for word, _, rest in parts]


def context_files(ignore: str, root: Path) -> list[Path]:
    """Return the paths that a .dockerignore of our kind lets in: all is out, and each `!` lets one in."""
    lines = [line.strip() for line in ignore.splitlines() if line.strip() and not line.startswith("#")]
    if lines[:1] != ["*"]:
        raise SystemExit("Dockerfile.dockerignore does not begin with *; this script would copy another context.")
    return [root / line[1:] for line in lines if line.startswith("!")]


def substitute(text: str, values: dict[str, str]) -> str:
    """Return the text with ${NAME} and $NAME replaced by what is set; other names stay for the shell."""
    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", lambda match: values.get(match[1] or match[2], match[0]), text)


def run_in(stage: Stage, command: str, *, login: bool = False) -> int:
    """Run a shell command in the stage and return its exit code."""
    uid, _, gid = stage.user.partition(":")
    shell = ["/bin/bash", "--login", "-c"] if login else ["/bin/sh", "-c"]
    passed = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    environment = {
        "PATH": PATH,
        "HOME": "/root" if uid == "0" else "/home/htc",
        **(passed if uid == "0" else {}),
        **stage.arguments,
        **stage.environment,
    }
    # Mounts in a namespace of their own, which end with the command. Ray needs both.
    mounts = f'mount --bind /proc "$0/proc" && mount -t tmpfs tmpfs "$0/dev/shm" && exec chroot --userspec={uid}:{gid} '
    mounts += f'"$0" {shlex.join(shell)} "$1"'
    (stage.root / "dev" / "shm").mkdir(exist_ok=True)
    words = ["/usr/bin/unshare", "--mount", "/bin/sh", "-c", mounts, str(stage.root)]
    done = subprocess.run([*words, f"cd {shlex.quote(stage.workdir)} && {command}"], env=environment, check=False)
    return done.returncode


def copy_step(stages: dict[str, Stage], stage: Stage, rest: str) -> None:
    """COPY: of another stage by hard links, else of the build context."""
    words = shlex.split(rest)
    target = stage.root / words[-1].lstrip("/") if words[-1].startswith("/") else stage.root / stage.workdir.lstrip("/")
    if words[0].startswith("--from="):
        source = stages[words[0].removeprefix("--from=")].root / words[1].lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["/bin/cp", "-a", "--link", str(source), str(target)], check=True)
    elif words[0] == ".":
        for path in context_files((HERE / "Dockerfile.dockerignore").read_text(), ROOT):
            place = target / path.relative_to(ROOT)
            place.parent.mkdir(parents=True, exist_ok=True)
            ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
            shutil.copytree(path, place, ignore=ignored) if path.is_dir() else shutil.copy2(path, place)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / words[0], target)


def new_stage(base: Path, folder: Path, name: str) -> Stage:
    """FROM: a copy of the base."""
    subprocess.run(["/bin/cp", "-a", str(base), str(folder / name)], check=True)
    return Stage(folder / name)


def build(folder: Path, base: Path) -> Stage:
    """Run the Dockerfile's instructions and return its last stage."""
    stages: dict[str, Stage] = {}
    stage: Stage | None = None
    for number, (word, rest) in enumerate(read_instructions((HERE / "Dockerfile").read_text()), 1):
        sys.stdout.write(f"step {number}: {word} {rest[:100]}\n")
        sys.stdout.flush()
        if word == "FROM":
            name = rest.partition(" AS ")[2] or "last"
            stage = stages[name] = new_stage(base, folder, name)
        elif stage is not None:
            take_step(stages, stage, word, rest)
        elif word != "ARG":
            # Before the first stage only the name of the base may be set, which is another one here.
            raise SystemExit(f"{word} before FROM.")
    if stage is None:
        raise SystemExit("The Dockerfile has no stage.")
    return stage


def take_step(stages: dict[str, Stage], stage: Stage, word: str, rest: str) -> None:
    """Run one instruction of a stage."""
    if word == "COPY":
        copy_step(stages, stage, rest)
    elif word == "RUN":
        if run_in(stage, rest) != 0:
            raise SystemExit(f"RUN {rest} failed.")
    elif word == "WORKDIR":
        stage.workdir = rest
        (stage.root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
    elif word == "USER":
        stage.user = rest
    elif word == "ARG":
        key, _, value = rest.partition("=")
        stage.arguments[key] = value
    elif word == "ENV":
        for key, _, value in (pair.partition("=") for pair in shlex.split(rest)):
            stage.environment[key] = substitute(value, {"PATH": PATH, **stage.environment})
    elif word not in IGNORED:
        raise SystemExit(f"This script does not know {word}; teach it, or build with a container engine.")


def try_image(stage: Stage, *, has_packages: bool) -> list[str]:
    """Try what the image promises, as its user; return what failed."""
    checks = [
        ("its user is 1000 and not root", 'test "$(id -u)" = 1000', False),
        ("its cache can be written", 'touch "$HTC_CACHE/x" && rm "$HTC_CACHE/x"', False),
        ("htc is on the PATH", "command -v htc", False),
        ("htc is on the PATH of a login shell", "command -v htc", True),
        ("its programs cannot be changed by its user", "! touch /opt/htc/bin/htc 2>/dev/null", False),
        ("the health check passes where there is no node", "python /opt/htc/healthcheck.py", False),
    ]
    if has_packages:
        demo = "htc run /tmp/photos /tmp/masks --shard-images 4 --limit 4 && "
        demo += "htc query /tmp/masks 'SELECT count(*) FROM images'"
        checks += [
            ("htc --version", "htc --version", False),
            ("ray in a login shell", "ray --version", True),
            ("htc run with the bundled weights", demo, False),
        ]
        shutil.copytree(ROOT / "examples" / "photos", stage.root / "tmp" / "photos", dirs_exist_ok=True)
    failed = []
    for title, command, login in checks:
        is_good = run_in(stage, command, login=login) == 0
        sys.stdout.write(f"{'ok    ' if is_good else 'FAILED'} {title}\n")
        failed += [] if is_good else [title]
    return failed


def main() -> int:
    """Make the base where there is none, build, and try the image; 1 where something failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="new or of an earlier call, whose base is used again")
    parser.add_argument("--no-deps", action="store_true", help="leave out the packages that htc needs")
    parser.add_argument("--bind", action="append", default=[], help="a folder of this machine that pip needs; copied")
    given = parser.parse_args()
    if os.geteuid() != 0 or not Path("/usr/bin/unshare").exists():
        raise SystemExit("Run it as root on Linux; chroot and unshare need that.")
    base = given.folder / "base"
    if not base.exists():
        if shutil.which("debootstrap") is None:
            raise SystemExit("Install debootstrap, or put a root file system with Python 3.11 into FOLDER/base.")
        given.folder.mkdir(parents=True, exist_ok=True)
        made = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(base)]
        subprocess.run(made, check=True, stdout=subprocess.DEVNULL)
    for path in PIP_FILES:
        if Path(path).exists():
            (base / path.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, base / path.lstrip("/"))
    for stage in ("build", "last"):
        shutil.rmtree(given.folder / stage, ignore_errors=True)
    for path in given.bind:
        shutil.copytree(path, base / path.lstrip("/"), dirs_exist_ok=True)
    if given.no_deps:
        os.environ["PIP_NO_DEPS"] = "1"
    failed = try_image(build(given.folder, base), has_packages=not given.no_deps)
    sys.stdout.write(f"{len(failed)} of the checks failed.\n" if failed else "All checks passed.\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
