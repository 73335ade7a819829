import numpy as np
import pytest
import torch

from amends.io.errors import InputError
from amends.io.tables import rows_of
from amends.lm.generate import generate
from amends.lm.load import weights_sha256
from amends.lm.logprobs import PackedRow
from amends.lm.memorisation import Tracker, answer_scores
from amends.lm.pairs import encode, read_pairs
from amends.maths.memorisation import auc, extractable, extraction_strength

from .conftest import VOCAB, tiny
from .learner import facts, learner, rows_of_pairs, teach

FLOAT32 = 2e-5


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    lengths = [(3, 5), (4, 1), (2, 7), (6, 3)] * 6  # more than one batch
    return [PackedRow(rng.integers(1, VOCAB, p).tolist(), [rng.integers(1, VOCAB, a).tolist()]) for p, a in lengths]


def logits_of(model, row):
    ids = row.prompt + row.answers[0]
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0, len(row.prompt) - 1 : -1].double()


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_all_numbers_are_those_of_one_row_after_the_other(family, rows):
    model = tiny(family)
    found = answer_scores(model, rows, 0, temperature=0.7, top_k=5, gradients=True)
    for i, row in enumerate(rows):
        logits, target = logits_of(model, row), torch.tensor(row.answers[0])
        logp = logits.log_softmax(-1)
        own = logp[torch.arange(len(target)), target]
        mean = (logp.exp() * logp).sum(-1)
        residual = logp.exp() - torch.nn.functional.one_hot(target, VOCAB)
        others = logits.masked_fill(torch.nn.functional.one_hot(target, VOCAB).bool(), -torch.inf).amax(-1)
        cut = torch.where(logits >= logits.topk(5).values[:, -1:], logits / 0.7, -torch.inf).log_softmax(-1)
        expected = {
            "logp_NA": own,
            "right_NA": (logits.argmax(-1) == target).double(),
            "mean_NA": mean,
            "deviation_NA": ((logp.exp() * logp**2).sum(-1) - mean**2).sqrt(),
            "sampled_NA": cut[torch.arange(len(target)), target],
            "margin_NA": logits[torch.arange(len(target)), target] - others,
            "el2n_NA": residual.norm(dim=-1),
        }
        for name, values in expected.items():
            got = getattr(found, name)[i]
            assert got[: len(target)] == pytest.approx(values.numpy(), abs=FLOAT32, rel=1e-4), name
            assert np.isnan(got[len(target) :]).all()


def test_a_token_that_is_all_but_certain_is_not_rounded_to_certain():
    model = tiny("llama")
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach() * 20)
    logits_V = logits_of(model, PackedRow([5, 6, 7], [[1]]))[0]
    row = PackedRow([5, 6, 7], [[int(logits_V.argmax())]])
    residual_V = logits_V.softmax(-1) - torch.nn.functional.one_hot(logits_V.argmax(), VOCAB)
    assert 1e-7 < residual_V.norm() < 1e-4
    found = answer_scores(model, [row], 0, gradients=True)
    with torch.no_grad():
        width = model.model(torch.tensor([row.prompt])).last_hidden_state[0, -1].double().norm()
    assert found.el2n_NA[0, 0] == pytest.approx(residual_V.norm().item(), rel=1e-3)
    assert found.squared_gradient_N[0] == pytest.approx(((width * residual_V.norm()) ** 2).item(), rel=1e-3)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_closed_form_of_the_output_layer_is_what_autograd_gives(family, rows):
    model = tiny(family)
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())  # apart from the embedding
    found = answer_scores(model, rows[:4], 0, gradients=True).squared_gradient_N
    for row, closed in zip(rows[:4], found, strict=True):
        ids = torch.tensor([row.prompt + row.answers[0]])
        logits = model(input_ids=ids).logits[0, len(row.prompt) - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(row.answers[0]))
        (gradient,) = torch.autograd.grad(loss, head.weight)
        assert closed == pytest.approx(gradient.square().sum().item(), rel=1e-4)
    assert np.isnan(answer_scores(model, rows[:4], 0).squared_gradient_N).all()


def test_what_one_pass_calls_extractable_is_what_greedy_decoding_gives(tokenizer, tmp_path):
    pairs = facts(24)
    model = teach(learner(tokenizer), tokenizer, pairs[:12], epochs=30, folder=tmp_path)
    rows = rows_of_pairs(tokenizer, pairs)
    found = answer_scores(model, rows, tokenizer.pad_token_id).right_NA
    flags = []
    for k in (0, 4):
        prompts = [row.prompt + row.answers[0][:k] for row in rows]
        said = generate(model, tokenizer, prompts, stop_ids=[2], max_new_tokens=20)
        whole = [tokenizer.decode(row.answers[0][k:]).strip() for row in rows]
        flags += extractable(found, k).tolist()
        assert extractable(found, k).tolist() == [
            float(text.startswith(w)) for text, w in zip(said, whole, strict=True)
        ]
    assert 5 < sum(flags) < 40
    strength = extraction_strength(found)
    assert auc(strength[:12], strength[12:]) > 0.95


def test_the_token_that_closes_the_turn_is_no_part_of_a_record(tokenizer):
    chat, text = (
        facts(1)[0],
        read_pairs(
            rows_of([{"text": "one two three four"}]), tokenizer=tokenizer, prefix_tokens=4, continuation_tokens=20
        ).kept[0],
    )
    rows = rows_of_pairs(tokenizer, [chat, text])
    assert [tokenizer.decode(row.answers[0]) for row in rows] == [chat.answer, text.answer]
    assert encode(tokenizer, chat.prompt, [chat.answer])[0].answer == [*rows[0].answers[0], 2]


# A training


def test_a_tracker_sees_the_training_and_leaves_it_as_it_is(tokenizer, tmp_path):
    pairs = facts(16)
    tracker = Tracker(tokenizer, pairs)
    tracked = teach(learner(tokenizer), tokenizer, pairs[:12], epochs=12, callbacks=[tracker], folder=tmp_path)
    plain = teach(learner(tokenizer), tokenizer, pairs[:12], epochs=12, folder=tmp_path)
    assert weights_sha256(tracked) == weights_sha256(plain)
    seen = tracker.dynamics()
    assert seen.right_TN.shape == seen.logp_TN.shape == (12, 16)
    last = answer_scores(tracked, rows_of_pairs(tokenizer, pairs), tokenizer.pad_token_id, gradients=True)
    assert seen.logp_TN[-1] == pytest.approx(np.nanmean(last.logp_NA, axis=1))
    assert seen.squared_gradient_TN[-1] == pytest.approx(last.squared_gradient_N)
    assert seen.tracin_N == pytest.approx(seen.learning_rate_T @ seen.squared_gradient_TN)
    assert seen.learning_rate_T == pytest.approx(3e-3 * (1 - (np.arange(24) / 24).reshape(12, 2).mean(axis=1)))
    taught, never = seen.margin_TN.mean(axis=0)[:12], seen.margin_TN.mean(axis=0)[12:]
    assert auc(taught, never) > 0.9
    assert not seen.forgetting.learned_N[12:].any()
    assert (seen.forgetting.score_N[12:] == seen.forgetting.events_N.max() + 1).all()


def test_a_tracker_that_saw_nothing_says_so(tokenizer):
    tracker = Tracker(tokenizer, facts(2))
    with pytest.raises(InputError, match="Train first"):
        tracker.dynamics()

    class State:
        global_step = 3

    with pytest.raises(InputError, match="checkpoint"):
        tracker.on_train_begin(None, State(), None)
