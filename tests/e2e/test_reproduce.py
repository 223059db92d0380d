"""`htc reproduce table1` through Ray and the bundled network: photos in, the table out."""

import json
from pathlib import Path
from shutil import copy

import pytest

from tests.support.htc import run_htc
from tests.support.paths import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_session")]

# Its one person, as COCO's annotations have it.
PHOTO, BOX = "000000079031.jpg", [49.21, 0.29, 215.84, 296.1]


def test_own_weights_through_the_whole_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coco = tmp_path / "coco"
    (coco / "val2017").mkdir(parents=True)
    (coco / "annotations").mkdir()
    copy(ROOT / "examples" / "photos" / PHOTO, coco / "val2017")
    person = {"id": 1, "image_id": 79031, "category_id": 1, "bbox": BOX, "area": 27238.67, "iscrowd": 0}
    document = {
        "images": [{"id": 79031, "file_name": PHOTO, "height": 342, "width": 512}],
        "annotations": [person],
        "categories": [{"id": 1, "name": "person"}],
    }
    truth = coco / "annotations" / "instances_val2017.json"
    truth.write_text(json.dumps(document))
    command = ["reproduce", "table1", "--coco", str(coco), "--to", str(tmp_path / "work"), "--format", "json"]
    command += ["--presets", "htc_lite0_fpn", "--weights", "htc_lite0_fpn=demo", "--workers", "1"]
    code, out, _ = run_htc(capsys, *command)
    (row,) = json.loads(out)["rows"]
    assert (code, row["state"], row["images"], row["speed"]["images"]) == (0, "done", 1, 1)
    assert row["metrics"]["box"]["AP50"] == pytest.approx(100)
    assert "mask" not in row["metrics"]
    assert (row["published"], row["is_comparable"]) == (None, False)
    again, out, _ = run_htc(capsys, *command)
    assert (again, json.loads(out)["rows"][0]) == (0, row)
