"""What was found of the labels, for the report and for summary.json."""

from collections import Counter
from typing import Any

import numpy as np

from amends.curate.label_errors import LabelErrors
from amends.report._text import percent
from amends.report.findings import Chart, Example, Section, Table, render_findings
from amends.report.grids import matrix

MOST_EXAMPLES, MOST_PAIRS, MOST_IN_CHART = 20, 20, 12


def summary(found: LabelErrors) -> dict[str, Any]:
    """Count by class and pair, and say, where it was learnt, how labels err."""
    told: dict[str, Any] = {
        **found.outcome.counts(),
        "looked_at": len(found.used),
        "look_wrong": int(found.detector.flag_.sum()),
        "classes": [dict(zip(("label", "rows", "look_wrong"), row, strict=True)) for row in _classes(found)],
        "pairs": [dict(zip(("label", "suggested", "rows"), row, strict=True)) for row in _pairs(found)],
    }
    if (agree := getattr(found.detector, "agreement_", None)) is not None:
        told["agreement"] = {**agree._asdict(), "above_chance": agree.above_chance}
    if (T := getattr(found.detector, "transition_", None)) is not None:
        told["transition"] = T.matrix_KK.tolist()
        told["prior"] = T.prior_K.tolist()
    return told


def page(found: LabelErrors) -> str:
    """Render the report."""
    counts, wrong = found.outcome.counts(), int(found.detector.flag_.sum())
    path = found.record["data"]["pool"]["path"]
    judged = int(sum(why is None for why in found.detector.why_not_))
    lead = f"{wrong:,} of {judged:,} labels look wrong ({percent(wrong / judged)}). Of {counts['rows']:,} rows "
    lead += f"{counts['kept']:,} were kept, {counts['dropped']:,} dropped and {counts['refused']:,} refused."
    parts = [_where(found), _noise(found), _examples(found), _rows(found)]
    title = f"Labels of {path or 'rows given from Python'}"
    return render_findings(found.record, title, lead, [part for part in parts if part])


def _where(found: LabelErrors) -> Section:
    tables = [
        Table(
            ("label", "rows", "look wrong", "share"),
            [(str(name), rows, wrong, percent(wrong / rows)) for name, rows, wrong in _classes(found)],
        )
    ]
    if pairs := _pairs(found):
        rows = [(str(own), str(other), num) for own, other, num in pairs[:MOST_PAIRS]]
        tables.append(Table(("label", "rather", "rows"), rows, "What stands there, and what is suggested; most first."))
    return Section("Where labels look wrong", tables=tables)


def _noise(found: LabelErrors) -> Section | None:
    agree, T = (getattr(found.detector, name, None) for name in ("agreement_", "transition_"))
    if agree is None:
        return None
    texts = [
        f"Labels of nearest neighbours agree in {agree.pair:.3f} of pairs, {agree.pair_by_chance:.3f} by chance: "
        f"{agree.above_chance:.2f} above chance. What neighbours say of labels is worth as much as they have in common."
    ]
    charts = []
    if T is not None and len(T.prior_K) <= MOST_IN_CHART:
        names = [str(found.names[number]) for number in found.detector.classes_]
        svg = matrix(
            T.matrix_KK.tolist(), names, names, name="noise", title="How labels err", down="truth", across="label"
        )
        charts.append(Chart("Transition matrix", svg, "Chance of each label (across) given the truth (down)."))
    return Section("How labels err", texts, charts)


def _examples(found: LabelErrors) -> Section | None:
    d = found.detector
    sure = found.outcome.added["confidence"]
    order = sorted(np.flatnonzero(d.flag_).tolist(), key=lambda n: (-d.noise_score_[n], -sure[found.used[n]], n))
    examples = []
    for n in order[:MOST_EXAMPLES]:
        i = found.used[n]
        text = found.texts[i] if found.texts else "(no column of text was named)"
        examples.append(Example(text, str(found.outcome.verdicts[i].reason), found.outcome.rows[i].where))
    return Section("The most doubtful labels", examples=examples) if examples else None


def _rows(found: LabelErrors) -> Section:
    reasons = Counter(v.reason for v in found.outcome.verdicts if v.fate == "refused")
    counts = found.outcome.counts()
    tables = [Table(("rows", "number"), [(name, num) for name, num in counts.items()])]
    if reasons:
        rows = [(str(reason), num) for reason, num in reasons.most_common()]
        tables.append(Table(("refused because", "rows"), rows))
    return Section("What became of the rows", tables=tables)


def _classes(found: LabelErrors) -> list[tuple[Any, int, int]]:
    """Label, rows with it, and how many of them look wrong."""
    labels_n, d = found.labels_n, found.detector
    return [(found.names[c], int((labels_n == c).sum()), int(d.flag_[labels_n == c].sum())) for c in d.classes_]


def _pairs(found: LabelErrors) -> list[tuple[Any, Any, int]]:
    """Label, suggested label, and how many rows; the commonest first."""
    labels_n, d = found.labels_n, found.detector
    counts = Counter(zip(labels_n[d.flag_].tolist(), d.suggested_[d.flag_].tolist(), strict=True))
    return [(found.names[own], found.names[other], num) for (own, other), num in counts.most_common()]
