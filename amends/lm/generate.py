"""Answers to many prompts at once.

Shapes: B batch, T tokens, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
)
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from amends.io.progress import track
from amends.lm.load import autocast, inner_of
from amends.lm.logprobs import check_numbers
from amends.lm.templates import end_of_text


def generate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    *,
    stop_ids: Sequence[int],
    max_new_tokens: int = 64,
    batch_size: int = 64,
    temperature: float = 0.0,
    seed: int | Sequence[int] = 0,
    strip: bool = True,
    finished_only: bool = False,
    label: str = "answering",
) -> list[str]:
    """Continue each prompt, greedily or by drawing.

    What a model's folder says of generation is not heeded (penalties, beams, top-p), as it would fill up what is open,
    but for the tokens at which the model ends.

    Parameters
    ----------
    prompts : list of token id lists
        As `amends.lm.pairs.encode` makes them.
    stop_ids : list of int
        A continuation ends before the first of these, of the tokenizer's end of text, and of those at which the model
        ends by its own settings (Llama 3 and Gemma have several).
    max_new_tokens : int, default 64
    batch_size : int, default 64
        Prompts are sorted by length, padded on the left, and answered in batches. What all of them begin with (a
        system message, worked examples) goes through the model once for all.
    temperature : float, default 0
        Above 0, tokens are drawn from the model's distribution at it.
    seed : int, or one for each prompt, default 0
        Of the drawing; the generators of the caller are left as they were. A continuation with a seed of its own does
        not depend on what else is continued in the same call.
    strip : bool, default True
        Leave out white space around each continuation.
    finished_only : bool, default False
        Give no text, "", where `max_new_tokens` cut the continuation off.

    Returns
    -------
    list of str : in the order of `prompts`, without control tokens.

    Raises
    ------
    NotNumbers : the model gives NaN for the next token, of which a choice would be made all the same.
    """
    seeds = None if isinstance(seed, int) else seed
    sampled = {"do_sample": True, "temperature": temperature, "top_k": 0}
    drawing = sampled if temperature and seeds is None else {"do_sample": False}
    stops = sorted({*stop_ids, *end_of_text(tokenizer), *_own_stops(model)})
    pad_id = tokenizer.pad_token_id or 0  # nothing sees it
    settings = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=max_new_tokens, eos_token_id=stops or None, pad_token_id=pad_id, **drawing
    )
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    texts = [""] * len(prompts)
    device = next(model.parameters()).device
    with torch.random.fork_rng(enabled=bool(temperature)):
        if isinstance(seed, int) and temperature:
            torch.manual_seed(seed)
        with torch.inference_mode(), autocast():
            beginning = _read_beginning(model, prompts)
        for batch in track(batches, label, shown=len(batches) > 1):
            width = len(prompts[batch[-1]])
            ids_BT = torch.full((len(batch), width), pad_id)
            mask_BT = torch.zeros((len(batch), width), dtype=torch.int64)
            for row, i in enumerate(batch):
                ids_BT[row, width - len(prompts[i]) :] = torch.tensor(prompts[i])
                mask_BT[row, width - len(prompts[i]) :] = 1
            draws = LogitsProcessorList([_Numbers()])
            if temperature and seeds is not None:
                draws.append(_OwnDraws([seeds[i] for i in batch], temperature, device))
            with torch.inference_mode(), autocast(), _without_habits(model):
                cache = _cache(model, beginning, [width - len(prompts[i]) for i in batch], width + max_new_tokens)
                out_BT = model.generate(
                    input_ids=ids_BT.to(device),
                    attention_mask=mask_BT.to(device),
                    generation_config=settings,
                    logits_processor=draws,
                    **({} if cache is None else {"past_key_values": cache}),
                )
            for i, ids in zip(batch, out_BT[:, width:].tolist(), strict=True):
                end = next((place for place, token in enumerate(ids) if token in stops), None)
                if end is not None or not finished_only:
                    text = str(tokenizer.decode(ids[:end], skip_special_tokens=True))
                    texts[i] = text.strip() if strip else text
    return texts


def common_beginning(prompts: Sequence[list[int]]) -> int:
    """Count the tokens that all prompts begin with."""
    first, last = min(prompts, default=[]), max(prompts, default=[])  # in the order of a dictionary the most unlike
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False)))


def _new_cache(model: Any) -> Any:
    """Return an empty cache; None where the model keeps something else of what it read: a state, learned tokens."""
    inner = inner_of(model)
    learned = isinstance(model, PeftModel) and any(c.is_prompt_learning for c in model.peft_config.values())
    if learned or not inner._supports_default_dynamic_cache():
        return None
    cache = DynamicCache(config=inner.config.get_text_config(decoder=True))
    known = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)
    return cache if known and cache.layers else None


def _read_beginning(model: Any, prompts: Sequence[list[int]]) -> list[tuple[Tensor, Tensor]]:
    """Let the model read what all prompts begin with, but for the last token of the shortest.

    Returns
    -------
    list of keys and values of each layer, [1, heads, length, width]; empty where nothing is in common, or where the
        model does not keep all of it.
    """
    shortest = min(prompts, key=len, default=[])
    length = min(common_beginning(prompts), len(shortest) - 1)
    cache = _new_cache(model)
    if len(prompts) < 2 or length < 1 or cache is None:
        return []
    device = next(model.parameters()).device
    model(input_ids=torch.tensor([shortest[:length]], device=device), past_key_values=cache, logits_to_keep=1)
    if not all(layer.is_initialized and layer.keys.shape[2] == length for layer in cache.layers):
        return []
    return [(layer.keys, layer.values) for layer in cache.layers]


def _cache(model: Any, beginning: Sequence[tuple[Tensor, Tensor]], pads: Sequence[int], most: int) -> Any:
    """Make room for rows of at most so many tokens, which have the beginning behind so many places that nothing sees.

    As many places are filled as the beginning is long; what of it then stands behind them is read again.
    """
    cache = _new_cache(model)
    if cache is None:
        return cache
    cache.layers = [_Roomy(most) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    for layer, read in zip(cache.layers, beginning, strict=False):  # there may be none
        device = read[0].device
        place_BT = torch.arange(read[0].shape[2], device=device) - torch.tensor(pads, device=device)[:, None]
        layer.update(*(states[0][:, place_BT.clamp(min=0)].transpose(0, 1) for states in read))
    return cache


class _Roomy(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values of a layer with room for all that is to come, where `DynamicLayer` copies them for each token."""

    def __init__(self, most: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = most

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.room = [s.new_empty(*s.shape[:2], self.most, s.shape[3]) for s in (key_states, value_states)]
        start = self.get_seq_length()
        end = start + key_states.shape[2]
        for room, states in zip(self.room, (key_states, value_states), strict=True):
            room[:, :, start:end] = states
        self.keys, self.values = (room[:, :, :end] for room in self.room)
        return self.keys, self.values


def _own_stops(model: Any) -> list[int]:
    """Tokens at which a model ends by what its folder says of generation."""
    own = inner_of(model).generation_config.eos_token_id
    return [] if own is None else [own] if isinstance(own, int) else list(own)


@contextmanager
def _without_habits(model: Any) -> Iterator[None]:
    """Take away, meanwhile, a model's own settings: transformers fills up with them what a call leaves open."""
    inner = inner_of(model)
    own = inner.generation_config
    inner.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        inner.generation_config = own


class _Numbers(LogitsProcessor):
    """Look that there are numbers to choose by, before anything is done to them."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        check_numbers(scores)
        return scores


class _OwnDraws(LogitsProcessor):
    """Give each row a stream of its own: logits / temperature + Gumbel noise is largest at a draw from the model.

    Source: Gumbel, Statistical theory of extreme values (1954), known as the Gumbel-max trick.
    """

    def __init__(self, seeds: Sequence[int], temperature: float, device: torch.device) -> None:
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        self.temperature = temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        waiting_BV = torch.empty_like(scores, dtype=torch.float32)
        for waiting_V, generator in zip(waiting_BV, self.generators, strict=True):
            waiting_V.exponential_(generator=generator)
        return scores.float() / self.temperature - waiting_BV.log()  # minus the log of exponential noise is Gumbel's
