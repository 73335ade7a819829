"""Forget answers with only the forget data (FLAT).

Moves probability from each answer to forget to a template answer ("I do not know that.") by an f-divergence-shaped,
bounded loss. Needs no retain data and no reference model. Wang et al., LLM Unlearning via Loss Adjustment with Only
Forget Data, ICLR 2025 (arXiv 2410.11143).
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from peft import PeftConfig
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from amends.io.errors import InputError
from amends.io.tables import read_rows
from amends.lm.logprobs import AnswerLogprobs, PackedRow, masked_mean
from amends.lm.pairs import encode
from amends.maths.divergence import DIVERGENCES, divergence_named, slope
from amends.unlearn._forget import ForgetConfig, ForgetTrainer, context_limit
from amends.unlearn._run import (
    AccumulationOption,
    AnswerColumnOption,
    BatchOption,
    ContinuationOption,
    Data,
    EpochsOption,
    EvalRowsOption,
    EvaluationsOption,
    ForgetOption,
    MaxLengthOption,
    ModelOption,
    OutOption,
    PrefixOption,
    QuestionColumnOption,
    RankOption,
    RateOption,
    RealAuthorsOption,
    ReferenceOption,
    Result,
    RetainEvalOption,
    RetainOption,
    RetainWeightOption,
    SeedOption,
    SkipOption,
    StopOption,
    WorldFactsOption,
    configure,
    request_of,
    run_unlearning,
)


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
        """The answer to forget and a template drawn for it."""
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


def refusals() -> list[str]:
    """The built-in template answers."""
    return files("amends").joinpath("data", "refusals.txt").read_text(encoding="utf-8").splitlines()


def run(
    model: str | Path | Any,
    forget: Data,
    *,
    out: Path | str | None = None,
    processing_class: PreTrainedTokenizerBase | None = None,
    templates: Data | Sequence[str] | None = None,
    retain: Data | None = None,
    reference: str | None = None,
    retain_eval: Data | None = None,
    real_authors: Data | None = None,
    world_facts: Data | None = None,
    evaluations: Path | str | None = None,
    divergence: str = "kl",
    reduction: Literal["answer", "official"] = "answer",
    template_warmup_steps: int = 0,
    retain_weight: float = 1.0,
    stop_v_f: float | None = None,
    lora_rank: int = 16,
    learning_rate: float = 1e-3,
    epochs: float = 10,
    batch_size: int = 8,
    accumulation: int = 1,
    max_length: int = 1024,
    question_column: str | None = None,
    answer_column: str | None = None,
    skip_bad_rows: bool = False,
    prefix_tokens: int = 100,
    continuation_tokens: int = 100,
    eval_rows: int = 100,
    seed: int = 0,
) -> Result:
    """Forget by FLAT, with evaluation before and after; the same as `amends unlearn flat`, where each option is told.

    Parameters
    ----------
    model : str, Path, or a transformers / peft model together with its tokenizer as `processing_class`
    forget : path, or list of dictionaries
    out : path, optional
        Run folder to write; without it everything stays in memory.
    templates : path, or list of str, optional
        Template answers; default: the built-in refusals.

    Returns
    -------
    Result : model, tokenizer, history, evaluations, why it stopped.

    Raises
    ------
    InputError : anything the caller can mend; nothing is left behind.
    """
    options = {name: value for name, value in locals().items() if name != "processing_class"}
    pool = read_templates(templates)
    own = {"divergence": divergence, "reduction": reduction, "template_warmup_steps": template_warmup_steps}
    args = configure(FLATConfig, options, **own)
    trainer = partial(FLATTrainer, templates=pool)
    return run_unlearning(
        "flat",
        model,
        request_of(options),
        args,
        trainer,
        templates=pool,
        processing_class=processing_class,
        options=options,
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


def command(
    model: ModelOption,
    forget: ForgetOption,
    out: OutOption,
    templates: Annotated[
        str | None, typer.Option(help="Template answers, one a line; default: built-in refusals.")
    ] = None,
    divergence: Annotated[str, typer.Option(help=f"{', '.join(DIVERGENCES)}.")] = "kl",
    retain: RetainOption = None,
    retain_weight: RetainWeightOption = 1.0,
    stop_v_f: StopOption = None,
    reference: ReferenceOption = None,
    retain_eval: RetainEvalOption = None,
    real_authors: RealAuthorsOption = None,
    world_facts: WorldFactsOption = None,
    evaluations: EvaluationsOption = None,
    eval_rows: EvalRowsOption = 100,
    lora_rank: RankOption = 16,
    learning_rate: RateOption = 1e-3,
    epochs: EpochsOption = 10,
    batch_size: BatchOption = 8,
    accumulation: AccumulationOption = 1,
    max_length: MaxLengthOption = 1024,
    template_warmup_steps: Annotated[
        int, typer.Option(help="First steps that only teach the templates by NLL.", min=0)
    ] = 0,
    reduction: Annotated[
        Literal["answer", "official"], typer.Option(help="official reproduces the averaging of the authors' code.")
    ] = "answer",
    question_column: QuestionColumnOption = None,
    answer_column: AnswerColumnOption = None,
    skip_bad_rows: SkipOption = False,
    prefix_tokens: PrefixOption = 100,
    continuation_tokens: ContinuationOption = 100,
    seed: SeedOption = 0,
) -> None:
    """Make MODEL forget the answers in FORGET."""
    run(**locals())
