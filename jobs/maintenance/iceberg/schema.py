"""The Iceberg schemas of the tables, and their properties."""

from itertools import count
from typing import TYPE_CHECKING

import pyarrow as pa
from pyiceberg.partitioning import PARTITION_FIELD_ID_START, PartitionField, PartitionSpec
from pyiceberg.schema import Schema, assign_fresh_schema_ids
from pyiceberg.transforms import IdentityTransform
from pyiceberg.types import (
    BooleanType,
    DoubleType,
    FloatType,
    IcebergType,
    IntegerType,
    ListType,
    LongType,
    NestedField,
    StringType,
    StructType,
)

from pipeline.output.deletions import DELETIONS_SCHEMA
from pipeline.output.schema import IMAGES_SCHEMA, INSTANCES_SCHEMA, MAP_SCHEMAS

if TYPE_CHECKING:
    from collections.abc import Iterator

SCHEMAS = {**MAP_SCHEMAS, "instances": INSTANCES_SCHEMA, "deletions": DELETIONS_SCHEMA, "images": IMAGES_SCHEMA}
"""By table, in the order in which a run is added: a query that finds its images finds the rest as well."""
_SIMPLE: dict[pa.DataType, IcebergType] = {
    pa.int32(): IntegerType(),
    pa.int64(): LongType(),
    pa.float32(): FloatType(),
    pa.float64(): DoubleType(),
    pa.string(): StringType(),
    pa.bool_(): BooleanType(),
}
PROPERTIES = {
    # By default only the first 16 characters, which all uris of a bucket have in common.
    "write.metadata.metrics.column.uri": "full",
    # pyiceberg would append the same files again after another writer has appended them; IcebergTable checks first.
    "commit.retry.num-retries": "0",
    # Otherwise every run leaves a copy of the table's whole metadata for good.
    "write.metadata.delete-after-commit.enabled": "true",
    "write.metadata.previous-versions-max": "20",
    # Otherwise a reader opens one manifest per run.
    "commit.manifest-merge.enabled": "true",
}


def iceberg_schema(schema: pa.Schema) -> Schema:
    """Return a table's Iceberg schema: the columns of the files, and the partition column `run` at the end.

    The files do not hold `run`: readers take it from the partition (Iceberg's specification, column projection).
    """
    numbers = count(1)
    fields = [_field(field, numbers) for field in schema]
    whole = Schema(*fields, NestedField(next(numbers), "run", StringType(), required=False))
    # Numbered as catalogs number the columns of a new table, so that the names can be mapped before it exists.
    return assign_fresh_schema_ids(whole)


def partition_by_run(schema: Schema) -> PartitionSpec:
    """Return the partitioning of a new table."""
    source = schema.find_field("run").field_id
    return PartitionSpec(PartitionField(source, PARTITION_FIELD_ID_START, IdentityTransform(), "run"))


def missing_columns(known: Schema, schema: pa.Schema) -> pa.Schema:
    """Return the columns that an Iceberg table of an earlier release lacks; nullable, as it has rows."""
    names = {field.name for field in known.fields}
    return pa.schema([field.with_nullable(True) for field in schema if field.name not in names])


def iceberg_type(kind: pa.DataType, numbers: "Iterator[int]") -> IcebergType:
    """Return the Iceberg type of an Arrow type.

    Args:
        numbers: gives each nested field its number.

    Raises:
        TypeError: no column of the tables has such a type.
    """
    if pa.types.is_struct(kind):
        return StructType(*(_field(field, numbers) for field in kind))
    if pa.types.is_list(kind):
        return ListType(next(numbers), iceberg_type(kind.value_type, numbers), element_required=False)
    if kind not in _SIMPLE:
        raise TypeError(f"no Iceberg type for {kind}")
    return _SIMPLE[kind]


def _field(field: pa.Field, numbers: "Iterator[int]") -> NestedField:
    return NestedField(next(numbers), field.name, iceberg_type(field.type, numbers), required=not field.nullable)
