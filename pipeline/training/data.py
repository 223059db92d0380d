"""What a training reads: annotations and images, those that are held out, and initial weights."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from htc_model.config import load_preset
from htc_model.training.annotations import AnnotationError, CocoAnnotations, ImageAnnotations, merge_annotations
from htc_model.training.coco_reader import read_annotations
from htc_model.training.run import EvaluationSet
from htc_model.training.samples import LoadImage, LoadStuff
from htc_model.training.spec import INITIAL_WORDS, DataSection, TrainingSpec
from htc_model.training.split import choose_validation
from htc_model.weights.load import LoadedWeights, load_weights
from pipeline.errors import ImageError, SpecError, StorageError, WeightsUnavailableError
from pipeline.inputs.coco_files import read_coco
from pipeline.inputs.decode import decode_image
from pipeline.inputs.label_maps import decode_label_map
from pipeline.job_spec.model import ModelSection
from pipeline.storage.storage import Storage
from pipeline.storage.uris import absolute_uri, base_name, join
from pipeline.text import count_of
from pipeline.weights.cache import resolve_weights


@dataclass(frozen=True)
class TrainingData:
    """The images of a training run; file names are URIs."""

    annotations: CocoAnnotations
    evaluation: list[EvaluationSet]
    load_image: LoadImage
    load_stuff: LoadStuff


def load_data(spec: TrainingSpec, storage: Storage) -> TrainingData:
    """Read the annotations to train on and to score with, and check that they go together.

    Raises:
        SpecError: a file is no COCO file, the classes differ, or images to score are also trained on.
        AnnotationError: from htc_model: the same.
        StorageError: a file cannot be read.
    """
    load_image = _loader(storage, decode_image)
    annotations = _load_data(spec.train, spec, storage)
    evaluation = [_load_evaluation(section, spec, storage, load_image, annotations) for section in spec.evaluate]
    notes = [
        note
        for section, part in zip(spec.evaluate, evaluation, strict=True)
        for note in _check_overlap(section, part.annotations, spec, annotations)
    ]
    if spec.val_share:
        annotations, held_out = _hold_out(spec, storage, annotations)
        evaluation = [EvaluationSet("val", held_out, load_image)]
    notes += [note for part in evaluation for note in _note_missing_classes(part)]
    annotations = replace(annotations, notes=(*annotations.notes, *notes))
    return TrainingData(annotations, evaluation, load_image, _loader(storage, decode_label_map))


def load_initial_weights(spec: TrainingSpec, storage: Storage) -> LoadedWeights:
    """Read the weights of `model.initial`: the bundled or published ones, or a file's, with their classes if known.

    Raises:
        WeightsUnavailableError: the file is not there, or cannot be fetched.
        WeightsError: from htc_model: it cannot be read.
    """
    initial = spec.model.initial
    weights = initial if initial in INITIAL_WORDS else absolute_uri(initial)
    path = resolve_weights(ModelSection(preset=spec.model.preset, weights=weights), storage)
    if path is None:
        raise WeightsUnavailableError(f"model.initial {initial} names no weights; `none` begins without any.")
    loaded = load_weights(path)
    if initial == "coco" and "classes" not in loaded.metadata:
        # The oldest published files do not name them.
        loaded = replace(loaded, metadata={**loaded.metadata, "classes": list(load_preset(spec.model.preset).classes)})
    return loaded


def _hold_out(
    spec: TrainingSpec, storage: Storage, annotations: CocoAnnotations
) -> tuple[CocoAnnotations, CocoAnnotations]:
    """Split the images into those to train on and those to score with; the latter as a truth is read."""
    truth = _load_data(spec.train, spec, storage, is_truth=True)
    classes_of = {
        image.file_name: {entry.label for entry in image.objects if not entry.is_crowd} for image in truth.images
    }
    chosen = choose_validation(classes_of, spec.val_share, spec.seed)
    rest = tuple(image for image in annotations.images if image.file_name not in chosen)
    if not rest:
        raise AnnotationError(f"val_share {spec.val_share:g} leaves no image with an object to train on; lower it.")
    held_out = tuple(image for image in truth.images if image.file_name in chosen)
    return replace(annotations, images=rest), replace(truth, images=held_out)


def _check_overlap(
    section: DataSection, held_out: CocoAnnotations, spec: TrainingSpec, training: CocoAnnotations
) -> Iterator[str]:
    """Refuse to score on some of the training images; on exactly their file it is allowed, with a note."""
    trained = {image.file_name for image in training.images}
    both = [image.file_name for image in held_out.images if image.file_name in trained]
    if not both:
        return
    if absolute_uri(section.annotations) in {absolute_uri(part.annotations) for part in spec.train}:
        yield f"The scores of {section.annotations} say nothing about new images: it is trained on, too."
        return
    raise SpecError(
        f"{section.annotations} holds {count_of(len(both), 'image')} that {'is' if len(both) == 1 else 'are'} trained "
        f"on, such as {base_name(both[0])}; leave them out of one of the two, or hold out a share with val_share "
        "(--val-share 0.1)."
    )


def _note_missing_classes(part: EvaluationSet) -> Iterator[str]:
    present = {entry.label for image in part.annotations.images for entry in image.objects if not entry.is_crowd}
    missing = [name for label, name in enumerate(part.annotations.classes) if label not in present]
    if missing:
        yield f"No object of {', '.join(missing)} is in {part.name}; what is not there gets no score."


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
