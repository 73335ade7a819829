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


class GATrainer(ForgetTrainer):
    """`transformers.Trainer` that forgets by gradient ascent: L = mean over samples of mean log p(answer token)."""

    args: ForgetConfig

    def forget_losses(self, out: AnswerLogprobs) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean log-likelihood per answer token, to be lowered."""
        return masked_mean(out.logp_BA, out.mask(0)), {"v_f": masked_mean(out.logp_BA.exp(), out.mask(0))}


def run(
    model: str | Path | Any,
    forget: Data,
    *,
    out: Path | str | None = None,
    processing_class: PreTrainedTokenizerBase | None = None,
    retain: Data | None = None,
    reference: str | None = None,
    retain_eval: Data | None = None,
    real_authors: Data | None = None,
    world_facts: Data | None = None,
    evaluations: Path | str | None = None,
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
    """Forget by gradient ascent, with evaluation before and after; the same as `amends unlearn ga`.

    Parameters
    ----------
    model : str, Path, or a transformers / peft model together with its tokenizer as `processing_class`
    forget : path, or list of dictionaries
    out : path, optional
        Run folder to write; without it everything stays in memory.

    Returns
    -------
    Result : model, tokenizer, history, evaluations, why it stopped.

    Raises
    ------
    InputError : anything the caller can mend; nothing is left behind.
    """
    options = {name: value for name, value in locals().items() if name != "processing_class"}
    args = configure(ForgetConfig, options)
    return run_unlearning(
        "ga", model, request_of(options), args, GATrainer, processing_class=processing_class, options=options
    )


def command(
    model: ModelOption,
    forget: ForgetOption,
    out: OutOption,
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
    question_column: QuestionColumnOption = None,
    answer_column: AnswerColumnOption = None,
    skip_bad_rows: SkipOption = False,
    prefix_tokens: PrefixOption = 100,
    continuation_tokens: ContinuationOption = 100,
    seed: SeedOption = 0,
) -> None:
    """Make MODEL forget the answers in FORGET, by gradient ascent."""
    run(**locals())
