"""Which column of a Parquet file holds the images, or their names: judged by types, names and the first rows."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa

from pipeline.errors import ImageError, InputError
from pipeline.inputs.containers.parquet import ParquetRows, column_parts, inspect_parquet, read_uris, storage_type
from pipeline.inputs.formats.detect import looks_like_image
from pipeline.inputs.listings.delimited import looks_like_name
from pipeline.inputs.listings.headings import URI_COLUMNS
from pipeline.storage.objects import ObjectInfo
from pipeline.storage.storage import Storage

IMAGE_COLUMNS = ("image", "bytes", "image_bytes", "jpg", "jpeg", "png", "webp", "img", "content", "data")
"""Names that go first among several columns that hold images, in this order; upper and lower case are one."""

# Rows that are looked at; the first ones of a data set may lack their image.
_SAMPLE_ROWS = 16
# More than any magic number needs; an image that is larger than this is one row, and judged by its beginning anyway.
_SAMPLE_BYTES = 512 * 2**20
# How text begins that is a JPEG, PNG, GIF or WebP in base64. A data: URL among names is a row of its own that says so.
_BASE64_STARTS = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR")


@dataclass(frozen=True)
class Columns:
    """What a Parquet file holds of images.

    rows: how many rows it has.
    image: the dotted path of the column with image bytes, or with a struct's names of files; None for none.
    uri: the text column that names images, None for none; not looked for where there are images.
    problem: why its images cannot be taken although it seems to have some, one line; None when all is well.
    described: the columns with their types, for people.
    """

    rows: int
    image: str | None
    uri: str | None
    problem: str | None
    described: str


@dataclass(frozen=True)
class _Candidate:
    """A column that may hold images. name: of the whole column. path: of the bytes, or of the names of files."""

    name: str
    path: str
    is_struct: bool


def choose_columns(
    listed: ObjectInfo, storage: Storage, *, image_column: str | None = None, uri_column: str | None = None
) -> Columns:
    """Find the column with the images of a Parquet file, or with their names.

    Args:
        image_column, uri_column: the user's choice, see `InputSection`.

    Raises:
        DamagedContainerError: it is no whole Parquet file.
        StorageError: it cannot be read.
    """
    schema, rows = inspect_parquet(listed.uri, storage)
    described = describe(schema)
    if image_column is not None:
        found = _find_named(_candidates(schema), image_column)
        if found is not None:
            return Columns(rows, found.path, None, None, described)
        missing = f"it has no column {image_column} with image bytes; its columns are {described}"
        return Columns(rows, None, None, missing, described)
    if uri_column is not None:
        named = _named_text(schema, uri_column)
        missing = f"it has no column {uri_column} with text; its columns are {described}"
        return Columns(rows, None, named, None if named else missing, described)
    image, problem = _judge(listed, storage, schema, rows)
    uri = None if image else find_uri_column(schema)
    if image is None and problem is None:
        problem = _base64_problem(listed, storage, schema, uri, rows)
        uri = uri if uri or problem else _find_names(listed, storage, schema)
    return Columns(rows, image, uri, problem, described)


def find_uri_column(schema: pa.Schema) -> str | None:
    """Return the text column that names images by its name, upper or lower case; None when there is none."""
    texts: dict[str, str] = {
        field.name.strip().lower(): field.name for field in reversed(list(schema)) if _is_text(field.type)
    }
    return next((texts[name] for name in URI_COLUMNS if name in texts), None)


def describe(schema: pa.Schema) -> str:
    """Name a file's columns with their types, at most twenty of them."""
    shown = [f"{field.name} ({field.type})" for field in list(schema)[:20]]
    return ", ".join(shown) + (f" and {len(schema) - 20} more" if len(schema) > 20 else "") or "none"


def _judge(listed: ObjectInfo, storage: Storage, schema: pa.Schema, rows: int) -> tuple[str | None, str | None]:
    """Return the column with images, and why there is none although it seems so."""
    candidates = sorted(_candidates(schema), key=_rank)
    if not candidates:
        return None, _list_problem(schema)
    first = candidates[0]
    has_names = find_uri_column(schema) is not None
    if len(candidates) == 1 and (first.is_struct or (_is_known(first) and not has_names)):
        return first.path, None
    seen = {candidate.path: _look(listed, candidate, storage, rows) for candidate in candidates}
    holding = [candidate for candidate in candidates if seen[candidate.path] == "images"]
    if len(holding) > 1 and not _is_known(holding[0]):
        names = " and ".join(candidate.name for candidate in holding[:3])
        return None, f"its columns {names} hold images; name one with input.image_column (--image-column)"
    naming = [candidate for candidate in candidates if seen[candidate.path] == "names"]
    # No row says what these are: nothing but nulls, or what no reader here knows, and the rows will say so.
    others = [each for each in candidates if _is_known(each) or seen[each.path] == "nothing"]
    chosen = holding or naming or ([] if has_names else others)
    return (chosen[0].path if chosen else None), None


def _candidates(schema: pa.Schema) -> list[_Candidate]:
    return list(_candidates_in(list(schema), ""))


def _candidates_in(fields: list[pa.Field], prefix: str) -> Iterator[_Candidate]:
    for field in fields:
        name, kind = f"{prefix}{field.name}", storage_type(field.type)
        if _is_bytes(kind):
            yield _Candidate(name, name, is_struct=False)
        elif pa.types.is_struct(kind):
            inner = {kind.field(index).name: kind.field(index) for index in range(kind.num_fields)}
            if "bytes" in inner and _is_bytes(storage_type(inner["bytes"].type)):
                yield _Candidate(name, f"{name}.bytes", is_struct=True)
            elif set(inner) == {"path"} and _is_text(inner["path"].type):
                yield _Candidate(name, f"{name}.path", is_struct=True)
            else:
                yield from _candidates_in(list(inner.values()), f"{name}.")


def _rank(candidate: _Candidate) -> int:
    name = candidate.name.rpartition(".")[2].lower()
    return IMAGE_COLUMNS.index(name) if name in IMAGE_COLUMNS else len(IMAGE_COLUMNS)


def _is_known(candidate: _Candidate) -> bool:
    return _rank(candidate) < len(IMAGE_COLUMNS)


def _find_named(candidates: list[_Candidate], name: str) -> _Candidate | None:
    for is_same in (str.__eq__, lambda one, other: one.lower() == other.lower()):
        for candidate in candidates:
            if is_same(candidate.name, name) or is_same(candidate.path, name):
                return candidate
    return None


def _named_text(schema: pa.Schema, name: str) -> str | None:
    names: list[str] = [each.name for each in schema if _is_text(each.type) or _is_bytes(storage_type(each.type))]
    exact = [each for each in names if each == name] or [each for each in names if each.lower() == name.lower()]
    if exact:
        return exact[0]
    # A field of a struct, such as image.path.
    return name if column_parts(schema, name) is not None and "." in name else None


def _look(listed: ObjectInfo, candidate: _Candidate, storage: Storage, rows: int) -> str:
    """Look at a column's first rows: they hold "images", "names" of files, something "else", or "nothing"."""
    found = "nothing"
    with ParquetRows(kept=1) as reader:
        for row in range(min(rows, _SAMPLE_ROWS)):
            try:
                content = reader.read(
                    listed.uri, row, candidate.path, storage, etag=listed.etag, max_bytes=_SAMPLE_BYTES
                )
            except ImageError:
                # Too large to be looked at, or damaged; another row may tell.
                continue
            if content.payload and looks_like_image(content.payload):
                return "images"
            if content.payload:
                found = "else"
            elif content.path is not None and found == "nothing":
                found = "names"
    return found


def _base64_problem(listed: ObjectInfo, storage: Storage, schema: pa.Schema, uri: str | None, rows: int) -> str | None:
    """Notice images that are written as text; no file has such a name."""
    texts = [field.name for field in schema if _is_text(field.type)]
    for name in [uri] if uri is not None else [each for each in texts if each.lower() in IMAGE_COLUMNS]:
        with ParquetRows(kept=1) as reader:
            for row in range(min(rows, _SAMPLE_ROWS)):
                try:
                    content = reader.read(listed.uri, row, name, storage, etag=listed.etag, max_bytes=_SAMPLE_BYTES)
                except ImageError:
                    continue
                text = (content.payload or b"")[:32].decode("ascii", "replace")
                if text.startswith(_BASE64_STARTS):
                    return f"its column {name} holds images as base64 text; write the bytes into a binary column"
    return None


def _find_names(listed: ObjectInfo, storage: Storage, schema: pa.Schema) -> str | None:
    """Return the only text column most of whose first rows look like names of images, as in a table of text."""
    found = []
    for name in _texts_in(list(schema), ""):
        cells = [cell for cell in islice(read_uris(listed.uri, name, storage), _SAMPLE_ROWS) if cell]
        if cells and 2 * sum(map(looks_like_name, cells)) >= len(cells):
            found.append(name)
    return found[0] if len(found) == 1 else None


def _texts_in(fields: list[pa.Field], prefix: str) -> Iterator[str]:
    for field in fields:
        name, kind = f"{prefix}{field.name}", storage_type(field.type)
        if _is_text(kind):
            yield name
        elif pa.types.is_struct(kind):
            yield from _texts_in([kind.field(index) for index in range(kind.num_fields)], f"{name}.")


def _list_problem(schema: pa.Schema) -> str | None:
    for field in schema:
        kind = storage_type(field.type)
        is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
        if is_list and list(_candidates_in([pa.field("x", kind.value_type)], "")):
            return f"its column {field.name} holds lists of images; write one image a row"
    return None


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def _is_text(kind: pa.DataType) -> bool:
    kind = storage_type(kind)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def require_columns(listed: ObjectInfo, columns: Columns) -> None:
    """Refuse a file that is the whole input and has no images.

    Raises:
        InputError: it says which columns there are, and how to name one.
    """
    if columns.problem is not None:
        raise InputError(f"{listed.uri} cannot be read: {columns.problem}.")
    if columns.image is None and columns.uri is None:
        raise InputError(
            f"{listed.uri} has no column with image bytes, none that is called {', '.join(URI_COLUMNS)}, and none or "
            f"several whose first rows look like names of images; its columns are {columns.described}. Name one with "
            "input.image_column (--image-column) or input.uri_column (--uri-column)."
        )
