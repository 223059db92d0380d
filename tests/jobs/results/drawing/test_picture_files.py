"""Pictures as files: safe names, formats, and which files are ours."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.results.drawing import encode_picture, picture_names, write_picture
from jobs.results.drawing.picture_files import is_own_picture
from pipeline.errors import SpecError


def test_names_are_safe_and_distinct() -> None:
    uris = [
        "/in/Cat.jpg",
        "/in/cat.JPG",
        "s3://bucket/a b#c%20.png",
        "tar://deep/cat.jpg::/shards/0.tar",
        "/in/../...jpg",
        "/shards/x.parquet#row=7",
        "/in/" + "x" * 300 + ".jpg",
        "/in/line\nbreak.png",
        "/in/" + "猫" * 90 + ".png",
        "/in/a\u0308.png",
        "/in/\u00e4.png",
    ]
    names = picture_names(uris)
    assert len({name.lower() for name in names}) == len(uris)
    assert names[:4] == ["Cat.png", "cat-2.png", "a_b_c_20.png", "cat-3.png"]
    assert names[5] == "x.parquet_row_7.png"
    for name in names:
        assert len(name.encode()) < 220
        assert name.replace("-", "").replace("_", "").replace(".", "").isalnum()
        assert not name.startswith(".")


@pytest.mark.parametrize("picture_format", ["png", "jpeg", "webp"])
def test_our_pictures_are_known_from_others(tmp_path: Path, picture_format: str) -> None:
    pixels = np.full((20, 30, 3), 90, np.uint8)
    write_picture(pixels, tmp_path / "ours", picture_format)
    assert is_own_picture(tmp_path / "ours")
    with Image.open(tmp_path / "ours") as image:
        assert np.abs(np.asarray(image.convert("RGB")).astype(int) - pixels).max() <= 2
        image.convert("RGB").save(tmp_path / "theirs", picture_format)
    assert not is_own_picture(tmp_path / "theirs")
    (tmp_path / "text").write_text("no picture")
    (tmp_path / "cut").write_bytes((tmp_path / "ours").read_bytes()[:20])
    assert not is_own_picture(tmp_path / "text")
    assert not is_own_picture(tmp_path / "cut")


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="png, jpeg, webp, not gif"):
        encode_picture(np.zeros((2, 2, 3), np.uint8), "gif")
    with pytest.raises(ValueError, match="at most 16383 pixels a side"):
        encode_picture(np.zeros((1, 17000, 3), np.uint8), "webp")
    with pytest.raises(SpecError, match="cannot be written"):
        write_picture(np.zeros((2, 2, 3), np.uint8), tmp_path / "no folder" / "x.png")
