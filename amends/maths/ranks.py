"""The highest values of each group, exactly, of values that lie in parts.

Where the cut falls is found by two rounds of counting, by the upper and then the lower half of the bits of each value.
Counts of parts add up, so that any parts lead to the cut, and the mask, of the whole: count, add, narrow; then take.

Shapes: M values of a part, G groups, U different keys that were counted.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from amends.maths.arrays import BoolArray, Float32Array, IntArray

ROUNDS = 2
"""Rounds of counting after which a cut is known."""
HALF = 16  # bits
NONE = 2**32 - 1  # above the bits of every number


class Valued(NamedTuple):
    """Values of a part, and the group of each."""

    value_M: Float32Array
    """Any numbers but NaN; compared as float32."""
    group_M: NDArray[np.integer[Any]]
    """0 to G - 1."""


class Counts(NamedTuple):
    """How many values there are by group and half of the bits; those of parts are added."""

    key_U: IntArray
    num_U: IntArray

    def __add__(self, other: Any) -> "Counts":
        """Add the counts of another part."""
        key_U, place = np.unique(np.concatenate([self.key_U, other.key_U]), return_inverse=True)
        num_U = np.zeros(len(key_U), dtype=np.int64)
        np.add.at(num_U, place, np.concatenate([self.num_U, other.num_U]))
        return Counts(key_U, num_U)


class Cuts(NamedTuple):
    """The lowest value of each group that is among the highest, as far as it is known."""

    bits_G: IntArray
    """Its bits in the order of the values; after the first round their upper half."""
    rest_G: IntArray
    """How many of the values that begin with them, or at last are equal, are among the highest."""
    rounds: int


def first_cuts(highest_G: IntArray) -> Cuts:
    """Begin to look for the cut below which none of the `highest_G` highest values of each group lies."""
    return Cuts(np.where(highest_G > 0, 0, NONE), np.asarray(highest_G, dtype=np.int64), 0)


def counts_of(part: Valued, cuts: Cuts) -> Counts:
    """Count the values of a part that may be the cut, for `narrowed`."""
    bits_M, group_M = _ordered(part.value_M), part.group_M.astype(np.int64)
    if cuts.rounds:
        here = bits_M >> HALF == cuts.bits_G[group_M]
        bits_M, group_M = bits_M[here] & (2**HALF - 1), group_M[here]
    else:
        bits_M = bits_M >> HALF
    return Counts(*np.unique(group_M << HALF | bits_M, return_counts=True))


def narrowed(cuts: Cuts, counts: Counts) -> Cuts:
    """Narrow the cuts down by the counts of all parts.

    Raises
    ------
    ValueError : a group has fewer values than are to be taken.
    """
    group_U, half_U = counts.key_U >> HALF, counts.key_U & (2**HALF - 1)
    up_to_U = np.concatenate([[0], np.cumsum(counts.num_U)])
    all_G = up_to_U[np.searchsorted(group_U, np.arange(len(cuts.rest_G)), side="right")]
    above_U, wanted_U = all_G[group_U] - up_to_U[1:], cuts.rest_G[group_U]
    is_cut_U = (above_U < wanted_U) & (above_U + counts.num_U >= wanted_U)
    of_U = group_U[is_cut_U]
    if (lacking := int((cuts.rest_G > 0).sum()) - len(of_U)) > 0:
        raise ValueError(f"{lacking} groups have fewer values than are to be taken of them.")
    bits_G, rest_G = np.full(len(cuts.rest_G), NONE), np.zeros(len(cuts.rest_G), dtype=np.int64)
    bits_G[of_U] = cuts.bits_G[of_U] << HALF | half_U[is_cut_U]
    rest_G[of_U] = cuts.rest_G[of_U] - above_U[is_cut_U]
    return Cuts(bits_G, rest_G, cuts.rounds + 1)


def above(part: Valued, cuts: Cuts) -> BoolArray:
    """Mark the values that are higher than the cut."""
    return np.asarray(_ordered(part.value_M) > cuts.bits_G[part.group_M])


def num_equal(part: Valued, cuts: Cuts) -> IntArray:
    """Count the values of each group that are equal to the cut, (G,)."""
    equal_M = _ordered(part.value_M) == cuts.bits_G[part.group_M]
    return np.bincount(part.group_M[equal_M], minlength=len(cuts.bits_G))


def taken(part: Valued, earlier_G: IntArray, cuts: Cuts) -> BoolArray:
    """Mark the highest values, of equal ones the first.

    Parameters
    ----------
    earlier_G : int array
        Values of the parts before this one that are equal to the cut.
    """
    bits_M = _ordered(part.value_M)
    equal = np.flatnonzero(bits_M == cuts.bits_G[part.group_M])
    group_E = part.group_M[equal]
    order_E = np.argsort(group_E, kind="stable")
    sorted_E = group_E[order_E]
    place_E = np.arange(len(equal)) - np.searchsorted(sorted_E, sorted_E) + earlier_G[sorted_E]
    mask = bits_M > cuts.bits_G[part.group_M]
    mask[equal[order_E[place_E < cuts.rest_G[sorted_E]]]] = True
    return np.asarray(mask)


def _ordered(value_M: Float32Array) -> IntArray:
    """Bits of each value, as a number that is larger where the value is."""
    bits_M = (np.asarray(value_M, dtype=np.float32) + np.float32(0)).view(np.uint32)  # + 0: no negative zero
    return np.where(bits_M >> 31, ~bits_M, bits_M | np.uint32(2**31)).astype(np.int64)
