"""The spec's `tiles`: what it takes, what it refuses in one sentence, and when it is part of a run's identity."""

import pytest

from pipeline.errors import SpecError
from pipeline.job_spec.job import JobSpec, load_spec
from pipeline.job_spec.model import ModelSection
from pipeline.weights.fingerprint import compute_fingerprint, with_tiles

PLACES = {"input.uri": "in", "output.uri": "out"}


def spec_of(tiles: object) -> JobSpec:
    return load_spec(None, {**PLACES, "tiles": tiles})


@pytest.mark.parametrize(
    ("value", "settled"),
    [
        ("none", None),
        (None, None),
        ("auto", (1024, 128, 4096)),
        ("512", (512, 64, 512)),
        (512, (512, 64, 512)),
        ("512:100", (512, 100, 512)),
        ("512:0", (512, 0, 512)),
        ({}, (1024, 128, 1024)),
        ({"side": 800, "overlap": 200}, (800, 200, 800)),
        ({"above": 5000}, (1024, 128, 5000)),
    ],
)
def test_values(value: object, settled: tuple[int, int, int] | None) -> None:
    tiles = spec_of(value).tiles
    assert (None if tiles is None else (tiles.side, tiles.overlap, tiles.above)) == settled


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("512:512", ["overlap", "less than side", "512"]),
        ({"side": 512, "overlap": 600}, ["overlap", "600", "512"]),
        ({"side": 8}, ["tiles.side", "16", "16384"]),
        ({"side": 512, "above": 100}, ["above", "at least side"]),
        ({"side": 512, "overlap": -4}, ["tiles.overlap"]),
        ({"side": "512"}, ["tiles.side"]),
        ({"size": 512}, ["tiles.size", "side"]),
        ("512x512", ["tiles", "SIDE:OVERLAP"]),
        ("all", ["tiles", "auto"]),
        (True, ["tiles"]),
    ],
)
def test_bad_values_are_one_sentence(value: object, words: list[str]) -> None:
    with pytest.raises(SpecError) as refusal:
        spec_of(value)
    text = str(refusal.value)
    assert "\n" not in text
    assert all(word in text for word in words), text


def test_identity_and_fingerprint_hold_tiles_only_where_images_are_cut() -> None:
    assert "tiles" not in spec_of("none").identity()
    assert spec_of("512").identity()["tiles"] == {"side": 512, "overlap": 64, "above": 512}
    plain = compute_fingerprint(ModelSection(weights="untrained"))
    assert with_tiles(plain, None) == plain
    cut, otherwise = (with_tiles(plain, spec_of(value).tiles) for value in ("512", "512:100"))
    assert len({plain.config_sha256, cut.config_sha256, otherwise.config_sha256}) == 3


def test_the_resolved_spec_is_read_again_as_it_is() -> None:
    spec = spec_of("auto")
    assert JobSpec.model_validate(spec.to_dict()).tiles == spec.tiles


def test_which_images_are_cut() -> None:
    tiles = spec_of({"side": 100}).tiles
    assert tiles is not None
    assert [tiles.cuts(*size) for size in [(100, 100), (101, 5), (5, 101), (1, 1)]] == [False, True, True, False]
