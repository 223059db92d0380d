"""Test-time augmentation in the spec: words, scales, and what a run's identity holds of it."""

from typing import Any

import pytest

from htc_model.config import ViewConfig, load_preset
from pipeline.errors import SpecError
from pipeline.job_spec.job import JobSpec, load_spec
from pipeline.weights.fingerprint import compute_fingerprint, resolve_config

RESIZE = load_preset("htc_r50_fpn").resize


def spec_with(augment: Any) -> JobSpec:
    return load_spec(None, {"input.uri": "in", "output.uri": "out", "model.augment": augment})


def views_of(augment: Any) -> tuple[ViewConfig, ...]:
    section = spec_with(augment).model.augment
    return () if section is None else section.views(RESIZE)


@pytest.mark.parametrize("plain", [None, "none", {}, {"scales": [1]}, {"flip": False}, {"scales": [[1333, 800]]}])
def test_the_plain_image_alone_needs_no_views(plain: Any) -> None:
    assert views_of(plain) == ()


def test_words_scales_and_sizes() -> None:
    plain, mirrored = ViewConfig(1333, 800), ViewConfig(1333, 800, is_mirrored=True)
    assert views_of("flip") == views_of({"flip": True}) == (plain, mirrored)
    assert views_of("full") == views_of({"scales": [0.75, 1, 1.25], "flip": True})
    assert [(each.long_side, each.short_side) for each in views_of("full")[::2]] == [
        (1000, 600),
        (1333, 800),
        (1666, 1000),
    ]
    assert views_of({"scales": [[600, 900], 1]}) == (ViewConfig(900, 600), plain)


@pytest.mark.parametrize(
    "invalid",
    [
        "mirror",
        2,
        {"scales": []},
        {"scales": [0]},
        {"scales": [5]},
        {"scales": [1, 1.0]},
        {"scales": [[800]]},
        {"scales": [[8, 8]]},
        {"flips": True},
        {"scales": [float("nan")]},
        {"scales": [0.5] * 17},
    ],
)
def test_invalid_augmentation_is_refused_by_name(invalid: Any) -> None:
    with pytest.raises(SpecError, match=r"model\.augment"):
        spec_with(invalid)


def test_results_of_other_views_are_other_results() -> None:
    plain, flip, full = (spec_with(word) for word in ("none", "flip", "full"))
    assert "model.augment" not in plain.identity()
    assert flip.identity()["model.augment"] == {"scales": [1.0], "flip": True}
    prints = {compute_fingerprint(spec.model).config_sha256 for spec in (plain, flip, full)}
    assert len(prints) == 3
    assert compute_fingerprint(spec_with({}).model) == compute_fingerprint(plain.model)
    # Of the preset alone; the weights file may give another size.
    assert resolve_config(flip.model).views == (ViewConfig(640, 384), ViewConfig(640, 384, is_mirrored=True))


@pytest.mark.parametrize(
    ("invalid", "sentence"),
    [
        ("mirror", 'model.augment must be "none", "flip", "full", or scales and flip, not \'mirror\'.'),
        ({"scales": [5]}, "model.augment.scales must be 1 to 16 factors from 0.1 to 4.0, or [long side, short side]"),
        ({"flips": True}, "model.augment.flips is not a key of the section model.augment; did you mean"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(invalid: Any, sentence: str) -> None:
    with pytest.raises(SpecError) as caught:
        spec_with(invalid)
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)
