"""An assessment: the models are asked in turn, after, reference, before; then their answers are measured.

The model before comes last: it says how fluent the others' answers are, and its weights are what theirs are compared
with.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from amends.assessment.attacks import (
    EASY,
    Ask,
    Curve,
    fitting,
    relearn,
)
from amends.assessment.inside import States, divergences, gradient_norms, lens_ranks, states
from amends.assessment.plan import NO_RETAIN, NO_TEXT, Plan, all_asks
from amends.assessment.weights import Comparison, Snapshot, compare, quantised, snapshot
from amends.evaluation.evaluate import TEXT_TOKENS, likelihoods, mean_logprobs
from amends.evaluation.memorised import answer_scores
from amends.evaluation.metrics import rouge_l_recall, truth_ratio
from amends.evaluation.refusals import is_refusal
from amends.io.errors import InputError
from amends.lm.encoders import Encoder, class_probabilities
from amends.lm.generate import generate
from amends.lm.load import Loaded, same_model, shares_base, weights_sha256
from amends.lm.logprobs import PackedRow, packed_row
from amends.lm.memorisation import record_row
from amends.lm.pairs import Encoded, Pair, encode
from amends.lm.rows import context_limit, context_of, encode_rows
from amends.lm.templates import plain_ids, turn_end
from amends.lm.turns import is_same, measure_each

ORDER = ("after", "reference", "before")
BITS = (8, 4)
SAID = ("forget", "near", "far")
SAMPLES = 8
"""Answers that are drawn to each question to forget, at temperature 1."""
TOO_FEW = "It needs four rows to forget or more: some are trained on, the others tested."
NOTHING_ASKED = "Every question that could be tested is longer than the model's context."
NO_LESSON = {"forget": TOO_FEW, "retain": NO_RETAIN, "text": NO_TEXT}
"""Why an attack that teaches this cannot be made."""


@dataclass
class Asked:
    """What one model said."""

    role: str
    name: str
    weights: str
    answers: list[dict[str, Any]] = field(default_factory=list)
    """item_set, id, variant, question, expected, generated, rouge_l, refused."""
    scores: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    """Numbers of each right answer to "forget" and "holdout": `amends.evaluation.memorised.answer_scores`, probability,
    log_p of all its tokens in nats, gradient_norm; of "forget" also truth_ratio, kl and js (beside the reference)."""
    nats: dict[str, list[float]] = field(default_factory=dict)
    """Of each "text" nats per token."""
    ranks: list[list[int]] = field(default_factory=list)
    """Of each row to forget, by layer: `amends.assessment.inside.lens_ranks`."""
    curves: dict[str, Curve] = field(default_factory=dict)
    """Of the relearning attacks, by what was taught: `amends.assessment.plan.Plan.lessons`."""
    tested: dict[str, list[str]] = field(default_factory=dict)
    """Ids of the rows of each curve."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Prompts longer than the model's context, by variant."""


@dataclass
class Findings:
    """What all models said, and why something could not be asked."""

    asked: dict[str, Asked] = field(default_factory=dict)
    fluency: dict[str, list[float]] = field(default_factory=dict)
    """By role: nats per token, to the model before, of each answer that was given to a question to forget."""
    comparison: Comparison | None = None
    gaps: dict[str, str] = field(default_factory=dict)
    """Axis to reason; "taught forget", "taught retain" and "taught text" for the attacks that teach these."""


def ask_in_turn(
    models: Mapping[str, Any], plan_for: Callable[[PreTrainedTokenizerBase], Plan], tokenizer: Any = None
) -> tuple[Plan, Findings]:
    """Ask one model after the other; those that are named are loaded for their turn alone, and none is asked twice.

    Parameters
    ----------
    models : dict
        Role to what `amends.lm.load` takes, or to a model that is loaded already; "after" and "before" at least.
    plan_for : callable
        The tokenizer of the model that comes first -> what all are asked.
    tokenizer : optional
        Of the models that are loaded already.

    Raises
    ------
    InputError : a model that cannot be loaded, faulty rows.
    """
    found = Findings()
    plan: Plan | None = None
    kept: Snapshot | None = None
    beside: States | None = None

    def ask(role: str, loaded: Loaded) -> None:
        nonlocal plan, kept, beside
        plan = plan or plan_for(loaded.tokenizer)
        twin = next((earlier for earlier in found.asked if is_same(models[earlier], models[role])), None)
        if twin is None:
            found.asked[role] = ask_model(loaded, plan, role, found)
        else:
            asked = deepcopy(found.asked[twin])
            found.asked[role] = replace(asked, role=role, curves={} if role == "before" else asked.curves)
        if role == "after" and {"locality", "quantisation"} & set(plan.axes):
            kept = keep_weights(loaded, models["before"], found)
        if "likeness" in plan.axes and models.get("reference") is not None:
            beside = likeness(loaded, plan, role, found, beside)
        if role == "before" and kept is not None:
            try:
                found.comparison = compare(kept, loaded.model, BITS)
            except InputError as error:
                found.gaps["locality"] = str(error)
        if role == "before" and "quality" in plan.axes:
            found.fluency = {role: fluency(loaded, plan, asked) for role, asked in found.asked.items()}

    measure_each({role: models.get(role) for role in ORDER}, ask, tokenizer, called="--{role} {name}")
    assert plan is not None
    return plan, found


def keep_weights(loaded: Loaded, before: Any, found: Findings) -> Snapshot | None:
    """Keep the weights of the model after, or say why they cannot be compared."""
    is_named = isinstance(before, str | Path)
    same_base = is_named and (
        shares_base(loaded, before) or (loaded.base != loaded.name and same_model(str(before), loaded.base))
    )
    try:
        return snapshot(loaded.model, loaded.base if same_base else None)
    except InputError as error:
        found.gaps["locality"] = str(error)
        return None


def likeness(loaded: Loaded, plan: Plan, role: str, found: Findings, beside: States | None) -> States:
    """Compare the model after and the one before with the reference, which is asked between the two."""
    rows = [record_row(loaded.tokenizer, p.prompt, [p.answer]) for p in plan.forget]
    mine = states(loaded.model, rows, loaded.tokenizer.pad_token_id)
    if beside is None:
        return mine
    reference, other, asked = (mine, beside, "after") if role == "reference" else (beside, mine, role)
    try:
        apart = divergences(reference, other)
    except InputError as error:
        found.gaps["likeness"] = str(error)
        return reference
    for item, kl, js in zip(found.asked[asked].scores["forget"], apart.kl, apart.js, strict=True):
        item |= {"kl": kl, "js": js}
    return reference


def ask_model(loaded: Loaded, plan: Plan, role: str, found: Findings) -> Asked:
    """Ask one model everything that the axes need of it."""
    model, tokenizer = loaded.model, loaded.tokenizer
    context = context_of(model)
    if context:
        encode_rows(tokenizer, plan.forget, context, alternatives=context)
        encode_rows(tokenizer, plan.holdout, context)
    asks, left_out = fitting(everything := all_asks(plan, tokenizer), context and context - plan.max_new_tokens)
    if context and not any(map(is_plain, asks)):
        room = context - min(len(ask.prompt) for ask in everything if is_plain(ask))
        raise InputError(
            f"--max-new-tokens {plan.max_new_tokens}: beside so long an answer none of the questions to forget fits "
            f"into the {context} tokens that {loaded.name} takes. Give at most {room}, or less, so that more fit."
        )
    asked = Asked(role, loaded.name, weights_sha256(model), left_out=dict(left_out))
    asked.answers = answers(model, tokenizer, asks, plan, f"{role}: answering")
    asked.nats = texts(model, tokenizer, plan)
    asked.scores = right_answers(model, tokenizer, plan, role)
    if "inside" in plan.axes:
        try:
            asked.ranks = lens_ranks(model, tokenizer, plan.forget)
        except InputError as error:
            found.gaps["inside"] = str(error)
    plain = [ask for ask in asks if is_plain(ask)]
    if "sampling" in plan.axes:
        drawn = [
            ask._replace(item_set="forget_sampled", variant=f"sample_{k}") for k in range(SAMPLES) for ask in plain
        ]
        asked.answers += answers(model, tokenizer, drawn, plan, f"{role}: drawing answers", temperature=1.0)
    if "quantisation" in plan.axes:
        try:
            for bits in BITS:
                with quantised(model, bits):
                    rounded = [ask._replace(item_set=f"forget_int{bits}") for ask in plain]
                    asked.answers += answers(model, tokenizer, rounded, plan, f"{role}: answering at {bits} bits")
        except InputError as error:
            found.gaps["quantisation"] = str(error)
    teach_again(loaded, plan, asked, plain, found)
    return asked


def teach_again(loaded: Loaded, plan: Plan, asked: Asked, plain: Sequence[Ask], found: Findings) -> None:
    """Teach the model each lesson in turn, and ask the rows to forget that are not in it; the one before needs none."""
    model, tokenizer, role = loaded.model, loaded.tokenizer, asked.role
    for name, items in plan.lessons.items():
        taught = {(pair.question, pair.answer) for pair in items}
        tested = [ask for ask in plain if (ask.shown, ask.expected) not in taught]
        if not items or not tested:
            found.gaps[f"taught {name}"] = NO_LESSON[name] if not items else NOTHING_ASKED
        elif role != "before":
            try:
                curve = relearn(
                    model,
                    tokenizer,
                    items,
                    lambda m, tested=tested: rouge_of(m, tokenizer, tested, plan, f"{role}: answering"),  # type: ignore[misc]
                    seed=plan.seed,
                    label=f"{role}: taught {name}",
                )
            except InputError as error:
                found.gaps[f"taught {name}"] = str(error)
            else:
                asked.curves[name], asked.tested[name] = curve, [ask.id for ask in tested]


def is_plain(ask: Ask) -> bool:
    """Whether it is a question to forget as it stands in the data."""
    return (ask.item_set, ask.variant) == ("forget", EASY)


def answers(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    asks: Sequence[Ask],
    plan: Plan,
    label: str,
    temperature: float = 0.0,
) -> list[dict[str, Any]]:
    """Let a model answer, and say how much of what is expected it said and whether it declined."""
    texts = _generate(model, tokenizer, asks, plan, label, temperature)
    rouge = rouge_l_recall(texts, [ask.expected for ask in asks])
    refused = is_refusal(texts, plan.templates)
    return [
        {
            "item_set": ask.item_set,
            "id": ask.id,
            "variant": ask.variant,
            "question": ask.shown,
            "expected": ask.expected,
            "generated": text,
            "rouge_l": None if math.isnan(score) else float(score),
            "refused": bool(declined),
        }
        for ask, text, score, declined in zip(asks, texts, rouge, refused, strict=True)
    ]


def rouge_of(
    model: Any, tokenizer: PreTrainedTokenizerBase, asks: Sequence[Ask], plan: Plan, label: str
) -> list[float]:
    """ROUGE-L recall of each answer."""
    texts = _generate(model, tokenizer, asks, plan, label)
    return [float(score) for score in rouge_l_recall(texts, [ask.expected for ask in asks])]


def _generate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    asks: Sequence[Ask],
    plan: Plan,
    label: str,
    temperature: float = 0.0,
) -> list[str]:
    """Answers in the order of the asks; those of about one length at a time, for a batch is padded to its longest."""
    texts = [""] * len(asks)
    widths = [len(ask.prompt).bit_length() for ask in asks]
    for width in sorted(set(widths)):
        places = [i for i, w in enumerate(widths) if w == width]
        found = generate(
            model,
            tokenizer,
            [asks[i].prompt for i in places],
            stop_ids=turn_end(tokenizer),
            max_new_tokens=plan.max_new_tokens,
            temperature=temperature,
            seed=plan.seed,
            label=label,
        )
        for i, text in zip(places, found, strict=True):
            texts[i] = text
    return texts


def right_answers(
    model: Any, tokenizer: PreTrainedTokenizerBase, plan: Plan, role: str
) -> dict[str, list[dict[str, float]]]:
    """Ask for the likelihoods of the right answers, and of the wrong ones that the data give beside them.

    The token that closes the turn counts in what an evaluation measures too (probability, truth ratio, what is known by
    heart), and not where rows are told from each other, of which it says nothing: of a short answer it would be all.
    """
    sets: dict[str, list[Pair]] = {}
    if {"elicitation", "membership", "sampling", "likeness"} & set(plan.axes):
        sets["forget"] = plan.forget
    if "membership" in plan.axes:
        sets["holdout"] = plan.holdout
    pad_id, found = tokenizer.pad_token_id, dict[str, list[dict[str, float]]]()
    for name, pairs in sets.items():
        wrong = [pair.wrong if name == "forget" else () for pair in pairs]
        rows = [
            packed_row(encode(tokenizer, p.prompt, [p.answer, *([p.paraphrase or p.answer, *w] if w else [])]))
            for p, w in zip(pairs, wrong, strict=True)
        ]
        bare = [record_row(tokenizer, pair.prompt, [pair.answer]) for pair in pairs]
        found[name] = []
        for pair, row, (means, tokens_T4) in zip(
            pairs, bare, likelihoods(model, rows, pad_id, tokens=True), strict=True
        ):
            own_T4 = tokens_T4[: len(row.answers[0])]
            scores = answer_scores(own_T4, pair.answer)
            by_heart = answer_scores(tokens_T4, pair.answer)
            scores |= {which: by_heart[which] for which in ("extraction_strength", "exact_memorisation")}
            scores |= {"probability": math.exp(means[0]), "log_p": float(own_T4[:, 0].sum())}
            if len(means) > 2:
                scores["truth_ratio"] = float(truth_ratio([means[2:]], [means[1]])[0])
            found[name].append(scores)
        if "membership" in plan.axes and plan.holdout:
            norms = gradient_norms(model, bare, pad_id, f"{role}: gradients, {name}")
            for scores, norm in zip(found[name], norms, strict=True):
                scores["gradient_norm"] = norm
    return found


def texts(model: Any, tokenizer: PreTrainedTokenizerBase, plan: Plan) -> dict[str, list[float]]:
    """Nats per token of plain text, of as much of each as fits the model."""
    if "utility" not in plan.axes:
        return {}
    most = context_limit(model, TEXT_TOKENS + 1)
    cut = [plain_ids(tokenizer, text)[:most] for text in plan.texts]
    rows = [packed_row([Encoded(ids[:1], ids[1:])]) for ids in cut if len(ids) > 1]
    return {"text": [-mean for (mean,) in mean_logprobs(model, rows, tokenizer.pad_token_id)]}


def add_gibberish(found: Findings, classifier: Encoder, clean: int) -> None:
    """Add to every greedy answer to a plain question that is not empty how likely it is gibberish, 1 - p(clean)."""
    for asked in found.asked.values():
        said = [a for a in asked.answers if a["variant"] == EASY and a["item_set"] in SAID and a["generated"].strip()]
        if said:
            p_NK = class_probabilities(classifier, [a["generated"] for a in said])
            for a, p in zip(said, p_NK[:, clean].tolist(), strict=True):
                a["gibberish"] = 1 - p


def fluency(before: Loaded, plan: Plan, asked: Asked) -> list[float]:
    """Nats per token, to the model before, of each answer to a question to forget that is not empty.

    The token that closes the turn is left out: the model may not have said it, for its answer may have been cut off.
    Of an answer that another model had more room for, as much as fits.
    """
    said = {a["id"]: a["generated"] for a in asked.answers if (a["item_set"], a["variant"]) == ("forget", EASY)}
    pairs = [(p, said[p.id]) for p in plan.forget if said.get(p.id, "").strip()]
    context = context_of(before.model)
    rows = [record_row(before.tokenizer, pair.prompt, [text]) for pair, text in pairs]
    rows = [PackedRow(r.prompt, [r.answers[0][: context and context - len(r.prompt)]]) for r in rows]
    return [-mean for (mean,) in mean_logprobs(before.model, rows, before.tokenizer.pad_token_id)]
