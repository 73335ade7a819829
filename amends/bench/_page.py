"""The page of the table: every cell, a chart with intervals, and in words what can be read from them."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import t

from amends.bench._cells import Cell
from amends.bench._entries import Entry
from amends.report.plots import Span, spans
from amends.report.verdict import CHOICES

AS_MUCH = 0.05
"""A model has forgotten as much as the reference if its ROUGE-L is at most this much above the reference's."""
HARMED = 1.25
"""Perplexity of plain text, as a multiple of what it was, above which a model counts as harmed."""
COLUMNS = {
    "forget_rouge_l": "forget ROUGE-L",
    "forget_probability": "forget probability",
    "forget_quality_p": "forget quality p",
    "retain_rouge_l": "retain ROUGE-L",
    "retain_refusal_rate": "retain refused",
    "model_utility_geo": "model utility",
    "zero_shot_accuracy": "zero-shot",
    "text_perplexity": "perplexity",
}
UNBOUNDED = {"text_perplexity"}
"""What may be above 1."""
CHARTED = {"forget_rouge_l": "forget ROUGE-L", "retain_rouge_l": "retain ROUGE-L", "model_utility_geo": "model utility"}


class Line(NamedTuple):
    """An entry over its seeds."""

    entry: Entry
    made: list[dict[str, Any]]
    """Cells that are there and did not fail."""
    failed: list[str]
    wanted: int

    @property
    def warnings(self) -> list[str]:
        """What the runs of its cells warned of; the first cells recorded do not say."""
        return [text for cell in self.made for text in cell.get("warnings", ())]

    def value(self, name: str) -> Span | None:
        """Mean over the seeds, with an interval for both questions and seeds.

        A variance is the sum of two: the mean over the cells of that of their own intervals, which all are of the same
        questions, and the variance between seeds over their number. Few seeds say little of the latter, so the quantile
        is Student's t at Satterthwaite's degrees of freedom (Biometrics Bulletin 2 (1946) 110); with one seed it is the
        normal one.
        """
        told = [c["summary"].get(name, {}) for c in self.made]
        values = np.array([one["value"] for one in told if one.get("value") is not None])
        if not len(values):
            return None
        known = [one for one in told if one.get("low") is not None]
        arms_S2 = np.array([(one["value"] - one["low"], one["high"] - one["value"]) for one in known])
        mean = float(values.mean())
        if not len(arms_S2):
            return Span(mean, None, None)
        between = float(values.var(ddof=1)) / len(values) if len(values) > 1 else 0.0
        variance_2 = ((arms_S2 / t.ppf(0.975, np.inf)) ** 2).mean(0) + between
        freedom_2 = variance_2**2 / between**2 * (len(values) - 1) if between else np.inf
        down, up = t.ppf(0.975, freedom_2) * np.sqrt(variance_2)
        most = np.inf if name in UNBOUNDED else 1.0
        return Span(mean, max(mean - float(down), 0.0), min(mean + float(up), most))


def page(
    title: str, cells: Sequence[tuple[Cell, dict[str, Any] | None]], compared: dict[str, dict[str, Any]], about: str
) -> tuple[str, dict[str, str]]:
    """Write the page.

    Parameters
    ----------
    cells : sequence of (Cell, dict or None)
        What should be in the table; None where it was not made yet.
    compared : dict
        By split, the summaries of "before" and "reference", as far as they are there.
    about : str
        What was run, one paragraph.

    Returns
    -------
    str, dict : the page in Markdown; the charts in SVG by the name of their file, which the page shows.
    """
    parts, charts = [f"# {title}", about], {}
    done = sum(cell is not None for _, cell in cells)
    parts.append(f"{done} of {len(cells)} cells are made; an empty one was not run.")
    for split in dict.fromkeys(cell.split for cell, _ in cells):
        for settings in dict.fromkeys(cell.settings for cell, _ in cells if cell.split == split):
            lines = lines_of([(c, found) for c, found in cells if (c.split, c.settings) == (split, settings)])
            roles = compared.get(split, {})
            parts += [f"## {split}, {settings} settings", table(lines, roles)]
            parts += reasons("What came to nothing, and why:", ((line, line.failed) for line in lines))
            parts += reasons("What was warned of:", ((line, line.warnings) for line in lines))
            if any(line.made for line in lines):
                name = f"{split}-{settings}.svg"
                charts[name] = chart(lines, roles)
                parts += [f"![{split}, {settings}: {', '.join(CHARTED.values())} of every method]({name})"]
                parts += ["\n".join(f"- {text}" for text in in_words(lines, roles))]
    return "\n\n".join([*parts, READING]) + "\n", charts


READING = """## How to read it

- Forget ROUGE-L is the share of the words of the answers to forget that the model still says. The reference, which
  never saw them, says the share in its line: lower is no better than that. Forget quality is the p of a Kolmogorov-
  Smirnov test of truth ratios against the reference; with 40 questions a p above 0.05 is weak evidence of equality.
- Retain ROUGE-L is the same on questions to keep, of the same kind; refused is the share of them that get a
  refusal. Model utility is TOFU's harmonic mean of nine numbers (geometric truth ratio). Perplexity is of plain
  text.
- In brackets: 95 % interval, over the questions (bootstrap) and, with more than one seed, over the seeds (Student's t:
  wide where two seeds differ).
- Searched settings: each method is given the same passes over the forget data and the same learning rates; the rate
  is the one with the least distance from a retrained model on another request of the same size, which forgets rows
  that the table's questions do not touch. Published settings: all weights, 32 rows a step, rate 1e-5 and 10 epochs,
  but where the source of the method says otherwise (FLAT 5 epochs; UNDIAL 1e-4; AltPO 2e-5, 2 epochs; LLMU 2e-6, 2
  rows); no warm-up, linear decay.
- +retain: was given real rows to keep. +neighbours: keeps rows that the model wrote itself. Without either: forget
  rows alone."""


def lines_of(cells: Sequence[tuple[Cell, dict[str, Any] | None]]) -> list[Line]:
    """Put the cells of an entry together."""
    found: dict[Entry, Line] = {}
    for cell, record in cells:
        line = found.setdefault(cell.entry, Line(cell.entry, [], [], 0))
        found[cell.entry] = line = line._replace(wanted=line.wanted + 1)
        if record is not None and record["failed"]:
            line.failed.append(record["failed"])
        elif record is not None:
            line.made.append(record)
    return list(found.values())


def reasons(heading: str, told: Iterable[tuple[Line, Sequence[str]]]) -> list[str]:
    """List each text once, with the entries that it was said of; nothing where there is none."""
    entries_of: dict[str, dict[str, None]] = {}
    for line, texts in told:
        for text in texts:
            entries_of.setdefault(text.removesuffix("."), {})[f"`{line.entry}`"] = None
    listed = [f"- {', '.join(entries)}: {text}." for text, entries in entries_of.items()]
    return ["\n".join([heading, "", *listed])] if listed else []


def table(lines: Sequence[Line], roles: dict[str, Any]) -> str:
    """Lay out a table: the models that all are compared with, then the entries."""
    head = ["", "seeds", "rate", *COLUMNS.values(), "CPU minutes"]
    rows = [head, ["---"] * len(head)]
    for role, name in (("before", "before"), ("reference", "retrained reference")):
        if role in roles:
            shown = Line(Entry(name), [{"summary": roles[role]}], [], 1)
            rows.append([name, "", "", *(text_of(shown.value(column)) for column in COLUMNS), ""])
    for line in lines:
        rates = sorted({f"{c['options']['learning_rate']:g}" for c in line.made if "learning_rate" in c["options"]})
        cpu_s = [c["cpu_seconds"] for c in line.made if "cpu_seconds" in c]  # the first cells recorded have none
        minutes = f"{np.mean(cpu_s) / 60:.1f}" if cpu_s else ""
        seeds = f"{len(line.made)} of {line.wanted}" + (f", {len(line.failed)} came to nothing" if line.failed else "")
        values = [text_of(line.value(column)) for column in COLUMNS]
        rows.append([f"`{line.entry}`", seeds, ", ".join(rates), *values, minutes])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def text_of(span: Span | None) -> str:
    """Show a value with its interval."""
    if span is None:
        return ""
    # One format for all three: bounds that are rounded away from the value would not hold it.
    form = ".1e" if 0 < abs(span.value) < 0.005 else ".1f" if abs(span.value) >= 10 else ".2f"
    value = f"{span.value:{form}}"
    if span.low is None or span.high is None:
        return value
    low, high = (f"{end:{form}}" if end or form != ".1e" else "0" for end in (span.low, span.high))
    return f"{value} ({low} to {high})"


def chart(lines: Sequence[Line], roles: dict[str, Any]) -> str:
    """Draw every entry's values with their intervals, and the reference's as a line."""
    reference = roles.get("reference", {})
    return spans(
        {
            label: {str(line.entry): span for line in lines if (span := line.value(name))}
            for name, label in CHARTED.items()
        },
        {
            label: value
            for name, label in CHARTED.items()
            if (value := reference.get(name, {}).get("value")) is not None
        },
    )


def in_words(lines: Sequence[Line], roles: dict[str, Any]) -> list[str]:
    """Say what can be read from a table: who forgot, at what cost, and what beats FLAT."""
    if not {"before", "reference"} <= set(roles):
        return []
    made = [line for line in lines if line.made]
    level = roles["reference"]["forget_rouge_l"]["value"] + AS_MUCH
    forgot = [line for line in made if at(line, "forget_rouge_l") <= level]
    short = [line for line in made if line not in forgot]
    harmed = [line for line in made if harm(line, roles)]
    by_kept = sorted(forgot, key=lambda line: -at(line, "retain_rouge_l"))
    told = [
        f"Forgot as much as the reference (ROUGE-L at most {level:.2f}): {named(by_kept)}.",
        f"Did not: {named(sorted(short, key=lambda line: at(line, 'forget_rouge_l')))}.",
    ]
    if edge := [line for line in made if at_edge(line)]:
        told.append(
            f"At the edge: of {named(edge)} the best rate is the least or the greatest that was searched, and a better "
            "one may lie beyond."
        )
    if by_kept:
        kept = ", ".join(f"`{line.entry}` {at(line, 'retain_rouge_l'):.2f}" for line in by_kept)
        told.append(f"Of those that did, by what they keep (retain ROUGE-L): {kept}.")
    told.append(
        f"Harmed (perplexity more than {HARMED:g} times what it was, or zero-shot accuracy more than {CHOICES:g} "
        f"lower): {named(harmed)}."
    )
    for flat in (line for line in forgot if line.entry.method == "flat"):
        told.append(beside(flat, [line for line in forgot if line.entry.method != "flat"]))
    for flat in (line for line in short if line.entry.method == "flat"):
        told.append(f"`{flat.entry}` loses here: with these settings it did not forget as much as the reference.")
    return told


def beside(flat: Line, others: Sequence[Line]) -> str:
    """Say which of the others keep more than FLAT does, and which less."""
    own = flat.value("retain_rouge_l")
    assert own is not None
    more, less = [], []
    for line in others:
        span = line.value("retain_rouge_l")
        if span is None or span.low is None or span.high is None or own.low is None or own.high is None:
            continue  # of one question to keep there is no interval
        more += [line] * (span.low > own.high)
        less += [line] * (span.high < own.low)
    return (
        f"`{flat.entry}` (keeps {own.value:.2f}) loses to {named(more)}, which forgot as much and kept more, beyond "
        f"both intervals; it keeps more than {named(less)}; the others cannot be told from it."
    )


def at_edge(line: Line) -> bool:
    """Whether an entry's search of several rates ended at the first or the last of them."""
    for cell in line.made:
        rates = [trial["learning_rate"] for trial in cell.get("trials", ())]
        if len(rates) > 1 and cell["options"]["learning_rate"] in (min(rates), max(rates)):
            return True
    return False


def harm(line: Line, roles: dict[str, Any]) -> bool:
    """Whether an entry harmed what has nothing to do with the request."""
    before = roles["before"]
    perplexity = at(line, "text_perplexity") > HARMED * before["text_perplexity"]["value"]
    return perplexity or at(line, "zero_shot_accuracy") < before["zero_shot_accuracy"]["value"] - CHOICES


def at(line: Line, name: str) -> float:
    """Mean value of a measure that every cell has."""
    span = line.value(name)
    assert span is not None
    return span.value


def named(lines: Sequence[Line]) -> str:
    """List entries."""
    return ", ".join(f"`{line.entry}`" for line in lines) or "none"
