"""Weights files: read, hash, check, load into a model, save, convert."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from htc_model.config import PRESETS, ModelConfig, config_from_dict, config_to_dict
from htc_model.finite import unusable_keys
from htc_model.weights.openmmlab import WeightsError, read_checkpoint

__all__ = [
    "LoadedWeights",
    "WeightsError",
    "check_fit",
    "convert_weights",
    "guess_preset",
    "load_into",
    "load_weights",
    "save_weights",
    "state_sha256",
]

# BatchNorm's counter of training steps: old files lack it, and inference does not read it.
_COUNTER = "num_batches_tracked"
_SHOWN_GROUPS = 20


@dataclass(frozen=True)
class LoadedWeights:
    """The content of a weights file.

    path: of the file. state: tensors by MMDetection's key names, on the CPU.
    metadata: of JSON types; with `classes` (list of names) and `config` (see `config_to_dict`) if known.
    sha256: of the whole file, 64 hex digits.
    """

    path: str
    state: dict[str, Tensor]
    metadata: dict[str, Any]
    sha256: str


def load_weights(path: str | Path) -> LoadedWeights:
    """Read an OpenMMLab `.pth` (2.x or 3.x) or a `.safetensors` file, without running code from it.

    Raises:
        WeightsError: the file is missing, damaged, unsafe, not weights, or has unusable values (NaN, infinity, a
            variance below zero), whose keys are named.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"There is no weights file {path}; give the path of a .pth or .safetensors file.")
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}.") from error
    read = _read_safetensors if path.suffix == ".safetensors" else read_checkpoint
    state, metadata = read(path)
    _check_usable(str(path), state)
    return LoadedWeights(path=str(path), state=state, metadata=metadata, sha256=sha256)


def _check_usable(path: str, state: Mapping[str, Tensor]) -> None:
    """Raise if a value would leave every image without detections: NaN is above no threshold."""
    sparse = tuple(key for key, tensor in state.items() if tensor.layout is not torch.strided)
    if sparse:
        raise WeightsError(f"{path} holds sparse tensors, which no layer supports. {_describe('Sparse', sparse)}")
    keys = unusable_keys(state)
    if keys:
        tensors = "a tensor" if len(keys) == 1 else f"{len(keys)} tensors"
        raise WeightsError(
            f"{path} holds {tensors} with values that are not finite numbers (NaN, infinity, or a variance "
            f"below zero), as after a training that diverged; use an earlier checkpoint, or fetch it again. "
            f"{_describe('Not finite', keys)}",
            unusable=keys,
        )


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
            strings: dict[str, str] = file.metadata() or {}
        metadata = {key: json.loads(text) if key in _JSON_KEYS else text for key, text in strings.items()}
    except (SafetensorError, ValueError) as error:
        raise WeightsError(f"{path} is not a readable safetensors file ({error}).") from error
    own = metadata.pop("metadata", {})
    return state, {**(own if isinstance(own, dict) else {}), **metadata}


# The header of a safetensors file holds strings only; these keys hold JSON. The others are kept as text.
_JSON_KEYS = ("config", "classes", "metadata")


def load_into(model: nn.Module, loaded: LoadedWeights) -> None:
    """Copy weights into a model, strictly: all keys fit, or nothing is copied.

    Raises:
        WeightsError: see `check_fit`; or a value is not finite.
    """
    check_fit(model, loaded)
    _check_usable(loaded.path, loaded.state)
    model.load_state_dict(loaded.state, strict=False)  # checked above; step counters may be missing


def check_fit(model: nn.Module, loaded: LoadedWeights) -> None:
    """Check that weights fit a model, which may be on the meta device.

    Only BatchNorm's step counters may be missing. If the file names its classes, they must be the model's.

    Raises:
        WeightsError: they do not fit. The message names the missing, unexpected and wrongly shaped keys, and the preset
            that the file would fit, if there is one; the error's attributes hold the complete lists.
    """
    wanted = model.state_dict()
    config = getattr(model, "config", None)
    name = config.name if isinstance(config, ModelConfig) else type(model).__name__
    missing = tuple(key for key in wanted if key not in loaded.state and not key.endswith(_COUNTER))
    unexpected = tuple(key for key in loaded.state if key not in wanted)
    misshaped = tuple(
        key for key, tensor in loaded.state.items() if key in wanted and tensor.shape != wanted[key].shape
    )
    if missing or unexpected or misshaped:
        sentences = [f"{loaded.path} does not fit {name}: {len(missing)} keys are missing"]
        sentences[0] += f", {len(unexpected)} unexpected, {len(misshaped)} of another shape."
        sentences += [_describe("Missing", missing)] if missing else []
        sentences += [_describe("Unexpected", unexpected)] if unexpected else []
        shapes = (_shape_change(key, loaded.state[key], wanted[key]) for key in misshaped)
        sentences += [f"Of another shape: {_capped(shapes)}."] if misshaped else []
        fitting = guess_preset(loaded.state)
        sentences += [f"These are weights of {fitting}."] if fitting is not None else []
        raise WeightsError(" ".join(sentences), missing=missing, unexpected=unexpected, misshaped=misshaped)
    if isinstance(config, ModelConfig):
        _check_classes(loaded, config)


def _check_classes(loaded: LoadedWeights, config: ModelConfig) -> None:
    """Raise if the weights' classes are not the model's; 80 other classes would have the same shapes."""
    classes = loaded.metadata.get("classes")
    if not isinstance(classes, list | tuple):
        return
    for label, (theirs, ours) in enumerate(zip(classes, config.classes, strict=False)):
        if _plain_name(theirs) != _plain_name(ours):
            raise WeightsError(
                f"{loaded.path} was trained on other classes than {config.name}'s: "
                f"label {label} is {theirs!r} there and {ours!r} here."
            )


def _plain_name(name: object) -> str:
    return str(name).lower().replace("_", "").replace(" ", "")


def _shape_change(key: str, theirs: Tensor, ours: Tensor) -> str:
    return f"{key} is {list(theirs.shape)} in the file and {list(ours.shape)} in the model"


def _describe(what: str, keys: Iterable[str]) -> str:
    """List keys, with those of one layer together: `neck.a.{weight,bias}`."""
    layers: dict[str, list[str]] = {}
    for key in keys:
        layer, _, leaf = key.rpartition(".")
        layers.setdefault(layer, []).append(leaf)
    groups = (
        f"{layer}.{{{','.join(leaves)}}}" if len(leaves) > 1 else f"{layer}.{leaves[0]}".removeprefix(".")
        for layer, leaves in layers.items()
    )
    return f"{what}: {_capped(groups)}."


def _capped(texts: Iterable[str]) -> str:
    texts = list(texts)
    rest = len(texts) - _SHOWN_GROUPS
    return ", ".join(texts[:_SHOWN_GROUPS]) + (f" and {rest} more" if rest > 0 else "")


def guess_preset(state: Mapping[str, Tensor]) -> str | None:
    """Return the preset with exactly these keys and shapes (step counters aside), or None."""
    from htc_model.network.detector import build_model

    shapes = _signature(state)
    for name in PRESETS:
        with torch.device("meta"):  # shapes only: no memory, no random numbers
            if _signature(build_model(name).state_dict()) == shapes:
                return name
    return None


def _signature(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in state.items() if not key.endswith(_COUNTER)}


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """Hash names, dtypes, shapes and values, independent of order and file format: 64 hex digits."""
    digest = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        digest.update(f"{key}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_weights(
    path: str | Path,
    state: Mapping[str, Tensor],
    config: ModelConfig | None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a `.safetensors` file atomically; its header holds config, classes and metadata.

    Args:
        metadata: of JSON types.
    """
    header = {"format": "pt", "metadata": json.dumps(dict(metadata or {}))}
    if config is not None:
        header["config"] = json.dumps(config_to_dict(config))
        header["classes"] = json.dumps(list(config.classes))
    tensors = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in state.items()}
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        aside.write_bytes(to_safetensors(tensors, metadata=header))
        aside.replace(path)
    except OSError as error:
        raise WeightsError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        aside.unlink(missing_ok=True)


def convert_weights(source: str | Path, destination: str | Path) -> LoadedWeights:
    """Convert any readable weights file to `.safetensors`, with the config of the preset that it fits.

    A file that fits no preset (with other classes, for example) is converted without a config.

    Returns:
        the content of the new file.

    Raises:
        WeightsError: the source cannot be read, the destination cannot be written, or its name does not end in
            `.safetensors`.
    """
    destination = Path(destination)
    if destination.suffix != ".safetensors":
        raise WeightsError(f"{destination} must end in .safetensors.")
    loaded = load_weights(source)
    metadata = {key: value for key, value in loaded.metadata.items() if key not in {"config", "format"}}
    metadata |= {"converted_from": Path(source).name, "converted_from_sha256": loaded.sha256}
    known = loaded.metadata.get("config")
    preset = None if known is not None else guess_preset(loaded.state)
    config = config_from_dict(known) if isinstance(known, dict) else PRESETS.get(preset or "")
    save_weights(destination, loaded.state, config, metadata)
    return load_weights(destination)
