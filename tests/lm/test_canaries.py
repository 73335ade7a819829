import numpy as np
import pytest
from scipy.stats import spearmanr

from amends.io.errors import InputError
from amends.lm.canaries import Canaries
from amends.lm.logprobs import PackedRow
from amends.lm.memorisation import answer_scores
from amends.lm.templates import plain_ids
from amends.maths.memorisation import token_sum

from .learner import facts, learner, teach


def test_exposure_rises_with_repeats(tokenizer, tmp_path):
    canaries = Canaries("Vault {i} opens with {d4}.", [0, 1, 2, 4, 8, 16] * 2, question="Vault {i}?")
    model = teach(learner(tokenizer), tokenizer, [*facts(24), *canaries.pairs()], epochs=8, folder=tmp_path)
    found = canaries.exposure(model, tokenizer, samples=128)
    means = [np.mean([e.fitted_bits for e in found if e.canary.repeats == r]) for r in (0, 1, 2, 4, 8, 16)]
    assert spearmanr(means, [0, 1, 2, 4, 8, 16]).statistic > 0.9, means
    assert means[-1] > 10 > 4 > means[0], means
    assert [e.bits for e in found if e.canary.repeats == 16] == pytest.approx(
        [7, 7], abs=0.02
    )  # all that 128 samples can tell


def test_a_model_trained_without_the_canaries_exposes_1_44_bits(tokenizer, tmp_path):
    canaries = Canaries("Vault {i} opens with {d4}.", [0] * 40, question="Vault {i}?")
    model = teach(learner(tokenizer), tokenizer, facts(24), epochs=8, folder=tmp_path)
    found = canaries.exposure(model, tokenizer, samples=64)
    assert np.mean([e.bits for e in found]) == pytest.approx(1.44, abs=3 * 1.44 / 40**0.5)
    assert np.mean([e.fitted_bits for e in found]) == pytest.approx(1.44, abs=3 * 1.44 / 40**0.5)


def test_a_small_space_is_compared_whole(tokenizer):
    canaries = Canaries("the code is {d2}", [1, 1], seed=3)
    model = learner(tokenizer)
    found = canaries.exposure(model, tokenizer, samples=100)
    for e in found:
        prompt = plain_ids(tokenizer, "the code is")
        losses = {}
        for k in range(100):
            row = PackedRow(prompt, [plain_ids(tokenizer, f" {k:02d}")])
            losses[f"{k:02d}"] = -token_sum(answer_scores(model, [row], 0).logp_NA)[0]
        assert e.loss == pytest.approx(losses[e.canary.secret], abs=1e-4)
        rank = sum(loss <= losses[e.canary.secret] + 1e-6 for loss in losses.values())
        assert e.bits == pytest.approx(np.log2(100 / rank), abs=0.05)
        assert np.isnan(e.fitted_bits) and e.log2_space == pytest.approx(np.log2(100))


def test_canaries_stand_among_the_rows_as_often_as_they_should():
    rows = [{"question": f"{k}?", "answer": "Yes."} for k in range(20)]
    canaries = Canaries("It is {l8}.", [0, 1, 3], question="Code {i}?")
    out = canaries.insert(rows)
    assert [row for row in out if "id" not in row] == rows
    assert [sum(row["question"] == f"Code {i}?" for row in out) for i in range(3)] == [0, 1, 3]
    assert out == canaries.insert(rows) != rows + [row for row in out if "id" in row]
    assert len({c.secret for c in canaries.canaries}) == 3
    assert out != Canaries("It is {l8}.", [0, 1, 3], question="Code {i}?", seed=1).insert(rows)
    text = Canaries("the code is {d3}", [2]).insert([])
    assert [row["text"] for row in text] == [f"the code is {Canaries('the code is {d3}', [2]).canaries[0].secret}"] * 2


@pytest.mark.parametrize("pattern", ["no slot", "two {d2} {d3}", "{d4} is the code", "{d1} {x}", "{d0}"])
def test_a_pattern_that_cannot_be_compared_is_refused(pattern):
    with pytest.raises(InputError, match="pattern"):
        Canaries(pattern, [1, 1])


def test_secrets_of_unequal_length_in_tokens_are_refused(tokenizer):
    merged = type(tokenizer).from_pretrained(tokenizer.name_or_path)
    merged.add_tokens(["00", "11", "22"])
    with pytest.raises(InputError, match="tokens of an answer"):
        Canaries("the code is {d3}", [1]).exposure(learner(merged), merged, samples=1000)
