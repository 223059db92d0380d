"""What a cluster demands of pods beyond their size: secrets, tolerations, priority, labels, environment, volumes."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from jobs.manifests.volumes import Volume, parse_volumes
from pipeline.errors import SpecError

EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
# Kubernetes' syntax of a label's key (with its prefix) and value, and of an environment variable's name.
_KEY = re.compile(r"(?:[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?/)?[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_VALUE = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET_KEY = re.compile(r"[A-Za-z0-9._-]{1,253}")
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?")
_SECRET_WORDS = re.compile(
    r"(?:^|_)(?:SECRET|PASSWORD|PASSWD|TOKEN|CREDENTIALS?|API_KEY|ACCESS_KEY|PRIVATE_KEY)(?:_|$)", re.IGNORECASE
)


@dataclass(frozen=True)
class PodOptions:
    """What all pods of a run get.

    pull_secrets: Secrets with the registry's credentials.
    tolerations: as Kubernetes writes them; of workers only.
    priority_class: an existing PriorityClass.
    labels, annotations: of the pods, in addition to this program's own labels.
    environment: variables of head and workers.
    secret_environment: variables of head and workers from Secrets: (variable, Secret, key).
    volumes: mounted into head and workers.
    ephemeral_storage_gib: requested by head and workers, GiB; None asks for none.
    """

    pull_secrets: tuple[str, ...] = ()
    tolerations: tuple[dict[str, str], ...] = ()
    priority_class: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    secret_environment: tuple[tuple[str, str, str], ...] = ()
    volumes: tuple[Volume, ...] = ()
    ephemeral_storage_gib: int | None = None


def parse_pod_options(
    *,
    pull_secrets: Iterable[str] = (),
    tolerations: Iterable[str] = (),
    priority_class: str | None = None,
    labels: Iterable[str] = (),
    annotations: Iterable[str] = (),
    environment: Iterable[str] = (),
    secret_environment: Iterable[str] = (),
    volumes: Iterable[str] = (),
    ephemeral_storage_gib: int | None = None,
) -> PodOptions:
    """Check a command's options.

    Args:
        tolerations: each KEY, KEY=VALUE, KEY:EFFECT or KEY=VALUE:EFFECT.
        labels, annotations, environment: each KEY=VALUE.
        secret_environment: each VARIABLE=SECRET/KEY. volumes: see `parse_volumes`.

    Raises:
        SpecError: one of them is not of that form, or not valid in Kubernetes, or would put a secret into a manifest.
    """
    return PodOptions(
        pull_secrets=tuple(_checked(name, "--pull-secret", _NAME, "the name of a Secret") for name in pull_secrets),
        tolerations=tuple(_parse_toleration(text) for text in tolerations),
        priority_class=_checked(priority_class, "--priority-class", _NAME, "the name of a PriorityClass")
        if priority_class
        else None,
        labels=parse_labels(labels, "--label"),
        annotations=dict(_pair(text, "--annotation", _KEY) for text in annotations),
        environment=dict(_parse_variable(text) for text in environment),
        secret_environment=tuple(_parse_secret_variable(text) for text in secret_environment),
        volumes=parse_volumes(volumes),
        ephemeral_storage_gib=ephemeral_storage_gib,
    )


def parse_labels(texts: Iterable[str], option: str) -> dict[str, str]:
    """Return labels by key, of texts KEY=VALUE.

    Raises:
        SpecError: a text is not that, or Kubernetes would refuse it.
    """
    labels = dict(_pair(text, option, _KEY) for text in texts)
    for key, value in labels.items():
        if not _VALUE.fullmatch(value):
            raise SpecError(
                f"{option} is '{key}={value}'; a label's value has at most 63 letters, digits, dots, dashes and "
                "underscores."
            )
    return labels


def _pair(text: str, option: str, key_pattern: re.Pattern[str]) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key_pattern.fullmatch(key):
        raise SpecError(f"{option} is {text!r}; give it as KEY=VALUE.")
    return key, value


def _parse_variable(text: str) -> tuple[str, str]:
    key, value = _pair(text, "--env", _VARIABLE)
    if _SECRET_WORDS.search(key):
        raise SpecError(
            f"--env {key} would write a secret into the manifests; put it into a Secret and name that with --secret or "
            "--env-from-secret."
        )
    return key, value


def _parse_secret_variable(text: str) -> tuple[str, str, str]:
    variable, _, place = text.partition("=")
    secret, _, key = place.partition("/")
    if not (_VARIABLE.fullmatch(variable) and _NAME.fullmatch(secret) and _SECRET_KEY.fullmatch(key)):
        raise SpecError(
            f"--env-from-secret is {text!r}; give it as VARIABLE=SECRET/KEY, such as AWS_ACCESS_KEY_ID=s3/access-key."
        )
    return variable, secret, key


def _parse_toleration(text: str) -> dict[str, str]:
    rest, colon, effect = text.partition(":")
    key, equals, value = rest.partition("=")
    if not _KEY.fullmatch(key) or (colon and effect not in EFFECTS) or not _VALUE.fullmatch(value):
        raise SpecError(
            f"--toleration is {text!r}; give a taint as KEY, KEY=VALUE or KEY=VALUE:EFFECT, where the effect is one of "
            f"{', '.join(EFFECTS)}."
        )
    toleration = {"key": key, "operator": "Equal" if equals else "Exists"}
    if equals:
        toleration["value"] = value
    if colon:
        toleration["effect"] = effect
    return toleration


def _checked(text: str, option: str, pattern: re.Pattern[str], what: str) -> str:
    if not pattern.fullmatch(text):
        raise SpecError(f"{option} is {text!r}; give {what}: lower-case letters, digits, dots and dashes.")
    return text


def apply_pod_options(template: dict[str, Any], options: PodOptions, *, is_worker: bool) -> None:
    """Put the options into a pod template, in place.

    Args:
        template: with one container, and its `metadata.labels`.
        is_worker: tolerations are of workers only.
    """
    metadata, spec = template["metadata"], template["spec"]
    # Its own labels last: the policies select the pods by them.
    metadata["labels"] = {**options.labels, **metadata["labels"]}
    if options.annotations:
        metadata["annotations"] = {**options.annotations, **metadata.get("annotations", {})}
    if options.pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in options.pull_secrets]
    if options.priority_class:
        spec["priorityClassName"] = options.priority_class
    if is_worker and options.tolerations:
        spec.setdefault("tolerations", []).extend(dict(each) for each in options.tolerations)

    if options.volumes:
        spec.setdefault("volumes", []).extend(volume.to_pod() for volume in options.volumes)


def apply_container_options(container: dict[str, Any], options: PodOptions, *, has_storage: bool = True) -> None:
    """Put environment, mounts and storage into a container, in place.

    Args:
        container: with `env` and `volumeMounts`. has_storage: request the local disk too.
    """
    container["env"] += [{"name": name, "value": value} for name, value in options.environment.items()]
    container["env"] += [
        {"name": variable, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}
        for variable, secret, key in options.secret_environment
    ]
    container["volumeMounts"] += [volume.to_mount() for volume in options.volumes]
    if has_storage and options.ephemeral_storage_gib is not None:
        for side in ("requests", "limits"):
            container["resources"][side]["ephemeral-storage"] = f"{options.ephemeral_storage_gib}Gi"
