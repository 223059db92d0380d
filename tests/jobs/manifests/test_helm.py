"""The Helm chart, rendered by helm itself: the same objects as `htc manifests` writes, and values that are checked."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.htc import Htc
from tests.support.kubernetes_tools import find_tool
from tests.support.manifest_schemas import check_manifest, pod_templates

SPEC = """name: streets
input: {uri: 's3://bucket/in/'}
output: {uri: 's3://bucket/masks/'}
model: {preset: htc_r50_fpn}
select: {mode: incremental, where: "uri LIKE '{{%'"}
"""
FLAGS = ("--image", "registry.example/htc-batch:0.2.0", "--ray-version", "2.60.0", "--secret", "s3", "--workers", "2:8")
HELM = find_tool("helm")
needs_helm = pytest.mark.skipif(HELM is None, reason="helm is not installed; infra/kuberay/get_tools.py downloads it")
Manifest = dict[str, Any]


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(SPEC)
    return path


def helm(*words: str | Path) -> subprocess.CompletedProcess[str]:
    assert HELM is not None
    return subprocess.run([HELM, *map(str, words)], capture_output=True, text=True, check=False)


def render(chart: Path, *values: str, release: str = "streets") -> list[Manifest]:
    flags = [word for value in values for word in ("--set", value)]
    done = helm("template", release, chart, "--namespace", "htc", *flags)
    assert done.returncode == 0, done.stderr
    return [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]


def plain(value: Any) -> Any:
    """Return a manifest without empty fields, and with its embedded YAML parsed."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items() if each is not None}
    if isinstance(value, list):
        return [plain(each) for each in value if each is not None]
    if isinstance(value, str) and "\n" in value:
        parsed = yaml.safe_load(value)
        return plain(parsed) if isinstance(parsed, dict) else value
    return value


def by_name(manifests: list[Manifest]) -> dict[tuple[str, str], Manifest]:
    return {(each["kind"], each["metadata"]["name"]): plain(each) for each in manifests}


@needs_helm
@pytest.mark.parametrize("kind", ["rayjob", "job", "raycronjob", "raycluster"])
def test_the_chart_renders_what_the_command_writes(htc: Htc, spec: Path, tmp_path: Path, kind: str) -> None:
    flags = (*FLAGS, "--kind", kind, "--cron", "30 2 * * *", "--time-zone", "Europe/Berlin", "--spot", "gke")
    flags += ("--node-selector", "zone=b", "--toleration", "dedicated=vision:NoSchedule", "--pod-monitor")
    if kind != "raycluster":
        flags += ("--deadline", "6h", "--ttl", "1h")
    assert htc("manifests", str(spec), *flags, "--helm", str(tmp_path / "chart"))[0] == 0
    assert helm("lint", tmp_path / "chart", "--strict").returncode == 0
    rendered = render(tmp_path / "chart")
    for manifest in rendered:
        if manifest["kind"] != "PodMonitor":
            check_manifest(manifest)
    written = list(yaml.safe_load_all(htc("manifests", str(spec), *flags)[1]))
    assert by_name(rendered) == by_name(written)


@needs_helm
def test_values_reach_the_job(htc: Htc, spec: Path, tmp_path: Path) -> None:
    chart = tmp_path / "chart"
    assert htc("manifests", str(spec), *FLAGS, "--gpus", "2", "--kind", "job", "--helm", str(chart))[0] == 0
    rendered = by_name(
        render(
            chart,
            "image=other:2",
            "workers.max=3",
            "workers.nodeSelector.zone=c",
            "deadlineSeconds=7200",
            "retries=5",
            "ttlSecondsAfterFinished=86400",
            "job.input.uri=s3://other/in/",
            "job.output.uri=s3://other/out/",
            release="night",
        )
    )
    job_spec = rendered["ConfigMap", "night-spec"]["data"]["job.yaml"]
    # Two workers in a pod of two GPUs.
    assert (job_spec["input"]["uri"], job_spec["compute"]["workers"]) == ("s3://other/in/", 6)
    assert job_spec["select"]["where"] == "uri LIKE '{{%'"
    ray_job = rendered["ConfigMap", "night-rayjob"]["data"]["rayjob.yaml"]
    assert ray_job["metadata"]["name"] == "night"
    assert (ray_job["spec"]["activeDeadlineSeconds"], ray_job["spec"]["ttlSecondsAfterFinished"]) == (7200, 86400)
    head, worker = pod_templates(ray_job["spec"]["rayClusterSpec"])
    assert head["metadata"]["annotations"]["htc-batch/output"] == "s3://other/out"
    assert worker["spec"]["nodeSelector"] == {"zone": "c"}
    assert worker["spec"]["containers"][0]["image"] == "other:2"
    command = rendered["Job", "night"]["spec"]["template"]["spec"]["containers"][0]["command"]
    assert command[command.index("--retries") + 1] == "5"


@needs_helm
@pytest.mark.parametrize(
    ("values", "words"),
    [
        (("worker.max=3",), "additional properties 'worker' not allowed"),
        (("workers.max=many",), "got string, want integer"),
        (("workers.min=9",), "workers.min is more than workers.max"),
        (("retries=9",), "maximum: got 9, want 8"),
    ],
)
def test_wrong_values_are_refused(htc: Htc, spec: Path, tmp_path: Path, values: tuple[str, ...], words: str) -> None:
    assert htc("manifests", str(spec), *FLAGS, "--kind", "job", "--helm", str(tmp_path / "chart"))[0] == 0
    done = helm("template", "night", tmp_path / "chart", *(word for value in values for word in ("--set", value)))
    assert done.returncode != 0
    assert words in done.stderr


@needs_helm
def test_a_long_release_name_is_refused(htc: Htc, spec: Path, tmp_path: Path) -> None:
    assert htc("manifests", str(spec), *FLAGS, "--helm", str(tmp_path / "chart"))[0] == 0
    done = helm("template", "a" * 37, tmp_path / "chart")
    assert "has a name of more than 36 characters" in done.stderr


def test_a_folder_holds_the_chart_of_one_job(htc: Htc, spec: Path, tmp_path: Path) -> None:
    chart = ("--helm", str(tmp_path / "chart"))
    assert htc("manifests", str(spec), *FLAGS, *chart)[0] == 0
    assert htc("manifests", str(spec), *FLAGS, "--kind", "job", *chart)[0] == 0
    # Helm would install a RayJob that is left over as well.
    assert {path.name for path in (tmp_path / "chart" / "templates").iterdir()} == {
        "NOTES.txt",
        "batch-job.yaml",
        "disruption.yaml",
        "network.yaml",
        "spec.yaml",
    }
    code, _, err = htc("manifests", str(spec), *FLAGS, "--name", "other", *chart)
    assert code == 2
    assert "holds the chart of another job" in err
    assert htc("manifests", str(spec), *FLAGS, *chart, "--kind", "all")[0] == 2
