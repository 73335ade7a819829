"""Forget by gradient ascent (GA), the naive baseline to compare with.

Raises the negative log-likelihood of the answers to forget. Unbounded: it goes on destroying the model after the
answers are gone. Kept to show what FLAT is better than.
"""

from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from amends.lm.logprobs import AnswerLogprobs, masked_mean
from amends.unlearn._forget import ForgetConfig, ForgetTrainer
from amends.unlearn._request import Data, ForgetOption, ModelOption, OutOption, Request, takes_request
from amends.unlearn._run import Result, run_unlearning


class GATrainer(ForgetTrainer):
    """`transformers.Trainer` that forgets by gradient ascent: L = mean over samples of mean log p(answer token)."""

    args: ForgetConfig

    def forget_losses(self, out: AnswerLogprobs) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean log-likelihood per answer token, to be lowered."""
        return masked_mean(out.logp_BA, out.mask(0)), {"v_f": masked_mean(out.logp_BA.exp(), out.mask(0))}


@takes_request()
def run(
    model: str | Path | Any,
    forget: Data,
    *,
    processing_class: PreTrainedTokenizerBase | None = None,
    **options: Any,
) -> Result:
    """Forget by gradient ascent, with evaluation before and after; the same as `amends unlearn ga`.

    Parameters, results and errors are those of `amends.unlearn.flat.run`, without its own.
    """
    request = Request(forget=forget, **options)
    return run_unlearning("ga", model, request, GATrainer, ForgetConfig, processing_class=processing_class)


@takes_request(command=True)
def command(model: ModelOption, forget: ForgetOption, out: OutOption, **options: Any) -> None:
    """Make MODEL forget the answers in FORGET, by gradient ascent."""
    run(model, forget, out=out, **options)
