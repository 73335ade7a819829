"""Forget by gradient ascent beside descent on what to keep (GradDiff).

Raises the negative log-likelihood of the answers to forget and lowers that of rows to keep. Unbounded like gradient
ascent. Liu, Liu and Stone, arXiv 2203.12817; Maini et al., arXiv 2401.06121.
"""

from amends.unlearn._method import method
from amends.unlearn.ga import GATrainer


class GradDiffTrainer(GATrainer):
    """`GATrainer` that insists on rows to keep."""

    title = "GradDiff"
    keeps = "needed"


run, command = method(GradDiffTrainer)
