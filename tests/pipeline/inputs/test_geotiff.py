"""Where an image lies: read from a GeoTIFF's tags as rasterio reads it, and carried into the rows of `images`."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from affine import Affine
from rasterio.crs import CRS
from rasterio.io import MemoryFile

from jobs.maintenance.iceberg.schema import iceberg_schema
from jobs.results.query import query_output
from pipeline.inputs.byte_ranges import PayloadRanges
from pipeline.inputs.decode import decode_image
from pipeline.inputs.georeference import Georeference
from pipeline.inputs.geotiff import georeference_of, read_georeference, turn_upright
from pipeline.inputs.image_ref import ImageRef, ReadVersion
from pipeline.inputs.windows import open_windows
from pipeline.output.commit import commit_shard, images_part
from pipeline.output.merge import merge_parts
from pipeline.output.results import open_results
from pipeline.output.rows import build_image_row
from pipeline.output.run_record import RunRecord, write_record
from pipeline.output.schema import IMAGES_SCHEMA
from pipeline.storage.storage import Storage
from tests.support.builders.images import encoded, gradient
from tests.support.builders.tiff_writer import Layout, write_tiff
from tests.support.fakes.shard_bench import Bench

HEIGHT, WIDTH = 30, 40
UTM = Affine(0.5, 0, 500_000, 0, -0.25, 5_000_000)
LAEA = "+proj=laea +lat_0=10 +lon_0=20 +units=m +datum=WGS84"


def geotiff(**options: Any) -> bytes:
    shape = {"driver": "GTiff", "count": 3, "height": HEIGHT, "width": WIDTH, "dtype": "uint8", "photometric": "RGB"}
    with MemoryFile() as memory:
        with memory.open(**shape, **options) as out:
            out.write(np.moveaxis(np.asarray(gradient(HEIGHT, WIDTH)), -1, 0))
        return bytes(memory.getbuffer())


@pytest.mark.parametrize(
    "options",
    [
        {"crs": "EPSG:32633", "transform": UTM},
        {"crs": "EPSG:4326", "transform": Affine(0.1, 0, 10, 0, 0.1, 40)},
        {"crs": "EPSG:3857", "transform": Affine(1.7, 1, 5, 1, -1.7, 6)},
        {"crs": "EPSG:32633", "transform": UTM, "BIGTIFF": "YES", "ENDIANNESS": "BIG"},
        {"crs": CRS.from_proj4(LAEA), "transform": UTM},
        {"crs": "ESRI:102003", "transform": UTM},
        {"transform": UTM},
    ],
    ids=["north up", "south up", "rotated", "big", "described", "another authority", "no system"],
)
def test_the_tags_are_read_as_rasterio_reads_them(options: dict[str, Any]) -> None:
    payload = geotiff(**options)
    with MemoryFile(payload) as memory, memory.open() as theirs:
        system = theirs.crs.to_string() if theirs.crs else None
        assert read_georeference(payload) == Georeference(system, tuple(theirs.transform)[:6])


def test_what_does_not_say_where_it_lies_has_no_georeference() -> None:
    assert read_georeference(encoded(gradient(20, 20), "TIFF")) is None
    assert read_georeference(encoded(gradient(20, 20), "PNG")) is None


class Page:
    """A page with these tags."""

    def __init__(self, tags: dict[int, Any]) -> None:
        self.tags = self
        self._tags = tags
        self.imagelength, self.imagewidth = HEIGHT, WIDTH

    def valueof(self, number: int, default: Any = None) -> Any:
        return self._tags.get(number, default)


def place_of(tags: dict[int, Any], *, raster_type: int = 1) -> Georeference | None:
    """Where a page of UTM zone 33 with these tags lies."""
    keys = [(1024, 1), (1025, raster_type), (3072, 32633)]
    directory = (1, 1, 0, len(keys), *(number for key, value in keys for number in (key, 0, 1, value)))
    return georeference_of(Page({34735: directory} | tags), PayloadRanges(b""))


SCALE = {33550: (2.0, 3.0, 0.0), 33922: (0.0, 0.0, 0.0, 100.0, 200.0, 0.0)}


def test_scale_and_tie_point() -> None:
    assert place_of(SCALE) == Georeference("EPSG:32633", (2.0, 0.0, 100.0, 0.0, -3.0, 200.0))
    moved = SCALE | {33922: (10.0, 5.0, 0.0, 100.0, 200.0, 0.0)}
    assert place_of(moved) == Georeference("EPSG:32633", (2.0, 0.0, 80.0, 0.0, -3.0, 215.0))


def test_the_middle_of_a_pixel_is_moved_to_its_corner() -> None:
    assert place_of(SCALE, raster_type=2) == Georeference("EPSG:32633", (2.0, 0.0, 99.0, 0.0, -3.0, 201.5))


@pytest.mark.parametrize(
    "tags",
    [
        {33922: (0.0,) * 24},
        SCALE | {33550: (0.0, 0.0, 0.0)},
        SCALE | {33550: (float("nan"), 1.0, 0.0)},
        SCALE | {33550: (1e308, 1.0, 0.0), 33922: (1e308, 0.0, 0.0, -1e308, 0.0, 0.0)},
        {34264: (1.0, 2.0, 0.0, 5.0, 2.0, 4.0, 0.0, 6.0, *(0.0,) * 8)},
        {34264: (1.0, 2.0)},
        {33550: b"no numbers", 33922: "text"},
    ],
    ids=["control points", "no size", "not a number", "overflow", "a line", "short", "of another type"],
)
def test_tags_that_place_nothing_are_ignored(tags: dict[int, Any]) -> None:
    assert place_of(tags) is None


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_transform_is_turned_with_the_image(orientation: int) -> None:
    values = np.arange(6 * 9 * 3).reshape(6, 9, 3).astype(np.uint8)
    upright = decode_image(write_tiff(values, Layout(2, orientation=orientation)))
    a, b, c, d, e, f = turn_upright((2.0, 0.5, 100.0, 0.25, -3.0, 200.0), orientation, (6, 9))
    for row, column in ((0, 0), (2, 7), (5, 3)):
        found = np.argwhere((upright == values[row, column]).all(axis=-1))[0]
        x, y = found[1] + 0.5, found[0] + 0.5
        assert (a * x + b * y + c, d * x + e * y + f) == pytest.approx(
            (2 * (column + 0.5) + 0.5 * (row + 0.5) + 100, 0.25 * (column + 0.5) - 3 * (row + 0.5) + 200)
        )


def test_without_the_package_only_a_system_without_a_number_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    numbered, described = (geotiff(crs=crs, transform=UTM) for crs in ("EPSG:32633", CRS.from_proj4(LAEA)))
    monkeypatch.setitem(sys.modules, "rasterio", None)
    assert read_georeference(numbered) == Georeference("EPSG:32633", tuple(UTM)[:6])
    assert read_georeference(described) == Georeference(None, tuple(UTM)[:6])


def test_windows_have_the_same_georeference(tmp_path: Path) -> None:
    payload = geotiff(crs="EPSG:32633", transform=UTM)
    (tmp_path / "a.tif").write_bytes(payload)
    image, read = open_windows(ImageRef(str(tmp_path / "a.tif")), Storage())
    assert image.georeference == read.georeference == read_georeference(payload)


# --- in the tables ---------------------------------------------------------------------------------------------------

PLACE = Georeference("EPSG:32633", (0.5, 0.0, 500_000.0, 0.0, -0.25, 5_000_000.0))
REF = ImageRef("/in/a.tif", bytes=10, etag="then")


def test_a_worker_writes_where_images_lie(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.tif").write_bytes(geotiff(crs="EPSG:32633", transform=UTM))
    (tmp_path / "in" / "b.png").write_bytes(encoded(gradient(30, 40), "PNG"))
    (tmp_path / "in" / "c.tif").write_bytes(geotiff(crs="EPSG:32633", transform=UTM)[:200])
    bench = Bench(tmp_path)
    bench.process(sorted((tmp_path / "in").iterdir()))
    rows = {Path(row["uri"]).name: row for row in bench.image_rows()}
    assert (rows["a.tif"]["crs"], rows["a.tif"]["transform"]) == ("EPSG:32633", list(UTM)[:6])
    assert (rows["b.png"]["status"], rows["b.png"]["crs"], rows["b.png"]["transform"]) == ("ok", None, None)
    assert (rows["c.tif"]["status"], rows["c.tif"]["crs"]) == ("unreadable", None)


def test_parts_with_and_without_the_columns_are_read_together(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "out")
    write_record(Storage(), output, RunRecord("r", "2026-11-23", {}, {}, {}, {}, {"image_count": 2, "shard_count": 2}))
    read = ReadVersion(10, "then", False, PLACE)
    for shard in range(2):
        commit_shard(Storage(), output, "r", shard, [build_image_row(REF, shard=shard, model="m", read=read)], [])
    parts = [images_part(output, "r", shard) for shard in range(2)]
    pq.write_table(pq.read_table(parts[0], partitioning=None).drop_columns(["crs", "transform"]), parts[0])
    expected = [(None, None), (PLACE.crs, list(PLACE.transform))]
    rows = open_results(output).images().to_pylist()
    assert [(row["crs"], row["transform"]) for row in rows] == expected
    query_output(output, "SELECT shard, transform[3] AS x FROM images WHERE crs = 'EPSG:32633'", output_format="csv")
    assert capfd.readouterr().out.split() == ["shard,x", "1,500000.0"]
    merged = pq.read_table(pa.BufferReader(merge_parts(Storage(), parts, "images").payload)).to_pylist()
    assert [(row["crs"], row["transform"]) for row in merged] == expected


def test_the_catalog_has_the_columns() -> None:
    schema = iceberg_schema(IMAGES_SCHEMA)
    assert str(schema.find_type("crs")) == "string"
    assert str(schema.find_type("transform")) == "list<double>"
