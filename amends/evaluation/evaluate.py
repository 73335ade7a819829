"""Ask a model everything the audit needs, once: one forward pass for all answers of a question, and its own words."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from amends.evaluation.memorised import answer_scores
from amends.evaluation.metrics import normalised_probability, rouge_l_recall, truth_ratio
from amends.evaluation.refusals import is_refusal
from amends.evaluation.said import FORGET_EVAL, score_said
from amends.evaluation.summary import summarise
from amends.io.atomic import sha256_json
from amends.io.progress import progress
from amends.io.tables import read_rows
from amends.lm.generate import generate
from amends.lm.load import autocast, precision, weights_sha256
from amends.lm.logprobs import (
    PADDING,
    PackedRow,
    answer_logprobs,
    check_numbers,
    log_probability,
    masked_mean,
    naming,
    pack,
    packed_row,
    token_statistics,
)
from amends.lm.memorisation import record_row
from amends.lm.pairs import Encoded, Pair, encode, read_pairs
from amends.lm.rows import context_limit, context_of
from amends.lm.templates import next_ids, plain_ids, turn_end
from amends.maths.arrays import FloatArray

HOLDOUT = "holdout"
# Sets of whose right answers every token is looked at.
TOKEN_SETS = ("forget", "retain", HOLDOUT)
# Their alternatives are short answers to choose from, so probability is taken relative to them (TOFU).
CHOICE_SETS = ("real_authors", "world_facts")
BUILT_IN = Path(__file__).parent.parent / "data"
TOKENS_PER_PASS, TOKENS_PER_PASS_ON_CPU = 4096, 1024  # a CPU's caches hold no more
TEXT_TOKENS = 256
MAX_NEW_TOKENS = 64
FORGET_ROWS = 400


class Choice(NamedTuple):
    """A multiple-choice question, scored by the log-probability per character of each choice."""

    id: str
    task: str
    context: str
    choices: tuple[str, ...]
    gold: int


@dataclass(frozen=True)
class Suite:
    """Everything that is asked of a model. Any part may be empty; what is missing is said, not guessed."""

    questions: dict[str, list[Pair]]
    choices: list[Choice] = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)
    templates: tuple[str, ...] = ()
    max_new_tokens: int = MAX_NEW_TOKENS
    text_tokens: Mapping[str, int] = field(default_factory=dict)
    """By the name of a set, most tokens of the continuation of its plain text, where that is not `max_new_tokens`."""

    def sha256(self) -> str:
        """Digest of every question, answer and setting: equal digests mean comparable numbers."""
        return sha256_json(
            {
                "questions": {name: [_digested(p) for p in pairs] for name, pairs in self.questions.items()},
                "choices": self.choices,
                "texts": self.texts,
                "templates": self.templates,
                "max_new_tokens": self.max_new_tokens,
                **({"text_tokens": self.text_tokens} if self.text_tokens else {}),
            }
        )

    def with_room(self, tokenizer: PreTrainedTokenizerBase) -> "Suite":
        """Let the plain text of each set be continued to its end, by more than `max_new_tokens` where it is longer.

        Questions keep their limit. A set has its own, so that what an earlier request forgot is asked as it was then.
        """
        rooms = {name: room_for(tokenizer, pairs) for name, pairs in self.questions.items() if name != HOLDOUT}
        return replace(self, text_tokens={name: room for name, room in rooms.items() if room > self.max_new_tokens})


def room_for(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair]) -> int:
    """Most tokens to generate: MAX_NEW_TOKENS, or those of the longest plain text to continue, so all can be said."""
    texts = [record_row(tokenizer, pair.prompt, [pair.answer]).answers[0] for pair in pairs if pair.is_text]
    return max([MAX_NEW_TOKENS, *map(len, texts)])


def _digested(pair: Pair) -> dict[str, Any]:
    """All of a pair that is asked; what most pairs lack is left out there, as it was before there was such a thing."""
    found = asdict(pair) | {"where": ""}
    return found if pair.right is not None else {name: value for name, value in found.items() if name != "right"}


def build_suite(
    forget: Sequence[Pair],
    sets: Mapping[str, Sequence[Pair]],
    templates: Sequence[str],
    *,
    rows: int = 100,
    max_new_tokens: int = MAX_NEW_TOKENS,
    earlier: Mapping[str, Sequence[Pair]] | None = None,
    holdout: Sequence[Pair] = (),
    forget_eval: Sequence[Pair] = (),
) -> Suite:
    """Build the suite of a run: its forget pairs, the user's question sets, and the built-in general ones.

    Parameters
    ----------
    forget : list of Pair
    sets : dict
        The user's questions, "retain", "real_authors" and "world_facts", of those that there are.
    rows : int, default 100
        Most questions of each set, evenly spread over it; of each built-in multiple-choice task five times as many, for
        they cost little and their mean varies most; of the built-in texts as many. The forget set is asked whole, up to
        FORGET_ROWS.
    max_new_tokens : int, default 64
        Longest answer that is generated; `Suite.with_room` gives plain text more.
    earlier : dict, optional
        Forget pairs of earlier requests on the same model, "request_1", ...; asked whole too, up to FORGET_ROWS each.
    holdout : list of Pair, default none
        Rows like those to forget that no model saw, up to FORGET_ROWS; only their own answers' likelihoods are
        asked.
    forget_eval : list of Pair, default none
        Rows like those to forget that are not trained on; asked whole, up to FORGET_ROWS.
    """
    questions = {"forget": spread(list(forget), FORGET_ROWS)}
    questions |= {name: spread(list(pairs), rows) for name, pairs in sets.items()}
    questions["general"] = spread(read_pairs(read_rows(BUILT_IN / "general_questions.jsonl")).kept, rows)
    questions |= {name: spread(list(pairs), FORGET_ROWS) for name, pairs in (earlier or {}).items()}
    if forget_eval:
        questions[FORGET_EVAL] = spread(list(forget_eval), FORGET_ROWS)
    if holdout:
        questions[HOLDOUT] = [replace(p, paraphrase=None, wrong=()) for p in spread(list(holdout), FORGET_ROWS)]
    choices = [
        Choice(str(d["id"]), d["task"], d["context"], tuple(d["choices"]), d["gold"])
        for d in (row.data for row in read_rows(BUILT_IN / "zero_shot.jsonl"))
    ]
    by_task = {task: [c for c in choices if c.task == task] for task in dict.fromkeys(c.task for c in choices)}
    texts = [(str(row.data["id"]), row.data["text"]) for row in read_rows(BUILT_IN / "text.jsonl")]
    return Suite(
        questions,
        [c for task in by_task.values() for c in spread(task, 5 * rows)],
        spread(texts, rows),
        tuple(templates),
        max_new_tokens,
    )


def spread(items: list[Any], most: int) -> list[Any]:
    """At most `most` items, evenly spaced, first and last among them."""
    if len(items) <= most:
        return items
    return [items[i] for i in np.linspace(0, len(items) - 1, most).round().astype(int)]


def evaluate(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, suite: Suite, *, role: str, name: str
) -> dict[str, Any]:
    """Ask a model the suite.

    Returns
    -------
    dict : an evaluation file without reference metrics; `with_reference` adds those.
    """
    was_training = model.training
    model.eval()
    items: dict[str, list[dict[str, Any]]] = {}
    jobs = sum(map(len, suite.questions.values())) + len(suite.choices) + len(suite.texts)
    with naming(name), progress(f"{role}: likelihoods", jobs) as advance:
        for set_name, pairs in suite.questions.items():
            items[set_name] = _likelihoods(model, tokenizer, pairs, set_name, advance)
        items["zero_shot"] = _zero_shot(model, tokenizer, suite.choices, advance)
        items["text"] = _texts(model, tokenizer, suite.texts, advance)
    _answers(model, tokenizer, suite, items, role)
    model.train(was_training)
    return {
        "role": role,
        "name": name,
        "weights": weights_sha256(model),
        "suite": suite.sha256(),
        "precision": precision(),
        "text_tokens": dict(suite.text_tokens),
        "items": items,
        "summary": summarise(items, None),
    }


def with_reference(evaluation: dict[str, Any], reference: dict[str, Any] | None) -> dict[str, Any]:
    """Add to an evaluation the metrics that compare it with the retrained reference (forget quality, PrivLeak)."""
    items = reference["items"] if reference else None
    return evaluation | {"summary": summarise(evaluation["items"], items)}


class Likelihoods(NamedTuple):
    """How likely a model finds the answers of a row."""

    means: list[float]
    """Mean log-probability of each answer, nats per token."""
    tokens_T4: FloatArray
    """`token_statistics` of the first answer's tokens; none of them where they were not asked for."""


def mean_logprobs(
    model: torch.nn.Module, rows: Sequence[PackedRow], pad_id: int, advance: Callable[[int], None] = lambda n: None
) -> list[list[float]]:
    """Mean log-probability in nats per token of every answer of every row, as `likelihoods` has it."""
    return [found.means for found in likelihoods(model, rows, pad_id, advance)]


def likelihoods(
    model: torch.nn.Module,
    rows: Sequence[PackedRow],
    pad_id: int,
    advance: Callable[[int], None] = lambda n: None,
    *,
    tokens: bool = False,
) -> list[Likelihoods]:
    """Likelihoods of every answer of every row, and if asked the statistics of each token of its first, in one pass.

    Rows go through in order of length, as many at once as fit TOKENS_PER_PASS; the results keep the input order.

    Raises
    ------
    NotNumbers : a token's log-probability is NaN.
    """
    order = sorted(range(len(rows)), key=lambda i: rows[i].num_tokens)
    device = next(model.parameters()).device
    most = TOKENS_PER_PASS_ON_CPU if device.type == "cpu" else TOKENS_PER_PASS
    found = [Likelihoods([], np.empty((0, 4))) for _ in rows]
    while order:
        # From the longest down, so that running out of memory shows at once.
        batch = [order.pop()]
        left = most - rows[batch[0]].num_tokens
        while order and left >= (length := rows[order[-1]].num_tokens):
            batch.append(order.pop())
            left -= length
        with torch.inference_mode(), autocast():
            packed = pack([rows[i] for i in batch], pad_id)
            out = answer_logprobs(model, {name: t.to(device) for name, t in packed.items()})
            if tokens:
                first_BA = out.mask(0)
                statistics_BA4 = out.score(token_statistics, first_BA)
                others_BA = out.score(log_probability, ~first_BA & (out.answer_BA != PADDING))
                logp_BA = statistics_BA4[..., 0] + others_BA
                for i, numbers_A4, asked_A in zip(
                    batch, statistics_BA4.cpu().numpy(), first_BA.cpu().numpy(), strict=True
                ):
                    found[i] = found[i]._replace(tokens_T4=numbers_A4[asked_A])
            else:
                logp_BA = out.logp_BA
            check_numbers(logp_BA)
        for k in range(max(len(rows[i].answers) for i in batch)):
            have = [j for j, i in enumerate(batch) if len(rows[i].answers) > k]
            values = masked_mean(logp_BA[have], out.mask(k)[have]).tolist()
            for j, value in zip(have, values, strict=True):
                found[batch[j]].means.append(value)
        advance(len(batch))
    return found


def _likelihoods(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    set_name: str,
    advance: Callable[[int], None],
) -> list[dict[str, Any]]:
    """Probability, truth ratio and what the tokens tell of each pair, from one row with its answer and alternatives."""
    candidates = [[p.answer, *([p.paraphrase] if p.paraphrase else []), *p.wrong] for p in pairs]
    rows = [packed_row(encode(tokenizer, p.prompt, c)) for p, c in zip(pairs, candidates, strict=True)]
    tokens = set_name in TOKEN_SETS
    items = []
    for pair, (means, tokens_T4) in zip(
        pairs, likelihoods(model, rows, tokenizer.pad_token_id, advance, tokens=tokens), strict=True
    ):
        answer, wrong = means[0], np.array([means[-len(pair.wrong) :] if pair.wrong else []])
        right = np.array([means[1] if pair.paraphrase else answer])
        compared = bool(pair.wrong)
        relative = set_name in CHOICE_SETS and compared
        items.append(
            {
                "id": pair.id,
                "question": pair.question,
                "answer": pair.answer,
                "probability": float(normalised_probability(np.array([answer]), wrong)[0])
                if relative
                else float(np.exp(answer)),
                "truth_ratio": float(truth_ratio(wrong, right, "geo")[0]) if compared else None,
                "truth_ratio_arith": float(truth_ratio(wrong, right, "arith")[0]) if compared else None,
                **(answer_scores(tokens_T4, pair.answer) if tokens else {}),
            }
        )
    return items


def answers(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    *,
    label: str,
    max_new_tokens: int = Suite.max_new_tokens,
) -> list[str]:
    """Ask a model each question, and give what it says without drawing; `label` stands at the progress bar.

    No answer goes beyond the model's context.
    """
    prompts = [encode(tokenizer, pair.prompt, [pair.answer])[0].prompt for pair in pairs]
    stop_ids, context = turn_end(tokenizer), context_of(model) or sys.maxsize
    rooms = [min(max_new_tokens, context - len(prompt)) for prompt in prompts]
    texts = [""] * len(prompts)
    for room in sorted({room for room in rooms if room > 0}):
        places = [k for k, one in enumerate(rooms) if one == room]
        asked = [prompts[k] for k in places]
        said = generate(model, tokenizer, asked, stop_ids=stop_ids, max_new_tokens=room, label=label)
        for k, text in zip(places, said, strict=True):
            texts[k] = text
    return texts


def _answers(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    suite: Suite,
    items: dict[str, list[dict[str, Any]]],
    role: str,
) -> None:
    """Let the model answer every question and add the text, its ROUGE-L recall and whether it refuses."""
    sets = {name: pairs for name, pairs in suite.questions.items() if name != HOLDOUT}
    asked = [(name, i, pair) for name, pairs in sets.items() for i, pair in enumerate(pairs)]
    limits = [suite.text_tokens.get(name, 0) if pair.is_text else 0 for name, _, pair in asked]
    texts = [""] * len(asked)
    for limit in sorted(set(limits)):
        places = [k for k, one in enumerate(limits) if one == limit]
        label = f"{role}: {'continuing text' if limit else 'answering'}"
        most = limit or suite.max_new_tokens
        said = answers(model, tokenizer, [asked[k][2] for k in places], label=label, max_new_tokens=most)
        for k, text in zip(places, said, strict=True):
            texts[k] = text
    rouge = rouge_l_recall(texts, [pair.answer for _, _, pair in asked])
    refused = is_refusal(texts, suite.templates)
    for (name, i, _), text, score, is_refused in zip(asked, texts, rouge, refused, strict=True):
        told = {"generated": text, "rouge_l": None if np.isnan(score) else float(score), "refused": bool(is_refused)}
        items[name][i] |= told
    score_said(sets, items, tokenizer)


def _zero_shot(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    choices: Sequence[Choice],
    advance: Callable[[int], None],
) -> list[dict[str, Any]]:
    """Pick the choice with the highest log-probability per character after the context, without a chat template."""
    rows = [
        PackedRow(
            encode(tokenizer, c.context, ["a"])[0].prompt, [next_ids(tokenizer, f" {text}") for text in c.choices]
        )
        for c in choices
    ]
    found = []
    for c, row, means in zip(choices, rows, mean_logprobs(model, rows, tokenizer.pad_token_id, advance), strict=True):
        scores = [m * len(ids) / len(text) for m, ids, text in zip(means, row.answers, c.choices, strict=True)]
        found.append({"id": c.id, "task": c.task, "gold": c.gold, "choice": int(np.argmax(scores))})
    return found


def _texts(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[tuple[str, str]],
    advance: Callable[[int], None],
) -> list[dict[str, Any]]:
    """Nats of each text from its second token on, at most TEXT_TOKENS of them, or as many as fit the model."""
    most = context_limit(model, TEXT_TOKENS + 1)
    encoded = [Encoded(ids[:1], ids[1:most]) for ids in (plain_ids(tokenizer, text) for _, text in texts)]
    rows = [packed_row([e]) for e in encoded]
    means = mean_logprobs(model, rows, tokenizer.pad_token_id, advance)
    return [
        {"id": identity, "nats": -mean[0] * len(row.answers[0]), "tokens": len(row.answers[0])}
        for (identity, _), row, mean in zip(texts, rows, means, strict=True)
    ]
