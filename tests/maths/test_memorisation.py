import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

from amends.maths.memorisation import (
    advantage,
    area_under_margin,
    auc,
    auc_standard_error,
    el2n,
    exact_memorisation,
    exposure,
    exposure_sampled,
    exposure_skew_normal,
    extractable,
    extraction_probability,
    extraction_strength,
    forgetting,
    last_layer_gradient,
    log10_queries,
    logit_confidence,
    margin,
    mean_rank,
    min_k,
    noise_share,
    num_tokens,
    padded,
    rmia,
    standardised,
    token_mean,
    tpr_at_fpr,
    tracin,
    unintended_bits,
    without_first,
    zlib_ratio,
)

LOG2_E = math.log2(math.e)
rights = st.lists(st.lists(st.booleans(), min_size=1, max_size=9), min_size=1, max_size=6)


def greedy_strength(right):
    """By its definition: the least k after which all is right."""
    n = len(right)
    return 1 - next(k for k in range(n + 1) if all(right[k:])) / n


@given(rights)
def test_extraction_strength_is_its_definition_and_never_above_what_is_right(rows):
    found = extraction_strength(padded(rows))
    assert found == pytest.approx([greedy_strength(row) for row in rows])
    assert (found <= exact_memorisation(padded(rows)) + 1e-12).all()
    assert ((found == 1) == (exact_memorisation(padded(rows)) == 1)).all()


def test_extraction_strength_is_0_where_not_even_the_last_token_is_right():
    assert extraction_strength([[1, 1, 0]]) == [0.0]


@given(rights, st.integers(0, 9))
def test_extractable_means_that_all_behind_the_prefix_is_right(rows, k):
    expected = [float(all(row[k:])) if len(row) > k else np.nan for row in rows]
    assert extractable(padded(rows), k) == pytest.approx(expected, nan_ok=True)


@given(rights, st.integers(0, 5))
def test_padding_changes_nothing(rows, wider):
    narrow = padded(rows)
    wide = np.pad(narrow, ((0, 0), (0, wider)), constant_values=np.nan)
    for measure in (token_mean, exact_memorisation, extraction_strength, extractable, min_k):
        assert measure(wide) == pytest.approx(measure(narrow))


def test_a_record_without_tokens_has_no_score():
    values = padded([[-1.0, -2.0], []])
    for measure in (token_mean, min_k, extraction_strength, extractable):
        assert np.isnan(measure(values)).tolist() == [False, True]
    assert np.isnan(min_k(padded([[], []]))).all()
    assert list(num_tokens(without_first(values, 1))) == [1, 0]


def test_nan_inside_a_record_is_no_padding():
    with pytest.raises(ValueError, match="before a number"):
        token_mean([[np.nan, 1.0]])


@given(st.lists(st.floats(-20, 0), min_size=1, max_size=30), st.floats(0.01, 1))
def test_min_k_is_the_mean_of_the_lowest_and_of_one_at_least(values, share):
    lowest = sorted(values)[: max(1, math.floor(share * len(values) + 1e-9))]
    assert min_k(padded([values, [-1.0]]), share)[0] == pytest.approx(np.mean(lowest))


def test_min_k_of_all_tokens_is_their_mean_and_a_tenth_of_ten_is_one():
    values = padded([np.arange(-10.0, 0)])
    assert min_k(values, 1.0) == pytest.approx(token_mean(values))
    assert min_k(values, 0.3) == pytest.approx([-9.0])  # .3 * 10 is 2.9999999999999996
    with pytest.raises(ValueError, match="share"):
        min_k(values, 0)


def test_standardised_log_probabilities_do_not_depend_on_their_scale_and_are_0_where_nothing_varies():
    logp, mu, sigma = np.array([[-1.0, -3.0]]), np.array([[-2.0, -3.0]]), np.array([[0.5, 0.0]])
    assert standardised(logp, mu, sigma).tolist() == [[2.0, 0.0]]
    assert standardised(7 * logp, 7 * mu, 7 * sigma).tolist() == [[2.0, 0.0]]
    assert np.isnan(standardised(padded([[], [-1.0]]), padded([[], [-1.0]]), padded([[], [0.0]]))[0]).all()


def test_zlib_counts_the_bytes_of_the_compressed_text():
    import zlib

    text = "Ærø, a small island. " * 3
    assert zlib_ratio([2.0, 2.0], [text, ""]) == pytest.approx(
        [-2.0 / len(zlib.compress(text.encode())), np.nan], nan_ok=True
    )


def test_one_query_extracts_with_the_probability_of_the_record_itself():
    logp = np.log([0.5, 1e-3, 1e-12])
    assert extraction_probability(logp, 1) == pytest.approx([0.5, 1e-3, 1e-12], rel=1e-9)
    assert extraction_probability([0.0, -np.inf], 5).tolist() == [1.0, 0.0]


@given(st.floats(-3000, -1e-6), st.floats(0.01, 0.99))
def test_after_the_queries_that_are_needed_the_record_came_up_with_that_probability(logp, probability):
    needed = log10_queries([logp], probability)[0]
    assert needed >= 0
    if 0 < needed < 15:
        assert extraction_probability([logp], 10**needed)[0] == pytest.approx(probability, rel=1e-6)
    if logp < -40:  # far below what can be written as a number
        assert needed == pytest.approx((math.log(-math.log1p(-probability)) - logp) / math.log(10))


def test_queries_are_infinite_only_for_what_the_sampler_cannot_give():
    assert log10_queries([0.0, -5000.0, -np.inf]).tolist() == [0.0, pytest.approx(2171, abs=1), np.inf]
    with pytest.raises(ValueError, match="log-probability"):
        log10_queries([0.1])


def test_bits_are_what_the_model_saves_beside_the_reference_and_never_negative():
    model, reference = padded([[-1.0, -1.0], [-5.0]]), padded([[-2.0, -1.5], [-1.0]])
    assert unintended_bits(model, reference) == pytest.approx([1.5 / math.log(2), 0.0])


# Canaries


def test_the_canary_of_lowest_loss_is_exposed_in_full_and_the_highest_not_at_all():
    space = np.arange(1024.0)
    assert exposure([0.0, 1023.0, 511.0], space) == pytest.approx([10.0, 0.0, 1.0])
    with pytest.raises(ValueError, match="one of the space"):
        exposure(-1.0, space)


def test_a_model_that_cannot_tell_the_candidates_apart_exposes_none():
    assert exposure(2.0, np.full(64, 2.0)) == 0
    assert exposure_sampled(2.0, np.full(63, 2.0)) == 0


def test_strings_that_were_not_trained_on_have_1_44_bits_in_the_mean():
    space = np.random.default_rng(0).normal(size=2**14)
    assert exposure(space, space).mean() == pytest.approx(LOG2_E, abs=0.01)
    rng = np.random.default_rng(1)
    sampled = exposure_sampled(rng.normal(size=20_000), rng.normal(size=20_000))
    assert sampled.mean() == pytest.approx(LOG2_E, abs=0.05)
    fitted = exposure_skew_normal(rng.normal(size=4000), rng.normal(size=2000), 60)
    assert fitted.mean() == pytest.approx(LOG2_E, abs=0.1)


def test_sampled_exposure_claims_no_more_than_its_samples_can_tell():
    sample = np.random.default_rng(0).normal(size=255)
    assert exposure_sampled(-100.0, sample) == pytest.approx(8.0)
    assert exposure_skew_normal(-100.0, sample, 30.0) == pytest.approx(30.0)
    assert 8 < exposure_skew_normal(-5.0, sample, 30.0) < 30
    with pytest.raises(ValueError, match="at least 10"):
        exposure_skew_normal(0.0, np.zeros(20), 30.0)


# Membership

scores = st.lists(st.integers(-5, 5), min_size=1, max_size=20)


@given(scores, scores)
def test_auc_is_the_share_of_pairs_in_order_and_invariant_to_monotone_maps(members, others):
    pairs = np.sign(np.subtract.outer(members, others))
    assert auc(members, others) == pytest.approx((pairs.mean() + 1) / 2)
    assert auc(np.exp(members), np.exp(others)) == pytest.approx(auc(members, others))
    assert auc(others, members) == pytest.approx(1 - auc(members, others))
    thresholds = [t for t in {*members, *others}]
    best = max(0, *(np.mean(np.array(members) >= t) - np.mean(np.array(others) >= t) for t in thresholds))
    assert advantage(members, others) == pytest.approx(best)


@given(scores, scores, st.floats(0, 1))
def test_a_threshold_takes_no_more_of_the_others_than_it_may(members, others, fpr):
    found = tpr_at_fpr(members, others, fpr)
    if fpr * len(others) < 1:
        assert np.isnan(found)
        return
    rates = [(np.mean(np.array(others) > t), np.mean(np.array(members) > t)) for t in (*others, -9)]
    assert found == pytest.approx(max(tpr for other, tpr in rates if other <= fpr + 1e-9))


def test_the_standard_error_of_auc_is_how_it_varies_from_sample_to_sample():
    rng = np.random.default_rng(0)
    samples = [(rng.normal(1, 1, 40).round(1), rng.normal(0, 2, 25).round(1)) for _ in range(2000)]
    errors = [auc_standard_error(*sample) for sample in samples]
    assert np.mean(errors) == pytest.approx(np.std([auc(*sample) for sample in samples]), rel=0.05)
    assert np.isnan(auc_standard_error([1.0], [0.0, 1.0]))


def test_without_rows_on_one_side_there_is_no_number():
    assert np.isnan([auc([], [1.0]), auc([np.nan], [1.0]), advantage([1.0], []), tpr_at_fpr([], [1.0], 1.0)]).all()


def test_rmia_is_the_share_of_other_rows_that_rose_less():
    assert rmia([1.0, 3.0, 6.0], [1.0, 2.0, 3.0], gamma=2.0) == pytest.approx([0, 1 / 3, 1])


def test_the_mean_rank_leaves_out_what_a_row_lacks():
    found = mean_rank([[3.0, 1.0, 2.0], [10.0, np.nan, 20.0], [5.0, np.nan, 5.0]])
    assert found == pytest.approx([(5 / 6 + 1 / 4 + 1 / 2) / 3, 1 / 6, (1 / 2 + 3 / 4 + 1 / 2) / 3])
    assert np.isnan(mean_rank([[1.0, np.nan]])[1])


# Training


def test_forgetting_events_are_counted_and_never_learned_is_kept_apart():
    found = forgetting(np.array([[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 1, 1], [1, 1, 1, 1]]).T)
    assert found.events_N.tolist() == [2, 0, 0, 0]
    assert found.learned_N.tolist() == [True, False, True, True]
    assert found.score_N.tolist() == [2, 3, 0, 0]
    assert found.unforgettable_N.tolist() == [False, False, True, True]
    assert found.stays_from_N == pytest.approx([np.nan, np.nan, 1, 0], nan_ok=True)


def softmax(logits):
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)


def test_the_closed_form_of_the_last_layer_is_the_gradient_itself():
    rng = np.random.default_rng(0)
    features, weights, label = rng.normal(size=(5, 3)), rng.normal(size=(4, 3)), np.array([0, 1, 2, 3, 0])

    def loss(matrix, i):
        return -np.log(softmax(features[i] @ matrix.T)[label[i]])

    for i, closed in enumerate(last_layer_gradient(features, softmax(features @ weights.T), label)):
        gradient = [
            (loss(weights + step, i) - loss(weights - step, i)) / 2e-5 for step in 1e-5 * np.eye(12).reshape(12, 4, 3)
        ]
        assert closed == pytest.approx(np.sum(np.square(gradient)), rel=1e-6)


def test_tracin_of_one_checkpoint_is_its_rate_times_the_squared_gradient():
    assert tracin([[2.0, 3.0]], [0.1]) == pytest.approx([0.2, 0.3])
    assert tracin([[2.0, 3.0], [1.0, 1.0]], [0.1, 1.0]) == pytest.approx([1.2, 1.3])


def test_margins_and_confidence_of_two_classes_are_the_difference_of_logits():
    logits, label = np.array([[3.0, 1.0], [0.0, 500.0]]), np.array([0, 0])
    assert margin(logits, label) == pytest.approx([2.0, -500.0])
    assert logit_confidence(logits, label) == pytest.approx([2.0, -500.0])
    assert logit_confidence([[60.0, 0.0, 0.0]], [0]) == pytest.approx([60 - math.log(2)])
    assert area_under_margin([logits, logits + 1], label) == pytest.approx([2.0, -500.0])
    assert el2n([[0.5, 0.5]], [0]) == pytest.approx([math.sqrt(0.5)])


def test_a_memorised_label_of_noise_is_one_that_is_fitted():
    assert noise_share([1, 1, 0, 2], [1, 2, 0, 2], [0, 0, 0, 0]) == pytest.approx(2 / 3)
    assert np.isnan(noise_share([0], [0], [0]))


def test_measures_of_a_training_find_flipped_digits_where_the_final_model_does_not():
    X, y = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    chosen = rng.permutation(len(y))[:1000]
    X, true = X[chosen] / 16, y[chosen]
    flipped = np.arange(1000) < 100
    given = np.where(flipped, (true + rng.integers(1, 10, 1000)) % 10, true)
    net = MLPClassifier((64,), learning_rate_init=1e-2, alpha=0, batch_size=50, random_state=0)
    probability, gradients = [], []
    for _ in range(80):
        net.partial_fit(X, given, classes=np.arange(10))
        hidden = np.maximum(0, X @ net.coefs_[0] + net.intercepts_[0])
        logits = hidden @ net.coefs_[1] + net.intercepts_[1]
        probability.append(softmax(logits))
        gradients.append(last_layer_gradient(hidden, probability[-1], given))
    logp = np.log(np.maximum(probability, 1e-30))
    right = np.argmax(probability, axis=-1) == given
    found = {
        "aum": -area_under_margin(logp, given),
        "el2n": el2n(probability[9], given),
        "tracin": tracin(gradients, np.full(80, 1e-2)),
        "forgetting": forgetting(right).score_N,
        "final loss": -logp[-1][np.arange(1000), given],
        "wrong in the end": ~right[-1],
        "random": rng.normal(size=1000),
    }
    areas = {name: auc(score[flipped], score[~flipped]) for name, score in found.items()}
    assert areas["aum"] > 0.9 and areas["el2n"] > 0.9 and areas["tracin"] > 0.9, areas
    assert areas["forgetting"] > 0.8, areas  # seen: 0.83; AUM, EL2N and TracIn 0.99
    assert areas["final loss"] < areas["aum"] - 0.03, areas  # seen: 0.95
    assert areas["wrong in the end"] < 0.6, areas
    assert 0.4 < areas["random"] < 0.6
    assert noise_share(np.argmax(probability[-1], axis=1), given, true) > 0.9  # it has fitted the noise
    assert spearmanr(found["aum"], found["tracin"]).statistic > 0.8
