"""What is going to be fused: pairs of low samples, begun as drafts, in parts of the pool (`_pools.scale`).

The texts of a part are counted and picked where they lie; what is merged is how often each word stands in the pool, and
which rows make a pair.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from amends.curate._entp.drafts import Control, Draft, Mixing, drafts_of
from amends.curate._entp.purge import Purged, Purging, Sample, can_mix, never_mixed
from amends.curate._entp.representatives import Grouped, Grouping, group, nearest_pairs
from amends.curate._entp.terms import Frequencies, Weights, frequencies
from amends.curate._pools.scale import Workers, merged
from amends.io.errors import NoResult
from amends.maths.arrays import Float32Array

ALONE: tuple[Control, ...] = ("one2one", "evolve")
"""Controls that take the first sample of each pair alone."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What is going to be fused."""

    low: list[int]
    """Numbers of the low rows that have an embedding."""
    unit_ND: Float32Array
    """Their embeddings at length 1."""
    grouped: Grouped
    drafts: list[Draft]
    weights: Weights
    neighbours: int
    never: set[frozenset[str]]
    workers: Workers

    def pair_again(self, unfit: Sequence[Draft]) -> None:
        """Exchange samples among drafts that do not go together: the nearest ones that were not together before.

        What is left over goes to the last drafts: a pair that was one before is told what was said of it then, and a
        new one that it was not asked about.
        """
        place_of = {row: i for i, row in enumerate(self.low)}
        samples = [sample for draft in unfit for sample in draft.samples]
        said = {frozenset(draft.samples): (f" ({draft.reason})", draft.domain) for draft in unfit}
        found = nearest_pairs(
            self.unit_ND[[place_of[sample.row] for sample in samples]],
            [number for number, draft in enumerate(unfit) for _ in draft.samples],
            self.neighbours,
            lambda i, j: can_mix(samples[i], samples[j], self.never),
            self.workers,
        )
        taken = {i for pair in found for i in pair}
        rest = [i for i in range(len(samples)) if i not in taken]
        groups = [[samples[i] for i in pair] for pair in (*found, *zip(rest[::2], rest[1::2], strict=True))]
        for number, (draft, new) in enumerate(zip(unfit, drafts_of(groups, self.weights), strict=True)):
            draft.samples, draft.keep = new.samples, new.keep
            if number < len(found):
                draft.status, draft.reason, draft.domain = "open", None, None
            else:
                before, draft.domain = said.get(frozenset(draft.samples), ("", None))
                draft.reason = f"no other partner was left{before}"


def plan(
    workers: Workers,
    purged: Sequence[Any],
    low: list[int],
    unit_ND: Float32Array,
    how: tuple[Purging, Grouping, Mixing],
    rng: np.random.Generator,
) -> Plan:
    """Group the low rows, and begin a draft of each pair that may be asked about.

    Parameters
    ----------
    purged : list of `Purged`, one a part, or what stands for them
    low : list of int
        Rows with a low score and an embedding.
    unit_ND : array
        Of these.

    Raises
    ------
    NoResult : fewer than two such rows.
    """
    purging, grouping, mixing = how
    never = never_mixed(purging.never_mix)
    if len(low) < 2:
        raise NoResult(
            f"{len(low)} usable rows have a score of at most {purging.low:g}, and two are needed to make one. "
            "Raise --low, or name another column."
        )
    grouped = group(unit_ND, grouping, rng, at_random=mixing.control == "random", workers=workers)
    weights = Weights(merged(workers, workers.each(_counted, purged)))
    paired = [low[i] for pair in grouped.pairs for i in pair]
    picked = workers.bring(workers.each(_picked, purged, shared=[frozenset(paired)]))
    sample_of = {sample.row: sample for part in picked for sample in part}
    size = 1 if mixing.control in ALONE else 2
    groups = [[sample_of[low[i]] for i in list(pair)[:size]] for pair in grouped.pairs]
    drafts = drafts_of(groups, weights, mixing.form, mixing.control == "evolve")
    for draft in drafts:
        if len(draft.samples) > 1 and not can_mix(draft.samples[0], draft.samples[1], never):
            draft.status, draft.reason = "incompatible", f"licences that do not mix: {' and '.join(draft.licences)}"
    return Plan(low, unit_ND, grouped, drafts, weights, grouping.neighbours, never, workers)


def _counted(purged: Purged) -> Frequencies:
    """Local: how many usable samples each word stands in; adds up."""
    return frequencies(f"{sample.instruction}\n{sample.response}" for sample in purged.usable)


def _picked(purged: Purged, rows: frozenset[int]) -> list[Sample]:
    """Local: the samples of some rows."""
    return [sample for sample in purged.low if sample.row in rows]


def instructions_of(purged: Purged) -> list[str]:
    """Local: the instructions of the usable samples."""
    return [sample.instruction for sample in purged.usable]


def rows_of(purged: Purged) -> list[int]:
    """Local: the numbers of the rows of the usable samples."""
    return [sample.row for sample in purged.usable]
