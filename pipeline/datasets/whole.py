"""Puts the splits of a data set together to one COCO document."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.datasets.file_checks import listed_names
from pipeline.datasets.formats.coco import is_coco
from pipeline.datasets.layout import Split, locate_images
from pipeline.errors import SpecError
from pipeline.inputs.coco_files import read_coco
from pipeline.storage.storage import Storage


def read_whole(splits: Sequence[Split], storage: Storage) -> tuple[dict[str, Any], str]:
    """Read the JSON files of a data set as one document.

    One file stays as it is. Of several, images and annotations are numbered anew, and an image that several name is
    taken once, with the objects of the first.

    Returns:
        The document, and the URI of the folder of the images.

    Raises:
        SpecError: a file is not COCO's, or the files' categories or folders differ.
    """
    documents = [_read(split, storage) for split in splits]
    names = [[name for name, _ in listed_names(document)] for document in documents]
    folders = [locate_images(split, own, storage) for split, own in zip(splits, names, strict=True)]
    if len(splits) == 1:
        return documents[0], folders[0]
    for split, document, folder in zip(splits, documents, folders, strict=True):
        if _categories(document) != _categories(documents[0]):
            raise SpecError(
                f"{split.annotations} has other categories than {splits[0].annotations}; number them alike, or "
                "name one of the files."
            )
        if folder != folders[0]:
            raise SpecError(
                f"The images of {split.annotations} are in {folder}, those of {splits[0].annotations} in {folders[0]}; "
                "htc dataset convert brings them together."
            )
    return _join(documents), folders[0]


def _read(split: Split, storage: Storage) -> dict[str, Any]:
    document = read_coco(split.annotations, storage)
    if not is_coco(document):
        raise SpecError(
            f"{split.annotations} is not a COCO annotation file: it needs the lists images, annotations and categories."
        )
    return dict(document)


def _categories(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    return sorted(
        (str(each.get("id")), str(each.get("name"))) for each in document["categories"] if isinstance(each, Mapping)
    )


def _join(documents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    taken: set[str] = set()
    for document in documents:
        new_ids: dict[str, int] = {}
        for image in document["images"]:
            name = image.get("file_name") if isinstance(image, Mapping) else None
            if isinstance(name, str) and name not in taken:
                taken.add(name)
                new_ids[repr(image.get("id"))] = len(images) + 1
                images.append({**image, "id": len(images) + 1})
        for annotation in document["annotations"]:
            number = new_ids.get(repr(annotation.get("image_id"))) if isinstance(annotation, Mapping) else None
            if number is not None:
                annotations.append({**annotation, "id": len(annotations) + 1, "image_id": number})
    return {**documents[0], "images": images, "annotations": annotations}
