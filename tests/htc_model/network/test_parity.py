"""The network computes what MMDetection computes: names and shapes, every intermediate, the detections.

From the encoded file to the encoded masks, with the deterministic weights, for every golden in data/goldens.
"""

import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest
import torch

from htc_model.config import PRESETS
from htc_model.network.detector import HTC, build_model
from tests.support.goldens.network import (
    CODE_PATHS,
    DATA,
    PRESET_OF_GOLDEN,
    build_golden_model,
    golden_batch,
    is_input_exact,
    load_golden,
    measure,
)
from tests.support.paths import ROOT

GOLDENS = sorted((DATA / "goldens").glob("*.npz"))
KEY_LISTS = sorted((DATA / "keys").glob("*.txt"))

# The quantities that each golden must be compared by, so that a missing one is noticed.
COMMON = {f"C{i}" for i in range(2, 6)} | {f"P{i}" for i in range(2, 7)}
COMMON |= {f"rpn_{kind}{level}" for kind in ("cls", "reg") for level in range(5)}
COMMON |= {"fixed_roifeat7", "fixed_roifeat14", "fixed_level", "proposals unmatched"}
COMMON |= {"detections missing", "missing at no decision", "score", "box"}
COMMON |= {"mask IoU, mean", "mask pixels far from the threshold"}
DETECTION_QUANTITIES = ("detections missing", "score", "box", "mask IoU, mean", "mask pixels far from the threshold")
PER_STAGE = ("fixed_cls{}", "fixed_reg{}", "fixed_mask{}", "fixed_mask{}.pick")


@lru_cache(maxsize=1)  # goldens come sorted by model; two X101 at once would be a gigabyte
def model_of(golden_model: str) -> HTC:
    return build_golden_model(golden_model)


def expected_quantities(model: HTC) -> set[str]:
    expected = set(COMMON)
    for stage in range(model.config.num_stages):
        expected |= {name.format(stage) for name in PER_STAGE}
        if not model.config.has_class_specific_boxes:
            expected.add(f"fixed_refined{stage}")
    if model.config.semantic:
        expected |= {"sem_pred", "sem_feat", "fixed_semroi14"}
    return expected


def shapes_of(model: torch.nn.Module) -> dict[str, str]:
    return {key: str(tuple(tensor.shape)) for key, tensor in model.state_dict().items()}


@pytest.mark.parametrize("path", KEY_LISTS, ids=lambda path: path.stem)
def test_state_dict_has_the_published_names_and_shapes(path: Path) -> None:
    with torch.device("meta"):
        model = build_model(PRESET_OF_GOLDEN[path.stem])
    assert shapes_of(model) == dict(line.split("\t") for line in path.read_text().splitlines())


def listed(stem: str) -> dict[str, str]:
    return dict(line.split("\t") for line in (DATA / "keys" / f"{stem}.txt").read_text().splitlines())


# Own networks, of which nothing is published, and one that has a test of its own.
OWN = {
    "htc_lite0_fpn",
    "panet_r50_fpn",
    "detectors_htc_r101_fpn",
    "htc_seresnext101_32x4d_fpn",
    "htc_challenge",
}

# The goldens of later networks have features and detections only; their presets' parts are those of their key lists.
MORE_GOLDENS = sorted((DATA / "goldens_more").glob("*.npz"))
MORE_PRESETS = {PRESET_OF_GOLDEN[path.stem.partition("__")[0]] for path in MORE_GOLDENS}


@pytest.mark.parametrize("name", sorted(set(PRESETS) - OWN - MORE_PRESETS))
def test_presets_differ_from_their_siblings_only_where_their_names_say(name: str) -> None:
    """Presets without a key list have the backbone of one sibling, and the other layers of another."""
    backbone = next(
        other
        for pattern, other in (
            ("r101", "htc_r101"),
            ("x101_32x4d", "htc_x101_32x4d"),
            ("dcn", "htc_x101_64x4d_dcn" if "x101" in name else "htc_r50_dcn"),
            ("x101_64x4d", "htc_x101_64x4d_dcn"),
            ("r50", "htc_r50"),
        )
        if pattern in name
    )
    heads = next(
        other
        for pattern, other in (
            ("scnet", "scnet_r50"),
            ("cascade", "cascade_mask_r50"),
            ("without_semantic", "htc_nosem_r50"),
            ("htc", "htc_r50"),
            ("mask_rcnn", "mask_rcnn_r50"),
        )
        if pattern in name
    )

    expected = {key: shape for key, shape in listed(backbone).items() if key.startswith("backbone.")}
    if "dcn" not in name:
        expected = {key: shape for key, shape in expected.items() if "conv_offset" not in key}
    expected |= {key: shape for key, shape in listed(heads).items() if not key.startswith("backbone.")}
    if name == "cascade_rcnn_r50_fpn":
        expected = {key: shape for key, shape in expected.items() if "mask_head" not in key}
    with torch.device("meta"):
        model = build_model(name)
    assert shapes_of(model) == expected


def test_a_deeper_detectors_has_more_blocks_in_its_third_stage() -> None:
    expected = listed("detectors_htc_r50")
    for key, shape in list(expected.items()):
        if "layer3.5." in key:
            expected |= {key.replace("layer3.5.", f"layer3.{block}."): shape for block in range(6, 23)}
    with torch.device("meta"):
        assert shapes_of(build_model("detectors_htc_r101_fpn")) == expected


@pytest.mark.slow
@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
def test_golden(path: Path) -> None:
    golden = load_golden(path)
    model = model_of(golden["meta"]["model"])
    batch = golden_batch(golden, model)
    assert is_input_exact(golden, batch)
    rows = list(measure(golden, model, batch))
    assert expected_quantities(model) <= {row.quantity for row in rows}
    assert [row for row in rows if not row.is_ok] == []


@pytest.mark.slow
@pytest.mark.parametrize("path", MORE_GOLDENS, ids=lambda path: path.stem)
def test_golden_of_a_later_network(path: Path) -> None:
    golden = load_golden(path)
    model = build_golden_model(golden["meta"]["model"])
    batch = golden_batch(golden, model)
    assert is_input_exact(golden, batch)
    rows = list(measure(golden, model, batch))
    assert {row.quantity for row in rows} >= {"C2", "C5", "P2", "P6", *DETECTION_QUANTITIES}
    assert [row for row in rows if not row.is_ok] == []


@pytest.mark.slow
def test_on_another_processors_code_path() -> None:
    """AVX2 only, where one of 38 detections is close to a change of RoIAlign's sample count.

    benchmarks/processors.py has all code paths.
    """
    environment = {**os.environ, **CODE_PATHS["avx2"], "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "benchmarks" / "parity.py"), "--only", "cascade_mask_r50"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"out_of_tolerance": 0' in done.stdout
