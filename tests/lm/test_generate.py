"""Answers are greedy, or drawn from the model's distribution, whatever its folder says of generation."""

import pytest
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

from amends.evaluation.evaluate import answers
from amends.lm.generate import generate
from amends.lm.load import load
from amends.lm.pairs import Pair
from amends.lm.quiet import quiet

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
    first = loaded.tokenizer(said(loaded.model, loaded.tokenizer)[0], add_special_tokens=False)["input_ids"][-1]
    ended = generate(
        loaded.model, loaded.tokenizer, PROMPTS, stop_ids=[2, first], max_new_tokens=12, strip=False, finished_only=True
    )
    assert ended[0]


def test_no_answer_goes_beyond_the_context_of_a_model(tiny_model):
    tokenizer = load(tiny_model).tokenizer
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": len(tokenizer)}
    model = GPT2LMHeadModel(GPT2Config(n_positions=64, bos_token_id=None, eos_token_id=2, **sizes)).eval()
    pairs = [Pair(str(n), "a" * n, "b", f"data[{n}]") for n in (10, 50, 64)]
    texts = answers(model, tokenizer, pairs, label="answering", max_new_tokens=32)
    assert [bool(text) for text in texts] == [True, True, False]
    with pytest.raises(IndexError):  # what a learned position beyond the last one is
        generate(model, tokenizer, [[3] * 50], stop_ids=[2], max_new_tokens=32)
