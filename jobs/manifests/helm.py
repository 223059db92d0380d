"""A job's manifests as a Helm chart: the same objects, with what differs between releases as values.

The manifests are built with placeholders in the place of the values, and each placeholder becomes Helm's expression, so
that there is one place that knows what a run needs (`jobs.manifests.bundle`).
"""

import json
import re
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from jobs.cluster.package import spec_text
from jobs.manifests.bundle import Kind, build_bundle, write_file
from jobs.manifests.cluster_shape import MAX_NAME, ClusterShape, fit_spec
from jobs.manifests.starter import DEFAULT_RETRIES, MAX_RETRIES
from jobs.manifests.yaml_dump import dump_manifests, dump_mapping
from pipeline.errors import SpecError
from pipeline.job_spec.job import JobSpec

# Placeholders: words and numbers that no manifest has by itself.
_NAME, _NAMESPACE, _IMAGE, _OUTPUT = "htc-value-name", "htc-value-namespace", "htc-value-image", "htc-value-output"
_SELECTOR, _TOLERATION = "htc-value-selector", "htc-value-toleration"
_MIN, _MAX, _KEEP_S, _DEADLINE_S, _RETRIES = 700_001, 700_003, 700_009, 700_013, 700_027
CHART_VERSION = "0.1.0"

# The templates that a chart may or may not have.
_KIND_FILES = {f"templates/{name}.yaml" for name in ("rayjob", "batch-job", "raycronjob", "raycluster", "monitor")}

Files = dict[str, str]


def write_chart(
    spec: JobSpec, shape: ClusterShape, kind: Kind, folder: Path, *, cron: str | None, time_zone: str, has_monitor: bool
) -> list[Path]:
    """Write the chart anew and return its files.

    Args:
        cron, time_zone: see `build_bundle`.

    Raises:
        SpecError: see `build_bundle`; or the folder holds another chart.
    """
    there = folder / "Chart.yaml"
    if there.exists() and f"\nname: {shape.name}\n" not in there.read_text(encoding="utf-8"):
        raise SpecError(f"{folder} holds the chart of another job; give this one its own folder with --helm.")
    files = build_chart(spec, shape, kind, cron=cron, time_zone=time_zone, has_monitor=has_monitor)
    for name in _KIND_FILES - files.keys():
        # Of the kind that the chart had before; Helm would install both.
        (folder / name).unlink(missing_ok=True)
    return [write_file(folder / name, text) for name, text in files.items()]


def build_chart(
    spec: JobSpec, shape: ClusterShape, kind: Kind, *, cron: str | None, time_zone: str, has_monitor: bool
) -> Files:
    """Return the chart's files by their paths.

    Raises:
        SpecError: see `build_bundle`.
    """
    values = _values(spec, shape, kind, cron, time_zone)
    marked = replace(
        shape,
        name=_NAME,
        namespace=_NAMESPACE,
        image=_IMAGE,
        output=_OUTPUT,
        min_workers=_MIN,
        max_workers=_MAX,
        keep_s=_KEEP_S,
        deadline_s=_DEADLINE_S,
        retries=_RETRIES,
        node_selector={_SELECTOR: "x"},
        pods=replace(shape.pods, tolerations=({"key": _TOLERATION, "operator": "Exists"},)),
        has_namespace=False,
        has_quota=False,
    )
    bundle = build_bundle(spec, marked, (kind,), cron=cron, time_zone=time_zone, has_pod_monitor=has_monitor)
    bundle.pop("base/spec.yaml")
    files = {
        "Chart.yaml": _head("Written by htc manifests.", _chart(shape)),
        "values.yaml": _values_text(values),
        "values.schema.json": f"{json.dumps(_schema(values), indent=2)}\n",
        "templates/NOTES.txt": _notes(shape, kind),
        "templates/spec.yaml": _spec_template(spec, shape),
    }
    for name, manifests in bundle.items():
        files[f"templates/{name.rpartition('/')[2]}"] = _template(dump_manifests(manifests))
    return files


def _values(spec: JobSpec, shape: ClusterShape, kind: Kind, cron: str | None, time_zone: str) -> dict[str, Any]:
    job = yaml.safe_load(spec_text(fit_spec(spec, shape)))
    if spec.compute.workers == "auto":
        # From workers.max, see `_spec_template`.
        job["compute"].pop("workers")
    values: dict[str, Any] = {
        "image": shape.image,
        "workers": {
            "min": shape.min_workers,
            "max": shape.max_workers,
            "nodeSelector": dict(shape.node_selector),
            "tolerations": [dict(each) for each in shape.pods.tolerations],
        },
    }
    if kind != "raycluster":
        values |= {"ttlSecondsAfterFinished": shape.keep_s, "deadlineSeconds": shape.deadline_s}
    if kind == "job":
        values["retries"] = DEFAULT_RETRIES if shape.retries is None else shape.retries
    if kind == "raycronjob":
        values["schedule"] = {"cron": cron, "timeZone": time_zone, "suspend": False}
    return {**values, "job": job}


_COMMENTS = {
    "image": "With htc-batch and Ray; infra/docker/Dockerfile builds it.",
    "workers": "Worker pods: limits of Ray's autoscaler, and the nodes they may run on.",
    "ttlSecondsAfterFinished": "How long a finished job's cluster is kept, for its logs.",
    "deadlineSeconds": "The job ends after this time; null for no limit.",
    "retries": "New clusters after lost ones, never after a failed run.",
    "schedule": "When it runs: five fields, and the IANA name of their time zone.",
    "job": "The job spec, as in job.yaml; compute.workers follows from workers.max where it is missing.\n"
    "# Another port of storage.endpoint_url belongs into templates/network.yaml, too.",
}


def _values_text(values: dict[str, Any]) -> str:
    return "".join(f"# {_COMMENTS[key]}\n{dump_mapping({key: value})}" for key, value in values.items())


def _schema(values: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON schema of the values: a value that the chart does not have is refused, and not ignored."""
    whole = {"type": "integer", "minimum": 0}
    texts: dict[str, Any] = {"type": "object", "additionalProperties": {"type": "string"}}
    known: dict[str, Any] = {
        "image": {"type": "string", "minLength": 1},
        "workers": {
            "type": "object",
            "additionalProperties": False,
            "required": ["min", "max"],
            "properties": {
                "min": {"type": "integer", "minimum": 1},
                "max": {"type": "integer", "minimum": 1},
                "nodeSelector": texts,
                "tolerations": {"type": "array", "items": {"type": "object"}},
            },
        },
        "ttlSecondsAfterFinished": whole,
        "deadlineSeconds": {"type": ["integer", "null"], "minimum": 1},
        "retries": {"type": "integer", "minimum": 0, "maximum": MAX_RETRIES},
        "schedule": {
            "type": "object",
            "additionalProperties": False,
            "required": ["cron", "timeZone"],
            "properties": {
                "cron": {"type": "string"},
                "timeZone": {"type": "string"},
                "suspend": {"type": "boolean"},
            },
        },
        "job": {"type": "object", "required": ["input", "output"]},
        # Helm's own.
        "global": {"type": "object"},
    }
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "additionalProperties": False,
        "required": [key for key in values if key != "deadlineSeconds"],
        "properties": {key: value for key, value in known.items() if key in values or key == "global"},
    }


def _chart(shape: ClusterShape) -> dict[str, Any]:
    return {
        "apiVersion": "v2",
        "name": shape.name,
        "description": "Instance segmentation of images by htc-batch, on KubeRay.",
        "type": "application",
        "version": CHART_VERSION,
        "appVersion": metadata.version("htc-batch"),
    }


def _spec_template(spec: JobSpec, shape: ClusterShape) -> str:
    per_pod = fit_spec(spec, replace(shape, max_workers=1)).compute.workers
    workers = ""
    if spec.compute.workers == "auto":
        workers = (
            f'{{{{- if not (hasKey $job.compute "workers") }}}}{{{{- $_ := set $job.compute "workers" '
            f"(mul .Values.workers.max {per_pod}) }}}}{{{{- end }}}}\n"
        )
    return (
        f"{{{{- if gt (len .Release.Name) {MAX_NAME} }}}}"
        f'{{{{- fail (printf "The release %s has a name of more than {MAX_NAME} characters; KubeRay appends to it." '
        ".Release.Name) }}{{- end }}\n"
        "{{- if gt (int .Values.workers.min) (int .Values.workers.max) }}"
        '{{- fail "workers.min is more than workers.max." }}{{- end }}\n'
        "{{- $job := deepCopy .Values.job }}\n"
        '{{- if not $job.compute }}{{- $_ := set $job "compute" dict }}{{- end }}\n'
        f"{workers}"
        "apiVersion: v1\n"
        "kind: ConfigMap\n"
        "metadata:\n"
        "  name: {{ .Release.Name }}-spec\n"
        "  namespace: {{ .Release.Namespace }}\n"
        "  labels:\n"
        "    app: htc-batch\n"
        "    htc-job: {{ .Release.Name }}\n"
        "data:\n"
        "  job.yaml: |\n"
        "    {{- toYaml $job | nindent 4 }}\n"
    )


def _template(text: str) -> str:
    """Return manifests with Helm's expressions in the place of the placeholders."""
    # What looks like an expression already is text of the spec.
    text = re.sub(r"\{\{|\}\}", lambda match: '{{ "' + match[0] + '" }}', text)
    text = re.sub(
        rf"^( *)activeDeadlineSeconds: {_DEADLINE_S}\n",
        r"\1{{- with $.Values.deadlineSeconds }}\n\1activeDeadlineSeconds: {{ . | int }}\n\1{{- end }}\n",
        text,
        flags=re.MULTILINE,
    )
    text = re.sub(
        rf"^( *){_SELECTOR}: x\n",
        lambda match: _block(match[1], "nodeSelector"),
        text,
        flags=re.MULTILINE,
    )
    text = re.sub(
        rf"^( *)- key: {_TOLERATION}\n *operator: Exists\n",
        lambda match: _block(match[1], "tolerations"),
        text,
        flags=re.MULTILINE,
    )
    for field, value in (("schedule", "cron"), ("timeZone", "timeZone")):
        text = re.sub(rf"^  {field}: .*$", f"  {field}: {{{{ .Values.schedule.{value} | quote }}}}", text, flags=re.M)
    text = re.sub(r"^  suspend: .*$", "  suspend: {{ .Values.schedule.suspend | default false }}", text, flags=re.M)
    for placeholder, expression in {
        _NAMESPACE: ".Release.Namespace",
        _NAME: ".Release.Name",
        _IMAGE: ".Values.image | quote",
        _OUTPUT: 'trimSuffix "/" .Values.job.output.uri | quote',
        str(_MIN): ".Values.workers.min | int",
        str(_MAX): ".Values.workers.max | int",
        str(_KEEP_S): ".Values.ttlSecondsAfterFinished | int",
        str(_RETRIES): ".Values.retries | int",
    }.items():
        text = text.replace(placeholder, f"{{{{ {expression} }}}}")
    return text


def _block(indent: str, value: str) -> str:
    lines = (
        f"{{{{- with $.Values.workers.{value} }}}}",
        f"{{{{- toYaml . | nindent {len(indent)} }}}}",
        "{{- end }}",
    )
    return "".join(f"{indent}{line}\n" for line in lines)


def _head(title: str, manifest: dict[str, Any]) -> str:
    return f"# {title}\n{dump_mapping(manifest)}"


def _notes(shape: ClusterShape, kind: Kind) -> str:
    objects = {"rayjob": "rayjob", "job": "job", "raycronjob": "raycronjob", "raycluster": "raycluster"}
    lines = [f"See it: kubectl -n {{{{ .Release.Namespace }}}} get {objects[kind]} {{{{ .Release.Name }}}}"]
    if kind in ("rayjob", "job"):
        lines.append("A run that has ended begins again after: helm uninstall {{ .Release.Name }}, and helm install.")
    lines += [f"The Secret {secret} must exist in the namespace." for secret in shape.secrets]
    return "".join(f"{line}\n" for line in lines)
