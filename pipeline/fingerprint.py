"""What makes two runs' models the same: preset, weights and settings, each as a hash; needs no torch."""

import hashlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from htc_model.config import ModelConfig, config_sha256, load_preset
from pipeline.config import ModelSection
from pipeline.fetch import resolve_weights
from pipeline.storage import Storage

# Names the rule by which htc_model.deterministic draws its values; another rule needs another name.
UNTRAINED = "untrained-v1"
_CHUNK_BYTES = 2**20


@dataclass(frozen=True)
class ModelFingerprint:
    """Identity of a model.

    weights_sha256: of the weights file's bytes, or "untrained-v1".
    config_sha256: of the preset with the spec's threshold and number of detections.
    """

    preset: str
    weights_sha256: str
    config_sha256: str
    trained: bool

    def to_dict(self) -> dict[str, object]:
        """Plain JSON-able values, for run.json."""
        return asdict(self)


def configured(section: ModelSection) -> ModelConfig:
    """The spec's preset with the spec's threshold and number of detections.

    Raises:
        ModelConfigError: there is no such preset.
    """
    return replace(
        load_preset(section.preset),
        score_threshold=section.score_threshold,
        max_detections=section.max_detections,
    )


def take_fingerprint(section: ModelSection, storage: Storage | None = None) -> ModelFingerprint:
    """Hash the model that the spec names, fetching its weights when they are not there yet.

    Raises:
        WeightsUnavailableError: the weights cannot be had.
    """
    path = resolve_weights(section, storage)
    return ModelFingerprint(
        section.preset,
        UNTRAINED if path is None else _file_sha256(path),
        config_sha256(configured(section)),
        trained=path is not None,
    )


def _file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
