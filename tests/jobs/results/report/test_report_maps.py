"""Cards of a report show things and stuff, where the run has panoptic segments."""

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from jobs.results.drawing import stuff_colour
from jobs.results.report.pictures import Bounds, GalleryReader
from pipeline.output.results import open_results
from tests.support.builders.panoptic_runs import panoptic_run


def thumbnail(folder: Path, tables: tuple[str, ...]) -> np.ndarray:
    run = panoptic_run(folder, {"a.png": ["tttt", "tddt"]}, {"a.png": ["t"]}, tables=tables)
    results = open_results(run.uri)
    row = results.images("night").to_pylist()[0]
    uri = GalleryReader(results, "night", Bounds.of(1), min_score=0.3).read(row).thumbnail
    assert uri is not None
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_cards_show_stuff_where_the_run_has_segments(tmp_path: Path) -> None:
    without, with_map = thumbnail(tmp_path / "a", ()), thumbnail(tmp_path / "b", ("panoptic",))
    above = slice(0, len(without) // 3)
    expected = without * 0.4 + np.array(stuff_colour("tree")) * 0.6
    assert np.abs(with_map[above] - expected[above]).mean() < 8
    assert np.abs(without[above] - expected[above]).mean() > 15
