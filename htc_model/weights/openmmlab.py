"""Reads OpenMMLab's `.pth` files without running code from them.

A `.pth` file is a pickle, and a pickle is a program. It is read with `weights_only=True`, which accepts tensors and
plain containers only. Files of MMDetection 3.x also hold training logs of classes that this refuses; those names are
bound to a placeholder that stores nothing and does nothing, so that the weights beside them can be read without
mmengine, and without running code.
"""

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class WeightsError(ValueError):
    """A weights file is damaged, unsafe or of another network; the message is for the user.

    missing, unexpected, misshaped: all keys that did not fit; empty for other reasons.
    unusable: the keys whose values are not finite, or are a variance below zero.
    """

    def __init__(
        self,
        message: str,
        *,
        missing: tuple[str, ...] = (),
        unexpected: tuple[str, ...] = (),
        misshaped: tuple[str, ...] = (),
        unusable: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        self.missing = missing
        self.unexpected = unexpected
        self.misshaped = misshaped
        self.unusable = unusable


class _Ignored:
    """Placeholder for an object of a training log: accepts any arguments and state, and stores none."""

    def __new__(cls, *_args: object, **_kwargs: object) -> "_Ignored":
        return super().__new__(cls)

    def __init__(self, *_args: object, **_kwargs: object) -> None:
        """Keep nothing."""

    def __setstate__(self, _state: object) -> None:
        """Keep nothing."""


# What mmengine 0.x writes beside the weights (message_hub: HistoryBuffer, which contains numpy arrays and pickles its
# own methods through getattr), with both names of numpy's private package.
_IGNORED_GLOBALS = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "builtins.getattr",
    "_codecs.encode",
    "numpy.ndarray",
    "numpy.dtype",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
)
_RESAVE = (
    "where it was made, save its weights alone: torch.save({'state_dict': checkpoint['state_dict']}, 'weights.pth')"
)
_READ_ERRORS = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError)
# mmcv before 1.0 stored a deformable convolution's offset beside it, not inside (mmcv/ops/deform_conv.py).
_OLD_OFFSET = re.compile(r"\.conv2_offset\.(weight|bias)$")
# In 3.x state dicts: mean and std, which the preset's `resize` section has.
_PREPROCESSOR = "data_preprocessor."


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the weights and the plain part of the metadata of a `.pth` file.

    Handles MMDetection 2.x and 3.x wrappers, bare state dicts, `module.` prefixes of parallel training,
    the preprocessor's buffers (dropped), and old names of deformable offsets; from checkpoints of `htc train` the
    averaged weights are taken.

    Returns:
        tensors by MMDetection's key names, on the CPU, memory-mapped if the file allows it; metadata of JSON types,
        with `classes` if the file names them.

    Raises:
        WeightsError: the file is not a checkpoint, is unsafe, or has no single set of weights.
    """
    content = _unpickle(path)
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not a table of weights.")
    own = _training_average(content)
    if own is not None:
        return own
    # torchvision's training scripts call it "model".
    wrapped = content.get("state_dict", content.get("model", content))
    if not isinstance(wrapped, Mapping) or not wrapped:
        raise WeightsError(f"{path} holds no weights: its keys are {_some_names(content)}.")
    meta = content.get("meta") if "state_dict" in content else None
    return _clean_state(path, wrapped), _plain_metadata(meta if isinstance(meta, Mapping) else {})


def _training_average(content: Mapping[Any, Any]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return the averaged weights of a checkpoint of `htc train`; None for other files."""
    average, config = content.get("average"), content.get("config")
    if not (isinstance(average, Mapping) and isinstance(average.get("state"), Mapping) and isinstance(config, Mapping)):
        return None
    metadata = {"config": dict(config), "classes": list(config.get("classes", ())), "steps": content.get("step")}
    return dict(average["state"]), metadata


def _unpickle(path: Path) -> Any:
    placeholders: list[Any] = [(_Ignored, name) for name in _IGNORED_GLOBALS]
    try:
        # Memory-mapping works for the zip layout only; the oldest published files have another.
        is_zip = zipfile.is_zipfile(path)
        with torch.serialization.safe_globals(placeholders):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}.") from error
    except _READ_ERRORS as error:
        forbidden = re.search(r"GLOBAL (\S+)", str(error))
        if forbidden:
            raise WeightsError(
                f"{path} asks to run {forbidden[1]} while loading, which may be an attack and is refused; "
                f"if you trust the file, {_RESAVE}."
            ) from error
        # torch's own text is long, and advises to load the file without this protection.
        raise WeightsError(
            f"{path} is not a readable checkpoint: it is damaged, or neither a PyTorch checkpoint nor a "
            ".safetensors file."
        ) from error


def _clean_state(path: Path, wrapped: Mapping[Any, Any]) -> dict[str, Tensor]:
    names = [str(name) for name in wrapped]
    averaged = [name for name in names if name.startswith("ema_")]
    if averaged:
        raise WeightsError(
            f"{path} holds two sets of weights, the last and their running average ({len(averaged)} keys such "
            f"as {averaged[0]}); keep the set that was evaluated and {_RESAVE}."
        )
    is_parallel = all(name.startswith("module.") for name in names)
    state: dict[str, Tensor] = {}
    for name, value in zip(names, wrapped.values(), strict=True):
        key = name.removeprefix("module.") if is_parallel else name
        if key.startswith(_PREPROCESSOR):
            continue
        if not isinstance(value, Tensor):
            raise WeightsError(f"{path} is not a state dict: {key} is a {type(value).__name__}, not a tensor.")
        state[_OLD_OFFSET.sub(r".conv2.conv_offset.\1", key)] = value
    return state


def _plain_metadata(meta: Mapping[Any, Any]) -> dict[str, Any]:
    """Keep values of JSON types, and find the class names under any of the keys that they have had."""
    # MMDetection's `config` is the text of a Python file; that of this project's .safetensors is a table.
    plain: dict[str, Any] = {
        "mmdet_config" if key == "config" else str(key): value
        for key, value in meta.items()
        if isinstance(value, str | int | float | bool)
    }
    dataset = meta.get("dataset_meta")
    for holder in (meta, dataset if isinstance(dataset, Mapping) else {}):
        for name in ("CLASSES", "classes"):
            classes = holder.get(name)
            if isinstance(classes, list | tuple) and all(isinstance(c, str) for c in classes):
                plain["classes"] = list(classes)
    return plain


def _some_names(content: Mapping[Any, Any]) -> str:
    names = [str(name) for name in content]
    shown = ", ".join(names[:8]) or "none"
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"
