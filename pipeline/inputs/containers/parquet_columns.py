"""Chooses the column of a Parquet file that holds the images, or their names, by types, names and the first rows.

| the file's columns | chosen |
|---|---|
| `image: struct<bytes: binary, path: string>`, `label: int64` | `image.bytes`: the only candidate, and a struct |
| `jpg: binary`, `id: binary` | `jpg`: both are sampled, and only its first rows begin like images |
| `thumbnail: binary`, `photo: binary` | none, if both hold images and neither name is known: the user must name one |
| `url: string`, `hash: binary` | `url`, as the names of images: the first rows of `hash` do not begin like images |
| `image: string` of base64 text | none, with this problem |
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa

from pipeline.errors import ImageError, InputError
from pipeline.inputs.containers.parquet import ParquetRows
from pipeline.inputs.containers.parquet_file import inspect_parquet, read_uris
from pipeline.inputs.containers.parquet_schema import column_parts, inner_fields, is_bytes, is_text, storage_type
from pipeline.inputs.formats.detect import looks_like_image
from pipeline.inputs.listings.delimited import looks_like_name
from pipeline.inputs.listings.headings import URI_COLUMNS
from pipeline.storage.objects import ObjectInfo
from pipeline.storage.storage import Storage

IMAGE_COLUMNS = ("image", "bytes", "image_bytes", "jpg", "jpeg", "png", "webp", "img", "content", "data")
"""Names that are preferred, in this order, if several columns hold images; case does not matter."""

# The first rows of a data set may lack their image, so several are read.
_SAMPLE_ROWS = 16
# A larger image is skipped: one row of it would fill the memory, and another row shows the format as well.
_SAMPLE_BYTES = 512 * 2**20
# The beginnings of a JPEG, PNG, GIF and WebP in base64. A data: URL among names becomes a row with its reason instead.
_BASE64_STARTS = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR")


@dataclass(frozen=True)
class Columns:
    """The columns with images of a Parquet file.

    rows: the number of rows.
    image: the dotted path of the column with image bytes, or of a struct's file names; None if there is none.
    uri: the text column that names images; None if there is none, or if there is an image column.
    problem: why its images cannot be read although it seems to have some, on one line; else None.
    described: the columns with their types, for messages.
    """

    rows: int
    image: str | None
    uri: str | None
    problem: str | None
    described: str


@dataclass(frozen=True)
class _Candidate:
    """A column that may hold images.

    name: the dotted path of the column. path: that of the bytes or file names in it.
    """

    name: str
    path: str
    is_struct: bool


def choose_columns(
    listed: ObjectInfo, storage: Storage, *, image_column: str | None = None, uri_column: str | None = None
) -> Columns:
    """Find the column of a Parquet file that holds the images, or their names.

    Args:
        image_column, uri_column: the user's choice, see `InputSection`.

    Raises:
        DamagedContainerError: it is not a valid Parquet file.
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
    image, problem = _choose_image_column(listed, storage, schema, rows)
    uri = None if image else find_uri_column(schema)
    if image is None and problem is None:
        problem = _base64_problem(listed, storage, schema, uri, rows)
        uri = uri if uri or problem else _find_names(listed, storage, schema)
    return Columns(rows, image, uri, problem, described)


def find_uri_column(schema: pa.Schema) -> str | None:
    """Return the first text column with one of the names in URI_COLUMNS, whatever its case; None if there is none."""
    texts: dict[str, str] = {
        field.name.strip().lower(): field.name for field in reversed(list(schema)) if is_text(field.type)
    }
    return next((texts[name] for name in URI_COLUMNS if name in texts), None)


def describe(schema: pa.Schema) -> str:
    """Describe a file's columns with their types, at most twenty of them."""
    shown = [f"{field.name} ({field.type})" for field in list(schema)[:20]]
    return ", ".join(shown) + (f" and {len(schema) - 20} more" if len(schema) > 20 else "") or "none"


def _choose_image_column(
    listed: ObjectInfo, storage: Storage, schema: pa.Schema, rows: int
) -> tuple[str | None, str | None]:
    """Return the path of the column with images, and the problem if there is none although there seem to be some."""
    candidates = sorted(_candidates(schema), key=_rank)
    if not candidates:
        return None, _list_problem(schema)
    first = candidates[0]
    has_names = find_uri_column(schema) is not None
    if len(candidates) == 1 and (first.is_struct or (_is_known(first) and not has_names)):
        return first.path, None
    contents = {candidate.path: _sample(listed, candidate, storage, rows) for candidate in candidates}
    holding = [candidate for candidate in candidates if contents[candidate.path] == "images"]
    if len(holding) > 1 and not _is_known(holding[0]):
        names = " and ".join(candidate.name for candidate in holding[:3])
        return None, f"its columns {names} hold images; name one with input.image_column (--image-column)"
    naming = [candidate for candidate in candidates if contents[candidate.path] == "names"]
    # The sample does not show what these hold: only nulls, or an unknown format. Each row will get its own reason.
    others = [each for each in candidates if _is_known(each) or contents[each.path] == "nothing"]
    chosen = holding or naming or ([] if has_names else others)
    return (chosen[0].path if chosen else None), None


def _candidates(schema: pa.Schema) -> list[_Candidate]:
    return list(_candidates_in(list(schema), ""))


def _candidates_in(fields: list[pa.Field], prefix: str) -> Iterator[_Candidate]:
    for field in fields:
        name, kind = f"{prefix}{field.name}", storage_type(field.type)
        if is_bytes(kind):
            yield _Candidate(name, name, is_struct=False)
        elif pa.types.is_struct(kind):
            inner = {each.name: each for each in inner_fields(kind)}
            if "bytes" in inner and is_bytes(storage_type(inner["bytes"].type)):
                yield _Candidate(name, f"{name}.bytes", is_struct=True)
            elif set(inner) == {"path"} and is_text(inner["path"].type):
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
    names: list[str] = [each.name for each in schema if is_text(each.type) or is_bytes(storage_type(each.type))]
    exact = [each for each in names if each == name] or [each for each in names if each.lower() == name.lower()]
    if exact:
        return exact[0]
    # A field of a struct, such as image.path.
    return name if column_parts(schema, name) is not None and "." in name else None


def _sample(listed: ObjectInfo, candidate: _Candidate, storage: Storage, rows: int) -> str:
    """Return what a column's first rows hold: "images", "names" of files, something "else", or "nothing"."""
    found = "nothing"
    with ParquetRows(kept=1) as reader:
        for row in range(min(rows, _SAMPLE_ROWS)):
            try:
                content = reader.read(
                    listed.uri, row, candidate.path, storage, etag=listed.etag, max_bytes=_SAMPLE_BYTES
                )
            except ImageError:
                # Too large or damaged; another row may show what the column holds.
                continue
            if content.payload and looks_like_image(content.payload):
                return "images"
            if content.payload:
                found = "else"
            elif content.path is not None and found == "nothing":
                found = "names"
    return found


def _base64_problem(listed: ObjectInfo, storage: Storage, schema: pa.Schema, uri: str | None, rows: int) -> str | None:
    """Return the problem of a text column that holds images in base64; None if there is none."""
    texts = [field.name for field in schema if is_text(field.type)]
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
    """Return the only text column whose first rows mostly look like file names; None if there is none, or several."""
    found = []
    for name in _texts_in(list(schema), ""):
        cells = [cell for cell in islice(read_uris(listed.uri, name, storage), _SAMPLE_ROWS) if cell]
        if cells and 2 * sum(map(looks_like_name, cells)) >= len(cells):
            found.append(name)
    return found[0] if len(found) == 1 else None


def _texts_in(fields: list[pa.Field], prefix: str) -> Iterator[str]:
    for field in fields:
        name, kind = f"{prefix}{field.name}", storage_type(field.type)
        if is_text(kind):
            yield name
        else:
            yield from _texts_in(inner_fields(kind), f"{name}.")


def _list_problem(schema: pa.Schema) -> str | None:
    for field in schema:
        kind = storage_type(field.type)
        is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
        if is_list and list(_candidates_in([pa.field("x", kind.value_type)], "")):
            return f"its column {field.name} holds lists of images; write one image a row"
    return None


def require_columns(listed: ObjectInfo, columns: Columns) -> None:
    """Check that a file that is the whole input has a column with images or their names.

    Raises:
        InputError: it has none; the message lists its columns and how to name one.
    """
    if columns.problem is not None:
        raise InputError(f"{listed.uri} cannot be read: {columns.problem}.")
    if columns.image is None and columns.uri is None:
        raise InputError(
            f"{listed.uri} has no column with image bytes, none that is called {', '.join(URI_COLUMNS)}, and none or "
            f"several whose first rows look like names of images; its columns are {columns.described}. Name one with "
            "input.image_column (--image-column) or input.uri_column (--uri-column)."
        )
