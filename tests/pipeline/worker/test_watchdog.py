"""The watchdog names images that take too long, with their step."""

import pytest

from pipeline.messages import Hang
from pipeline.worker.watchdog import Watchdog
from tests.support.fakes.clock import HandClock


def test_what_is_within_its_time_does_not_hang() -> None:
    clock = HandClock()
    watchdog = Watchdog(5.0, clock=clock)
    with watchdog.on(0, [3], "decoding"):
        clock.now = 4.9
        assert watchdog.hang() is None
    clock.now = 100.0
    assert watchdog.hang() is None


def test_what_is_over_its_time_is_named_even_when_it_ends_by_an_exception() -> None:
    clock = HandClock()
    watchdog = Watchdog(5.0, clock=clock)
    found: list[Hang | None] = []

    def decode() -> None:
        with watchdog.on(2, [3], "decoding"):
            clock.now = 7.0
            found.append(watchdog.hang())
            raise ValueError("bad")

    with pytest.raises(ValueError, match="bad"):
        decode()
    assert found == [Hang(2, (3,), "decoding hung for 7 s; the limit is retry.image_timeout_s")]
    assert watchdog.hang() is None


def test_a_batch_has_the_time_of_all_its_images() -> None:
    clock = HandClock()
    watchdog = Watchdog(5.0, clock=clock)
    with watchdog.on(0, [7, 2, 4], "the model"):
        clock.now = 14.0
        assert watchdog.hang() is None
        clock.now = 16.0
        found = watchdog.hang()
    assert found is not None
    assert found.positions == (2, 4, 7)
    assert "with 3 images" in found.reason


def test_the_images_that_are_over_the_longest_are_named() -> None:
    clock = HandClock()
    watchdog = Watchdog(5.0, clock=clock)
    with watchdog.on(0, [0, 1, 2, 3], "the model"):
        clock.now = 14.0
        with watchdog.on(1, [9], "decoding"):
            clock.now = 21.0
            found = watchdog.hang()
    assert found is not None
    assert (found.index, found.positions) == (1, (9,))


def test_without_a_limit_nothing_hangs() -> None:
    clock = HandClock()
    watchdog = Watchdog(None, clock=clock)
    with watchdog.on(0, [0], "decoding"):
        clock.now = 1e9
        assert watchdog.hang() is None
