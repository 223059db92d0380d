"""The recipe: a training spec for a data set of one's own, from the command line alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any, Literal

from htc_model.config import ModelConfigError, load_preset
from htc_model.training.annotations import AnnotationError, CocoAnnotations
from htc_model.training.coco_reader import read_annotations
from htc_model.training.spec import COCO_PRESET, INITIAL_WORDS
from htc_model.weights.model_zoo import BUNDLED_PRESET
from pipeline.datasets.layout import Split, find_splits, locate_images
from pipeline.errors import SpecError
from pipeline.inputs.coco_files import read_coco
from pipeline.job_spec.model import ModelSection
from pipeline.machine_limits import usable_cpus
from pipeline.storage.storage import Storage
from pipeline.storage.uris import absolute_uri, folder_of, has_scheme, join, suffix_of
from pipeline.training.spec import StoredTrainingSpec, load_training_spec
from pipeline.weights.cache import resolve_weights
from pipeline.weights.fingerprint import config_of_weights

_BOTH = "Give --val or --val-share, not both: a validation set, or a share of the training images."

Strength = Literal["none", "light", "strong"]

# Images that a run shows the network, repeats included: some 20 minutes on a GPU that trains 10 images a second.
_SHOWN_IMAGES = 12_000
_FEWEST_EPOCHS, _MOST_EPOCHS = 12, 50
_BATCH = 4
_VAL_SHARE = 0.1
# Base learning rates of AdamW for four images a step. It grows with the square root of their number (Malladi et al., On
# the SDEs and Scaling Rules for Adaptive Gradient Algorithms, arXiv:2205.10287).
_RATES = {"efficientnet_lite0": 5e-4}
_RESNET_RATE = 1e-4
# From ImageNet or nothing the heads begin at random.
_FROM_SCRATCH = 2.0
_AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "none": {"flip": 0.0},
    "light": {"flip": 0.5, "scale": [0.8, 1.25], "colour": 0.2},
    # Towards large-scale jitter, [0.1, 2.0] and copy-paste (arXiv:2012.07177), which pay in longer runs than these.
    "strong": {"flip": 0.5, "scale": [0.4, 1.8], "colour": 0.4, "crop": 0.3, "copy_paste": 0.3},
}


@dataclass(frozen=True)
class DataFlags:
    """The data set on the command line.

    data: a COCO JSON file, or a folder with train.json (and val.json), see `find_splits`. images: the folder of the
        images; None looks for them, see `locate_images`. val: a COCO JSON file to score with. val_share: of the
        images, held out to score with; None is a tenth where there is no validation set.
    """

    data: str
    images: str | None = None
    val: str | None = None
    val_share: float | None = None


def is_data(data: str, storage: Storage) -> bool:
    """Return whether this names a data set, and not a YAML spec."""
    if suffix_of(data) in {".yaml", ".yml"}:
        return False
    return data.endswith((".json", ".json.gz")) or storage.kind(absolute_uri(data)) == "folder"


def plan_recipe(
    flags: DataFlags, storage: Storage, *, overrides: Mapping[str, object], augment: Strength | None = None
) -> dict[str, object]:
    """Choose the settings for a data set of some 500 to 5,000 images (fewer and more work, too).

    Every pass that the run makes is scored, and the learning rate stays flat until the last fifth of the epochs, so
    that a run can be given more epochs later.

    Args:
        flags: the data set.
        storage: reads it.
        overrides: flags by dotted key of the training spec; those that change other settings are read.
        augment: how strongly the images are varied; None is "light".

    Returns:
        values by dotted key of the training spec, below the overrides.

    Raises:
        InputError: there is no data set.
        SpecError: it has no objects, or other flags do not fit.
        WeightsUnavailableError: the initial weights are not there.
    """
    splits = {split.name: split for split in find_splits(flags.data, storage, images=flags.images)}
    if len(splits) > 1 and "train" not in splits:
        raise SpecError(f"{flags.data} has no train.json but {', '.join(splits)}; name the COCO JSON file to train on.")
    trained = splits.get("train") or next(iter(splits.values()))
    section = locate(trained, storage)
    annotations = _read(trained.annotations, storage)
    evaluate, share = _choose_validation(flags, trained, splits.get("val"), storage)
    initial = str(overrides.get("model.initial") or "demo")
    preset = str(overrides.get("model.preset") or find_preset(initial, storage))
    images = max(1, round(len(annotations.images) * (1 - share)))
    batch = int(str(overrides.get("batch_size") or min(_BATCH, images)))
    in_step = batch * int(str(overrides.get("accumulate") or 1)) * int(str(overrides.get("workers") or 1))
    return {
        "train": [section],
        "evaluate": evaluate,
        "val_share": share,
        "model": {"preset": preset, "initial": initial, "frozen_stages": 1 if initial != "none" else -1},
        "optimiser": {
            "learning_rate": _choose_rate(preset, initial, in_step),
            "trunk_factor": 0.3 if initial != "none" else 1.0,
            "schedule": "flat",
            "warmup_epochs": 1.0,
        },
        "sampling": {"rois": 128, "proposals": 512},
        "augmentation": _AUGMENTATIONS[augment or "light"],
        "epochs": min(_MOST_EPOCHS, max(_FEWEST_EPOCHS, round(_SHOWN_IMAGES / images))),
        "batch_size": batch,
        "precision": "auto",
        "evaluate_epochs": 1 if evaluate or share else 0,
        "loaders": _choose_loaders(),
    }


def augmentation_of(strength: Strength) -> dict[str, Any]:
    """Return the section `augmentation` of one of the strengths."""
    return dict(_AUGMENTATIONS[strength])


def locate(split: Split, storage: Storage) -> dict[str, object]:
    """Return the section of a COCO JSON file and the folder of its images, where `htc dataset` looks for them, too.

    Raises:
        SpecError: it does not exist, or is not JSON.
    """
    document = read_coco(split.annotations, storage)
    images = document.get("images") if isinstance(document, dict) else None
    names = [entry.get("file_name") for entry in images or () if isinstance(entry, dict)]
    folder = locate_images(split, [name for name in names if isinstance(name, str)], storage)
    return {"annotations": split.annotations, "images": folder}


def find_preset(initial: str, storage: Storage) -> str:
    """Return the preset that initial weights are of: what a .safetensors file says, else the bundled model's."""
    if initial == "coco":
        return COCO_PRESET
    if initial in INITIAL_WORDS or not (has_scheme(initial) or suffix_of(initial) == ".safetensors"):
        return BUNDLED_PRESET
    path = resolve_weights(ModelSection(preset=BUNDLED_PRESET, weights=absolute_uri(initial)), storage)
    try:
        config = config_of_weights(path)
    except ModelConfigError as error:
        raise SpecError(f"{initial}: {error}") from error
    return BUNDLED_PRESET if config is None else config.name


def _read(uri: str, storage: Storage) -> CocoAnnotations:
    try:
        return read_annotations(read_coco(uri, storage))
    except AnnotationError as error:
        raise SpecError(f"{uri}: {error}") from error


def _choose_validation(
    flags: DataFlags, trained: Split, val: Split | None, storage: Storage
) -> tuple[list[dict[str, object]], float]:
    """Return the sections to score with, and the share of the images that is held out for it."""
    if flags.val is not None:
        if flags.val_share:
            raise SpecError(_BOTH)
        val = Split("val", absolute_uri(flags.val), trained.images)
        if val.annotations == trained.annotations:
            raise SpecError(f"--val {flags.val} is the file that is trained on; hold out a share with --val-share 0.1.")
        return [locate(val, storage)], 0.0
    if flags.val_share is not None:
        return [], flags.val_share
    for name in ("val.json", "val.json.gz") if val is None else ():
        beside = join(folder_of(trained.annotations), name)
        if beside != trained.annotations and storage.exists(beside):
            val = Split("val", beside, trained.images)
            break
    return ([], _VAL_SHARE) if val is None or val == trained else ([locate(val, storage)], 0.0)


def _choose_rate(preset: str, initial: str, images: int) -> float:
    try:
        kind = load_preset(preset).backbone.kind
    except ModelConfigError as error:
        raise SpecError(f"model.preset: {error}") from error
    base = _RATES.get(kind, _RESNET_RATE) * (_FROM_SCRATCH if initial in {"imagenet", "none"} else 1.0)
    return float(f"{base * sqrt(images / _BATCH):.2g}")


def _choose_loaders() -> int:
    import torch

    # On a CPU the network itself needs the cores.
    return min(4, usable_cpus()) if torch.cuda.is_available() else 0


def load_training(
    flags: DataFlags, overrides: Mapping[str, object], *, output: str | None = None, augment: Strength | None = None
) -> tuple[StoredTrainingSpec, bool]:
    """Make the training spec of a command: of a spec file and the flags over it, or of a data set by the recipe.

    Args:
        flags: the data set, or a spec file as `flags.data`.
        overrides: values by dotted key; None means that the flag is not given.
        output: the output folder; None is the spec file's.
        augment: how strongly the images are varied; None is the spec file's, or "light".

    Returns:
        the spec, and whether the recipe made it.

    Raises:
        SpecError: one sentence per problem.
        WeightsUnavailableError: the initial weights are not there.
    """
    storage = Storage()
    given = {key: value for key, value in overrides.items() if value is not None}
    if is_data(flags.data, storage):
        if output is None:
            raise SpecError(f"Name the output folder: htc train {flags.data} OUTPUT")
        settled = plan_recipe(flags, storage, overrides=given, augment=augment)
        return load_training_spec(None, {**settled, "output": output, **given}), True
    if flags.images is not None:
        raise SpecError("--images goes with a data set; in a training spec, each data set has its images beside it.")
    if augment is not None:
        given["augmentation"] = augmentation_of(augment)
    if flags.val is not None:
        if flags.val_share:
            raise SpecError(_BOTH)
        given |= {"evaluate": [locate(Split("val", absolute_uri(flags.val)), storage)], "val_share": 0.0}
    elif flags.val_share is not None:
        given |= {"evaluate": [], "val_share": flags.val_share}
    return load_training_spec(flags.data, {**given, "output": output}), False
