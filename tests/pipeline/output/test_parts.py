"""Which parts of a run count: each shard once, in a part of its own or compacted."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.output.parts import (
    Part,
    choose_parts,
    committed_parts,
    committed_parts_by_run,
    committed_shards,
    parse_part,
    part_uri,
)
from pipeline.storage.objects import ObjectInfo
from pipeline.storage.storage import Storage

COMPACTED = Part(0, 1, is_compacted=True)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("part-00007.parquet", Part(7, 7)),
        ("part-123456.parquet", Part(123456, 123456)),
        ("parts-00000-00099.parquet", Part(0, 99, is_compacted=True)),
        ("parts-00003-00003.parquet", Part(3, 3, is_compacted=True)),
        ("parts-00009-00003.parquet", None),
        ("part-1.parquet", None),
        ("part-00001.parquet.tmp", None),
        ("parts-00001.parquet", None),
    ],
)
def test_part_names_are_parsed_and_formatted(name: str, part: Part | None) -> None:
    assert parse_part(name) == part
    assert part is None or part.name == name


def test_a_compacted_part_replaces_those_of_its_shard_range() -> None:
    compacted = Part(1, 3, is_compacted=True)
    parts = [Part(4, 4), Part(2, 2), compacted, Part(0, 0), Part(3, 3), compacted]
    assert choose_parts(parts) == [Part(0, 0), compacted, Part(4, 4)]


def test_a_compacted_part_counts_all_its_shards(tmp_path: Path) -> None:
    for part in (Part(0, 1, is_compacted=True), Part(1, 1), Part(5, 5)):
        Storage().write(part_uri(str(tmp_path), "images", "r", part), b"")
    assert committed_shards(Storage(), str(tmp_path), "r") == {0, 1, 5}
    assert committed_shards(Storage(), str(tmp_path), "other") == set()


class Compacting(Storage):
    """Compacts the run `r` during the first listing, which misses the compacted part."""

    listings = 0

    def list(self, uri: str, glob: str | None = None, **options: Any) -> Iterator[ObjectInfo]:
        self._listed(uri)
        yield from (listed for listed in super().list(uri, glob, **options) if "parts-" not in listed.uri)

    def list_names(self, uri: str, prefix: str = "") -> Iterator[str]:
        self._listed(uri)
        yield from super().list_names(uri, prefix)

    def _listed(self, uri: str) -> None:
        self.listings += 1
        if self.listings > 1:
            return
        output = uri.partition("/images")[0]
        self.write(part_uri(output, "images", "r", COMPACTED), b"")
        for shard in COMPACTED.shards:
            self.delete(part_uri(output, "images", "r", Part(shard, shard)))


@pytest.fixture
def output(tmp_path: Path) -> str:
    """Two runs of two shards; the name of one is a prefix of the other's."""
    for run in ("r", "r2"):
        for shard in COMPACTED.shards:
            Storage().write(part_uri(str(tmp_path), "images", run, Part(shard, shard)), b"")
    return str(tmp_path)


def test_a_part_compacted_during_the_listing_is_found(output: str) -> None:
    storage = Compacting()
    assert committed_parts(storage, output, "r") == [COMPACTED]
    assert storage.listings == 2
    shards = committed_shards(Compacting(), output, "r")
    assert (shards, shards.compacted) == ({0, 1}, (COMPACTED,))


def test_a_part_compacted_during_the_listing_of_all_runs_is_found(output: str) -> None:
    storage = Compacting()
    found = committed_parts_by_run(storage, output, {"r": 2, "r2": 2, "new": 1})
    assert found == {"r": [COMPACTED], "r2": [Part(0, 0), Part(1, 1)], "new": []}
    # One listing of all runs, and one more of each run that lacks shards.
    assert storage.listings == 3
    assert committed_parts_by_run(storage, output, {"r2": 2}) == {"r2": [Part(0, 0), Part(1, 1)]}
    assert storage.listings == 4
