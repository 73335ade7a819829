"""Labels that look wrong, whether features can tell at all, and subclasses that they do not tell apart.

Shapes: N samples, D features, k neighbours.
"""

import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from amends.curate._ds2.curator import REFUSED_BELOW
from amends.curate._labels.detectors import DETECTORS, lists_in_parts
from amends.curate._labels.off_topic import off_topic
from amends.curate._labels.votes import count_triples
from amends.curate._pools.pool import Verdict
from amends.curate._pools.scale import Here, Workers, merged, shares_of
from amends.io.console import say
from amends.io.errors import InputError
from amends.maths.neighbors import nearest
from amends.maths.transition import Agreement, Transition, agreement, fit_transition

NEIGHBOURS = 5
LEAST = 10
"""Samples, or samples of a subclass, without which nothing is said of them."""
MOST_CHARTED = 12
AS_MIXED = 0.8
"""Share of what chance would mix two subclasses, from which on merging is offered."""


@dataclass(frozen=True, eq=False)
class Looked:
    """What features say of the rows that are no copies."""

    verdicts: dict[int, Verdict]
    """Of rows that are off topic or could not be judged."""
    distance: dict[int, tuple[float, float]]
    """Row to its distance from its nearest, and to its limit."""
    judged: list[int]
    """Rows that the detector was fitted to."""
    detector: Any
    names: list[str]
    """Labels by the detector's number."""
    agree: Any
    """Of nearest neighbours, as `amends.maths.transition.Agreement`; None where there was nothing to count."""
    refusal: str | None
    """Why features were not asked; then there is no detector."""
    heard: list[str]
    """Warnings of the detector."""
    transition: Transition | None = None
    """How often a class is found for another one; of at most `MOST_CHARTED` classes."""


class Mixed(NamedTuple):
    """Two subclasses of a class, and how far neighbours mix them: 0 not at all, 1 as by chance."""

    label: str
    one: str
    other: str
    mixing: float


def tell_apart(
    unit_ND: NDArray[np.float32], labels_N: NDArray[np.int64], workers: Workers
) -> tuple[Agreement | None, str | None]:
    """Measure how far nearest neighbours agree in their labels, and say why that is not enough to judge by, if so.

    Raises
    ------
    InputError : one class.
    """
    if len(np.unique(labels_N)) < 2:
        raise InputError(
            "one class at most is left: a label can only be wrong if there is another one. Give rows of several."
        )
    if len(labels_N) < LEAST:
        return None, f"{len(labels_N)} samples are left, fewer than {LEAST}"
    counts_KKK = _triples(unit_ND, labels_N, workers)
    if not counts_KKK.any():
        return None, "no sample has two neighbours that are no copies of it"
    agree = agreement(counts_KKK)
    if agree.above_chance >= REFUSED_BELOW:
        return agree, None
    told = f"nearest neighbours agree in {agree.pair:.0%} of pairs, {agree.pair_by_chance:.0%} by chance"
    return agree, f"these features do not tell the classes apart: {told}"


def _triples(unit_ND: NDArray[np.float32], labels_N: NDArray[np.int64], workers: Workers) -> NDArray[np.int64]:
    """Count the labels of samples and of their two nearest, (K, K, K); counts of parts are added."""
    shared = [workers.share(labels_N), int(labels_N.max()) + 1, workers.share(np.ones(len(labels_N), bool))]
    counted = workers.each(count_triples, lists_in_parts(workers, unit_ND, 2), shared=shared)
    found: NDArray[np.int64] = merged(workers, counted).count_KKK
    return found


def judge(
    unit_ND: NDArray[np.float32], labels_N: NDArray[np.int64], method: str, k: int, seed: int, workers: Workers
) -> Any:
    """Fit a detector of wrong labels.

    Returns
    -------
    The detector, and its warnings as a list of texts.

    Raises
    ------
    InputError : as the detector says.
    """
    how: dict[str, Any] = {"k": k} if method in ("knn", "simifeat-vote", "simifeat-rank") else {}
    how |= {"random_state": seed} if method != "knn" else {}
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            detector = DETECTORS[method](**how).fit(unit_ND, labels_N, workers)
        except InputError:
            raise
        except ValueError as error:
            raise InputError(f"--method {method}: {error}") from error
    return detector, list(dict.fromkeys(str(warning.message) for warning in heard))


def mixed_subclasses(
    unit_ND: NDArray[np.float32],
    labels: Sequence[str],
    subclasses: Sequence[str | None],
    workers: Workers | None = None,
) -> list[Mixed]:
    """Find subclasses of one class that neighbours do not tell apart: the most mixed first.

    Of two subclasses, the share of neighbours that lie across, among those in either, is divided by what it would be if
    they were mixed at random, and the smaller of both directions is taken. Of each sample the `NEIGHBOURS` nearest of
    its class are looked at. That is local to a class.
    """
    workers, members = workers or Here(), defaultdict[str, list[int]](list)
    for i, label in enumerate(labels):
        if subclasses[i]:
            members[label].append(i)
    classes = [(name, members[name], [str(subclasses[i]) for i in members[name]]) for name in sorted(members)]
    if not classes:
        return []
    found = workers.each(_mixed_in, shares_of(classes, workers.num_parts), shared=[workers.share(unit_ND)])
    mixed = [pair for part in workers.bring(found) for pair in part]
    return sorted(mixed, key=lambda pair: (-pair.mixing, pair.label, pair.one))


def _mixed_in(classes: Sequence[tuple[str, list[int], list[str]]], unit_ND: NDArray[np.float32]) -> list[Mixed]:
    """Local: subclasses of some classes; a class is its name, its samples, and the subclass of each."""
    found = []
    for label, here, own in classes:
        sizes = Counter(own)
        names = sorted(sub for sub, num in sizes.items() if num >= LEAST)
        if len(names) < 2:
            continue
        index_nk = nearest(unit_ND[here], min(NEIGHBOURS, len(here) - 1)).index_Qk
        counts = Counter((own[n], own[m]) for n in range(len(here)) for m in index_nk[n])
        for a, one in enumerate(names):
            for other in names[a + 1 :]:
                mixing = min(_across(counts, sizes, one, other), _across(counts, sizes, other, one))
                if mixing >= AS_MIXED:
                    found.append(Mixed(label, one, other, mixing))
    return found


def _across(counts: Counter[tuple[str, str]], sizes: Counter[str], one: str, other: str) -> float:
    across, within = counts[one, other], counts[one, one]
    by_chance = sizes[other] / (sizes[one] + sizes[other] - 1)
    return across / (across + within) / by_chance if across + within else 0.0


def look(
    unit_nD: NDArray[np.float32],
    left: Sequence[tuple[int, str, bool]],
    deviations: float,
    method: str,
    k: int,
    seed: int,
    workers: Workers,
) -> Looked:
    """Say what is off topic and which labels look wrong, of rows with their labels and whether these were voted."""
    names = sorted({label for _, label, _ in left})
    place = {name: number for number, name in enumerate(names)}
    labels_n = np.array([place[label] for _, label, _ in left])
    rows = [row for row, _, _ in left]
    agree, refusal = tell_apart(unit_nD, labels_n, workers)
    if refusal:
        return Looked({}, {}, [], None, names, agree, refusal, [])
    off = off_topic(unit_nD, labels_n, deviations, workers)
    distance = {
        row: (float(d), float(m)) for row, d, m in zip(rows, off.distance_N, off.limit_N, strict=True) if d == d
    }
    verdicts = {
        row: Verdict(
            "dropped", f"off topic: {distance[row][0]:.3f} from its nearest, and {distance[row][1]:.3f} is far"
        )
        for row, _, voted in left
        if deviations and row in distance and not voted and distance[row][0] > distance[row][1]
    }
    on_n = np.array([row not in verdicts for row in rows])
    say(f"judging {int(on_n.sum())} labels of {len(names)} classes by {method}")
    found = None
    if len(np.unique(labels_n[on_n])) == len(names) <= MOST_CHARTED:
        found = fit_transition(_triples(unit_nD[on_n], labels_n[on_n], workers))
        found = found if found.is_dominant else None
    detector, heard = judge(unit_nD[on_n], labels_n[on_n], method, k, seed, workers)
    return Looked(
        verdicts, distance, [row for row in rows if row not in verdicts], detector, names, agree, None, heard, found
    )
