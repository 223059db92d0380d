"""Columns of Parquet files: dotted paths into nested structs, storage types, and values as text."""

import pyarrow as pa


def column_parts(schema: pa.Schema, column: str) -> tuple[str, ...] | None:
    """Split a dotted column into the names of nested fields, which may contain dots themselves.

    Returns:
        The names, such as ("image", "bytes") for "image.bytes"; None if there is no such column.
    """
    return _parts(list(schema), column)


def _parts(fields: list[pa.Field], column: str) -> tuple[str, ...] | None:
    for field in fields:
        if field.name == column:
            return (field.name,)
    for field in fields:
        if column.startswith(f"{field.name}."):
            rest = _parts(inner_fields(storage_type(field.type)), column[len(field.name) + 1 :])
            if rest is not None:
                return (field.name, *rest)
    return None


def inner_fields(kind: pa.DataType) -> list[pa.Field]:
    """Return the fields of a struct; none for any other type."""
    return [kind.field(index) for index in range(kind.num_fields)] if pa.types.is_struct(kind) else []


def storage_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of the values in an extension type or a dictionary; any other type unchanged."""
    while isinstance(kind, pa.BaseExtensionType) or pa.types.is_dictionary(kind):
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind.storage_type
    return kind


def is_bytes(kind: pa.DataType) -> bool:
    """Return whether a storage type is one of Arrow's binary types."""
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def is_text(kind: pa.DataType) -> bool:
    """Return whether a type, or its storage type, is one of Arrow's string types."""
    kind = storage_type(kind)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def follow(batch: pa.RecordBatch, row: int, parts: tuple[str, ...]) -> pa.Scalar | None:
    """Return a row's value under nested field names; None where it, or a struct around it, is null."""
    scalar = batch.column(batch.schema.get_field_index(parts[0]))[row]
    for name in (*parts[1:], None):
        while scalar is not None and isinstance(scalar, pa.ExtensionScalar | pa.DictionaryScalar):
            scalar = scalar.value
        if scalar is None or not scalar.is_valid:
            return None
        if name is not None:
            scalar = scalar[name]
    return scalar


def text_of(scalar: pa.Scalar | None) -> str | None:
    """Return a string or binary scalar as text; bytes that are not UTF-8 become surrogates."""
    if scalar is None:
        return None
    return bytes(scalar.as_buffer()).decode("utf-8", "surrogateescape")
