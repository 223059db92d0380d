"""Volumes of the pods: claims, Secrets, ConfigMaps and folders of the node, as `--volume` names them."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pipeline.errors import SpecError

VolumeKind = Literal["pvc", "secret", "configmap", "hostpath"]
KINDS: tuple[VolumeKind, ...] = get_args(VolumeKind)
# Folders that the pods have already, see `jobs.manifests.pods`.
TAKEN = ("/etc/htc", "/var/cache/htc")
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?")
_EXAMPLE = "pvc:photos:/mnt/photos:ro, secret:gcp-key:/var/secrets, configmap:ca:/etc/ca or hostpath:/data:/mnt/data"


@dataclass(frozen=True)
class Volume:
    """A volume and where it is mounted.

    source: name of the claim, Secret or ConfigMap, or the node's folder. name: within the pod. path: of the mount.
    """

    kind: VolumeKind
    source: str
    name: str
    path: str
    is_read_only: bool

    def to_pod(self) -> dict[str, Any]:
        """Return the entry of the pod's `volumes`."""
        sources: dict[VolumeKind, dict[str, Any]] = {
            "pvc": {"persistentVolumeClaim": {"claimName": self.source}},
            "secret": {"secret": {"secretName": self.source}},
            "configmap": {"configMap": {"name": self.source}},
            # It must be there: Kubernetes would create an empty one, and the run would find no images.
            "hostpath": {"hostPath": {"path": self.source, "type": "Directory"}},
        }
        return {"name": self.name, **sources[self.kind]}

    def to_mount(self) -> dict[str, Any]:
        """Return the entry of the container's `volumeMounts`."""
        mount: dict[str, Any] = {"name": self.name, "mountPath": self.path}
        return {**mount, "readOnly": True} if self.is_read_only else mount

    def holds(self, path: str) -> bool:
        """Return whether an absolute path lies in the mount."""
        return f"{path.rstrip('/')}/".startswith(f"{self.path}/")


def parse_volumes(texts: Iterable[str]) -> tuple[Volume, ...]:
    """Return the volumes of texts KIND:SOURCE:PATH or KIND:SOURCE:PATH:ro.

    Raises:
        SpecError: a text is not that, or two volumes share a path, or one hides a folder that the pods have already.
    """
    volumes = tuple(_parse(text, number) for number, text in enumerate(texts, 1))
    paths = [volume.path for volume in volumes]
    for volume in volumes:
        if paths.count(volume.path) > 1:
            raise SpecError(f"--volume {volume.path} is given twice; one path holds one volume.")
        if any(volume.holds(taken) or volume.path.startswith(f"{taken}/") for taken in TAKEN):
            raise SpecError(
                f"--volume {volume.path} would hide {' or '.join(TAKEN)}, which the pods need; choose another path."
            )
    return volumes


def _parse(text: str, number: int) -> Volume:
    given, *rest = text.split(":")
    kind = next((each for each in KINDS if each == given), None)
    mode = rest.pop() if len(rest) == 3 else ""
    if kind is None or len(rest) != 2 or mode not in ("", "ro"):
        raise SpecError(f"--volume is {text!r}; give it as KIND:SOURCE:PATH, such as {_EXAMPLE}.")
    source, path = rest[0], rest[1].rstrip("/")
    is_source = source.startswith("/") if kind == "hostpath" else _NAME.fullmatch(source) is not None
    if not path.startswith("/") or ".." in path.split("/") or not is_source:
        what = "a folder of the node" if kind == "hostpath" else "a name, in lower case"
        raise SpecError(f"--volume is {text!r}; its source is {what}, and its path is absolute: {_EXAMPLE}.")
    # Kubernetes mounts Secrets and ConfigMaps read-only in any case.
    is_read_only = mode == "ro" or kind in ("secret", "configmap")
    return Volume(kind, source, f"volume-{number}", path, is_read_only=is_read_only)
