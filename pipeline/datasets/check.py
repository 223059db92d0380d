"""Checks a data set before it is trained on: files, objects, classes, splits.

`check_dataset` reads each image file once, its header and its content hash; with `reads_pixels` it decodes all of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from htc_model.training.annotations import AnnotationError, CocoAnnotations
from htc_model.training.coco_reader import read_annotations
from pipeline.datasets.class_checks import check_categories, check_classes, count_classes
from pipeline.datasets.file_checks import ListedImage, check_files, check_repetitions, listed_names
from pipeline.datasets.findings import CheckReport, Findings, SplitCounts
from pipeline.datasets.formats.coco import is_coco
from pipeline.datasets.image_facts import ImageFacts, read_facts
from pipeline.datasets.layout import Split, locate_images
from pipeline.datasets.object_checks import check_objects
from pipeline.errors import SpecError
from pipeline.inputs.coco_files import read_coco
from pipeline.inputs.formats.detect import IMAGE_SUFFIXES
from pipeline.machine_limits import usable_cpus
from pipeline.storage.storage import Storage
from pipeline.storage.uris import WEB_SCHEMES, join, scheme_of, suffix_of

_MOST_THREADS = 32


@dataclass(frozen=True)
class CheckOptions:
    """How a data set is checked.

    reads_pixels: decode every image. short_side, long_side: bounds of the training size in pixels, by default those of
    the preset htc_lite0_fpn. classes: that are trained on, all by default.
    """

    reads_pixels: bool = False
    short_side: int = 384
    long_side: int = 640
    classes: tuple[str, ...] | None = None


@dataclass(frozen=True)
class _Loaded:
    """A split with its document, the folder of its images, and what is known of their files."""

    split: Split
    document: Any
    folder: str
    images: tuple[ListedImage, ...] = ()


def check_dataset(
    splits: Sequence[Split],
    *,
    storage: Storage | None = None,
    options: CheckOptions | None = None,
    on_image: Callable[[int, int], None] = lambda _done, _all: None,
) -> CheckReport:
    """Check a data set.

    Args:
        splits: the first is trained on, the others are scored on; see `find_splits`.
        on_image: called after each image with how many are done, and how many there are.

    Raises:
        SpecError: an annotation file does not exist, or is not COCO's JSON.
        StorageError: an annotation file cannot be read.
    """
    storage, options = storage or Storage(), options or CheckOptions()
    findings = Findings()
    loaded = _read_images([_load(split, storage) for split in splits], storage, options, on_image)
    images = [image for each in loaded for image in each.images]
    trained = [each.split.name for number, each in enumerate(loaded) if each.split.is_trained or number == 0]
    check_files(images, findings)
    check_repetitions(images, trained, findings)
    _check_unlisted(loaded, storage, findings)
    parsed: dict[str, CocoAnnotations] = {}
    for each in loaded:
        annotations = _parse(each, options, findings)
        if annotations is not None:
            parsed[each.split.name] = annotations
            check_objects(
                annotations,
                each.split.name,
                findings,
                short_side=options.short_side,
                long_side=options.long_side,
            )
    counts = count_classes(parsed)
    if parsed:
        check_categories(parsed, findings)
    if parsed.keys() >= set(trained):
        check_classes(parsed, trained, counts, findings)
    return CheckReport(
        splits=tuple(_count(each, parsed.get(each.split.name)) for each in loaded),
        classes=tuple(counts),
        findings=tuple(findings.all()),
        flagged={split: tuple(names) for split, names in findings.images.items()},
        reads_pixels=options.reads_pixels,
    )


def _load(split: Split, storage: Storage) -> _Loaded:
    document = read_coco(split.annotations, storage)
    if not is_coco(document):
        raise SpecError(
            f"{split.annotations} is not a COCO annotation file: it needs the lists images, annotations and "
            "categories; "
            "htc dataset convert makes one from other formats."
        )
    return _Loaded(split, document, locate_images(split, [name for name, _ in listed_names(document)], storage))


def _read_images(
    loaded: Sequence[_Loaded], storage: Storage, options: CheckOptions, on_image: Callable[[int, int], None]
) -> list[_Loaded]:
    """Read each image file once, also where several splits name it."""
    named = [(each, name, size) for each in loaded for name, size in listed_names(each.document)]
    uris = list(dict.fromkeys(join(each.folder, name) for each, name, _ in named))
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        on_image(done, len(uris))

    facts: dict[str, ImageFacts] = {}
    if uris:
        threads = usable_cpus() if options.reads_pixels else min(_MOST_THREADS, storage.read_concurrency(uris[0]))
        found = read_facts(uris, storage, reads_pixels=options.reads_pixels, threads=max(1, threads), on_image=count)
        facts = {each.uri: each for each in found}
    return [
        replace(
            each,
            images=tuple(
                ListedImage(each.split.name, name, size, facts[join(each.folder, name)])
                for owner, name, size in named
                if owner is each
            ),
        )
        for each in loaded
    ]


def _parse(loaded: _Loaded, options: CheckOptions, findings: Findings) -> CocoAnnotations | None:
    """Read the annotations as training does."""
    sizes = {image.file_name: image.facts.size for image in loaded.images}

    def find_size(name: str) -> tuple[int, int] | None:
        size = sizes.get(name)
        return None if size is None else (size.upright[1], size.upright[0])

    try:
        return read_annotations(loaded.document, classes=options.classes, keeps_empty_images=True, find_size=find_size)
    except AnnotationError as error:
        findings.add("annotations-unusable", loaded.split.name, f"{loaded.split.annotations}: {error}".rstrip("."))
        return None


def _check_unlisted(loaded: Sequence[_Loaded], storage: Storage, findings: Findings) -> None:
    """Find images of the folders that no split names."""
    named = {image.facts.uri for each in loaded for image in each.images}
    split_of: dict[str, str] = {}
    for each in loaded:
        split_of.setdefault(each.folder, each.split.name)
    for folder, split in split_of.items():
        if scheme_of(folder) in WEB_SCHEMES:
            # A web host has no listing.
            continue
        for listed in storage.list(folder, missing_ok=True):
            if suffix_of(listed.uri) in IMAGE_SUFFIXES and listed.uri not in named:
                findings.add("image-unlisted", split, listed.uri.removeprefix(join(folder, "")))


def _count(loaded: _Loaded, annotations: CocoAnnotations | None) -> SplitCounts:
    images = annotations.images if annotations is not None else ()
    return SplitCounts(
        name=loaded.split.name,
        annotations=loaded.split.annotations,
        images_folder=loaded.folder,
        images=len(loaded.images),
        images_with_objects=sum(any(not entry.is_crowd for entry in image.objects) for image in images),
        objects=sum(not entry.is_crowd for image in images for entry in image.objects),
        crowds=sum(entry.is_crowd for image in images for entry in image.objects),
    )
