"""Copies in a pool: the same sample twice, nearly the same one, and one that was found for two classes.

What is found for two classes shows that a label is wrong, but not which: none of them is kept, unless a person said
what it is ([design]; ADC keeps both labels as evidence of noise).

In parts (`_pools.scale`): a part's samples are compared with all. What is merged is pairs and equal digests:
which copy stays is decided where all of them are known.

Shapes: N samples, P pairs, D features.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from amends.curate._adc.images import HASH_BITS
from amends.curate._adc.samples import Samples
from amends.curate._pools.scale import Here, Workers
from amends.io.errors import InputError
from amends.maths.arrays import IntArray

AT_ONCE = 512
"""Samples whose copies are looked for together: nearly equal features would fill memory with more."""
MOST_PAIRS, MOST_SHARE = 200, 0.5
"""Pairs a sample, and share of all pairs, from which on nearly all samples count as copies."""
FEW = 20
"""Samples from which on the share of pairs is looked at."""


class Sample(NamedTuple):
    """What is asked of a sample to tell which of its copies stays."""

    label: str
    voted: bool
    """Whether a person gave the label."""
    order: int
    """The smallest one stays, but one with a vote before all."""
    where: str


@dataclass
class Copies:
    """What is a copy of what, by number of the sample."""

    samples: Sequence[Sample]
    stays: list[int] = field(default_factory=list)
    """Samples that are neither dropped nor disputed."""
    dropped: dict[int, str] = field(default_factory=dict)
    """Copies of a sample that stays, with the reason."""
    disputed: dict[int, str] = field(default_factory=dict)
    """Samples that were found for two classes, with the reason."""
    links: list[tuple[int, int]] = field(default_factory=list)
    """Pairs of copies; of a group of equal ones each with the first."""

    def place(self, i: int) -> tuple[bool, int, int]:
        """Where a sample stands among its copies."""
        return (not self.samples[i].voted, self.samples[i].order, i)

    def told(self, i: int) -> str:
        """Name a sample of another class."""
        said = "which a person says is" if self.samples[i].voted else "which was found for"
        return f'{self.samples[i].where}, {said} "{self.samples[i].label}"'

    def groups(self) -> IntArray:
        """Give each sample a number (N,), the same to all that are linked by copies, directly or not."""
        num = len(self.samples)
        i_L, j_L = np.array(self.links, dtype=np.int64).reshape(-1, 2).T
        graph = coo_array((np.ones(len(i_L), np.int8), (i_L, j_L)), shape=(num, num))
        return connected_components(graph, directed=False)[1].astype(np.int64)


def equal(samples: Sequence[Sample], keys: Sequence[object]) -> Copies:
    """Find samples with equal keys: one of each stays; none where they have different labels, without a vote on it."""
    found, labels = Copies(samples), [sample.label for sample in samples]
    together: dict[object, list[int]] = defaultdict(list)
    for i, key in enumerate(keys):
        together[key].append(i)
    for members in together.values():
        first, *others = sorted(members, key=found.place)
        found.links += [(first, i) for i in others]
        said = {labels[i] for i in members if samples[i].voted}
        if len({labels[i] for i in members}) > 1 and len(said) != 1:
            for i in members:
                other = next(j for j in (first, *others) if labels[j] != labels[i])
                found.disputed[i] = f"the same as {found.told(other)}"
            continue
        found.stays.append(first)
        for i in others:
            name = found.told(first) if labels[i] != labels[first] else samples[first].where
            found.dropped[i] = f"the same as {name}"
    found.stays.sort()
    return found


def nearly_equal(found: Copies, near: Iterable[tuple[int, int, str]]) -> None:
    """Go on with samples that stayed and are nearly the same: pairs of numbers, and how near in words.

    Of those with one label no two that are near each other stay; so a second run finds nothing more to drop.
    """
    samples = found.samples
    beside: dict[int, list[tuple[int, str]]] = defaultdict(list)
    for i, j, how in near:
        found.links.append((i, j))
        beside[i].append((j, how))
        beside[j].append((i, how))
    for i, others in beside.items():
        for j, how in sorted(others):
            if samples[i].label != samples[j].label and not samples[i].voted:
                found.disputed.setdefault(i, f"nearly the same ({how}) as {found.told(j)}")
    taken: set[int] = set()
    for i in sorted(beside.keys() - found.disputed.keys(), key=found.place):
        same = [(j, how) for j, how in sorted(beside[i]) if j in taken and samples[i].label == samples[j].label]
        if same:
            found.dropped[i] = f"nearly the same ({same[0][1]}) as {samples[same[0][0]].where}"
        else:
            taken.add(i)
    found.stays = [i for i in found.stays if i not in found.dropped and i not in found.disputed]


def close_pairs(
    unit_ND: NDArray[np.float32], least: float, workers: Workers | None = None
) -> tuple[IntArray, NDArray[np.float32]]:
    """Find all pairs with a cosine of `least` or more: exact, in tiles.

    Returns
    -------
    int array (P, 2), first below second, in order; float array (P,) of cosines.

    Raises
    ------
    InputError : so many that the features do not tell samples apart.
    """
    workers, num = workers or Here(), len(unit_ND)
    most = min(MOST_PAIRS * num, MOST_SHARE * num * (num - 1) / 2) if num >= FEW else num * num
    tiles = range(0, num, AT_ONCE)
    parts = [tiles[number :: workers.num_parts] for number in range(min(workers.num_parts, len(tiles)))]
    found = workers.bring(workers.each(_close_pairs, parts, shared=[workers.share(unit_ND), least, most]))
    pairs_P2, cosine_P = (np.concatenate([of[i] for of in found]) for i in range(2))
    if len(pairs_P2) > most or not all(whole for _, _, whole in found):
        raise InputError(
            f"over {most:,.0f} pairs of {num:,} samples have a cosine of {least:g} or more: these features do not "
            "tell samples apart. Name another embedder or column, or raise --near."
        )
    order = np.lexsort((pairs_P2[:, 1], pairs_P2[:, 0]))
    return pairs_P2[order], cosine_P[order]


def _close_pairs(
    starts: Sequence[int], unit_ND: NDArray[np.float32], least: float, most: float
) -> tuple[IntArray, NDArray[np.float32], bool]:
    """Local: pairs of the samples of some tiles with those behind them, and whether these are all.

    Tiles are put into the index from the last one on, so that each sample is compared with those behind it alone.
    """
    import faiss

    num, asked = len(unit_ND), set(starts)
    last = (num - 1) // AT_ONCE * AT_ONCE
    index = faiss.IndexFlatIP(unit_ND.shape[1])
    pairs, cosines, count = [np.empty((0, 2), np.int64)], [np.empty(0, np.float32)], 0
    for start in range(last, min(starts) - 1, -AT_ONCE):
        index.add(unit_ND[start : start + AT_ONCE])
        if start not in asked:
            continue
        ends_Q, cosine_P, place_P = index.range_search(unit_ND[start : start + AT_ONCE], least - 1e-6)
        ends_Q = ends_Q.astype(np.int64)
        own_P = start + np.repeat(np.arange(len(ends_Q) - 1), ends_Q[1:] - ends_Q[:-1])
        tile_P, in_tile_P = np.divmod(place_P - (num - last), AT_ONCE)  # of those behind the last tile
        other_P = np.where(tile_P < 0, last + place_P, last - AT_ONCE * (1 + tile_P) + in_tile_P)
        is_first_P = own_P < other_P
        pairs.append(np.column_stack([own_P[is_first_P], other_P[is_first_P]]))
        cosines.append(cosine_P[is_first_P])
        count += len(pairs[-1])
        if count > most:
            return pairs[0], cosines[0], False
    return np.concatenate(pairs), np.concatenate(cosines), True


def near_copies(
    samples: Samples,
    used: Sequence[int],
    unit_nD: NDArray[np.float32],
    near: float,
    hash_bits: int,
    workers: Workers | None = None,
) -> dict[tuple[int, int], str]:
    """Find pairs of rows that are nearly the same, and say how near."""
    pairs_P2, cosine_P = close_pairs(unit_nD, near, workers)
    found = {(used[i], used[j]): f"cosine {c:.3f}" for (i, j), c in zip(pairs_P2.tolist(), cosine_P, strict=True)}
    if samples.kind == "image" and hash_bits >= 0:
        signs_nB = np.where([samples.hashes[i] for i in used], 1, -1).astype(np.float32) / np.sqrt(HASH_BITS)
        pairs_P2, cosine_P = close_pairs(signs_nB, 1 - 2 * hash_bits / HASH_BITS, workers)
        for (i, j), cosine in zip(pairs_P2.tolist(), cosine_P, strict=True):
            bits = round((1 - float(cosine)) * HASH_BITS / 2)
            found.setdefault((used[i], used[j]), f"{bits} of {HASH_BITS} bits of the perceptual hash differ")
    return found
