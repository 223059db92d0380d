"""Images that are cut into tiles, through a worker: one row for each image, objects once, bounded memory."""

import itertools
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from htc_model.masks.rle import encode_bitmap
from htc_model.masks.tile_box import TileBox
from htc_model.structures import FrameDetections, ImageBatch, RawDetections
from pipeline.errors import TransientStorageError
from pipeline.job_spec.tiles import TilesSection
from pipeline.messages import Hang
from pipeline.models.checked import CheckedModel
from pipeline.worker import tiled_image
from pipeline.worker.batch_encoding import BatchEncoder
from pipeline.worker.tiling import TileGrid
from pipeline.worker.watchdog import Watchdog
from tests.support.fakes.painted import PaintedFrames, PaintedModel, Rectangle, config_for, paint, write_png
from tests.support.fakes.shard_bench import Bench

SIDE = 64
TILES = TilesSection.model_validate({"side": SIDE, "overlap": 16})
# Inside one tile, over one seam, over four tiles, in an overlap alone, and two that touch on a seam.
OBJECTS = [
    (5, 5, 20, 20),
    (40, 10, 90, 30),
    (44, 44, 72, 70),
    (50, 80, 60, 90),
    (100, 100, 112, 120),
    (112, 100, 124, 120),
]
SIZE = (130, 150)


def bench_of(folder: Path, model: PaintedModel | CheckedModel | None = None, **options: object) -> Bench:
    return Bench(folder, model or PaintedModel(config_for(SIDE)), tiles=TILES, **options)  # type: ignore[arg-type]


def boxes_of(rows: Sequence[dict[str, object]]) -> list[Rectangle]:
    """Return the boxes around the masks of some rows of `instances`, sorted."""
    found = []
    for row in rows:
        x, y, width, height = coco_mask.toBbox({**row["mask"], "counts": row["mask"]["counts"].encode()})  # type: ignore
        assert row["area"] == width * height
        found.append((int(x), int(y), int(x + width), int(y + height)))
    return sorted(found)


def test_objects_come_out_once_and_whole(tmp_path: Path) -> None:
    path = write_png(tmp_path / "in" / "a.png", paint(SIZE, OBJECTS))
    bench = bench_of(tmp_path)
    report = bench.process([path])
    assert boxes_of(bench.instance_rows()) == sorted(OBJECTS)
    (row,) = bench.image_rows()
    assert (row["status"], row["height"], row["width"], row["instances"]) == ("ok", *SIZE, len(OBJECTS))
    assert (report.images, bench.done) == (1, [1])
    assert set(bench.model.sizes) == {(SIDE, SIDE)}  # type: ignore[union-attr]
    assert [row["instance"] for row in bench.instance_rows()] == list(range(len(OBJECTS)))


def test_round_objects_of_a_model_of_ones_own_have_their_very_pixels(tmp_path: Path) -> None:
    """Bitmaps of whole tiles are encoded tile by tile, and joined like all masks."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    ring = (abs(np.hypot(rows - 65, columns - 75) - 45) < 9).astype(np.uint8)
    disc = (np.hypot(rows - 65, columns - 75) < 30).astype(np.uint8)
    pixels = np.stack([10 * ring + 20 * disc] * 3, axis=2)
    bench = bench_of(tmp_path, CheckedModel(PaintedFrames()))
    bench.process([write_png(tmp_path / "in" / "a.png", pixels)])
    found = {row["mask"]["counts"].encode() for row in bench.instance_rows()}  # type: ignore[index]
    assert found == {encode_bitmap(ring)["counts"], encode_bitmap(disc)["counts"]}


class PartlyMasked(PaintedFrames):
    """Masks only in tiles that hold something; `drops` takes them from one tile that does."""

    def __init__(self, *, drops: bool) -> None:
        self.drops = drops

    def infer(self, batch: ImageBatch) -> list[FrameDetections | RawDetections]:  # type: ignore[override]
        return [self._without_masks(found) for found in super().infer(batch)]

    def _without_masks(self, found: FrameDetections) -> FrameDetections | RawDetections:
        count = len(found.scores)
        if count > (1 if self.drops else 0):
            return found
        boxes = torch.tensor([[0.0, 0.0, 5.0, 5.0]] * count).reshape(-1, 4)
        return RawDetections(boxes, found.scores, found.labels, None, found.original_size)


def test_tiles_without_instances_need_no_masks_and_others_do(tmp_path: Path) -> None:
    objects = [(2, 2, 9, 9), (20, 2, 29, 9), (140, 2, 147, 9)]
    path = write_png(tmp_path / "in" / "a.png", paint((SIDE, 200), objects))
    bench = bench_of(tmp_path / "sparse", CheckedModel(PartlyMasked(drops=False)))
    bench.process([path])
    assert boxes_of(bench.instance_rows()) == objects
    bench = bench_of(tmp_path / "mixed", CheckedModel(PartlyMasked(drops=True)))
    bench.process([path])
    (row,) = bench.image_rows()
    assert (row["status"], bench.instance_rows()) == ("failed", [])
    assert row["error"] == (
        "the model painted returned no one result: the instances of some tiles have masks, and those of others have "
        "none"
    )


def test_tiles_whose_batches_are_encoded_together_as_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = bench_of(tmp_path, batch_size=4)
    encoder = BatchEncoder(torch.device("cpu"))
    monkeypatch.setattr(bench.resources.segmenter, "_encoder", encoder)
    bench.process([write_png(tmp_path / "in" / "a.png", paint(SIZE, OBJECTS))])
    encoder.close()
    assert boxes_of(bench.instance_rows()) == sorted(OBJECTS)


def test_an_image_that_fits_a_tile_gives_the_plain_result(tmp_path: Path) -> None:
    paths = [write_png(tmp_path / "in" / f"{n}.png", paint((SIDE, SIDE - n), OBJECTS[:2])) for n in range(3)]
    plain, tiled = Bench(tmp_path / "plain", PaintedModel(config_for(SIDE))), bench_of(tmp_path / "tiled")
    plain.process(paths)
    tiled.process(paths)
    assert tiled.instance_rows() == plain.instance_rows()
    assert tiled.image_rows() == plain.image_rows()


@pytest.mark.parametrize("size", [(SIDE + 1, SIDE), (SIDE, SIDE + 1), (SIDE + 1, SIDE + 1), (20, 3 * SIDE)])
def test_remainders_of_a_pixel_and_low_images(tmp_path: Path, size: tuple[int, int]) -> None:
    objects = [(3, 2, 17, 19), (size[1] - 9, size[0] - 8, size[1], size[0])]
    bench = bench_of(tmp_path)
    bench.process([write_png(tmp_path / "in" / "a.png", paint(size, objects))])
    assert boxes_of(bench.instance_rows()) == sorted(objects)


def test_tiles_of_several_images_and_shards_share_batches(tmp_path: Path) -> None:
    paths = [write_png(tmp_path / "in" / f"{n}.png", paint((SIDE, 112), OBJECTS[:2])) for n in range(4)]
    model = PaintedModel(config_for(SIDE))
    bench = bench_of(tmp_path, model, batch_size=8)
    bench.process(paths)
    assert model.batch_sizes == [8]
    assert [row["status"] for row in bench.image_rows()] == ["ok"] * 4


def test_tiles_and_whole_images_of_one_shard(tmp_path: Path) -> None:
    sizes = [(30, 64), SIZE, (64, 64), (200, 90), (10, 64)]
    objects = [(2, 2, 9, 9), (50, 12, 90, 110)]
    paths = [write_png(tmp_path / "in" / f"{n}.png", paint(size, objects)) for n, size in enumerate(sizes)]
    bench = bench_of(tmp_path, batch_size=3)
    bench.process(paths)
    assert [(row["height"], row["width"]) for row in bench.image_rows()] == sizes
    counts = [row["instances"] for row in bench.image_rows()]
    assert counts == [2, 2, 2, 2, 1]


def test_a_failing_tile_fails_its_image_alone(tmp_path: Path) -> None:
    def refuse(colors: set[tuple[int, int, int]]) -> None:
        if any(red == 9 for red, _, _ in colors):
            raise ZeroDivisionError("on purpose")

    good = write_png(tmp_path / "in" / "good.png", paint(SIZE, OBJECTS))
    bad = write_png(tmp_path / "in" / "bad.png", paint(SIZE, OBJECTS) + paint(SIZE, [(140, 120, 150, 130)], red=9))
    bench = bench_of(tmp_path, PaintedModel(config_for(SIDE), refuse))
    report = bench.process([bad, good])
    first, second = bench.image_rows()
    assert first["status"] == "failed"
    assert "tile 9 of 9 (64 x 64 at column 86, row 66)" in str(first["error"])
    assert first["instances"] == 0
    assert second["status"] == "ok"
    assert boxes_of(bench.instance_rows()) == sorted(OBJECTS)
    assert len(report.failures) == 1
    assert report.failures[0].traceback is not None


def test_a_tile_that_does_not_fit_the_memory_alone_is_named(tmp_path: Path) -> None:
    def run_out(colors: set[tuple[int, int, int]]) -> None:
        raise torch.OutOfMemoryError("pretended")

    bench = bench_of(tmp_path, PaintedModel(config_for(SIDE), run_out))
    bench.process([write_png(tmp_path / "in" / "a.png", paint(SIZE, OBJECTS))])
    (row,) = bench.image_rows()
    assert row["status"] == "failed"
    assert "tile 1 of 9" in str(row["error"])
    assert "ran out of memory on this 64 x 64 tile alone" in str(row["error"])


def test_tiles_without_data_are_skipped_and_masks_cut(tmp_path: Path) -> None:
    alpha = np.full(SIZE, 255, np.uint8)
    alpha[:, 80:] = 0
    bench = bench_of(tmp_path)
    bench.process([write_png(tmp_path / "in" / "a.png", paint(SIZE, [(10, 10, 30, 30)]), alpha)])
    # The fill colour of the transparent part is an object to the fake model, and cut off.
    assert boxes_of(bench.instance_rows()) == [(10, 10, 30, 30)]
    # Of three columns of tiles, from 0, 48 and 86 on, the last shows nothing.
    assert len(bench.model.sizes) == 6  # type: ignore[union-attr]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_geotiff_is_cut_by_windows_and_keeps_its_place(tmp_path: Path) -> None:
    """It is larger than both limits of whole images, and never decoded as a whole."""
    rasterio = pytest.importorskip("rasterio", reason="the extra `geo` is not installed")
    pixels = paint(SIZE, [(10, 10, 30, 30), (44, 44, 72, 70)])
    pixels[:, 80:] = 1
    path = tmp_path / "in" / "a.tif"
    path.parent.mkdir()
    layout = {
        "tiled": True,
        "blockxsize": 16,
        "blockysize": 16,
        "compress": "deflate",
        "nodata": 1,
        "photometric": "RGB",
    }
    place = rasterio.Affine(0.5, 0, 1000, 0, -0.5, 2000)
    with rasterio.open(
        path, "w", driver="GTiff", height=SIZE[0], width=SIZE[1], count=3, dtype="uint8", crs="EPSG:32632",
        transform=place, BIGTIFF="YES", **layout,
    ) as file:  # fmt: skip
        file.write(pixels.transpose(2, 0, 1))
    bench = bench_of(tmp_path, max_pixels=5000, max_bytes=100)
    bench.process([path])
    (row,) = bench.image_rows()
    assert (row["status"], row["height"], row["width"]) == ("ok", *SIZE), row["error"]
    assert boxes_of(bench.instance_rows()) == [(10, 10, 30, 30), (44, 44, 72, 70)]
    assert len(bench.model.sizes) == 6  # type: ignore[union-attr]
    assert (row["crs"], row["transform"]) == ("EPSG:32632", [0.5, 0, 1000, 0, -0.5, 2000])
    assert row["bytes"] == path.stat().st_size


def test_an_image_without_any_data_is_ok_and_empty(tmp_path: Path) -> None:
    bench = bench_of(tmp_path)
    bench.process([write_png(tmp_path / "in" / "a.png", paint(SIZE, OBJECTS), np.zeros(SIZE, np.uint8))])
    (row,) = bench.image_rows()
    assert (row["status"], row["instances"], bench.model.sizes) == ("ok", 0, [])  # type: ignore[union-attr]
    assert bench.done == [1]


def test_reading_fails_between_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage that fails ends the attempt, and on the last one the image; the next shard is not affected."""
    path = write_png(tmp_path / "in" / "a.png", paint(SIZE, OBJECTS))
    whole = write_png(tmp_path / "in" / "b.png", paint((20, 64), OBJECTS[:1]))
    bench = bench_of(tmp_path)
    read = tiled_image.TiledImage._read_tile
    broken = True

    def break_off(self: tiled_image.TiledImage, box: TileBox) -> object:
        if broken and box.top > 0:
            raise TransientStorageError("the store is gone")
        return read(self, box)

    monkeypatch.setattr(tiled_image.TiledImage, "_read_tile", break_off)
    with pytest.raises(TransientStorageError):
        bench.process([path, whole])
    bench.process([path, whole], is_last_attempt=True)
    first, second = bench.image_rows()
    assert (first["status"], second["status"]) == ("failed", "ok")
    assert "tile 4 of 9" in str(first["error"])
    broken = False
    bench.process([path, whole], index=1)
    assert [row["status"] for row in bench.image_rows(1)] == ["ok", "ok"]
    assert bench.resources.pixels.held == 0
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tiles")]


def test_few_tiles_are_in_memory_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tile_bytes = 3 * SIDE * SIDE
    monkeypatch.setattr(tiled_image, "AHEAD_BYTES", 2 * tile_bytes)
    held: list[int] = []
    bench = bench_of(
        tmp_path, PaintedModel(config_for(SIDE), lambda colors: held.append(bench.resources.pixels.held)), batch_size=3
    )
    size = (700, 90)
    bench.process([write_png(tmp_path / "in" / "a.png", paint(size, [(10, 10, 30, 650)]))])
    # The image, which is decoded whole, two tiles ahead and a batch of three.
    assert max(held) <= 3 * size[0] * size[1] + 5 * tile_bytes
    assert bench.resources.pixels.held == 0
    assert boxes_of(bench.instance_rows()) == [(10, 10, 30, 650)]


def test_two_shards_of_tiled_images_with_too_little_memory_for_one(tmp_path: Path) -> None:
    paths = [write_png(tmp_path / "in" / f"{n}.png", paint(SIZE, OBJECTS)) for n in range(6)]
    bench = bench_of(tmp_path, ahead_bytes=1000, cpus=2, batch_size=4)
    errors: list[BaseException] = []

    def process(index: int) -> None:
        try:
            bench.process(paths[3 * index : 3 * index + 3], index=index)
        except BaseException as error:  # noqa: BLE001 - carried over to the test, whatever it is
            errors.append(error)

    threads = [threading.Thread(target=process, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert errors == []
    for index in (0, 1):
        assert [row["instances"] for row in bench.image_rows(index)] == [len(OBJECTS)] * 3


def test_max_pixels_is_for_images_that_are_not_cut(tmp_path: Path) -> None:
    large = write_png(tmp_path / "in" / "large.png", paint(SIZE, OBJECTS))
    small = write_png(tmp_path / "in" / "small.png", paint((64, 64), OBJECTS[:1]))
    bench = bench_of(tmp_path, max_pixels=3000)
    bench.process([large, small])
    first, second = bench.image_rows()
    assert (first["status"], second["status"]) == ("ok", "too_large")
    assert boxes_of(bench.instance_rows()) == sorted(OBJECTS)


def test_all_tiles_have_one_size_and_cover_the_image() -> None:
    for height, width in [(1, 200), (64, 65), (112, 113), (1000, 300)]:
        grid = TileGrid.plan(height, width, TILES)
        covered = np.zeros((height, width), bool)
        for box in grid:
            covered[box.top : box.bottom, box.left : box.right] = True
            assert (box.height, box.width) == (min(SIDE, height), min(SIDE, width))
        assert covered.all()
        assert len({tuple(box) for box in grid}) == len(grid)
        for begins in (grid.tops, grid.lefts):
            assert all(0 < after - before <= SIDE - 16 for before, after in itertools.pairwise(begins))


def test_a_hang_of_several_tiles_names_their_image_once() -> None:
    now = 0.0
    dog = Watchdog(10, clock=lambda: now)
    with dog.on_images([(3, 5), (3, 5), (3, 5)], "the model"):
        now = 31.0
        hang = dog.hang()
    assert isinstance(hang, Hang)
    assert (hang.index, hang.positions, hang.is_shared) == (3, (5,), False)
