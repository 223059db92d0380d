"""The frozen manifest: every image of the run in a fixed order, cut into shards.

The manifest is written before work starts and never changes. Its parts are Parquet like everything else, so
that a person can ask what was planned; a shard is a stretch of rows, found by arithmetic.
"""

import io
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import JobSpec
from pipeline.errors import AccessDeniedError, InputError, NotFoundError, StorageError
from pipeline.refs import ImageRef, image_id
from pipeline.sources import SourceNotes, list_images
from pipeline.storage import Storage, join
from pipeline.tables import SCHEMA_VERSION
from pipeline.uris import display_uri

__all__ = ["InputSurvey", "Manifest", "ManifestReader", "Shard", "image_id", "plan_run", "survey_input"]

PART_IMAGES = 65_536
"""Images in a part, rounded down to whole shards: some 10 MB in memory, and 15 parts for a million images."""

MANIFEST_SCHEMA = pa.schema(
    [
        pa.field("position", pa.int64(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        # The name's bytes where they are no valid UTF-8, which `uri` can only show escaped.
        pa.field("uri_bytes", pa.binary()),
        pa.field("bytes", pa.int64()),
        pa.field("etag", pa.string()),
        pa.field("container", pa.string()),
        pa.field("container_bytes", pa.binary()),
        pa.field("offset", pa.int64()),
        pa.field("row", pa.int64()),
        pa.field("column", pa.string()),
        pa.field("problem", pa.string()),
    ],
    metadata={"htc_schema_version": str(SCHEMA_VERSION)},
)


@dataclass(frozen=True)
class Shard:
    """The unit of work, retry and output: a fixed list of images."""

    index: int
    images: tuple[ImageRef, ...]


@dataclass(frozen=True)
class Manifest:
    """What is known of the frozen input.

    listed_bytes: encoded bytes of the images whose size listing told. unsized_images: the others.
    duplicates, skipped: see `sources.SourceNotes`.
    """

    image_count: int
    shard_count: int
    shard_images: int
    part_shards: int
    listed_bytes: int
    unsized_images: int
    duplicates: int = 0
    skipped: dict[str, int] = field(default_factory=dict)

    def left_out(self) -> list[str]:
        """Say what of the input is no row of its own, a line per kind: nothing is dropped silently."""
        lines = []
        if self.duplicates:
            entries = "entry names" if self.duplicates == 1 else "entries name"
            lines.append(f"{self.duplicates:,} {entries} an image again, and each image is taken once")
        if self.skipped:
            kinds = ", ".join(f"{count:,} {suffix or 'without suffix'}" for suffix, count in self.skipped.items())
            lines.append(f"files that are no images, left out: {kinds}")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON-able values, for run.json."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Manifest":
        """Read what `to_dict` wrote; later versions' keys are ignored."""
        known = {each.name for each in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})


@dataclass(frozen=True)
class InputSurvey:
    """What `htc plan` tells of an input that nothing has been written for.

    sample: the first images, in order.
    """

    manifest: Manifest
    sample: tuple[ImageRef, ...]


class _Tally:
    """Counts images as they pass by."""

    def __init__(self) -> None:
        self.images = 0
        self.listed_bytes = 0
        self.unsized_images = 0

    def count(self, refs: Iterable[ImageRef]) -> Iterator[ImageRef]:
        for ref in refs:
            self.images += 1
            self.listed_bytes += ref.bytes or 0
            self.unsized_images += ref.bytes is None
            yield ref

    def manifest(self, shard_images: int, notes: SourceNotes) -> Manifest:
        return Manifest(
            image_count=self.images,
            shard_count=-(-self.images // shard_images),
            shard_images=shard_images,
            part_shards=max(1, PART_IMAGES // shard_images),
            listed_bytes=self.listed_bytes,
            unsized_images=self.unsized_images,
            duplicates=notes.duplicates,
            skipped=dict(notes.skipped.most_common()),
        )


def plan_run(spec: JobSpec, storage: Storage, folder: str) -> Manifest:
    """List the input and write the manifest's parts into `folder`, streaming.

    Parts left there by a planning that was cut off are removed first.

    Raises:
        InputError: the input holds no image, or cannot be listed.
        StorageError: the manifest cannot be written.
    """
    notes, tally = SourceNotes(), _Tally()
    _clear(storage, folder)
    shard_images = spec.compute.shard_images
    part_images = max(1, PART_IMAGES // shard_images) * shard_images
    refs = tally.count(_listed(spec, storage, notes))
    for number, part in enumerate(_chunks(refs, part_images)):
        payload = _encode_part(part, number * part_images, shard_images)
        storage.write(_part_uri(folder, number), payload)
    _refuse_empty(spec, tally, notes)
    return tally.manifest(shard_images, notes)


def survey_input(spec: JobSpec, storage: Storage, *, sample_images: int = 8) -> InputSurvey:
    """Count the input as `plan_run` would plan it, and write nothing.

    Raises:
        InputError: the input holds no image, or cannot be listed.
    """
    notes, tally = SourceNotes(), _Tally()
    refs = tally.count(_listed(spec, storage, notes))
    sample = tuple(islice(refs, sample_images))
    for _ in refs:
        pass
    _refuse_empty(spec, tally, notes)
    return InputSurvey(tally.manifest(spec.compute.shard_images, notes), sample)


def require_images(spec: JobSpec, storage: Storage) -> None:
    """Look for one image in the input; as cheap as its listing begins.

    Raises:
        InputError: the input holds no image, or cannot be listed.
    """
    notes, tally = SourceNotes(), _Tally()
    next(tally.count(_listed(spec, storage, notes)), None)
    _refuse_empty(spec, tally, notes)


class ManifestReader:
    """Reads shards from a manifest; keeps the part it read last, since shards are mostly asked for in
    order."""

    def __init__(self, storage: Storage, folder: str, manifest: Manifest) -> None:
        self.manifest = manifest
        self._storage = storage
        self._folder = folder
        self._part: tuple[int, pa.Table] | None = None

    def read_shard(self, index: int) -> Shard:
        """Read one shard.

        Raises:
            IndexError: there is no such shard.
            StorageError: the manifest cannot be read, or is not the one that was planned.
        """
        plan = self.manifest
        if not 0 <= index < plan.shard_count:
            raise IndexError(f"shard {index} of {plan.shard_count}")
        number, within = divmod(index, plan.part_shards)
        table = self._read_part(number).slice(within * plan.shard_images, plan.shard_images)
        expected = min(plan.shard_images, plan.image_count - index * plan.shard_images)
        if len(table) != expected or table.column("shard")[0].as_py() != index:
            raise StorageError(f"{_part_uri(self._folder, number)} is damaged: shard {index} is not whole.")
        return Shard(index, tuple(_ref_from_row(row) for row in table.to_pylist()))

    def _read_part(self, number: int) -> pa.Table:
        if self._part is None or self._part[0] != number:
            uri = _part_uri(self._folder, number)
            try:
                table = pq.read_table(io.BytesIO(self._storage.read(uri)))
            except (pa.ArrowException, OSError) as error:
                raise StorageError(f"{uri} is damaged: it is no whole Parquet file.") from error
            self._part = (number, table)
        return self._part[1]


def _listed(spec: JobSpec, storage: Storage, notes: SourceNotes) -> Iterator[ImageRef]:
    try:
        yield from list_images(spec.input, storage, exclude=[spec.output.uri], notes=notes)
    except (NotFoundError, AccessDeniedError) as error:
        raise InputError(f"The input cannot be listed: {error}") from error


def _refuse_empty(spec: JobSpec, tally: _Tally, notes: SourceNotes) -> None:
    if tally.images:
        return
    pattern = f" that match {spec.input.glob}" if spec.input.glob else ""
    others = ", ".join(f"{count} {suffix}" for suffix, count in notes.skipped.most_common(5))
    found = f"; what is there is no image ({others})" if others else ""
    raise InputError(f"There are no images{pattern} in {spec.input.uri}{found}.")


def _clear(storage: Storage, folder: str) -> None:
    try:
        stale = [listed.uri for listed in storage.list(folder)]
    except NotFoundError:
        return
    for uri in stale:
        storage.delete(uri)


def _part_uri(folder: str, number: int) -> str:
    return join(folder, f"part-{number:05d}.parquet")


def _chunks(refs: Iterator[ImageRef], size: int) -> Iterator[list[ImageRef]]:
    while chunk := list(islice(refs, size)):
        yield chunk


def _encode_part(refs: list[ImageRef], first_position: int, shard_images: int) -> bytes:
    positions = range(first_position, first_position + len(refs))
    columns: dict[str, list[Any]] = {
        "position": list(positions),
        "shard": [position // shard_images for position in positions],
        "uri": [display_uri(ref.uri) for ref in refs],
        "uri_bytes": [_odd_bytes(ref.uri) for ref in refs],
        "container": [None if ref.container is None else display_uri(ref.container) for ref in refs],
        "container_bytes": [_odd_bytes(ref.container) for ref in refs],
    }
    for name in ("bytes", "etag", "offset", "row", "column", "problem"):
        columns[name] = [getattr(ref, name) for ref in refs]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pydict(columns, schema=MANIFEST_SCHEMA), sink, compression="zstd")
    return sink.getvalue()


def _odd_bytes(name: str | None) -> bytes | None:
    """Return a name's bytes when they are no valid UTF-8, else None."""
    if name is None or name.isascii():
        return None
    raw = name.encode("utf-8", "surrogateescape")
    return None if display_uri(name) == name else raw


def _ref_from_row(row: dict[str, Any]) -> ImageRef:
    names = {}
    for name in ("uri", "container"):
        odd: bytes | None = row[f"{name}_bytes"]
        names[name] = row[name] if odd is None else odd.decode("utf-8", "surrogateescape")
    others = {name: row[name] for name in ("bytes", "etag", "offset", "row", "column", "problem")}
    return ImageRef(uri=names["uri"], container=names["container"], **others)
