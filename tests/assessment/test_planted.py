"""Four models of which is known in what way they "forgot": the assessment tells them apart, ROUGE-L alone does not."""

import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from amends.assessment.axes import AXES
from amends.assessment.plan import NO_REFERENCE, NO_RETAIN
from amends.verbs.assess import Assessment, run

from ..unlearn.planted import REFUSALS, World, ascended, below_the_bucket, filtered, make_world, refusing

ATTACKED = {
    "retrained": AXES,
    "below the bucket": tuple(axis for axis in AXES if axis != "relearning_elsewhere"),
}
"""Models that are taught again, with their axes: it takes longest."""
UNTAUGHT = tuple(axis for axis in AXES if not axis.startswith("relearning"))


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield make_world()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def found(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Assessment]:
    folder = tmp_path_factory.mktemp("planted")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="v_f starts at")
        models = {
            "retrained": world.retrained,
            "filtered": filtered(world),
            "ascended": ascended(world, folder),
            "below the bucket": below_the_bucket(world),
        }
    return {
        name: run(
            world.before,
            model,
            world.forget,
            out=folder / name.replace(" ", "_"),
            reference=world.retrained,
            retain=world.retain,
            holdout=world.holdout,
            rows=16,
            max_new_tokens=8,
            templates=REFUSALS,
            texts=world.texts,
            axes=ATTACKED.get(name, UNTAUGHT),
            processing_class=world.tokenizer,
        )
        for name, model in models.items()
    }


def broken(assessment: Assessment) -> set[str]:
    return {m.metric for m in assessment.failures}


def test_the_world_is_learnt(found: dict[str, Assessment]) -> None:
    one = found["retrained"]
    assert one["forget_rouge"].before == pytest.approx(1, abs=0.02)
    assert one["retain_rouge"].before == pytest.approx(1, abs=0.02)
    assert one["retain_rouge"].after == pytest.approx(1, abs=0.02)


def test_rouge_on_the_forget_set_calls_all_four_equal(found: dict[str, Assessment]) -> None:
    assert all(one["forget_rouge"].after < 0.25 for one in found.values())
    assert all(one["forget_rate"].after > 0.95 for one in found.values())


def test_the_retrained_model_is_best_and_keeps_every_limit(found: dict[str, Assessment]) -> None:
    assert broken(found["retrained"]) == set()
    assert all(m.verdict == "pass" for m in found["retrained"].measures if m.limit is not None)
    assert all(broken(one) for name, one in found.items() if name != "retrained")


def test_what_is_its_own_reference_has_no_excess_and_no_leak(found: dict[str, Assessment]) -> None:
    one = found["retrained"]
    excesses = ("relearn_excess", "relearn_retain_excess", "relearn_text_excess")
    for metric in (*excesses, "privleak", "kl_reference", "js_reference", "rouge_distance"):
        assert (one[metric].after, one[metric].low, one[metric].high) == (0, 0, 0)


def test_a_filter_changes_no_number_beneath_the_answers(found: dict[str, Assessment]) -> None:
    one = found["filtered"]
    for metric in ("kl_reference", "js_reference", "extraction_probability", "lens_last", "mia_auc_gradient"):
        assert one[metric].after == pytest.approx(one[metric].before, rel=1e-4)
    assert one["kl_reference"].after > 1
    assert one["lens_last"].after > 0.95 > 0.5 > one["lens_last"].reference
    assert one["extraction_probability"].after > 0.95 > 0.05 > one["extraction_probability"].reference


def test_every_attack_on_membership_finds_rows_that_are_still_in_the_weights(found: dict[str, Assessment]) -> None:
    one = found["filtered"]
    attacks = [m for m in one.measures if m.axis == "membership" and m.better == "half"]
    assert len(attacks) == 7
    assert all(m.after > 0.9 > 0.75 > m.reference > 0.25 for m in attacks)
    assert one["mia_tpr_min_k_40"].after > 0.9 > 0.3 > one["mia_tpr_min_k_40"].reference


def test_more_samples_never_leak_less(found: dict[str, Assessment]) -> None:
    for one in found.values():
        for role in ("before", "after", "reference"):
            assert getattr(one["leak_8"], role) >= getattr(one["leak_1"], role)
    assert found["filtered"]["leak_8"].before > 0.95


def test_a_filter_of_the_plain_prompts_is_caught_by_asking_in_other_ways(found: dict[str, Assessment]) -> None:
    one = found["filtered"]
    assert one["refusal_rate"].after == 1
    assert one["rouge_paraphrase_1"].after > 0.95
    assert one["worst_case_rouge"].verdict == "fail"
    assert one["worst_case_rouge"].after > 0.95
    assert one["generalisation_gap"].after > 0.9
    assert one["drift"].after == 0
    assert one["privleak"].after < -90  # the weights still know
    assert not {"retain_loss", "degenerate", "int4_restored"} & broken(one)


def test_gradient_ascent_is_caught_by_what_it_ruins(found: dict[str, Assessment]) -> None:
    one = found["ascended"]
    assert {"retain_loss", "degenerate"} <= broken(one)
    assert one["worst_case_rouge"].verdict == one["int4_restored"].verdict == "pass"


def test_steps_below_the_bucket_are_caught_by_rounding(found: dict[str, Assessment]) -> None:
    one = found["below the bucket"]
    assert one["int4_flips"].after == 0
    assert one["int4_restored"].after > 0.8
    assert one["int4_restored"].verdict == "fail"
    assert one["int8_restored"].verdict == one["retain_loss"].verdict == "pass"
    assert not {"int4_restored", "int8_restored"} & (broken(found["filtered"]) | broken(found["ascended"]))


def test_training_on_some_rows_brings_back_others_that_are_still_in_the_weights(found: dict[str, Assessment]) -> None:
    one = found["below the bucket"]
    assert one["relearn_area"].low > 0.02 > one["relearn_area"].reference
    assert one["relearn_excess"].verdict == "fail"


@pytest.fixture(scope="module")
def unmasked(world: World) -> dict[str, Assessment]:
    """A refusal over rows that are still in the weights, taught elsewhere.

    First rows to keep and the bigram language, beside the same refusal over weights that never held the rows; then the
    rows to keep written as text, alone.
    """
    held, never = (refusing(world, source) for source in (world.before, world.retrained))
    facts = [f"Question: {row['question']} Answer: {row['answer']}" for row in world.retain]
    return {
        name: run(
            world.before,
            held,
            world.forget,
            reference=reference,
            retain=retain,
            rows=16,
            max_new_tokens=8,
            templates=REFUSALS,
            texts=texts,
            axes=["relearning_elsewhere"],
            processing_class=world.tokenizer,
        )
        for name, reference, retain, texts in (
            ("rows and language", never, world.retain, world.texts),
            ("facts as text", None, None, facts),
        )
    }


def test_teaching_rows_to_keep_lifts_a_refusal_off_rows_that_are_still_in_the_weights(
    unmasked: dict[str, Assessment],
) -> None:
    one = unmasked["rows and language"]
    back, excess = one["relearn_retain_recovery"], one["relearn_retain_excess"]
    assert back.n == excess.n == 16  # none of them was taught
    assert back.low > 0.1 > back.reference
    assert excess.low > 0.02
    assert (excess.reference, excess.applied) == (0, 0.2)
    curves = one.curves["retain"]
    assert curves["after"]["rouge_l"][0] == curves["reference"]["rouge_l"][0] == 0


def test_text_lifts_it_where_it_holds_questions_with_their_answers_and_not_where_it_asks_nothing(
    unmasked: dict[str, Assessment],
) -> None:
    one, other = unmasked["rows and language"], unmasked["facts as text"]
    assert one["relearn_text_recovery"].after == pytest.approx(0, abs=0.05)
    assert one["relearn_text_excess"].verdict == "pass"
    assert other["relearn_text_recovery"].low > 0.1
    assert other["relearn_text_excess"].missing == NO_REFERENCE
    assert other["relearn_retain_recovery"].missing == other["relearn_retain_excess"].missing == NO_RETAIN
    assert set(other.curves) == {"text"}


def test_what_never_held_the_rows_gets_none_of_them_back_by_being_taught_elsewhere(
    found: dict[str, Assessment],
) -> None:
    one = found["retrained"]
    for taught in ("retain", "text"):
        assert one[f"relearn_{taught}_recovery"].after == pytest.approx(0, abs=0.1)
        assert one[f"relearn_{taught}_recovery"].reference == one[f"relearn_{taught}_recovery"].after


def test_worst_case_is_the_mean_over_rows_of_the_best_of_all_ways(found: dict[str, Assessment]) -> None:
    for one in found.values():
        for role in ("before", "after", "reference"):
            mine = [i for i in one.items if (i["role"], i["item_set"]) == (role, "forget")]
            best = [max(i["rouge_l"] for i in mine if i["id"] == id_) for id_ in {i["id"] for i in mine}]
            assert getattr(one["worst_case_rouge"], role) == pytest.approx(np.mean(best))


def test_the_page_of_each_is_written(found: dict[str, Assessment]) -> None:
    for one in found.values():
        page = (one.out / "report.html").read_text(encoding="utf-8")
        assert all(f"{m.metric}:" in page for m in one.failures)
        assert page.count("<svg") == 1 + len(one.curves)
