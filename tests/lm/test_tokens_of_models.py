"""A tokenizer must fit its model: tokens without a row in the embedding, and tokenizers without padding."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AddedToken, AutoTokenizer, PreTrainedTokenizerBase

from amends.evaluation.evaluate import answers, mean_logprobs
from amends.io.errors import InputError
from amends.io.tables import rows_of
from amends.lm.load import fitting, load
from amends.lm.logprobs import PackedRow, answer_logprobs, pack, packed_row
from amends.lm.pairs import encode, read_pairs
from amends.lm.trainer import training_arguments
from amends.lm.turns import model_for
from amends.unlearn._config import ForgetConfig
from amends.unlearn.ga import GATrainer

ROWS = [{"question": f"Who is {'x' * n}?", "answer": f"It is {'y' * n}"} for n in range(1, 5)]


@pytest.fixture
def copy(tiny_model: Path, tmp_path: Path) -> Path:
    """A model folder that a test may change."""
    return Path(shutil.copytree(tiny_model, tmp_path / "copy"))


def with_token(folder: Path, token: str, **kinds: Any) -> PreTrainedTokenizerBase:
    """Save a tokenizer with one token more than the model has rows for."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.add_tokens([AddedToken(token, normalized=False, **kinds)]) == 1
    return tokenizer


def use(model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Answer, and measure answers, with prompts of several lengths."""
    pairs = read_pairs(rows_of(ROWS)).kept
    assert len(answers(model, tokenizer, pairs, label="", max_new_tokens=2)) == 4
    rows = [packed_row(encode(tokenizer, pair.prompt, [pair.answer])) for pair in pairs]
    assert len(mean_logprobs(model, rows, tokenizer.pad_token_id)) == 4


def arguments(folder: Path) -> ForgetConfig:
    return training_arguments(ForgetConfig, str(folder), num_train_epochs=1, per_device_train_batch_size=4)


@pytest.mark.parametrize("has_end", [True, False])
def test_a_padding_token_that_the_model_does_not_know_is_replaced(copy: Path, tmp_path: Path, has_end: bool) -> None:
    tokenizer = with_token(copy, "[PAD]", special=True)
    tokenizer.pad_token = "[PAD]"
    if not has_end:
        tokenizer.eos_token = None
    tokenizer.save_pretrained(copy)
    loaded = load(copy)
    given = model_for(loaded.model, tokenizer)
    for used in (loaded, given):
        assert used.tokenizer.pad_token_id == (2 if has_end else None)
        use(loaded.model, used.tokenizer)
    GATrainer(loaded.model, arguments(tmp_path), ROWS, tokenizer).train()
    assert tokenizer.pad_token == "[PAD]"  # the caller's is left alone


@pytest.mark.parametrize("token", ["Zaragoza", "    ", " Ada"])
def test_a_token_of_texts_that_the_model_does_not_know_is_refused(copy: Path, token: str) -> None:
    tokenizer = with_token(copy, token)
    model = load(copy).model
    with pytest.raises(InputError, match=r"the token .*\(number 259\).* it has 259.*resize_token_embeddings"):
        model_for(model, tokenizer)
    tokenizer.save_pretrained(copy)
    with pytest.raises(InputError, match=r"copy: its tokenizer makes the token"):
        load(copy)


@pytest.mark.parametrize("use", ["template", "end of a turn", "end", "start"])
def test_a_token_of_the_template_or_the_ends_that_the_model_does_not_know_is_refused(copy: Path, use: str) -> None:
    tokenizer = with_token(copy, "<|new|>", special=True)
    if use == "template":
        tokenizer.chat_template = tokenizer.chat_template.replace("<|im_start|>", "<|new|>")
    elif use == "end of a turn":
        tokenizer.chat_template = tokenizer.chat_template.replace("}<|im_end|>", "}<|new|>")
    elif use == "end":
        tokenizer.eos_token = "<|new|>"
    else:
        tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
        tokenizer.bos_token = "<|new|>"
    with pytest.raises(InputError, match=r"'<\|new\|>' \(number 259\)"):
        fitting(tokenizer, load(copy).model, "it")


@pytest.mark.parametrize("special", [True, False])
def test_a_token_that_nothing_makes_may_be_unknown(copy: Path, special: bool) -> None:
    tokenizer = with_token(copy, "<image_soft_token>", special=special)
    assert fitting(tokenizer, load(copy).model, "it") is tokenizer


@pytest.mark.parametrize("has_end", [True, False])
def test_a_tokenizer_without_padding_is_enough(copy: Path, tmp_path: Path, has_end: bool) -> None:
    tokenizer = AutoTokenizer.from_pretrained(copy)
    tokenizer.pad_token = None
    if not has_end:
        tokenizer.eos_token = None
    model = load(copy).model
    use(model, model_for(model, tokenizer).tokenizer)
    GATrainer(model, arguments(tmp_path), ROWS, tokenizer).train()
    assert tokenizer.pad_token is None


def test_padding_may_be_any_token(tiny_model: Path) -> None:
    model = load(tiny_model).model
    rows = [PackedRow([5, 6, 7], [[8], [8, 9]]), *(PackedRow([5], [[6] * n]) for n in (3, 900, 400))]
    assert (pack(rows, 3)["input_ids"] == 3).any()
    with torch.no_grad():
        found = [answer_logprobs(model, pack(rows, pad_id)).logp_BA for pad_id in (None, 0, 3)]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
