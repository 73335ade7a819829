"""What was collected, for the report and for summary.json."""

from collections import Counter
from typing import Any

from amends.curate.adc_collect import Collected
from amends.report._text import percent
from amends.report.findings import Example, Section, Table, render_findings

MOST_QUERIES, MOST_REASONS, MOST_EXAMPLES = 500, 50, 20
FATES = ("collected", "missing", "refused")
UNKNOWN = "not known"


def summary(found: Collected) -> dict[str, Any]:
    """Count by class and query, licence, source and reason."""
    samples, asked = found.of("collected"), int(found.record["config"]["per_query"])
    return {
        **found.counts(),
        "asked": asked * len(found.design.queries()),
        "different": len({row["sha256"] for row in samples}),
        "kinds": dict(Counter(row["kind"] for row in samples)),
        "classes": _by_class(found),
        "queries": _by_query(found),
        "licences": dict(Counter(row["licence"] or UNKNOWN for row in samples).most_common()),
        "sources": {
            name: dict(Counter(row["fate"] for row in found.rows if row["source"] == name))
            for name in found.record["config"]["source"]
        },
        "reasons": [{"fate": fate, "reason": why, "hits": number} for (fate, why), number in _reasons(found)],
    }


def page(found: Collected) -> str:
    """Render the report."""
    counts, told = found.counts(), summary(found)
    lead = (
        f"{counts['collected']:,} samples for {len(found.design.classes):,} classes, {told['different']:,} different. "
    )
    lead += f"Of {counts['hits']:,} hits {counts['missing']:,} are missing and {counts['refused']:,} were refused."
    head = ("asked", "hits", *FATES)
    queries = [(entry["query"], entry["label"], *(entry[name] for name in head)) for entry in told["queries"]]
    tables = [Table(("class", "queries", *head), [tuple(entry.values()) for entry in told["classes"]], "By class.")]
    caption = (
        "By query." if len(queries) <= MOST_QUERIES else f"By query; the first {MOST_QUERIES} of {len(queries):,}."
    )
    tables.append(Table(("query", "class", *head), queries[:MOST_QUERIES], caption))
    sources = [(name, *(entry.get(fate, 0) for fate in FATES)) for name, entry in told["sources"].items()]
    licences = [(name, number, percent(number / counts["collected"])) for name, number in told["licences"].items()]
    sections = [
        Section("What was collected", [_about(found)], tables=tables),
        Section("Sources", tables=[Table(("source", *FATES), sources)]),
        Section("Licences", [RIGHTS], tables=[Table(("licence", "samples", "share"), licences[:MOST_REASONS])]),
    ]
    if reasons := told["reasons"]:
        rows = [(entry["reason"], entry["fate"], entry["hits"]) for entry in reasons[:MOST_REASONS]]
        sections.append(Section("What was not collected", tables=[Table(("reason", "fate", "hits"), rows)]))
    if examples := _examples(found):
        sections.append(Section("First hits", examples=examples))
    title = f"Samples for {found.design.domain or 'a design'}"
    return render_findings(found.record, title, lead, sections)


RIGHTS = (
    "A licence is what a source says of it, and was not checked. What is not known may be protected by copyright, and "
    "may show or name people."
)


def _about(found: Collected) -> str:
    return (
        f"Each query was asked for up to {found.record['config']['per_query']:,} samples. A label is that of the query "
        "that found a sample, so some are wrong, and mostly more of them the further down the rank."
    )


def _by_query(found: Collected) -> list[dict[str, Any]]:
    fates = Counter((row["query"], row["fate"]) for row in found.rows)
    rows = []
    for label, sub in found.design.queries():
        counts = {fate: fates[sub.query, fate] for fate in FATES}
        asked = int(found.record["config"]["per_query"])
        rows.append({"query": sub.query, "label": label, "asked": asked, "hits": sum(counts.values()), **counts})
    return rows


def _by_class(found: Collected) -> list[dict[str, Any]]:
    queries, rows = _by_query(found), []
    for one in found.design.classes:
        own = [entry for entry in queries if entry["label"] == one.name]
        sums = {name: sum(entry[name] for entry in own) for name in ("asked", "hits", *FATES)}
        rows.append({"label": one.name, "queries": len(own), **sums})
    return rows


def _reasons(found: Collected) -> list[tuple[tuple[str, str], int]]:
    return Counter((row["fate"], row["reason"]) for row in found.rows if row["fate"] != "collected").most_common()


def _examples(found: Collected) -> list[Example]:
    """Give the best hit of the first queries that have one."""
    first: dict[str, dict[str, Any]] = {}
    for row in found.of("collected"):
        first.setdefault(row["query"], row)
    return [
        Example(row["text"] or f"({row['kind']}: {row['path']})", f"{row['label']}: {row['query']}", row["uri"])
        for row in list(first.values())[:MOST_EXAMPLES]
    ]
