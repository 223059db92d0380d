"""What makes two runs' models the same: preset, weights and settings, each as a hash; needs no torch."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from htc_model.config import ModelConfig, config_from_dict, config_sha256, load_preset
from pipeline.errors import SpecError
from pipeline.job_spec.job import JobSpec, ModelSection
from pipeline.storage.storage import Storage
from pipeline.weights.cache import resolve_weights

# Names the rule by which htc_model.weights.untrained draws its values; another rule needs another name.
UNTRAINED = "untrained-v1"
_CHUNK_BYTES = 2**20
# Of safetensors itself; a longer one is no such file.
_MAX_HEADER_BYTES = 100_000_000


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


def resolve_preset(spec: JobSpec, storage: Storage | None = None) -> JobSpec:
    """Return the spec with the preset that its weights file names, for a spec that names none itself.

    Remote weights are fetched. Files that do not say what they are leave the spec as it is.

    Raises:
        WeightsUnavailableError: the weights cannot be had.
        SpecError: the spec names another preset than the file.
    """
    section = spec.model
    if section.weights in {"coco", "untrained"}:
        # These words take any preset, and say nothing of it.
        return spec
    config = config_of_weights(resolve_weights(section, storage))
    if config is None or config.name == section.preset:
        return spec
    if "preset" in section.model_fields_set:
        raise SpecError(
            f"{section.weights} holds weights of {config.name}, not of {section.preset}; leave model.preset "
            "(--model) out to take what the file says."
        )
    return spec.model_copy(update={"model": section.model_copy(update={"preset": config.name})})


def config_of_weights(path: Path | None) -> ModelConfig | None:
    """Read which network a `.safetensors` file is for: its preset, switches, sizes, classes and category ids.

    Returns:
        None for another kind of file, one that does not say, or one that cannot be read (loading it says why).

    Raises:
        ModelConfigError: it says something that this version does not understand.
    """
    if path is None or path.suffix != ".safetensors":
        return None
    try:
        with path.open("rb") as file:
            # The format: the header's length as eight bytes, little endian, then the header as JSON.
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length <= _MAX_HEADER_BYTES else {}
        text = header.get("__metadata__", {}).get("config")
        config = None if text is None else json.loads(text)
    except (OSError, ValueError, AttributeError):
        return None
    return config_from_dict(config) if isinstance(config, dict) else None


def resolve_config(section: ModelSection, weights: Path | None = None) -> ModelConfig:
    """The network that the weights file describes, else the spec's preset, with the spec's threshold and number.

    Args:
        weights: the local file of the spec's weights, if there is one.

    Raises:
        ModelConfigError: there is no such preset.
    """
    return replace(
        config_of_weights(weights) or load_preset(section.preset),
        score_threshold=section.score_threshold,
        max_detections=section.max_detections,
    )


def compute_fingerprint(section: ModelSection, storage: Storage | None = None) -> ModelFingerprint:
    """Hash the model that the spec names, fetching its weights when they are not there yet.

    Raises:
        WeightsUnavailableError: the weights cannot be had.
    """
    path = resolve_weights(section, storage)
    return ModelFingerprint(
        section.preset,
        UNTRAINED if path is None else _file_sha256(path),
        config_sha256(resolve_config(section, path)),
        trained=path is not None,
    )


def _file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
