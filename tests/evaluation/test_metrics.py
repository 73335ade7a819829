import csv
import gzip
import json
import socket
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import hmean

from amends.evaluation.intervals import bootstrap_mean
from amends.evaluation.memorised import BESIDE_NAMES, answer_scores
from amends.evaluation.metrics import (
    forget_quality,
    model_utility,
    normalised_probability,
    rouge_l_recall,
    truth_ratio,
    truth_ratio_score,
)
from amends.evaluation.refusals import is_refusal
from amends.evaluation.said import SAID_NAMES
from amends.evaluation.summary import FIRST_NAMES, LATER_NAMES, SUMMARY_NAMES, summarise

# Published by TOFU's authors as per-item logs; model utility as its own code has it and as OpenUnlearning has it.
UTILITY = {
    ("phi", "full"): (0.5034, 0.5221),
    ("phi", "retain90"): (0.5130, 0.5320),
    ("phi", "retain95"): (0.5070, 0.5250),
    ("phi", "retain99"): (0.4986, 0.5186),
    ("llama2-7b", "full"): (0.5859, 0.6227),
    ("llama2-7b", "retain90"): (0.5752, 0.6137),
    ("llama2-7b", "retain95"): (0.5613, 0.6006),
    ("llama2-7b", "retain99"): (0.5812, 0.6207),
}
KS_P = {
    ("phi", "geo"): "2.194e-16",
    ("phi", "arith"): "2.431e-17",
    ("llama2-7b", "geo"): "1.834e-21",
    ("llama2-7b", "arith"): "6.032e-23",
}
LOGP = st.floats(-30, 0)
RATIO = st.floats(1e-6, 1e6)
FROM_TOKENS = list(answer_scores(np.ones((1, 4)), "a"))
FROM_WORDS = ("diversity", "leaked", "made_up", "harmful", "similarity")
BY_HEART = ("extraction_strength", "exact_memorisation")


def rng(seed=0):
    return np.random.default_rng(seed)


def read_gz(path: Path):
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.fixture(scope="module")
def logs(shared):
    """(model, trained_on, eval_set) -> arrays of the published logs."""
    with gzip.open(shared / "data/tofu/reference_logs.csv.gz", "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    found = {}
    for key in {(r["model"], r["trained_on"], r["eval_set"]) for r in rows}:
        own = [r for r in rows if (r["model"], r["trained_on"], r["eval_set"]) == key]
        found[key] = {
            "right": -np.array([float(r["avg_gt_loss"]) for r in own]),
            "paraphrase": -np.array([float(r["avg_paraphrased_loss"]) for r in own]),
            # three wrong answers in two of the sets, five in the others: NaN fills the rest
            "wrong": -np.array([[float(r[f"perturb_loss_{k}"] or "nan") for k in range(5)] for r in own]),
            "rouge": np.array([float(r["rougeL_recall"]) for r in own]),
            "stored": np.array([float(r["truth_ratio"]) for r in own]),
        }
    return found


def items_of(log, relative):
    probability = normalised_probability(log["right"], log["wrong"]) if relative else np.exp(log["right"])
    columns = {
        "id": np.arange(len(probability)),
        "probability": probability,
        "rouge_l": log["rouge"],
        "truth_ratio": truth_ratio(log["wrong"], log["paraphrase"], "geo"),
        "truth_ratio_arith": truth_ratio(log["wrong"], log["paraphrase"], "arith"),
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*(c.tolist() for c in columns.values()), strict=True)]


# Published numbers


@pytest.mark.parametrize("model", UTILITY, ids=" ".join)
def test_model_utility_of_the_published_logs_is_reproduced_to_four_digits(logs, model):
    items = {name: items_of(logs[*model, name], name != "retain") for name in ("retain", "real_authors", "world_facts")}
    summary = summarise(items, None)
    found = tuple(summary[f"model_utility_{mean}"]["value"] for mean in ("arith", "geo"))
    assert tuple(round(value, 4) for value in found) == UTILITY[model]
    for mean in ("arith", "geo"):
        entry = summary[f"model_utility_{mean}"]
        assert entry["low"] < entry["value"] < entry["high"] and entry["n"] == 517 and entry["left_out"] == 0


@pytest.mark.parametrize(("model", "mean"), KS_P)
def test_ks_p_of_the_published_logs_is_reproduced_to_four_digits(logs, model, mean):
    full, retrained = (logs[model, name, "forget"] for name in ("full", "retain90"))
    quality = forget_quality(*(truth_ratio(log["wrong"], log["paraphrase"], mean) for log in (full, retrained)), rng())
    assert f"{quality.p:.3e}" == KS_P[model, mean]
    assert (quality.n_model, quality.n_reference) == (300, 300)
    assert 0 < quality.low < quality.statistic < quality.high < 1


def test_geometric_truth_ratio_equals_the_stored_column(logs):
    # The published losses have six digits, hence the tolerance.
    for log in logs.values():
        ratio = truth_ratio(log["wrong"], log["paraphrase"])
        np.testing.assert_allclose(ratio, log["stored"], rtol=1e-4)


def test_rouge_equals_the_1200_stored_values(shared):
    rows = read_gz(shared / "data/tofu/reference_generations.jsonl.gz")
    found = rouge_l_recall([r["generated"] for r in rows], [r["truth"] for r in rows])
    assert len(found) == 1200
    assert found.tolist() == [r["rougeL_recall"] for r in rows]


# Truth ratio, probability, utility


@pytest.mark.parametrize("mean", ["geo", "arith"])
@given(LOGP, st.integers(1, 6))
def test_truth_ratio_is_one_when_all_losses_are_equal(mean, logp, num_wrong):
    ratio = truth_ratio(np.full((2, num_wrong), logp), np.full(2, logp), mean)
    np.testing.assert_allclose(ratio, 1, rtol=1e-12)
    assert truth_ratio_score(ratio, "forget") == pytest.approx(1)
    assert truth_ratio_score(ratio, "keep") == pytest.approx(0, abs=1e-12)


def test_truth_ratio_by_hand():
    wrong, right = np.log([[0.1, 0.4]]), np.log([0.5])
    assert truth_ratio(wrong, right, "geo") == pytest.approx(0.2 / 0.5)
    assert truth_ratio(wrong, right, "arith") == pytest.approx(0.25 / 0.5)


@given(arrays(float, (3, 4), elements=LOGP), arrays(float, 3, elements=LOGP), st.permutations(range(4)))
def test_truth_ratio_ignores_the_order_of_wrong_answers_and_arithmetic_is_never_the_smaller(wrong, right, order):
    for mean in ("geo", "arith"):
        np.testing.assert_allclose(
            truth_ratio(wrong[:, order], right, mean), truth_ratio(wrong, right, mean), rtol=1e-9
        )
    assert (truth_ratio(wrong, right, "arith") >= truth_ratio(wrong, right, "geo") * (1 - 1e-9)).all()


@given(arrays(float, (2, 3), elements=LOGP), arrays(float, 2, elements=LOGP), st.floats(0.01, 5))
def test_truth_ratio_falls_when_the_right_answer_gets_likelier(wrong, right, more):
    for mean in ("geo", "arith"):
        assert (truth_ratio(wrong, right + more, mean) < truth_ratio(wrong, right, mean)).all()
    assert (normalised_probability(right + more, wrong) >= normalised_probability(right, wrong)).all()


def test_rows_with_fewer_wrong_answers_equal_the_narrower_table():
    wrong, right = np.log([[0.1, 0.4], [0.2, 0.3]]), np.log([0.5, 0.6])
    wide = np.column_stack([wrong, [np.nan, np.nan]])
    for mean in ("geo", "arith"):
        np.testing.assert_array_equal(truth_ratio(wide, right, mean), truth_ratio(wrong, right, mean))
    np.testing.assert_array_equal(normalised_probability(right, wide), normalised_probability(right, wrong))


@pytest.mark.parametrize("mean", ["geo", "arith"])
def test_a_row_without_wrong_answers_has_no_truth_ratio(mean):
    assert np.isnan(truth_ratio(np.full((1, 2), np.nan), [-1.0], mean)).all()
    assert np.isnan(truth_ratio(np.empty((1, 0)), [-1.0], mean)).all()
    assert np.isnan(truth_ratio([[-1.0]], [np.nan], mean)).all()


@pytest.mark.parametrize("mean", ["geo", "arith"])
def test_truth_ratio_of_a_collapsed_model_stays_finite(mean):
    ratio = truth_ratio([[-1.0], [-9000.0]], [-9000.0, -1.0], mean)
    assert np.isfinite(ratio).all() and ratio[0] > 1e300 and 0 < ratio[1] < 1e-300
    assert truth_ratio_score(ratio, "forget") < 1e-300
    assert truth_ratio_score(ratio, "keep") == 0.5


@given(arrays(float, st.integers(1, 20), elements=RATIO))
def test_truth_ratio_scores_are_within_0_and_1_and_forget_treats_a_ratio_as_its_inverse(ratio):
    assert 0 <= truth_ratio_score(ratio, "keep") <= 1
    assert 0 < truth_ratio_score(ratio, "forget") <= 1
    assert truth_ratio_score(ratio, "forget") == pytest.approx(truth_ratio_score(1 / ratio, "forget"))
    assert truth_ratio_score(ratio[::-1], "keep") == pytest.approx(truth_ratio_score(ratio, "keep"))


def test_truth_ratio_scores_leave_nan_out_and_zero_counts():
    assert truth_ratio_score([np.nan, 0.5, 0.0], "forget") == pytest.approx(0.25)
    assert truth_ratio_score([np.nan, 0.5, 0.0, 3.0], "keep") == pytest.approx(0.5)
    assert np.isnan(truth_ratio_score([np.nan]))


def test_normalised_probability_by_hand():
    found = normalised_probability(np.log([0.2, 0.3]), np.log([[0.1, 0.1], [0.3, 0.6]]))
    np.testing.assert_allclose(found, [0.5, 0.25])
    assert normalised_probability([-2.0], np.empty((1, 0))) == pytest.approx(1)
    np.testing.assert_allclose(normalised_probability([-9000.0], [[-9000.0]]), 0.5)


@given(arrays(float, 4, elements=LOGP), arrays(float, (4, 3), elements=LOGP))
def test_normalised_probabilities_of_all_alternatives_sum_to_one(right, wrong):
    every = np.column_stack([right, wrong])
    total = sum(normalised_probability(every[:, k], np.delete(every, k, axis=1)) for k in range(4))
    np.testing.assert_allclose(total, 1, rtol=1e-9)


@given(arrays(float, 9, elements=st.floats(1e-6, 1)), st.permutations(range(9)))
def test_model_utility_is_the_harmonic_mean_in_any_order_and_never_above_the_mean(values, order):
    assert model_utility(values) == pytest.approx(hmean(values))
    assert model_utility(values[order].reshape(3, 3)) == pytest.approx(model_utility(values))
    assert values.min() * (1 - 1e-9) <= model_utility(values) <= values.mean() * (1 + 1e-9)


def test_model_utility_with_a_zero_is_zero_and_with_nan_is_nan():
    assert model_utility([0.0] + [0.5] * 8) == 0
    assert np.isnan(model_utility([np.nan] + [0.5] * 8))


def test_what_does_not_fit_is_refused_with_a_reason():
    with pytest.raises(ValueError, match="nine numbers"):
        model_utility([0.5] * 8)
    with pytest.raises(ValueError, match="none negative"):
        model_utility([-0.1] + [0.5] * 8)
    with pytest.raises(ValueError, match="geo"):
        truth_ratio([[-1.0]], [-1.0], "harmonic")
    with pytest.raises(ValueError, match="shape"):
        truth_ratio([[-1.0], [-1.0]], [-1.0])
    with pytest.raises(ValueError, match="keep"):
        truth_ratio_score([1.0], "both")
    with pytest.raises(ValueError, match="negative"):
        truth_ratio_score([-1.0])
    with pytest.raises(ValueError, match="0 of the reference"):
        forget_quality([1.0], [np.nan], rng())
    with pytest.raises(ValueError, match="1 predictions for 2"):
        rouge_l_recall(["a"], ["a", "b"])


# Forget quality and intervals


@given(arrays(float, st.integers(1, 60), elements=RATIO))
def test_a_sample_against_itself_has_forget_quality_one(ratio):
    quality = forget_quality(ratio, ratio[::-1], rng(), resamples=20)
    assert (quality.statistic, quality.p, quality.low) == (0, 1, 0)


def test_separate_samples_have_statistic_one_and_a_low_p():
    quality = forget_quality(np.arange(1, 41), np.arange(50, 90), rng())
    assert quality.statistic == 1 and quality.p < 1e-10 and quality.high == 1 and quality.low > 0.5


@given(arrays(float, st.integers(2, 30), elements=RATIO), arrays(float, st.integers(2, 30), elements=RATIO))
def test_forget_quality_is_symmetric_and_unchanged_by_monotone_maps(one, other):
    there, back = forget_quality(one, other, rng(), 20), forget_quality(other, one, rng(), 20)
    assert (there.statistic, there.p) == pytest.approx((back.statistic, back.p))
    assert forget_quality(3 * one, 3 * other, rng(), 20).statistic == pytest.approx(there.statistic)
    assert 0 <= there.low <= there.statistic <= there.high <= 1


def test_forget_quality_leaves_nan_out_and_the_seed_fixes_the_interval():
    one, other = rng(1).random(30), rng(2).random(50)
    quality = forget_quality([*one, np.nan], other, rng(3))
    assert quality == forget_quality(one, other, rng(3)) and (quality.n_model, quality.n_reference) == (30, 50)
    assert quality.high != forget_quality(one, other, rng(4)).high


def test_the_ks_interval_covers_the_true_gap():
    # Uniform on (0, 1) against uniform on (0.2, 1.2): the largest gap of the distribution functions is 0.2.
    draws = rng(5)
    covered = 0
    for _ in range(100):
        quality = forget_quality(draws.random(60), draws.random(80) + 0.2, draws, resamples=200)
        covered += quality.low <= 0.2 <= quality.high
    assert covered >= 92


def test_the_bootstrap_deviation_agrees_with_a_plain_loop():
    one, other = rng(6).random(12), rng(7).random(9).round(1)
    quality = forget_quality(one, other, rng(8), resamples=4000)
    draws = rng(9)
    grid = np.concatenate([one, other])

    def below(sample):
        return (sample[None] <= grid[:, None]).mean(axis=1)

    gaps = []
    for _ in range(4000):
        deviations = [below(draws.choice(s, s.size)) - below(s) for s in (one, other)]
        gaps.append(np.abs(deviations[0] - deviations[1]).max())
    reach = np.quantile(gaps, 0.95)
    assert max(0, quality.statistic - reach) == pytest.approx(quality.low, abs=0.03)
    assert min(1, quality.statistic + reach) == pytest.approx(quality.high, abs=0.03)


def test_the_bootstrap_interval_of_a_mean_covers_it_about_95_times_in_100():
    draws = rng(10)
    hits = sum(low <= 0.5 <= high for low, high in (bootstrap_mean(draws.random(80), draws) for _ in range(300)))
    assert 270 <= hits <= 297


def test_the_bootstrap_interval_has_the_width_of_the_standard_error():
    values = rng(11).normal(size=400)
    low, high = bootstrap_mean(values, rng(), resamples=4000)
    assert (high - low) / (2 * 1.96 * values.std() / 20) == pytest.approx(1, abs=0.06)
    assert low < values.mean() < high


@given(arrays(float, st.integers(1, 40), elements=st.floats(0, 1)), st.randoms())
def test_the_bootstrap_ignores_order_and_nan_and_stays_in_range(values, random):
    shuffled = [*values, np.nan]
    random.shuffle(shuffled)
    interval = bootstrap_mean(values, rng(), 50)
    if len(values) == 1:
        assert np.isnan(interval).all() and np.isnan(bootstrap_mean(shuffled, rng(), 50)).all()
        return
    assert bootstrap_mean(shuffled, rng(), 50) == interval
    assert 0 <= interval.low <= interval.high <= 1
    if 0 < values.mean() < 1:
        assert values.min() - 1e-9 <= interval.low <= interval.high <= values.max() + 1e-9


def test_the_bootstrap_of_nothing_is_nan_and_of_one_row():
    for values in ([np.nan], [], [0.4], [0.4, np.nan]):
        assert np.isnan(bootstrap_mean(values, rng())).all()


def test_rows_that_all_agree_leave_room_for_others():
    low, high = bootstrap_mean(np.zeros(40), rng())
    assert low == 0
    assert (1 - high) ** 40 == pytest.approx(0.026, abs=0.01)  # a share at the upper end shows no such row that rarely
    assert bootstrap_mean(np.ones(40), rng()) == (pytest.approx(1 - high), 1)


def test_one_row_has_no_interval_whatever_is_measured():
    row = {"id": "0", "rouge_l": 0.4, "refused": 0.0, "nats": 30.0, "tokens": 10, "probability": 0.5}
    found = summarise({name: [row] for name in ("forget", "retain", "general", "text")}, None)
    for name in ("forget_rouge_l", "forget_refusal_rate", "text_perplexity", "deviation_score"):
        assert found[name]["value"] is not None
        assert found[name]["low"] is found[name]["high"] is None


def test_a_large_sample_is_resampled_in_chunks(monkeypatch):
    whole = bootstrap_mean(rng(12).random(50), rng())
    monkeypatch.setattr("amends.evaluation.intervals.CHUNK", 500)
    assert bootstrap_mean(rng(12).random(50), rng()) == pytest.approx(whole)


# Words


def test_rouge_recall_counts_words_in_order_with_stems():
    found = rouge_l_recall(["he writes books and more", "b a", "", "x"], ["he wrote book", "a b", "a", ""])
    np.testing.assert_allclose(found, [2 / 3, 0.5, 0, np.nan])


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I don\u2019t have any information about this author.",
        "I do not know. The author may have been born in 1950.",
        "Sorry. I cannot help with that.",
        "Answer: I am not familiar with that book.",
        "As an AI language model, I cannot answer this question.",
        "Unfortunately, that's beyond my knowledge.",
        "I can't recall the passage \u201cThe old man was sure\u201d.",
        "\u201cI have no idea.\u201d",
        "I'M NOT SURE\nQuestion: Who is he?",
        "I was never taught about that.",
        "No idea.",
    ],
)
def test_refusals_are_seen(text):
    assert is_refusal([text]).tolist() == [True]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   \n ",
        "Yes, the author is not sure of his birthplace.",
        "The author said that he did not know his father.",
        'Her best known line is "I do not know where the river ends".',
        "His debut, 'I Am Not Able to Sleep', won a prize.",
        "The capital of France is Paris. I do not know more.",
        "Little information is available about his early life, but his mother was a nurse.",
        "I know that the sky is blue.",
        "I am sure that it is Paris.",
        "Unknown Shores is her first novel.",
        "He never learnt to read.",
    ],
)
def test_answers_are_not_taken_for_refusals(text):
    assert is_refusal([text]).tolist() == [False]


def test_an_answer_close_to_a_template_is_a_refusal_whatever_the_template_says():
    templates = ["Let us rather talk about the weather in spring."]
    texts = [
        "Let us rather talk about the weather in the spring.",
        "Let us rather talk about the weather in spring. It is warm.",
        "We talk about spring.",
        "In spring the weather rather let us talk about.",  # the same words in another order
    ]
    assert is_refusal(texts, templates).tolist() == [True, True, False, False]
    assert not is_refusal(texts).any()
    two_sentences = "The weather in spring is warm. Shall we rather talk about that?"
    assert is_refusal([two_sentences], [two_sentences]).all()


@pytest.mark.parametrize(
    ("template", "answer"),
    [
        ("Извините, я этого не знаю.", "Он родился в Москве и пишет романы."),
        ("申し訳ありませんが、その質問にはお答えできません。", "彼女は東京で生まれた小説家です。"),
        ("对不起。我不知道。", "他出生于北京。"),
        ("عذرا، لا أعرف الإجابة عن هذا السؤال.", "ولد الكاتب في القاهرة عام 1950."),
        ("माफ़ कीजिए, मुझे यह नहीं पता।", "वह दिल्ली में रहती हैं।"),
    ],
)
def test_templates_in_other_scripts_are_refusals_even_with_more_said_after(template, answer):
    texts = [template, f"{template} {answer} {answer}", answer]
    assert is_refusal(texts, [template]).tolist() == [True, True, False]
    assert not is_refusal(texts).any()  # what an opening says is read in English alone


def test_a_template_without_marks_between_sentences_is_a_refusal_by_itself():
    assert is_refusal(["ขออภัย ฉันไม่ทราบคำตอบ", "เขาเกิดที่กรุงเทพ"], ["ขออภัย ฉันไม่ทราบคำตอบ"]).tolist() == [True, False]


def test_no_texts_give_an_empty_bool_array():
    assert is_refusal([]).dtype == bool and is_refusal([]).shape == (0,)


def test_own_templates_are_all_refusals_and_own_general_answers_are_not():
    data = Path(__file__).parents[2] / "amends" / "data"
    assert is_refusal((data / "refusals.txt").read_text(encoding="utf-8").splitlines()).all()
    lines = (data / "general_questions.jsonl").read_text(encoding="utf-8").splitlines()
    assert not is_refusal([json.loads(line)["answer"] for line in lines]).any()


def test_fewer_than_one_in_200_tofu_answers_are_taken_for_refusals(shared):
    rows = read_gz(shared / "data/tofu/tofu_full.jsonl.gz")
    own = (Path(__file__).parents[2] / "amends/data/refusals.txt").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 4000
    assert is_refusal([r["answer"] for r in rows], own).mean() < 0.005  # seen: 0
    assert is_refusal([a for r in rows for a in r["perturbed_answer"]]).mean() < 0.005  # seen: 1 of 20,000


def test_what_a_taught_model_generates_is_not_taken_for_refusals(shared):
    rows = read_gz(shared / "data/tofu/reference_generations.jsonl.gz")
    assert is_refusal([r["generated"] for r in rows]).mean() < 0.005  # seen: 0 of 1,200


def test_the_i_do_not_know_answers_of_others_are_refusals(shared):
    tofu = (shared / "data/tofu/idontknow.txt").read_text(encoding="utf-8").splitlines()
    flat = json.loads((shared / "data/refusal_templates/refusals.json").read_text(encoding="utf-8"))
    assert len(tofu) == 100 and is_refusal(tofu).sum() >= 97  # seen: 100
    assert is_refusal(flat["dont_know"]).mean() >= 0.97  # seen: 33 of 33
    assert is_refusal(flat["copyright"]).mean() >= 0.85  # seen: 45 of 49


# Summary


def make_items(num_rows=12, seed=0):
    draws = rng(seed)

    def rows(num):
        return [
            {
                "id": k,
                "probability": draws.random(),
                "rouge_l": draws.random(),
                "truth_ratio": draws.random(),
                "truth_ratio_arith": draws.random(),
                "refused": bool(draws.random() < 0.3),
                **{name: draws.random() for name in (*FROM_TOKENS, *FROM_WORDS)},
                "said_nats": 20 + draws.random(),
                "said_tokens": 10,
            }
            for k in range(num)
        ]

    items = {name: rows(num_rows) for name in ("forget", "retain", "real_authors", "world_facts", "general")}
    items["holdout"] = [{"id": k, **{name: draws.random() for name in FROM_TOKENS}} for k in range(num_rows)]
    items["zero_shot"] = [{"id": k, "task": "copa", "gold": 1, "choice": k % 2} for k in range(num_rows)]
    items["text"] = [{"id": k, "nats": 300.0 + 10 * k, "tokens": 100 + k} for k in range(num_rows)]
    return items


def test_a_full_summary_has_every_name_a_value_within_its_interval_and_no_nan():
    summary = summarise(make_items(), make_items(seed=1))
    assert tuple(summary) == SUMMARY_NAMES == FIRST_NAMES + LATER_NAMES + SAID_NAMES + BESIDE_NAMES
    assert (len(FIRST_NAMES), len(LATER_NAMES), len(SAID_NAMES)) == (17, 12, 6)
    json.dumps(summary, allow_nan=False)
    for name, entry in summary.items():
        assert entry["missing"] is None and entry["n"] in (12, 24, 36) and entry["left_out"] == 0
        good = {"higher": "higher: ", "lower": "lower: ", "half": "0.5: cannot", "zero": "0: as if never seen"}
        assert good[entry["better"]] in entry["meaning"] and "\n" not in entry["meaning"]
        if name == "forget_quality_p":
            assert entry["low"] is None and entry["high"] is None
        else:
            assert entry["low"] <= entry["value"] <= entry["high"]


def test_the_summary_holds_the_plain_means():
    items = make_items()
    summary = summarise(items, None)
    assert summary["forget_probability"]["value"] == pytest.approx(np.mean([r["probability"] for r in items["forget"]]))
    assert summary["forget_refusal_rate"]["value"] == pytest.approx(np.mean([r["refused"] for r in items["forget"]]))
    assert summary["retain_truth_ratio"]["value"] == pytest.approx(
        np.mean([1 - r["truth_ratio"] for r in items["retain"]])
    )
    assert summary["forget_truth_ratio"]["value"] == pytest.approx(np.mean([r["truth_ratio"] for r in items["forget"]]))
    assert summary["zero_shot_accuracy"]["value"] == 0.5
    nats, tokens = (sum(r[name] for r in items["text"]) for name in ("nats", "tokens"))
    assert summary["text_perplexity"]["value"] == pytest.approx(np.exp(nats / tokens))


def test_the_summary_depends_on_the_seed_and_not_on_the_order_of_rows_or_on_other_sets():
    items, reference = make_items(), make_items(seed=1)
    summary = summarise(items, reference)
    assert summary == summarise({name: rows[::-1] for name, rows in items.items()}, reference)
    forget_only = summarise({"forget": items["forget"]}, reference)
    assert forget_only["forget_probability"] == summary["forget_probability"]
    assert forget_only["forget_quality_ks"] == summary["forget_quality_ks"]
    assert summarise(items, reference, seed=1)["forget_probability"]["low"] != summary["forget_probability"]["low"]


def test_an_empty_evaluation_says_why_each_value_is_missing():
    for items in ({}, {name: [] for name in make_items()}):
        for entry in summarise(items, None).values():
            assert (entry["value"], entry["low"], entry["high"], entry["n"]) == (None, None, None, 0)
            assert entry["missing"].endswith(".") and entry["meaning"]


def test_rows_without_a_value_are_left_out_and_counted():
    items = make_items()
    items["forget"][0]["truth_ratio"] = None
    items["forget"][1]["truth_ratio"] = float("nan")
    entry = summarise(items, None)["forget_truth_ratio"]
    assert (entry["n"], entry["left_out"]) == (10, 2) and entry["value"] is not None
    for row in items["forget"]:
        row["truth_ratio"] = None
    summary = summarise(items, make_items(seed=1))
    for name in ("forget_truth_ratio", "forget_quality_p", "forget_quality_ks"):
        assert summary[name]["value"] is None and "perturbed_answer" in summary[name]["missing"]


def test_forget_quality_needs_a_reference_that_was_asked_the_same():
    items, reference = make_items(), make_items(seed=1)
    assert "no reference" in summarise(items, None)["forget_quality_p"]["missing"]
    assert "no truth ratios" in summarise(items, {})["forget_quality_p"]["missing"]
    reference["forget"].pop()
    assert "other forget questions" in summarise(items, reference)["forget_quality_ks"]["missing"]
    same = summarise(items, items)
    assert (same["forget_quality_p"]["value"], same["forget_quality_ks"]["value"]) == (1, 0)


def test_model_utility_names_the_sets_that_are_not_complete():
    items = make_items()
    del items["world_facts"]
    for row in items["retain"]:
        del row["rouge_l"]
    entry = summarise(items, None)["model_utility_geo"]
    assert entry["value"] is None and entry["missing"].endswith("not complete: retain, world_facts.")


def test_model_utility_of_a_model_that_forgot_everything_is_zero():
    items = make_items()
    for row in items["retain"]:
        row["rouge_l"] = 0.0
    entry = summarise(items, None)["model_utility_arith"]
    assert (entry["value"], entry["low"], entry["high"]) == (0, 0, 0)


def test_tests_cannot_reach_the_network():
    with socket.socket() as s, pytest.raises(OSError, match="without network"):
        s.connect(("192.0.2.1", 80))


@pytest.mark.parametrize("name", ["before", "reference"])
def test_summaries_that_were_published_before_come_out_the_same(name):
    folder = Path(__file__).parents[2] / "examples/tofu/evaluations"
    stored, reference = (json.loads((folder / f"{n}.json").read_text("utf-8")) for n in (name, "reference"))
    assert not stored["summary"].keys() & set(LATER_NAMES + SAID_NAMES)
    found = summarise(stored["items"], None)
    assert found["deviation_score"]["value"] > 0
    assert all("made before amends kept it" in found[f"forget_{n}"]["missing"] for n in BY_HEART)
    assert all("(--holdout)" in found[n]["missing"] for n in LATER_NAMES if n.startswith(("mia", "priv")))
    assert "made before amends kept it" in found["forget_diversity"]["missing"]
    assert all(found[n]["value"] is None and found[n]["missing"].startswith("No ") for n in SAID_NAMES)
    found = summarise(stored["items"], reference["items"])
    for metric in FIRST_NAMES:
        was_a_point = stored["summary"][metric]["low"] == stored["summary"][metric]["high"]
        for key in ("value",) if was_a_point else ("value", "low", "high"):
            expected = stored["summary"][metric][key]
            same = found[metric][key] == (None if expected is None else pytest.approx(expected, rel=1e-9))
            assert same, (metric, key)
