"""What tokens give away: identities, planted truths, and the same numbers from a plain forward pass of its own."""

import json
import zlib
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import binomtest, mannwhitneyu, norm

from amends.evaluation.evaluate import HOLDOUT, build_suite, evaluate, likelihoods, mean_logprobs, with_reference
from amends.evaluation.intervals import RESAMPLES
from amends.evaluation.memorised import (
    ATTACKS,
    BESIDE_NAMES,
    PRIVACY_NAMES,
    answer_scores,
    auc_of,
    found_of,
    priv_leak,
    true_positive_rate,
)
from amends.evaluation.metrics import deviation_score
from amends.evaluation.summary import LATER_NAMES, summarise
from amends.io.tables import rows_of
from amends.lm.load import load
from amends.lm.logprobs import PackedRow, token_statistics
from amends.lm.pairs import Pairs, encode, read_pairs
from amends.maths import memorisation
from amends.unlearn._read import about, check_unseen

HITS = st.lists(st.booleans(), min_size=1, max_size=12)
SCORES = arrays(float, st.integers(1, 30), elements=st.integers(-9, 9).map(float))  # whole: ties are likely


def rng(seed=0):
    return np.random.default_rng(seed)


# One answer


def extraction_strength(hits):
    return memorisation.extraction_strength([hits])[0]


def min_k(logp, share):
    return -memorisation.min_k([logp], share)[0]


def test_a_copied_answer_is_known_by_heart():
    copied = np.column_stack([np.full(5, -0.01), np.ones(5), np.full(5, -0.02), np.full(5, 0.01)])
    scores = answer_scores(copied, "a copied answer")
    assert (scores["extraction_strength"], scores["exact_memorisation"]) == (1, 1)


def test_extraction_strength_can_be_zero_and_counts_from_the_end():
    assert extraction_strength([False] * 4) == 0
    assert extraction_strength([True, True, True, False]) == 0
    assert extraction_strength([False, False, False, True]) == 0.25
    assert extraction_strength([True, False, True, True]) == 0.5


@given(HITS)
def test_extraction_strength_is_that_of_the_definition(hits):
    k = next(k for k in range(len(hits) + 1) if all(hits[k:]))
    assert extraction_strength(hits) == pytest.approx(1 - k / len(hits))
    assert 0 <= extraction_strength(hits) <= np.mean(hits)
    assert (extraction_strength(hits) == 1) == (np.mean(hits) == 1)


@given(st.floats(-20, 0), st.integers(1, 30), st.floats(0.01, 1))
def test_min_k_of_equal_log_probabilities_is_theirs(logp, num_tokens, share):
    assert min_k(np.full(num_tokens, logp), share) == pytest.approx(-logp)


@given(arrays(float, st.integers(1, 30), elements=st.floats(-20, 0)))
def test_min_k_is_the_mean_nll_at_k_1_and_falls_with_k(logp):
    values = [min_k(logp, share) for share in (0.01, 0.2, 0.4, 0.7, 1)]
    assert values[-1] == pytest.approx(-logp.mean()) and values[0] == -logp.min()
    assert all(one >= other - 1e-12 for one, other in pairwise(values))


def test_a_token_without_spread_has_a_finite_standard_score():
    scores = answer_scores(np.array([[-1e-4, 1.0, -1e-4, 0.0], [-3.0, 0.0, -1e-4, 0.0]]), "x")
    assert scores["min_k_plus_40"] == pytest.approx(2.9999 / 1e-3, rel=1e-4)


def test_statistics_of_a_token_by_hand():
    probability = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]], dtype=torch.float64)
    found = token_statistics(probability.log() + 7, torch.tensor([1, 2])).numpy()
    logp = np.log(probability.numpy())
    mean = (probability.numpy() * logp).sum(1)
    np.testing.assert_allclose(found[:, 0], [np.log(0.3), np.log(0.8)])
    assert found[:, 1].tolist() == [0, 1]
    np.testing.assert_allclose(found[:, 2], mean)
    np.testing.assert_allclose(found[:, 3], (probability.numpy() * logp**2).sum(1) - mean**2)


# The same from a plain pass


@pytest.fixture(scope="module")
def asked(tiny_model):
    """Model, tokenizer, and rows of one, two and three answers."""
    loaded = load(tiny_model)
    answers = [["In Rome."], ["In a town far away.", "There."], ["Oslo", "Lima, of all places", "Up."]]
    rows = []
    for k, texts in enumerate(answers):
        encoded = encode(loaded.tokenizer, [{"role": "user", "content": f"Where was {'x' * k} born?"}], texts)
        rows.append(PackedRow(encoded[0].prompt, [e.answer for e in encoded]))
    return loaded, answers, rows


def test_token_statistics_are_those_of_a_forward_pass_of_their_own(asked):
    loaded, answers, rows = asked
    found = likelihoods(loaded.model, rows, loaded.tokenizer.pad_token_id, tokens=True)
    for row, (means, tokens_T4), texts in zip(rows, found, answers, strict=True):
        ids = torch.tensor([row.prompt + row.answers[0]])
        with torch.no_grad():
            logp_TV = loaded.model(ids).logits[0, len(row.prompt) - 1 : -1].double().log_softmax(-1)
        target_T = ids[0, len(row.prompt) :]
        logp_T = logp_TV.gather(1, target_T[:, None])[:, 0].numpy()
        hit_T = (logp_TV.argmax(-1) == target_T).numpy()
        mean_T = (logp_TV.exp() * logp_TV).sum(-1).numpy()
        deviation_T = np.sqrt((logp_TV.exp() * logp_TV**2).sum(-1).numpy() - mean_T**2)
        k = next(k for k in range(len(hit_T) + 1) if hit_T[k:].all())
        lowest = sorted(logp_T)
        num_40, num_20 = (max(1, int(share * len(logp_T))) for share in (0.4, 0.2))
        expected = {
            "extraction_strength": 1 - k / len(hit_T),
            "exact_memorisation": hit_T.mean(),
            "nll": -logp_T.mean(),
            "nll_per_zlib_byte": -logp_T.mean() / len(zlib.compress(texts[0].encode())),
            "min_k_40": -np.mean(lowest[:num_40]),
            "min_k_20": -np.mean(lowest[:num_20]),
            "min_k_plus_40": -np.mean(sorted((logp_T - mean_T) / deviation_T)[:num_40]),
        }
        assert answer_scores(tokens_T4, texts[0]) == pytest.approx(expected, rel=1e-4)
        assert means[0] == pytest.approx(logp_T.mean(), rel=1e-5)


def test_looking_at_tokens_changes_no_mean(asked):
    loaded, _, rows = asked
    pad = loaded.tokenizer.pad_token_id
    plain = mean_logprobs(loaded.model, rows, pad)
    for (means, tokens_T4), other, row in zip(
        likelihoods(loaded.model, rows, pad, tokens=True), plain, rows, strict=True
    ):
        assert means == pytest.approx(other, rel=1e-5)
        assert len(tokens_T4) == len(row.answers[0])
    assert all(len(found.tokens_T4) == 0 for found in likelihoods(loaded.model, rows, pad))


def test_tokens_are_looked_at_in_the_pass_that_is_made_anyway(asked, monkeypatch):
    loaded, _, rows = asked
    passes = []
    handle = loaded.model.register_forward_hook(lambda *_: passes.append(1))
    try:
        likelihoods(loaded.model, rows, loaded.tokenizer.pad_token_id, tokens=True)
    finally:
        handle.remove()
    assert len(passes) == 1


# Two sets of rows


def attack_auc(forget, holdout):
    """AUC of the rows themselves, 1 where those to forget look more like training data."""
    forget, holdout = np.asarray(forget, float), np.asarray(holdout, float)
    return memorisation.auc(-forget, -holdout)


@given(SCORES)
def test_a_set_against_itself_has_auc_one_half_and_privleak_zero(scores):
    assert attack_auc(scores, scores[::-1]) == pytest.approx(0.5)
    assert priv_leak(attack_auc(scores, scores), 0.5) == pytest.approx(0, abs=1e-9)


@given(SCORES, SCORES)
def test_auc_is_that_of_mann_and_whitney_in_any_monotone_scale(forget, holdout):
    auc = attack_auc(forget, holdout)
    assert auc == pytest.approx(mannwhitneyu(holdout, forget).statistic / (forget.size * holdout.size))
    assert auc == pytest.approx(attack_auc(np.exp(forget / 3), np.exp(holdout / 3)))
    assert auc == pytest.approx(1 - attack_auc(holdout, forget))
    found = true_positive_rate(forget, holdout)
    assert found == true_positive_rate(forget**3, holdout**3) == np.mean(forget < holdout.min())


@given(SCORES, SCORES, st.integers(0, 99))
def test_a_row_counts_as_often_as_it_is_drawn(forget, holdout, seed):
    times = [rng(seed).integers(0, 3, size=scores.size) + (np.arange(scores.size) == 0) for scores in (forget, holdout)]
    repeated = [np.repeat(scores, k) for scores, k in zip((forget, holdout), times, strict=True)]
    weights = [k[None].astype(float) for k in times]
    assert auc_of(forget, holdout, *weights)[0] == pytest.approx(attack_auc(*repeated))
    assert found_of(forget, holdout, *weights)[0] == pytest.approx(true_positive_rate(*repeated))


def test_rows_that_look_like_training_data_have_auc_one():
    assert attack_auc([0.1, 0.2], [0.3, 0.4]) == 1 == true_positive_rate([0.1, 0.2], [0.3, 0.4])
    assert attack_auc([0.5], [0.3, 0.4]) == 0 == true_positive_rate([0.5], [0.3, 0.4])


def test_auc_of_normals_a_distance_apart_is_that_of_theory():
    forget, holdout = rng().normal(0, 1, 4000), rng(1).normal(0.8, 1, 4000)
    assert attack_auc(forget, holdout) == pytest.approx(norm.cdf(0.8 / np.sqrt(2)), abs=0.015)
    assert true_positive_rate(forget, holdout) == pytest.approx(norm.cdf(0.8 - 2.326), abs=0.02)


def test_one_false_alarm_in_a_hundred_is_allowed():
    holdout = np.arange(100.0)
    assert true_positive_rate([-1.0, 0.5, 1.0, 1.5], holdout) == 0.5  # below 1: one holdout row, 0
    assert true_positive_rate([-1.0, 0.5, 1.0, 1.5], holdout[:99]) == 0.25


@given(st.floats(0, 0.99))
def test_privleak_is_zero_where_the_reference_is_and_minus_100_where_all_is_known(auc):
    assert priv_leak(auc, auc) == pytest.approx(0)
    assert priv_leak(1.0, auc) == pytest.approx(-100)
    assert np.isnan(priv_leak(auc, 1.0))
    assert priv_leak(0.0, 0.5) == 100


def test_deviation_score_by_hand():
    assert deviation_score(0.0, 1.0) == 0
    assert deviation_score(0.3, 0.6) == pytest.approx(50)
    assert deviation_score(1.0, 0.0) == pytest.approx(100 * np.sqrt(2))


# Their summary


def scored(shift, num_rows=60, seed=0):
    draws = rng(seed)
    names = {score for score, _ in ATTACKS.values()}
    return [{"id": k, **{name: draws.normal(shift) for name in sorted(names)}} for k in range(num_rows)]


def test_intervals_hold_the_values_and_the_width_of_theory():
    summary = summarise({"forget": scored(0), "holdout": scored(1, seed=1)}, None)
    for name in PRIVACY_NAMES:
        e = summary[name]
        assert e["low"] < e["value"] < e["high"] and (e["n"], e["left_out"], e["missing"]) == (120, 0, None)
    auc = summary["mia_auc_loss"]
    q1, q2 = auc["value"] / (2 - auc["value"]), 2 * auc["value"] ** 2 / (1 + auc["value"])  # Hanley and McNeil 1982
    variance = auc["value"] * (1 - auc["value"]) + 59 * (q1 + q2 - 2 * auc["value"] ** 2)
    assert (auc["high"] - auc["low"]) / (2 * 1.96 * np.sqrt(variance) / 60) == pytest.approx(1, abs=0.25)


def test_the_auc_interval_agrees_with_a_plain_loop():
    forget, holdout = (np.round([row["nll"] for row in scored(s, 25, seed)], 1) for s, seed in ((0, 2), (0.5, 3)))
    sets = {
        name: [{"id": k, "nll": v} for k, v in enumerate(x)] for name, x in (("forget", forget), ("holdout", holdout))
    }
    entry, draws = summarise(sets, None)["mia_auc_loss"], rng(4)
    plain = [attack_auc(draws.choice(forget, 25), draws.choice(holdout, 25)) for _ in range(4 * RESAMPLES)]
    assert [entry["low"], entry["high"]] == pytest.approx(np.quantile(plain, [0.025, 0.975]), abs=0.02)


def test_sets_that_lie_wholly_apart_have_an_interval_that_says_how_few_they_are():
    sets = {"forget": scored(-99, 8), "holdout": scored(99, 20)}
    found = summarise(sets, None)
    reach = float(binomtest(8, 8).proportion_ci(method="wilson").low)
    auc, leak = found["mia_auc_loss"], found["privleak"]
    assert (auc["value"], auc["low"], auc["high"]) == pytest.approx((1, reach, 1), abs=1e-4)
    assert (leak["value"], leak["low"], leak["high"]) == pytest.approx((-100, -100, 100 - 200 * reach), abs=0.02)
    alone = summarise({"forget": scored(-99, 1), "holdout": scored(99)}, None)
    assert all(alone[name]["value"] is not None and alone[name]["low"] is None for name in PRIVACY_NAMES)


def test_privleak_compares_with_the_reference_where_there_is_one():
    model = {"forget": scored(0), "holdout": scored(1, seed=1)}
    reference = {"forget": scored(0, seed=2), "holdout": scored(0.2, seed=3)}
    alone, beside = (summarise(model, other)["privleak"] for other in (None, reference))
    assert "as there is no reference" in alone["meaning"] and "the reference's" in beside["meaning"]
    auc, other = (
        attack_auc(*([row["min_k_40"] for row in sets[name]] for name in ("forget", "holdout")))
        for sets in (model, reference)
    )
    assert alone["value"] == pytest.approx(100 * (0.5 - auc) / 0.5)
    assert beside["value"] == pytest.approx(100 * (other - auc) / (1 - other))
    itself = summarise(model, model)["privleak"]
    assert (itself["value"], itself["low"], itself["high"]) == (0, 0, 0)  # the same rows are drawn of both


def test_the_loss_less_the_references_is_an_attack_where_there_is_a_reference():
    model = {"forget": scored(0), "holdout": scored(1, seed=1)}
    reference = {"forget": scored(0, seed=2), "holdout": scored(0.2, seed=3)}
    found = summarise(model, reference)["mia_auc_reference"]
    less = [
        [one["nll"] - other["nll"] for one, other in zip(model[name], reference[name], strict=True)]
        for name in ("forget", "holdout")
    ]
    assert found["value"] == pytest.approx(attack_auc(*less)) != summarise(model, None)["mia_auc_loss"]["value"]
    assert found["low"] < found["value"] < found["high"]
    assert "There is no reference" in summarise(model, None)["mia_auc_reference"]["missing"]
    assert summarise(model, model)["mia_auc_reference"]["value"] == 0.5


def test_what_privleak_cannot_do_is_said():
    model = {"forget": scored(0), "holdout": scored(1, seed=1)}
    asked_other = summarise(model, {"forget": scored(0, 59), "holdout": scored(1)})["privleak"]
    assert asked_other["value"] is None and "other rows" in asked_other["missing"]
    known = {"forget": scored(-99), "holdout": scored(99)}
    assert "nothing is left" in summarise(model, known)["privleak"]["missing"]
    without = summarise({"forget": scored(0)}, model)
    assert all(without[name]["missing"].endswith("(--holdout).") for name in set(PRIVACY_NAMES) - {"privleak"})


def test_rows_without_a_score_are_left_out_and_counted():
    sets = {"forget": scored(0), "holdout": scored(1, seed=1)}
    sets["forget"][0]["nll"] = None
    entry = summarise(sets, None)["mia_auc_loss"]
    assert (entry["n"], entry["left_out"]) == (119, 1)
    for row in sets["holdout"]:
        row["nll"] = float("nan")
    assert summarise(sets, None)["mia_auc_loss"]["missing"] == "No holdout item has nll."


# In an evaluation and a run


def pairs(num, town):
    return [
        {
            "id": f"{town}{i}",
            "question": f"Where was {i} born?",
            "answer": f"In {town} {i}.",
            "perturbed_answer": ["Up."],
        }
        for i in range(num)
    ]


def read(num, town, tokenizer=None):
    return read_pairs(rows_of(pairs(num, town)), tokenizer=tokenizer)


def test_holdout_rows_are_asked_for_likelihoods_alone_and_change_the_digest_only_where_there_are_some(tiny_model):
    loaded = load(tiny_model)
    forget, unseen = read(5, "Rome").kept, read(4, "Oslo").kept
    suite = build_suite(forget, {}, [], rows=1, max_new_tokens=2, holdout=unseen)
    plain = build_suite(forget, {}, [], rows=1, max_new_tokens=2)
    assert HOLDOUT not in plain.questions and plain.sha256() != suite.sha256()
    assert plain.sha256() == build_suite(forget, {}, [], rows=1, max_new_tokens=2, holdout=[]).sha256()
    found = evaluate(loaded.model, loaded.tokenizer, suite, role="before", name="tiny")
    assert [len(found["items"][name]) for name in ("forget", HOLDOUT)] == [5, 4]
    names = set(answer_scores(np.ones((1, 4)), "a"))
    assert all(names <= item.keys() and "generated" not in item for item in found["items"][HOLDOUT])
    assert all(item["truth_ratio"] is None for item in found["items"][HOLDOUT])  # wrong answers are not asked
    assert all(names <= item.keys() and "generated" in item for item in found["items"]["forget"])
    assert not names & found["items"]["general"][0].keys()
    item = found["items"]["forget"][0]
    assert item["nll"] == pytest.approx(-np.log(item["probability"]), rel=1e-5)
    assert len(json.dumps({name: item[name] for name in names})) < 250
    summary = with_reference(found, found)["summary"]
    assert summary["privleak"]["value"] == 0
    assert [name for name in LATER_NAMES if summary[name]["value"] is None] == [
        "retain_extraction_strength",
        "retain_exact_memorisation",
        "deviation_score",
    ]


def test_holdout_rows_that_a_model_is_trained_on_are_refused():
    forget, unseen = read(5, "Rome"), read(4, "Oslo")
    check_unseen(unseen, forget.kept)
    with pytest.raises(ValueError, match=r"data\[0\]: the same row as data\[0\] \(1 of 5 rows of --holdout"):
        check_unseen(Pairs([*forget.kept[:1], *unseen.kept]), forget.kept)


def test_a_run_with_a_holdout_set_shows_and_verifies_it(tmp_path, tiny_model, amends):
    files = {name: tmp_path / f"{name}.jsonl" for name in ("Rome", "Oslo")}
    for town, file in files.items():
        file.write_text("".join(json.dumps(row) + "\n" for row in pairs(4, town)))
    words = ["unlearn", "ga", "--model", tiny_model, "--forget", files["Rome"], "--epochs", 1]
    code, _, err = amends(*words, "--eval-rows", 0, "--holdout", files["Oslo"], "--out", tmp_path / "none")
    assert code == 2 and "--holdout: nothing is evaluated" in err
    code, _, err = amends(*words, "--eval-rows", 1, "--holdout", files["Oslo"], "--out", tmp_path / "run")
    assert code == 0, err
    run = json.loads((tmp_path / "run/run.json").read_text())
    assert run["data"]["holdout"] == about(str(files["Oslo"]), read(4, "Oslo"))
    page = (tmp_path / "run/report.html").read_text()
    assert "PrivLeak" in page and "Extraction strength, to forget" in page and "Deviation score" not in page
    code, out, _ = amends("verify", tmp_path / "run")
    assert code == 0 and out.count("holds ") == 8, out
    evaluation = tmp_path / "run/evaluation/after.json"
    after = json.loads(evaluation.read_text())
    for name in LATER_NAMES:
        del after["summary"][name]
    evaluation.write_text(json.dumps(after))
    assert "does not hold      summary after: other names of values" in amends("verify", tmp_path / "run", "--quick")[1]


def test_a_run_of_an_amends_without_these_metrics_still_verifies(tmp_path, tiny_model, amends):
    file = tmp_path / "forget.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in pairs(3, "Rome")))
    out = tmp_path / "run"
    assert (
        amends("unlearn", "ga", "--model", tiny_model, "--forget", file, "--epochs", 1, "--eval-rows", 1, "--out", out)[
            0
        ]
        == 0
    )
    kept = set(answer_scores(np.ones((1, 4)), "a"))
    for role in ("before", "after"):
        path = out / "evaluation" / f"{role}.json"
        old = json.loads(path.read_text())
        later = LATER_NAMES + BESIDE_NAMES
        old["summary"] = {name: entry for name, entry in old["summary"].items() if name not in later}
        for rows in old["items"].values():
            for item in rows:
                for name in kept & item.keys():
                    del item[name]
        path.write_text(json.dumps(old))
    words = {line[19:].partition(":")[0]: line[:18].strip() for line in amends("verify", out)[1].splitlines()}
    assert {what for what, word in words.items() if word != "holds"} == {"manifest"}  # the files were edited
    del old["summary"]["forget_rouge_l"]
    path.write_text(json.dumps(old))
    assert "does not hold      summary after" in amends("verify", out, "--quick")[1]
