"""Forget harmful, copyrighted or made-up answers (LLMU).

Ascends on the answers to forget, learns unrelated answers to their questions (random mismatch), and is held by the
forward KL divergence to what the model said on ordinary rows. Yao, Xu and Liu, arXiv 2310.10683. Deviations from the
authors' code: the divergence is over answers' tokens and without padding, as in the paper; unrelated answers are drawn
for each row, not once for a batch.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from amends.io.atomic import sha256_json
from amends.io.errors import InputError
from amends.lm.logprobs import AnswerLogprobs, masked_mean
from amends.lm.samples import TrainRow
from amends.unlearn._config import ForgetConfig
from amends.unlearn._forget import ForgetTrainer
from amends.unlearn._method import method
from amends.unlearn._read import as_pairs, read_templates
from amends.unlearn._stop import StopWhenForgotten

PATIENCE = 4.0
"""Times the steps to the level at which a training stops: between the 3 and the 5 of the authors."""


@dataclass
class LLMUConfig(ForgetConfig):
    """Settings of `LLMUTrainer`; the weight of the rows to keep is `retain_weight`."""

    ascent_weight: Annotated[float, typer.Option(help="Weight of the ascent.", min=0)] = 0.5
    mismatch_weight: Annotated[float, typer.Option(help="Weight of the unrelated answers.", min=0)] = 1.0
    mismatches: Annotated[
        int, typer.Option(help="Unrelated answers of each row and step (5 in the authors' code).", min=1)
    ] = 1
    patience: Annotated[
        float | None,
        typer.Option(
            help="Go on to this many times the steps after which --stop-v-f was first reached; default: 4.", min=1
        ),
    ] = None
    mismatch_answers: Annotated[
        str | None,
        typer.Option(
            help="Unrelated answers: a text file, one a line, or rows with a column answer or text; default: the "
            "answers of the rows to keep."
        ),
    ] = None
    max_forget_nll: Annotated[
        float, typer.Option(help="Stop when the forget answers' NLL per token is above this.", min=0)
    ] = 100.0


class LLMUTrainer(ForgetTrainer):
    """`transformers.Trainer` that forgets by LLMU."""

    title = "LLMU"
    keeps = "needed"
    holds_retain = True
    reads_logs = True
    args: LLMUConfig

    @classmethod
    def check(cls, args: ForgetConfig, *, keeps: bool) -> None:
        """Refuse patience without a level to reach, and unrelated answers that weigh nothing."""
        super().check(args, keeps=keeps)
        assert isinstance(args, LLMUConfig)
        if args.patience is not None and args.stop_v_f is None:
            raise InputError("--patience: it counts from when --stop-v-f is reached. Give both, or leave it out.")
        if args.mismatch_answers is not None and not args.mismatch_weight:
            raise InputError("--mismatch-answers: they weigh nothing with --mismatch-weight 0. Leave one of them out.")

    def __init__(
        self,
        model: Any,
        args: LLMUConfig,
        train_dataset: Any,
        processing_class: PreTrainedTokenizerBase | None = None,
        *,
        retain_dataset: Any = None,
        neighbours: Sequence[Any] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(
            model, args, train_dataset, processing_class, retain_dataset=retain_dataset, neighbours=neighbours, **kwargs
        )
        self.mismatches = args.mismatches if args.mismatch_weight else 0
        if args.mismatch_answers is not None:
            what, pool = "--mismatch-answers", read_templates(args.mismatch_answers)
        else:
            keep = as_pairs(retain_dataset, self.processing_class) if retain_dataset is not None else []
            what, pool = "the rows to keep", [pair.answer for pair in [*keep, *neighbours]]
        self._unrelated = sorted(set(pool) - {pair.answer for pair in self.pairs})
        self.own_request = {"unrelated answers": sha256_json(self._unrelated)}
        if len(self._unrelated) < self.mismatches:
            raise InputError(f"--mismatches {args.mismatches}: {what} have {len(self._unrelated)} other answers.")
        if self.mismatches:
            self.check_fit(self._unrelated, f"answers of {what}")

    def forget_row(self, index: int, random_: random.Random) -> TrainRow:
        """Give the answer to forget and unrelated ones behind the same prompt."""
        return self.with_answers(index, *random_.sample(self._unrelated, self.mismatches))

    def forget_losses(self, out: AnswerLogprobs) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum of the two losses of each sample."""
        nll_S, *others = [-masked_mean(out.logp_BA, out.mask(k)) for k in range(1 + self.mismatches)]
        loss_S, values = -self.args.ascent_weight * nll_S, self.probabilities(out) | {"forget_nll": nll_S}
        if others:
            values["mismatch_nll"] = torch.stack(others).mean(0)
            loss_S = loss_S + self.args.mismatch_weight * values["mismatch_nll"]
        return loss_S, values

    def stop_rule(self, limit: float) -> StopWhenForgotten:
        """Go on for a while after the answers are gone: what is harmful goes later than the loss says."""
        return StopWhenForgotten(self, limit, self.args.patience or PATIENCE)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Stop where the ascent has run away, of which the log of every step tells."""
        super().log(logs, start_time)
        if logs.get("forget_nll", 0.0) > self.args.max_forget_nll:
            self.stopped = (
                f"forget NLL = {logs['forget_nll']:.1f} nats a token, above {self.args.max_forget_nll:g}, "
                f"at step {self.state.global_step}"
            )
            self.control.should_training_stop = True


run, command = method(LLMUTrainer)
