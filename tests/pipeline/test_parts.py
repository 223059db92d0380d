"""Which files of a run count: each shard once, alone or compacted with others."""

from pathlib import Path

import pytest

from pipeline.parts import Part, choose_parts, committed_parts, parse_part, part_uri
from pipeline.storage import Storage
from pipeline.tables import committed_shards


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
def test_names_are_read_and_written(name: str, part: Part | None) -> None:
    assert parse_part(name) == part
    assert part is None or part.name == name


def test_a_compacted_part_stands_for_those_inside_it() -> None:
    stretch = Part(1, 3, is_compacted=True)
    parts = [Part(4, 4), Part(2, 2), stretch, Part(0, 0), Part(3, 3), stretch]
    assert choose_parts(parts) == [Part(0, 0), stretch, Part(4, 4)]


def test_a_compacted_part_counts_all_its_shards(tmp_path: Path) -> None:
    for part in (Part(0, 1, is_compacted=True), Part(1, 1), Part(5, 5)):
        Storage().write(part_uri(str(tmp_path), "images", "r", part), b"")
    assert committed_shards(Storage(), str(tmp_path), "r") == {0, 1, 5}
    assert committed_shards(Storage(), str(tmp_path), "other") == set()


def test_what_is_compacted_while_one_looks_is_not_missed(tmp_path: Path) -> None:
    """The first look sees what is there before the stretch is written and after its shards are gone."""

    class Compacting(Storage):
        looks = 0

        def list(self, uri: str, glob: str | None = None):  # type: ignore[no-untyped-def]
            self.looks += 1
            if self.looks == 1:
                yield from ()
                self.write(part_uri(str(tmp_path), "images", "r", Part(0, 1, is_compacted=True)), b"")
                for shard in (0, 1):
                    self.delete(part_uri(str(tmp_path), "images", "r", Part(shard, shard)))
                return
            yield from super().list(uri, glob)

    for shard in (0, 1):
        Storage().write(part_uri(str(tmp_path), "images", "r", Part(shard, shard)), b"")
    assert committed_parts(Compacting(), str(tmp_path), "r") == [Part(0, 1, is_compacted=True)]
