"""Log-probabilities of answers, with nothing computed twice and no tensor of all tokens times the vocabulary.

The candidate answers of a prompt share it: a row is [prompt | answer 0 | answer 1 ...], where each answer sees the
prompt and itself, nothing else, and its positions continue the prompt's. Rows stand behind one another in lines without
seeing each other, so that little is spent on padding. What all prompts of a batch begin with (a system prompt, the
marks of the chat template) stands once in each line, before its rows, and all of them see it. Only the columns that
predict an answer's token reach the output layer, some at a time, and if they are many their logits are computed again
in the backward pass instead of being kept.

Shapes: B rows, A answer tokens of a row (all its answers, padded), L lines of T tokens, N answer tokens in all, D width
of the model, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from amends.io.errors import InputError
from amends.lm.load import autocast
from amends.lm.pairs import Encoded

PROMPT, PADDING, SHARED = -1, -2, -3
LINE_TENSORS, ANSWER_TENSORS = ("input_ids", "position_ids", "row", "segment"), ("answer", "target", "source")
FULL, SLIDING = "full_attention", "sliding_attention"
LINE_TOKENS = 384
"""Lines are this long, or as long as the longest row: longer ones pad less and spend more on attention.
Another length rounds differently: trained weights then have other digests, those of examples/tofu among them."""
LOGITS_AT_ONCE = 2**25
"""Most logits that exist at one time: 128 MiB in float32."""
HELD_TOKENS = 32
"""Tokens of which a model's word is kept at each place of a row that it is held to; the others are one outcome."""
_checked_heads: WeakSet[nn.Module] = WeakSet()


class PackedRow(NamedTuple):
    """A prompt with its candidate answers, in token ids."""

    prompt: list[int]
    answers: list[list[int]]

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt and of all answers."""
        return len(self.prompt) + sum(map(len, self.answers))


class Held(NamedTuple):
    """What a model said of a row's answer tokens: the likeliest tokens of each, and their log-probabilities."""

    ids_AK: Tensor
    logp_AK: Tensor


class AnswerLogprobs(NamedTuple):
    """What one forward pass says of the answers."""

    logp_BA: Tensor
    """float32 log-probability in nats of each answer token given what precedes it; 0 at padding."""
    answer_BA: Tensor
    """int64: which of the row's answers the token belongs to; -2 at padding."""
    kl_BA: Tensor | None = None
    """Of rows that are held to what a model said of them before: float32 forward KL in nats at each answer token, 0 at
    padding and in other rows. Their logp_BA is not computed (0)."""

    def of(self, chosen_B: Tensor) -> "AnswerLogprobs":
        """Choose rows, by a mask or by numbers."""
        kl_BA = None if self.kl_BA is None else self.kl_BA[chosen_B]
        return AnswerLogprobs(self.logp_BA[chosen_B], self.answer_BA[chosen_B], kl_BA)

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
    dict : of the lines, each (L, T): input_ids; position_ids; row, the number of the token's row, -2 where it has none;
        segment: -1 prompt, k = answer k, -2 padding, -3 shared by all rows. Of the answer tokens, each (B, A): answer,
        as in `AnswerLogprobs`; target, its token id; source, the flat place in the lines of the token that predicts it.

    Raises
    ------
    ValueError : a row with an empty prompt (the first answer token would have nothing to be predicted from).
    """
    if empty := [i for i, row in enumerate(rows) if not row.prompt]:
        raise ValueError(f"rows {empty} have an empty prompt: the first answer token cannot be predicted from nothing.")
    shared = _shared([row.prompt for row in rows])
    lengths = [row.num_tokens - len(shared) for row in rows]
    lines = _lines(lengths, LINE_TOKENS - len(shared))
    width = len(shared) + max(sum(lengths[i] for i in line) for line in lines)
    columns: dict[str, list[list[int]]] = {name: [[] for _ in lines] for name in LINE_TENSORS}
    answers: dict[str, list[list[int]]] = {name: [[] for _ in rows] for name in ANSWER_TENSORS}
    for number, line in enumerate(lines):
        ids, positions, owners, segments = (columns[name][number] for name in LINE_TENSORS)
        ids += shared
        positions += range(len(shared))
        owners += [PADDING] * len(shared)
        segments += [SHARED] * len(shared)
        for i in line:
            prompt = rows[i].prompt[len(shared) :]
            last_of_prompt = number * width + len(ids) + len(prompt) - 1
            for k, part in enumerate([prompt, *rows[i].answers], start=PROMPT):
                if k != PROMPT:
                    start = number * width + len(ids)
                    answers["answer"][i] += [k] * len(part)
                    answers["target"][i] += part
                    answers["source"][i] += [last_of_prompt, *range(start, start + len(part) - 1)]
                first = len(shared) if k == PROMPT else len(rows[i].prompt)
                ids += part
                positions += range(first, first + len(part))
                owners += [i] * len(part)
                segments += [k] * len(part)
    fill = {"input_ids": pad_id, "row": PADDING, "segment": PADDING, "answer": PADDING}
    return {name: _padded(values, fill.get(name, 0)) for name, values in (columns | answers).items()}


def _padded(values: Sequence[list[int]], fill: int) -> Tensor:
    width = max(map(len, values))
    return torch.tensor([row + [fill] * (width - len(row)) for row in values])


def _shared(prompts: Sequence[list[int]]) -> list[int]:
    """Longest beginning that all prompts share, less than any of them; none for a single one."""
    if len(prompts) == 1:
        return []
    first, last = min(prompts), max(prompts)  # in the order of words of a dictionary the others lie between
    most = min(map(len, prompts)) - 1
    return first[: next((i for i in range(most) if first[i] != last[i]), most)]


def _lines(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Put rows into as few lines of `most` tokens (or the longest row's) as the longest-first first fit finds."""
    capacity = max(most, *lengths) if len(lengths) > 1 else lengths[0]
    lines: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        fits = next((k for k, left in enumerate(room) if left >= lengths[i]), None)
        if fits is None:
            lines.append([])
            room.append(capacity)
            fits = len(lines) - 1
        lines[fits].append(i)
        room[fits] -= lengths[i]
    return lines


def block_mask(row_LT: Tensor, segment_LT: Tensor) -> Tensor:
    """Who sees whom: bool (L, 1, T, T), True where the line's token may look at the column's.

    Causal; all see what is shared; within a row all see its prompt, and an answer sees only itself; padding sees only
    itself, so that no softmax is empty.
    """
    num_tokens = segment_LT.shape[1]
    causal = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=segment_LT.device).tril()
    query, key = segment_LT[:, :, None], segment_LT[:, None, :]
    same_row = row_LT[:, :, None] == row_LT[:, None, :]
    allowed = causal & (query != PADDING) & ((key == SHARED) | (same_row & ((key == PROMPT) | (key == query))))
    return (allowed | torch.eye(num_tokens, dtype=torch.bool, device=segment_LT.device))[:, None]


def answer_logprobs(model: nn.Module, batch: dict[str, Tensor]) -> AnswerLogprobs:
    """Log-probabilities of every answer token of a packed batch, from one forward pass.

    Parameters
    ----------
    model : causal LM of transformers, plain, with a PEFT adapter, or wrapped for distributed training
    batch : dict
        From `pack`, and `pack_held` where rows are held to what a model said before, on the model's device.

    Raises
    ------
    InputError : layers that no mask can part; an output layer whose result the model changes in a way unknown here.
    """
    head, config, hidden_PD = _answer_states(model, batch)
    known_BA, target_BA = batch["answer"] != PADDING, batch["target"]
    held_BA = known_BA & batch["is_held"][:, None] if "is_held" in batch else torch.zeros_like(known_BA)
    scored_BA = known_BA & ~held_BA
    hidden_ND = hidden_PD[batch["source"][scored_BA]]
    logp_N = _in_parts(partial(_score, head, config), config.vocab_size, hidden_ND, target_BA[scored_BA])
    logp_BA = torch.zeros(known_BA.shape, device=logp_N.device).masked_scatter(scored_BA, logp_N)
    if not held_BA.any():
        return AnswerLogprobs(logp_BA, batch["answer"])
    said = batch["held_ids"][held_BA], batch["held_logp"][held_BA]
    kl_M = _in_parts(partial(_kl, head, config), config.vocab_size, hidden_PD[batch["source"][held_BA]], *said)
    kl_BA = torch.zeros(known_BA.shape, device=kl_M.device).masked_scatter(held_BA, kl_M)
    return AnswerLogprobs(logp_BA, batch["answer"], kl_BA)


def hold(model: nn.Module, rows: Sequence[PackedRow], pad_id: int, batch_size: int = 16) -> list[Held]:
    """Ask a model what it says at each answer token: the HELD_TOKENS likeliest tokens and their log-probabilities.

    Parameters
    ----------
    model, rows : as for `answer_logprobs`; the model is asked in evaluation mode, without gradients.
    pad_id : int
        Of the tokenizer.
    batch_size : int, default 16
        Rows asked at a time.

    Returns
    -------
    list of Held : one a row, on the CPU.
    """
    said: list[Held] = []
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    try:
        for start in range(0, len(rows), batch_size):
            batch = {name: t.to(device) for name, t in pack(rows[start : start + batch_size], pad_id).items()}
            with torch.no_grad(), autocast():
                head, config, hidden_PD = _answer_states(model, batch)
                for source_A, known_A in zip(batch["source"], batch["answer"] != PADDING, strict=True):
                    logp_AV = _logits(head, config, hidden_PD[source_A[known_A]]).log_softmax(-1)
                    logp_AK, ids_AK = logp_AV.topk(min(HELD_TOKENS, logp_AV.shape[-1]))
                    said.append(Held(ids_AK.cpu(), logp_AK.cpu()))
    finally:
        model.train(was_training)
    return said


def pack_held(held: Sequence[Held | None], num_columns: int) -> dict[str, Tensor]:
    """Collate what rows are held to, for `answer_logprobs`: is_held (B,), held_ids and held_logp (B, A, K)."""
    width = max(said.ids_AK.shape[1] for said in held if said is not None)
    ids_BAK = torch.zeros(len(held), num_columns, width, dtype=torch.int64)
    logp_BAK = torch.zeros(len(held), num_columns, width)
    for row, said in enumerate(held):
        if said is not None:
            ids_BAK[row, : len(said.ids_AK)], logp_BAK[row, : len(said.ids_AK)] = said
    return {
        "is_held": torch.tensor([said is not None for said in held]),
        "held_ids": ids_BAK,
        "held_logp": logp_BAK,
    }


def _answer_states(model: nn.Module, batch: dict[str, Tensor]) -> tuple[nn.Module, Any, Tensor]:
    """Run the model up to its output layer: that layer, the configuration, the states (places in the lines, D)."""
    inner: Any = extract_model_from_parallel(model)
    config = inner.config.get_text_config()
    head = inner.get_output_embeddings()
    allowed_L1TT = block_mask(batch["row"], batch["segment"])
    with _hidden_states(head) as caught:
        logits_L1V = model(
            input_ids=batch["input_ids"],
            attention_mask=_attention_masks(inner, config, allowed_L1TT, batch["position_ids"]),
            position_ids=batch["position_ids"],
            use_cache=False,
        ).logits
    (hidden_LTD,) = caught
    if head not in _checked_heads:
        _check_head(head, config, hidden_LTD[:, -1:].detach(), logits_L1V.detach())
    return head, config, hidden_LTD.flatten(0, 1)


def _in_parts(of: Callable[..., Tensor], num_logits: int, *tensors: Tensor) -> Tensor:
    """Compute some rows at a time, and again in the backward pass; a single part may as well be kept: it is there."""
    size = max(1, LOGITS_AT_ONCE // num_logits)
    if torch.is_grad_enabled() and len(tensors[0]) > size:
        of = partial(checkpoint, of, use_reentrant=False)
    return torch.cat([of(*part) for part in zip(*(torch.split(t, size) for t in tensors), strict=True)])


@contextmanager
def _hidden_states(head: nn.Module) -> Iterator[list[Tensor]]:
    """Catch what the model hands to its output layer, and let through the last column only."""
    caught: list[Tensor] = []

    def catch(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        caught.append(inputs[0])
        return (inputs[0][:, -1:],)

    hook = head.register_forward_pre_hook(catch)
    try:
        yield caught
    finally:
        hook.remove()


def _logits(head: nn.Module, config: Any, hidden: Tensor) -> Tensor:
    """Logits in float32, with what some families do to them after the output layer."""
    logits: Tensor = head(hidden).float()
    if factor := getattr(config, "logit_scale", None):
        logits = logits * factor
    if divisor := getattr(config, "logits_scaling", None):
        logits = logits / divisor
    cap = getattr(config, "final_logit_softcapping", None)
    return cap * torch.tanh(logits / cap) if cap else logits


def _score(head: nn.Module, config: Any, hidden_ND: Tensor, target_N: Tensor) -> Tensor:
    return -cross_entropy(_logits(head, config, hidden_ND), target_N, reduction="none")


def _kl(head: nn.Module, config: Any, hidden_ND: Tensor, ids_NK: Tensor, said_NK: Tensor) -> Tensor:
    """Forward KL, from what was said to what is said now, over K tokens and all the others as one more outcome."""
    now_NK = _logits(head, config, hidden_ND).log_softmax(-1).gather(1, ids_NK)
    kl_N = (said_NK.exp() * (said_NK - now_NK)).sum(-1)
    rest_N, now_rest_N = (_rest(logp) for logp in (said_NK, now_NK))
    return kl_N + rest_N * (rest_N / now_rest_N).log()


def _rest(logp_NK: Tensor) -> Tensor:
    """Probability of all tokens but the K; in float32 it may come out as nothing, or less."""
    return (1 - logp_NK.exp().sum(-1)).clamp_min(1e-6)


def _check_head(head: nn.Module, config: Any, hidden: Tensor, logits: Tensor) -> None:
    """See once, on one column, that `_logits` gives the model's own logits (where they are numbers)."""
    if not torch.isfinite(logits).all():
        return
    with torch.no_grad():
        ours, tolerance = _logits(head, config, hidden), 1e-3 if logits.dtype == torch.float32 else 0.1
    if not torch.allclose(ours, logits.float(), atol=tolerance, rtol=tolerance):
        raise InputError(
            f"{config.model_type}: this model changes what its output layer gives in a way that amends does not know. "
            "Please report it with the name of the model."
        )
    _checked_heads.add(head)


def _attention_masks(inner: Any, config: Any, allowed_L1TT: Tensor, position_LT: Tensor) -> Any:
    """Make what a model takes as `attention_mask`: one mask, or one for each kind of its layers.

    Layers with a sliding window see no token further back than that, counted in positions, not in columns: a mask that
    is given in full takes the place of the model's own, window and all.
    """
    window: int = getattr(config, "sliding_window", None) or 0
    kinds = set(getattr(config, "layer_types", None) or [SLIDING if window else FULL])
    if unknown := kinds - {FULL, SLIDING}:
        raise InputError(
            f"{config.model_type}: its layers of the kind {', '.join(sorted(unknown))} carry more from token to token "
            "than an attention mask can part. Choose a model with full or sliding attention."
        )
    masks = {FULL: allowed_L1TT}
    if SLIDING in kinds:
        distance_LTT = position_LT[:, :, None] - position_LT[:, None, :]
        masks[SLIDING] = allowed_L1TT & (distance_LTT < window)[:, None]
    if config._attn_implementation == "flex_attention":
        masks = {kind: _for_flex(mask) for kind, mask in masks.items()}
    elif config._attn_implementation != "sdpa":  # SDPA takes booleans; the others add the mask to the scores
        zero = torch.zeros((), dtype=inner.dtype, device=allowed_L1TT.device)
        masks = {kind: torch.where(mask, zero, torch.finfo(inner.dtype).min) for kind, mask in masks.items()}
    return (
        {kind: masks[kind] for kind in kinds}
        if getattr(config, "layer_types", None) and SLIDING in kinds
        else masks[kinds.pop()]
    )


def _for_flex(allowed_L1TT: Tensor) -> Any:
    """Make the mask of FlexAttention, which leaves out whole blocks where nothing sees anything."""

    def sees(line: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return allowed_L1TT[line, 0, query, key]

    num_lines, _, num_tokens, _ = allowed_L1TT.shape
    return create_block_mask(sees, num_lines, None, num_tokens, num_tokens, device=allowed_L1TT.device.type)


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
