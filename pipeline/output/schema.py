"""The schemas of the tables `images` and `instances`."""

from typing import TYPE_CHECKING

import pyarrow as pa

if TYPE_CHECKING:
    pass


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
