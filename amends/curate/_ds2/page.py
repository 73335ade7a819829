"""What DS2 found, for the report and for noise.json."""

from typing import Any

import numpy as np

from amends.curate._pools.pool import FATES
from amends.curate.ds2 import Curation
from amends.maths.transition import MISSING, consensus_shares
from amends.report._text import percent
from amends.report.findings import Chart, Example, Section, Table, render_findings
from amends.report.grids import matrix, shares

MOST_EXAMPLES = 12


def summary(found: Curation) -> dict[str, Any]:
    """How the ratings err, in numbers."""
    told: dict[str, Any] = {"levels": [{"name": f"{n:g}", "ratings": of} for n, of in _named_levels(found)]}
    if found.asked:
        told["asked"] = found.asked
    if found.raters is not None:
        of = found.raters
        told["raters"] = {
            "matrices": of.matrices_MKK.tolist(),
            "prior": of.prior_K.tolist(),
            "agreement": _agreement(of.agreement),
            "misfit": of.misfit,
        }
    if (c := found.curator) is not None:
        told["neighbours"] = {
            "names": _names(c),
            "transition": c.transition_.matrix_KK.tolist(),
            "transition_low": c.interval_.low_KK.tolist(),
            "transition_high": c.interval_.high_KK.tolist(),
            "prior": c.transition_.prior_K.tolist(),
            "residual": c.transition_.residual,
            "agreement": _agreement(c.agreement_),
            "twins_left_out": c.num_twins_,
            "siblings_left_out": c.num_siblings_,
        }
        told["changed"] = int((c.curated_ != _raw(found)).sum())
    return told


def page(found: Curation) -> str:
    """Render the report."""
    counts = found.outcome.counts()
    path = found.record["data"]["pool"]["path"]
    lead = f"Of {counts['rows']:,} rows {counts['kept']:,} were kept, {counts['dropped']:,} dropped and "
    lead += f"{counts['refused']:,} refused."
    if found.curator is not None:
        changed = int((found.curator.curated_ != _raw(found)).sum())
        right = float(found.curator.transition_.prior_K @ np.diag(found.curator.transition_.matrix_KK))
        lead += f" About {percent(right)} of the ratings are right by the noise model; {changed:,} were replaced."
    parts = [_noise(found), _raters(found), _changed(found), _selected(found), _rows(found)]
    title = f"Curated ratings of {path or 'rows given from Python'}"
    return render_findings(found.record, title, lead, [part for part in parts if part])


def _noise(found: Curation) -> Section | None:
    if (c := found.curator) is None:
        return None
    names, T, p, agree = _names(c), c.transition_.matrix_KK, c.transition_.prior_K, c.agreement_
    seen_KKK, fitted_KKK = c.counts_ / c.counts_.sum(), consensus_shares(T, p)
    seen_KK, fitted_KK = seen_KKK.sum(axis=2), fitted_KKK.sum(axis=2)
    rows: list[list[Any]] = [
        [
            name,
            float(seen_KK[i].sum()),
            float(fitted_KK[i].sum()),
            float(seen_KK[i, i]),
            float(fitted_KK[i, i]),
            float(p[i]),
            f"{T[i, i]:.2f} ({c.interval_.low_KK[i, i]:.2f} to {c.interval_.high_KK[i, i]:.2f})",
        ]
        for i, name in enumerate(names)
    ]
    head = (
        "rating",
        "share",
        "fitted",
        "of neighbours too",
        "fitted",
        "share of the truth",
        "rated right, 95 % interval",
    )
    texts = [
        f"Ratings of nearest neighbours agree in {agree.pair:.3f} of pairs, {agree.pair_by_chance:.3f} by chance: "
        f"{agree.above_chance:.2f} above chance. All of a row and its two nearest agree in {agree.three:.3f}, "
        f"{agree.three_by_chance:.3f} by chance.",
        "The noise model takes it that a row and its two nearest neighbours share their true score. Where they do not, "
        "that counts as noise of the rater, and the ratings alone cannot tell the two apart.",
        f"Root of the summed squared differences between counted and fitted shares: {c.transition_.residual:.4f}. Left "
        f"out of the lists of neighbours: {c.num_twins_:,} twins and {c.num_siblings_:,} siblings.",
    ]
    chart = matrix(T.tolist(), names, names, name="noise", title="How ratings err", down="true score", across="rating")
    caption = "Chance of each rating (across) given the true score (down), learnt without any true score."
    return Section(
        "How the ratings err",
        texts,
        [Chart("Transition matrix", chart, caption)],
        [Table(head, rows, "Counted among neighbours, beside what the fitted model gives.")],
    )


def _raters(found: Curation) -> Section | None:
    if (r := found.raters) is None:
        return None
    names, columns = [f"{n:g}" for n in found.levels.names], found.sources
    shown = list(zip(columns, r.matrices_MKK, strict=True))
    if found.record["config"]["exchangeable"]:
        shown = [(", ".join(columns), r.matrices_MKK[0])]
    charts = [
        Chart(
            column,
            matrix(
                T.tolist(),
                names,
                names,
                name=f"rater-{m}",
                title=f"How {column} errs",
                down="true score",
                across="rating",
            ),
        )
        for m, (column, T) in enumerate(shown)
    ]
    first_n = found.levels.labels_NM[:, 0]
    there_n = first_n != MISSING
    counts = np.zeros((len(names), len(names)))
    np.add.at(counts, (first_n[there_n], r.labels_N[there_n]), 1)
    charts.append(
        Chart(
            "Put together",
            matrix(counts.tolist(), names, names, name="together", title="Put together", down=f"rating, {columns[0]}",
                   across="rating of all", digits=0),
            f"Rows by their rating in {columns[0]} and by what all ratings say.",
        )
    )  # fmt: skip
    texts = [
        f"Each row got the rating that is likeliest after those of {len(columns)} columns. Of the "
        f"{r.agreement.num_rows:,} rows rated by all of {', '.join(columns[m] for m in r.three)}, the first two "
        f"agree in {r.agreement.pair:.3f}, {r.agreement.pair_by_chance:.3f} by chance; all three in "
        f"{r.agreement.three:.3f}, {r.agreement.three_by_chance:.3f} by chance.",
        f"Misfit {r.misfit:.4f}: the share of rows by which counted and fitted triples differ. Raters who lean on each "
        "other make it larger, or their agreement passes for truth.",
    ]
    table = Table(("true score", "share"), [[name, float(share)] for name, share in zip(names, r.prior_K, strict=True)])
    return Section("How the raters err", texts, charts, [table])


def _changed(found: Curation) -> Section | None:
    if (c := found.curator) is None:
        return None
    raw_n, names = _raw(found), found.levels.names
    place = [np.searchsorted(np.sort(names), values) for values in (raw_n, c.curated_)]
    table = np.zeros((len(names), len(names)))
    np.add.at(table, tuple(place), 1)
    labels = [f"{n:g}" for n in np.sort(names)]
    changed_n = np.flatnonzero(raw_n != c.curated_)
    order = changed_n[np.argsort(-c.confidence_[changed_n], kind="stable")][:MOST_EXAMPLES].tolist()
    examples = [
        Example(
            found.texts[found.used[n]] if found.texts else "(no text column was named)",
            f"{raw_n[n]:g} → {c.curated_[n]:g}, confidence {c.confidence_[n]:.2f}",
            found.outcome.rows[found.used[n]].where,
        )
        for n in order
    ]
    flagged, judged = int((c.error_prob_ > 0.5).sum()), int(np.isfinite(c.error_prob_).sum())
    texts = [
        f"{flagged:,} of {judged:,} ratings that were judged are called wrong. {len(changed_n):,} of them were "
        f"replaced; the others keep their rating, since the confidence in another one is below {c.confidence:g}."
    ]
    if examples:
        texts.append(f"Below are the {len(examples)} changes with the highest confidence.")
    chart = matrix(table.tolist(), labels, labels, name="changed", title="Ratings before and after",
                   down="rating", across="curated rating", digits=0)  # fmt: skip
    return Section("What changed", texts, [Chart("Rows by rating and curated rating", chart)], examples=examples)


def _selected(found: Curation) -> Section:
    curated, tail = found.outcome.added["curated"], found.outcome.added["long_tail"]
    kept, names = set(found.selected), np.sort(found.levels.names)
    labels = [f"{n:g}" for n in names]
    sets = {"pool": found.used, "selected": found.selected}
    of, rows = {}, list[dict[str, Any]]()
    has_tail = any(value is not None for value in tail)
    for name, numbers in sets.items():
        counts = np.array([sum(curated[i] == level for i in numbers) for level in names])
        of[name] = (counts / max(1, len(numbers))).tolist()
        far = [tail[i] for i in numbers if tail[i] is not None]
        row = {
            "rows": name,
            "number": len(numbers),
            "mean curated rating": float(np.mean([curated[i] for i in numbers])),
        }
        if far:
            row["mean long-tail score"] = float(np.mean(far))
        if found.texts:
            row["median length of the text, characters"] = int(np.median([len(found.texts[i]) for i in numbers]))
        rows.append(row)
    chart = shares(of, labels, name="selected", title="Curated ratings, pool and selected", across="curated rating")
    second = "farthest from others" if has_tail else "whose rating is most certain"
    text = f"Whole levels are taken from the best down; of the level that does not fit, the rows {second}."
    if len(kept) == len(found.used):
        given = found.record["config"]["budget"] is not None
        text = (
            "The budget is as large as the number of rows that"
            if given
            else "No budget was given, so that all rows that"
        )
        text += " could be judged: all are kept." if given else " could be judged are kept."
    table = Table(list(rows[0]), [list(row.values()) for row in rows])
    return Section("What was selected", [text], [Chart("Curated ratings", chart)], [table])


def _rows(found: Curation) -> Section:
    """Every reason with how often it holds."""
    counts: dict[tuple[str, str], int] = {}
    for verdict in found.outcome.verdicts:
        reason = (verdict.reason or "as it was").split(",")[0].split(":")[0]
        if verdict.fate == "kept" and verdict.reason:
            reason = "with another rating"
        if reason.startswith("the same text as"):
            reason = "the same text as an earlier row"
        counts[verdict.fate, reason] = counts.get((verdict.fate, reason), 0) + 1
    order = sorted(counts, key=lambda of: FATES.index(of[0]))
    rows: list[list[Any]] = [[fate, reason, counts[fate, reason]] for fate, reason in order]
    return Section("What became of every row", tables=[Table(("fate", "reason", "rows"), rows)])


def _raw(found: Curation) -> Any:
    """Ratings before neighbours were asked, of the rows in use."""
    return np.array([found.outcome.added["level"][i] for i in found.used])


def _named_levels(found: Curation) -> list[tuple[float, list[float]]]:
    return list(zip(found.levels.names.tolist(), found.levels.members, strict=True))


def _names(curator: Any) -> list[str]:
    """Name of each level of the noise model: its ratings."""
    levels = [curator.levels_[curator.group_ == group] for group in range(len(curator.transition_.prior_K))]
    return [f"{of[0]:g}" if len(of) == 1 else f"{of[0]:g}-{of[-1]:g}" for of in levels]


def _agreement(of: Any) -> dict[str, Any]:
    return of._asdict() | {"above_chance": of.above_chance}
