"""Labels, what a detector says of them, and what becomes of a row whose label it calls wrong."""

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from amends.curate._pools.pool import Fate, Verdict, missing
from amends.io.errors import InputError

Method = Literal["simifeat-vote", "simifeat-rank", "knn", "confident", "cleanlab", "cores"]
Flagged = Literal["keep", "drop", "relabel"]
JUDGED = ("noise_score", "label_error", "suggested_label", "confidence")
"""Columns that a row gets which was judged."""


def is_label(value: Any) -> bool:
    """Whether a value can be a label: a number or a text, and no missing one."""
    return isinstance(value, str | int | float) and not missing(value)


def key_of(label: Any) -> str:
    """Text by which labels are told apart: 1 and 1.0 are the same."""
    return str(int(label) if isinstance(label, float) and label.is_integer() else label)


def names_of(labels: Iterable[Any]) -> dict[str, Any]:
    """Labels by their keys, as they first stand in the data: numbers by their value, then texts."""
    found: dict[str, Any] = {}
    for label in labels:
        found.setdefault(key_of(label), label)
    return dict(sorted(found.items(), key=lambda item: (isinstance(item[1], str), item[1])))


def check_flagged(flagged: str, confidence: float) -> None:
    """Refuse what is no fate of a label that looks wrong, or no confidence.

    Raises
    ------
    InputError : names the option.
    """
    if flagged not in get_args(Flagged):
        raise InputError(f"--flagged {flagged}: unknown. Choose one of {', '.join(get_args(Flagged))}.")
    if not 0 <= confidence <= 1:
        raise InputError(f"--confidence {confidence:g}: expected 0 to 1.")


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
