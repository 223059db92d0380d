"""Fixtures: a small folder of COCO's form, published weights on a server of the test's own, runs without Ray."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from htc_model.coco_classes import COCO_CATEGORY_IDS, COCO_CLASSES
from htc_model.weights import model_zoo
from jobs.reproduce import table_rows
from pipeline.driver.progress import SilentProgress
from pipeline.driver.run_job import run
from pipeline.job_spec.job import JobSpec
from pipeline.runs.summary import RunSummary
from tests.support.fakes.in_process_pool import in_process
from tests.support.fakes.models import LoadFake, write_image
from tests.support.servers.http_server import serving

CONTENT = b"weights" * 100
DIGITS = hashlib.sha256(CONTENT).hexdigest()[:8]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTC_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Four images, each annotated as the fake model sees them: one object, of a category that its size gives."""
    folder = tmp_path / "coco"
    (folder / "val2017").mkdir(parents=True)
    (folder / "annotations").mkdir()
    images, annotations = [], []
    for number in range(4):
        height, width = 100 + number, 120
        write_image(folder / "val2017" / f"{number:012d}.png", (height, width))
        images.append({"id": number, "file_name": f"{number:012d}.png", "height": height, "width": width})
        annotations.append(
            {
                "id": number + 1,
                "image_id": number,
                "category_id": COCO_CATEGORY_IDS[(height + width) % 80],
                "bbox": [0, 0, width, height],
                "area": width * height,
                "segmentation": [[0, 0, width, 0, width, height, 0, height]],
                "iscrowd": 0,
            }
        )
    categories = [{"id": number, "name": name} for number, name in zip(COCO_CATEGORY_IDS, COCO_CLASSES, strict=True)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / "instances_val2017.json").write_text(json.dumps(document))
    return folder


class _Weights(BaseHTTPRequestHandler):
    """Serves CONTENT under any path but one."""

    def do_HEAD(self) -> None:
        if self.path == "/gone.pth":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        if self.path != "/gone.pth":
            self.wfile.write(CONTENT)

    def log_message(self, *arguments: object) -> None:
        """Stay silent."""


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """HTC's entry of the registry lies on a server here, that of Mask R-CNN nowhere."""
    with serving(_Weights) as url:
        entries = []
        for name in ("htc_r50_fpn_1x", "mask_rcnn_r50_fpn_1x"):
            entry = replace(model_zoo.find(name), file_name=f"{name}-{DIGITS}.pth", sha256_prefix=DIGITS)
            entries.append(replace(entry, url=f"{url}/{entry.file_name}"))
        entries[1] = replace(entries[1], url=f"{url}/gone.pth")
        for module in (model_zoo, table_rows):
            monkeypatch.setattr(module, "PUBLISHED", tuple(entries))
        yield


@pytest.fixture
def fake_run() -> Callable[[JobSpec], RunSummary]:
    """Does jobs in this process, with a model that needs no weights; `fake_run.specs` are those it was given."""

    class Runner:
        def __init__(self) -> None:
            self.specs: list[JobSpec] = []

        def __call__(self, spec: JobSpec) -> RunSummary:
            self.specs.append(spec)
            return run(spec, progress=SilentProgress(), load_model=LoadFake(), open_pool=in_process())

    return Runner()
