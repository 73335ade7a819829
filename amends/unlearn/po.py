"""Forget by learning to decline (PO, also called IDK).

Lowers the negative log-likelihood of a template answer to each question to forget; the answer itself is not touched.
Maini et al., arXiv 2401.06121 (preference optimisation).
"""

from torch import Tensor

from amends.lm.logprobs import AnswerLogprobs, masked_mean
from amends.unlearn._config import ForgetConfig
from amends.unlearn._forget import ForgetTrainer
from amends.unlearn._method import method


class POTrainer(ForgetTrainer):
    """`transformers.Trainer` that learns template answers."""

    title = "PO (IDK)"
    keeps = "usual"
    saturates = False
    takes_templates = True
    learns_templates_alone = True
    args: ForgetConfig

    def forget_losses(self, out: AnswerLogprobs) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean negative log-likelihood per template token."""
        return -masked_mean(out.logp_BA, out.mask(self.template_at)), self.probabilities(out)


run, command = method(POTrainer)
