"""Every line of an assessment from answers and numbers written by hand, so that a sign that is turned round shows."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from amends.assessment.ask import Asked, Findings, fluency, likeness, right_answers
from amends.assessment.axes import AXES, Measure
from amends.assessment.measures import all_measures
from amends.assessment.plan import Plan, Sources, make_plan
from amends.evaluation.memorised import summarise_privacy
from amends.io.errors import InputError
from amends.lm.load import load
from amends.lm.logprobs import packed_row
from amends.lm.pairs import Pair, encode
from amends.maths.memorisation import auc
from amends.verbs.assess import run, warnings_of

from ..conftest import save_tiny_model

ROLES = ("before", "after", "reference")
SETS = {name: [f"{name}{i}" for i in range(2)] for name in ("forget", "near", "far", "general", "holdout")}
MEASURED = ("elicitation", "likeness", "utility", "neighbours", "quality", "membership")
ROUGE = {  # by role, of both rows of each set
    "before": {"forget": (1, 0.8), "near": (1, 0.9), "far": (0.9, 0.7), "general": (0.5, 0.5)},
    "after": {"forget": (0.4, 0.2), "near": (0.5, 0.4), "far": (0.8, 0.6), "general": (0.4, 0.3)},
    "reference": {"forget": (0.1, 0.3), "near": (1, 1), "far": (0.9, 0.9), "general": (0.5, 0.6)},
}
REFUSED = {("after", "near0"), ("before", "far1")}
NATS = {"before": (1.0, 2.0), "after": (1.5, 2.7), "reference": (1.0, 1.0)}
SCORES = {  # higher: less like training data
    "before": {"forget": (0.1, 0.2), "holdout": (0.5, 0.9)},
    "after": {"forget": (0.1, 0.8), "holdout": (0.5, 0.9)},
    "reference": {"forget": (0.6, 0.8), "holdout": (0.5, 0.9)},
}


def pairs(name: str) -> list[Pair]:
    return [Pair(i, [{"role": "user", "content": i}], "an answer", f"{name}:{i}", wrong=("no",)) for i in SETS[name]]


def numbers(value: float) -> dict[str, float]:
    """Numbers of one right answer: each of its own size, so that one in the place of another shows."""
    return {
        "nll": value,
        "nll_per_zlib_byte": -value,
        "min_k_40": value,
        "min_k_20": 1 - value,
        "min_k_plus_40": value**2,
        "gradient_norm": -value,
        "log_p": -5.0,
        "probability": value,
        "extraction_strength": value / 4,
        "exact_memorisation": value / 3,
        "truth_ratio": 2 + value,
        "kl": 2 * value,
        "js": value / 2,
    }


def by_hand() -> dict[str, Measure]:
    plan = Plan(
        axes=tuple(axis for axis in AXES if axis in MEASURED),
        forget=pairs("forget"),
        wordings={},
        near=pairs("near"),
        far=pairs("far"),
        shots=[],
        general=pairs("general"),
        holdout=pairs("holdout"),
        texts=["one", "two"],
        pieces=[],
        templates=[],
        max_new_tokens=8,
        seed=0,
    )
    found = Findings()
    for role in ROLES:
        found.asked[role] = Asked(
            role,
            role,
            "",
            answers=[
                {
                    "item_set": name,
                    "id": id_,
                    "variant": "question",
                    "generated": "well said",
                    "rouge_l": score,
                    "refused": (role, id_) in REFUSED,
                }
                for name, scores in ROUGE[role].items()
                for id_, score in zip(SETS[name], scores, strict=True)
            ],
            scores={name: [numbers(v) for v in values] for name, values in SCORES[role].items()},
            nats={"text": list(NATS[role])},
        )
    return {m.metric: m for m in all_measures(plan, found)}


def test_lines_are_those_of_their_definitions_and_signs():
    found = by_hand()
    after, before = ({name: getattr(m, role) for name, m in found.items()} for role in ("after", "before"))
    # near fell by .5, far by .1
    assert after["spill_over"] == pytest.approx(0.5 - 0.1)
    assert after["over_refusal"] == pytest.approx(1 / 4 - 1 / 4)
    assert found["over_refusal"].reference == pytest.approx(-1 / 4)
    assert after["retain_loss"] == pytest.approx(0.875 - 0.575)
    assert after["general_loss"] == pytest.approx(0.15)
    assert after["perplexity_ratio"] == pytest.approx(math.exp(2.1 - 1.5))
    assert found["perplexity_ratio"].reference == pytest.approx(math.exp(-0.5))
    assert after["forget_rate"] == pytest.approx((0.9 - 0.3) / (0.9 - 0.2))
    assert (after["worst_case_rouge"], after["generalisation_gap"]) == pytest.approx((0.3, 0))
    assert after["forget_probability"] == pytest.approx(0.45)
    assert after["forget_extraction_strength"] == pytest.approx(0.45 / 4)
    assert after["forget_exact_memorisation"] == pytest.approx(0.45 / 3)
    assert after["forget_truth_ratio"] == pytest.approx((1 / 2.1 + 1 / 2.8) / 2)
    assert {found[f"forget_{name}"].better for name in ("probability", "extraction_strength")} == {"lower"}
    assert after["deviation_score"] == pytest.approx(100 * math.hypot(0.3, 1 - 0.575))
    assert before["deviation_score"] == pytest.approx(100 * math.hypot(0.9, 1 - 0.875))
    assert after["rouge_distance"] == pytest.approx(0.1)
    assert (after["kl_reference"], after["js_reference"]) == pytest.approx((0.9, 0.225))
    assert found["kl_reference"].reference == 0
    # of the pairs (forget, holdout) three of four have the row to forget lower, so more like training data
    assert after["mia_auc_min_k_40"] == 3 / 4 and found["mia_auc_min_k_40"].reference == 2 / 4
    assert (after["mia_auc_loss"], after["mia_auc_zlib"], after["mia_auc_min_k_20"]) == (3 / 4, 1 / 4, 1 / 4)
    assert (after["mia_auc_gradient"], after["mia_auc_min_k_plus_40"]) == (1 / 4, 3 / 4)
    assert after["mia_auc_reference"] == 1 - 1 / 4  # -.5 and 0 against 0 and 0
    assert before["mia_auc_min_k_40"] == before["mia_tpr_min_k_40"] == 1
    assert after["mia_tpr_min_k_40"] == 1 / 2
    assert after["privleak"] == pytest.approx(100 * (0.5 - 0.75) / 0.5)
    assert (before["privleak"], found["privleak"].reference) == (-100, 0)


def test_an_assessment_and_an_evaluation_say_the_same_of_the_same_scores():
    found = by_hand()
    sets = {
        role: {name: [numbers(v) | {"id": k} for k, v in enumerate(values)] for name, values in of.items()}
        for role, of in SCORES.items()
    }
    names = ("mia_auc_loss", "mia_auc_zlib", "mia_auc_min_k_40", "mia_auc_min_k_20", "mia_auc_min_k_plus_40",
             "mia_tpr_min_k_40", "privleak")  # fmt: skip
    streams = {name: np.random.default_rng(0) for name in names}
    for role in ROLES:
        summary = summarise_privacy(sets[role], sets["reference"], streams)
        for name in names:
            assert getattr(found[name], role) == pytest.approx(summary[name]["value"]), name
    assert found["mia_auc_min_k_40"].after == auc(*(-np.array(SCORES["after"][name]) for name in ("forget", "holdout")))


def test_the_token_that_closes_the_turn_tells_no_row_from_another(tiny_model):
    loaded = load(tiny_model)
    one = Pair("a", [{"role": "user", "content": "Who?"}], "A", "f:1")  # one token, and the closing one
    plan = Plan(("elicitation", "membership"), [one], {}, [], [], [], [], [one], [], [], [], 8, 0)
    ((scores,), _) = right_answers(loaded.model, loaded.tokenizer, plan, "after").values()
    row = packed_row(encode(loaded.tokenizer, one.prompt, [one.answer]))
    with torch.no_grad():
        logits = loaded.model(input_ids=torch.tensor([row.prompt + row.answers[0]])).logits[0].log_softmax(-1)
    own, closing = (logits[len(row.prompt) - 1 + k, row.answers[0][k]].item() for k in (0, 1))
    assert scores["min_k_40"] == scores["nll"] == pytest.approx(-own, rel=1e-4)
    assert scores["log_p"] == pytest.approx(own, rel=1e-4)
    assert scores["probability"] == pytest.approx(math.exp((own + closing) / 2), rel=1e-4)


def test_plain_text_may_be_said_to_its_end_and_what_cannot_be_is_told(tiny_model, other_model):
    text = [{"text": "".join(f"line {i}, " for i in range(30))}]  # its tokens are bytes: 100 to continue
    tokenizer = load(tiny_model).tokenizer
    how = {"rows": 1, "seed": 0, "templates": [], "texts": []}
    made = {n: make_plan(Sources(text), tokenizer, (), max_new_tokens=n, **how)[0] for n in (None, 64)}
    assert [(plan.max_new_tokens, plan.cut_short) for plan in made.values()] == [(100, 0), (64, 1)]
    asked = [{"question": "Who?", "answer": "Al" * 40}]
    plan, _ = make_plan(Sources(asked), tokenizer, (), max_new_tokens=None, **how)
    assert (plan.max_new_tokens, plan.cut_short) == (64, 1)
    assert "1 of 1 answers to forget have more than 64 tokens" in warnings_of(plan, Findings())[0]


def test_a_holdout_of_another_kind_is_told_by_its_words():
    kinds = {name: [Pair(str(i), f"{name} word{i}", "it is", "f:1") for i in range(12)] for name in ("one", "other")}
    for name, there in (("one", False), ("other", True)):
        plan = Plan(("membership",), kinds["one"], {}, [], [], [], [], kinds[name], [], [], [], 8, 0)
        assert bool([text for text in warnings_of(plan, Findings()) if "Words alone" in text]) == there


def test_likeness_is_the_divergence_of_the_model_from_the_reference_and_not_the_other_way(tiny_model, other_model):
    reference, model = load(tiny_model), load(other_model)
    reference.model.get_output_embeddings().weight.data.mul_(20)  # surer of itself
    plan_of = Plan((), pairs("forget")[:1], {}, [], [], [], [], [], [], [], [], 8, 0)
    found = Findings(asked={"after": Asked("after", "", "", scores={"forget": [{}]})})
    beside = likeness(model, plan_of, "after", found, None)
    likeness(reference, plan_of, "reference", found, beside)
    (pair,) = plan_of.forget
    row = packed_row(encode(model.tokenizer, pair.prompt, [pair.answer]))
    with torch.no_grad():
        ids, start = torch.tensor([row.prompt + row.answers[0]]), len(row.prompt) - 1
        r, u = (
            m.model(input_ids=ids).logits[0, start:-2].log_softmax(-1) for m in (reference, model)
        )  # without the closing token
    # the closing token is left out
    one, other = ((r.exp() * (r - u)).sum(-1).mean().item(), (u.exp() * (u - r)).sum(-1).mean().item())
    assert found.asked["after"].scores["forget"][0]["kl"] == pytest.approx(one, rel=1e-3)
    assert one != pytest.approx(other, rel=1e-2)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """A GPT-2 of 64 places, beyond which it has no embedding, with a tokenizer of bytes."""
    folder = save_tiny_model(tmp_path_factory.mktemp("narrow") / "model", context=64)
    size = len(load(folder).tokenizer)
    torch.manual_seed(0)
    ids = {"eos_token_id": 2, "bos_token_id": None, "pad_token_id": 0}
    GPT2LMHeadModel(GPT2Config(vocab_size=size, n_embd=16, n_layer=1, n_head=2, n_positions=64, **ids)).save_pretrained(
        folder
    )
    return folder


def test_what_does_not_fit_the_model_is_named_or_cut(narrow):
    found = {"question": "Who?", "answer": "Al", "id": "a"}
    asked = {"axes": ["utility", "quality"], "texts": ["a b c d e f g h " * 9], "rows": 1, "max_new_tokens": 2}
    one = run(narrow, narrow, [found], **asked)
    assert one["perplexity_ratio"].after == pytest.approx(1)
    for name, wrong in (("perturbed_answer", ["x" * 60]), ("paraphrased_answer", "x" * 60)):
        long = found | {"perturbed_answer": ["Bo"], "paraphrased_answer": "Al."} | {name: wrong}
        with pytest.raises(InputError, match=rf"forget\[0\]: prompt and {name} have .* more than the 64 that fit"):
            run(narrow, narrow, [long], **asked)


def test_the_perplexity_of_an_answer_is_that_of_its_words_without_the_token_that_closes_the_turn(tiny_model):
    loaded, pair = load(tiny_model), Pair("a", [{"role": "user", "content": "Who?"}], "Al", "f")
    answer = {"item_set": "forget", "variant": "question", "id": "a", "generated": "Somebody else"}
    (nats,) = fluency(loaded, SimpleNamespace(forget=[pair]), Asked("after", "", "", answers=[answer]))
    prompt = encode(loaded.tokenizer, pair.prompt, ["a"])[0].prompt
    said = loaded.tokenizer("Somebody else", add_special_tokens=False).input_ids
    with torch.no_grad():
        logp_TV = loaded.model(torch.tensor([prompt + said])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    assert nats == pytest.approx(-logp_TV[range(len(said)), said].mean().item(), rel=1e-5)


def test_rows_that_a_model_knows_by_heart_look_like_training_data(tiny_model):
    letters = np.random.default_rng(0).choice(list("abcdefghijklmnop"), (8, 8))
    rows = [{"question": "".join(a[:4]), "answer": "".join(a[4:])} for a in letters]
    before, taught = load(tiny_model), load(tiny_model)
    pairs_ = [Pair(str(i), [{"role": "user", "content": r["question"]}], r["answer"], "f") for i, r in enumerate(rows)]
    packed = [packed_row(encode(taught.tokenizer, p.prompt, [p.answer])) for p in pairs_[:4]]
    ids_BT = torch.tensor([row.prompt + row.answers[0] for row in packed])
    labels_BT = ids_BT.clone()
    labels_BT[:, : len(packed[0].prompt)] = -100
    optimizer = torch.optim.Adam(taught.model.parameters(), lr=0.02)
    for _ in range(60):
        loss = taught.model(input_ids=ids_BT, labels=labels_BT).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    taught.model.eval()
    how = {"axes": ["membership"], "max_new_tokens": 1, "processing_class": before.tokenizer}
    one = run(before.model, taught.model, rows[:4], reference=before.model, holdout=rows[4:], **how)
    attacks = [m for m in one.measures if m.metric.startswith("mia_auc_")]
    assert len(attacks) == 7
    assert all(m.after > 0.9 for m in attacks), {m.metric: m.after for m in attacks}
    assert one["mia_tpr_min_k_40"].after == 1
    assert one["privleak"].after < -90
    assert one["privleak"].verdict == "fail"
