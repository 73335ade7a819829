"""What becomes of collected samples, in parts of them (`_pools.scale`): copies, off-topic ones, wrong labels.

A part's samples are read, compared with all, and judged by their neighbours. What is merged: equal digests and pairs of
near copies, the medians of distances, counts of labels; and the shares of the classes in each split.

Shapes: N rows, n rows that are left, D features.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from amends.curate._adc.copies import Copies, Sample, equal, near_copies, nearly_equal
from amends.curate._adc.images import HASH_BITS, hex_of
from amends.curate._adc.review import NONE
from amends.curate._adc.samples import Samples, order_of, words_in
from amends.curate._adc.splits import split_groups
from amends.curate._labels.doubts import Looked, Mixed, look, mixed_subclasses
from amends.curate._pools.flagged import JUDGED, Flagged, Method, check_flagged, doubt_of
from amends.curate._pools.pool import Outcome, Verdict
from amends.curate._pools.scale import Workers
from amends.io.errors import InputError
from amends.io.rows import Row
from amends.maths.arrays import Float32Array
from amends.maths.neighbors import unit

ADDED = (
    "found_as",
    "split",
    "noise_score",
    "label_error",
    "suggested_label",
    "confidence",
    "copy_group",
    "distance",
    "distance_limit",
    "perceptual_hash",
)
"""Columns that every row gets: `found_as` is the label that it was found for."""
NO_VECTOR = "no embedding, or one without a direction (NaN, infinite, zero)"
FEATURELESS = "no wrong label and nothing off topic was looked for: "


@dataclass(frozen=True)
class How:
    """How a pool is cleaned; the defaults are [design], choices of this tool."""

    near: float = 0.95
    """Cosine from which on two samples are nearly the same."""
    hash_bits: int = 4
    """Bits of 64 in which the perceptual hashes of two pictures that are nearly the same may differ; -1: none are."""
    deviations: float = 5.0
    """Of the median, in units of 1.4826 x the median absolute deviation: farther is off topic. 0 drops none."""
    method: Method = "simifeat-vote"
    k: int = 10
    flagged: Flagged = "drop"
    confidence: float = 0.5
    shares: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """Of train, val and test."""


def check_how(how: How) -> None:
    """Refuse what cannot be, before anything is read."""
    from amends.curate._labels.detectors import DETECTORS

    if how.method not in DETECTORS:
        raise InputError(f"--method {how.method}: unknown. Choose one of {', '.join(DETECTORS)}.")
    check_flagged(how.flagged, how.confidence)
    if len(how.shares) != 3 or min(how.shares) < 0 or abs(sum(how.shares) - 1) > 1e-6:
        raise InputError(f"--split {' '.join(map(str, how.shares))}: expected three shares that sum to 1.")
    if not 0 < how.near <= 1 or not -1 <= how.hash_bits < HASH_BITS // 2 or how.deviations < 0:
        raise InputError(
            f"--near {how.near:g}, --hash-bits {how.hash_bits}, --deviations {how.deviations:g}: expected over 0 to 1, "
            f"-1 to {HASH_BITS // 2 - 1}, and 0 or more."
        )


@dataclass(frozen=True, eq=False)
class Found:
    """What was found of every row; as `Cleaned` of `amends.curate.adc_clean` has it."""

    outcome: Outcome
    copies: Copies
    disputed: list[int]
    looked: Looked
    mixed: list[Mixed]


def clean(
    samples: Samples,
    refused: Mapping[int, str],
    points_of: Callable[[Sequence[int]], Float32Array],
    said: Mapping[int, str],
    label: str,
    how: How,
    seed: int,
    workers: Workers,
) -> Found:
    """Say what becomes of every row.

    Parameters
    ----------
    refused : dict
        Rows that cannot be compared, with the reason; beside those that could not be read.
    points_of : function
        Of rows their embeddings (n, D).
    said : dict
        Row to the label that a person gave it.
    label : str
        Column of the label.

    Raises
    ------
    InputError : nothing is left to judge, or features that tell nothing apart.
    """
    verdicts = dict(samples.refused)
    labels = [said.get(i, name or "") for i, name in enumerate(samples.labels)]
    verdicts |= {i: Verdict("dropped", "a person says that it belongs to no class") for i in said if said[i] == NONE}
    verdicts |= {i: Verdict("refused", why) for i, why in refused.items()}
    rows = [i for i in samples.used if i not in verdicts]
    if not rows:
        raise InputError(
            f"{samples.rows[0].where}: no row is left that can be compared and was not voted out. Give a pool with "
            "rows that belong to a class."
        )
    copies = equal(
        [Sample(labels[i], i in said, order_of(samples.rows[i]), samples.rows[i].where) for i in rows],
        [samples.keys[i] for i in rows],
    )
    used = [rows[n] for n in copies.stays]
    if not used:
        raise InputError(f"{samples.rows[0].where}: every row was found for two classes, so none can be kept.")
    unit_ND = unit(points_of(used))
    number = {i: n for n, i in enumerate(rows)}
    near = near_copies(samples, used, unit_ND, how.near, how.hash_bits, workers)
    nearly_equal(copies, ((number[i], number[j], told) for (i, j), told in near.items()))
    verdicts |= {rows[n]: Verdict("dropped", reason) for n, reason in (copies.dropped | copies.disputed).items()}
    left_n = np.array([i not in verdicts for i in used])
    left, unit_nD = [i for i in used if i not in verdicts], unit_ND[left_n]
    told_of = [(i, labels[i], i in said) for i in left]
    looked = look(unit_nD, told_of, how.deviations, how.method, how.k, seed, workers)
    verdicts |= looked.verdicts
    group_of = dict(zip(rows, copies.groups().tolist(), strict=True))
    outcome = _outcome(samples, labels, said, verdicts, looked, group_of, label, how, seed)
    subclasses = [words_in(samples.rows[i], "subclass") for i in left]
    mixed = [] if looked.refusal else mixed_subclasses(unit_nD, [labels[i] for i in left], subclasses, workers)
    return Found(outcome, copies, [rows[n] for n in copies.disputed], looked, mixed)


def _outcome(
    samples: Samples,
    labels: list[str],
    said: Mapping[int, str],
    verdicts: dict[int, Verdict],
    looked: Looked,
    group_of: Mapping[int, int],
    label: str,
    how: How,
    seed: int,
) -> Outcome:
    """Give every row its fate, with the reason, and the columns that are added."""
    rows, given = list(samples.rows), samples.labels
    added: dict[str, list[Any]] = {name: [None] * len(rows) for name in ADDED}
    values = {name: rows[i].data[label] for i, name in enumerate(given) if name is not None}  # a number stays one
    final = dict(enumerate(labels))
    for i, row in enumerate(rows):
        added["found_as"][i], added["copy_group"][i] = row.data.get(label), group_of.get(i)
        added["perceptual_hash"][i] = hex_of(samples.hashes[i]) if i in samples.hashes else None
        if i in looked.distance:
            added["distance"][i], added["distance_limit"][i] = (round(value, 5) for value in looked.distance[i])
        if i in said and i not in verdicts and said[i] != given[i]:
            verdicts[i] = Verdict("kept", f'label "{given[i]}" -> "{said[i]}" (voted)')
    d = looked.detector
    for n, i in enumerate(looked.judged):
        if i in said:
            continue
        if why := d.why_not_[n]:
            verdicts[i] = Verdict("refused", f"not judged: {why}")
            continue
        doubt = doubt_of(d, n)
        other = looked.names[doubt.suggested]
        for name, value in zip(JUDGED, doubt.values(values[other]), strict=True):
            added[name][i] = value
        if doubt.wrong:
            verdicts[i], replaced = doubt.verdict(labels[i], other, how.flagged, how.confidence, "dropped")
            if replaced:
                final[i] = other
    everything = [verdicts.get(i, Verdict("kept")) for i in range(len(rows))]
    kept = [i for i, verdict in enumerate(everything) if verdict.fate == "kept"]
    splits = split_groups(
        [final[i] for i in kept], [group_of[i] for i in kept], how.shares, np.random.default_rng(seed)
    )
    for i, split in zip(kept, splits, strict=True):
        added["split"][i] = split
        if final[i] != given[i]:
            rows[i] = Row({**rows[i].data, label: values[final[i]]}, rows[i].where)
    return Outcome(rows, everything, added)
