"""Identity of a model: its preset, and hashes of its weights and configuration; needs no torch."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from htc_model.class_maps import ensemble_config
from htc_model.config import ModelConfig, config_from_dict, config_sha256, load_preset
from pipeline.errors import SpecError
from pipeline.job_spec.ensemble import EnsembleSection
from pipeline.job_spec.model import ModelSection
from pipeline.job_spec.tiles import TilesSection, plain_tiles
from pipeline.storage.storage import Storage
from pipeline.weights.cache import resolve_weights

# Names the rule by which htc_model.weights.untrained computes its values; another rule needs another name.
UNTRAINED = "untrained-v1"
_CHUNK_BYTES = 2**20
# The limit of the safetensors format; a file with a longer header is not valid.
_MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True)
class ModelFingerprint:
    """Identity of a model.

    weights_sha256: the hash of the weights file's bytes, or "untrained-v1".
    config_sha256: the hash of the preset with the spec's score threshold, number of detections, views and tiles.
    trained: whether there is a weights file.
    """

    preset: str
    weights_sha256: str
    config_sha256: str
    trained: bool

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON-able values, for run.json."""
        return asdict(self)


@dataclass(frozen=True)
class EnsembleFingerprint(ModelFingerprint):
    """Identity of an ensemble: its hashes are of the members' hashes, votes and fusion.

    preset: the members' presets with "+" between. members: in the order of the spec.
    """

    members: tuple[ModelFingerprint, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON-able values, for run.json."""
        values = asdict(self)
        return {**values, "members": list(values["members"])}


def resolve_preset(section: ModelSection, storage: Storage | None = None) -> ModelSection:
    """Return the section with the preset that its weights file names, if the section itself names none.

    Remote weights are fetched. If the file does not name its preset, the section stays as it is.

    Raises:
        WeightsUnavailableError: the weights file is not available.
        SpecError: the section names another preset than the file.
    """
    if section.ensemble is not None:
        return section.with_members([resolve_preset(member, storage) for member in section.members])
    if section.factory is not None or section.weights in {"coco", "untrained"}:
        # These words are valid with any preset and do not choose one.
        return section
    config = config_of_weights(resolve_weights(section, storage))
    if config is None or config.name == section.preset:
        return section
    if "preset" in section.model_fields_set:
        raise SpecError(
            f"{section.weights} holds weights of {config.name}, not of {section.preset}; leave model.preset "
            "(--model) out to use the file's preset."
        )
    return section.model_copy(update={"preset": config.name})


def config_of_weights(path: Path | None) -> ModelConfig | None:
    """Read the network configuration in a `.safetensors` file: preset, switches, sizes, classes and category ids.

    Returns:
        None if the file is of another kind, holds no configuration, or cannot be read (loading it reports why).

    Raises:
        ModelConfigError: this version does not understand the configuration.
    """
    if path is None or path.suffix != ".safetensors":
        return None
    try:
        with path.open("rb") as file:
            # The safetensors format: the header's length in eight bytes, little endian, then the header as JSON.
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length <= _MAX_HEADER_BYTES else {}
        text = header.get("__metadata__", {}).get("config")
        config = None if text is None else json.loads(text)
    except (OSError, ValueError, AttributeError):
        return None
    return config_from_dict(config) if isinstance(config, dict) else None


def resolve_config(section: ModelSection, weights: Path | None = None) -> ModelConfig:
    """Return the weights file's network configuration, else the preset's, with the spec's settings of detections.

    Args:
        weights: the local weights file, if there is one.

    Raises:
        ModelConfigError: there is no such preset.
    """
    config = config_of_weights(weights) or load_preset(section.preset)
    return replace(
        config,
        score_threshold=section.score_threshold,
        max_detections=section.max_detections,
        suppression=section.suppression,
        views=() if section.augment is None else section.augment.views(config.resize),
    )


def compute_fingerprint(section: ModelSection, storage: Storage | None = None) -> ModelFingerprint:
    """Hash the model that the section describes, fetching its weights if they are not on this machine.

    Raises:
        WeightsUnavailableError: the weights file is not available.
        ModelConfigError: there is no such preset, or the members of an ensemble do not go together.
    """
    if section.ensemble is not None:
        return _ensemble_fingerprint(section, section.ensemble, storage)
    path = resolve_weights(section, storage)
    return ModelFingerprint(
        section.preset,
        UNTRAINED if path is None else file_sha256(path),
        config_sha256(resolve_config(section, path)),
        trained=path is not None,
    )


def joint_config(section: ModelSection, storage: Storage | None = None) -> ModelConfig:
    """Return the configuration of the section's network, or of its ensemble: the first one's with the classes of all.

    Raises:
        WeightsUnavailableError: a weights file is not available.
        ModelConfigError: there is no such preset, or the members of an ensemble do not go together.
    """
    configs = [resolve_config(member, resolve_weights(member, storage)) for member in section.members]
    if section.ensemble is None:
        return configs[0]
    return ensemble_config(configs, section.ensemble.labels)


def _ensemble_fingerprint(
    section: ModelSection, ensemble: EnsembleSection, storage: Storage | None
) -> EnsembleFingerprint:
    members = tuple(compute_fingerprint(member, storage) for member in section.members)
    # Members that do not go together are noticed here, before a run begins.
    joint_config(section, storage)
    votes = [[member.config_sha256, each.weight] for member, each in zip(members, ensemble.members, strict=True)]
    return EnsembleFingerprint(
        section.preset,
        _sha256_of([member.weights_sha256 for member in members]),
        _sha256_of([ensemble.fusion, section.suppression, votes]),
        trained=all(member.trained for member in members),
        members=members,
    )


def _sha256_of(values: object) -> str:
    return hashlib.sha256(json.dumps(values, separators=(",", ":")).encode()).hexdigest()


def with_tiles(fingerprint: ModelFingerprint, tiles: TilesSection | None) -> ModelFingerprint:
    """Return the identity of a model that sees huge images in tiles; without tiles, the model's own."""
    plain = plain_tiles(tiles)
    if plain is None:
        return fingerprint
    text = json.dumps([fingerprint.config_sha256, plain], sort_keys=True)
    return replace(fingerprint, config_sha256=hashlib.sha256(text.encode()).hexdigest())


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes, 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
