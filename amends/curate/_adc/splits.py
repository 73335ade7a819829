"""Splits that share no group of copies, with the classes of each in proportion.

Shapes: N samples, S splits.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

SPLITS = ("train", "val", "test")


def split_groups(
    labels: Sequence[str], groups: Sequence[int], shares: Sequence[float], rng: np.random.Generator
) -> list[str]:
    """Give each sample a split, so that a group lies in one of them.

    Within a class (of a group with several labels the commonest), groups are taken at random, large ones first, each
    for the split that lacks most of its share of the class. A class with few groups is in train first.

    Parameters
    ----------
    shares : of train, val and test; they sum to 1.

    Returns
    -------
    list of str : one of `SPLITS` for each sample.
    """
    members: dict[int, list[int]] = defaultdict(list)
    for i, group in enumerate(groups):
        members[group].append(i)
    of_class: dict[str, list[list[int]]] = defaultdict(list)
    for some in members.values():
        counts = Counter(labels[i] for i in some)
        of_class[min(counts, key=lambda name: (-counts[name], name))].append(some)
    found = [""] * len(labels)
    for name in sorted(of_class):
        parts = [of_class[name][i] for i in rng.permutation(len(of_class[name]))]
        lacks_S = np.array(shares) * sum(map(len, parts))
        for some in sorted(parts, key=len, reverse=True):
            s = int(lacks_S.argmax())
            lacks_S[s] -= len(some)
            for i in some:
                found[i] = SPLITS[s]
    return found
