"""Bisection finds the images that kill workers, and costs few workers."""

import math
from collections.abc import Collection

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.driver.bisection import CONFIRMING_DEATHS, MAX_DEATHS_WITHOUT_SURVIVOR, Bisection
from pipeline.messages import PartialResult, ShardFailure, ShardResult


def piece_of(positions: tuple[int, ...]) -> PartialResult:
    return PartialResult(0, positions, ShardResult(0, {"ok": len(positions)}, 0, {}, 0, 0.0), (), ())


def death(suspects: tuple[int, ...] = ()) -> ShardFailure:
    return ShardFailure(0, "death", "the worker died", suspects=suspects)


def search(bisection: Bisection, killers: Collection[int], *, hints: Collection[int] = ()) -> int:
    """Try the groups until none is left; return the number of deaths."""
    deaths = 0
    while (group := bisection.group) and not bisection.is_given_up:
        if set(group) & set(killers):
            deaths += 1
            bisection.killed(death(tuple(hints)))
        else:
            bisection.survived(piece_of(group))
    return deaths


def survivors(bisection: Bisection) -> list[int]:
    return sorted(position for piece in bisection.pieces for position in piece.positions)


@settings(deadline=None)
@given(data=st.data(), images=st.integers(1, 300))
def test_the_killers_are_found_and_all_other_images_are_done_once(data: st.DataObject, images: int) -> None:
    killers = data.draw(st.sets(st.integers(0, images - 1), min_size=1, max_size=5))
    bisection = Bisection(images)
    deaths = search(bisection, killers)
    assert set(bisection.verdicts) == killers
    assert survivors(bisection) == [position for position in range(images) if position not in killers]
    assert deaths <= len(killers) * (math.ceil(math.log2(images)) + CONFIRMING_DEATHS)


@pytest.mark.parametrize("killer", range(0, 256, 15))
def test_one_killer_among_many_costs_a_worker_for_each_halving_at_most(killer: int) -> None:
    deaths = search(Bisection(256), {killer})
    assert CONFIRMING_DEATHS <= deaths <= 8 + CONFIRMING_DEATHS


def test_a_death_by_chance_fails_no_image() -> None:
    bisection = Bisection(64)
    bisection.killed(death())
    assert search(bisection, ()) == 0
    assert bisection.verdicts == {}
    assert survivors(bisection) == list(range(64))


def test_a_single_image_fails_only_when_it_kills_again() -> None:
    bisection = Bisection(1)
    bisection.killed(death())
    assert bisection.group == (0,)
    bisection.survived(piece_of((0,)))
    assert not bisection.group
    assert not bisection.verdicts


@settings(deadline=None)
@given(killer=st.integers(0, 99), hint=st.sets(st.integers(0, 99), min_size=1, max_size=99))
def test_suspects_shorten_the_search_and_wrong_ones_do_no_harm(killer: int, hint: set[int]) -> None:
    bisection = Bisection(100)
    deaths = search(bisection, {killer}, hints=hint)
    assert set(bisection.verdicts) == {killer}
    assert survivors(bisection) == [position for position in range(100) if position != killer]
    assert deaths <= 2 * math.ceil(math.log2(100)) + CONFIRMING_DEATHS


def test_a_right_suspect_costs_only_its_confirmation() -> None:
    assert search(Bisection(256), {200}, hints=[200]) == 1 + CONFIRMING_DEATHS


def test_an_image_that_hung_is_settled_at_once() -> None:
    bisection = Bisection(8)
    bisection.killed(ShardFailure(0, "hang", "hung for 9 s", suspects=(3,)))
    assert bisection.verdicts == {3: "hung for 9 s"}
    assert bisection.group == (0, 1, 2, 4, 5, 6, 7)


def test_of_a_batch_that_hung_the_others_are_tried_first() -> None:
    bisection = Bisection(8)
    bisection.killed(ShardFailure(0, "hang", "hung", suspects=(2, 3)))
    assert bisection.group == (0, 1, 4, 5, 6, 7)
    assert search(bisection, {2}) == CONFIRMING_DEATHS
    assert set(bisection.verdicts) == {2}


def test_when_everything_dies_no_image_is_blamed() -> None:
    bisection = Bisection(4096)
    assert search(bisection, range(4096)) == MAX_DEATHS_WITHOUT_SURVIVOR
    assert bisection.is_given_up
    assert bisection.verdicts == {}
