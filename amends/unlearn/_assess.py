"""An assessment: the models are asked in turn, after, reference, before; then their answers are measured.

The model before comes last: it says how fluent the others' answers are, and its weights are what theirs are compared
with.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import Progress
from transformers import PreTrainedTokenizerBase

from amends.io.console import console, say
from amends.io.errors import InputError
from amends.lm.generate import generate
from amends.lm.load import Loaded, load, shares_base, weights_sha256
from amends.lm.logprobs import PackedRow, packed_row
from amends.lm.pairs import Encoded, encode, plain_ids, turn_end
from amends.unlearn._attacks import (
    EASY,
    Ask,
    Curve,
    context_of,
    fitting,
    relearn,
)
from amends.unlearn._evaluate import TEXT_TOKENS, mean_logprobs
from amends.unlearn._metrics import is_refusal, rouge_l_recall
from amends.unlearn._plan import Plan, all_asks
from amends.unlearn._weights import Comparison, Snapshot, compare, quantised, snapshot

ORDER = ("after", "reference", "before")
BITS = (8, 4)
TOO_FEW = "It needs four rows to forget or more: some are trained on, the others tested."


@dataclass
class Asked:
    """What one model said."""

    role: str
    name: str
    weights: str
    answers: list[dict[str, Any]] = field(default_factory=list)
    """item_set, id, variant, question, expected, generated, rouge_l, refused."""
    nats: dict[str, list[float]] = field(default_factory=dict)
    """Mean nats per answer token of "forget", "holdout"; of "text" nats per token."""
    curve: Curve | None = None
    tested: list[str] = field(default_factory=list)
    """Ids of the rows of the curve."""
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
    """Axis to reason."""


def ask_in_turn(
    models: Mapping[str, Any], plan_for: Callable[[PreTrainedTokenizerBase], Plan], tokenizer: Any = None
) -> tuple[Plan, Findings]:
    """Ask one model after the other; those that are named are loaded for their turn alone.

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
    loaded: Loaded | None = None
    for role in (role for role in ORDER if models.get(role) is not None):
        source = models[role]
        if isinstance(source, str | Path):
            say(f"{role}: reading {source}")
            instead = loaded if loaded is not None and shares_base(loaded, source) else None
            loaded = None  # so that it is gone before the next one comes
            loaded = load(source, instead_of=instead)
        else:
            loaded = Loaded(source, tokenizer, _name(source), _name(source))
        plan = plan or plan_for(loaded.tokenizer)
        found.asked[role] = ask_model(loaded, plan, role, found)
        if role == "after" and {"locality", "quantisation"} & set(plan.axes):
            kept = keep_weights(loaded, models["before"], found)
    assert plan is not None and loaded is not None
    if kept is not None:
        try:
            found.comparison = compare(kept, loaded.model, BITS)
        except InputError as error:
            found.gaps["locality"] = str(error)
    if "quality" in plan.axes:
        found.fluency = {role: fluency(loaded, plan, asked) for role, asked in found.asked.items()}
    return plan, found


def _name(model: Any) -> str:
    return str(model.config.name_or_path or type(model).__name__)


def keep_weights(loaded: Loaded, before: Any, found: Findings) -> Snapshot | None:
    """Keep the weights of the model after, or say why they cannot be compared."""
    is_named = isinstance(before, str | Path)
    same_base = is_named and (
        shares_base(loaded, before) or (loaded.base != loaded.name and str(before) == loaded.base)
    )
    try:
        return snapshot(loaded.model, loaded.base if same_base else None)
    except InputError as error:
        found.gaps["locality"] = str(error)
        return None


def ask_model(loaded: Loaded, plan: Plan, role: str, found: Findings) -> Asked:
    """Ask one model everything that the axes need of it."""
    model, tokenizer = loaded.model, loaded.tokenizer
    context = context_of(model)
    asks, left_out = fitting(all_asks(plan, tokenizer), context and context - plan.max_new_tokens)
    asked = Asked(role, loaded.name, weights_sha256(model), left_out=dict(left_out))
    asked.answers = answers(model, tokenizer, asks, plan, f"{role}: answering")
    asked.nats = likelihoods(model, tokenizer, plan, f"{role}: likelihoods")
    plain = [ask for ask in asks if (ask.item_set, ask.variant) == ("forget", EASY)]
    if "quantisation" in plan.axes:
        try:
            for bits in BITS:
                with quantised(model, bits):
                    rounded = [ask._replace(item_set=f"forget_int{bits}") for ask in plain]
                    asked.answers += answers(model, tokenizer, rounded, plan, f"{role}: answering at {bits} bits")
        except InputError as error:
            found.gaps["quantisation"] = str(error)
    if "relearning" in plan.axes:
        chosen = set(plan.relearnt)
        ids = {plan.forget[i].id for i in chosen}
        tested = [ask for ask in plain if ask.id not in ids]
        if not chosen or not tested:
            found.gaps["relearning"] = TOO_FEW
        elif role != "before":
            asked.tested = [ask.id for ask in tested]
            try:
                asked.curve = relearn(
                    model,
                    tokenizer,
                    [plan.forget[i] for i in sorted(chosen)],
                    lambda m: rouge_of(m, tokenizer, tested, plan, f"{role}: answering"),
                    seed=plan.seed,
                    label=f"{role}: relearning",
                )
            except InputError as error:
                found.gaps["relearning"] = str(error)
    return asked


def answers(
    model: Any, tokenizer: PreTrainedTokenizerBase, asks: Sequence[Ask], plan: Plan, label: str
) -> list[dict[str, Any]]:
    """Let a model answer, and say how much of what is expected it said and whether it declined."""
    texts = _generate(model, tokenizer, asks, plan, label)
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
            "rouge_l": float(score),
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


def _generate(model: Any, tokenizer: PreTrainedTokenizerBase, asks: Sequence[Ask], plan: Plan, label: str) -> list[str]:
    stop_ids = turn_end(tokenizer)
    prompts = [ask.prompt for ask in asks]
    return generate(model, tokenizer, prompts, stop_ids=stop_ids, max_new_tokens=plan.max_new_tokens, label=label)


def likelihoods(model: Any, tokenizer: PreTrainedTokenizerBase, plan: Plan, label: str) -> dict[str, list[float]]:
    """Nats per token of the answers to forget and of the holdout, and of plain text."""
    rows: dict[str, list[PackedRow]] = {}
    if "membership" in plan.axes:
        for name, pairs in (("forget", plan.forget), ("holdout", plan.holdout)):
            rows[name] = [packed_row(encode(tokenizer, p.prompt, [p.answer])) for p in pairs]
    if "utility" in plan.axes:
        cut = [plain_ids(tokenizer, text)[: TEXT_TOKENS + 1] for text in plan.texts]
        rows["text"] = [packed_row([Encoded(ids[:1], ids[1:])]) for ids in cut if len(ids) > 1]
    found = {}
    with Progress(transient=True, console=console) as progress:
        task = progress.add_task(label, total=sum(map(len, rows.values())))
        for name, packed in rows.items():
            means = mean_logprobs(model, packed, tokenizer.pad_token_id, lambda n: progress.advance(task, n))
            found[name] = [-mean for (mean,) in means]
    return found


def fluency(before: Loaded, plan: Plan, asked: Asked) -> list[float]:
    """Nats per token, to the model before, of each answer to a question to forget that is not empty."""
    said = {a["id"]: a["generated"] for a in asked.answers if (a["item_set"], a["variant"]) == ("forget", EASY)}
    pairs = [(p, said[p.id]) for p in plan.forget if said.get(p.id, "").strip()]
    rows = [packed_row(encode(before.tokenizer, pair.prompt, [text])) for pair, text in pairs]
    return [-mean for (mean,) in mean_logprobs(before.model, rows, before.tokenizer.pad_token_id)]
