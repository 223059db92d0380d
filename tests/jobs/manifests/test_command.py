"""`htc manifests`: what it prints, writes and refuses."""

from pathlib import Path

import pytest
import yaml

from tests.support.htc import Htc
from tests.support.manifest_schemas import check_manifest, pod_templates
from tests.support.without_torch import run_without_torch

SPEC = "input: {uri: 's3://bucket/in/'}\noutput: {uri: 's3://bucket/masks/'}\n"
IMAGE = ("--image", "registry.example/htc-batch:0.2.0")


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(SPEC)
    return path


def test_manifests_need_neither_torch_nor_ray(spec: Path) -> None:
    done = run_without_torch("manifests", str(spec), *IMAGE, "--ray-version", "2.60.0")
    assert (done.returncode, done.stderr) == (0, "")
    manifests = list(yaml.safe_load_all(done.stdout))
    assert [manifest["kind"] for manifest in manifests] == [
        "ConfigMap",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "RayJob",
    ]
    for manifest in manifests:
        check_manifest(manifest)


def test_all_kinds_go_into_a_folder(htc: Htc, spec: Path, tmp_path: Path) -> None:
    spec.write_text(SPEC + "select: {mode: incremental}\n")
    code, out, err = htc(
        "manifests",
        str(spec),
        *IMAGE,
        "--kind",
        "all",
        "--cron",
        "@daily",
        "--secret",
        "s3",
        "--to",
        str(tmp_path / "k8s"),
    )
    assert (code, out) == (0, "")
    files = sorted(str(path.relative_to(tmp_path / "k8s")) for path in (tmp_path / "k8s").rglob("*.yaml"))
    assert files == [
        "base/disruption.yaml",
        "base/network.yaml",
        "base/spec.yaml",
        "batch-job.yaml",
        "raycluster.yaml",
        "raycronjob.yaml",
        "rayjob.yaml",
    ]
    assert "kubectl apply -f" in err
    assert f"to run again, first: kubectl delete -f {tmp_path}/k8s/rayjob.yaml" in err
    assert "The Secret s3 must exist" in err
    assert "kubectl create namespace htc" in err
    cron_job = yaml.safe_load((tmp_path / "k8s" / "raycronjob.yaml").read_text())
    assert (cron_job["spec"]["schedule"], cron_job["spec"]["timeZone"]) == ("0 0 * * *", "UTC")


def test_a_folder_of_manifests_is_for_one_job(htc: Htc, spec: Path, tmp_path: Path) -> None:
    assert htc("manifests", str(spec), *IMAGE, "--to", str(tmp_path / "k8s"))[0] == 0
    assert htc("manifests", str(spec), *IMAGE, "--kind", "raycluster", "--to", str(tmp_path / "k8s"))[0] == 0
    code, _, err = htc("manifests", str(spec), *IMAGE, "--name", "other", "--to", str(tmp_path / "k8s"))
    assert code == 2
    assert "holds the manifests of another job" in err


def test_the_name_comes_from_the_output_where_the_spec_has_none(htc: Htc, spec: Path) -> None:
    _, out, _ = htc("manifests", str(spec), *IMAGE)
    assert list(yaml.safe_load_all(out))[-1]["metadata"]["name"] == "masks"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "Name the image that the pods run: --image"),
        ((*IMAGE, "--workers", "0:4"), "at least one worker pod must run"),
        ((*IMAGE, "--workers", "many"), '"4", or minimum and maximum, "1:8"'),
        ((*IMAGE, "--workers", "5:4"), "maximum 4 is less than the minimum 5"),
        ((*IMAGE, "--gpus", "-1"), "--gpus is -1"),
        ((*IMAGE, "--name", "Street Scenes"), "lower-case letters, digits and dashes"),
        ((*IMAGE, "--name", "a" * 40), "36 characters at most"),
        ((*IMAGE, "--node-selector", "gpu"), "as KEY=VALUE"),
        ((*IMAGE, "--toleration", "gpu=true:Never"), "one of NoSchedule, PreferNoSchedule, NoExecute"),
        ((*IMAGE, "--label", "team"), "--label is 'team'; give it as KEY=VALUE"),
        ((*IMAGE, "--label", "team=a b"), "at most 63 letters"),
        ((*IMAGE, "--env", "AWS_SECRET_ACCESS_KEY=abc"), "name that with --secret"),
        ((*IMAGE, "--pull-secret", "My Secret"), "--pull-secret is 'My Secret'"),
        ((*IMAGE, "--ttl", "soon"), "--ttl must be a time such as"),
        ((*IMAGE, "--deadline", "0"), "--deadline is 0 s"),
        ((*IMAGE, "--retries", "2"), "--retries is for --kind job, whose pod repeats lost clusters only"),
        ((*IMAGE, "--kind", "raycluster", "--retries", "0"), "--retries is for --kind job"),
        ((*IMAGE, "--volume", "nfs:photos:/mnt"), "--volume is 'nfs:photos:/mnt'; give it as KIND:SOURCE:PATH"),
        ((*IMAGE, "--volume", "pvc:photos:mnt"), "its path is absolute"),
        ((*IMAGE, "--volume", "pvc:Photos:/mnt"), "its source is a name, in lower case"),
        ((*IMAGE, "--volume", "hostpath:data:/mnt"), "its source is a folder of the node"),
        ((*IMAGE, "--volume", "pvc:a:/mnt", "--volume", "pvc:b:/mnt/"), "--volume /mnt is given twice"),
        ((*IMAGE, "--volume", "secret:key:/etc"), "--volume /etc would hide /etc/htc"),
        ((*IMAGE, "--volume", "hostpath:/data:/mnt", "--create-namespace"), "use a claim (pvc:NAME:PATH)"),
        ((*IMAGE, "--env-from-secret", "KEY=s3"), "give it as VARIABLE=SECRET/KEY"),
        ((*IMAGE, "--queue", "night"), "Kueue admits jobs of one size only"),
        ((*IMAGE, "--namespace", "default", "--create-namespace"), "would change the namespace default"),
        ((*IMAGE, "--kind", "all"), "give a folder for them with --to"),
        ((*IMAGE, "--kind", "raycronjob"), 'needs its times: --cron "30 2 * * *"'),
        ((*IMAGE, "--kind", "raycronjob", "--cron", "75 2 * * *"), "minute 75 is not in 0-59"),
        ((*IMAGE, "--kind", "raycronjob", "--cron", "0 2 * * *", "--time-zone", "Berlin"), "Europe/Berlin"),
        ((*IMAGE, "--kind", "raycronjob", "--cron", "0 2 * * *"), "mode: incremental"),
    ],
)
def test_what_cannot_be_exported_is_refused_with_a_message(
    htc: Htc, spec: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    code, out, err = htc("manifests", str(spec), *arguments)
    assert (code, out) == (2, "")
    assert sentence in err


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("input: {uri: photos/}\noutput: {uri: 's3://b/out/'}\n", "input.uri"),
        ("input: {uri: 's3://b/in/'}\noutput: {uri: out/}\n", "output.uri"),
        ("input: {uri: /mnt/in}\noutput: {uri: 's3://b/out/'}\n", "input.uri"),
        (SPEC + "model: {weights: mine.safetensors}\n", "model.weights"),
        (SPEC + "ensemble: [demo, mine.safetensors]\n", "model.ensemble.members.1.weights"),
        (SPEC + "compute: {gpus_per_worker: 2}\n", "compute.gpus_per_worker"),
        (SPEC + "compute: {cpus_per_worker: 20}\n", "compute.cpus_per_worker"),
    ],
)
def test_specs_that_no_pod_can_follow_are_refused(htc: Htc, spec: Path, text: str, key: str) -> None:
    spec.write_text(text)
    code, _, err = htc("manifests", str(spec), *IMAGE)
    assert code == 2
    assert err.startswith(key)


def test_pods_read_and_write_what_is_mounted(htc: Htc, spec: Path) -> None:
    spec.write_text("input: {uri: /mnt/photos/2026}\noutput: {uri: /mnt/masks}\n")
    volumes = ("--volume", "pvc:photos:/mnt/photos:ro", "--volume", "pvc:masks:/mnt/masks")
    code, out, _ = htc("manifests", str(spec), *IMAGE, "--kind", "job", *volumes)
    assert code == 0
    manifests = list(yaml.safe_load_all(out))
    ray_job = yaml.safe_load(
        next(m for m in manifests if m["metadata"]["name"] == "masks-rayjob")["data"]["rayjob.yaml"]
    )
    for template in (*pod_templates(ray_job), *pod_templates(manifests)):
        container = template["spec"]["containers"][0]
        if container["name"] == "ray-job-submitter":
            continue
        assert {"name": "volume-1", "mountPath": "/mnt/photos", "readOnly": True} in container["volumeMounts"]
        assert {"name": "volume-2", "mountPath": "/mnt/masks"} in container["volumeMounts"]
        claims = [volume.get("persistentVolumeClaim") for volume in template["spec"]["volumes"]]
        assert {"claimName": "photos"} in claims
        assert {"claimName": "masks"} in claims
    code, _, err = htc("manifests", str(spec), *IMAGE, *volumes[:3], "pvc:masks:/mnt/masks:ro")
    assert code == 2
    assert "output.uri is /mnt/masks, and --volume mounts /mnt/masks read-only" in err
