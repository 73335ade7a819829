"""What came of a rule that abstains, for the report, for rule.json and for summary.json."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from amends.fair._fan.rules import ABSTAINED
from amends.fair._tables.gaps import gap_table, rate_table, rates
from amends.fair._tables.gaps import gaps as gaps_by_fairlearn
from amends.fair.fan import Fan
from amends.report._text import percent
from amends.report.curves import curves
from amends.report.findings import Cell, Chart, Section, Table, render_findings


def rule(found: Fan) -> dict[str, Any]:
    """Return the rule by group as runs of scores with one fate; of two models, what the program gave them to learn."""
    model, (no, yes) = found.model, found.names
    told: dict[str, Any] = {
        "notion": model.notion,
        "eps": model.eps,
        "mode": model.mode,
        "negative": no,
        "positive": yes,
        "threshold_of_base": model.threshold,
        "groups": model.groups_,
        "max_abstain": dict(zip(model.groups_, model.promises_.cap_G.tolist(), strict=True)),
        "max_error": dict(zip(model.groups_, model.promises_.error_G.tolist(), strict=True)),
    }
    if model.mode == "surrogate":
        fates = zip(_cells(found), model.fates_.fate_R3.astype(int).tolist(), strict=True)
        rows = [{"group": group, "label": label, **_fate(fate)} for (group, label), fate in fates]
        return {**told, "rows_by_group_and_label": rows}
    seed = {"drawn_from_cells_with_seed": model.seed_}
    runs = {name: [_run(run) for run in _runs(found, place)] for place, name in enumerate(_groups(found))}
    return {**told, **seed, "by_group": runs}


def summary(found: Fan) -> dict[str, Any]:
    """Return every promise, the rates and gaps behind them, and the curves."""
    kept = found.kept
    return {
        "promises": [
            {**promise._asdict(), "kept": promise.kept, "verdict": promise.verdict} for promise in kept.promises
        ],
        "all_kept": kept.all_kept,
        "rates": {
            str(group): {name: float(rate_G[g]) for name, rate_G in kept.rates.items()}
            for g, group in enumerate(kept.groups)
        },
        "gaps": kept.gaps,
        "gap_of_confidence_abstention": found.gap_by_confidence,
        "held_out": len(found.fate_n),
        "abstained": int((found.fate_n == ABSTAINED).sum()),
        "base_error_on_rows_of_rule": found.model.base_error_,
        "smallest_gap": {
            "max_abstain": found.curve.across.tolist(),
            "by_rule": found.curve.by_rule.tolist(),
            "by_labels": found.curve.by_labels.tolist(),
        },
        "abstention_against_gap": vars(found.traded),
        "applied": len(found.applied),
    }


def page(found: Fan) -> str:
    """Render the report."""
    kept, notion = found.kept, found.model.notion
    gap, share = kept.gaps[notion], float((found.fate_n == ABSTAINED).mean())
    lead = (
        f"On {len(found.fate_n):,} held-out rows the gap in {notion.replace('_', ' ')} went from {gap['before']:.3f} "
        f"to {gap['after']:.3f}, with abstention on {percent(share)} of the rows. "
    )
    num = len(kept.promises)
    unknown = sum(np.isnan(promise.value) for promise in kept.promises)
    broken = sum(not promise.kept for promise in kept.promises) - unknown
    told = [f"{broken} {'is' if broken == 1 else 'are'} broken"] * bool(broken)
    told += [f"{unknown} could not be measured"] * bool(unknown)
    lead += f"Of {num} promises {', '.join(told)}." if told else f"All {num} promises are kept."
    sections = [_promises(found), _groups_section(found), _gaps(found), _trades(found), _rule(found), _use(found)]
    path = found.record["data"]["table"]["path"]
    title = f"A classifier that abstains: {path or 'rows given from Python'}"
    return render_findings(found.record, title, lead, sections)


def _promises(found: Fan) -> Section:
    rows: list[list[Cell]] = [
        [
            p.what,
            "all" if p.group is None else str(p.group),
            p.limit,
            p.value,
            f"{p.low:.3f} to {p.high:.3f}",
            p.verdict,
        ]
        for p in found.kept.promises
    ]
    texts = [
        "The limits were kept on the rows that the rule was made from. Here they are measured on rows that it never "
        "saw. An interval that holds the limit means: too few rows to be sure. The gap counts a row that is abstained "
        "on as not accepted; errors are those on decided rows, above what the base classifier's own errors allow."
    ]
    caption = "95 % intervals, Bayesian bootstrap over the held-out rows."
    return Section("What was promised", texts, tables=[Table(_PROMISED, rows, caption)])


_PROMISED = ("promise", "group", "at most", "found", "interval", "verdict")


def _groups_section(found: Fan) -> Section:
    r, names = found.kept.rates, found.kept.groups
    size_G = np.bincount(found.code_n, minlength=len(names))
    head = ("group", "rows", "accuracy before", "of decided", "change", "not decided", "accepted before", "after")
    rows: list[list[Cell]] = [
        [
            str(name),
            int(size_G[g]),
            float(1 - r["base error"][g]),
            float(1 - r["error of decided"][g]),
            float(r["base error"][g] - r["error of decided"][g]),
            float(r["abstained"][g]),
            float(r["base accepted"][g]),
            float(r["accepted"][g]),
        ]
        for g, name in enumerate(names)
    ]
    hits = (
        "group",
        "true positive rate before",
        "after",
        "of decided",
        "false positive rate before",
        "after",
        "of decided",
    )
    both = ("base {}", "{}", "{} of decided")
    more: list[list[Cell]] = [
        [str(name), *(float(r[form.format(of)][g]) for of in ("true positive", "false positive") for form in both)]
        for g, name in enumerate(names)
    ]
    label = ("group", f"abstained of {found.names[1]}", f"abstained of {found.names[0]}")
    by_label: list[list[Cell]] = [
        [str(name), float(r["abstained of label 1"][g]), float(r["abstained of label 0"][g])]
        for g, name in enumerate(names)
    ]
    texts = ["Before: the base classifier alone, which decides every row. After: with abstention, over whole groups."]
    return Section(
        "Before and after, by group", texts, tables=[Table(head, rows), Table(hits, more), Table(label, by_label)]
    )


def _gaps(found: Fan) -> Section:
    names = np.array([str(name) for name in found.model.groups_], dtype=object)[found.code_n]
    before = rates(found.label_n, found.base_n, names)
    decided_n = found.fate_n != ABSTAINED
    by_form = {
        form: {notion: of[form] for notion, of in found.kept.gaps.items()} for form in ("before", "after", "decided")
    }
    titles = {"before": "before", "after": "after, whole groups", "decided": "after, decided rows only"}
    texts = [
        "Only one notion was limited. To close one gap can open another: look at all of them. Over decided rows alone "
        "a gap can differ much from that over whole groups, as abstention itself need not be spread alike.",
        f"If as many rows are abstained on by confidence, those with scores nearest to the threshold, the gap in "
        f"{found.model.notion.replace('_', ' ')} is {found.gap_by_confidence:.3f}.",
    ]
    tables = [
        gap_table({titles[form]: of for form, of in by_form.items()}),
        rate_table(before, "By fairlearn's MetricFrame: the base classifier."),
    ]
    if decided_n.any():
        after = rates(found.label_n[decided_n], found.fate_n[decided_n], names[decided_n])
        both = {"before": gaps_by_fairlearn(before), "decided rows only": gaps_by_fairlearn(after)}
        tables += [rate_table(after, "By fairlearn: the decided rows."), gap_table(both, "By fairlearn.")]
    return Section("Gaps between groups, by every notion", texts, tables=tables)


def _trades(found: Fan) -> Section:
    curve, traded, notion = found.curve, found.traded, found.model.notion.replace("_", " ")
    reach = {
        "by a rule of this kind": (curve.across, curve.by_rule),
        "no rule can go below": (curve.across, curve.by_labels),
    }
    first = curves(
        reach,
        across="largest abstention of a group",
        up=f"smallest gap, {notion}",
        title="What can be had",
        name="reach",
        limits=(0, None),
        levels={"asked for": found.model.eps},
    )
    order = np.argsort(traded.abstained, kind="stable")
    share, gap, plain = (np.asarray(values)[order] for values in (traded.abstained, traded.gap, traded.by_confidence))
    second = curves(
        {"for the gap": (share, gap), "by confidence": (share, plain)},
        across="share of rows abstained on",
        up=f"gap, {notion}",
        title="Abstention against the gap",
        name="trade",
        limits=(0, None),
    )
    captions = (
        "On the rows that the rule was made from, with all other limits kept. The lower curve is that of a rule which "
        "sees the labels.",
        "Rules by score that abstain as little as each gap needs, measured on the held-out rows, beside abstention on "
        "as many rows with scores nearest to the threshold.",
    )
    charts = [Chart("What can be had", first, captions[0]), Chart("Abstention against the gap", second, captions[1])]
    return Section("What a smaller gap costs", charts=charts)


def _rule(found: Fan) -> Section:
    if found.model.mode == "surrogate":
        texts = [
            "The program saw the labels and gave every row a fate; two models learnt from these rows whether to "
            "decide, and how. Its limits hold for these rows alone: what the models do with others is measured above."
        ]
        fates = zip(_cells(found), found.model.fates_.fate_R3.astype(int).tolist(), strict=True)
        body: list[list[Cell]] = [[str(group), str(label), *fate] for (group, label), fate in fates]
        head = ("group", "label", f"decided {found.names[0]}", f"decided {found.names[1]}", "abstained")
        return Section("What the models were taught", texts, tables=[Table(head, body, "Rows.")])
    body = []
    for place, name in enumerate(_groups(found)):
        for low, high, chances in _runs(found, place):
            body.append([str(name), f"{low:.3f} to {high:.3f}", *(f"{100 * chance:.0f} %" for chance in chances)])
    texts = [
        "By group and score. Where a line has more than one fate, a row's is drawn out of its own cells and the seed: "
        "the same row always has the same."
    ]
    head = ("group", "score", f"decide {found.names[0]}", f"decide {found.names[1]}", "abstain")
    return Section("The rule", texts, tables=[Table(head, body)])


def _use(found: Fan) -> Section:
    texts = [
        "What is abstained on must go to somebody who decides it. How fair the whole is depends on that too, and "
        "nothing here measures it: abstention only moves cases.",
        "The limits were set on past labels. If these are wrong by group, what counts as no error can be one all the "
        "same.",
    ]
    if found.model.use_groups and len(found.model.groups_) > 1:
        texts.append("The rule looks at the group. Where the law does not allow that, find one with --no-use-groups.")
    return Section("Before it is used", texts)


def _groups(found: Fan) -> list[Any]:
    """Return the groups that the rule tells apart."""
    return found.model.groups_ if len(found.model.rule_.chance_GB3) > 1 else [_ALL]


_ALL = "all"


def _cells(found: Fan) -> list[tuple[Any, Any]]:
    return [(group, label) for group in found.model.groups_ for label in found.names]


def _runs(found: Fan, place: int) -> list[tuple[float, float, Sequence[float]]]:
    """Neighbouring bins with the same chances as one: lowest score, highest, chances of the three fates."""
    rule = found.model.rule_
    edges = [0.0, *rule.edge_E.tolist(), 1.0]
    runs: list[tuple[float, float, Sequence[float]]] = []
    for low, high, chances in zip(edges[:-1], edges[1:], rule.chance_GB3[place].tolist(), strict=True):
        if high <= low and runs:
            continue
        if runs and np.allclose(runs[-1][2], chances, atol=1e-6):
            runs[-1] = (runs[-1][0], high, chances)
        else:
            runs.append((low, high, chances))
    return runs


def _run(run: tuple[float, float, Sequence[float]]) -> dict[str, Any]:
    low, high, chances = run
    return {"from": low, "to": high, **_fate([round(chance, 6) for chance in chances])}


def _fate(values: Sequence[float]) -> dict[str, float]:
    return dict(zip(("decide_negative", "decide_positive", "abstain"), values, strict=True))
