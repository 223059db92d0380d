"""Cuts KubeRay's CRDs down to what checks our manifests: `python infra/kuberay/trim_crds.py CRDS FOLDER`.

CRDS holds rayclusters.yaml, rayjobs.yaml and raycronjobs.yaml of a KubeRay release (ray-operator/config/crd/bases,
ray.io_*.yaml there). A megabyte each, because every one spells out Kubernetes' pods; those are named here instead, and
the tests check them with Kubernetes' own schemas. What is left is made strict: a field that is not named is refused.
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

Schema = dict[str, Any]

VERSION = "v1"
SOURCES = {"RayCluster": "rayclusters", "RayJob": "rayjobs", "RayCronJob": "raycronjobs"}
CORE = "https://kubernetes.io/api/_definitions.json#/$defs/io.k8s."
# By the field's name: Kubernetes' own kinds, and ours, which stand inside each other.
NAMED = {
    "template": f"{CORE}api.core.v1.PodTemplateSpec",
    "submitterPodTemplate": f"{CORE}api.core.v1.PodTemplateSpec",
    "headService": f"{CORE}api.core.v1.Service",
    "metadata": f"{CORE}apimachinery.pkg.apis.meta.v1.ObjectMeta",
    "rayClusterSpec": "RayCluster#/properties/spec",
    "jobTemplate": "RayJob#/properties/spec",
}
DROPPED = ("description", "x-kubernetes-validations", "x-kubernetes-list-type", "x-kubernetes-list-map-keys")


def trim(schema: Schema) -> Schema:
    """Return a schema without its prose, strict, with the kinds of NAMED by reference."""
    kept = {key: value for key, value in schema.items() if key not in DROPPED and not key.startswith("x-kubernetes-")}
    if "properties" in schema:
        kept["properties"] = {
            name: {"$ref": NAMED[name]} if name in NAMED else trim(field)
            for name, field in schema["properties"].items()
            if name != "status"
        }
        kept.setdefault("additionalProperties", False)
    if isinstance(kept.get("additionalProperties"), dict):
        kept["additionalProperties"] = trim(kept["additionalProperties"])
    if "items" in schema:
        kept["items"] = trim(schema["items"])
    return kept


def trim_crd(path: Path) -> Schema:
    """Return one CRD's schema of VERSION, trimmed."""
    definition = yaml.safe_load(path.read_text(encoding="utf-8"))
    versions = {version["name"]: version for version in definition["spec"]["versions"]}
    return trim(versions[VERSION]["schema"]["openAPIV3Schema"])


def main(crds: Path, folder: Path) -> None:
    """Write a JSON file for each kind."""
    for kind, name in SOURCES.items():
        text = json.dumps(trim_crd(crds / f"{name}.yaml"), indent=1)
        (folder / f"{kind}.json").write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
