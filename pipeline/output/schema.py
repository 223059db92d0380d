"""The schemas of the tables `images`, `instances`, `semantic` and `panoptic`."""

from collections.abc import Mapping

import pyarrow as pa

SCHEMA_VERSION = 1
_METADATA = {"htc_schema_version": str(SCHEMA_VERSION)}

BBOX_TYPE = pa.struct([(name, pa.float32()) for name in ("x", "y", "width", "height")])

# counts is a string, not binary: COCO's encoding is ASCII, `pycocotools.mask.decode` takes both types, and a string
# is readable in JSON and SQL.
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
        # Parts of the first release lack the column; it is read as null.
        pa.field("changed", pa.bool_()),
        # Null where the file does not say, and absent from parts of earlier releases.
        pa.field("crs", pa.string()),
        pa.field("transform", pa.list_(pa.float64())),
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


# One row per image and class that the image has: the class's whole region, so the areas of an image sum to its pixels.
SEMANTIC_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.int64(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("class_id", pa.int32(), nullable=False),
        pa.field("class", pa.string(), nullable=False),
        pa.field("area", pa.int64(), nullable=False),
        pa.field("mask", MASK_TYPE, nullable=False),
        pa.field("model", pa.string(), nullable=False),
    ],
    metadata=_METADATA,
)


# One row per segment; the masks of an image never overlap. A thing names its row of `instances`, and has its score.
PANOPTIC_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.int64(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("segment", pa.int32(), nullable=False),
        pa.field("category_id", pa.int32(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("is_thing", pa.bool_(), nullable=False),
        pa.field("instance", pa.int32()),
        pa.field("score", pa.float32()),
        pa.field("area", pa.int64(), nullable=False),
        pa.field("bbox", BBOX_TYPE, nullable=False),
        pa.field("mask", MASK_TYPE, nullable=False),
        pa.field("model", pa.string(), nullable=False),
    ],
    metadata=_METADATA,
)


MAP_SCHEMAS: Mapping[str, pa.Schema] = {"semantic": SEMANTIC_SCHEMA, "panoptic": PANOPTIC_SCHEMA}
TABLE_SCHEMAS: Mapping[str, pa.Schema] = {"images": IMAGES_SCHEMA, "instances": INSTANCES_SCHEMA, **MAP_SCHEMAS}
"""Of the tables of rows, by name."""


RUN_NAME = pa.field("run_name", pa.string())
"""The run's name, in the files only, for readers that take no column `run` from the folder names.

It is not called `run`, because pandas reads that from the folder names as a dictionary and pyarrow as a string, so a
column of either type would fail in one of them. Parts of older releases lack it; it is read as null.
"""


def stored_schema(schema: pa.Schema) -> pa.Schema:
    """Return the schema of a table's files: the table's own and `run_name`."""
    return schema.append(RUN_NAME)
