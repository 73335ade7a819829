"""The verdict of a report: what the numbers of a run say, in plain words, weaknesses like strengths."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from amends.report._text import number, percent

ROLES = {"before": "before", "after": "after", "reference": "retrained reference"}
HARM, REFUSED, CHOICES = 0.1, 0.05, 0.03
"""From here on a loss of ability (relative), a rise of refusals and a loss of right choices (both absolute) are called
a weakness. Choices have a share that guessing gets, so a part of their value says little."""
ONE = "not clear, as it was measured on one alone."
UNSAID = 0.005
"""Share of the words up to which a model is said not to know an answer."""
FEWEST_TESTED = 4
"""Of three questions and three of the reference's no test finds a difference: 2 / (6 over 3) is above 0.05."""


class Finding(NamedTuple):
    """A part of the verdict; kind is "strength", "weakness" or "open", short its words in the one-sentence verdict."""

    kind: str
    text: str
    short: str = ""


class Ability(NamedTuple):
    """A measure of what should stay; `long` and `short` are templates with {before} and {after}."""

    name: str
    long: str
    short: str
    form: Callable[[float], str] = percent
    most: float | None = None
    """Loss, absolute, that does not count yet; None: HARM of the value before."""


ABILITIES = (
    Ability(
        "retain_rouge_l",
        "Of the answers to keep it says {after} of the words (before: {before})",
        "says {after} of the words of the answers to keep (before {before})",
    ),
    Ability(
        "retain_probability",
        "It finds the answers to keep likely by {after} a token (before: {before})",
        "finds the answers to keep less likely ({after} a token, before {before})",
    ),
    Ability(
        "general_rouge_l",
        "Of the answers to unrelated everyday questions it says {after} of the words (before: {before})",
        "says {after} of the words of everyday answers (before {before})",
    ),
    Ability(
        "general_probability",
        "It finds the answers to unrelated everyday questions likely by {after} a token (before: {before})",
        "finds everyday answers less likely ({after} a token, before {before})",
    ),
    Ability(
        "zero_shot_accuracy",
        "Of multiple-choice questions it answers {after} right (before: {before})",
        "answers {after} of multiple-choice questions right (before {before})",
        most=CHOICES,
    ),
    Ability(
        "model_utility_geo",
        "Model utility went from {before} to {after}",
        "has a model utility of {after} (before {before})",
        number,
    ),
    Ability(
        "text_perplexity",
        "Perplexity of plain text went from {before} to {after}",
        "reads plain text worse (perplexity {before}, now {after})",
        lambda value: f"{value:,.1f}",
    ),
)


def verdict(summaries: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[Finding]:
    """Say in plain words what the numbers say; harm counts sooner than benefit (HARM, REFUSED)."""
    if "after" not in summaries:
        text = "Nothing was measured: this run was made without an evaluation. Whether it forgot anything is not known."
        return [Finding("open", text)]
    found: list[Finding | None] = [forgotten(summaries), likely(summaries), resembles(summaries)]
    found.append(refusals(summaries, "retain_refusal_rate", "questions that it should keep answering"))
    found.append(refusals(summaries, "general_refusal_rate", "unrelated everyday questions"))
    found += [change(summaries, ability) for ability in ABILITIES]
    return [finding for finding in found if finding]


def in_short(findings: Sequence[Finding]) -> str:
    """Say in one sentence what was forgotten and each harm that is clear, without weighing one against the other."""
    first, others = findings[0], findings[1:]
    if not first.short:
        return first.text
    harms = [finding.short for finding in others if finding.kind == "weakness"]
    if harms:
        *most, last = harms
        joined = f"{', '.join(most)} and {last}" if most else last
        return f"{first.short}{'; and' if first.kind == 'weakness' else ', but'} it {joined}."
    if not others:
        return f"{first.short}; whether it was harmed was not measured."
    unclear = any(finding.kind == "open" for finding in others)
    return f"{first.short}; {'harm is not ruled out' if unclear else 'no clear harm was found in what was asked'}."


def forgotten(summaries: Mapping[str, Any]) -> Finding:
    """How much of the answers to forget is still said."""
    before, after, reference = (entry(summaries, role, "forget_rouge_l") for role in ROLES.values())
    if after is None:
        return Finding("open", "Whether the answers were forgotten is not known: none were asked for.")
    text = f"Of the words of the answers to forget, the model says {percent(after['value'])}"
    text += f" (before: {percent(before['value'])})." if before else "; what it said before was not measured."
    if before is not None and max(before["value"], after["value"]) <= UNSAID:
        text += " It did not know them before, so that nothing shows whether any were forgotten."
        return Finding("open", text, "The model did not know the answers to forget before, and does not now")
    less = before is not None and apart(after, before) < 0
    others = [f"before {percent(before['value'])}"] if before else []
    others += [f"a model that never saw them {percent(reference['value'])}"] if reference else []
    short = f"{percent(after['value'])} of the words of the answers to forget" + (
        f" ({', '.join(others)})" * bool(others)
    )
    if reference is None:
        kind = "strength" if less else "open" if before is None else "weakness"
        says = "The model still says" if kind == "weakness" else "The model now says"
        return Finding(kind, text + unsure(before, after), f"{says} {short}")
    text += f" A model that never saw them says {percent(reference['value'])}: "
    if apart(after, reference) > 0:
        left = "part of them is still there." if less else "they are still there."
        return Finding("weakness", text + left, f"The model still says {short}")
    short = f"The model now says {short}"
    if before is not None and not less:
        return Finding("open", f"{text}no more than that is left, but it was no clear drop either.", short)
    if apart(after, reference) == 0:
        return Finding("strength", f"{text}no more than that is left.", short)
    gap = "it says less than that, and such a gap can itself give away what was removed."
    return Finding("strength", f"{text}{gap}", short)


def likely(summaries: Mapping[str, Any]) -> Finding | None:
    """Whether the answers to forget, said or not, are likelier to the model than to one that never saw them."""
    after, reference = (entry(summaries, role, "forget_probability") for role in (ROLES["after"], ROLES["reference"]))
    if after is None or reference is None:
        return None
    each = f"{percent(after['value'])} a token, {percent(reference['value'])} for a model that never saw them"
    if apart(after, reference) > 0:
        text = f"It still finds these answers likelier than it should ({each}): what it does not say may be drawn out."
        return Finding("weakness", text, f"still finds them likely ({each})")
    return Finding("strength", f"It finds these answers no likelier than a model that never saw them ({each}).")


def resembles(summaries: Mapping[str, Any]) -> Finding | None:
    """Whether truth ratios can be told from the reference's."""
    quality = entry(summaries, "after", "forget_quality_p")
    if quality is None:
        return None
    p = quality["value"]
    if quality.get("n", FEWEST_TESTED) < FEWEST_TESTED:
        text = (
            "Whether a test tells it from a model retrained without the data is not known: the questions are too few."
        )
        return Finding("open", text)
    if p < 0.05:
        text = f"A test still tells it from a model retrained without the data (forget quality p = {p:.1g})."
        return Finding("weakness", text, f"can still be told from a retrained model (p = {p:.1g})")
    text = f"A test on {quality.get('n', '?')} questions does not tell it from a model retrained without the data"
    return Finding("strength", f"{text} (forget quality p = {p:.2f}). That is no proof that there is no difference.")


def refusals(summaries: Mapping[str, Any], name: str, what: str) -> Finding | None:
    """How many questions the model declines that it should not."""
    before, after = entry(summaries, "before", name), entry(summaries, "after", name)
    if after is None:
        return None
    text = f"It declines {percent(after['value'])} of the {what}"
    text += f" (before: {percent(before['value'])})." if before else "."
    if single(after):
        return Finding("open", f"{text[:-1]}: {ONE}")
    worse = after["value"] - (before["value"] if before else 0) >= REFUSED
    kind = "weakness" if worse else "strength" if after["value"] < 0.05 or before else "open"
    short = f"declines {percent(after['value'])} of the {what}"
    short += f" (before {percent(before['value'])})" if before and before["value"] else ""
    return Finding(kind, text, short)


def change(summaries: Mapping[str, Any], ability: Ability) -> Finding | None:
    """Whether an ability was harmed."""
    before, after = entry(summaries, "before", ability.name), entry(summaries, "after", ability.name)
    if before is None or after is None:
        return None
    values = {"before": ability.form(before["value"]), "after": ability.form(after["value"])}
    text = ability.long.format(**values)
    if single(before) or single(after):
        return Finding("open", f"{text}: {ONE}")
    direction = 1 if after.get("better") == "higher" else -1
    sign = apart(after, before) * direction
    most = HARM * abs(before["value"]) if ability.most is None else ability.most
    # Both models had the same questions, so a harm may be real long before the intervals part.
    if sign < 0 or (after["value"] - before["value"]) * direction < -most:
        return Finding("weakness", f"{text}: worse.", ability.short.format(**values))
    return Finding("strength", f"{text}: {'better' if sign else 'no clear change'}.")


def entry(summaries: Mapping[str, Any], role: str, name: str) -> Mapping[str, Any] | None:
    """Return a metric if it has a value."""
    found = summaries.get(role, {}).get(name)
    return found if found and is_number(found.get("value")) else None


def single(found: Mapping[str, Any]) -> bool:
    """Whether a value rests on one question, so that its interval has no width whatever it is."""
    n = found.get("n", 2)
    return is_number(n) and bool(n < 2)


def apart(one: Mapping[str, Any], other: Mapping[str, Any]) -> int:
    """1 if the interval of `one` lies above that of `other`, -1 if below, 0 if they meet."""
    low, high, other_low, other_high = (
        e[side] if is_number(e.get(side)) else e["value"] for e in (one, other) for side in ("low", "high")
    )
    return int(low > other_high) - int(high < other_low)


def unsure(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> str:
    """Say what is missing for a clear word."""
    if before is not None and apart(after, before) >= 0:
        return " That is no clear drop: nothing shows that they were forgotten."
    return " There is no retrained reference, so what a model that never saw them would say is not known."


def is_number(value: Any) -> bool:
    """Whether it can be drawn and compared."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
