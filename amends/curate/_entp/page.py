"""What came of fusing: the rows that are written, the numbers, and the sections of the report."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from amends.curate._entp.benchmarks import words_of
from amends.curate._entp.drafts import PARTS, Draft
from amends.curate._entp.representatives import Grouped
from amends.curate._entp.rules import RULES, rouge_l
from amends.curate._entp.terms import missing, recall
from amends.curate._pools.pool import Outcome, Verdict
from amends.io.rows import Row
from amends.report.findings import Example, Section, Table

MOST_EXAMPLES = 8
_STATES = {
    "low score": "low score",
    "score": "between the cuts",
    "unusable: same prompt and answer": "unusable: same prompt and answer as an earlier row",
    "unusable: shares a run": "unusable: shares a run of words with the benchmark",
    "looks like language": "in another language",
}
STATES = ("accepted", "rejected", "incompatible")


def fused_row(draft: Draft, generator: str) -> dict[str, Any]:
    """Row to train on: instruction and output, where they come from, and what was checked (as JSON)."""
    return {
        "id": draft.id,
        "instruction": draft.texts.get("instruction"),
        "output": draft.texts.get("response"),
        "source_ids": [sample.id for sample in draft.samples],
        "source_where": [sample.where for sample in draft.samples],
        "licences": draft.licences,
        "generator": generator,
        "rounds": [_repairs(draft, part) for part in PARTS],
        "grade": draft.grade,
        "checks": json.dumps({part: draft.losses.get(part) for part in PARTS}, ensure_ascii=False),
        "status": draft.status,
    }


def pair_row(draft: Draft, generator: str) -> dict[str, Any]:
    """All that is known of a pair, whatever became of it."""
    return fused_row(draft, generator) | {
        "reason": draft.reason,
        "no_grade": draft.no_grade,
        "domain": draft.domain,
        "keep": {part: [term._asdict() for term in draft.keep[part]] for part in PARTS},
        "history": {part: draft.history.get(part, []) for part in PARTS},
        "conversations": dict(draft.asked),
        **measures(draft),
    }


def _repairs(draft: Draft, part: Any) -> int | None:
    return len(draft.history[part]) - 1 if part in draft.history else None


def measures(draft: Draft) -> dict[str, float | None]:
    """Key-term recall, novelty and density of a draft; None where it has not both texts.

    Recall: share of the key terms of its sources that stand in it. Novelty: 1 - largest ROUGE-L F1 to a source.
    Density: key terms a word, divided by those of the sources one after the other.
    """
    text = "\n".join(draft.texts.get(part, "") for part in PARTS)
    if not all(draft.texts.get(part) for part in PARTS):
        return {"key_term_recall": None, "novelty": None, "density": None}
    terms = list(dict.fromkeys(term for part in PARTS for term in draft.keep[part]))
    sources = [f"{sample.instruction}\n{sample.response}" for sample in draft.samples]
    num_words, num_before = len(words_of(text)), sum(len(words_of(source)) for source in sources)
    kept = len(terms) - len(missing(terms, text))
    return {
        "key_term_recall": recall(terms, text),
        "novelty": 1 - max(rouge_l(text, source) for source in sources),
        "density": (kept / num_words) / (len(terms) / num_before) if terms and num_words else None,
    }


def outcome_of(
    rows: Sequence[Row], verdicts: list[Verdict], low: Sequence[int], grouped: Grouped, drafts: Sequence[Draft]
) -> Outcome:
    """Say of every row what became of it; a low row is dropped; what it teaches stands in its child, if anywhere."""
    return Outcome(rows, verdicts, fates(verdicts, low, grouped, drafts))


def fates(
    verdicts: list[Verdict], low: Sequence[int], grouped: Grouped, drafts: Sequence[Draft]
) -> dict[str, list[Any]]:
    """Say in the verdicts what became of low rows; give the columns `cluster` and `fused_into` of all."""
    cluster: list[int | None] = [None] * len(verdicts)
    fused: list[str | None] = [None] * len(verdicts)
    chosen = {low[i] for some in grouped.representatives for i in some}
    size_C = grouped.clusters.size_C
    fate = {sample.row: draft for draft in drafts for sample in draft.samples}
    for number, label in zip(low, grouped.clusters.label_N.tolist(), strict=True):
        cluster[number] = label
        draft = fate.get(number)
        if draft is not None and draft.status == "accepted":
            fused[number], told = draft.id, f"fused into {draft.id}"
        elif draft is not None:
            told = f"in {draft.id}, {draft.status}" + (f": {draft.reason}" if draft.reason else "")
        elif number in chosen:
            told = "no pair" if size_C[label] > 1 else "alone in its cluster, no pair"
        else:
            told = "others stand for its cluster"
        verdicts[number] = Verdict("dropped", f"{verdicts[number].reason}; {told}")
    return {"cluster": cluster, "fused_into": fused}


def _state(verdict: Verdict) -> str:
    """Sum up why a row is where it is, without what is its own."""
    if verdict.fate == "kept":
        return "high score"
    reason = str(verdict.reason)
    return next((told for start, told in _STATES.items() if reason.startswith(start)), reason[:80])


def summary(drafts: Sequence[Draft], grouped: Grouped, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Numbers of the groups and of the fusion; a mean without a value is None, with n = 0."""
    size_C = grouped.clusters.size_C
    found: Counter[str] = Counter(draft.status for draft in drafts)
    rows = [pair_row(draft, "") for draft in drafts]
    return {
        "purge": dict(Counter(_state(verdict) for verdict in verdicts)),
        "groups": {
            "theta": grouped.theta,
            "silhouettes": grouped.silhouettes,
            "clusters": len(size_C),
            "largest": int(size_C.max()),
            "singles": int((size_C == 1).sum()),
            "share_of_singles": float((size_C == 1).sum() / size_C.sum()),
            "representatives": sum(len(rows) for rows in grouped.representatives),
            "pairs": len(drafts),
        },
        "fusion": {
            **{state: found[state] for state in STATES},
            "accept_rate": found["accepted"] / len(drafts) if drafts else None,
            "rejected_for": dict(Counter(_cause(draft) for draft in drafts if draft.status == "rejected")),
            "conversations": dict(sum((draft.asked for draft in drafts), Counter[str]())),
            "rule_failures": {
                part: {
                    "first": _failures(draft.history[part][0] for draft in drafts if part in draft.history),
                    "last": _failures(draft.losses[part] for draft in drafts if part in draft.losses),
                }
                for part in PARTS
            },
            "grades": {
                **_mean(rows, "grade", STATES),
                "unreadable": sum(draft.no_grade is not None for draft in drafts),
            },
            **{
                name: {"accepted": _mean(rows, name, ("accepted",)), "all": _mean(rows, name, STATES)}
                for name in ("key_term_recall", "novelty", "density")
            },
        },
    }


def _cause(draft: Draft) -> str:
    """Say what a draft was rejected for; of a domain that cannot be read without its details."""
    return "domain: cannot be read" if draft.domain is None else str(draft.reason)


def _failures(losses: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    counts = Counter(name for loss in losses for name in loss)
    return {name: counts[name] for name in RULES if counts[name]}


def _mean(rows: Sequence[Mapping[str, Any]], name: str, states: Sequence[str]) -> dict[str, Any]:
    values = [row[name] for row in rows if row["status"] in states and row[name] is not None]
    return {"mean": sum(values) / len(values) if values else None, "n": len(values)}


def lead(told: Mapping[str, Any]) -> str:
    """Say in a sentence or two what came of it."""
    groups, fusion = told["groups"], told["fusion"]
    return (
        f"{told['rows']['rows']} rows: {told['rows']['kept']} with a high score are kept as they are, and "
        f"{told['low']} with a low one made {groups['pairs']} pairs, of which "
        f"{fusion['accepted']} were fused and accepted."
    )


def sections(told: Mapping[str, Any], drafts: Sequence[Draft], calls: Mapping[str, Any]) -> list[Section]:
    """Sections of the report."""
    groups, fusion, kept_rows = told["groups"], told["fusion"], told["rows"]
    rules = [
        [
            name + ("" if RULES[name].hard else " (soft)"),
            *(fusion["rule_failures"][part][when].get(name, 0) for part in PARTS for when in ("first", "last")),
        ]
        for name in RULES
    ]
    names = {"key_term_recall": "key-term recall", "novelty": "novelty", "density": "density against the sources"}
    return [
        Section(
            "Purge",
            ["The cut between low and high is a choice of this tool; the paper's is not known."],
            tables=[
                Table(("in the end", "rows"), [[name, count] for name, count in kept_rows.items()]),
                Table(("what became of rows at first", "rows"), [[n, c] for n, c in told["purge"].items()]),
            ],
        ),
        Section(
            "Groups",
            [
                f"Rows are linked from cosine {groups['theta']:g} on: {groups['clusters']} clusters, the largest of "
                f"{groups['largest']}. Alone in theirs are {groups['singles']} rows, {groups['share_of_singles']:.1%}."
            ],
            tables=[Table(("least cosine", "mean silhouette"), [list(each) for each in groups["silhouettes"].items()])]
            if groups["silhouettes"]
            else [],
        ),
        Section(
            "Fusion",
            tables=[
                Table(
                    ("pairs", "number"),
                    [*([state, fusion[state]] for state in STATES), ["share accepted", fusion["accept_rate"]]],
                ),
                *(
                    [Table(("rejected for", "pairs"), reasons)]
                    if (reasons := list(fusion["rejected_for"].items()))
                    else []
                ),
                Table(
                    ("mean", "accepted", "n", "all with texts", "n"),
                    [
                        [told_as, *(fusion[name][of][what] for of in ("accepted", "all") for what in ("mean", "n"))]
                        for name, told_as in names.items()
                    ],
                ),
                Table(
                    ("rule broken", "instruction: first", "best", "response: first", "best"),
                    rules,
                    "By the first candidate, and by the best one after repairs.",
                ),
                *([_graded(fusion["grades"])] if fusion["conversations"].get("grade") else []),
                Table(("asking", "number"), [[name, value] for name, value in calls.items()]),
            ],
        ),
        Section("Examples", examples=_examples(drafts)),
    ]


def _graded(grades: Mapping[str, Any]) -> Table:
    rows = [["graded", grades["n"]], ["no grade could be read", grades["unreadable"]], ["mean grade", grades["mean"]]]
    return Table(("by the judge", "number"), rows, "From 1 to 5. A draft without a grade stays what it was.")


def _examples(drafts: Sequence[Draft]) -> list[Example]:
    """Show the first fused and the first rejected drafts, with their sources."""
    shown = []
    for state, most in (("accepted", MOST_EXAMPLES), ("rejected", MOST_EXAMPLES // 2)):
        for draft in [draft for draft in drafts if draft.status == state][:most]:
            sources = [f"{sample.instruction}\n→ {sample.response}" for sample in draft.samples]
            written = "\n→ ".join(draft.texts.get(part) or "(nothing readable)" for part in PARTS)
            what = state if draft.reason is None else f"{state}: {draft.reason}"
            places = ", ".join(sample.where for sample in draft.samples)
            shown.append(Example("\n\n".join([written, *sources]), what, places))
    return shown
