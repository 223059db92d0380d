"""Training by one process: COCO annotations and images, each from a local path or any storage."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from htc_model.config import ModelConfigError
from htc_model.training.annotations import (
    AnnotationError,
    CocoAnnotations,
    ImageAnnotations,
    merge_annotations,
)
from htc_model.training.checkpoint import CheckpointError
from htc_model.training.coco_reader import read_annotations
from htc_model.training.loop import OnStep, TrainingStoppedError
from htc_model.training.run import EvaluationSet, run_training
from htc_model.training.spec import DataSection, TrainingSpec
from htc_model.weights.load import load_weights
from pipeline.errors import ImageError, RunError, SpecError, StorageError
from pipeline.inputs.coco_files import read_coco
from pipeline.inputs.decode import decode_image
from pipeline.inputs.label_maps import decode_label_map
from pipeline.job_spec.job import ModelSection
from pipeline.storage.storage import Storage
from pipeline.storage.uris import absolute_uri, join
from pipeline.weights.cache import resolve_weights


def train_alone(
    spec: TrainingSpec, *, storage: Storage | None = None, device: str = "cpu", on_step: OnStep | None = None
) -> Path:
    """Train in this process, from the output folder's checkpoint on if there is one.

    Several processes that torch.distributed has joined, each calling this, train as one.

    Args:
        spec: `workers` is ignored.
        storage: reads annotations and images.
        device: to train on.
        on_step: called after each step, for progress.

    Returns:
        the finished `.safetensors` file.

    Raises:
        SpecError: annotations, classes, preset, initial weights or checkpoint do not fit the spec.
        StorageError: an annotation file cannot be read.
        RunError: a loss is not finite, or memory ran out.
    """
    storage = storage or Storage()
    load_image = _loader(storage, decode_image)
    try:
        annotations = _load_data(spec.train, spec, storage)
        evaluation = [_load_evaluation(section, spec, storage, load_image, annotations) for section in spec.evaluate]
        return run_training(
            spec,
            annotations,
            load_image,
            evaluation=evaluation,
            load_state=lambda uri: _load_state(uri, storage),
            load_stuff=_loader(storage, decode_label_map),
            device=device,
            on_step=on_step,
        )
    except (AnnotationError, ModelConfigError, CheckpointError) as error:
        raise SpecError(str(error)) from error
    except TrainingStoppedError as error:
        raise RunError(str(error)) from error


def _load_data(
    sections: Sequence[DataSection], spec: TrainingSpec, storage: Storage, *, is_truth: bool = False
) -> CocoAnnotations:
    # The ground truth keeps images without objects: a detection on one of them is wrong and must count.
    keeps_empty = is_truth or spec.keeps_empty_images
    parts = []
    for section in sections:
        uri = absolute_uri(section.annotations)
        try:
            part = read_annotations(
                read_coco(uri, storage),
                classes=spec.model.classes,
                keeps_empty_images=keeps_empty,
                is_truth=is_truth,
            )
        except AnnotationError as error:
            raise SpecError(f"{uri}: {error}") from error
        folder = absolute_uri(section.images)
        stuff = None if section.stuff is None else absolute_uri(section.stuff)
        parts.append(replace(part, images=tuple(_with_uris(image, folder, stuff) for image in part.images)))
    return merge_annotations(parts)


def _with_uris(image: ImageAnnotations, folder: str, stuff: str | None) -> ImageAnnotations:
    """Return the annotations with the URIs of the image's files; its semantic map has the image's name, as a PNG."""
    stuff_file = None if stuff is None else join(stuff, str(PurePosixPath(image.file_name).with_suffix(".png")))
    return replace(image, file_name=join(folder, image.file_name), stuff_file=stuff_file)


def _load_evaluation(
    section: DataSection,
    spec: TrainingSpec,
    storage: Storage,
    load_image: Callable[[str], NDArray[np.uint8]],
    training: CocoAnnotations,
) -> EvaluationSet:
    annotations = _load_data([section], spec, storage, is_truth=True)
    if annotations.category_ids != training.category_ids:
        raise SpecError(
            f"{section.annotations} has the classes {', '.join(annotations.classes)}, the training data "
            f"{', '.join(training.classes)}; name the classes in model.classes."
        )
    return EvaluationSet(section.annotations, annotations, load_image)


def _loader(storage: Storage, decode: Callable[[bytes], NDArray[np.uint8]]) -> Callable[[str], NDArray[np.uint8]]:
    def load(uri: str) -> NDArray[np.uint8]:
        try:
            return decode(storage.read(uri))
        except (ImageError, StorageError) as error:
            # htc_model treats OSError as an image that cannot be read: it is named, skipped and counted.
            raise OSError(str(error)) from error

    return load


def _load_state(uri: str, storage: Storage) -> Mapping[str, Tensor]:
    path = resolve_weights(ModelSection(weights=absolute_uri(uri)), storage)
    return {} if path is None else load_weights(path).state
