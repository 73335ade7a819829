"""Forget by the Jensen-Shannon divergence to a template answer (JensUn).

Moves the model's words towards a template answer to each question to forget, and holds it to what it said on rows to
keep, both by the Jensen-Shannon divergence, which is bounded. arXiv 2509.02820; formulas from a secondary source.
"""

import math

import torch
from torch import Tensor

from amends.lm.logprobs import AnswerLogprobs, masked_mean
from amends.unlearn._config import ForgetConfig
from amends.unlearn._forget import ForgetTrainer
from amends.unlearn._method import method


def js_to_token(logp: Tensor) -> Tensor:
    """Jensen-Shannon divergence, nats, between a distribution and a token that is certain, from its log-probability.

    With p its probability and m the mean of both: KL(certain || m) = -log((1 + p) / 2), and KL(p || m) is log 2 for all
    other tokens' mass.
    """
    p = logp.exp()
    log_mean = torch.log1p(p) - math.log(2)
    return (-log_mean + (1 - p) * math.log(2) + p * (logp - log_mean)) / 2


def js_divergence(logits_NV: Tensor, others_NV: Tensor) -> Tensor:
    """Jensen-Shannon divergence of two distributions, nats, (N,)."""
    both = [logits.log_softmax(-1) for logits in (logits_NV, others_NV)]
    log_mean = torch.logaddexp(*both) - math.log(2)
    return sum((logp.exp() * (logp - log_mean)).sum(-1) for logp in both) / 2  # type: ignore[return-value]


class JensUnTrainer(ForgetTrainer):
    """`transformers.Trainer` that forgets by JensUn."""

    title = "JensUn"
    keeps = "usual"
    saturates = False
    takes_templates = True
    learns_templates_alone = True
    needs_likely_templates = True
    holds_retain = True
    args: ForgetConfig

    def forget_losses(self, out: AnswerLogprobs) -> tuple[Tensor, dict[str, Tensor]]:
        """Divergence from each token of the template, mean over them."""
        return masked_mean(js_to_token(out.logp_BA), out.mask(self.template_at)), self.probabilities(out)

    def retain_costs(self, out: AnswerLogprobs) -> dict[str, Tensor]:
        """Divergence from what was said before."""
        first_BA = out.mask(0)
        js_BA = out.score(
            lambda logits, _, said: js_divergence(logits, self.reference_logits(said)), first_BA, out.noted_BAK
        )
        return {"retain_js": masked_mean(js_BA, first_BA)}


run, command = method(JensUnTrainer)
