"""Whether two sets of texts can be told apart by their words alone, without any model of the texts."""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from amends.maths.rouge import spaced

_WORD = re.compile(r"\w+")


def word_scores(
    texts: Sequence[str], others: Sequence[str], rng: np.random.Generator, folds: int = 5
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Log-odds of each text to be one of the first set, by a naive Bayes classifier of the words it holds.

    Where a script is written without spaces, each character is a word.
    Each fold is scored by a classifier that saw the other folds only. If the two sets are samples of the same kind, the
    AUC of these scores is near 0.5 (a little below, as cross-validation has it); if not, a test of membership on them
    measures the kind, not membership (Duan et al. 2024, Das et al. 2024).

    Returns
    -------
    Scores of `texts` and of `others`, in their order; NaN for both where a set has fewer texts than there are folds.
    """
    if min(len(texts), len(others)) < folds:
        return np.full(len(texts), np.nan), np.full(len(others), np.nan)
    bags = [[set(_WORD.findall(spaced(text.lower()))) for text in side] for side in (texts, others)]
    fold_of = [rng.permutation(len(side)) % folds for side in bags]
    scores = [np.zeros(len(side)) for side in bags]
    for fold in range(folds):
        counts = [
            Counter(word for bag, f in zip(side, numbers, strict=True) if f != fold for word in bag)
            for side, numbers in zip(bags, fold_of, strict=True)
        ]
        sizes = [int((numbers != fold).sum()) for numbers in fold_of]
        for side, numbers, out in zip(bags, fold_of, scores, strict=True):
            for i in np.flatnonzero(numbers == fold):
                shares = [[(count[w] + 1) / (n + 2) for w in side[i]] for count, n in zip(counts, sizes, strict=True)]
                out[i] = np.log(shares[0]).sum() - np.log(shares[1]).sum()
    return scores[0], scores[1]
