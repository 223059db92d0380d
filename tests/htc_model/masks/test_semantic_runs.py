"""Semantic maps in runs: the classes that full-size interpolation gives, in bounded memory."""

import resource
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from htc_model.finite import NonFiniteError
from htc_model.masks import semantic_runs
from htc_model.masks.rle import decode_rle
from htc_model.masks.semantic_runs import encode_semantic
from htc_model.structures import SemanticMap, SemanticRegion

STRIDE = 8


def random_map(
    seed: int, classes: int, image_size: tuple[int, int], *, is_mirrored: bool = False, spread: float = 3.0
) -> SemanticMap:
    cells = [-(-side // STRIDE) for side in image_size]
    logits = torch.randn(classes, *cells, generator=torch.Generator().manual_seed(seed)) * spread
    return SemanticMap(logits, image_size, STRIDE, is_mirrored)


def interpolated(seen: SemanticMap, size: tuple[int, int]) -> NDArray[np.float64]:
    """Interpolate all logits to the original size, [C, H, W], with numpy's own function."""
    full = np.asarray(seen.logits, np.float64)
    for axis, (pixels, resized) in enumerate(zip(size, seen.image_size, strict=True), 1):
        # Cell k is about pixel 8 k of the resized image, whose centre is at 8 k + 1/2.
        centres = (np.arange(full.shape[axis]) * STRIDE + 0.5) * pixels / resized - 0.5
        full = np.apply_along_axis(lambda line, at=centres: np.interp(np.arange(pixels), at, line), axis, full)  # noqa: B023
    return full[:, :, ::-1].copy() if seen.is_mirrored else full


def labels_of(regions: list[SemanticRegion], size: tuple[int, int]) -> NDArray[np.int64]:
    """Draw regions, and check that they cover the image without overlap, ascending, with their areas."""
    drawn = np.full(size, -1)
    for region in regions:
        mask = decode_rle(region.mask)
        assert region.mask["size"] == list(size)
        assert region.area == mask.sum() > 0
        assert (drawn[mask] == -1).all()
        drawn[mask] = region.label
    assert (drawn >= 0).all()
    assert [region.label for region in regions] == sorted({region.label for region in regions})
    return drawn


def assert_highest(found: NDArray[np.int64], values: NDArray[np.float64]) -> None:
    """Check each pixel's class, but where two are equal to the last bits of a float32."""
    wanted = values.argmax(axis=0)
    best = np.take_along_axis(values, wanted[None], 0)
    taken = np.take_along_axis(values, found[None], 0)
    assert (best - taken < 1e-4).all()
    assert (found == wanted).mean() > 0.999


@given(
    seed=st.integers(0, 10_000),
    classes=st.integers(1, 12),
    resized=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    scale=st.floats(0.3, 3.0),
    is_mirrored=st.booleans(),
    chunk_pixels=st.sampled_from([1, 100, 1000, 1 << 20]),
)
def test_each_pixel_has_the_class_with_the_highest_logit(
    seed: int, classes: int, resized: tuple[int, int], scale: float, *, is_mirrored: bool, chunk_pixels: int
) -> None:
    size = (max(1, round(resized[0] * scale)), max(1, round(resized[1] * scale)))
    seen = random_map(seed, classes, resized, is_mirrored=is_mirrored)
    regions = encode_semantic([seen], size, chunk_pixels=chunk_pixels)
    assert_highest(labels_of(regions, size), interpolated(seen, size))
    assert regions == encode_semantic([seen], size)


def test_classes_that_cannot_win_are_left_out_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = random_map(3, 183, (96, 128), spread=0.2)
    seen.logits[:, :, :8] -= 50.0 * (torch.arange(183) != 7)[:, None, None]
    size = (240, 320)
    found = encode_semantic([seen], size, chunk_pixels=4000)
    view = semantic_runs._View(seen, size, is_mean=False)
    assert view.may_win(slice(0, 100)).nonzero()[:, 0].tolist() == [7]
    assert view.may_win(slice(200, 320)).sum() > 20
    monkeypatch.setattr(semantic_runs._View, "may_win", lambda *_: torch.ones(183, dtype=torch.bool))
    assert encode_semantic([seen], size, chunk_pixels=4000) == found


def test_equal_logits_give_the_first_class() -> None:
    seen = SemanticMap(torch.zeros(5, 4, 4), (32, 32), STRIDE)
    (region,) = encode_semantic([seen], (50, 60))
    assert (region.label, region.area) == (0, 3000)


def test_more_classes_than_a_byte_counts() -> None:
    seen = random_map(1, 300, (40, 40))
    assert_highest(labels_of(encode_semantic([seen], (60, 60)), (60, 60)), interpolated(seen, (60, 60)))


@pytest.mark.parametrize("chunk_pixels", [500, 1 << 20])
def test_several_views_have_their_probabilities_averaged(chunk_pixels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    size = (50, 70)
    views = [
        random_map(seed, 6, resized, is_mirrored=seed % 2 == 1)
        for seed, resized in enumerate([(40, 56), (40, 56), (64, 90), (64, 90), (30, 42)])
    ]
    likely = [replace(each, logits=each.logits.softmax(dim=0)) for each in views]
    found = encode_semantic(views, size, chunk_pixels=chunk_pixels)
    assert_highest(labels_of(found, size), np.mean([interpolated(each, size) for each in likely], axis=0))
    assert found == encode_semantic(views, size)
    monkeypatch.setattr(semantic_runs, "_may_win_together", lambda *_: torch.ones(6, dtype=torch.bool))
    assert encode_semantic(views, size) == found


def test_a_mirrored_photo_gives_the_mirrored_map() -> None:
    size = (45, 61)

    def views(photo: Tensor, other: Tensor) -> list[SemanticMap]:
        return [SemanticMap(photo, (36, 49), STRIDE), SemanticMap(other, (36, 49), STRIDE, is_mirrored=True)]

    photo, other = (random_map(seed, 7, (36, 49)).logits for seed in (1, 2))
    one = labels_of(encode_semantic(views(photo, other), size), size)
    assert np.array_equal(labels_of(encode_semantic(views(other, photo), size), size), one[:, ::-1])


def test_logits_that_are_not_finite_are_refused() -> None:
    seen = random_map(1, 4, (40, 40))
    seen.logits[2, 3, 3] = float("nan")
    with pytest.raises(NonFiniteError, match="semantic"):
        encode_semantic([seen], (80, 80))


def test_a_large_photo_with_183_classes_takes_little_memory() -> None:
    """Its logits would be 8.8 GB; they are never there at one time."""
    coarse = random_map(1, 183, (64, 96)).logits
    logits = torch.nn.functional.interpolate(coarse[None], (100, 150), mode="bicubic")[0]
    seen = SemanticMap(logits, (800, 1200), STRIDE)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    regions = encode_semantic([seen], (3000, 4000))
    assert sum(region.area for region in regions) == 12_000_000
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 1 << 30
