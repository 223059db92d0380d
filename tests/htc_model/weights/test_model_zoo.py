"""The list of published checkpoints."""

from dataclasses import asdict

import pytest

from htc_model.config import PRESETS
from htc_model.weights.model_zoo import (
    PUBLISHED,
    UnknownWeightsError,
    find,
    find_by_sha256,
    sha256_prefix_of,
)


def test_every_checkpoint_belongs_to_a_preset_and_has_its_own_name() -> None:
    assert {published.preset for published in PUBLISHED} <= set(PRESETS)
    names = [published.name for published in PUBLISHED]
    assert len(set(names)) == len(names) == 21


def test_urls_and_hashes_are_those_of_the_file_names() -> None:
    for published in PUBLISHED:
        assert published.url.startswith("https://download.openmmlab.com/mmdetection/v2.0/")
        assert published.url.endswith(f"/{published.file_name}")
        assert published.sha256_prefix == published.file_name[-12:-4]
        assert find_by_sha256(f"{published.sha256_prefix}{'0' * 56}") == published


def test_the_published_best_is_listed_with_its_ap() -> None:
    best = find("htc_x101_64x4d_fpn_dcn")
    assert (best.box_ap, best.mask_ap, best.sha256_prefix) == (50.4, 43.8, "946fd751")
    assert "htc/README.md" in best.source


def test_the_baseline_of_the_paper_has_published_weights() -> None:
    assert find("cascade_mask_rcnn_r50_fpn").sha256_prefix == "9d4dcb24"
    assert find("cascade_rcnn_r50_fpn").mask_ap is None


def test_a_preset_means_its_best_checkpoint_and_a_name_means_itself() -> None:
    assert find("htc_r50_fpn").sha256_prefix == "fe28c577"
    assert find("htc_r50_fpn_1x").sha256_prefix == "7332cf16"
    assert find("htc_r50_fpn_1x_coco_20200317-7332cf16.pth").name == "htc_r50_fpn_1x"


def test_an_unknown_name_gets_the_nearest_and_the_list() -> None:
    with pytest.raises(UnknownWeightsError, match=r"did you mean 'htc_r101_fpn_20e'\?.*mask_rcnn_r50_fpn_1x"):
        find("htc_r101_fpn_20")


def test_an_unknown_hash_belongs_to_nothing() -> None:
    assert find_by_sha256("f" * 64) is None


@pytest.mark.parametrize(
    ("file_name", "prefix"),
    [
        ("htc_r50_fpn_1x_coco_20200317-7332cf16.pth", "7332cf16"),
        ("model.pth", None),
        ("my-weights.pth", None),
        ("model-ABCDEF12.pth", None),
        ("-7332cf16.pth", None),
    ],
)
def test_the_hash_in_a_file_name(file_name: str, prefix: str | None) -> None:
    assert sha256_prefix_of(file_name) == prefix


def test_rows_are_plain() -> None:
    rows = [asdict(published) for published in PUBLISHED]
    assert len(rows) == len(PUBLISHED)
    assert rows[0]["name"] == PUBLISHED[0].name
    assert {type(value) for row in rows for value in row.values()} <= {str, float, type(None)}
