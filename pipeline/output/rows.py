"""The two tables: their schemas, one shard's parts, and the commit.

`images` has one row per input image, whatever happened to it; `instances` one per detected object. Both are
plain Parquet, Hive-partitioned by run. The instances part of a shard is written first and the images part
last: that one file makes the shard count. A shard done twice overwrites its own two files, so nothing is ever
counted twice.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ImageStatus
from pipeline.inputs.image_ref import ImageRef, image_id
from pipeline.output.parts import Part, committed_parts, part_uri
from pipeline.storage.objects import ReadVersion
from pipeline.storage.storage import Storage
from pipeline.storage.uris import display_uri

if TYPE_CHECKING:
    from htc_model.config import ModelConfig
    from htc_model.structures import Detections
    from pipeline.output.results import Results

SCHEMA_VERSION = 1
_METADATA = {"htc_schema_version": str(SCHEMA_VERSION)}

BBOX_TYPE = pa.struct([(name, pa.float32()) for name in ("x", "y", "width", "height")])
# counts is a string, not binary: COCO's code is plain ASCII, `pycocotools.mask.decode` takes both, and a
# string also goes through JSON and shows in SQL.
MASK_TYPE = pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])

IMAGES_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.int64(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("etag", pa.string()),
        pa.field("bytes", pa.int64()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("error", pa.string()),
        pa.field("attempts", pa.int32(), nullable=False),
        pa.field("instances", pa.int32(), nullable=False),
        pa.field("model", pa.string(), nullable=False),
        # Absent from the parts that the first release wrote; whoever reads them gets null.
        pa.field("changed", pa.bool_()),
    ],
    metadata=_METADATA,
)
INSTANCES_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.int64(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("instance", pa.int32(), nullable=False),
        pa.field("category_id", pa.int32(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("bbox", BBOX_TYPE, nullable=False),
        pa.field("area", pa.int64()),
        pa.field("mask", MASK_TYPE),
        pa.field("model", pa.string(), nullable=False),
    ],
    metadata=_METADATA,
)


RUN_NAME = pa.field("run_name", pa.string())
"""The run's name again, in the files alone: readers that take no columns from folders' names have no `run`.

Not called `run`: pandas finds a dictionary of that name in the folders' names and pyarrow's data sets a string, so
that a column of either type would stop one of them. Absent from files of earlier releases; null there.
"""


def stored_schema(schema: pa.Schema) -> pa.Schema:
    """Return the schema of a table's files, which our own readers, who know the run, see without its last column."""
    return schema.append(RUN_NAME)


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One row of `images`: what became of one input image.

    etag: the version that was read; the listed one when nothing was. bytes: likewise its encoded size.
    width, height: pixels after EXIF rotation, None when it was never decoded.
    error: one line, None when status is "ok". attempts: how often the shard was begun, 1 or more.
    instances: its rows in `instances`. model: the network's name.
    changed: whether the image was another one when it was listed; None when that is not known.
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


@dataclass(frozen=True, slots=True)
class InstanceRow:
    """One row of `instances`.

    instance: 0 for the image's most confident one. category_id: the data set's own number (COCO: 1 to 90).
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
        read: what was read of it; what was listed stands when nothing was.
    """
    height, width = size or (None, None)
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
    )


def build_instance_rows(
    ref: ImageRef, detections: "Detections", config: "ModelConfig", *, model: str | None = None
) -> list[InstanceRow]:
    """Build an image's instance rows; here, once, labels become the data set's own category numbers.

    Args:
        detections: most confident first.
        model: what the model column says, the config's name when None.
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

    return [int(area) for area in coco_mask.area(list(masks))]


def images_part(output_uri: str, run: str, shard: int) -> str:
    """Name a shard's part of `images`; its existence commits the shard."""
    return part_uri(output_uri, "images", run, Part(shard, shard))


def instances_part(output_uri: str, run: str, shard: int) -> str:
    """Name a shard's part of `instances`; it counts only beside its part of `images`."""
    return part_uri(output_uri, "instances", run, Part(shard, shard))


def commit_shard(  # noqa: PLR0917 - where, then what: the order of the folder names, then of the tables
    storage: Storage,
    output_uri: str,
    run: str,
    shard_index: int,
    image_rows: Sequence[ImageRow],
    instance_rows: Sequence[InstanceRow],
    *,
    confirm: Callable[[], None] = lambda: None,
) -> None:
    """Write a shard's two parts, the images part last, because it commits.

    Args:
        confirm: called between the two; raises when the second may not be written any more.

    Raises:
        StorageError: a part cannot be written; the shard is not committed then.
    """
    instances = encode_part(instance_rows, INSTANCES_SCHEMA, InstanceRow, run=run)
    images = encode_part(image_rows, IMAGES_SCHEMA, ImageRow, run=run)
    storage.write(instances_part(output_uri, run, shard_index), instances)
    confirm()
    storage.write(images_part(output_uri, run, shard_index), images)


def encode_part(rows: Sequence[Any], schema: pa.Schema, kind: type, *, run: str) -> bytes:
    """Encode rows (dataclasses whose fields are the schema's columns) of a run as one Parquet file, Zstandard."""
    names = [field.name for field in fields(kind)]
    columns = list(zip(*([getattr(row, name) for name in names] for row in rows), strict=True))
    arrays = [
        pa.array(columns[index] if columns else [], type=schema.field(name).type) for index, name in enumerate(names)
    ]
    return encode_table(pa.Table.from_arrays(arrays, schema=schema), run)


def encode_table(table: pa.Table, run: str) -> bytes:
    """Encode rows of a run as one Parquet file, with the run's name and with checksums, which tell a damaged page."""
    sink = io.BytesIO()
    pq.write_table(with_run_name(table, run), sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def with_run_name(table: pa.Table, run: str) -> pa.Table:
    """Append the run's name to rows as files hold them."""
    return table.append_column(RUN_NAME, pa.array([run], pa.string()).take(pa.array([0] * len(table), pa.int8())))


def committed_shards(storage: Storage, output_uri: str, run: str) -> set[int]:
    """Return the shards whose images part is there, also when it was compacted with others.

    Raises:
        DamagedFileError: two files hold the same shards.
    """
    return {shard for part in committed_parts(storage, output_uri, run) for shard in part.shards}


def open_results(output_uri: str, storage: Storage | None = None) -> "Results":
    """Open an output folder for reading; nothing is read yet.

    Raises:
        InputError: no run was ever written there.
    """
    from pipeline.output.results import Results

    return Results(output_uri, storage or Storage())
