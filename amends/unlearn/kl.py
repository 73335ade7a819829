"""Forget by gradient ascent, held to the model at the start on what to keep (KL).

Raises the negative log-likelihood of the answers to forget; rows to keep cost the forward KL divergence from what the
model said of them at the start. Unbounded like gradient ascent. Maini et al., arXiv 2401.06121. Deviations from
OpenUnlearning: only the answers' tokens count, not prompt and padding, and the model at the start is asked once.
"""

from amends.unlearn._method import method
from amends.unlearn.ga import GATrainer


class KLTrainer(GATrainer):
    """`GATrainer` whose rows to keep cost a forward KL."""

    title = "KL minimisation (KL)"
    keeps = "needed"
    holds_retain = True


run, command = method(KLTrainer)
