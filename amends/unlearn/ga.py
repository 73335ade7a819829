"""Forget by gradient ascent (GA), the naive baseline to compare with.

Raises the negative log-likelihood of the answers to forget. Unbounded: it goes on destroying the model after the
answers are gone. With rows to keep it is GradDiff. Jang et al., arXiv 2210.01504.
"""

from torch import Tensor

from amends.lm.logprobs import AnswerLogprobs, masked_mean
from amends.unlearn._config import ForgetConfig
from amends.unlearn._forget import ForgetTrainer
from amends.unlearn._method import method


class GATrainer(ForgetTrainer):
    """`transformers.Trainer` that forgets by gradient ascent: L = mean over samples of mean log p(answer token)."""

    title = "Gradient ascent (GA)"
    args: ForgetConfig

    def forget_losses(self, out: AnswerLogprobs) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean log-likelihood per answer token, to be lowered."""
        return masked_mean(out.logp_BA, out.mask(0)), self.probabilities(out)


run, command = method(GATrainer)
