"""Batches: every image once, one shape each, never too large, in a reproducible order."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.worker.batching import Batcher, BatchSize

Image = tuple[int, tuple[int, int]]
SHAPES = st.sampled_from([(800, 1088), (800, 1216), (1088, 800), (32, 1344)])
IMAGES = st.lists(SHAPES, max_size=80).map(lambda shapes: list(enumerate(shapes)))


def batches_of(batcher: Batcher[Image], images: list[Image], weight_bytes: int = 0) -> list[list[Image]]:
    batches = []
    for image in images:
        batches.extend(batcher.add(image[1], image, weight_bytes))
    return [*batches, *batcher.flush()]


@settings(deadline=None)
@given(images=IMAGES, batch_size=st.integers(1, 9), max_images=st.none() | st.integers(1, 20))
def test_every_image_leaves_once_in_a_batch_of_its_shape(
    images: list[Image], batch_size: int, max_images: int | None
) -> None:
    batches = batches_of(Batcher(batch_size, max_images=max_images), images)
    assert sorted(image for batch in batches for image in batch) == images
    for batch in batches:
        assert 1 <= len(batch) <= batch_size
        assert len({shape for _, shape in batch}) == 1
        assert batch == sorted(batch)


@settings(deadline=None)
@given(images=IMAGES, batch_size=st.integers(1, 9))
def test_the_same_images_make_the_same_batches(images: list[Image], batch_size: int) -> None:
    assert batches_of(Batcher(batch_size), images) == batches_of(Batcher(batch_size), images)


@settings(deadline=None)
@given(images=IMAGES, max_images=st.integers(1, 20), max_bytes=st.integers(0, 1000))
def test_what_is_held_back_stays_bounded(images: list[Image], max_images: int, max_bytes: int) -> None:
    batcher: Batcher[Image] = Batcher(8, max_images=max_images, max_bytes=max_bytes)
    for image in images:
        list(batcher.add(image[1], image, weight_bytes=100))
        assert batcher.images_held <= max_images
        assert batcher.bytes_held <= max_bytes


def test_looking_ahead_fills_batches_of_mixed_shapes() -> None:
    wide, tall = (800, 1088), (1088, 800)
    images = [(number, (wide, tall)[number % 2]) for number in range(16)]
    assert [len(batch) for batch in batches_of(Batcher(8), images)] == [8, 8]


def test_at_the_bound_the_fullest_shape_leaves_first() -> None:
    images: list[Image] = [(0, (1, 1)), (1, (2, 2)), (2, (2, 2)), (3, (3, 3))]
    assert batches_of(Batcher(8, max_images=3), images)[0] == [(1, (2, 2)), (2, (2, 2))]


def test_a_smaller_batch_size_takes_effect_at_once() -> None:
    batcher: Batcher[int] = Batcher(8)
    for number in range(5):
        assert not list(batcher.add((1, 1), number))
    batcher.batch_size = 2
    assert list(batcher.add((1, 1), 5)) == [[0, 1], [2, 3], [4, 5]]


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        Batcher(0)
    with pytest.raises(ValueError, match="at least one image"):
        BatchSize(0)


def test_running_out_of_memory_halves_down_to_one() -> None:
    size = BatchSize(8)
    seen = []
    for _ in range(5):
        size.ran_out(size.current)
        seen.append(size.current)
    assert seen == [4, 2, 1, 1, 1]


def test_quiet_batches_double_the_size_back_to_its_ceiling() -> None:
    size = BatchSize(6)
    size.ran_out(6)
    assert size.current == 3
    for _ in range(BatchSize.QUIET_BATCHES):
        size.succeeded(3)
    assert size.current == 6
    for _ in range(BatchSize.QUIET_BATCHES):
        size.succeeded(6)
    assert size.current == 6


def test_small_batches_say_nothing_about_large_ones() -> None:
    size = BatchSize(8)
    size.ran_out(8)
    for _ in range(BatchSize.QUIET_BATCHES):
        size.succeeded(1)
    assert size.current == 4
