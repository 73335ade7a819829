"""Forget answers with only the forget data (FLAT).

Moves probability from each answer to forget to a template answer ("I do not know that.") by an f-divergence-shaped,
bounded loss. Needs no retain data and no reference model. Wang et al., LLM Unlearning via Loss Adjustment with Only
Forget Data, ICLR 2025 (arXiv 2410.11143).
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from peft import PeftConfig
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from amends.io.errors import InputError
from amends.io.tables import read_rows
from amends.lm.logprobs import AnswerLogprobs, PackedRow, masked_mean
from amends.lm.pairs import Pair, encode
from amends.maths.divergence import DIVERGENCES, divergence_named, slope
from amends.unlearn._forget import ForgetConfig, ForgetTrainer, context_limit
from amends.unlearn._refusals import refusals
from amends.unlearn._request import Data, ForgetOption, ModelOption, OutOption, Request, takes_request
from amends.unlearn._run import Result, run_unlearning


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

    divergence: str = field(default="kl", metadata={"help": f"One of {', '.join(DIVERGENCES)}."})
    template_warmup_steps: int = field(
        default=0, metadata={"help": "First steps that only teach the templates by NLL (not in the paper)."}
    )
    reduction: Literal["answer", "official"] = field(
        default="answer",
        metadata={"help": "official: the authors' code, which divides by max_length - 1 and averages before g."},
    )

    def __post_init__(self) -> None:
        """Check the settings of ours."""
        super().__post_init__()
        try:
            divergence_named(self.divergence)
        except ValueError as error:
            raise InputError(f"--{error}".replace("=", " ", 1)) from None
        if self.reduction not in ("answer", "official"):
            raise InputError(f"reduction={self.reduction!r}: choose answer or official.")


class FLATTrainer(ForgetTrainer):
    """`transformers.Trainer` that forgets by FLAT.

    Parameters are those of `ForgetTrainer`, and

    templates : list of str, optional
        Template answers; one is drawn for every row, anew each epoch. Default: the built-in refusals.
    """

    args: FLATConfig

    def __init__(
        self,
        model: Any,
        args: FLATConfig,
        train_dataset: Any,
        processing_class: PreTrainedTokenizerBase | None = None,
        *,
        templates: Sequence[str] | None = None,
        retain_dataset: Any = None,
        neighbours: Sequence[Pair] = (),
        peft_config: PeftConfig | None = None,
        **kwargs: Any,
    ) -> None:
        self.templates = list(templates) if templates is not None else refusals()
        if not self.templates or not all(isinstance(t, str) and t.strip() for t in self.templates):
            raise InputError("templates: at least one answer is needed, and none may be empty.")
        super().__init__(
            model,
            args,
            train_dataset,
            processing_class,
            retain_dataset=retain_dataset,
            neighbours=neighbours,
            peft_config=peft_config,
            **kwargs,
        )
        limit = context_limit(self.model, args.max_length)
        answers = encode(self.processing_class, self.pairs[0].prompt, self.templates)
        longest = max(len(row.prompt) for row in self._forget_rows) + max(len(a.answer) for a in answers)
        if longest > limit:
            raise InputError(
                f"templates: the longest prompt with the longest template has {longest} tokens, more than the {limit} "
                "that fit (--max-length and the model's context). Shorten the templates."
            )

    def forget_row(self, index: int, random_: random.Random) -> PackedRow:
        """Give the answer to forget and a template drawn for it."""
        prompt, answers = self._forget_rows[index]
        template = encode(self.processing_class, self.pairs[index].prompt, [random_.choice(self.templates)])[0]
        return PackedRow(prompt, [*answers, template.answer])

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


@takes_request()
def run(
    model: str | Path | Any,
    forget: Data,
    *,
    processing_class: PreTrainedTokenizerBase | None = None,
    templates: Data | Sequence[str] | None = None,
    divergence: str = "kl",
    template_warmup_steps: int = 0,
    reduction: Literal["answer", "official"] = "answer",
    **options: Any,
) -> Result:
    """Forget by FLAT, with evaluation before and after; the same as `amends unlearn flat`, where each option is told.

    Parameters
    ----------
    model : str, Path, or a transformers / peft model together with its tokenizer as `processing_class`
    forget : path, or list of dictionaries
    templates : path, or list of str, optional
        Template answers; default: the built-in refusals.
    out : path, optional
        Run folder to write; without it everything stays in memory.
    **options
        The fields of `Request`, with the names, meanings and defaults of the command line.

    Returns
    -------
    Result : model, tokenizer, history, evaluations, why it stopped.

    Raises
    ------
    InputError : anything the caller can mend; nothing is left behind.
    """
    pool = read_templates(templates)
    own = {"divergence": divergence, "template_warmup_steps": template_warmup_steps, "reduction": reduction}
    return run_unlearning(
        "flat",
        model,
        Request(forget=forget, **options),
        partial(FLATTrainer, templates=pool),
        FLATConfig,
        own,
        templates=pool,
        processing_class=processing_class,
        recorded={"templates": str(templates) if isinstance(templates, str | Path) else templates},
    )


def read_templates(source: Data | Sequence[str] | None) -> list[str]:
    """Template answers: from a text file (one a line), rows with an `answer` or `text` column, a list, or built in."""
    if source is None:
        return refusals()
    if isinstance(source, str | Path) and Path(source).suffix == ".txt":
        (row,) = read_rows(source)
        return [line.strip() for line in row.data["text"].splitlines() if line.strip()]
    if isinstance(source, str | Path):
        found = []
        for row in read_rows(source):
            text = row.data.get("answer", row.data.get("text"))
            if not isinstance(text, str) or not text.strip():
                raise InputError(f"{row.where}: a template needs a text in the column answer or text.")
            found.append(text.strip())
        return found
    return [str(text) for text in source]


@takes_request(command=True)
def command(
    model: ModelOption,
    forget: ForgetOption,
    out: OutOption,
    templates: Annotated[
        str | None, typer.Option(help="Template answers, one a line; default: built-in refusals.")
    ] = None,
    divergence: Annotated[str, typer.Option(help=f"{', '.join(DIVERGENCES)}.")] = "kl",
    template_warmup_steps: Annotated[
        int, typer.Option(help="First steps that only teach the templates by NLL.", min=0)
    ] = 0,
    reduction: Annotated[
        Literal["answer", "official"], typer.Option(help="official reproduces the averaging of the authors' code.")
    ] = "answer",
    **options: Any,
) -> None:
    """Make MODEL forget the answers in FORGET."""
    run(
        model,
        forget,
        templates=templates,
        divergence=divergence,
        template_warmup_steps=template_warmup_steps,
        reduction=reduction,
        out=out,
        **options,
    )
