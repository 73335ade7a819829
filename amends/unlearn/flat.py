"""Forget answers with only the forget data (FLAT).

Moves probability from each answer to forget to a template answer ("I do not know that.") by an f-divergence-shaped,
bounded loss. Needs no retain data and no reference model. Wang et al., LLM Unlearning via Loss Adjustment with Only
Forget Data, ICLR 2025 (arXiv 2410.11143).
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import typer
from torch import Tensor

from amends.io.errors import InputError
from amends.lm.logprobs import AnswerLogprobs, masked_mean
from amends.maths.divergence import DIVERGENCES, divergence_named, slope
from amends.unlearn._config import ForgetConfig
from amends.unlearn._forget import ForgetTrainer
from amends.unlearn._method import method


def flat_loss(
    template_BT: Tensor,
    forget_BT: Tensor,
    template_mask_BT: Tensor,
    forget_mask_BT: Tensor,
    divergence: str = "kl",
) -> Tensor:
    """FLAT: move probability from the answer to forget to a template answer.

    L = -mean_B[ g*(v_e) - f*(g*(v_f)) ], v = mean over answer tokens of the probability of the right token.

    Parameters
    ----------
    template_BT, forget_BT : Tensor (batch, tokens)
        Log-probability in nats of each token; widths may differ; reduced in float32.
    template_mask_BT, forget_mask_BT : Tensor, bool, same shapes
        True on answer tokens and the closing EOS, False on prompt and padding.
    divergence : str, default "kl"
        A key of `amends.maths.divergence.DIVERGENCES`.

    Returns
    -------
    Tensor, scalar; lower is better; within [1/e - 1, 1] for "kl".

    Raises
    ------
    ValueError : unknown divergence, or a row without answer tokens (its numbers are named).

    Source: arXiv 2410.11143. Deviation from the authors' code, which divides by all positions instead of the answer's
    tokens and averages over the batch before g: `FLATConfig(reduction="official")` reproduces that.
    """
    v_e = masked_mean(template_BT.float().exp(), template_mask_BT)
    v_f = masked_mean(forget_BT.float().exp(), forget_mask_BT)
    return flat_terms(v_e, v_f, divergence).mean()


def flat_terms(v_e: Tensor, v_f: Tensor, divergence: str) -> Tensor:
    """-[ g*(v_e) - f*(g*(v_f)) ], elementwise."""
    f = divergence_named(divergence)
    return f.penalty(v_f) - f.reward(v_e)


@dataclass
class FLATConfig(ForgetConfig):
    """Settings of `FLATTrainer`, beside those of `TrainingArguments`."""

    divergence: Annotated[str, typer.Option(help=f"One of {', '.join(DIVERGENCES)}.")] = "kl"
    template_warmup_steps: Annotated[
        int, typer.Option(help="First steps that only teach the templates by NLL (not in the paper).", min=0)
    ] = 0
    reduction: Annotated[
        Literal["answer", "official"],
        typer.Option(help="official: the authors' code, which divides by max_length - 1 and averages before g."),
    ] = "answer"

    def __post_init__(self) -> None:
        """Check the settings of ours."""
        super().__post_init__()
        try:
            divergence_named(self.divergence)
        except ValueError as error:
            raise InputError(f"--{error}".replace("=", " ", 1)) from None


class FLATTrainer(ForgetTrainer):
    """`transformers.Trainer` that forgets by FLAT."""

    title = "FLAT"
    takes_templates = True
    needs_likely_templates = True
    args: FLATConfig

    @property
    def couples_samples(self) -> bool:
        """Whether answers are averaged over the batch."""
        return self.args.reduction == "official"

    def start_warnings(self) -> list[str]:
        """Name the remedy that only this method has, too."""
        texts = super().start_warnings()
        return [f"{text} Or set template_warmup_steps." if text.startswith("v_e") else text for text in texts]

    def forget_losses(self, out: AnswerLogprobs) -> tuple[Tensor, dict[str, Tensor]]:
        """FLAT per sample; v_e, v_f and their weights are logged."""
        args = self.args
        p_BA = out.logp_BA.exp()
        v_f, v_e = masked_mean(p_BA, out.mask(0)), masked_mean(p_BA, out.mask(1))
        f = divergence_named(args.divergence)
        values = {"v_e": v_e, "v_f": v_f, "weight_e": slope(f.reward, v_e), "weight_f": slope(f.penalty, v_f)}
        if self.state.global_step < args.template_warmup_steps:
            return -masked_mean(out.logp_BA, out.mask(1)), values
        if args.reduction == "official":
            num_positions = args.max_length - 1
            v_f = ((p_BA * out.mask(0)).sum(-1) / num_positions).mean().expand_as(v_f)
            v_e = ((p_BA * out.mask(1)).sum(-1) / num_positions).mean().expand_as(v_e)
        return flat_terms(v_e, v_f, args.divergence), values


run, command = method(FLATTrainer)
