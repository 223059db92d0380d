"""`htc train --check`: the data of a training, checked as `htc dataset check` does; nothing is trained or written."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from jobs.datasets.check_command import check_splits
from jobs.running.train import TrainRequest
from pipeline.datasets.check import CheckOptions
from pipeline.datasets.layout import Split, find_splits
from pipeline.storage.storage import Storage
from pipeline.storage.uris import absolute_uri, folder_of, join

if TYPE_CHECKING:
    from htc_model.training.spec import DataSection


def check_training_data(request: TrainRequest, overrides: Mapping[str, object]) -> int:
    """Check what `htc train` would read, and report it.

    Args:
        request, overrides: as `train_and_report` takes them. No output folder is needed.

    Returns:
        The exit code: 1 if there is an error, else 0.

    Raises:
        HtcError: the spec is wrong, or an annotation file does not exist or is not COCO's.
    """
    from htc_model.config import load_preset
    from pipeline.training.recipe import DataFlags, is_data, load_training

    storage = Storage()
    if is_data(request.data, storage):
        # Not by the recipe, which refuses data that has no object, before it could be reported.
        preset = str(overrides.get("model.preset") or "htc_lite0_fpn")
        sides = overrides.get("model.short_side"), overrides.get("model.long_side")
        splits, classes = _splits_of_data(request, storage), None
    else:
        flags = DataFlags(request.data, request.images, request.val, request.val_share)
        spec, _ = load_training(flags, overrides, output=request.output, augment=request.augment)
        storage = Storage(spec.storage)
        preset, sides, classes = spec.model.preset, (spec.model.short_side, spec.model.long_side), spec.model.classes
        splits = _splits_of_spec(spec.train, spec.evaluate)
    resize = load_preset(preset).resize
    options = CheckOptions(
        short_side=int(str(sides[0] or resize.short_side)),
        long_side=int(str(sides[1] or resize.long_side)),
        classes=classes,
    )
    return check_splits(splits, storage=storage, options=options)


def _splits_of_data(request: TrainRequest, storage: Storage) -> list[Split]:
    """Return the data set's splits, the validation set that the flags name, or val.json beside train.json."""
    splits = find_splits(request.data, storage, images=request.images)
    images = None if request.images is None else absolute_uri(request.images)
    if request.val is not None:
        return [splits[0], Split("val", absolute_uri(request.val), images)]
    if len(splits) == 1:
        for name in ("val.json", "val.json.gz"):
            beside = join(folder_of(splits[0].annotations), name)
            if beside != splits[0].annotations and storage.exists(beside):
                return [splits[0], Split("val", beside, images)]
    return splits


def _splits_of_spec(train: "Sequence[DataSection]", evaluate: "Sequence[DataSection]") -> list[Split]:
    """Return the spec's sections as splits, numbered where there are several."""
    return [
        Split(
            role if len(sections) == 1 else f"{role} {number}",
            absolute_uri(section.annotations),
            absolute_uri(section.images),
            is_trained=role == "train",
        )
        for role, sections in (("train", train), ("val", evaluate))
        for number, section in enumerate(sections, start=1)
    ]
