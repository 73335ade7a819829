"""Log-probabilities of answers, with nothing computed twice and no tensor of all tokens times the vocabulary.

The rows of a batch, each a prompt with its candidate answers, stand in lines as trees: what prompts begin with alike (a
system prompt, the marks of the chat template), what the answers of one prompt share, and the prompt itself are there
once, followed by what differs. Each token sees those on the way from the root of its tree to it, nothing else, and its
position is its depth. So rows share a line without seeing each other, and little is spent on padding. Only the columns
that predict an answer's token reach the output layer, some at a time, and if they are many their logits are computed
again in the backward pass instead of being kept.

Shapes: B rows, A answer tokens of a row (all its answers, padded), L lines of T tokens, N answer tokens in all, D width
of the model, V vocabulary, K numbers that were noted of an answer token before.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from amends.io.errors import NoResult
from amends.lm._families import attention_masks, check_head, head_logits, hidden_states
from amends.lm._families import layer_list as layer_list  # offered here too
from amends.lm.load import autocast
from amends.lm.pairs import Encoded

PADDING = -2
LINE_TENSORS, ANSWER_TENSORS = ("input_ids", "position_ids", "end"), ("answer", "target", "source")
LINE_TOKENS = 384
"""Most tokens of a line that has more than one row: longer ones repeat less and spend more on attention."""
LOGITS_AT_ONCE = 2**25
"""Most logits that exist at one time: 128 MiB in float32."""
NOTED_AT_ONCE = 16
LEAST_LOG = -1e4
"""A log-probability below which a probability is 0 in single precision, so that it adds nothing to a mean."""


class NotNumbers(NoResult):
    """What a model gives for the next token is NaN, of which nothing can be measured."""


def check_numbers(values: Tensor) -> None:
    """Refuse log-probabilities, or logits, that are NaN; minus infinity is a token that the model never says.

    Raises
    ------
    NotNumbers
    """
    if values.isnan().any():
        raise NotNumbers(
            "the model gives NaN for the next token, so nothing can be measured of it. Its weights hold values that "
            "are not finite, or its precision is too low for them: give one from before its training diverged."
        )


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Say which model it is that gives no numbers in this block."""
    try:
        yield
    except NotNumbers as error:
        raise NotNumbers(f"{name}: {error}") from None


class PackedRow(NamedTuple):
    """A prompt with its candidate answers, in token ids."""

    prompt: list[int]
    answers: list[list[int]]

    @property
    def num_tokens(self) -> int:
        """Tokens that go through the model: common beginnings once, and of each answer all but the last."""
        return len(self.prompt) + sum(len(answer) - shared for answer, shared in _tree(a[:-1] for a in self.answers))


@dataclass(frozen=True, eq=False)
class AnswerLogprobs:
    """The answer tokens of a batch after one forward pass. What is asked of them is computed when it is asked."""

    answer_BA: Tensor
    """int64: which of the row's answers the token belongs to; -2 at padding."""
    target_BA: Tensor
    """int64: its id."""
    hidden_BAD: Tensor
    """What predicts it: the output layer's input, or (`layer`) that layer's output."""
    logits_of: Callable[[Tensor], Tensor]
    """(N, D) -> (N, V), float32."""
    vocab_size: int
    notes_BAK: Tensor | None = None
    """What was noted of it before (`note`); 0 where nothing was."""
    has_notes_B: Tensor | None = None

    @property
    def noted_BAK(self) -> Tensor:
        """What was noted of each answer token, for what cannot do without."""
        assert self.notes_BAK is not None, "nothing was noted: the trainer names no `reference`"
        return self.notes_BAK

    @cached_property
    def logp_BA(self) -> Tensor:
        """float32 log-probability in nats of each answer token given what precedes it; 0 at padding."""
        return self.score(log_probability)

    def of(self, chosen_B: Tensor | Sequence[int]) -> "AnswerLogprobs":
        """Choose rows, by a mask or by numbers."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        chosen: dict[str, Any] = {name: part[chosen_B] for name, part in parts.items() if isinstance(part, Tensor)}
        return replace(self, **chosen)

    def mask(self, answer: int) -> Tensor:
        """Bool (B, A): True on the tokens of that answer."""
        return self.answer_BA == answer

    def score(self, score: Callable[..., Tensor], mask_BA: Tensor | None = None, *others_BA: Tensor) -> Tensor:
        """Compute a number, or several, of each answer token from its logits, some tokens at a time.

        Parameters
        ----------
        score : callable
            (logits (N, V) in float32, target (N,), and each of `others_BA` at these tokens) -> (N,) or (N, numbers).
        mask_BA : Tensor, bool, optional
            The tokens that are asked; default: all.

        Returns
        -------
        Tensor (B, A) or (B, A, numbers), 0 elsewhere.
        """
        mask_BA = self.answer_BA != PADDING if mask_BA is None else mask_BA
        given = [tensor[mask_BA] for tensor in (self.hidden_BAD, self.target_BA, *others_BA)]

        def part(hidden_ND: Tensor, *rest: Tensor) -> Tensor:
            return score(self.logits_of(hidden_ND), *rest)

        found = _in_parts(part, self.vocab_size, *given)
        return found.new_zeros(*mask_BA.shape, *found.shape[1:]).index_put((mask_BA,), found)


def log_probability(logits_NV: Tensor, target_N: Tensor) -> Tensor:
    """Log-probability of the target, nats."""
    return -cross_entropy(logits_NV, target_N, reduction="none")


def token_statistics(logits_NV: Tensor, target_N: Tensor) -> Tensor:
    """Say what the distributions of the next token tell of the targets.

    Returns
    -------
    Tensor (N, 4) : log-probability of the target, nats; 1 where it is the likeliest token, else 0; mean and variance of
        the log-probability of a token drawn from the distribution.
    """
    logp_NV = logits_NV.log_softmax(-1)
    p_NV = logp_NV.exp()
    target_N1 = target_N[:, None]
    there_NV = logp_NV.clamp(min=LEAST_LOG)  # 0 times minus infinity is no number
    mean_N1 = (p_NV * there_NV).sum(-1, keepdim=True)
    variance_N1 = (p_NV * (there_NV - mean_N1).square()).sum(-1, keepdim=True)
    is_first_N1 = logits_NV.argmax(-1, keepdim=True) == target_N1
    return torch.cat([logp_NV.gather(-1, target_N1), is_first_N1, mean_N1, variance_N1], -1)


def packed_row(encoded: Sequence[Encoded]) -> PackedRow:
    """One row from the encodings of several answers to the same prompt."""
    return PackedRow(encoded[0].prompt, [e.answer for e in encoded])


def pack(rows: Sequence[PackedRow], pad_id: int | None) -> dict[str, Tensor]:
    """Collate rows into tensors, padded with `pad_id`, or, where the tokenizer has none, with any token: none sees it.

    Returns
    -------
    dict : of the lines, each (L, T): input_ids; position_ids; end, the column behind the last that sees this one. Of
        the answer tokens, each (B, A): answer, as in `AnswerLogprobs`; target, its token id; source, the flat place in
        the lines of the token that predicts it.

    Raises
    ------
    ValueError : a row with an empty prompt (the first answer token would have nothing to be predicted from).
    """
    if empty := [i for i, row in enumerate(rows) if not row.prompt]:
        raise ValueError(f"rows {empty} have an empty prompt: the first answer token cannot be predicted from nothing.")
    lines = lines_of(rows)
    columns: dict[str, list[list[int]]] = {name: [[] for _ in lines] for name in LINE_TENSORS}
    answers: dict[str, list[list[int]]] = {name: [[] for _ in rows] for name in ANSWER_TENSORS}
    places: list[dict[tuple[int, int], list[int]]] = []
    for number, line in enumerate(lines):
        ids, positions, ends = (columns[name][number] for name in LINE_TENSORS)
        texts = {(i, k): rows[i].prompt + answer[:-1] for i in line for k, answer in enumerate(rows[i].answers)}
        order = sorted(texts, key=texts.__getitem__)
        path: list[int] = []
        places.append({})
        for which, (text, alike) in zip(order, _tree(texts[w] for w in order), strict=True):
            for column in path[alike:]:
                ends[column] = len(ids)
            path = path[:alike] + list(range(len(ids), len(ids) + len(text) - alike))
            ids += text[alike:]
            positions += range(alike, len(text))
            ends += [0] * (len(text) - alike)
            places[-1][which] = path
        for column in path:
            ends[column] = len(ids)
    width = max(map(len, columns["input_ids"]))
    for number, line in enumerate(lines):
        columns["end"][number] += range(len(columns["end"][number]) + 1, width + 1)  # padding sees itself
        for i in line:
            for k, answer in enumerate(rows[i].answers):
                answers["answer"][i] += [k] * len(answer)
                answers["target"][i] += answer
                first = len(rows[i].prompt) - 1
                answers["source"][i] += [number * width + column for column in places[number][i, k][first:]]
    fill = {"input_ids": pad_id or 0, "answer": PADDING}
    return {name: _padded(values, fill.get(name, 0)) for name, values in (columns | answers).items()}


def lines_of(rows: Sequence[PackedRow]) -> list[list[int]]:
    """Say which rows `pack` puts into each line; packed by themselves, a line's rows are one line again."""
    # Every prompt sorts between these two, so it shares what they share.
    shared = _num_alike(min(row.prompt for row in rows), max(row.prompt for row in rows))
    return _lines([row.num_tokens - shared for row in rows], LINE_TOKENS - shared)


def _tree(texts: Iterable[list[int]]) -> Iterator[tuple[list[int], int]]:
    """Give texts in alphabetical order, each with the number of tokens that it begins with like the one before."""
    before: list[int] = []
    for text in sorted(texts):
        yield text, _num_alike(before, text)
        before = text


def _num_alike(one: list[int], other: list[int]) -> int:
    """Count the tokens that two texts begin with alike."""
    most = min(len(one), len(other))
    return most if one[:most] == other[:most] else next(i for i in range(most) if one[i] != other[i])


def _padded(values: Sequence[list[int]], fill: int) -> Tensor:
    width = max(map(len, values))
    return torch.tensor([row + [fill] * (width - len(row)) for row in values])


def _lines(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Put rows, the longest first, each into the emptiest of as few lines as hold `most` tokens (or the longest row).

    So lines come out about as long as each other: all are padded to the longest.
    """
    capacity = max(most, 1, *lengths)
    longest_first = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    for num_lines in range(max(1, -(-sum(lengths) // capacity)), len(lengths) + 1):
        lines: list[list[int]] = [[] for _ in range(num_lines)]
        filled = [0] * num_lines
        for i in longest_first:
            emptiest = filled.index(min(filled))
            lines[emptiest].append(i)
            filled[emptiest] += lengths[i]
        if max(filled) <= capacity:
            break
    return lines


def block_mask(end_LT: Tensor) -> Tensor:
    """Who sees whom: bool (L, 1, T, T), True where the line's token may look at the column's."""
    column_T = torch.arange(end_LT.shape[1], device=end_LT.device)
    return ((column_T <= column_T[:, None]) & (column_T[:, None] < end_LT[:, None, :]))[:, None]


def answer_logprobs(model: nn.Module, batch: dict[str, Tensor], layer: int | None = None) -> AnswerLogprobs:
    """Log-probabilities of every answer token of a packed batch, from one forward pass.

    Parameters
    ----------
    model : causal LM of transformers, plain, with a PEFT adapter, or wrapped for distributed training
    batch : dict
        From `pack`, and `pack_notes` where something was noted before, on the model's device.
    layer : int, optional
        Run no further than this layer (from 0) and give its output as `hidden_BAD`; there are no logits then.

    Raises
    ------
    InputError : an attention that takes no mask; layers that no mask can part; an output layer whose result the model
        changes in a way unknown here.
    """
    inner: Any = extract_model_from_parallel(model)
    config = inner.config.get_text_config()
    head = inner.get_output_embeddings()
    allowed_L1TT = block_mask(batch["end"])
    with hidden_states(inner, layer) as caught:
        logits_L1V = model(
            input_ids=batch["input_ids"],
            attention_mask=attention_masks(inner, config, allowed_L1TT, batch["position_ids"]),
            position_ids=batch["position_ids"],
            use_cache=False,
        ).logits
    (hidden_LTD,) = caught
    if layer is None:
        check_head(head, config, hidden_LTD[:, -1:].detach(), logits_L1V.detach())
    return AnswerLogprobs(
        batch["answer"],
        batch["target"],
        hidden_LTD.flatten(0, 1)[batch["source"]],
        partial(head_logits, head, config),
        config.vocab_size,
        batch.get("notes"),
        batch.get("has_notes"),
    )


def output_layer(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Give the output layer as it is now, (N, D) -> (N, V) in float32: a copy of it where it is trained."""
    inner: Any = extract_model_from_parallel(model)
    head, config, dtype = inner.get_output_embeddings(), inner.config.get_text_config(), inner.dtype
    if any(weight.requires_grad for weight in head.parameters()):
        head = deepcopy(head).requires_grad_(False)
    return lambda hidden_ND: head_logits(head, config, hidden_ND.to(dtype))


def note(
    model: nn.Module,
    rows: Sequence[PackedRow],
    pad_id: int,
    of: Callable[[AnswerLogprobs], Tensor],
    *,
    exact: bool = False,
    **how: Any,
) -> list[Tensor]:
    """Note something of each answer token, from the model as it is, without gradients and in evaluation mode.

    Parameters
    ----------
    model, rows, pad_id : as for `answer_logprobs` and `pack`.
    of : callable
        AnswerLogprobs -> Tensor (B, A) or (B, A, K).
    exact : bool, default False
        Compute at the precision of the weights, where the hardware would make bfloat16 the faster one too.
    **how
        Passed to `answer_logprobs`.

    Returns
    -------
    list of Tensor (answer tokens of the row, K) : one a row, float32, on the CPU.
    """
    noted: list[Tensor] = []
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    try:
        for start in range(0, len(rows), NOTED_AT_ONCE):
            batch = {name: t.to(device) for name, t in pack(rows[start : start + NOTED_AT_ONCE], pad_id).items()}
            with torch.no_grad(), nullcontext() if exact else autocast():
                out = answer_logprobs(model, batch, **how)
                found_BAK = of(out).float().reshape(*out.answer_BA.shape, -1)
            noted += [f_AK[known_A].cpu() for f_AK, known_A in zip(found_BAK, out.answer_BA != PADDING, strict=True)]
    finally:
        model.train(was_training)
    return noted


def pack_notes(notes: Sequence[Tensor | None], num_columns: int) -> dict[str, Tensor]:
    """Collate what was noted of rows, for `answer_logprobs`: has_notes (B,) and notes (B, A, K), 0 where there is none.

    K is that of the row of which most was noted.
    """
    width = max(notes_AK.shape[1] for notes_AK in notes if notes_AK is not None)
    notes_BAK = torch.zeros(len(notes), num_columns, width)
    for row, notes_AK in enumerate(notes):
        if notes_AK is not None:
            notes_BAK[row, : notes_AK.shape[0], : notes_AK.shape[1]] = notes_AK
    return {"has_notes": torch.tensor([notes_AK is not None for notes_AK in notes]), "notes": notes_BAK}


def forward_kl(logits_NV: Tensor, before_NV: Tensor) -> Tensor:
    """KL(before || now) of the next token's distribution, nats, (N,)."""
    before_NV = before_NV.log_softmax(-1)
    return (before_NV.exp() * (before_NV - logits_NV.log_softmax(-1))).sum(-1)


def _in_parts(of: Callable[..., Tensor], num_logits: int, *tensors: Tensor) -> Tensor:
    """Compute some rows at a time, and again in the backward pass; a single part may as well be kept: it is there."""
    size = max(1, LOGITS_AT_ONCE // num_logits)
    if torch.is_grad_enabled() and len(tensors[0]) > size:
        of = partial(checkpoint, of, use_reentrant=False)
    return torch.cat([of(*part) for part in zip(*(torch.split(t, size) for t in tensors), strict=True)])


def masked_mean(values_BA: Tensor, mask_BA: Tensor) -> Tensor:
    """Mean of each row over its marked positions, (B,).

    Raises
    ------
    ValueError : rows with no marked position (their numbers are named).
    """
    count_B = mask_BA.sum(-1)
    if not count_B.all():
        raise ValueError(f"rows {(count_B == 0).nonzero().flatten().tolist()} have no answer token.")
    return (values_BA * mask_BA).sum(-1) / count_B
