"""Distributions beside another model's, the logit lens, and gradient norms, against plain computations of their own."""

import math

import pytest
import torch
from torch import nn

from amends.assessment.inside import divergences, gradient_norms, lens_ranks, states
from amends.io.errors import InputError
from amends.io.tables import rows_of
from amends.lm.load import add_lora, load, weights_sha256
from amends.lm.logprobs import PackedRow
from amends.lm.pairs import read_pairs

from ..conftest import save_tiny_model
from ..unlearn.conftest import PAIRS


@pytest.fixture
def loaded(tiny_model):
    return load(tiny_model)


ROWS = [PackedRow([5, 9, 30, 7], [[11, 12, 40]]), PackedRow([6, 8], [[50, 60, 70, 80, 2]])]


def logits_of(model, row):
    """Logits that predict the answer's tokens, from a pass of its own."""
    ids = torch.tensor([row.prompt + row.answers[0]])
    with torch.no_grad():
        return model(input_ids=ids).logits[0, len(row.prompt) - 1 : -1].double()


def test_a_model_is_at_no_distance_from_itself(loaded):
    mine = states(loaded.model, ROWS, 0)
    found = divergences(mine, mine)
    assert found == ([0, 0], [0, 0])


def test_distances_are_those_of_the_definitions(loaded, other_model):
    other = load(other_model).model
    found = divergences(states(loaded.model, ROWS, 0), states(other, ROWS, 0))
    for row, kl, js in zip(ROWS, found.kl, found.js, strict=True):
        p, q = logits_of(loaded.model, row).softmax(-1), logits_of(other, row).softmax(-1)
        m = (p + q) / 2
        assert kl == pytest.approx((p * (p / q).log()).sum(-1).mean().item(), rel=1e-3)
        both = ((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)) / 2
        assert js == pytest.approx(both.mean().item() / math.log(2), rel=1e-3)
        assert kl > 1e-3 and 0 < js < 1
    turned = divergences(states(other, ROWS, 0), states(loaded.model, ROWS, 0))
    assert turned.js == pytest.approx(found.js, rel=1e-5)
    assert turned.kl != pytest.approx(found.kl, rel=1e-3)


def test_answers_of_other_tokens_or_vocabularies_are_not_compared(loaded):
    mine = states(loaded.model, ROWS, 0)
    with pytest.raises(InputError, match="into other tokens"):
        divergences(mine, states(loaded.model, ROWS[:1], 0))
    with pytest.raises(InputError, match="vocabulary of another size"):
        divergences(mine, mine._replace(logits_of=lambda hidden_ND: mine.logits_of(hidden_ND)[:, :-1]))


def test_the_last_layer_under_the_lens_is_what_the_model_says(tmp_path):
    loaded = load(save_tiny_model(tmp_path / "three", layers=3))
    pair = read_pairs(rows_of([{"question": "Who?", "answer": "It was Bo"}])).kept[0]
    (ranks,) = lens_ranks(loaded.model, loaded.tokenizer, [pair])
    prompt = loaded.tokenizer("<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\nIt was")["input_ids"]
    with torch.no_grad():
        logits_V = loaded.model(input_ids=torch.tensor([prompt])).logits[0, -1]
    (target,) = loaded.tokenizer(" ")["input_ids"]  # its tokens are bytes
    assert len(ranks) == 3
    assert ranks[-1] == 1 + int((logits_V > logits_V[target]).sum())
    assert all(1 <= rank <= len(logits_V) for rank in ranks)


def test_what_is_planted_in_a_layer_is_found_there_and_not_before(tmp_path):
    loaded = load(save_tiny_model(tmp_path / "three", layers=3))
    pair = read_pairs(rows_of([{"question": "Who?", "answer": "It was Bo"}])).kept[0]
    (target,) = loaded.tokenizer(" ")["input_ids"]
    direction_D = loaded.model.get_output_embeddings().weight[target].detach()
    (plain,) = lens_ranks(loaded.model, loaded.tokenizer, [pair])
    layer = loaded.model.model.layers[1]
    hook = layer.register_forward_hook(lambda _, __, out: out + 1e4 * direction_D)
    (planted,) = lens_ranks(loaded.model, loaded.tokenizer, [pair])
    hook.remove()
    assert planted[0] == plain[0] > 1
    assert planted[1] == planted[2] == 1


def test_a_model_without_a_norm_that_is_known_is_a_gap(loaded):
    loaded.model.model.odd = loaded.model.model.norm
    del loaded.model.model.norm
    with pytest.raises(InputError, match="did not find the norm"):
        lens_ranks(loaded.model, loaded.tokenizer, read_pairs(rows_of(PAIRS)).kept)


@pytest.mark.parametrize("adapter", [False, True])
def test_gradient_norms_are_those_of_plain_autograd_and_the_model_is_left_as_it_was(loaded, adapter):
    model = add_lora(loaded.model, 2) if adapter else loaded.model
    digest, flags = weights_sha256(model), [weight.requires_grad for weight in model.parameters()]
    found = gradient_norms(model, ROWS, 0, "gradients")
    assert weights_sha256(model) == digest
    assert [weight.requires_grad for weight in model.parameters()] == flags
    assert all(weight.grad is None for weight in model.parameters())
    weights = [w for name, w in model.named_parameters() if ".lora_" not in name]
    for row, norm in zip(ROWS, found, strict=True):
        labels = torch.tensor([[-100] * len(row.prompt) + row.answers[0]])
        for weight in weights:
            weight.requires_grad_(True)
        loss = model(input_ids=torch.tensor([row.prompt + row.answers[0]]), labels=labels).loss
        gradients = torch.autograd.grad(loss, weights)
        assert norm == pytest.approx(torch.stack([g.norm() for g in gradients]).mean().item(), rel=1e-3)


def test_rows_that_a_model_fits_have_small_gradients(loaded):
    assert isinstance(loaded.model, nn.Module)
    row = ROWS[0]
    labels = torch.tensor([[-100] * len(row.prompt) + row.answers[0]])
    optimizer = torch.optim.Adam(loaded.model.parameters(), lr=0.02)
    for _ in range(60):
        loss = loaded.model(input_ids=torch.tensor([row.prompt + row.answers[0]]), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    known, strange = gradient_norms(loaded.model, ROWS, 0, "gradients")
    assert known < strange / 10
