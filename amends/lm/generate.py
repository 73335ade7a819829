"""Answers to many prompts at once.

Shapes: B batch, T tokens, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerBase

from amends.io.progress import track
from amends.lm.load import autocast
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
        Prompts are sorted by length, padded on the left, and answered in batches.
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
                out_BT = model.generate(
                    input_ids=ids_BT.to(device),
                    attention_mask=mask_BT.to(device),
                    generation_config=settings,
                    logits_processor=draws,
                )
            for i, ids in zip(batch, out_BT[:, width:].tolist(), strict=True):
                end = next((place for place, token in enumerate(ids) if token in stops), None)
                if end is not None or not finished_only:
                    text = str(tokenizer.decode(ids[:end], skip_special_tokens=True))
                    texts[i] = text.strip() if strip else text
    return texts


def _own_stops(model: Any) -> list[int]:
    """Tokens at which a model ends by what its folder says of generation."""
    own = _inner(model).generation_config.eos_token_id
    return [] if own is None else [own] if isinstance(own, int) else list(own)


def _inner(model: Any) -> Any:
    return model.get_base_model() if isinstance(model, PeftModel) else model


@contextmanager
def _without_habits(model: Any) -> Iterator[None]:
    """Take away, meanwhile, a model's own settings: transformers fills up with them what a call leaves open."""
    inner = _inner(model)
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
