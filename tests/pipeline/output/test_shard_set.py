"""Sets of shards as ranges are equal to sets of numbers."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.output.shard_set import ShardSet

RANGES = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 5)), max_size=12)


@given(RANGES, st.integers(0, 40))
def test_a_union_of_ranges_holds_the_numbers_in_them(ranges: list[tuple[int, int]], count: int) -> None:
    expected = {number for first, more in ranges for number in range(first, first + more + 1)}
    found = ShardSet([first for first, _ in ranges], [first + more for first, more in ranges])
    assert found == expected
    assert (len(found), list(found)) == (len(expected), sorted(expected))
    assert [number for number in range(40) if number in found] == sorted(expected)
    assert np.flatnonzero(found.mask(count)).tolist() == sorted(number for number in expected if number < count)
    assert found.covers(count) == expected.issuperset(range(count))
    for start in (0, count // 2, count):
        assert found.missing(start, count) == [number for number in range(start, count) if number not in expected]


def test_a_set_of_a_million_shards_is_a_few_numbers() -> None:
    shards = ShardSet(np.delete(np.arange(1_000_000), 7))
    assert (len(shards), shards.missing(0, 1_000_000)) == (999_999, [7])
    assert sum(array.nbytes for array in vars(shards).values()) < 100


def test_only_whole_numbers_are_in_it() -> None:
    assert "1" not in ShardSet([1])
    assert 1.5 not in ShardSet([1, 2])
