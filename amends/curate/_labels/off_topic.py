"""Samples that fit no class: far from all others, whatever their label.

[design] ADC names outliers and gives no rule. Shapes: N samples, k neighbours.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from amends.curate._pools.scale import Here, Workers, parts_of, searched

NEIGHBOURS = 5
TO_DEVIATION = 1.4826
"""Of a normal distribution: standard deviation by median absolute deviation."""
LEAST = 10
"""Samples without which nothing is called far."""


class OffTopic(NamedTuple):
    """How far each sample is from others, and from where on that is too far."""

    distance_N: NDArray[np.float64]
    """Mean of 1 - cosine to the nearest others."""
    limit_N: NDArray[np.float64]
    """Of all samples or of those with the same label, whichever is larger."""


def off_topic(
    unit_ND: NDArray[np.float32], labels_N: NDArray[np.int64], deviations: float, workers: Workers | None = None
) -> OffTopic:
    """Measure how far samples are from their nearest, and set the limit by median and median absolute deviation.

    A limit for each class keeps a class that is scattered, or small, from being taken for noise. Distances are local to
    a part of the samples; the medians are taken of all of them.
    """
    num = len(unit_ND)
    if num < LEAST:
        return OffTopic(np.full(num, np.nan), np.full(num, np.inf))
    workers = workers or Here()
    shared = [workers.share(unit_ND), min(NEIGHBOURS, num - 1)]
    distance_N = np.concatenate(
        workers.bring(workers.each(_distances, parts_of(num, workers.num_parts), shared=shared))
    )
    limit_N = np.full(num, _limit(distance_N, deviations))
    for c in np.unique(labels_N):
        here_N = labels_N == c
        limit_N[here_N] = np.maximum(limit_N[here_N], _limit(distance_N[here_N], deviations))
    return OffTopic(distance_N, limit_N)


def _distances(rows: slice, unit_ND: NDArray[np.float32], k: int) -> NDArray[np.float64]:
    """Local: mean distance of the samples of a part to their nearest."""
    return np.asarray(1 - searched(rows, unit_ND, k).similarity_Qk.mean(axis=1, dtype=np.float64))


def _limit(distance_N: NDArray[np.float64], deviations: float) -> float:
    middle = float(np.median(distance_N))
    return middle + deviations * TO_DEVIATION * float(np.median(np.abs(distance_N - middle)))
