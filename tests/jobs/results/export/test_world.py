"""GeoJSON in world coordinates, against positions that are computed by hand."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
import shapely.geometry
from PIL import Image

from jobs.results.export import command, world
from jobs.results.export.world import Crs
from pipeline.errors import InputError, SpecError
from pipeline.inputs.georeference import Affine6, Georeference
from pipeline.inputs.image_ref import ReadVersion
from pipeline.job_spec.job import load_spec
from pipeline.output.commit import commit_shard
from pipeline.output.rows import build_image_row
from pipeline.runs.open import open_run
from pipeline.storage.storage import Storage
from tests.jobs.results.export.conftest import instance
from tests.support.builders.outputs import FINGERPRINT
from tests.support.htc import Htc

SIZE = (20, 30)
# EPSG's radius of the sphere of Web Mercator (method 1024).
RADIUS = 6_378_137.0
NORTH_UP: Affine6 = (0.5, 0.0, 500_000.0, 0.0, -0.5, 0.0)
Write = Callable[..., str]


def ring_mask() -> np.ndarray:
    """Rows 2 to 12 and columns 4 to 24, with a hole at rows 5 to 8 and columns 10 to 20."""
    mask = np.zeros(SIZE, bool)
    mask[2:12, 4:24] = True
    mask[5:8, 10:20] = False
    return mask


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(*places: tuple[str | None, Affine6] | None, mask: np.ndarray | None = None) -> str:
        """Write an output of an image for each place, with one instance."""
        photos = tmp_path / "photos"
        photos.mkdir()
        for number in range(len(places)):
            Image.new("RGB", SIZE[::-1]).save(photos / f"{number}.png")
        values = {"input.uri": str(photos), "output.uri": str(tmp_path / "out"), "compute.shard_images": 100}
        spec = load_spec(None, values)
        run = open_run(spec, FINGERPRINT, Storage(), run="night")
        images, instances = [], []
        for ref, place in zip(run.read_shard(0).images, places, strict=True):
            read = ReadVersion(1, ref.etag, False, None if place is None else Georeference(*place))
            images.append(build_image_row(ref, shard=0, model="m", size=SIZE, read=read, instances=1))
            instances.append(instance(ref, 0, ring_mask() if mask is None else mask))
        commit_shard(Storage(), run.output_uri, run.name, 0, images, instances)
        run.close()
        return run.output_uri

    return write


def export(output: str, crs: Crs = Crs.AUTO, where: str | None = None) -> dict[str, Any]:
    folder = Path(output).parent / f"geojson-{crs}"
    command.export_output(output, command.ExportRequest(command.Format.GEOJSON, folder, crs=crs, where=where))
    document: dict[str, Any] = json.loads((folder / "instances.geojson").read_text())
    return document


def corners(feature: dict[str, Any]) -> list[list[tuple[float, ...]]]:
    """The corners of the outer ring and of the hole, the first not repeated."""
    ((outer, hole),) = feature["geometry"]["coordinates"]
    assert outer[0] == outer[-1]
    assert shapely.LinearRing(outer).is_ccw
    assert not shapely.LinearRing(hole).is_ccw
    assert shapely.geometry.shape(feature["geometry"]).is_valid
    return [[tuple(point) for point in ring[:-1]] for ring in (outer, hole)]


def box(left: float, top: float, right: float, bottom: float) -> set[tuple[float, float]]:
    return {(left, top), (right, top), (right, bottom), (left, bottom)}


def near(found: list[tuple[float, ...]], expected: set[tuple[float, float]], within: float) -> bool:
    return len(found) == len(expected) and all(
        min(math.dist(each, other) for other in expected) < within for each in found
    )


@pytest.mark.parametrize("is_south_up", [False, True])
def test_longitude_and_latitude_stay_as_they_are(write: Write, is_south_up: bool) -> None:
    step = 0.25 if is_south_up else -0.25
    (feature,) = export(write(("EPSG:4326", (0.5, 0.0, 10.0, 0.0, step, 50.0))))["features"]
    outer, hole = corners(feature)
    assert set(outer) == box(12.0, 50 + 2 * step, 22.0, 50 + 12 * step)
    assert set(hole) == box(15.0, 50 + 5 * step, 20.0, 50 + 8 * step)
    values = feature["properties"]
    assert (values["image"], values["run"], values["category"]) == ("0.png", "night", "person")
    assert (values["area_px"], values["area_m2"], values["bbox_px"]) == (170, None, [4, 2, 20, 10])
    assert "area" not in values


def test_a_rotated_image_is_rotated_on_the_ground(write: Write) -> None:
    (feature,) = export(write(("EPSG:4326", (0.0, 0.25, 10.0, 0.5, 0.0, 20.0))))["features"]
    outer, hole = corners(feature)
    # x = 10 + row / 4, y = 20 + column / 2
    assert set(outer) == box(10.5, 22.0, 13.0, 32.0)
    assert set(hole) == box(11.25, 25.0, 12.0, 30.0)


def test_utm_is_transformed(write: Write) -> None:
    document = export(write(("EPSG:32633", NORTH_UP)))
    (feature,) = document["features"]
    assert "crs" not in document
    # On the equator at the central meridian of 15 degrees, whose scale is 0.9996: a degree of longitude is RADIUS * pi
    # / 180, one of latitude that by (1 - e * e).
    eastward = math.pi / 180 * RADIUS * 0.9996
    northward = eastward * (1 - 0.00669437999014)
    outer, hole = corners(feature)
    assert near(outer, box(15 + 2 / eastward, -1 / northward, 15 + 12 / eastward, -6 / northward), 3e-9)
    assert near(hole, box(15 + 5 / eastward, -2.5 / northward, 15 + 10 / eastward, -4 / northward), 3e-9)
    assert feature["properties"]["area_m2"] == 170 * 0.25


def test_web_mercator_is_transformed_and_has_no_area(write: Write) -> None:
    transform = (100.0, 0.0, 1e6, 0.0, -100.0, 6e6)
    (feature,) = export(write(("EPSG:3857", transform)))["features"]

    def place(x: float, y: float) -> tuple[float, float]:
        return math.degrees(x / RADIUS), math.degrees(math.atan(math.sinh(y / RADIUS)))

    (left, top), (right, bottom) = place(1e6 + 400, 6e6 - 200), place(1e6 + 2400, 6e6 - 1200)
    assert near(corners(feature)[0], box(left, top, right, bottom), 2e-9)
    assert feature["properties"]["area_m2"] is None


def test_beyond_the_180th_meridian_longitudes_go_on(write: Write) -> None:
    # Zone 60 ends there: 334 km east of its central meridian on the equator.
    (feature,) = export(write(("EPSG:32660", (1.0, 0.0, 833_978.0 - 15, 0.0, -1.0, 0.0))))["features"]
    longitudes = [x for x, _ in corners(feature)[0]]
    assert min(longitudes) < 180 < max(longitudes) < 180.001


def test_native_coordinates_name_their_system(write: Write) -> None:
    document = export(write(("EPSG:32633", NORTH_UP)), Crs.NATIVE)
    assert document["crs"] == {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32633"}}
    outer, hole = corners(document["features"][0])
    assert set(outer) == box(500_002.0, -1.0, 500_012.0, -6.0)
    assert set(hole) == box(500_005.0, -2.5, 500_010.0, -4.0)


def test_several_systems_are_one_in_wgs84_and_refused_in_native(write: Write) -> None:
    output = write(("EPSG:32633", NORTH_UP), ("EPSG:4326", (0.5, 0.0, 10.0, 0.0, -0.25, 50.0)))
    first, second = export(output)["features"]
    assert corners(first)[0][0][0] == pytest.approx(15, abs=1e-3)
    assert set(corners(second)[0]) == box(12.0, 49.5, 22.0, 47.0)
    with pytest.raises(SpecError, match=r"2 coordinate systems \(EPSG:32633, EPSG:4326\).*--crs wgs84"):
        export(output, Crs.NATIVE)
    document = export(output, Crs.NATIVE, where="uri LIKE '%/1.png'")
    assert set(corners(document["features"][0])[0]) == box(12.0, 49.5, 22.0, 47.0)
    assert "crs" not in document


def test_images_without_a_place_are_counted_and_left_out(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    output = write(("EPSG:32633", NORTH_UP), None, (None, NORTH_UP))
    (feature,) = export(output)["features"]
    assert feature["properties"]["image"] == "0.png"
    captured = capsys.readouterr()
    assert "left out (--crs pixels exports all): 2" in captured.err
    assert captured.out.startswith("1 instance of 1 image of run night")
    in_pixels = export(output, Crs.PIXELS)["features"]
    assert [each["properties"]["image"] for each in in_pixels] == ["0.png", "1.png", "2.png"]
    assert set(corners(in_pixels[0])[0]) == {(4.0, 2.0), (24.0, 2.0), (24.0, 12.0), (4.0, 12.0)}


def test_where_no_image_has_a_place_pixels_are_written_unless_others_are_asked_for(write: Write) -> None:
    output = write(None, None)
    assert len(export(output)["features"]) == 2
    for asked in (Crs.WGS84, Crs.NATIVE):
        with pytest.raises(SpecError, match="No image of run night says where it lies"):
            export(output, asked)


def test_parts_of_earlier_releases_have_no_place(write: Write) -> None:
    output = write(("EPSG:32633", NORTH_UP))
    (part,) = Path(output).glob("images/*/*.parquet")
    pq.write_table(pq.read_table(part, partitioning=None).drop_columns(["crs", "transform"]), part)
    assert set(corners(export(output)["features"][0])[0]) == {(4.0, 2.0), (24.0, 2.0), (24.0, 12.0), (4.0, 12.0)}


def test_what_has_no_longitude_is_left_out_and_counted(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    # PROJ has no place for points this far from the central meridian.
    document = export(write(("EPSG:32633", (0.5, 0.0, 1e12, 0.0, -0.5, 1e12)), ("EPSG:32633", NORTH_UP)))
    assert [each["properties"]["image"] for each in document["features"]] == ["1.png"]
    assert "without a longitude and latitude, left out: 1" in capsys.readouterr().err


def test_an_unknown_system_is_named(write: Write) -> None:
    world._known.cache_clear()
    with pytest.raises(InputError, match=r"EPSG:29999 is not known .*--crs native"):
        export(write(("EPSG:29999", NORTH_UP)))


def test_without_the_package_native_coordinates_are_the_way_out(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    output = write(("EPSG:32633", NORTH_UP))
    for name in ("rasterio", "rasterio.warp"):
        monkeypatch.setitem(sys.modules, name, None)
    world._square_metres.cache_clear()
    with pytest.raises(SpecError, match=r"EPSG:32633 .*pip install 'htc-batch\[geo\]'.*--crs native"):
        export(output)
    (feature,) = export(output, Crs.NATIVE)["features"]
    assert set(corners(feature)[0]) == box(500_002.0, -1.0, 500_012.0, -6.0)
    assert feature["properties"]["area_m2"] is None
    world._square_metres.cache_clear()


def test_batches_do_not_mix_images(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "BATCH_INSTANCES", 2)
    monkeypatch.setattr("jobs.results.export.polygons.TRACED_MASKS", 1)
    places = [("EPSG:32633", (0.5, 0.0, 500_000.0 + 100 * n, 0.0, -0.5, 0.0)) for n in range(3)]
    output = write(*places, ("EPSG:4326", (0.5, 0.0, 10.0, 0.0, -0.25, 50.0)), places[0])
    found = [min(x for x, _ in corners(each)[0]) for each in export(output)["features"]]
    steps = [(x - 15) * math.pi / 180 * RADIUS * 0.9996 for x in found]
    assert [round(step) for step in (*steps[:3], steps[4])] == [2, 102, 202, 2]
    assert found[3] == 12.0


def test_the_command_takes_the_system_and_refuses_it_for_other_formats(write: Write, htc: Htc, tmp_path: Path) -> None:
    output = write(("EPSG:32633", NORTH_UP))
    code, _, error = htc("export", output, "--format", "coco", "--to", str(tmp_path / "coco"), "--crs", "wgs84")
    assert (code, error.strip()) == (2, "--crs is for the format geojson; coco has pixels.")
    code, text, _ = htc("export", output, "--format", "geojson", "--to", str(tmp_path / "a"), "--crs", "native")
    assert code == 0
    assert text.startswith("1 instance of 1 image")


def test_an_empty_mask_has_no_polygon(write: Write) -> None:
    (feature,) = export(write(("EPSG:32633", NORTH_UP), mask=np.zeros(SIZE, bool)))["features"]
    assert feature["geometry"] == {"type": "MultiPolygon", "coordinates": []}
    assert feature["properties"]["area_m2"] == 0
