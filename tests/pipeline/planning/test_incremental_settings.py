"""Which keys of the spec make an incremental run do every image again: all that results depend on."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.job_spec.job import ComputeSection, ImagesSection, InputSection, JobSpec, SelectSection
from pipeline.job_spec.model import ModelSection
from pipeline.models.identity import fingerprint_of
from pipeline.weights.fingerprint import with_tiles
from tests.support.builders.planned_runs import IncrementalRuns, counts_of

Overrides = dict[str, Any]
PLAIN: Overrides = {"model.preset": "htc_lite0_fpn", "model.weights": "untrained"}
FACTORY: Overrides = {"model.factory": "json.decoder:JSONDecoder", "model.weights": "untrained"}
MEMBER = {"preset": "htc_lite0_fpn", "weights": "untrained"}
TWO: Overrides = {"model.ensemble.members": [MEMBER, MEMBER]}

# By key, a spec before and one after in which it differs.
ALL_AGAIN: dict[str, tuple[Overrides, Overrides]] = {
    **{
        key: (PLAIN, PLAIN | {key: value})
        for key, value in {
            "input.image_column": "photo",
            "input.bands": [3, 2, 1],
            "input.value_range": [0, 255],
            "images.jpeg_decoder": "nvjpeg",
            "model.preset": "mask_rcnn_r50_fpn",
            "model.weights": "demo",
            "model.score_threshold": 0.3,
            "model.max_detections": 10,
            "model.suppression": "soft_linear",
            "model.precision": "fp32",
            "model.augment": "flip",
            "tiles": 64,
        }.items()
    },
    "model.semantic": (
        {"model.preset": "htc_r50_fpn", "model.weights": "untrained"},
        {"model.preset": "htc_r50_fpn", "model.weights": "untrained", "model.semantic": True},
    ),
    "model.panoptic": (
        {"model.preset": "htc_r50_fpn", "model.weights": "untrained", "model.panoptic": True},
        {"model.preset": "htc_r50_fpn", "model.weights": "untrained", "model.panoptic": {"min_score": 0.3}},
    ),
    "model.factory": (FACTORY, {"model.factory": "json.encoder:JSONEncoder", "model.weights": "untrained"}),
    "model.options": (FACTORY, FACTORY | {"model.options": {"strict": False}}),
    "model.ensemble": (PLAIN, TWO),
    "model.ensemble.fusion": (TWO, TWO | {"model.ensemble.fusion": "soft_nms"}),
    "model.ensemble.members.0": (TWO, {"model.ensemble.members": [{**MEMBER, "weight": 2}, MEMBER]}),
}
NOTHING_AGAIN: dict[str, tuple[Overrides, Overrides]] = {
    key: (PLAIN, PLAIN | {key: value})
    for key, value in {
        "input.glob": "*.jpg",
        "input.limit": 3,
        "input.uri_column": "url",
        "images.max_pixels": 1000,
        "images.max_bytes": 1000,
        "compute.shard_images": 1,
        "select.retry": "none",
        "select.where": "SELECT uri FROM images",
    }.items()
} | {"model.ensemble.spread": (TWO, TWO | {"model.ensemble.spread": True})}
# A run of another input, and one that does every image, leave nothing to compare.
OTHERS = {"input.uri", "select.mode", "select.max_deleted_share"}


@pytest.fixture
def runs(tmp_path: Path) -> IncrementalRuns:
    runs = IncrementalRuns(tmp_path)
    runs.put("a.jpg", "b.jpg", "c.jpg")
    return runs


def done_again(runs: IncrementalRuns, before: Overrides, after: Overrides) -> dict[str, int]:
    """The counts of a second run, whose spec differs."""
    for overrides in (before, after):
        keys = {key.replace(".", "__"): value for key, value in overrides.items()}
        spec = runs.spec(**keys)
        run = runs.open(fingerprint=with_tiles(fingerprint_of(spec.model), spec.tiles).to_dict(), **keys)
        counts = counts_of(run)
        runs.commit(run, {"c.jpg": "unreadable"})
    return counts


@pytest.mark.parametrize("key", ALL_AGAIN)
def test_what_results_depend_on_does_every_image_again(runs: IncrementalRuns, key: str) -> None:
    """Also the image that was not ok."""
    assert done_again(runs, *ALL_AGAIN[key]) == {"listed": 3, "other_model": 3}


@pytest.mark.parametrize("key", NOTHING_AGAIN)
def test_what_results_do_not_depend_on_does_no_image_again_that_was_ok(runs: IncrementalRuns, key: str) -> None:
    counts = done_again(runs, *NOTHING_AGAIN[key])
    assert (counts["listed"], counts["unchanged"], counts.get("other_model")) == (3, 2, None)


def test_no_key_is_forgotten() -> None:
    """A new key of the spec must be named above, in the table where it belongs."""
    sections = {"input": InputSection, "model": ModelSection, "images": ImagesSection, "select": SelectSection}
    fields = {f"{name}.{field}" for name, section in sections.items() for field in section.model_fields} | {"tiles"}
    known = {*ALL_AGAIN, *NOTHING_AGAIN, *OTHERS}
    assert fields <= known
    for before, after in [*ALL_AGAIN.values(), *NOTHING_AGAIN.values()]:
        for overrides in (before, after):
            assert identity_of(overrides) <= {*known, "model.ensemble.members.1"}


def test_sections_that_change_no_result_are_known() -> None:
    without = {"name", "output", "storage", "retry", "notify", "telemetry", "budget"}
    assert set(JobSpec.model_fields) == without | {"input", "model", "images", "tiles", "select", "compute"}
    assert {key for key in identity_of(PLAIN) if key.startswith("compute.")} == {"compute.shard_images"}
    assert "shard_images" in ComputeSection.model_fields


def identity_of(overrides: Overrides) -> set[str]:
    keys = {key.replace(".", "__"): value for key, value in overrides.items()}
    return set(IncrementalRuns(Path("/folder")).spec(**keys).identity())


def test_a_tiff_that_lacked_its_value_range_gets_another_chance(runs: IncrementalRuns) -> None:
    counts = done_again(runs, PLAIN, PLAIN | {"input.value_range": [0, 3000], "select.retry": "none"})
    assert counts == {"listed": 3, "other_model": 3}
