"""What a language model's own numbers say of its memory: one pass over records, and a tracker of a training.

Shapes: N records, A answer tokens of a record, B rows of a batch, V vocabulary, T epochs; in `_numbers`, N answer
tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TrainerCallback

from amends.io.errors import InputError
from amends.io.progress import track
from amends.lm.logprobs import (
    NOTED_AT_ONCE,
    PADDING,
    AnswerLogprobs,
    PackedRow,
    check_numbers,
    note,
    packed_row,
    token_statistics,
)
from amends.lm.pairs import Message, Pair, encode
from amends.lm.templates import turn_end
from amends.maths.arrays import FloatArray
from amends.maths.memorisation import Forgetting, forgetting, padded, token_mean, tracin

# Records ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class AnswerScores:
    """Numbers of each answer token given the true tokens before it, (N, A) with NaN behind a record's end."""

    logp_NA: FloatArray
    """Log-probability, nats."""
    right_NA: FloatArray
    """1 where it is the likeliest token, else 0."""
    mean_NA: FloatArray
    """Mean of log p under the model's own distribution of this token, nats."""
    deviation_NA: FloatArray
    """Standard deviation of it."""
    sampled_NA: FloatArray
    """Log-probability under the sampler (temperature, top k), nats; minus infinity for what it never draws."""
    margin_NA: FloatArray
    """Its logit less the highest other one."""
    el2n_NA: FloatArray
    """|p - onehot|_2."""
    squared_gradient_N: FloatArray
    """|gradient|^2 of the record's mean loss in the matrix of the output layer; NaN where it was not asked for."""


def record_row(tokenizer: PreTrainedTokenizerBase, prompt: list[Message] | str, answers: Sequence[str]) -> PackedRow:
    """One row of answers to a prompt, without the token that closes the turn, which says nothing of a record."""
    row = packed_row(encode(tokenizer, prompt, answers))
    closing = 0 if isinstance(prompt, str) else len(turn_end(tokenizer))
    return PackedRow(row.prompt, [answer[: len(answer) - closing] for answer in row.answers])


def answer_scores(
    model: torch.nn.Module,
    rows: Sequence[PackedRow],
    pad_id: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    gradients: bool = False,
    label: str | None = None,
) -> AnswerScores:
    """Take all numbers of the records' answers from one forward pass.

    Parameters
    ----------
    model : causal LM, as for `amends.lm.logprobs.answer_logprobs`
        In evaluation mode meanwhile.
    rows : list of PackedRow
        With one answer each (`record_row`).
    temperature, top_k : float, int
        Of the sampler of `sampled_NA`; top_k 0 draws from all tokens.
    gradients : bool, default False
        Also `squared_gradient_N`, which costs the output layer a second time.
    label : str, optional
        Shows a progress bar of this name.

    Raises
    ------
    NotNumbers : a token's log-probability is NaN, which stands for "no token" in the arrays.
    """
    order = sorted(range(len(rows)), key=lambda i: rows[i].num_tokens, reverse=True)  # most memory first
    batches = [order[start : start + NOTED_AT_ONCE] for start in range(0, len(order), NOTED_AT_ONCE)]
    of = partial(_token_numbers, temperature=temperature, top_k=top_k, gradients=gradients)
    noted: list[Tensor] = [torch.empty(0)] * len(rows)
    for batch in track(batches, label or "", shown=label is not None):
        for i, found_AK in zip(batch, note(model, [rows[i] for i in batch], pad_id, of), strict=True):
            check_numbers(found_AK[:, 0])
            noted[i] = found_AK
    columns = [padded([found_AK[:, k].numpy() for found_AK in noted]) for k in range(8)]
    logp, right, mean, deviation, sampled, margin, el2n, gradient = columns
    return AnswerScores(logp, right, mean, deviation, sampled, margin, el2n, gradient[:, 0])


def _token_numbers(out: AnswerLogprobs, *, temperature: float, top_k: int, gradients: bool) -> Tensor:
    """(B, A, 8): the columns of `AnswerScores`, the last the same for all tokens of a row."""
    found_BAK = out.score(partial(_numbers, temperature=temperature, top_k=top_k))
    squared_B = squared_gradients(out) if gradients else torch.full_like(found_BAK[:, 0, 0], torch.nan)
    return torch.cat([found_BAK, squared_B[:, None, None].expand(*found_BAK.shape[:2], 1)], -1)


def _numbers(logits_NV: Tensor, target_N: Tensor, *, temperature: float, top_k: int) -> Tensor:
    logp_N, right_N, mean_N, variance_N = token_statistics(logits_NV, target_N).unbind(-1)
    target_N1 = target_N[:, None]
    others_NV = logits_NV.softmax(-1).scatter(-1, target_N1, 0.0)  # their sum is 1 - p, also where p is rounded to 1
    el2n_N = (others_NV.square().sum(-1) + others_NV.sum(-1).square()).sqrt()
    others_N = logits_NV.scatter(-1, target_N1, -torch.inf).amax(-1)
    own_N = logits_NV.gather(-1, target_N1)[:, 0]
    warm_NV = logits_NV / temperature
    if 0 < top_k < logits_NV.shape[-1]:
        floor_N1 = warm_NV.topk(top_k).values[:, -1:]
        warm_NV = warm_NV.masked_fill(warm_NV < floor_N1, -torch.inf)
    sampled_N = warm_NV.log_softmax(-1).gather(-1, target_N1)[:, 0]
    return torch.stack([logp_N, right_N, mean_N, variance_N.sqrt(), sampled_N, own_N - others_N, el2n_N], -1)


def squared_gradients(out: AnswerLogprobs) -> Tensor:
    """|gradient|^2 of each row's mean loss per answer token in the matrix of the output layer, (B,), without autograd.

    The gradient is the mean over tokens of (p - onehot) a^T, a the layer's input, so its square is the mean over pairs
    of tokens of (a . a')((p - onehot) . (p - onehot)'); for one token it is |a|^2 |p - onehot|^2. Where the output
    layer is tied to the embedding, what the matrix does as embedding is left out. A cap or factor on the logits is not
    derived.
    """
    squared = []
    for hidden_AD, target_A, answer_A in zip(out.hidden_BAD, out.target_BA, out.answer_BA, strict=True):
        known_A = answer_A != PADDING
        hidden_AD, target_A = hidden_AD[known_A], target_A[known_A]
        residual_AV = out.logits_of(hidden_AD).softmax(-1)
        own = torch.arange(len(target_A)), target_A
        residual_AV[own] = 0.0
        residual_AV[own] = -residual_AV.sum(-1)  # p - 1, also where p is rounded to 1
        gram_AA = (hidden_AD.float() @ hidden_AD.float().T) * (residual_AV @ residual_AV.T)
        squared.append(gram_AA.mean())
    return torch.stack(squared).clamp(min=0)  # rounding, where the loss is next to 0


# A training -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Dynamics:
    """How a training went for each record, looked at after every epoch."""

    right_TN: NDArray[np.bool_]
    """Whether every token of the answer was the likeliest, given the true ones before it."""
    logp_TN: FloatArray
    """Mean log-probability of its tokens, nats."""
    margin_TN: FloatArray
    """Mean margin of its tokens: the mean over epochs is AUM; low means hard or wrong."""
    el2n_TN: FloatArray
    """Mean over its tokens of |p - onehot|_2; the first epochs are those to go by."""
    squared_gradient_TN: FloatArray
    learning_rate_T: FloatArray
    """Mean of the steps' learning rates in each epoch."""

    @cached_property
    def forgetting(self) -> Forgetting:
        """Forgetting events, and what was never learned."""
        return forgetting(self.right_TN)

    @cached_property
    def tracin_N(self) -> FloatArray:
        """Self-influence in the last layer. The rate stands for the step of plain SGD, whatever the optimizer is."""
        return tracin(self.squared_gradient_TN, self.learning_rate_T)


class Tracker(TrainerCallback):
    """Look at each record after every epoch of a training, without changing it.

    One more forward pass over the records an epoch. Pass it to a trainer in `callbacks`; afterwards `dynamics()`.

    Parameters
    ----------
    tokenizer : the trainer's
    pairs : list of Pair
        The records to look at, trained on or not.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair]) -> None:
        self.rows = [record_row(tokenizer, pair.prompt, [pair.answer]) for pair in pairs]
        self.pad_id = tokenizer.pad_token_id
        self.seen: list[AnswerScores] = []
        self.rates: list[float] = []
        self._steps: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin anew, or refuse where the first epochs are gone."""
        if state.global_step:
            raise InputError("Tracker: the training goes on from a checkpoint, whose epochs were not looked at.")
        self.seen, self.rates, self._steps = [], [], []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the learning rate."""
        self._steps.append(float(kwargs["optimizer"].param_groups[0]["lr"]))

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look."""
        self.seen.append(answer_scores(kwargs["model"], self.rows, self.pad_id, gradients=True))
        self.rates.append(float(np.mean(self._steps)))
        self._steps = []

    def dynamics(self) -> Dynamics:
        """Give what was seen.

        Raises
        ------
        InputError : no epoch has ended yet.
        """
        if not self.seen:
            raise InputError("Tracker: no epoch has ended yet, so there is nothing to tell. Train first.")
        return Dynamics(
            np.stack([token_mean(s.right_NA) == 1 for s in self.seen]),
            np.stack([token_mean(s.logp_NA) for s in self.seen]),
            np.stack([token_mean(s.margin_NA) for s in self.seen]),
            np.stack([token_mean(s.el2n_NA) for s in self.seen]),
            np.stack([s.squared_gradient_N for s in self.seen]),
            np.array(self.rates),
        )
