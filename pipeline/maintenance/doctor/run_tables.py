"""Checks that the tables of a run hold each planned image once, with all its instances."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import DamagedFileError
from pipeline.inputs.image_ref import image_id
from pipeline.job_spec.map_tables import MAP_TABLES
from pipeline.maintenance.doctor.findings import Finding, Kind, Repair
from pipeline.maintenance.doctor.instance_rows import ImageSizes, find_problem
from pipeline.output.layout import COMMIT_ORDER, TableName, run_folder
from pipeline.output.part_files import open_part
from pipeline.output.parts import CommittedShards, Part, choose_parts, find_overlaps, part_uri, shards_of
from pipeline.output.run_record import RunRecord
from pipeline.output.schema import IMAGES_SCHEMA, INSTANCES_SCHEMA, TABLE_SCHEMAS
from pipeline.planning.manifest import Manifest, manifest_uris, read_manifest_part, uris_of
from pipeline.storage.storage import Storage
from pipeline.storage.uris import join

Ids = NDArray[np.int64]
# Rows of `instances` whose masks are decoded together.
MASKS_AT_ONCE = 8192
IMAGE_COLUMNS = ["image_id", "shard", "status", "instances", "width", "height"]
ShardRows = tuple[dict[str, int], int]
"""The rows of a shard: images by status, and instances."""


class RunTables:
    """Checks the tables of a run against its manifest and each other.

    Attributes:
        findings: so far. rows: valid rows of `images`. committed: the shards whose images part exists.
        is_planned: whether the manifest can be read. counted: the rows of each shard whose part is valid.
    """

    def __init__(
        self,
        storage: Storage,
        output_uri: str,
        record: RunRecord,
        listed: Mapping[TableName, Sequence[Part]],
        *,
        is_held: bool,
    ) -> None:
        """`listed`: the parts that exist, by table. `is_held`: a driver works on the run, and may be writing files."""
        self._storage = storage
        self._output_uri = output_uri
        self._record = record
        self._listed = listed
        self._is_held = is_held
        self.findings: list[Finding] = []
        self.rows = 0
        self.is_planned = True
        self.committed = CommittedShards()
        self.counted: dict[int, ShardRows] = {}

    def check(self) -> None:
        """Check all parts.

        Raises:
            NotFoundError: a listed part does not exist any more: compacted or pruned meanwhile.
            StorageError: storage failed.
        """
        planned = self._planned()
        images = self._within("images")
        chosen = self._without_overlaps(choose_parts(images))
        self.committed = shards_of(chosen)
        for part in chosen:
            self._check_part(part, planned)
        if not self._is_held:
            self._check_replaced(set(images) - set(chosen))
            for table in COMMIT_ORDER:
                if table in self._record.tables and table != "images":
                    self._check_leftovers(table, set(self._within(table)) - set(chosen))
                elif table != "images":
                    self._check_unasked(table)

    def _uri(self, table: TableName, part: Part) -> str:
        return part_uri(self._output_uri, table, self._record.run, part)

    def _find(self, uri: str, kind: Kind, problem: str, repair: Repair = "none", way_out: str = "") -> None:
        self.findings.append(Finding(uri, self._record.run, kind, problem, repair, way_out))

    def _within(self, table: TableName) -> list[Part]:
        """Return the parts of planned shards; the others are foreign."""
        within = []
        for part in self._listed[table]:
            if part.last < self._record.shard_count:
                within.append(part)
            elif not self._is_held:
                shards = self._record.shard_count
                self._find(
                    self._uri(table, part),
                    "foreign",
                    f"the run has {shards} shards, and this is a part of a later one",
                    "set_aside",
                )
        return within

    def _without_overlaps(self, chosen: Sequence[Part]) -> list[Part]:
        parts = list(chosen)
        while overlaps := find_overlaps(parts):
            one, other = overlaps[0]
            worse = min(one, other, key=lambda part: len(part.shards))
            better = other if worse is one else one
            self._find(
                self._uri("images", worse), "overlap", f"{better.name} beside it holds some of the same shards", "redo"
            )
            parts.remove(worse)
        return parts

    def _planned(self) -> dict[int, Ids]:
        """Read which images each shard has; shards of parts that cannot be read are left out."""
        manifest = Manifest.from_dict(self._record.manifest)
        planned: dict[int, Ids] = {}
        count = 0
        for uri in manifest_uris(join(run_folder(self._output_uri, self._record.run), "manifest"), manifest):
            try:
                table = read_manifest_part(self._storage, uri)
            except DamagedFileError as error:
                is_missing = "is missing" in str(error)
                self._find(
                    uri,
                    "missing" if is_missing else "damaged",
                    "it holds images of the run" if is_missing else reason_of(error),
                    way_out="restore it from a copy, as no other file says which images were planned; the committed "
                    "rows stay readable, and an unfinished run cannot be resumed: begin another with --fresh (with "
                    "--incremental as well it does only what is left)",
                )
                self.is_planned = False
                return planned
            shards = np.asarray(table.column("shard"))
            ids = np.fromiter(map(image_id, uris_of(table)), np.int64, len(table))
            count += len(table)
            for shard in np.unique(shards).tolist():
                planned[shard] = np.sort(ids[shards == shard])
        if count < manifest.image_count:
            uri = join(run_folder(self._output_uri, self._record.run), "run.json")
            self._find(
                uri,
                "mismatch",
                f"it says {manifest.image_count} images, and the manifest holds {count}",
                way_out="restore the manifest from a copy, or begin another run with --fresh",
            )
        return planned

    def _check_part(self, part: Part, planned: Mapping[int, Ids]) -> None:
        uri = self._uri("images", part)
        try:
            images = _read(self._storage, uri, IMAGES_SCHEMA, IMAGE_COLUMNS)
        except DamagedFileError as error:
            self._find(uri, "damaged", reason_of(error), "redo")
            return
        problem = _compare(images, part, planned)
        if problem:
            self._find(uri, "mismatch", problem, "redo")
            return
        self.rows += len(images)
        self._count(images)
        self._check_instances(part, images)
        for table in self._record.tables:
            if table in MAP_TABLES:
                self._check_maps(table, part, images)

    def _count(self, images: pa.Table) -> None:
        statuses: dict[int, Counter[str]] = defaultdict(Counter)
        instances: Counter[int] = Counter()
        for shard, status, count in zip(
            *(images.column(name).to_pylist() for name in ("shard", "status", "instances")), strict=True
        ):
            statuses[shard][status] += 1
            instances[shard] += count
        for shard, by_status in statuses.items():
            self.counted[shard] = (dict(by_status), instances[shard])

    def _check_instances(self, part: Part, images: pa.Table) -> None:
        uri = self._uri("instances", part)
        expected = {
            number: count
            for number, count in zip(
                *(images.column(name).to_pylist() for name in ("image_id", "instances")), strict=True
            )
            if count
        }
        if part not in self._listed["instances"]:
            rows = sum(expected.values())
            self._find(
                uri, "missing", f"its shard is committed with {rows} instances", "redo" if rows else "write_empty"
            )
            return
        try:
            found, problem = self._read_instances(uri, _sizes_of(images))
        except DamagedFileError as error:
            self._find(uri, "damaged", reason_of(error), "redo" if expected else "write_empty")
            return
        if found != expected:
            said, held = sum(expected.values()), sum(found.values())
            self._find(
                uri,
                "mismatch",
                f"it holds {held} instances where its images have {said}, or instances of other images",
                "redo",
            )
        elif problem:
            self._find(uri, "damaged", problem, "redo")

    def _read_instances(self, uri: str, sizes: ImageSizes) -> tuple[Counter[int], str]:
        """Read a part of `instances`: its rows by image, and the first problem of their values ("" for none)."""
        found: Counter[int] = Counter()
        problem = ""
        with open_part(self._storage, uri, INSTANCES_SCHEMA) as part:
            for batch in part.iter_batches(MASKS_AT_ONCE):
                found.update(batch.column("image_id").to_pylist())
                problem = problem or find_problem(batch, sizes)
        return found, problem

    def _check_maps(self, table: TableName, part: Part, images: pa.Table) -> None:
        uri = self._uri(table, part)
        pixels = {row["image_id"]: row["width"] * row["height"] for row in images.to_pylist() if row["status"] == "ok"}
        repair: Repair = "redo" if pixels else "write_empty"
        if part not in self._listed[table]:
            self._find(uri, "missing", f"its shard is committed with {len(pixels)} images that are ok", repair)
            return
        try:
            found = _read(self._storage, uri, TABLE_SCHEMAS[table], ["image_id", "area"])
        except DamagedFileError as error:
            self._find(uri, "damaged", reason_of(error), repair)
            return
        areas: Counter[int] = Counter()
        for number, area in zip(*(found.column(name).to_pylist() for name in ("image_id", "area")), strict=True):
            areas[number] += area
        if not areas.keys() <= pixels.keys():
            self._find(uri, "mismatch", "it holds rows of images that its shard does not have, or that failed", "redo")
        elif any(
            areas[number] > most or (table == "semantic" and areas[number] < most) for number, most in pixels.items()
        ):
            self._find(uri, "mismatch", "the areas of an image's rows are not those of its pixels", "redo")

    def _check_unasked(self, table: TableName) -> None:
        for part in self._listed[table]:
            self._find(self._uri(table, part), "foreign", "the run was not asked for this table", "set_aside")

    def _check_replaced(self, images: set[Part]) -> None:
        """Name files of images that a compaction left."""
        named = {finding.file for finding in self.findings}
        for part in sorted(images):
            uri = self._uri("images", part)
            if uri not in named:
                self._find(
                    uri,
                    "leftover",
                    "a compacted file replaces it, and readers without htc find its rows twice",
                    "set_aside",
                )

    def _check_leftovers(self, table: TableName, parts: set[Part]) -> None:
        """Name files of another table that a compaction left, and those of shards that are not committed."""
        named = {finding.file for finding in self.findings}
        for part in sorted(parts):
            uri = self._uri(table, part)
            is_double = all(shard in self.committed for shard in part.shards)
            problem = (
                "a compacted file replaces it, and readers without htc find its rows twice"
                if is_double
                else "its shard is not committed, and readers without htc find its rows"
            )
            if self._uri("images", part) not in named:
                self._find(uri, "leftover", problem, "set_aside")


def said_by(counts: pa.Table) -> Iterator[tuple[int, int | None, ShardRows]]:
    """Yield what recorded counts say of each shard: the shard, its images (None when voided), and its rows."""
    columns = (counts.column(name).to_pylist() for name in ("shard", "images", "statuses", "instances"))
    for shard, images, statuses, instances in zip(*columns, strict=True):
        yield shard, images, ({each["status"]: each["images"] for each in statuses}, instances)


def _read(storage: Storage, uri: str, schema: pa.Schema, kept: list[str]) -> pa.Table:
    """Read all of a part, so that damage anywhere is found, and keep some columns."""
    with open_part(storage, uri, schema) as part:
        batches = [batch.select(kept) for batch in part.iter_batches()]
    return pa.Table.from_batches(batches, pa.schema([schema.field(name) for name in kept]))


def _sizes_of(images: pa.Table) -> dict[int, tuple[int, int]]:
    columns = (images.column(name).to_pylist() for name in ("image_id", "height", "width"))
    return {number: (height, width) for number, height, width in zip(*columns, strict=True) if height is not None}


def _compare(images: pa.Table, part: Part, planned: Mapping[int, Ids]) -> str:
    """Return what is wrong with the rows of a part; empty when each planned image has one row."""
    shards, ids = np.asarray(images.column("shard")), np.asarray(images.column("image_id"))
    unexpected = sorted(set(np.unique(shards).tolist()) - set(part.shards))
    if unexpected:
        return f"it holds rows of shard {unexpected[0]}, which is not in its name"
    for shard in part.shards:
        if shard not in planned:
            continue
        own = np.sort(ids[shards == shard])
        if len(own) != len(planned[shard]):
            return f"it holds {len(own)} rows of shard {shard}, of which {len(planned[shard])} images are planned"
        if not np.array_equal(own, planned[shard]):
            return f"its rows of shard {shard} are not of the images that are planned"
    return ""


def reason_of(error: DamagedFileError) -> str:
    """Return the clause of the error that says what is wrong with the file."""
    return str(error).split(" is damaged: ", 1)[-1].split("; `htc doctor", 1)[0]
