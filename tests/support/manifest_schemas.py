"""Checks manifests as a strict API server would: KubeRay's kinds by its trimmed CRDs, others by Kubernetes' schemas."""

import json
from functools import cache
from importlib import resources
from typing import Any

import kubernetes_validate
from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from tests.support.paths import DATA

CRDS = DATA / "crds"
RAY_KINDS = ("RayCluster", "RayJob", "RayCronJob")
KUBERNETES = "1.33"
# Up to the newest with a schema. Older schemas refuse rules of podFailurePolicy as Kubernetes' own documents have them.
KUBERNETES_VERSIONS = ("1.29", "1.31", "1.33", "1.35", "1.37")


def check_manifest(manifest: dict[str, Any], version: str = KUBERNETES) -> None:
    """Raise a ValidationError if an API server would refuse the manifest or drop one of its fields."""
    if manifest["apiVersion"] == "ray.io/v1":
        problems = [
            f"{error.json_path}: {error.message}"
            for error in Draft202012Validator({"$ref": manifest["kind"]}, registry=_registry(version)).iter_errors(
                manifest
            )
        ]
        if problems:
            raise ValueError("\n".join(problems))
    else:
        kubernetes_validate.validate(manifest, version, strict=True)


def pod_templates(value: Any) -> list[dict[str, Any]]:
    """Yield every pod template inside a manifest."""
    if isinstance(value, list):
        return [found for each in value for found in pod_templates(each)]
    if not isinstance(value, dict):
        return []
    own = [value] if isinstance(value.get("spec"), dict) and "containers" in value["spec"] else []
    return own + [found for each in value.values() for found in pod_templates(each)]


@cache
def _registry(version: str) -> Registry[Any]:
    package = resources.files("kubernetes_validate") / "kubernetes-json-schema"
    definitions = json.loads((package / f"v{version}.0-local-strict" / "_definitions.json").read_text())
    registry: Registry[Any] = Resource.from_contents(definitions) @ Registry()
    for kind in RAY_KINDS:
        schema = json.loads((CRDS / f"{kind}.json").read_text())
        registry = registry.with_resource(kind, DRAFT202012.create_resource(schema))
    return registry
