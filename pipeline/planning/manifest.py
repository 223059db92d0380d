"""The frozen manifest: Parquet parts that hold every image of a run in a fixed order, cut into shards.

A part never changes once it is written. The first parts are small, so that work begins early. A shard is a range of
rows, and its place is computed from its index. Parts are plain Parquet that any reader can query.
"""

import io
import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import NotFoundError
from pipeline.inputs.containers.tar import archive_suffix
from pipeline.inputs.image_ref import ImageRef
from pipeline.inputs.image_rows import PLAIN_COLUMNS, ImageRows, names_of
from pipeline.inputs.listing import COMMENT_LINES
from pipeline.inputs.shard import Shard
from pipeline.output.part_files import read_part
from pipeline.output.schema import SCHEMA_VERSION
from pipeline.storage.damage import damaged, missing
from pipeline.storage.storage import Storage
from pipeline.storage.uris import display_uri, join

FIRST_PART_IMAGES = 1024
"""Images in the first part: a page of an S3 listing. Each part holds twice as many as the one before, up to
PART_IMAGES."""
PART_IMAGES = 65_536
"""Images in a part, rounded down to whole shards: some 10 MB in memory, and 21 parts for a million images."""
KEPT_PARTS = 4
"""Parts that a reader keeps in memory: new shards are read in order, and retries are of shards not long before them."""

_MANIFEST_KEY = b"htc_manifest"
_IMAGE_COLUMNS = ("uri", "uri_bytes", "container", "container_bytes", *PLAIN_COLUMNS)
_RECORD_KEY = b"htc_run"
MANIFEST_SCHEMA = pa.schema(
    [
        pa.field("position", pa.int64(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        # The name's bytes where they are not valid UTF-8; `uri` holds an escaped form then.
        pa.field("uri_bytes", pa.binary()),
        pa.field("bytes", pa.int64()),
        pa.field("etag", pa.string()),
        pa.field("container", pa.string()),
        pa.field("container_bytes", pa.binary()),
        pa.field("offset", pa.int64()),
        pa.field("row", pa.int64()),
        pa.field("column", pa.string()),
        pa.field("problem", pa.string()),
        # Never null in parts of this release; parts of older releases lack the column.
        pa.field("failed_before", pa.bool_()),
    ],
    metadata={"htc_schema_version": str(SCHEMA_VERSION)},
)


@dataclass(frozen=True)
class PartLayout:
    """Which shards are in which part, computed without reading anything.

    first_shards: shards in the first part; each part has twice those of the one before, at most `part_shards`.
    """

    shard_images: int
    first_shards: int
    part_shards: int

    @classmethod
    def of(cls, shard_images: int) -> "PartLayout":
        """Lay out the parts of a new manifest."""
        most = max(1, PART_IMAGES // shard_images)
        return cls(shard_images, min(most, max(1, FIRST_PART_IMAGES // shard_images)), most)

    def find(self, shard: int) -> tuple[int, int]:
        """Return the number of a shard's part, and the number of shards before it in that part."""
        number, start, size = 0, 0, self.first_shards
        while size < self.part_shards:
            if shard < start + size:
                return number, shard - start
            number, start, size = number + 1, start + size, min(2 * size, self.part_shards)
        parts, within = divmod(shard - start, self.part_shards)
        return number + parts, within

    def images(self, number: int) -> int:
        """Return how many images a part holds when it is full."""
        # A shift of thousands of bits for the parts of a large run would be slow.
        growth = 1 << min(number, self.part_shards.bit_length())
        return self.shard_images * min(self.part_shards, self.first_shards * growth)


@dataclass(frozen=True)
class Manifest:
    """What is known of the frozen input; the counts grow until `is_planned`.

    listed_bytes: encoded bytes of the images whose size the listing has. unsized_images: the number of the others.
    duplicates, skipped, without_images, columns, refused, links, link, listing, signed: see
        `inputs.listing.SourceNotes`.
    first_part_shards: see `PartLayout.first_shards`; 0 when all parts have `part_shards`.
    is_planned: whether the whole input is planned.
    selection: of an incremental run, the listed images by reason, see `Selection.counts_dict`; empty for a full run.
    """

    image_count: int
    shard_count: int
    shard_images: int
    part_shards: int
    listed_bytes: int
    unsized_images: int
    duplicates: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    links: int = 0
    link: str = ""
    listing: str = ""
    signed: int = 0
    first_part_shards: int = 0
    is_planned: bool = True
    selection: dict[str, int] = field(default_factory=dict)
    without_images: dict[str, str] = field(default_factory=dict)
    columns: dict[str, int] = field(default_factory=dict)

    @property
    def layout(self) -> PartLayout:
        """Which shards are in which part."""
        return PartLayout(self.shard_images, self.first_part_shards or self.part_shards, self.part_shards)

    def left_out(self) -> list[str]:
        """Return a line for each kind of entry that has no row of its own, or only one with a reason."""
        lines = []
        if self.duplicates:
            entries = "entry names" if self.duplicates == 1 else "entries name"
            lines.append(f"{self.duplicates:,} {entries} an image again, and each image is taken once")
        archives = {kind: count for kind, count in self.skipped.items() if archive_suffix(f"a{kind}") is not None}
        if archives:
            lines.append(f"archives, left out: {_counted(archives)}; unpack them, or repack them as plain .tar")
        if comments := self.skipped.get(COMMENT_LINES):
            lines.append(f"comments in the listing, left out: {comments:,}")
        if others := {
            kind: count for kind, count in self.skipped.items() if kind not in archives and kind != COMMENT_LINES
        }:
            lines.append(f"files that are not images, left out: {_counted(others)}")
        if self.links:
            what = "1 link to a folder" if self.links == 1 else f"{self.links:,} links to folders"
            lines.append(f"{what} not followed, as the files are listed under other names: {display_uri(self.link)}")
        lines += [f"not readable, each a row with its reason: {count:,} {kind}" for kind, count in self.refused.items()]
        lines += [f"left out: {uri} ({instead})" for uri, instead in self.without_images.items()]
        return lines

    def read_columns(self) -> str:
        """Return the columns of Parquet files that the images are read from, as text; empty when there are none."""
        counts = (f"{column} ({count:,} {'file' if count == 1 else 'files'})" for column, count in self.columns.items())
        return ", ".join(counts)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, for run.json."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Manifest":
        """Read what `to_dict` wrote; keys of later releases are ignored."""
        known = {each.name for each in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})


def _counted(kinds: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {kind or 'without suffix'}" for kind, count in kinds.items())


class ManifestReader:
    """Reads shards from a manifest; keeps the parts that were read last in memory.

    Attributes:
        manifest: what is written so far; replace it as planning proceeds.
    """

    def __init__(self, storage: Storage, folder: str, manifest: Manifest) -> None:
        self.manifest = manifest
        self._storage = storage
        self._folder = folder
        self._parts: OrderedDict[int, _Part] = OrderedDict()

    def read_shard(self, index: int) -> Shard:
        """Read one shard; its images are decoded when they are looked at.

        Raises:
            IndexError: there is no such shard.
            DamagedFileError: a part is missing, damaged, or not the one that was planned.
            StorageError: the manifest cannot be read.
        """
        plan = self.manifest
        if not 0 <= index < plan.shard_count:
            raise IndexError(f"shard {index} of {plan.shard_count}")
        number, within = plan.layout.find(index)
        part, first = self._read_part(number), within * plan.shard_images
        rows = part.images.slice(first, plan.shard_images)
        expected = min(plan.shard_images, plan.image_count - index * plan.shard_images)
        if len(rows) != expected or part.shards[first].as_py() != index:
            raise damaged(manifest_part_uri(self._folder, number), f"shard {index} is incomplete")
        images = ImageRows(rows)
        return Shard(index, images, self._storage.signed.find_all(_addressed(images)))

    def _read_part(self, number: int) -> "_Part":
        part = self._parts.get(number)
        if part is None:
            part = _Part.of(read_manifest_part(self._storage, manifest_part_uri(self._folder, number)))
            self._parts[number] = part
            if len(self._parts) > KEPT_PARTS:
                self._parts.popitem(last=False)
        self._parts.move_to_end(number)
        return part


@dataclass(frozen=True)
class _Part:
    """A part in memory: the shard of each image, and what describes the images, without columns that hold nothing."""

    shards: pa.ChunkedArray
    images: pa.Table

    @classmethod
    def of(cls, table: pa.Table) -> "_Part":
        filled = [name for name in _IMAGE_COLUMNS if _is_filled(table, name)]
        return cls(table.column("shard"), table.select(filled).replace_schema_metadata(None))


def _is_filled(table: pa.Table, column: str) -> bool:
    return column in table.column_names and (column == "uri" or table.column(column).null_count < len(table))


def _addressed(images: ImageRows) -> Iterator[str]:
    """Yield the names that may have a signed address; decodes the images only when the first one is asked for."""
    for ref in images:
        yield ref.container or ref.uri


def manifest_uris(folder: str, manifest: Manifest) -> list[str]:
    """Return the uris of a manifest's parts, in order."""
    uris: list[str] = []
    images = 0
    while images < manifest.image_count:
        images += manifest.layout.images(len(uris))
        uris.append(manifest_part_uri(folder, len(uris)))
    return uris


def manifest_part_uri(folder: str, number: int) -> str:
    """Return the uri of a part of the manifest in `folder`."""
    return join(folder, f"part-{number:05d}.parquet")


def read_manifest_part(storage: Storage, uri: str) -> pa.Table:
    """Read a part of a manifest.

    Raises:
        DamagedFileError: the part is damaged, or missing.
        StorageError: storage failed.
    """
    try:
        return read_part(storage, uri, MANIFEST_SCHEMA)
    except NotFoundError as error:
        raise missing(uri, "it holds images of the run") from error


def uris_of(table: pa.Table) -> list[str]:
    """Return the uris of a part's images."""
    return names_of(table, "uri")


def manifest_in(table: pa.Table) -> Manifest | None:
    """Return the manifest up to and including this part; None for a part of a release that did not store it."""
    stored = (table.schema.metadata or {}).get(_MANIFEST_KEY)
    return None if stored is None else Manifest.from_dict(json.loads(stored))


def record_in(table: pa.Table) -> dict[str, Any] | None:
    """Return the copy of run.json in a part, without `manifest`; None for a part of an older release."""
    stored = (table.schema.metadata or {}).get(_RECORD_KEY)
    return None if stored is None else dict(json.loads(stored))


def encode_manifest_part(
    refs: list[ImageRef], first_position: int, manifest: Manifest, record: Mapping[str, Any] | None = None
) -> bytes:
    """Encode a part as Parquet.

    Args:
        first_position: the position of its first image in the whole manifest.
        manifest: of all parts so far, this one included; stored in the part, so that interrupted planning can resume.
        record: the rest of run.json; stored in the part, so that `htc doctor` can restore that file.
    """
    positions = range(first_position, first_position + len(refs))
    columns: dict[str, list[Any]] = {
        "position": list(positions),
        "shard": [position // manifest.shard_images for position in positions],
        "uri": [display_uri(ref.uri) for ref in refs],
        "uri_bytes": [_odd_bytes(ref.uri) for ref in refs],
        "container": [None if ref.container is None else display_uri(ref.container) for ref in refs],
        "container_bytes": [_odd_bytes(ref.container) for ref in refs],
    }
    for name in PLAIN_COLUMNS:
        columns[name] = [getattr(ref, name) for ref in refs]
    sink = io.BytesIO()
    stored = {_MANIFEST_KEY: json.dumps(manifest.to_dict())}
    if record is not None:
        stored[_RECORD_KEY] = json.dumps(record)
    schema = MANIFEST_SCHEMA.with_metadata({**MANIFEST_SCHEMA.metadata, **stored})
    pq.write_table(pa.Table.from_pydict(columns, schema=schema), sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def _odd_bytes(name: str | None) -> bytes | None:
    """Return a name's bytes when they are not valid UTF-8, else None."""
    if name is None or name.isascii():
        return None
    raw = name.encode("utf-8", "surrogateescape")
    return None if display_uri(name) == name else raw
