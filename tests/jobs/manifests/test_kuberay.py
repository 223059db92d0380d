"""The manifests against strict schemas of an API server, and against the requirements of the pods."""

import importlib.util
import itertools
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.manifests.bundle import build_bundle, render
from jobs.manifests.cluster_shape import ClusterShape, build_shape, fit_spec
from jobs.manifests.pod_options import parse_pod_options
from pipeline.job_spec.job import JobSpec, load_spec
from pipeline.planning.worker_plan import plan_workers
from tests.support.manifest_schemas import CRDS, KUBERNETES_VERSIONS, RAY_KINDS, check_manifest, pod_templates
from tests.support.paths import ROOT

Manifest = dict[str, Any]
KINDS = ("rayjob", "raycluster", "raycronjob", "job")
IMAGE = "registry.example/htc-batch:0.2.0"


RICH_PODS = parse_pod_options(
    pull_secrets=["registry"],
    tolerations=["dedicated=vision:NoSchedule", "maintenance:NoExecute", "preemptible"],
    priority_class="batch",
    labels=["team=vision", "example.com/cost-centre=42"],
    annotations=["prometheus.io/scrape=true"],
    environment=["HTTPS_PROXY=http://proxy:3128"],
    secret_environment=["TOKEN=webhook/url"],
    volumes=[
        "pvc:photos:/mnt/photos:ro",
        "secret:gcp-key:/var/secrets",
        "configmap:ca:/etc/ca",
        "hostpath:/data:/mnt/data",
    ],
    ephemeral_storage_gib=40,
)


def make_spec(**overrides: object) -> JobSpec:
    given = {"input.uri": "s3://bucket/in/", "output.uri": "s3://bucket/out/", "select.mode": "incremental"}
    return load_spec(None, {**given, **{key.replace("__", "."): value for key, value in overrides.items()}})


def make_manifests(spec: JobSpec, shape: ClusterShape, **options: Any) -> list[Manifest]:
    """Return the manifests as kubectl reads them, parsed from the text."""
    text = render(build_bundle(spec, shape, KINDS, cron="30 2 * * *", time_zone="Europe/Berlin", **options))
    return list(yaml.safe_load_all(text))


def by_kind(manifests: list[Manifest]) -> dict[str, Manifest]:
    return {manifest["kind"]: manifest for manifest in manifests}


def pods_of(manifests: list[Manifest]) -> dict[str, list[Manifest]]:
    """Return the pods' specs by their container's name."""
    pods: dict[str, list[Manifest]] = {}
    for template in pod_templates(manifests):
        pods.setdefault(template["spec"]["containers"][0]["name"], []).append(template["spec"])
    return pods


@pytest.mark.parametrize(
    ("gpus", "spot", "is_rich"),
    list(itertools.product((0, 2), (None, "gke", "eks", "karpenter", "aks"), (True, False))),
)
def test_every_kind_passes_its_schema_strictly(gpus: int, spot: Any, is_rich: bool) -> None:
    rich = {
        "secrets": ["s3-credentials", "more"],
        "service_account": "htc",
        "token_secret": "token",
        "node_selector": ["cloud.google.com/gke-accelerator=nvidia-l4", "zone=b"],
        "namespace": "vision",
        "queue": "night",
        "workers": "8",
        "retries": 2,
        "keep_s": 60.0,
        "deadline_s": 3600.0,
        "has_quota": True,
        "pods": RICH_PODS,
    }
    spec = make_spec(name="Street_Scenes.2026", storage__endpoint_url="http://minio.store:9000")
    shape = build_shape(
        spec, **{"image": IMAGE, "workers": "2:8", "gpus": gpus, "spot": spot, **(rich if is_rich else {})}
    )
    manifests = make_manifests(spec, shape)
    assert {manifest["kind"] for manifest in manifests} >= set(RAY_KINDS)
    for manifest in manifests:
        check_manifest(manifest)


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_every_kind_passes_the_schemas_of_old_and_new_kubernetes(version: str) -> None:
    spec = make_spec()
    shape = build_shape(
        spec, image=IMAGE, has_namespace=True, has_quota=True, pods=replace(RICH_PODS, volumes=RICH_PODS.volumes[:3])
    )
    for manifest in make_manifests(spec, shape, has_pod_monitor=False):
        check_manifest(manifest, version)


@pytest.mark.parametrize(
    ("path", "named"),
    [
        (("spec", "rayClusterSpec", "autoscalerOptions", "idleTimeout"), "idleTimeout"),
        (("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "restart"), "restart"),
        (("spec", "backoffLimits"), "backoffLimits"),
    ],
)
def test_the_schemas_refuse_unknown_fields(path: tuple[str, ...], named: str) -> None:
    spec = make_spec()
    job = by_kind(make_manifests(spec, build_shape(spec, image=IMAGE)))["RayJob"]
    place = job
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = 1
    with pytest.raises(ValueError, match=named):
        check_manifest(job)


@pytest.mark.skipif("HTC_CRDS" not in os.environ, reason="HTC_CRDS names no folder with KubeRay's whole CRDs")
def test_the_trimmed_schemas_are_those_of_the_crds() -> None:
    script = importlib.util.spec_from_file_location("trim_crds", ROOT / "infra" / "kuberay" / "trim_crds.py")
    assert script is not None
    assert script.loader is not None
    trimming = importlib.util.module_from_spec(script)
    script.loader.exec_module(trimming)
    for kind, name in trimming.SOURCES.items():
        trimmed = trimming.trim_crd(Path(os.environ["HTC_CRDS"]) / f"{name}.yaml")
        assert yaml.safe_load((CRDS / f"{kind}.json").read_text()) == trimmed


def test_the_head_has_no_gpu_and_no_actors() -> None:
    spec = make_spec()
    job = by_kind(make_manifests(spec, build_shape(spec, image=IMAGE, gpus=4)))["RayJob"]
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    resources = head["template"]["spec"]["containers"][0]["resources"]
    assert not any("gpu" in name for side in resources.values() for name in side)
    assert "tolerations" not in head["template"]["spec"]


def test_no_pod_is_root_or_can_become_it() -> None:
    spec = make_spec()
    pods = pods_of(make_manifests(spec, build_shape(spec, image=IMAGE)))
    assert {name: len(found) for name, found in pods.items()} == {
        "ray-head": 3,
        "ray-worker": 3,
        "ray-job-submitter": 2,
        "starter": 1,
    }
    for pod in itertools.chain(*pods.values()):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_only_workers_go_to_spot_nodes() -> None:
    spec = make_spec()
    pods = pods_of(make_manifests(spec, build_shape(spec, image=IMAGE, spot="aks")))
    for worker in pods["ray-worker"]:
        assert worker["nodeSelector"] == {"kubernetes.azure.com/scalesetpriority": "spot"}
        assert {toleration["key"] for toleration in worker["tolerations"]} == {
            "kubernetes.azure.com/scalesetpriority",
            "nvidia.com/gpu",
        }
    assert not any("nodeSelector" in head for head in pods["ray-head"])


def test_secrets_reach_head_and_workers_as_environment_and_no_file() -> None:
    spec = make_spec()
    text = render(build_bundle(spec, build_shape(spec, image=IMAGE, secrets=["keys"], token_secret="tok"), KINDS[:1]))
    pods = pods_of(list(yaml.safe_load_all(text)))
    for name in ("ray-head", "ray-worker"):
        assert pods[name][0]["containers"][0]["envFrom"] == [{"secretRef": {"name": "keys"}}]
    assert "envFrom" not in pods["ray-job-submitter"][0]["containers"][0]
    cluster = by_kind(list(yaml.safe_load_all(text)))["RayJob"]["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token", "secretName": "tok"}


def test_the_pods_read_the_spec_that_was_given() -> None:
    # A preset that is set stays set, although it equals the default: without it, the demo weights decide.
    spec = make_spec(name="nightly", model__preset="htc_r50_fpn", compute__shard_images=64)
    shape = build_shape(spec, image=IMAGE, workers="2:8", gpus=2)
    made = make_manifests(spec, shape)
    manifests = by_kind(made)
    (mapped,) = (each for each in made if each["metadata"]["name"] == "nightly-spec")
    read = JobSpec.model_validate(yaml.safe_load(mapped["data"]["job.yaml"]))
    assert read == fit_spec(spec, shape)
    assert (read.model.preset, read.model.weights) == ("htc_r50_fpn", "coco")
    job = manifests["RayJob"]["spec"]
    assert job["entrypoint"] == "htc run --spec /etc/htc/job.yaml"
    head = job["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert {"name": "spec", "mountPath": "/etc/htc", "readOnly": True} in head["containers"][0]["volumeMounts"]
    assert {"name": "spec", "configMap": {"name": "nightly-spec"}} in head["volumes"]


@pytest.mark.parametrize(
    ("gpus", "cpus", "overrides", "expected"),
    [
        (1, None, {}, (8, 1.0, 6.0)),
        (4, 32, {}, (32, 1.0, 8.0)),
        (1, 8, {"compute__gpus_per_worker": 0.5}, (16, 0.5, 4.0)),
        (0, 4, {}, (32, 0.0, 1.0)),
        (0, 4, {"compute__cpus_per_worker": 2}, (16, 0.0, 2.0)),
        (1, None, {"compute__workers": 3}, (3, 1.0, 6.0)),
    ],
)
def test_the_driver_asks_for_all_workers_though_it_begins_with_the_fewest(
    gpus: int, cpus: int | None, overrides: dict[str, object], expected: tuple[int, float, float]
) -> None:
    spec = make_spec(**overrides)
    shape = build_shape(spec, image=IMAGE, workers="2:8", gpus=gpus, cpus=cpus)
    compute = fit_spec(spec, shape).compute
    plan = plan_workers(compute, cpus=2.0 * shape.cpus, gpus=2.0 * shape.gpus, shards=1000)
    assert (plan.workers, plan.gpus, plan.cpus) == expected


def test_the_quota_has_room_for_the_largest_cluster_and_its_helpers() -> None:
    spec = make_spec()
    shape = build_shape(spec, image=IMAGE, workers="1:8", gpus=2, has_quota=True)
    manifests = make_manifests(spec, shape)
    hard = by_kind(manifests)["ResourceQuota"]["spec"]["hard"]
    assert hard["requests.nvidia.com/gpu"] == "16"
    job = by_kind(manifests)["RayJob"]["spec"]
    cluster = job["rayClusterSpec"]
    head = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["resources"]["requests"]
    worker = cluster["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["resources"]["requests"]
    # 0.5 cores and 1 GiB each: the autoscaler and the submitter.
    assert int(hard["requests.cpu"]) >= int(head["cpu"]) + 8 * int(worker["cpu"]) + 1
    assert int(hard["requests.memory"][:-2]) >= int(head["memory"][:-2]) + 8 * int(worker["memory"][:-2]) + 2


def test_the_network_is_open_where_it_must_be_and_nowhere_else() -> None:
    spec = make_spec(
        storage__endpoint_url="http://minio.store:9000", storage__options={"gs": {"endpoint_url": "http://g"}}
    )
    plain = by_kind(make_manifests(spec, build_shape(spec, image=IMAGE)))["NetworkPolicy"]["spec"]
    ports = {port["port"] for rule in plain["egress"] for port in rule.get("ports", [])}
    assert ports == {53, 80, 443, 6443, 9000}
    assert {port["port"] for rule in plain["ingress"] for port in rule.get("ports", [])} == {8265, 8080}
    known = by_kind(make_manifests(spec, build_shape(spec, image=IMAGE, service_account="htc")))["NetworkPolicy"][
        "spec"
    ]
    places = {to["ipBlock"]["cidr"] for rule in known["egress"] for to in rule.get("to", []) if "ipBlock" in to}
    assert "169.254.169.254/32" in places


def test_the_policies_select_the_pods() -> None:
    spec = make_spec()
    manifests = make_manifests(spec, build_shape(spec, image=IMAGE), has_pod_monitor=True)
    templates = pod_templates(manifests)
    kinds = by_kind(manifests)
    for kind, key in (("NetworkPolicy", "podSelector"), ("PodMonitor", "selector")):
        wanted = kinds[kind]["spec"][key]["matchLabels"].items()
        assert all(wanted <= template["metadata"]["labels"].items() for template in templates)
    budget = kinds["PodDisruptionBudget"]["spec"]
    assert budget["selector"]["matchLabels"]["ray.io/node-type"] == "head"
    names = {port["name"] for pod in pods_of(manifests)["ray-worker"] for port in pod["containers"][0]["ports"]}
    assert kinds["PodMonitor"]["spec"]["podMetricsEndpoints"][0]["port"] in names


def test_nothing_that_others_may_use_is_written_unasked() -> None:
    spec = make_spec()
    assert not {"Namespace", "ResourceQuota"} & by_kind(make_manifests(spec, build_shape(spec, image=IMAGE))).keys()
    job = by_kind(make_manifests(spec, build_shape(spec, image=IMAGE)))["RayJob"]["spec"]
    # KubeRay would retry a wrong spec on new clusters.
    assert job["backoffLimit"] == 0
    assert "activeDeadlineSeconds" not in job


def test_deadline_and_queue_are_the_jobs_and_retries_the_starters() -> None:
    spec = make_spec()
    shape = build_shape(spec, image=IMAGE, workers="4", retries=2, keep_s=0.0, deadline_s=7200.0, queue="night")
    kinds = by_kind(make_manifests(spec, shape))
    for job in (kinds["RayJob"]["spec"], kinds["RayCronJob"]["spec"]["jobTemplate"]):
        assert (job["backoffLimit"], job["ttlSecondsAfterFinished"], job["activeDeadlineSeconds"]) == (0, 0, 7200)
        assert "enableInTreeAutoscaling" not in job["rayClusterSpec"]
    command = kinds["Job"]["spec"]["template"]["spec"]["containers"][0]["command"]
    assert command[command.index("--retries") + 1] == "2"
    assert kinds["RayJob"]["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "night"
    assert "kueue.x-k8s.io/queue-name" not in kinds["RayCluster"]["metadata"]["labels"]


def test_every_pod_has_what_the_cluster_demands() -> None:
    spec = make_spec()
    shape = build_shape(spec, image=IMAGE, gpus=1, spot="gke", pods=RICH_PODS, service_account="htc")
    manifests = make_manifests(spec, shape)
    for template in pod_templates(manifests):
        pod, metadata = template["spec"], template["metadata"]
        assert pod["imagePullSecrets"] == [{"name": "registry"}]
        assert pod["priorityClassName"] == "batch"
        assert {"team": "vision", "example.com/cost-centre": "42", "app": "htc-batch"}.items() <= metadata[
            "labels"
        ].items()
        assert metadata["annotations"]["prometheus.io/scrape"] == "true"
    pods = pods_of(manifests)
    for pod in (*pods["ray-head"], *pods["ray-worker"], *pods["starter"]):
        container = pod["containers"][0]
        assert {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "webhook", "key": "url"}}} in container["env"]
        assert {"name": "volume-1", "mountPath": "/mnt/photos", "readOnly": True} in container["volumeMounts"]
        assert {"name": "volume-1", "persistentVolumeClaim": {"claimName": "photos"}} in pod["volumes"]
    for pod in (*pods["ray-head"], *pods["ray-worker"]):
        container = pod["containers"][0]
        assert {"name": "HTTPS_PROXY", "value": "http://proxy:3128"} in container["env"]
        assert container["resources"]["requests"]["ephemeral-storage"] == "40Gi"
        assert pod["serviceAccountName"] == "htc"
    for worker in pods["ray-worker"]:
        assert {"key": "dedicated", "operator": "Equal", "value": "vision", "effect": "NoSchedule"} in worker[
            "tolerations"
        ]
        assert {"key": "maintenance", "operator": "Exists", "effect": "NoExecute"} in worker["tolerations"]
        assert {"key": "preemptible", "operator": "Exists"} in worker["tolerations"]
    assert not any("tolerations" in head for head in pods["ray-head"])
    with_identity = [
        template for template in pod_templates(manifests) if template["spec"].get("serviceAccountName") == "htc"
    ]
    assert len(with_identity) == 6
    assert all(each["metadata"]["labels"]["azure.workload.identity/use"] == "true" for each in with_identity)


def test_a_label_cannot_hide_the_pods_from_their_policies() -> None:
    spec = make_spec()
    shape = build_shape(spec, image=IMAGE, pods=parse_pod_options(labels=["app=mine"]))
    assert {each["metadata"]["labels"]["app"] for each in pod_templates(make_manifests(spec, shape))} == {"htc-batch"}


def test_exit_codes_of_a_failed_run_end_the_job_and_an_eviction_does_not() -> None:
    spec = make_spec()
    job = by_kind(make_manifests(spec, build_shape(spec, image=IMAGE)))["Job"]["spec"]
    fail, ignore = job["podFailurePolicy"]["rules"]
    assert (fail["action"], fail["onExitCodes"]["values"]) == ("FailJob", [1, 2, 4])
    assert ignore == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert job["backoffLimit"] == 3


def test_the_starter_may_do_what_it_does_and_nothing_else() -> None:
    spec = make_spec()
    manifests = make_manifests(spec, build_shape(spec, image=IMAGE, secrets=["s3"]))
    kinds = by_kind(manifests)
    rules = {rule["resources"][0]: rule["verbs"] for rule in kinds["Role"]["rules"]}
    assert rules == {"rayjobs": ["create", "get", "list"], "rayclusters": ["delete"]}
    pod = kinds["Job"]["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == kinds["ServiceAccount"]["metadata"]["name"]
    # For the lease in the output.
    assert pod["containers"][0]["envFrom"] == [{"secretRef": {"name": "s3"}}]


def test_the_head_names_its_output() -> None:
    spec = make_spec()
    job = by_kind(make_manifests(spec, build_shape(spec, image=IMAGE)))["RayJob"]["spec"]
    head = job["rayClusterSpec"]["headGroupSpec"]["template"]["metadata"]
    assert head["annotations"] == {"htc-batch/output": "s3://bucket/out"}
