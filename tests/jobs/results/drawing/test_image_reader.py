"""The reader of a run's images: only what the run segmented, from wherever it is."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs.results.drawing import DrawnInstance, ImageReader, Style, draw_run_image, grey_tile, image_reader
from pipeline.inputs.decode import decode_image
from pipeline.output.results import open_results
from pipeline.storage.config import StorageSection
from pipeline.storage.storage import Storage
from tests.support.builders.drawn_outputs import make_drawn_output, write_drawn_run
from tests.support.builders.images import encoded, gradient
from tests.support.servers.s3_server import S3Server

PHOTO = encoded(gradient(60, 90), "PNG")
OTHER = encoded(gradient(60, 90).rotate(180), "PNG")


def rows_of(output: Any) -> list[dict[str, Any]]:
    return open_results(output.uri).images().to_pylist()


def test_an_image_is_read_as_the_run_read_it(tmp_path: Path) -> None:
    output = make_drawn_output(tmp_path, {"a.png": PHOTO, "broken.png": b"no image"})
    reader = ImageReader(open_results(output.uri))
    good, broken = (reader.read(row) for row in sorted(rows_of(output), key=lambda row: row["uri"]))
    assert good.pixels is not None
    np.testing.assert_array_equal(good.pixels, decode_image(PHOTO))
    assert (good.problem, good.width, good.height) == (None, 90, 60)
    assert broken.pixels is None
    assert broken.problem is not None
    assert broken.problem.startswith("unreadable: ")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda path: path.unlink(), "the image does not exist any more"),
        (lambda path: path.write_bytes(OTHER), "the image has changed since the run"),
        (lambda path: path.write_bytes(b""), "the image has changed since the run"),
    ],
)
def test_an_image_that_is_gone_or_another_is_a_tile_of_its_size(
    tmp_path: Path, change: Callable[[Path], object], reason: str
) -> None:
    output = make_drawn_output(tmp_path, {"a.png": PHOTO})
    change(output.photos / "a.png")
    (row,) = rows_of(output)
    read = ImageReader(open_results(output.uri)).read(row)
    assert read.pixels is None
    assert read.problem == reason
    found = [DrawnInstance("dog", 0.9, (10, 10, 50, 30))]
    tile = draw_run_image(read, found)
    np.testing.assert_array_equal(tile, draw_run_image(read, []))
    np.testing.assert_array_equal(tile, grey_tile(90, 60, reason))
    assert draw_run_image(read, found, Style(long_side=300)).shape == (200, 300, 3)


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        # A store that reports no versions: the size in bytes, or in pixels, decides.
        ({"etag": None, "bytes": 7}, "it had 7 bytes and has"),
        ({"etag": None, "bytes": None, "width": 60, "height": 90}, "it had 60 x 90 pixels and has 90 x 60"),
        ({"etag": None, "bytes": None, "width": 6, "height": 9}, "it had 6 x 9 pixels and has more"),
    ],
)
def test_without_versions_sizes_decide(tmp_path: Path, columns: dict[str, Any], reason: str) -> None:
    output = make_drawn_output(tmp_path, {"a.png": PHOTO})
    (row,) = rows_of(output)
    reader = ImageReader(open_results(output.uri))
    read = reader.read({**row, **columns})
    assert read.pixels is None
    assert read.problem is not None
    assert reason in read.problem
    assert reader.read({**row, "etag": None, "bytes": None}).problem is None


def test_an_image_of_a_failed_row_is_shown_with_the_reason(tmp_path: Path) -> None:
    output = make_drawn_output(tmp_path, {"a.png": PHOTO})
    (row,) = rows_of(output)
    failed = {**row, "status": "failed", "error": "the model ran out of memory", "width": None, "height": None}
    read = ImageReader(open_results(output.uri)).read(failed)
    assert read.pixels is not None
    assert read.problem == "failed: the model ran out of memory"
    drawn = draw_run_image(read, [], Style(long_side=900))
    plain = draw_run_image(ImageReader(open_results(output.uri)).read(row), [], Style(long_side=900))
    assert (drawn[-5:, :200] != plain[-5:, :200]).any()
    np.testing.assert_array_equal(drawn[:-100], plain[:-100])


def test_an_image_that_the_manifest_does_not_name(tmp_path: Path) -> None:
    output = make_drawn_output(tmp_path, {"a.png": PHOTO})
    (row,) = rows_of(output)
    read = ImageReader(open_results(output.uri)).read({**row, "uri": "/elsewhere/b.png"})
    assert read.pixels is None
    assert read.problem is not None
    assert "not in the manifest" in read.problem


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (200, 3), (20, 30), (3000, 4000)])
def test_a_tile_of_any_size(size: tuple[int, int]) -> None:
    tile = grey_tile(size[1], size[0], "the image has changed since the run " * 9 + "x" * 300 + " 猫\x1b[1m\n")
    assert tile.shape == (*size, 3)
    assert (tile.max(axis=2) == tile.min(axis=2)).all()


def tar_of(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, payload in members.items():
            info = tarfile.TarInfo(f"{name}.png")
            info.size = len(payload)
            tar.addfile(info, io.BytesIO(payload))
    return buffer.getvalue()


def test_members_of_a_tar_are_read_until_it_changes(tmp_path: Path) -> None:
    output = make_drawn_output(tmp_path, {"a.tar": tar_of(one=PHOTO, two=OTHER)})
    rows = sorted(rows_of(output), key=lambda row: row["uri"])
    reader = ImageReader(open_results(output.uri))
    for row, payload in zip(rows, (PHOTO, OTHER), strict=True):
        np.testing.assert_array_equal(reader.read(row).pixels, decode_image(payload))
    (output.photos / "a.tar").write_bytes(tar_of(one=OTHER, two=PHOTO, three=PHOTO))
    assert [reader.read(row).problem for row in rows] == ["the image has changed since the run"] * 2


@pytest.mark.xdist_group("s3")
def test_images_in_a_bucket(s3_server: S3Server, s3_bucket: str) -> None:
    section = StorageSection(endpoint_url=s3_server.endpoint_url)
    handle, _ = write_drawn_run(s3_bucket, dict.fromkeys(["a.png", "b.png", "c.png"], PHOTO), section=section)
    results = open_results(handle.output_uri, Storage(section))
    results.storage.write(f"{s3_bucket}/photos/b.png", OTHER)
    results.storage.delete(f"{s3_bucket}/photos/c.png")
    rows = sorted(results.images().to_pylist(), key=lambda row: row["uri"])
    reads = [ImageReader(results).read(row) for row in rows]
    assert reads[0].pixels is not None
    np.testing.assert_array_equal(reads[0].pixels, decode_image(PHOTO))
    assert [read.pixels is None for read in reads] == [False, True, True]
    assert [read.problem for read in reads] == [
        None,
        "the image has changed since the run",
        "the image does not exist any more",
    ]


def test_a_huge_image_is_drawn_from_a_reduced_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pixels are never read at full size, and its masks land where they are."""
    monkeypatch.setattr(image_reader, "DEFAULT_MAX_PIXELS", 1000)
    monkeypatch.setattr(image_reader, "OVERVIEW_SIDE", 30)
    output = make_drawn_output(tmp_path, {"a.png": encoded(Image.new("RGB", (90, 60), (10, 10, 200)), "PNG")})
    (row,) = rows_of(output)
    read = ImageReader(open_results(output.uri)).read(row)
    assert read.pixels is None
    assert read.problem is not None
    assert "too large" in read.problem
    assert (read.width, read.height) == (90, 60)
    assert read.overview is not None
    assert read.overview.shape == (20, 30, 3)
    mask = np.zeros((60, 90), bool)
    mask[30:60, 45:90] = True
    style = Style(has_labels=False, opacity=1.0)
    drawn = draw_run_image(read, [DrawnInstance("dog", 0.9, mask=mask)], style)
    assert drawn.shape == (20, 30, 3)
    changed = (drawn != read.overview).any(axis=2)
    assert changed[12:, 17:].all()
    assert not changed[:8, :13].any()
    (output.photos / "a.png").write_bytes(OTHER)
    assert ImageReader(open_results(output.uri)).read(row).overview is None
