"""The adapter "torchvision:NAME": torchvision's detection models, with the detections that torchvision itself computes.

The pipeline resizes, normalises and pads, in torchvision's arithmetic, so that photos of different sizes share a batch;
torchvision's own transform is turned off. Mask maps of 28 x 28 leave the model as they are and are encoded without
being drawn; they are stretched over the whole pixels that torchvision's `paste_masks_in_image` chooses.
"""

import difflib
import inspect
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models import WeightsEnum, detection, get_model, get_model_weights
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import expand_boxes, expand_masks
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes

from htc_model.structures import ImageBatch, RawDetections
from htc_model.weights.load import load_into, load_weights
from pipeline.errors import ModelError
from pipeline.models.protocol import PixelFormat, Rgb
from pipeline.text import message_of

# torchvision's own default, COCO's 90 numbers and the background.
_COCO_NUMBERS = 91
_GREY_LEVELS = 255.0
# Its values without weights: the same each time, with one version of torch.
_SEED = 0
# The layers whose rows are classes, or classes times anchors, by family.
_CLASS_LAYERS = (
    "roi_heads.box_predictor.cls_score.bias",
    "head.classification_head.cls_logits.bias",
    "head.classification_head.module_list.0.1.bias",
    "head.classification_head.module_list.0.bias",
)
# What the adapter itself settles, and what is of no option.
_NO_OPTIONS = {"self", "args", "kwargs", "weights", "weights_backbone", "progress", "backbone", "input", "_skip_resize"}
# Where a COCO number has no object, and what class 0 is called.
_NO_NAME = ("N/A", "__background__", "no person")


class TorchvisionPixels(PixelFormat):
    """The sizes of torchvision's transform, which rounds them down."""

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Compute the (height, width) of a decoded image after the resize."""
        if self.exact_size is not None or self.long_side is None or self.short_side is None:
            return super().resized_size(height, width)
        # `_resize_image_and_masks` and `interpolate(recompute_scale_factor=True)`.
        scale = min(self.short_side / min(height, width), self.long_side / max(height, width))
        return max(1, int(height * scale)), max(1, int(width * scale))


class TorchvisionModel:
    """A detection model of torchvision as the pipeline takes it; see `InstanceModel`."""

    def __init__(self, name: str, network: nn.Module, *, classes: Sequence[str], category_ids: Sequence[int]) -> None:
        """Take a model with its weights.

        Args:
            classes, category_ids: of torchvision's labels 1, 2, 3, ...
        """
        self.name = name
        self.classes = list(classes)
        self.category_ids = list(category_ids)
        self.network = network
        self.pixels = _pixels_of(cast("GeneralizedRCNNTransform", network.transform))

    def eval(self) -> None:
        """Switch to evaluation."""
        self.network.eval()

    def to(self, device: torch.device) -> None:
        """Move the network."""
        self.network.to(device)

    def infer(self, batch: ImageBatch) -> list[RawDetections]:
        """Find the instances of every image, as torchvision's model does with a list of them."""
        network = cast("Any", self.network)
        network.transform = _Prepared(batch)
        found: list[dict[str, Tensor]] = network(list(batch.pixels))
        return [self._detections(each, size) for each, size in zip(found, batch.original_sizes, strict=True)]

    def _detections(self, found: Mapping[str, Tensor], size: tuple[int, int]) -> RawDetections:
        # Label 0 is the background, which these models do not return.
        boxes, maps, mask_boxes = found["boxes"], None, None
        if "masks" in found:
            maps, mask_boxes = _as_pasted(found["masks"], boxes)
        labels = found["labels"] - 1
        return RawDetections(boxes, found["scores"], labels, maps, size, mask_boxes_xyxy=mask_boxes)


class _Prepared(nn.Module):
    """In the place of a model's transform: the batch is prepared, and only boxes go back to the photo's size."""

    def __init__(self, batch: ImageBatch) -> None:
        super().__init__()
        self._batch = batch

    def forward(self, images: object, targets: None = None) -> tuple[ImageList, None]:
        """Return the batch."""
        del images
        return ImageList(
            self._batch.pixels, [(int(height), int(width)) for height, width in self._batch.image_sizes]
        ), targets

    def postprocess(
        self, result: list[dict[str, Tensor]], image_shapes: Sequence[tuple[int, int]], original_image_sizes: object
    ) -> list[dict[str, Tensor]]:
        """Scale the boxes; masks stay 28 x 28."""
        del original_image_sizes
        for found, shape, size in zip(result, image_shapes, self._batch.original_sizes, strict=True):
            found["boxes"] = resize_boxes(found["boxes"], list(shape), list(size))
        return result


def _as_pasted(maps: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Return maps [N, 30, 30] and the boxes over which torchvision pastes them, whole pixels."""
    # `paste_masks_in_image`: a frame of zeros, and boxes that end with their last pixel.
    padded, scale = expand_masks(maps, padding=1)
    whole = expand_boxes(boxes, scale).to(torch.int64)
    begin, end = whole[:, :2], whole[:, 2:] + 1
    return padded[:, 0], torch.cat([begin, torch.maximum(end, begin + 1)], dim=1).to(boxes.dtype)


def _pixels_of(transform: GeneralizedRCNNTransform) -> PixelFormat:
    mean, std = (
        cast("Rgb", tuple(value * _GREY_LEVELS for value in each))
        for each in (transform.image_mean, transform.image_std)
    )
    common: dict[str, Any] = {
        "pad_multiple": int(transform.size_divisible),
        "mean_rgb": mean,
        "std_rgb": std,
        "interpolation": "bilinear",
    }
    if transform.fixed_size is not None:
        width, height = transform.fixed_size
        return TorchvisionPixels(exact_size=(int(height), int(width)), **common)
    # Of several, all but the last are for training.
    return TorchvisionPixels(long_side=int(transform.max_size), short_side=int(transform.min_size[-1]), **common)


def make(name: str, *, weights: str | Path = "default", **options: Any) -> TorchvisionModel:
    """Build one of torchvision's detection models.

    Args:
        name: such as "maskrcnn_resnet50_fpn_v2".
        weights: "default" (torchvision's own, of COCO), "untrained" (pseudo-random, the same each time), or a file:
            a .pth or .safetensors with the model's state dict, also of another number of classes.
        options: `classes` (names in the order of labels 1, 2, 3, ...), `category_ids` (their ids), and what
            torchvision's builder takes, such as min_size, max_size and box_detections_per_img.

    Raises:
        ModelError: there is no such model, no such weights, or an option is wrong.
        WeightsError: the file does not fit the model.
    """
    check_name(name)
    classes, category_ids = options.pop("classes", None), options.pop("category_ids", None)
    if classes is not None:
        options["num_classes"] = len(classes) + 1
    if weights == "default":
        trained = _default_weights(name)
        _fetch(name, trained)
        # The builder refuses another number of classes.
        network = _build(name, options, weights=trained)
    elif weights == "untrained":
        network = _build(name, options)
    else:
        network, options = _with_file(name, options, Path(weights))
    names, ids = _classes_of(name, _label_count(network, options))
    return TorchvisionModel(
        f"torchvision:{name}", network.eval(), classes=classes or names, category_ids=category_ids or ids
    )


def check_name(name: str) -> None:
    """Raise ModelError if torchvision has no detection model of that name."""
    known = models.list_models(module=detection)
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=1)
        tip = f"did you mean torchvision:{nearest[0]}?" if nearest else f"its detection models are {', '.join(known)}."
        raise ModelError(f"torchvision has no detection model {name!r}; {tip}")


def list_models() -> list[tuple[str, str]]:
    """Return the names of torchvision's detection models, each with what it finds."""
    known = models.list_models(module=detection)
    return [(name, "masks" if name.startswith("mask") else "boxes only") for name in known]


def default_files(name: str) -> list[Path]:
    """Fetch torchvision's own weights into its cache, unless they are there; return the file.

    Raises:
        ModelError: there are none, or they cannot be fetched.
    """
    check_name(name)
    return [_fetch(name, _default_weights(name))]


def is_default_here(name: str) -> bool:
    """Return whether torchvision's own weights are in its cache."""
    check_name(name)
    return _cached(_default_weights(name)).is_file()


def settings_files(name: str) -> Sequence[Path]:
    """Return nothing: a model's name says all but its weights."""
    check_name(name)
    return ()


def _default_weights(name: str) -> WeightsEnum:
    weights = getattr(get_model_weights(name), "DEFAULT", None)
    if weights is None:
        raise ModelError(f"torchvision has no weights of {name}; give --weights FILE, or --weights untrained.")
    return weights


def _cached(weights: WeightsEnum) -> Path:
    url: str = weights.url
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]


def _fetch(name: str, weights: WeightsEnum) -> Path:
    file = _cached(weights)
    if file.is_file():
        return file
    # As `torch.hub.load_state_dict_from_url` does, whose file torchvision then finds.
    prefix = file.stem.rpartition("-")[2]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(weights.url, str(file), hash_prefix=prefix, progress=os.isatty(2))
    except (URLError, OSError, RuntimeError) as error:
        raise ModelError(
            f"The weights of torchvision:{name} could not be downloaded ({message_of(error)}); download {weights.url} "
            f"elsewhere and copy it to {file}, or give --weights FILE."
        ) from error
    return file


def _build(name: str, options: Mapping[str, Any], weights: WeightsEnum | None = None) -> nn.Module:
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            network: nn.Module = get_model(name, weights=weights, weights_backbone=None, **options)
    except (TypeError, ValueError) as error:
        # torchvision's builders hand unknown options on, and Python names the function that takes none.
        raise ModelError(f"torchvision:{name} cannot be built with these options: {message_of(error)}.") from error
    _check_options(name, options, network)
    return network


def _check_options(name: str, options: Mapping[str, Any], network: nn.Module) -> None:
    """Refuse options that no part of the model reads; torchvision's builders pass them over."""
    readers: list[Any] = [models.get_model_builder(name), GeneralizedRCNNTransform]
    readers += [each for each in type(network).__mro__ if each.__module__.startswith("torchvision.")]
    known = {each for reader in readers for each in inspect.signature(reader).parameters} - _NO_OPTIONS
    for option in options:
        if option not in known:
            nearest = difflib.get_close_matches(option, known, n=1)
            tip = (
                f"did you mean {nearest[0]}?"
                if nearest
                else f"it takes classes, category_ids, {', '.join(sorted(known))}."
            )
            raise ModelError(f"torchvision:{name} takes no option {option}; {tip}")


def _with_file(name: str, options: dict[str, Any], file: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Build a model with as many classes as the file has; return it, and the options with their number."""
    loaded = load_weights(file)
    network = _build(name, options)
    layer = next((each for each in _CLASS_LAYERS if each in loaded.state and each in network.state_dict()), None)
    if layer is not None and "num_classes" not in options:
        here, count = len(network.state_dict()[layer]), _label_count(network, options)
        rows = len(loaded.state[layer])
        if rows != here:
            options = {**options, "num_classes": rows * count // here}
            network = _build(name, options)
    load_into(network, loaded)
    return network, options


def _classes_of(name: str, count: int) -> tuple[list[str], list[int]]:
    """Return names and ids of labels 1, 2, 3, ...: those of torchvision's own weights, if their number is the same."""
    weights = getattr(get_model_weights(name), "DEFAULT", None)
    categories = list(weights.meta["categories"]) if weights is not None else []
    names = categories if len(categories) == count else [_NO_NAME[0]] * count
    labels = range(1, count)
    return [names[label] if names[label] not in _NO_NAME else f"class {label}" for label in labels], list(labels)


def _label_count(network: nn.Module, options: Mapping[str, Any]) -> int:
    """Return the number of a network's labels, background included."""
    predictor = getattr(getattr(network, "roi_heads", None), "box_predictor", None)
    if predictor is not None:
        return int(predictor.cls_score.out_features)
    return int(options.get("num_classes", _COCO_NUMBERS))
