"""The kustomize tree: built by kustomize itself, checked by schemas; patches for objects that are not there."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.htc import Htc
from tests.support.kubernetes_tools import find_tool
from tests.support.manifest_schemas import check_manifest, pod_templates

SPEC = (
    "name: streets\ninput: {uri: 's3://bucket/in/'}\noutput: {uri: 's3://bucket/masks/'}\nselect: {mode: incremental}\n"
)
FLAGS = ("--image", "registry.example/htc-batch:0.2.0", "--ray-version", "2.60.0", "--secret", "s3")
KUBECTL = find_tool("kubectl")
needs_kubectl = pytest.mark.skipif(
    KUBECTL is None, reason="kubectl is not installed; infra/kuberay/get_tools.py downloads it"
)
Manifest = dict[str, Any]


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(SPEC)
    return path


@pytest.fixture
def tree(htc: Htc, spec: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "tree"
    assert htc("manifests", str(spec), *FLAGS, "--kustomize", str(folder))[0] == 0
    return folder


def build(folder: Path) -> list[Manifest]:
    assert KUBECTL is not None
    done = subprocess.run([KUBECTL, "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def add(path: Path, **fields: Any) -> None:
    content = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**content, **fields}))


@needs_kubectl
@pytest.mark.parametrize("kind", ["rayjob", "job", "raycronjob", "raycluster"])
@pytest.mark.parametrize("gpus", ["0", "1"])
def test_kustomize_builds_what_kubernetes_accepts(htc: Htc, spec: Path, tmp_path: Path, kind: str, gpus: str) -> None:
    flags = (*FLAGS, "--kind", kind, "--cron", "@daily", "--gpus", gpus, "--spot", "aks")
    code, _, err = htc("manifests", str(spec), *flags, "--kustomize", str(tmp_path / "tree"))
    assert code == 0, err
    built = {overlay: build(tmp_path / "tree" / "overlays" / overlay) for overlay in ("own", "production", "spot")}
    kinds = {overlay: {manifest["kind"] for manifest in manifests} for overlay, manifests in built.items()}
    assert kinds["own"] - kinds["spot"] == {"Namespace", "ResourceQuota"}
    assert kinds["production"] - kinds["spot"] == {"PodMonitor"}
    for manifest in (each for manifests in built.values() for each in manifests):
        if manifest["kind"] != "PodMonitor":
            check_manifest(manifest)
    for overlay, is_spot, keep_s in (("own", False, 600), ("production", False, 86400), ("spot", True, 600)):
        started = [yaml.safe_load(text) for each in built[overlay] for text in each.get("data", {}).values()]
        jobs = [each for each in (*built[overlay], *started) if each.get("apiVersion") == "ray.io/v1"]
        assert jobs
        for job in jobs:
            check_manifest(job)
            (worker,) = (each for each in pod_templates(job) if each["spec"]["containers"][0]["name"] == "ray-worker")
            assert ("kubernetes.azure.com/scalesetpriority" in worker["spec"].get("nodeSelector", {})) is is_spot
            keys = [toleration["key"] for toleration in worker["spec"].get("tolerations", [])]
            assert ("kubernetes.azure.com/scalesetpriority" in keys) is is_spot
            assert ("nvidia.com/gpu" in keys) is (gpus == "1")
            text = yaml.safe_dump(job)
            assert kind == "raycluster" or f"ttlSecondsAfterFinished: {keep_s}" in text


@needs_kubectl
@pytest.mark.parametrize("flags", [(), ("--without-raycronjob",)])
def test_a_schedule_has_a_tree_too(htc: Htc, spec: Path, tmp_path: Path, flags: tuple[str, ...]) -> None:
    schedule = tmp_path / "schedule.yaml"
    schedule.write_text(yaml.safe_dump({"name": "nightly", "spec": yaml.safe_load(SPEC), "cron": "30 2 * * *"}))
    tree = tmp_path / "tree"
    words = ("schedule", "export", "--file", str(schedule), "--kubernetes", *flags, *FLAGS, "--spot", "eks")
    code, _, err = htc(*words, "--kustomize", str(tree))
    assert code == 0, err
    assert htc("manifests", "--check-tree", str(tree))[0] == 0
    kind = "CronJob" if flags else "RayCronJob"
    for overlay in ("own", "production", "spot"):
        built = build(tree / "overlays" / overlay)
        for manifest in built:
            if manifest["kind"] != "PodMonitor":
                check_manifest(manifest)
        assert kind in {manifest["kind"] for manifest in built}
        assert ("eks.amazonaws.com/capacityType" in yaml.safe_dump(built)) is (overlay == "spot")
    assert htc(*words, "--kustomize", str(tree), "--to", str(tree))[0] == 2


@needs_kubectl
def test_an_overlay_may_rename_move_and_pin(tree: Path) -> None:
    """kustomize knows nothing of KubeRay's kinds: the base's configuration names what refers to what."""
    overlay = tree / "overlays" / "production"
    images = [{"name": "registry.example/htc-batch", "newTag": "0.3.0"}]
    add(overlay / "kustomization.yaml", namePrefix="team-", namespace="vision", images=images)
    built = {manifest["kind"]: manifest for manifest in build(overlay)}
    assert {manifest["metadata"]["namespace"] for manifest in built.values()} == {"vision"}
    head = built["RayJob"]["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert built["ConfigMap"]["metadata"]["name"] == "team-streets-spec"
    assert {"name": "spec", "configMap": {"name": "team-streets-spec"}} in head["volumes"]
    images_of = {pod["spec"]["containers"][0]["image"] for pod in pod_templates(built["RayJob"])}
    assert images_of == {"registry.example/htc-batch:0.3.0"}


def test_the_base_is_written_anew_and_the_overlays_are_left(htc: Htc, spec: Path, tree: Path) -> None:
    mine = tree / "overlays" / "own" / "kustomization.yaml"
    mine.write_text(mine.read_text() + "namePrefix: mine-\n")
    spec.write_text(SPEC + "model: {score_threshold: 0.3}\n")
    code, _, err = htc("manifests", str(spec), *FLAGS, "--kustomize", str(tree))
    assert code == 0
    assert "namePrefix: mine-" in mine.read_text()
    assert "0.3" in (tree / "base" / "spec.yaml").read_text()
    assert f"Left as they are: {mine.parent}, " in err


def test_a_sound_tree_is_reported(htc: Htc, tree: Path) -> None:
    code, out, err = htc("manifests", "--check-tree", str(tree))
    assert (code, err) == (0, "")
    assert "4 kustomizations are sound" in out


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"patches": [{"target": {"kind": "RayJob", "name": "street"}, "patch": "- {op: remove, path: /spec}"}]},
            "patches 1 is for RayJob street, which is not among its resources; there are RayJob streets.",
        ),
        (
            {"patches": [{"path": "mine.yaml"}]},
            "patches 1 (mine.yaml) is for ConfigMap other, which is not among its resources; there are ConfigMap str",
        ),
        (
            {"patchesStrategicMerge": ["mine.yaml"]},
            "patchesStrategicMerge 1 (mine.yaml) is for ConfigMap other, which is not among its resources",
        ),
        ({"patches": [{"path": "none.yaml"}]}, "patches 1 is in none.yaml, which does not exist"),
        ({"resources": ["../../base", "nowhere.yaml"]}, "names nowhere.yaml, which does not exist"),
        ({"resources": ["../own"]}, "includes itself by ../own"),
        ({"resources": "../../base"}, "resources: Input should be a valid list"),
        ({"patches": [1]}, "patches.1: Input should be a valid dictionary"),
        ({"patches": [{"target": {"kind": "Ray("}, "patch": "[]"}]}, "Ray( is no regular expression"),
        ({"patches": [{"patch": "- 1"}]}, "holds something else than objects"),
    ],
)
def test_a_patch_for_an_object_that_is_not_there_is_named(
    htc: Htc, tree: Path, fields: dict[str, Any], words: str
) -> None:
    overlay = tree / "overlays" / "own"
    (overlay / "mine.yaml").write_text("{apiVersion: v1, kind: ConfigMap, metadata: {name: other}}\n")
    add(overlay / "kustomization.yaml", **fields)
    code, out, err = htc("manifests", "--check-tree", str(tree))
    assert (code, out) == (2, "")
    assert words in err
    assert "repair them first" in err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"patches: {a: b", "is not valid YAML in line 1"),
        (b"\xff\xfe", "cannot be read as text"),
        (b"just a text", "holds something else than objects"),
        (b"{}\n---\n{}\n", "holds 2 documents"),
    ],
)
def test_a_file_that_is_no_kustomization_is_named(htc: Htc, tree: Path, content: bytes, words: str) -> None:
    path = tree / "overlays" / "spot" / "kustomization.yaml"
    path.write_bytes(content)
    code, _, err = htc("manifests", "--check-tree", str(tree))
    assert code == 2
    assert f"{path} {words}" in err


@needs_kubectl
def test_what_only_kustomize_knows_is_its_own_sentence(htc: Htc, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path(str(KUBECTL)).parent))
    patch = {"target": {"kind": "RayJob"}, "patch": "- {op: replace, path: /spec/nowhere/x, value: 1}"}
    add(tree / "overlays" / "own" / "kustomization.yaml", patches=[patch])
    code, _, err = htc("manifests", "--check-tree", str(tree))
    assert code == 2
    assert "kubectl cannot build it" in err
    assert "/spec/nowhere/x" in err


def test_a_check_needs_no_kubectl(htc: Htc, tree: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    code, out, _ = htc("manifests", "--check-tree", str(tree))
    assert code == 0
    assert "not built, as neither kubectl nor kustomize is here" in out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--check-tree", "{}"), "holds no kustomization.yaml"),
        (("{}/job.yaml", "--check-tree", "{}"), "--check-tree takes a folder that is there"),
        ((), "Name the job spec"),
        (("{}/job.yaml", *FLAGS, "--kustomize", "{}/t", "--to", "{}/k"), "give one of them"),
        (("{}/job.yaml", *FLAGS, "--kustomize", "{}/t", "--kind", "all"), "a kustomize tree holds one"),
        (("{}/job.yaml", *FLAGS, "--kustomize", "{}/t", "--namespace", "default"), "change the namespace default"),
        (("{}/job.yaml", *FLAGS, "--kustomize", "{}/t", "--volume", "hostpath:/d:/d"), "use a claim"),
        (("{}/job.yaml", *FLAGS, "--kustomize", "{}/t", "--retries", "1"), "--retries is for --kind job"),
    ],
)
def test_what_makes_no_tree_is_refused(
    htc: Htc, spec: Path, tmp_path: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    code, out, err = htc("manifests", *(each.replace("{}", str(tmp_path)) for each in arguments))
    assert (code, out) == (2, "")
    assert sentence in err
    assert not (tmp_path / "t").exists()
