"""What was found of samples that were collected: for the report, the data card and summary.json."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from amends.curate._adc.samples import rank_of, words_in
from amends.curate._adc.splits import SPLITS
from amends.curate._pools.flagged import key_of
from amends.curate.adc_clean import Cleaned
from amends.report._text import last_part, percent
from amends.report.card import code_word, plain
from amends.report.findings import Chart, Example, Section, Table, render_findings
from amends.report.grids import matrix

MOST_EXAMPLES, MOST_PAIRS, MOST_LISTED, MOST_RANKS = 20, 20, 100, 5
KINDS = (
    ("the same as", "exact copy"),
    ("nearly the same", "near copy"),
    ("off topic", "off topic"),
    ("label", "label that looks wrong"),
    ("a person", "voted to be of no class"),
)
TITLE = "Samples cleaned"


def summary(found: Cleaned) -> dict[str, Any]:
    """Count what became of rows, classes, ranks and subclasses."""
    looked, agree = found.looked, found.looked.agree
    told: dict[str, Any] = {
        **found.outcome.counts(),
        "dropped_as": dict(_dropped(found)),
        "found_for_two_classes": len(found.disputed),
        "judged": _judged(found),
        "look_wrong": None if looked.detector is None else int(looked.detector.flag_.sum()),
        "not_judged_because": looked.refusal,
        "classes": [dict(zip(("label", "rows", "kept", "look_wrong"), row, strict=True)) for row in _classes(found)],
        "by_rank": [dict(zip(("from", "to", "judged", "look_wrong"), row, strict=True)) for row in _ranks(found)],
        "subclasses_not_told_apart": [pair._asdict() for pair in found.mixed],
        "splits": dict(_splits(found)),
        "sources": _counted(found, "source"),
        "licences": _counted(found, "licence"),
        "voted": _voted(found),
    }
    if agree is not None:
        told["agreement"] = {**agree._asdict(), "above_chance": agree.above_chance}
    if looked.transition is not None:
        told["transition"] = {"labels": looked.names, "matrix": np.round(looked.transition.matrix_KK, 6).tolist()}
    return told


def _dropped(found: Cleaned) -> list[tuple[str, int]]:
    """Count the kinds of reasons for which rows were dropped."""
    disputed, counts = set(found.disputed), Counter[str]()
    for i, verdict in enumerate(found.outcome.verdicts):
        if verdict.fate == "dropped":
            reason = str(verdict.reason)
            kind = next(name for start, name in KINDS if reason.startswith(start))
            counts["found for two classes" if i in disputed else kind] += 1
    return counts.most_common()


def _judged(found: Cleaned) -> int:
    return sum(score is not None for score in found.outcome.added["noise_score"])


def _classes(found: Cleaned) -> list[tuple[str, int, int, int | None]]:
    """Label; rows that were found for it, rows that have it now, and how many of the first look wrong."""
    before = Counter(name for name in found.samples.labels if name is not None)
    column = found.record["config"]["label"]
    after = Counter(key_of(row[column]) for row in found.outcome.of("kept"))
    wrong = Counter(
        name for name, flag in zip(found.samples.labels, found.outcome.added["label_error"], strict=True) if flag
    )
    asked = found.looked.detector is not None
    return [(name, before[name], after[name], wrong[name] if asked else None) for name in sorted(before)]


def _ranks(found: Cleaned) -> list[tuple[int, int, int, int]]:
    """First and last rank, rows judged and how many of them look wrong, in parts of about equal size."""
    flags = found.outcome.added["label_error"]
    ranked = sorted(
        (rank, i)
        for i, row in enumerate(found.samples.rows)
        if flags[i] is not None and (rank := rank_of(row)) is not None
    )
    if not ranked:
        return []
    ranks = np.array([rank for rank, _ in ranked])
    edges = np.unique(np.quantile(ranks, np.linspace(0, 1, MOST_RANKS + 1)[1:-1], method="lower"))
    part = np.searchsorted(edges, ranks, side="left")
    told = []
    for p in np.unique(part):
        here = np.flatnonzero(part == p)
        wrong = sum(bool(flags[ranked[n][1]]) for n in here)
        told.append((int(ranks[here[0]]), int(ranks[here[-1]]), len(here), wrong))
    return told


def _splits(found: Cleaned) -> list[tuple[str, int]]:
    counts = Counter(found.outcome.added["split"])
    return [(name, counts[name]) for name in SPLITS]


def _counted(found: Cleaned, column: str) -> dict[str, int]:
    """Count a column of the rows that are kept; the most frequent first."""
    kept = (
        row for row, verdict in zip(found.samples.rows, found.outcome.verdicts, strict=True) if verdict.fate == "kept"
    )
    return dict(Counter(words_in(row, column) or "not known" for row in kept).most_common())


def _voted(found: Cleaned) -> dict[str, int]:
    wrong = sum(vote != found.samples.labels[i] for i, vote in found.votes.items())
    return {"rows": len(found.votes), "another_label_or_none": wrong}


def _unchecked(found: Cleaned) -> list[str]:
    """Say what nobody looked at."""
    told = ["Whether a label that no neighbour contradicts is right: a class that is always confused looks right."]
    if found.looked.refusal:
        told.append(f"Wrong labels and what is off topic: {found.looked.refusal}.")
    if not _ranks(found):
        told.append("How labels err by rank: no row that was judged has a rank.")
    if set(_counted(found, "licence")) == {"not known"}:
        told.append("Licences: no row that is kept has one.")
    if not found.votes:
        told.append("Any row by a person.")
    told.append("Faces, names and other personal data; rights of third parties.")
    told.append(
        "The test split comes from the same search as the rest and shares its errors. Collect test data from another "
        "source, or have it looked at."
    )
    return told


# Report -------------------------------------------------------------------------------------------------------------


def page(found: Cleaned) -> str:
    """Render the report."""
    counts, judged = found.outcome.counts(), _judged(found)
    lead = f"Of {counts['rows']:,} rows {counts['kept']:,} were kept, {counts['dropped']:,} dropped and "
    lead += f"{counts['refused']:,} refused. "
    if found.looked.detector is None:
        lead += "No label was judged."
    else:
        wrong = int(found.looked.detector.flag_.sum())
        lead += f"{wrong:,} of {judged:,} labels look wrong ({percent(wrong / judged)})."
    parts = [_fates(found), _by_class(found), _noise(found), _by_rank(found), _subclasses(found), _examples(found)]
    parts.append(Section("What was not checked", _unchecked(found)))
    title = f"{TITLE}: {found.record['data']['pool']['path'] or 'rows given from Python'}"
    return render_findings(found.record, title, lead, [part for part in parts if part])


def _fates(found: Cleaned) -> Section:
    refused = Counter(str(v.reason) for v in found.outcome.verdicts if v.fate == "refused").most_common()
    tables = [Table(("rows", "number"), [*found.outcome.counts().items()])]
    for head, rows in (("dropped as", _dropped(found)), ("refused because", refused), ("split", _splits(found))):
        if rows:
            tables.append(Table((head, "rows"), rows))
    voted = _voted(found)
    texts = (
        [f"A person looked at {voted['rows']} rows and gave {voted['another_label_or_none']} another label, or none."]
        if found.votes
        else []
    )
    return Section("What became of the rows", texts, tables=tables)


def _by_class(found: Cleaned) -> Section:
    rows = [(name, *map(_cell, numbers)) for name, *numbers in _classes(found)]
    tables = [Table(("class", "found", "kept", "look wrong"), rows[:MOST_LISTED])]
    if (d := found.looked.detector) is not None:
        names, labels = found.looked.names, found.samples.labels
        pairs = Counter((labels[i], names[d.suggested_[n]]) for n, i in enumerate(found.looked.judged) if d.flag_[n])
        if pairs:
            told = [(str(own), other, num) for (own, other), num in pairs.most_common(MOST_PAIRS)]
            tables.append(Table(("found for", "rather", "rows"), told, "Labels that look wrong; most first."))
    return Section("Classes", tables=tables)


def _cell(value: int | None) -> str | int:
    return "not judged" if value is None else value


def _noise(found: Cleaned) -> Section | None:
    agree, T = found.looked.agree, found.looked.transition
    if agree is None:
        return None
    text = f"Labels of nearest neighbours agree in {agree.pair:.3f} of pairs, {agree.pair_by_chance:.3f} by chance: "
    texts = [f"{text}{agree.above_chance:.2f} above chance. What neighbours say of labels is worth as much as that."]
    charts = []
    if T is not None:
        names = found.looked.names
        svg = matrix(
            T.matrix_KK.tolist(), names, names, name="noise", title="How labels err", down="truth", across="found for"
        )
        charts.append(Chart("Transition matrix", svg, "Chance to be found for each label (across) given the truth."))
    return Section("How labels err", texts, charts)


def _by_rank(found: Cleaned) -> Section | None:
    rows = [(f"{a} to {b}", num, wrong, percent(wrong / num)) for a, b, num, wrong in _ranks(found)]
    text = "Rank 0 is the best hit of a query. Where the share grows with the rank, take fewer hits of each query."
    head = ("rank", "judged", "look wrong", "share")
    return Section("By rank in the search", [text], tables=[Table(head, rows)]) if rows else None


def _subclasses(found: Cleaned) -> Section | None:
    if not found.mixed:
        return None
    text = (
        "Neighbours do not tell these apart: 0 is never mixed, 1 as by chance. Merge them in the design, or name what "
        "sets them apart; nothing was merged here."
    )
    rows = [(pair.label, pair.one, pair.other, pair.mixing) for pair in found.mixed[:MOST_PAIRS]]
    return Section("Subclasses to merge", [text], tables=[Table(("class", "one", "other", "mixed"), rows)])


def _examples(found: Cleaned) -> Section | None:
    scores = found.outcome.added["noise_score"]
    first = {i: (0, 0.0) for i in found.disputed} | {
        i: (1, -scores[i]) for i, flag in enumerate(found.outcome.added["label_error"]) if flag
    }
    off = [i for i, verdict in enumerate(found.outcome.verdicts) if str(verdict.reason).startswith("off topic")]
    first |= {i: (1, -0.99) for i in off}
    chosen = _mixed_by_kind(first)
    examples = [
        Example(_shown(found, i), str(found.outcome.verdicts[i].reason), found.samples.rows[i].where) for i in chosen
    ]
    return Section("Examples", examples=examples) if examples else None


def _mixed_by_kind(first: dict[int, tuple[int, float]]) -> list[int]:
    """Take some of what was found for two classes, and the most doubtful of the others."""
    order = sorted(first, key=lambda i: (*first[i], i))
    disputed = [i for i in order if first[i][0] == 0]
    half = MOST_EXAMPLES // 2
    return [*disputed[:half], *[i for i in order if first[i][0]][: MOST_EXAMPLES - min(half, len(disputed))]]


def _shown(found: Cleaned, i: int) -> str:
    config = found.record["config"]
    if found.samples.kind == "text":
        return found.samples.texts[i]
    return f"(picture) {words_in(found.samples.rows[i], config['path'])}"


# Data card ----------------------------------------------------------------------------------------------------------


def card(found: Cleaned) -> str:
    """Write the data card, in Markdown; texts from the data are escaped, and no sample is in it."""
    counts, record, looked = found.outcome.counts(), found.record, found.looked
    pool = record["data"]["pool"]
    name = code_word(last_part(pool["path"] or "") or "rows")
    lines = [
        "# Data card",
        "",
        f"{counts['kept']:,} {'texts' if found.samples.kind == 'text' else 'pictures'} in "
        f"{sum(kept > 0 for _, _, kept, _ in _classes(found))} classes, cleaned by `amends curate adc_clean` "
        f"({plain(record['amends'])}) from {counts['rows']:,} rows of `{name}` "
        f"(SHA-256 `{pool['sha256']}`).",
        "Labels come from the queries that found the samples; nobody labelled them one by one."
        if any(words_in(row, "query") for row in found.samples.rows)
        else "Labels are those of the rows; no query is known that found them.",
        "",
        *_table(("rows", "number"), [*counts.items()]),
        *_table(("dropped as", "rows"), _dropped(found)),
        *_table(("split", "rows"), _splits(found)),
        "No two splits hold copies of one sample.",
        "",
        "## Classes",
        "",
        *_table(("class", "found", "kept", "look wrong"), [(a, b, c, _cell(d)) for a, b, c, d in _classes(found)]),
        "## Where it is from",
        "",
        *_table(("source", "rows kept"), [*_counted(found, "source").items()][:MOST_LISTED]),
        *_table(("licence", "rows kept"), [*_counted(found, "licence").items()][:MOST_LISTED]),
        "## Noise",
        "",
    ]
    if looked.detector is None:
        lines += [f"Not measured: {plain(looked.refusal)}.", ""]
    else:
        judged, wrong = _judged(found), int(looked.detector.flag_.sum())
        done = {"drop": "dropped", "keep": "kept and marked", "relabel": "given the suggested label or dropped"}
        told = done[record["config"]["flagged"]]
        method = plain(record["config"]["method"])
        lines += [
            f"{wrong:,} of {judged:,} labels look wrong by {method} ({percent(wrong / judged)});"
            f" they were {told}. That is an estimate by neighbours or a model, and no check by people.",
            "",
        ]
        lines += _table(("rank", "judged", "look wrong"), [(f"{a} to {b}", n, w) for a, b, n, w in _ranks(found)])
    if found.votes:
        voted = _voted(found)
        lines += [
            f"People looked at {voted['rows']} rows: {voted['another_label_or_none']} got another label or none.",
            "",
        ]
    lines += ["## What was not checked", "", *(f"- {plain(text)}" for text in _unchecked(found)), ""]
    return "\n".join(lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    if not rows:
        return []
    said = [f"| {' | '.join(f'{c:,}' if isinstance(c, int) else plain(c) for c in row)} |" for row in rows]
    return [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}", *said, ""]
