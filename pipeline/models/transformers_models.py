"""The adapter of transformers: instance segmentation checkpoints of the Hugging Face library behind `transformers:`."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from htc_model.coco_classes import COCO_CATEGORY_IDS, COCO_CLASSES
from htc_model.structures import FrameDetections, ImageBatch
from pipeline.errors import ModelError
from pipeline.models.protocol import PixelFormat
from pipeline.models.transformers_checkpoint import PAGE, Checkpoint, find_checkpoint, is_here, is_local
from pipeline.models.transformers_checkpoint import check_name as check_checkpoint_name
from pipeline.models.transformers_families import FAMILIES, Family
from pipeline.models.transformers_pixels import read_pixels
from pipeline.text import one_line

if find_spec("transformers") is None:
    raise ModuleNotFoundError("transformers is not installed", name="transformers")

log = logging.getLogger(__name__)

# Category ids of classes that COCO does not have begin here, where their label's number would be another class's.
_OTHER_IDS = 1000
_SEED = 0


class TransformersModel:
    """One checkpoint, as `InstanceModel`."""

    def __init__(
        self, name: str, network: torch.nn.Module, family: Family, pixels: PixelFormat, id2label: Mapping[int, str]
    ) -> None:
        """`network`: in evaluation mode; `id2label`: the names of its labels, from 0 on."""
        self.name = name
        self.classes, self.category_ids = name_classes(id2label)
        self.pixels = pixels
        self.network = network
        self._family = family

    def to(self, device: torch.device) -> "TransformersModel":
        """Move the network to a device."""
        self.network.to(device)
        return self

    def infer(self, batch: ImageBatch) -> list[FrameDetections]:
        """Find the instances of a batch; see `InstanceModel`."""
        inputs = {"pixel_values": self._blacken_padding(batch) if self._family.pads_black else batch.pixels}
        if self._family.takes_pixel_mask:
            inputs["pixel_mask"] = pixel_mask(batch)
        return self._family.rule.read(self.network(**inputs), batch)

    def _blacken_padding(self, batch: ImageBatch) -> Tensor:
        means, stds = (batch.pixels.new_tensor(each) for each in (self.pixels.mean_rgb, self.pixels.std_rgb))
        black = (-means / stds)[None, :, None, None]
        return torch.where(pixel_mask(batch)[:, None].bool(), batch.pixels, black)


def pixel_mask(batch: ImageBatch) -> Tensor:
    """Return [B, H, W] int64, 1 where the image is and 0 where padding is."""
    images, _, height, width = batch.pixels.shape
    mask = torch.zeros((images, height, width), dtype=torch.int64, device=batch.pixels.device)
    for place, (own_height, own_width) in enumerate(batch.image_sizes):
        mask[place, :own_height, :own_width] = 1
    return mask


def name_classes(id2label: Mapping[int, str]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the names and category ids of labels 0, 1, ...

    A name of COCO has COCO's category id, any other the number of its label; where that is taken, all of those are
    1000 higher. A name that several labels have ("N/A") differs by their numbers.
    """
    labels = range(max((int(label) for label in id2label), default=-1) + 1)
    known = {int(label): str(name).strip() for label, name in id2label.items()}
    names = [known.get(label) or f"label {label}" for label in labels]
    counts = {name: names.count(name) for name in set(names)}
    classes = tuple(name if counts[name] == 1 else f"{name} {label}" for label, name in zip(labels, names, strict=True))
    of_coco = dict(zip(COCO_CLASSES, COCO_CATEGORY_IDS, strict=True))
    coco_ids = {label: of_coco[name.lower()] for label, name in enumerate(classes) if name.lower() in of_coco}
    others = [label for label in labels if label not in coco_ids]
    offset = _OTHER_IDS if set(others) & set(coco_ids.values()) else 0
    return classes, tuple(coco_ids.get(label, label + offset) for label in labels)


def make(name: str, *, weights: str | Path = "default", pad_multiple: int = 1) -> TransformersModel:
    """Build the model of a checkpoint, on the CPU; see `AdapterModule`.

    Args:
        name: a local folder, or "owner/name" of the hub, with "@revision" or without.
        weights: "default" for the checkpoint's own; "untrained"; or a file or folder with others for the same network.
        pad_multiple: images are padded to multiples of this, so that images of several sizes may share a batch. The
            published post-processing has no padding around a single image.
    """
    if type(pad_multiple) is not int or pad_multiple < 1:
        raise ModelError(f"pad_multiple is a whole number of pixels, at least 1, not {pad_multiple!r}.")
    checkpoint = find_checkpoint(name)
    family = family_of(checkpoint)
    with _quiet():
        processor = _load_processor(checkpoint)
        network = _load_network(checkpoint, weights)
    pixels = read_pixels(processor, checkpoint.name, floats_resized=family.floats_resized, pad_multiple=pad_multiple)
    network.eval().requires_grad_(False)
    return TransformersModel(checkpoint.name, network, family, pixels, network.config.id2label)  # type: ignore[union-attr, arg-type]


def check_name(name: str) -> None:
    """Raise ModelError if there is no such checkpoint; of a local folder, also if it finds no instances."""
    check_checkpoint_name(name)
    if is_local(name):
        family_of(find_checkpoint(name))


def default_files(name: str) -> Sequence[Path]:
    """Fetch a checkpoint, unless it is here; return the files that the model is made from."""
    return find_checkpoint(name).files()


def settings_files(name: str) -> Sequence[Path]:
    """Return a checkpoint's config and the settings of its image processor."""
    return find_checkpoint(name).settings_files()


def is_default_here(name: str) -> bool:
    """Return whether a checkpoint's files are on this machine."""
    return is_here(name)


def list_models() -> Sequence[tuple[str, str]]:
    """Return published checkpoints, one for each family, and the family; any other of the family works as well."""
    return [(family.example, f"any {architecture}") for architecture, family in FAMILIES.items() if family.example]


def family_of(checkpoint: Checkpoint) -> Family:
    """Return the family of a checkpoint.

    Raises:
        ModelError: it finds no instances, its code would have to be run, or the installed version lacks it.
    """
    import transformers

    architecture = checkpoint.architecture
    family = FAMILIES.get(architecture)
    if family is None:
        what = f"is a {architecture}" if architecture else "names no architecture in its config.json"
        raise ModelError(
            f"The checkpoint {checkpoint.name} {what}, which {_why_not(architecture, checkpoint.config)}; these find "
            f"instances: {', '.join(FAMILIES)}, see {PAGE}."
        )
    if not hasattr(transformers, architecture):
        raise ModelError(
            f"The checkpoint {checkpoint.name} is a {architecture}, which transformers {transformers.__version__} does "
            "not have: pip install -U transformers"
        )
    return family


def _why_not(architecture: str, config: Mapping[str, Any]) -> str:
    if architecture.endswith("ForObjectDetection"):
        return "finds boxes without masks"
    if architecture.endswith(("ForSemanticSegmentation", "ForImageClassification")):
        return "finds no instances"
    if config.get("auto_map"):
        return "has code of its own (trust_remote_code), and that is never run"
    return "has no adapter here"


def _load_processor(checkpoint: Checkpoint) -> Any:
    from transformers import AutoImageProcessor

    checkpoint.files()  # names what is missing
    try:
        # A folder on this machine, which has no revision.
        return AutoImageProcessor.from_pretrained(  # nosec B615
            checkpoint.folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # the boundary of another library
        raise ModelError(
            f"The image processor of the checkpoint {checkpoint.name} cannot be made from "
            f"{checkpoint.processor_file()}: {one_line(error)}"
        ) from error


def _load_network(checkpoint: Checkpoint, weights: str | Path) -> torch.nn.Module:
    import transformers

    network_class = getattr(transformers, checkpoint.architecture)
    try:
        config = network_class.config_class.from_pretrained(checkpoint.folder, local_files_only=True)
        if weights == "untrained":
            # Earlier releases would fetch the backbone's weights.
            if getattr(config, "use_pretrained_backbone", False):
                config.use_pretrained_backbone = False
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(_SEED)
                network: torch.nn.Module = network_class(config)
            return network
        options: dict[str, Any] = {"config": config, "dtype": torch.float32, "output_loading_info": True}
        if weights == "default" or Path(weights).is_dir():
            source = checkpoint.folder if weights == "default" else Path(weights)
            network, report = network_class.from_pretrained(source, local_files_only=True, **options)
        else:
            state = _read_state(Path(weights))
            network, report = network_class.from_pretrained(None, state_dict=state, **options)
    except ModelError:
        raise
    except Exception as error:  # the boundary of another library
        raise ModelError(
            f"The checkpoint {checkpoint.name} cannot be loaded as {checkpoint.architecture}: {one_line(error)}"
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        # transformers would go on, with random values in their place.
        raise ModelError(
            f"{checkpoint.folder if weights == 'default' else weights} lacks {len(missing)} of the tensors of "
            f"{checkpoint.name}, a {checkpoint.architecture}, such as {missing[0]}; these are weights of another "
            "network."
        )
    return network


def _read_state(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        raise ModelError(f"{path} holds no weights by name.")
    return state


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's progress bars and reports off the screen; what they say is checked here."""
    from transformers.utils import logging as reports

    level, had_bars = reports.get_verbosity(), reports.is_progress_bar_enabled()
    reports.set_verbosity_error()
    reports.disable_progress_bar()
    try:
        yield
    finally:
        reports.set_verbosity(level)
        if had_bars:
            reports.enable_progress_bar()
