"""Answers are greedy, or drawn from the model's distribution, whatever its folder says of generation."""

from contextlib import contextmanager

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AddedToken, GenerationConfig, GPT2Config, GPT2LMHeadModel, MambaConfig, MambaForCausalLM

from amends.evaluation.evaluate import answers
from amends.lm.generate import generate
from amends.lm.load import load
from amends.lm.pairs import Pair
from amends.lm.quiet import quiet
from amends.lm.templates import end_of_text
from tests.lm.conftest import FAMILIES, VOCAB, tiny

PROMPTS = [[3, 4, 5], [9, 8, 7, 6]]
HABITS = [
    {"repetition_penalty": 1.5, "no_repeat_ngram_size": 1},
    {"num_beams": 3, "min_new_tokens": 9},
    {"do_sample": True, "top_p": 0.01, "temperature": 5.0},
]


def said(model, tokenizer, **how):
    return generate(model, tokenizer, PROMPTS, stop_ids=[2], max_new_tokens=12, strip=False, **how)


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("how", [{}, {"temperature": 1.0, "seed": 3}, {"temperature": 1.0, "seed": [3, 4]}])
def test_the_habits_of_a_model_change_no_answer_and_stay_its_own(tiny_model, how, adapter):
    loaded = load(tiny_model)
    model = loaded.model
    if adapter:
        with quiet():
            model = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    plain = said(model, loaded.tokenizer, **how)
    for habits in HABITS:
        loaded.model.generation_config = GenerationConfig(**habits)
        assert said(model, loaded.tokenizer, **how) == plain
        assert all(getattr(loaded.model.generation_config, name) == value for name, value in habits.items())


def test_what_was_cut_off_is_left_out_where_only_whole_answers_are_wanted(tiny_model):
    loaded = load(tiny_model)
    assert all(said(loaded.model, loaded.tokenizer))
    assert said(loaded.model, loaded.tokenizer, finished_only=True) == ["", ""]
    with saying(loaded.model, words_of(loaded.tokenizer, "Ada<|im_end|>" + "x" * 9)):
        assert said(loaded.model, loaded.tokenizer, finished_only=True) == ["Ada", "Ada"]


def test_no_answer_goes_beyond_the_context_of_a_model(tiny_model):
    tokenizer = load(tiny_model).tokenizer
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": len(tokenizer)}
    model = GPT2LMHeadModel(GPT2Config(n_positions=64, bos_token_id=None, eos_token_id=2, **sizes)).eval()
    pairs = [Pair(str(n), "a" * n, "b", f"data[{n}]") for n in (10, 50, 64)]
    texts = answers(model, tokenizer, pairs, label="answering", max_new_tokens=32)
    assert [bool(text) for text in texts] == [True, True, False]
    with pytest.raises(IndexError):  # what a learned position beyond the last one is
        generate(model, tokenizer, [[3] * 50], stop_ids=[2], max_new_tokens=32)


@contextmanager
def saying(model, ids):
    """Let a model say these tokens, whatever it is asked."""
    left = iter(ids)

    def instead(_, __, logits):
        return torch.nn.functional.one_hot(torch.tensor(next(left)), logits.shape[-1]).float().expand_as(logits)

    hook = model.get_output_embeddings().register_forward_hook(instead)
    try:
        yield
    finally:
        hook.remove()


def words_of(tokenizer, *texts):
    return [i for text in texts for i in tokenizer(text, add_special_tokens=False)["input_ids"]]


@pytest.mark.parametrize("end", ["of the text", "of the model", "one of two of the model", "of the turn"])
@pytest.mark.parametrize("adapter", [False, True])
def test_an_answer_ends_at_every_token_that_ends_the_models_turn_or_text(tiny_model, end, adapter):
    loaded = load(tiny_model)
    model, tokenizer = loaded.model, loaded.tokenizer
    stop = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    own = {"of the model": stop, "one of two of the model": [7, stop]}.get(end)
    model.generation_config = GenerationConfig(eos_token_id=own)
    tokenizer.eos_token = "<|endoftext|>" if end == "of the text" else None
    if adapter:
        with quiet():
            model = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    ids = words_of(tokenizer, "Ada<|endoftext|>Bob is next")
    stop_ids = [stop] if end == "of the turn" else [2]
    for finished_only in (False, True):
        with saying(model, ids):
            (text,) = generate(
                model, tokenizer, PROMPTS[:1], stop_ids=stop_ids, max_new_tokens=len(ids), finished_only=finished_only
            )
        assert text == "Ada"


def test_the_token_that_ends_an_answer_is_no_part_of_it_where_it_is_not_marked_special(tiny_model):
    loaded = load(tiny_model)
    model, tokenizer = loaded.model, loaded.tokenizer
    tokenizer.add_tokens([AddedToken("<|turn|>", special=False, normalized=False)])
    tokenizer.pad_token = None  # nothing is filled up with what could be read either
    model.resize_token_embeddings(len(tokenizer))
    turn = tokenizer.convert_tokens_to_ids("<|turn|>")
    with saying(model, words_of(tokenizer, "Ada<|turn|>Bob")):
        assert generate(model, tokenizer, PROMPTS, stop_ids=[turn], max_new_tokens=7) == ["Ada", "Ada"]


def test_a_model_without_any_end_speaks_until_it_is_cut_off(tiny_model):
    loaded = load(tiny_model)
    loaded.model.generation_config = GenerationConfig()
    loaded.tokenizer.eos_token = loaded.tokenizer.pad_token = None
    with saying(loaded.model, words_of(loaded.tokenizer, "Ada and Bob")):
        assert generate(loaded.model, loaded.tokenizer, PROMPTS, stop_ids=[], max_new_tokens=7) == ["Ada and"] * 2


BEGINNING = [3, 14, 15, 9, 26, 5, 35, 8, 9]
COUNT = 6


def one_by_one(model, prompt, ends):
    """Greedy tokens after a prompt up to an end, each from a pass of its own over all before it."""
    ids = list(prompt)
    for _ in range(COUNT):
        with torch.no_grad():
            token = int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        if token in ends:
            break
        ids.append(token)
    return ids[len(prompt) :]


@contextmanager
def counting(model):
    """Count the tokens that go through a model."""
    seen = []
    hook = model.get_input_embeddings().register_forward_hook(lambda _, __, states: seen.append(states[..., 0].numel()))
    try:
        yield seen
    finally:
        hook.remove()


@pytest.mark.parametrize("family", ["mistral", "gemma3"])
@pytest.mark.parametrize(
    "window", [10, 11, 12, 16]
)  # the beginning fits into it, and some of what follows, or all of it
def test_a_window_that_holds_the_beginning_moves_on_behind_it(tokenizer, family, window, monkeypatch):
    made = FAMILIES[f"{family}, window of 4"]()
    made.sliding_window = window
    monkeypatch.setitem(FAMILIES, family, lambda: made)
    model = tiny(family)
    prompts = [[*BEGINNING, *range(10, 10 + rest)] for rest in (1, 3, 12)]
    with counting(model) as seen:
        texts = generate(model, tokenizer, prompts, stop_ids=[], max_new_tokens=COUNT, strip=False)
    ends = end_of_text(tokenizer)
    assert texts == [tokenizer.decode(one_by_one(model, prompt, ends), skip_special_tokens=True) for prompt in prompts]
    assert seen[:2] == [len(BEGINNING), len(prompts) * 12]


@pytest.mark.parametrize("family", [*FAMILIES, "llama with an adapter", "mamba"])
@pytest.mark.parametrize("rests", [[1, 2, 4], [1, 1, 12], [12, 15]])
def test_what_all_prompts_begin_with_is_read_once_and_changes_no_answer(tokenizer, family, rests):
    if family == "mamba":
        torch.manual_seed(0)
        model = MambaForCausalLM(MambaConfig(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=2, state_size=4))
        model.eval()
    else:
        model = tiny(family.partition(" with ")[0])
    if "adapter" in family:
        with quiet():
            model = get_peft_model(model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).eval()
    prompts = [[*BEGINNING, 10 + number, *range(20, 19 + rest)] for number, rest in enumerate(rests)]
    with counting(model) as seen:
        texts = generate(model, tokenizer, prompts, stop_ids=[], max_new_tokens=COUNT, strip=False)
    ends = end_of_text(tokenizer)
    assert texts == [tokenizer.decode(one_by_one(model, prompt, ends), skip_special_tokens=True) for prompt in prompts]
    rest, once = len(prompts) * max(rests), len(BEGINNING)
    all_of_it = rest + len(prompts) * once
    forgets = family == "mamba" or "window" in family  # keeps a state, or the last few tokens
    assert seen[: len(seen) - COUNT + 1] in ([[all_of_it], [once, all_of_it]] if forgets else [[once, rest]])
