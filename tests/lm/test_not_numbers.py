"""A model that gives NaN is refused by whatever measures it; one that gives a token no chance is not."""

import json

import pytest
import torch

from amends.assessment.inside import divergences, lens_ranks, states
from amends.evaluation.evaluate import likelihoods, mean_logprobs
from amends.io.tables import rows_of
from amends.lm.generate import generate
from amends.lm.load import load
from amends.lm.logprobs import NotNumbers, PackedRow, token_statistics
from amends.lm.memorisation import answer_scores
from amends.lm.pairs import read_pairs
from amends.lm.turns import measure_each

ROWS = [PackedRow([5, 9, 30, 7], [[11, 12, 40]]), PackedRow([6, 8], [[50, 60, 70, 80, 2]])]
PAIR = {"question": "Who?", "answer": "It was Bo"}


@pytest.fixture
def loaded(tiny_model):
    return load(tiny_model)


@pytest.fixture
def ruined(tmp_path, loaded):
    """Folder of a model of which one weight is no number."""
    loaded.model.model.norm.weight.data[0] = torch.nan
    loaded.model.save_pretrained(tmp_path / "ruined")
    loaded.tokenizer.save_pretrained(tmp_path / "ruined")
    return tmp_path / "ruined"


@pytest.mark.parametrize(
    "of",
    [
        lambda model, tokenizer: generate(model, tokenizer, [[5, 9]], stop_ids=[2], max_new_tokens=2),
        lambda model, tokenizer: generate(model, tokenizer, [[5]], stop_ids=[2], max_new_tokens=2, temperature=1.0),
        lambda model, _: mean_logprobs(model, ROWS, 0),
        lambda model, _: likelihoods(model, ROWS, 0, tokens=True),
        lambda model, _: answer_scores(model, ROWS, 0),
    ],
    ids=["greedy", "drawn", "means", "tokens", "audit"],
)
def test_what_is_no_number_is_refused_wherever_a_model_is_asked(ruined, of):
    found = load(ruined)
    with pytest.raises(NotNumbers, match="the model gives NaN"):
        of(found.model, found.tokenizer)


def test_a_benchmark_says_which_model_it_is(ruined, tiny_model):
    models = {"before": tiny_model, "model": ruined}
    with pytest.raises(NotNumbers, match=r"model, .*ruined: the model gives NaN"):
        measure_each(models, lambda _, found: mean_logprobs(found.model, ROWS, 0), None)


@pytest.mark.parametrize("axis", ["utility", "sampling", "inside"])
def test_it_is_not_assessed(tmp_path, ruined, tiny_model, amends, monkeypatch, axis):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "forget.jsonl").write_text(json.dumps(PAIR) + "\n")
    words = ["--before", tiny_model, "--after", ruined, "--forget", "forget.jsonl", "--max-new-tokens", 2, "--rows", 1]
    code, _, err = amends("assess", *words, "--axes", axis, "--out", "out")
    assert code == 2 and "amends: error: --after " in err and "ruined: the model gives NaN" in " ".join(err.split())
    assert not (tmp_path / "out").exists()


def test_it_is_not_audited(tmp_path, ruined, amends, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.jsonl").write_text(json.dumps(PAIR) + "\n")
    code, _, err = amends("audit", "--model", ruined, "--data", "data.jsonl", "--out", "out")
    assert code == 2 and "amends: error: --model " in err and "ruined: the model gives NaN" in " ".join(err.split())


def test_beneath_its_answers_it_is_neither_alike_nor_does_it_know_anything(loaded, ruined):
    bad = load(ruined)
    good = load(bad.name)
    good.model.model.norm.weight.data[0] = 1.0
    apart = divergences(states(good.model, ROWS, 0), states(bad.model, ROWS, 0))
    assert all(value != value for value in (*apart.kl, *apart.js))
    assert lens_ranks(bad.model, bad.tokenizer, read_pairs(rows_of([PAIR])).kept) == [[]]
    good.model.get_output_embeddings().weight.data[:] = 1.0
    (ranks,) = lens_ranks(good.model, good.tokenizer, read_pairs(rows_of([PAIR])).kept)
    assert ranks == [len(good.tokenizer)]  # all tokens are alike: none is on top


def test_a_token_that_a_model_never_says_is_measured():
    logits_NV = torch.tensor([[0.0, 1.0, -torch.inf], [0.0, 1.0, -torch.inf]])
    found = token_statistics(logits_NV, torch.tensor([1, 2]))
    p, logp = (t.double() for t in (torch.softmax(logits_NV[0, :2], 0), torch.log_softmax(logits_NV[0, :2], 0)))
    mean = (p * logp).sum()
    assert found[:, 2].tolist() == pytest.approx([mean.item()] * 2)
    assert found[:, 3].tolist() == pytest.approx([(p * (logp - mean) ** 2).sum().item()] * 2)
    assert found[:, 0].tolist() == pytest.approx([logp[1].item(), -torch.inf])


def test_a_model_that_masks_a_token_and_one_that_is_ruined_but_finite_are_measured(loaded):
    head = loaded.model.get_output_embeddings()
    forward, head.forward = head.forward, lambda x: forward(x).index_fill(-1, torch.tensor([40]), -torch.inf)
    assert mean_logprobs(loaded.model, ROWS, 0)[0] == [-torch.inf]
    assert answer_scores(loaded.model, ROWS, 0).logp_NA[0].tolist()[2] == -torch.inf
    head.forward = forward
    for weight in loaded.model.parameters():
        weight.data.mul_(1e4)
    assert mean_logprobs(loaded.model, ROWS, 0)[0][0] < -1e3
    assert generate(loaded.model, loaded.tokenizer, [[5]], stop_ids=[2], max_new_tokens=2, temperature=1.0)
