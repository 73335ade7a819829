from functools import reduce
from operator import add

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amends.maths.ranks import ROUNDS, Valued, above, counts_of, first_cuts, narrowed, num_equal, taken

numbers = st.lists(
    st.tuples(st.floats(width=32, allow_nan=False) | st.integers(-2, 2).map(float), st.integers(0, 2)), max_size=30
)


def valued(pairs):
    return Valued(np.array([v for v, _ in pairs], dtype=np.float32), np.array([g for _, g in pairs], dtype=np.int64))


def cut(parts, highest):
    cuts = first_cuts(np.array(highest))
    for _ in range(ROUNDS):
        cuts = narrowed(cuts, reduce(add, [counts_of(part, cuts) for part in parts]))
    return cuts


@given(numbers, st.integers(0, 30), st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_the_highest_of_each_group_are_taken_and_of_equal_ones_the_first_however_they_are_parted(pairs, split, share):
    sizes = [sum(g == group for _, g in pairs) for group in range(3)]
    highest = [int(share * size) for size in sizes]
    parts = [valued(pairs[:split]), valued(pairs[split:])]
    cuts = cut(parts, highest)
    found = [taken(parts[0], np.zeros(3, dtype=np.int64), cuts), taken(parts[1], num_equal(parts[0], cuts), cuts)]
    by_hand = sorted(range(len(pairs)), key=lambda i: (-pairs[i][0], i))
    wanted = [i for group in range(3) for i in [j for j in by_hand if pairs[j][1] == group][: highest[group]]]
    assert np.flatnonzero(np.concatenate(found)).tolist() == sorted(wanted)


def test_above_the_cut_lies_what_is_higher_than_its_value_alone():
    values = np.array([-0.0, 0.0, -1e-30, 1e-30, np.inf, -np.inf, 3, 3], dtype=np.float32)
    part = Valued(values, np.zeros(8, dtype=np.int64))
    for count in range(1, 9):
        lowest = np.sort(values)[::-1][count - 1]
        assert (above(part, cut([part], [count])) == (values > lowest)).all()


def test_more_than_there_are_cannot_be_taken():
    with pytest.raises(ValueError, match="1 groups have fewer values"):
        cut([valued([(1.0, 0), (2.0, 1)])], [1, 2, 0])
