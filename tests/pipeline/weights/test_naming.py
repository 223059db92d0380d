"""The name of a model in the tables: own weights are named by file and hash."""

import hashlib

import pytest

from htc_model.weights.model_zoo import PUBLISHED, bundled_weights
from pipeline.output.run_record import RunRecord
from pipeline.weights.naming import model_name

OWN = "1a2b3c4d" + "0" * 56


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ("/models/best.safetensors", "htc_lite0_fpn:best.safetensors@1a2b3c4d"),
        ("s3://bucket/cups/best.safetensors", "htc_lite0_fpn:best.safetensors@1a2b3c4d"),
        ("https://host/best.pth?token=secret", "htc_lite0_fpn:best.pth@1a2b3c4d"),
        ("demo", "htc_lite0_fpn"),
        ("coco", "htc_lite0_fpn"),
        ("untrained", "htc_lite0_fpn"),
    ],
)
def test_own_weights_are_named_by_file_and_hash(weights: str, expected: str) -> None:
    assert model_name("htc_lite0_fpn", weights, OWN) == expected


def test_bundled_and_published_files_keep_the_presets_name_wherever_they_lie() -> None:
    bundled = hashlib.sha256(bundled_weights().read_bytes()).hexdigest()
    assert model_name("htc_lite0_fpn", "/copy/of/it.safetensors", bundled) == "htc_lite0_fpn"
    prefix = PUBLISHED[0].sha256_prefix
    assert prefix is not None
    assert model_name("htc_r50_fpn", "/downloads/htc.pth", prefix + "0" * 56) == "htc_r50_fpn"


def test_a_runs_record_names_its_model() -> None:
    def record(spec: dict, **fingerprint: str) -> RunRecord:
        return RunRecord("run", "", spec, {}, fingerprint, {}, {"image_count": 0, "shard_count": 0})

    spec = {"model": {"weights": "/models/best.safetensors"}}
    named = record(spec, preset="htc_lite0_fpn", weights_sha256=OWN)
    assert named.model_name == "htc_lite0_fpn:best.safetensors@1a2b3c4d"
    assert record({}, preset="htc_r50_fpn", weights_sha256="untrained-v1").model_name == "htc_r50_fpn"
    assert record({}).model_name == ""
