"""ImageRow and InstanceRow: the rows of the tables `images` and `instances`, and how they are built.

`images` has one row per input image, whether it succeeded or failed; `instances` has one row per detected object.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.errors import ImageStatus
from pipeline.inputs.image_ref import ImageRef, ReadVersion, image_id
from pipeline.storage.uris import display_uri

if TYPE_CHECKING:
    from htc_model.structures import Detections


# pycocotools 2.0.11 counts masks in 8 bits with NumPy 2, and fails with more.
MOST_AREAS = 255


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One row of `images`: the outcome of one input image.

    etag: of the version that was read; the listed one when nothing was read. bytes: its encoded size, likewise.
    width, height: pixels after EXIF rotation; None when it was not decoded.
    error: one line; None when status is "ok". attempts: of the shard, 1 or more.
    instances: the number of its rows in `instances`. model: its name, see `weights.naming`.
    changed: whether the image has changed between listing and reading; None when that is not known.
    crs, transform: where the image lies on the ground, see `inputs.georeference`; None where its file does not say.
    """

    image_id: int
    uri: str
    etag: str | None
    bytes: int | None
    width: int | None
    height: int | None
    shard: int
    status: ImageStatus
    error: str | None
    attempts: int
    instances: int
    model: str
    changed: bool | None
    crs: str | None = None
    transform: list[float] | None = None


@dataclass(frozen=True, slots=True)
class InstanceRow:
    """One row of `instances`.

    instance: 0 for the image's most confident one. category_id: the data set's own id (COCO: 1 to 90).
    score: in [0, 1]. bbox: x, y, width, height in pixels of the original image.
    area: mask pixels; None for a model without masks. mask: size [height, width] and COCO counts, or None.
    """

    image_id: int
    uri: str
    instance: int
    category_id: int
    category: str
    score: float
    bbox: dict[str, float]
    area: int | None
    mask: dict[str, object] | None
    model: str


def build_image_row(
    ref: ImageRef,
    *,
    shard: int,
    model: str,
    status: ImageStatus = "ok",
    error: str | None = None,
    size: tuple[int, int] | None = None,
    read: ReadVersion | None = None,
    attempts: int = 1,
    instances: int = 0,
) -> ImageRow:
    """Build an image's row.

    Args:
        size: (height, width) in pixels, when the image was decoded.
        read: the version that was read; None when nothing was read, and the listed version is kept.
    """
    height, width = size or (None, None)
    georeference = None if read is None else read.georeference
    return ImageRow(
        image_id=image_id(ref.uri),
        uri=display_uri(ref.uri),
        etag=ref.etag if read is None or read.etag is None else read.etag,
        bytes=ref.bytes if read is None else read.bytes,
        width=width,
        height=height,
        shard=shard,
        status=status,
        error=error,
        attempts=attempts,
        instances=instances,
        model=model,
        changed=None if read is None else read.is_changed,
        crs=None if georeference is None else georeference.crs,
        transform=None if georeference is None else list(georeference.transform),
    )


class ClassNames(Protocol):
    """What rows need of a model; `htc_model.config.ModelConfig` has it, and any other model."""

    @property
    def name(self) -> str:
        """The model's name."""

    @property
    def classes(self) -> Sequence[str]:
        """The names of its classes, by label."""

    @property
    def category_ids(self) -> Sequence[int]:
        """The data set's ids of its classes, by label."""


def build_instance_rows(
    ref: ImageRef, detections: "Detections", config: ClassNames, *, model: str | None = None
) -> list[InstanceRow]:
    """Build an image's instance rows; the only place where labels become the data set's category ids.

    Args:
        detections: most confident first.
        model: the value of the column `model`; None for the config's name.
    """
    number, uri, name = image_id(ref.uri), display_uri(ref.uri), model or config.name
    boxes: list[list[float]] = detections.boxes_xyxy.tolist()
    scores: list[float] = detections.scores.tolist()
    labels: list[int] = detections.labels.tolist()
    masks: Sequence[Any] = detections.masks if detections.masks is not None else [None] * len(labels)
    return [
        InstanceRow(
            image_id=number,
            uri=uri,
            instance=index,
            category_id=config.category_ids[label],
            category=config.classes[label],
            score=score,
            bbox={"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1},
            area=area,
            mask=None if mask is None else {"size": list(mask["size"]), "counts": mask["counts"].decode("ascii")},
            model=name,
        )
        for index, ((x1, y1, x2, y2), score, label, mask, area) in enumerate(
            zip(boxes, scores, labels, masks, _areas(detections.masks, len(labels)), strict=True)
        )
    ]


def _areas(masks: Sequence[Any] | None, count: int) -> list[int | None]:
    if not masks:
        return [None] * count
    from pycocotools import mask as coco_mask

    pieces = (masks[start : start + MOST_AREAS] for start in range(0, count, MOST_AREAS))
    return [int(area) for piece in pieces for area in coco_mask.area(list(piece))]
