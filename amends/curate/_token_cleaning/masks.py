"""Which answer tokens carry loss: masks from scores, and what a cleaning has to achieve.

The numbers of all rows stand one behind another in a flat array. Shapes: N rows, M answer tokens of all rows; row i has
the tokens from `offsets[i]` to `offsets[i + 1]`.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from amends.curate._pools.scale import Here, Workers, highest, merged
from amends.io.errors import InputError
from amends.maths.ranks import Valued

Level = Literal["global", "sample", "threshold"]
LEVELS: tuple[Level, ...] = ("global", "sample", "threshold")
KEEP = 0.6
"""Share that is kept unless another one is asked for, as in the paper."""
LEAST_LIKELY, MOSTLY = 0.25, 0.5
"""Share of the tokens, by the base, that `rise_of` looks at; part of what they gained that is worth a warning."""
Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]
Offsets = NDArray[np.int64]


def offsets_of(lengths: Sequence[int]) -> Offsets:
    """Where each row's tokens begin, and at last their number, (N + 1,)."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def rows_of_tokens(offsets: Offsets) -> NDArray[np.int64]:
    """Say of each token which row it is of, (M,)."""
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))


def check_choice(level: str, keep: float | None, threshold: float | None, sources: bool) -> None:
    """Refuse settings that do not go together, or would be ignored.

    Raises
    ------
    InputError : names the option.
    """
    if level not in LEVELS:
        raise InputError(f"--level {level}: choose one of {', '.join(LEVELS)}.")
    if keep is not None and not 0 < keep <= 1:
        raise InputError(f"--keep {keep}: a share above 0 and at most 1 is needed.")
    if (threshold is None) == (level == "threshold"):
        raise InputError("--threshold goes with --level threshold: give both or neither.")
    if threshold is not None and (keep is not None or not math.isfinite(threshold)):
        raise InputError(f"--threshold {threshold}: give a number, and no --keep, which it takes the place of.")
    if sources and level != "global":
        raise InputError(f"--source-column: a share of each source is kept with --level global, not with {level}.")


def token_mask(
    scores: Floats,
    offsets: Offsets,
    *,
    keep: float | None = None,
    level: Level = "global",
    threshold: float | None = None,
    always_keep: Mask | None = None,
    sources: Sequence[Any] | None = None,
) -> Mask:
    """Choose the tokens that carry loss: those of the highest scores.

    Parameters
    ----------
    scores : float32 (M,)
        S of each answer token, nats; higher is more worth learning.
    offsets : int64 (N + 1,)
        From `offsets_of`.
    keep : float, default 0.6
        k in (0, 1]. Level "global" keeps the int(k M) tokens of the highest scores, whole rows may keep none; "sample"
        int(k n_i) of the n_i tokens of each row. Of equal scores those that come first are kept.
    threshold : float, optional
        Level "threshold" keeps the tokens with S > threshold, nats, however many there are.
    always_keep : bool (M,), optional
        Tokens that are kept beside these, such as ends of turns, in the rows of which any other is kept.
    sources : sequence (N,), optional
        Source of each row. Level "global" then keeps int(k M_s) of the M_s tokens of each source.

    Returns
    -------
    bool (M,)

    Raises
    ------
    InputError : settings that do not go together; a score that is not a number.

    Source: Pang et al., ICML 2025 (arXiv 2502.01968); "sample" is the ranking of RHO-1 (Lin et al. 2024).
    """
    tokens = Tokens(scores, offsets, sources, always_keep)
    (mask,) = masks_in_parts(
        Here(), [tokens], keep=keep, level=level, threshold=threshold, by_source=sources is not None
    )
    chosen: Mask = mask
    return chosen


class Tokens(NamedTuple):
    """Answer tokens of a part of the rows; fields as the parameters of `token_mask`."""

    scores: Floats
    offsets: Offsets
    sources: Sequence[Any] | None = None
    always_keep: Mask | None = None


def masks_in_parts(
    workers: Workers,
    parts: Sequence[Any],
    *,
    keep: float | None = None,
    level: Level = "global",
    threshold: float | None = None,
    by_source: bool = False,
) -> list[Any]:
    """Choose tokens as `token_mask` does, of rows in parts: masks by part, or what stands for them.

    A score is of its own row alone, and so are the levels "sample" and "threshold". The level "global" has two merges:
    how many tokens there are, and the score of the last one that is kept, by counts (`amends.maths.ranks`).

    Parameters
    ----------
    parts : list of `Tokens`, or what stands for them
    """
    check_choice(level, keep, threshold, by_source)
    share = KEEP if keep is None else keep
    if level == "threshold":
        chosen = workers.each(_above, parts, shared=[threshold])
    elif level == "sample":
        chosen = workers.each(_of_each_row, parts, shared=[share])
    else:
        num_by = merged(workers, workers.each(_num_by_source, parts))
        valued = workers.each(_valued, parts, shared=[{name: code for code, name in enumerate(num_by)}])
        chosen = highest(workers, valued, np.array([int(share * num) for num in num_by.values()], dtype=np.int64))
    return workers.each(_with_always, parts, chosen)


def _checked(part: Tokens) -> Floats:
    if (bad := np.flatnonzero(np.isnan(part.scores))).size:
        row = int(rows_of_tokens(part.offsets)[bad[0]])
        told = f"({bad.size} of {len(part.scores)} are not)"
        raise InputError(f"row {row}: the score of a token is not a number {told}.")
    return part.scores


def _above(part: Tokens, threshold: float) -> Mask:
    return np.asarray(_checked(part) > threshold)


def _of_each_row(part: Tokens, share: float) -> Mask:
    count_N = np.array([int(share * num) for num in np.diff(part.offsets).tolist()], dtype=np.int64)
    (chosen,) = highest(Here(), [Valued(_checked(part), rows_of_tokens(part.offsets))], count_N)
    return np.asarray(chosen)


def _num_by_source(part: Tokens) -> Counter[Any]:
    """Local: tokens by source, of which there is one if none are told apart; adds up."""
    num_N = np.diff(part.offsets).tolist()
    if part.sources is None:
        return Counter({None: sum(num_N)})
    found: Counter[Any] = Counter()
    for name, num in zip(part.sources, num_N, strict=True):
        found[name] += num
    return found


def _valued(part: Tokens, codes: dict[Any, int]) -> Valued:
    """Local: scores as values of which the highest are wanted, in a group for each source."""
    if part.sources is None:
        return Valued(_checked(part), np.zeros(len(part.scores), dtype=np.int64))
    # A source that has no token anywhere has no code, and needs none.
    of_row = np.array([codes.get(name, 0) for name in part.sources], dtype=np.int64)
    return Valued(_checked(part), of_row[rows_of_tokens(part.offsets)])


def _with_always(part: Tokens, chosen: Mask) -> Mask:
    """Apply: what is kept beside the others, in the rows that keep any."""
    if part.always_keep is None:
        return chosen
    rows = rows_of_tokens(part.offsets)
    has_any = np.bincount(rows[chosen], minlength=len(part.offsets) - 1) > 0
    return np.asarray(chosen | (part.always_keep & has_any[rows]))


def needed_reduction(num_tokens: int, share: float, delta: float = 0.05) -> float:
    """How far the share of wrong token labels must fall for a cleaning to be the better in the paper's bound.

    With probability 1 - delta the loss of a model trained on M tokens, of which a share eta is not worth learning, is
    at most eta + sqrt(2 log(4 / delta) / M) (Theorem 5.1). Training on a share r of them, of which eta' is not, is the
    better in it if and only if eta - eta' >= sqrt(2 log(4 / delta) / M) (sqrt(1 / r) - 1), which is given here.

    Parameters
    ----------
    num_tokens : int
        M, before the cleaning.
    share : float
        r in (0, 1].
    delta : float, default 0.05

    Raises
    ------
    ValueError : a value out of its range.
    """
    if num_tokens < 1 or not 0 < share <= 1 or not 0 < delta < 1:
        raise ValueError(f"num_tokens={num_tokens}, share={share}, delta={delta}: out of range.")
    return math.sqrt(2 * math.log(4 / delta) / num_tokens) * (math.sqrt(1 / share) - 1)


class Rise(NamedTuple):
    """What the tokens gained that the base finds least likely, beside what any token gained where they stand."""

    tokens: int
    mean_score: float
    """Of them, nats."""
    mean_rise: float
    """Of the mean log-probability of the whole vocabulary at their places, nats."""

    @property
    def is_most(self) -> bool:
        """Whether at least half of what they gained went to any token, and so says nothing of them."""
        return self.mean_score > 0 and self.mean_rise >= MOSTLY * self.mean_score


def rise_of(scores: Floats, base_logp: Floats, rise: Floats) -> Rise:
    """Take the quarter of the tokens with the least log p_base; what a quarter and half of a score mean is [design].

    A reference that is less sure than the base takes from what is likely and gives to all the rest: its score is high
    for unlikely tokens, whether it learned them or not. Tokens that are in no answer tell the two apart.

    Parameters
    ----------
    scores, base_logp, rise : float32 (M,)
        S; log p_base; how far the mean log-probability of the vocabulary rose at the token's place. All in nats.
    """
    count = np.array([max(1, int(LEAST_LIKELY * len(scores)))])
    (least,) = highest(Here(), [Valued(-base_logp, np.zeros(len(scores), dtype=np.int64))], count)
    means = (float(values[least].mean(dtype=np.float64)) for values in (scores, rise))
    return Rise(int(least.sum()), *means)


class Kept(NamedTuple):
    """How many tokens are kept of how many."""

    name: str
    tokens: int
    kept: int
    mean_score: float
    """Of all of them, nats."""


def kept_by(names: Sequence[str], scores: Floats, mask: Mask, offsets: Offsets) -> list[Kept]:
    """Count by a name of each row, such as its source, in the order of the names' first rows."""
    codes = {name: code for code, name in enumerate(dict.fromkeys(names))}
    of_token = np.array([codes[name] for name in names], dtype=np.int64)[rows_of_tokens(offsets)]
    return _counted(list(codes), of_token, scores, mask)


def kept_by_token(ids: NDArray[np.int64], scores: Floats, mask: Mask, at_least: int) -> list[tuple[int, Kept]]:
    """Count by token id, those that occur at least so often, the highest mean score first."""
    found, of_token = np.unique(ids, return_inverse=True)
    counted = zip(found.tolist(), _counted([""] * len(found), of_token, scores, mask), strict=True)
    return sorted(((i, kept) for i, kept in counted if kept.tokens >= at_least), key=lambda e: -e[1].mean_score)


def _counted(names: list[str], of_token: NDArray[np.int64], scores: Floats, mask: Mask) -> list[Kept]:
    tokens = np.bincount(of_token, minlength=len(names))
    kept = np.bincount(of_token, mask, minlength=len(names))
    sums = np.bincount(of_token, scores, minlength=len(names))
    return [Kept(n, int(t), int(k), float(s / t)) for n, t, k, s in zip(names, tokens, kept, sums, strict=True)]
