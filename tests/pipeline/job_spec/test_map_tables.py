"""The keys `model.semantic` and `model.panoptic`: who can fill the tables, and what a run's identity holds of them."""

from dataclasses import asdict, replace
from typing import Any

import pytest

from htc_model.config import load_preset
from htc_model.masks.panoptic import MergeRules
from pipeline.errors import SpecError
from pipeline.job_spec.job import JobSpec, load_spec
from pipeline.job_spec.map_tables import PanopticSection, check_has_maps, map_tables_of
from pipeline.output.layout import tables_of
from pipeline.weights.fingerprint import compute_fingerprint


def spec_with(**model: Any) -> JobSpec:
    values = {f"model.{key}": value for key, value in model.items()}
    return load_spec(None, {"input.uri": "in", "output.uri": "out", **values})


def test_a_run_has_the_tables_that_it_is_asked_for() -> None:
    assert spec_with().model.map_tables == ()
    assert spec_with(semantic=True).model.map_tables == ("semantic",)
    both = spec_with(panoptic=True, semantic=True)
    assert both.model.map_tables == map_tables_of(both.to_dict()["model"]) == ("semantic", "panoptic")
    # Segments need the map, which is stored only when it is asked for.
    only = spec_with(panoptic=True).model
    assert (only.map_tables, only.wants_semantic) == (("panoptic",), True)
    assert tables_of(both.to_dict()) == ("semantic", "panoptic", "instances", "images")
    assert tables_of({}) == tables_of({"model": {"preset": "x"}}) == ("instances", "images")


def test_identity_is_as_before_without_them() -> None:
    plain, mapped = spec_with(), spec_with(semantic=True)
    assert not any("semantic" in key or "panoptic" in key for key in plain.identity())
    assert {key: mapped.identity()[key] for key in set(mapped.identity()) - set(plain.identity())} == {
        "model.semantic": True
    }
    assert spec_with(semantic=False, panoptic=False).identity() == plain.identity()
    # The network is the same one: rows of a run with more tables serve a run that needs fewer.
    assert compute_fingerprint(plain.model) == compute_fingerprint(mapped.model)


def test_what_becomes_a_segment_is_part_of_the_identity() -> None:
    changed = spec_with(panoptic={"min_score": 0.3})
    assert changed.model.map_tables == ("panoptic",)
    assert changed.identity()["model.panoptic"] == {"min_score": 0.3, "max_overlap": 0.5, "min_stuff_area": 4096}
    assert spec_with(panoptic={}).identity()["model.panoptic"] is True
    assert spec_with(panoptic={}) == spec_with(panoptic=True)
    assert JobSpec.model_validate(changed.to_dict()) == changed
    assert map_tables_of(changed.to_dict()["model"]) == ("panoptic",)
    assert map_tables_of(spec_with(panoptic=False).to_dict()["model"]) == ()
    assert PanopticSection().model_dump() == asdict(MergeRules())
    with pytest.raises(SpecError, match=r"model\.panoptic\.min_score must be a number from 0 to 1, not 2"):
        spec_with(panoptic={"min_score": 2})
    with pytest.raises(SpecError, match=r"model\.panoptic\.min_scores is not a key .* did you mean .*min_score\?"):
        spec_with(panoptic={"min_scores": 0.2})
    with pytest.raises(SpecError, match=r"model\.panoptic must be true, false, or a section with min_score"):
        spec_with(panoptic="yes")


@pytest.mark.parametrize("preset", ["mask_rcnn_r50_fpn", "cascade_rcnn_r50_fpn", "htc_without_semantic_r50_fpn"])
@pytest.mark.parametrize("table", ["semantic", "panoptic"])
def test_a_preset_without_the_branch_is_refused_with_those_that_have_one(preset: str, table: str) -> None:
    with pytest.raises(SpecError) as caught:
        spec_with(preset=preset, weights="coco", **{table: True})
    sentence = str(caught.value)
    assert sentence.startswith(f"model.{table}: {preset} has no semantic branch")
    assert "htc_r50_fpn, " in sentence
    assert "scnet_r50_fpn" in sentence
    assert "\n" not in sentence
    assert "mask_rcnn_r50_fpn" not in sentence.partition("presets that")[2]


def test_a_box_only_network_has_no_segments() -> None:
    boxes = replace(load_preset("htc_r50_fpn"), has_masks=False)
    check_has_maps(boxes, ("semantic",))
    with pytest.raises(SpecError, match="segments are made of masks"):
        check_has_maps(boxes, ("panoptic",))


def test_other_values_are_refused() -> None:
    with pytest.raises(SpecError, match=r"model\.semantic must be true or false"):
        spec_with(semantic="all")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model.ensemble": {"members": ["htc_r50_fpn", "htc_r101_fpn"]}}, "an ensemble gives no map"),
        ({"model.factory": "package.module:function"}, "package.module:function gives no map"),
        ({"tiles": "auto"}, "tiles and model.semantic exclude each other"),
    ],
    ids=["ensemble", "factory", "tiles"],
)
def test_what_gives_no_map_is_refused_in_one_sentence(values: dict[str, Any], words: str) -> None:
    plain = {"input.uri": "in", "output.uri": "out", **values}
    load_spec(None, plain)
    with pytest.raises(SpecError) as caught:
        load_spec(None, {**plain, "model.semantic": True})
    assert words in str(caught.value)
    # Of the spec as a whole there is no key to begin with.
    assert str(caught.value).startswith(("model: ", "tiles and "))
    assert "leave" in str(caught.value)
    assert "\n" not in str(caught.value)
