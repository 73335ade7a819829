"""Scores of rows beside those of a holdout, and whether the holdout is one: what `audit` and `assess` share."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from amends.evaluation.intervals import NOWHERE, Z, saturated
from amends.maths.arrays import FloatArray
from amends.maths.memorisation import advantage, auc, auc_standard_error, tpr_at_fpr

WORDS = "words"
FALSE_POSITIVE_RATES = (0.1, 0.01, 0.001)
WORDS_TOO_TELLING = 0.6
"""AUC of the words alone above which a holdout is of another kind."""


class Membership(NamedTuple):
    """How well a score tells the records from rows that were never trained on; NaN where there are too few rows."""

    auc: float
    standard_error: float
    """DeLong's; NaN where it is 0 however few the rows: an AUC of 0 or 1, or all scores alike."""
    low: float
    high: float
    """Ends of its 95 % interval; at 0 or 1 that of a share of as many rows as the smaller side has. NaN without."""
    tpr_at_fpr: dict[str, float]
    """True positive rate at each false positive rate; NaN with fewer holdout rows than 1 / rate."""
    advantage: float


def compare(members_N: FloatArray, others_M: FloatArray) -> Membership:
    """Compare the scores of records with those of the holdout."""
    area, error = auc(members_N, others_M), auc_standard_error(members_N, others_M)
    if error == 0:
        fewest = min(int(np.count_nonzero(~np.isnan(scores))) for scores in (members_N, others_M))
        low, high = saturated(area, fewest) or NOWHERE
    else:
        low, high = np.clip([area - Z * error, area + Z * error], 0, 1).tolist()
    return Membership(
        area,
        error or np.nan,
        low,
        high,
        {f"{rate:g}": tpr_at_fpr(members_N, others_M, rate) for rate in FALSE_POSITIVE_RATES},
        advantage(members_N, others_M),
    )


def warnings_of_holdout(membership: Mapping[str, Membership]) -> list[str]:
    """Say what makes the comparison with a holdout doubtful."""
    if WORDS not in membership:
        return []
    words = membership[WORDS]
    if np.isnan(words.auc):
        return ["The holdout has too few rows to see whether it is of the same kind as the data."]
    if words.low > WORDS_TOO_TELLING:
        return [
            f"Words alone, without the model, tell the holdout from the data (AUC {words.auc:.2f}): it is of another "
            "kind, and comparing with it measures that too, not membership alone."
        ]
    return []
