"""Log-probabilities of answers: the candidate answers of a prompt share one packed row, so the prompt is read once.

A row is [padding | prompt | answer 0 | answer 1 ... | padding]. Each answer sees the prompt and itself, nothing else,
and its positions continue the prompt's. Prompts are padded on the left, so the answers of every row start in the same
column and logits are computed for the last columns only.

Shapes: B rows, T tokens, A answer tokens of a row (all its answers, padded), V vocabulary.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from amends.io.errors import InputError
from amends.lm.pairs import Encoded

PROMPT, PADDING = -1, -2
FULL, SLIDING = "full_attention", "sliding_attention"


class PackedRow(NamedTuple):
    """A prompt with its candidate answers, in token ids."""

    prompt: list[int]
    answers: list[list[int]]


class AnswerLogprobs(NamedTuple):
    """What one forward pass says of the answers."""

    logp_BA: Tensor
    """float32 log-probability in nats of each answer token given what precedes it; 0 at padding."""
    answer_BA: Tensor
    """int64: which of the row's answers the token belongs to; -2 at padding."""

    def mask(self, answer: int) -> Tensor:
        """Bool (B, A): True on the tokens of that answer."""
        return self.answer_BA == answer


def packed_row(encoded: Sequence[Encoded]) -> PackedRow:
    """One row from the encodings of several answers to the same prompt."""
    return PackedRow(encoded[0].prompt, [e.answer for e in encoded])


def pack(rows: Sequence[PackedRow], pad_id: int) -> dict[str, Tensor]:
    """Collate rows into tensors.

    Returns
    -------
    dict : input_ids (B, T), position_ids (B, T), segment (B, T): -1 prompt, k = answer k, -2 padding;
        num_answer_columns is the width A of the answers' part, as a (B,) tensor so that any data loader passes it on.

    Raises
    ------
    ValueError : a row with an empty prompt (the first answer token would have nothing to be predicted from).
    """
    if empty := [i for i, row in enumerate(rows) if not row.prompt]:
        raise ValueError(f"rows {empty} have an empty prompt: the first answer token cannot be predicted from nothing.")
    width_prompt = max(len(row.prompt) for row in rows)
    width_answers = max(sum(map(len, row.answers)) for row in rows)
    shape = (len(rows), width_prompt + width_answers)
    input_ids = torch.full(shape, pad_id)
    position_ids = torch.zeros(shape, dtype=torch.int64)
    segment = torch.full(shape, PADDING)
    for i, (prompt, answers) in enumerate(rows):
        start = width_prompt - len(prompt)
        input_ids[i, start:width_prompt] = torch.tensor(prompt)
        position_ids[i, start:width_prompt] = torch.arange(len(prompt))
        segment[i, start:width_prompt] = PROMPT
        column = width_prompt
        for k, answer in enumerate(answers):
            end = column + len(answer)
            input_ids[i, column:end] = torch.tensor(answer)
            position_ids[i, column:end] = torch.arange(len(prompt), len(prompt) + len(answer))
            segment[i, column:end] = k
            column = end
    return {
        "input_ids": input_ids,
        "position_ids": position_ids,
        "segment": segment,
        "num_answer_columns": torch.full((len(rows),), width_answers),
    }


def block_mask(segment_BT: Tensor) -> Tensor:
    """Who sees whom: bool (B, 1, T, T), True where the row's token may look at the column's.

    Causal; all see the prompt; an answer sees only itself; padding sees only itself, so that no softmax is empty.
    """
    query, key = segment_BT[:, :, None], segment_BT[:, None, :]
    causal = torch.ones(segment_BT.shape[1], segment_BT.shape[1], dtype=torch.bool, device=segment_BT.device).tril()
    allowed = causal & ((key == PROMPT) | (key == query)) & (key != PADDING) & (query != PADDING)
    return (allowed | torch.eye(segment_BT.shape[1], dtype=torch.bool, device=segment_BT.device))[:, None]


def answer_logprobs(model: nn.Module, batch: dict[str, Tensor]) -> AnswerLogprobs:
    """Log-probabilities of every answer token of a packed batch, from one forward pass.

    Parameters
    ----------
    model : causal LM of transformers, plain, with a PEFT adapter, or wrapped for distributed training
    batch : dict
        From `pack`, on the model's device.
    """
    input_ids, segment = batch["input_ids"], batch["segment"]
    num_answer_columns = int(batch["num_answer_columns"][0])
    # One column more than the answers: the last prompt column predicts each answer's first token.
    logits_BAV = model(
        input_ids=input_ids,
        attention_mask=_attention_masks(model, block_mask(segment), batch["position_ids"]),
        position_ids=batch["position_ids"],
        logits_to_keep=num_answer_columns + 1,
        use_cache=False,
    ).logits[:, -(num_answer_columns + 1) :]
    answer_BA = segment[:, -num_answer_columns:]
    target_BA = input_ids[:, -num_answer_columns:]
    first_BA = answer_BA != segment[:, -num_answer_columns - 1 : -1]
    # A token is predicted by the column before it, but an answer's first token by the last prompt column (column 0).
    column_A = torch.arange(num_answer_columns, device=segment.device)
    source_BA = torch.where(first_BA, torch.zeros_like(column_A), column_A)
    # Row by row, so that the float32 copy of the logits is one row's and not the batch's.
    logp_BA = torch.stack(
        [
            -cross_entropy(logits_AV[source_A].float(), target_A, reduction="none")
            for logits_AV, source_A, target_A in zip(logits_BAV, source_BA, target_BA, strict=True)
        ]
    )
    return AnswerLogprobs(logp_BA.masked_fill(answer_BA == PADDING, 0.0), answer_BA)


def _attention_masks(model: nn.Module, allowed_B1TT: Tensor, position_BT: Tensor) -> Tensor | dict[str, Tensor]:
    """What a model takes as `attention_mask`: one mask, or one for each kind of its layers.

    Layers with a sliding window see no token further back than that, counted in positions, not in columns: a mask that
    is given in full takes the place of the model's own, window and all.
    """
    inner: Any = getattr(model, "module", model)
    config = inner.config.get_text_config()
    window: int = getattr(config, "sliding_window", None) or 0
    kinds = set(getattr(config, "layer_types", None) or [SLIDING if window else FULL])
    if unknown := kinds - {FULL, SLIDING}:
        raise InputError(
            f"{config.model_type}: its layers of the kind {', '.join(sorted(unknown))} carry more from token to token "
            "than an attention mask can part. Choose a model with full or sliding attention."
        )
    masks = {FULL: allowed_B1TT}
    if SLIDING in kinds:
        distance_BTT = position_BT[:, :, None] - position_BT[:, None, :]
        masks[SLIDING] = allowed_B1TT & (distance_BTT < window)[:, None]
    if config._attn_implementation != "sdpa":  # SDPA takes booleans; the others add the mask to the scores
        zero = torch.zeros((), dtype=inner.dtype, device=allowed_B1TT.device)
        masks = {kind: torch.where(mask, zero, torch.finfo(inner.dtype).min) for kind, mask in masks.items()}
    return (
        {kind: masks[kind] for kind in kinds}
        if getattr(config, "layer_types", None) and SLIDING in kinds
        else masks[kinds.pop()]
    )


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
