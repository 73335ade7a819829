"""What a detector of wrong labels says of a row, and what becomes of a row whose label it calls wrong."""

from typing import Any, Literal, NamedTuple

import numpy as np

from amends.curate._pool import Fate, Verdict

Method = Literal["simifeat-vote", "simifeat-rank", "knn", "confident", "cleanlab", "cores"]
Flagged = Literal["keep", "drop", "relabel"]
JUDGED = ("noise_score", "label_error", "suggested_label", "confidence")
"""Columns that a row gets which was judged."""


class Doubt(NamedTuple):
    """What a detector says of a row."""

    noise: float
    wrong: bool
    suggested: int
    """Number of the other label."""
    sure: float
    """Noise score times the chance of the other label."""

    def values(self, suggested: Any) -> tuple[float, bool, Any, float]:
        """Give the values of `JUDGED`, with the other label as it stands in the data."""
        return round(self.noise, 4), self.wrong, suggested, round(self.sure, 4)

    def verdict(self, own: Any, other: Any, flagged: Flagged, confidence: float, unsure: Fate) -> tuple[Verdict, bool]:
        """Say what becomes of the row if its label is called wrong, and whether it gets the other one.

        Parameters
        ----------
        unsure : "kept" or "dropped"
            What becomes of it where the other label is wanted and not sure enough.
        """
        sure = f"confidence {self.sure:.2f}"
        if flagged == "relabel" and self.sure >= confidence:
            return Verdict("kept", f'label "{own}" -> "{other}" (noise score {self.noise:.2f}, {sure})'), True
        fates: dict[Flagged, Fate] = {"keep": "kept", "drop": "dropped", "relabel": unsure}
        reason = f'label "{own}" looks wrong (noise score {self.noise:.2f}); rather "{other}" ({sure})'
        return Verdict(fates[flagged], reason), False


def doubt_of(detector: Any, n: int) -> Doubt:
    """Give what a fitted detector says of its n-th row."""
    noise, suggested = float(detector.noise_score_[n]), detector.suggested_[n]
    chance = float(detector.posterior_[n, int(np.searchsorted(detector.classes_, suggested))])
    return Doubt(noise, bool(detector.flag_[n]), suggested, noise * chance)
