"""What supervision, a library for detections, reads from exported folders; skipped where it is not installed."""

from pathlib import Path

import numpy as np
import pytest

from jobs.results.export import command
from tests.jobs.results.export.conftest import Bitmap, Drawn

supervision = pytest.importorskip("supervision", reason="supervision is not installed (pip install supervision)")


def read_masks(data_set: object) -> dict[str, list[Bitmap]]:
    """By the image's name."""
    found = {}
    for path, _, detections in data_set:  # type: ignore[attr-defined]
        found[Path(path).name] = [] if detections.mask is None else [np.asarray(mask, bool) for mask in detections.mask]
    return found


# Deprecations inside the library.
@pytest.mark.filterwarnings("default")
def test_coco_masks_are_read_exactly(drawn: Drawn, tmp_path: Path) -> None:
    request = command.ExportRequest(command.Format.COCO, tmp_path / "coco", images=command.Images.COPY)
    command.export_output(drawn.uri, request)
    read = supervision.DetectionDataset.from_coco(
        images_directory_path=str(tmp_path / "coco" / "images"),
        annotations_path=str(tmp_path / "coco" / "annotations.json"),
        force_masks=True,
    )
    masks = read_masks(read)
    for found, mask in zip(masks["one.jpg"], drawn.masks["a/one.jpg"], strict=True):
        assert (found == mask).all()


@pytest.mark.filterwarnings("default")
def test_yolo_polygons_are_read(drawn: Drawn, tmp_path: Path) -> None:
    request = command.ExportRequest(command.Format.YOLO, tmp_path / "yolo", images=command.Images.COPY)
    command.export_output(drawn.uri, request)
    # One folder deep: it looks for no others.
    read = supervision.DetectionDataset.from_yolo(
        images_directory_path=str(tmp_path / "yolo" / "images" / "a"),
        annotations_directory_path=str(tmp_path / "yolo" / "labels" / "a"),
        data_yaml_path=str(tmp_path / "yolo" / "data.yaml"),
        force_masks=True,
    )
    masks = read_masks(read)
    shown = [mask for mask in drawn.masks["a/one.jpg"] if mask.any()]
    for found, mask in zip(masks["one.jpg"], shown, strict=True):
        # It draws polygons by OpenCV's rule, which includes every pixel that an edge touches.
        assert (found & mask).sum() == mask.sum()
