"""FiftyOne's own format on disk (`fo.types.FiftyOneDataset`): metadata.json and samples.json."""

import base64
import io
import json
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.results.export.selection import bitmap_of
from jobs.results.export.writers import ExportFolder, Progress
from pipeline.errors import SpecError

if TYPE_CHECKING:
    from jobs.results.export.images import FindPath
    from jobs.results.export.selection import ExportedImage, ExportedInstance, Selection

FIELD = "htc"
# FiftyOne multiplies by the image's sides again and cuts the result to whole pixels (eta.core.geometry, `coords_in`): a
# box that begins at 12.999999 would lose a row. So much of a pixel is added to the corner.
_ROUNDING_PX = 1e-6


def write_fiftyone(selection: "Selection", folder: ExportFolder, progress: Progress, *, find_path: "FindPath") -> None:
    """Write the data set; its field `htc` holds the detections with masks of their boxes.

    Args:
        find_path: where FiftyOne finds an image; others are named by their URI.
    """
    names = [each.name for each in selection.categories]
    metadata = {
        "name": f"htc-{selection.run}",
        "media_type": "image",
        "sample_fields": [
            {"name": FIELD, "ftype": "fiftyone.core.fields.EmbeddedDocumentField"}
            | {"embedded_doc_type": "fiftyone.core.labels.Detections"}
        ],
        "info": {"run": selection.run},
        "classes": {FIELD: names},
    }
    folder.write_json("metadata.json", metadata)
    try:
        with folder.file("samples.json").open("w", encoding="utf-8") as sink:
            sink.write('{"samples": [')
            separator = "\n"
            for image in selection.by_image():
                sample = _sample(image, find_path(image) or image.uri, folder)
                sink.write(separator + json.dumps(sample, ensure_ascii=False))
                separator = ",\n"
                progress(len(image.instances))
            sink.write("\n]}\n")
    except OSError as error:
        raise SpecError(f"{folder.final / 'samples.json'} cannot be written: {error.strerror or error}.") from error


def _sample(image: "ExportedImage", path: str, folder: ExportFolder) -> dict[str, Any]:
    detections = []
    for each in image.instances:
        if each.area == 0:
            folder.counts["{n} empty masks left out"] += 1
            continue
        detections.append(_detection(each, image))
    return {
        "filepath": path,
        "tags": [],
        "metadata": {"_cls": "ImageMetadata", "width": image.width, "height": image.height},
        "uri": image.uri,
        FIELD: {"_cls": "Detections", "detections": detections},
    }


def _detection(instance: "ExportedInstance", image: "ExportedImage") -> dict[str, Any]:
    """Return a detection; its mask fills its box, which is the one around the mask's pixels."""
    x, y, width, height = instance.bbox_xywh
    mask = None
    if instance.mask is not None:
        bitmap = bitmap_of(image, instance)
        rows, columns = np.flatnonzero(bitmap.any(axis=1)), np.flatnonzero(bitmap.any(axis=0))
        y, x = float(rows[0]), float(columns[0])
        height, width = float(rows[-1] + 1 - rows[0]), float(columns[-1] + 1 - columns[0])
        part = bitmap[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        file = io.BytesIO()
        np.save(file, part, allow_pickle=False)
        mask = {"$binary": {"base64": base64.b64encode(zlib.compress(file.getvalue())).decode(), "subType": "00"}}
    left, top = (x + _ROUNDING_PX) / image.width, (y + _ROUNDING_PX) / image.height
    return {
        "_cls": "Detection",
        "label": instance.category.name,
        "bounding_box": [left, top, width / image.width, height / image.height],
        "confidence": instance.score,
        "mask": mask,
        "tags": [],
    }
