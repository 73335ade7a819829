"""Earlier requests on the same model: whether what they made it forget came back."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from amends.report._text import last_part, number, percent, visible
from amends.report.verdict import Finding, entry, is_number

RISE = 0.01
"""A smaller rise of ROUGE-L is not called one, even where the interval has no width (all answers gone)."""


class Row(NamedTuple):
    """An earlier request in the report; kind is that of a `Finding`."""

    item_set: str
    title: str
    file: str
    rows: str
    created: str
    cells: list[dict[str, str | None] | None]
    """Right after it, before this run, after this run."""
    kind: str
    says: str
    said: float | None
    """ROUGE-L after this run, where it came back."""
    first: float | None
    """ROUGE-L right after the request."""


def earlier_rows(run: Mapping[str, Any], summaries: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """List the earlier requests that run.json names, with what each summary says of them.

    Came back: after this run ROUGE-L lies above the interval that it had right after the request (where nothing was
    measured then: before this run), and by RISE at least.
    """
    found = run["data"].get("earlier")
    requests = [value for value in found if isinstance(value, dict)] if isinstance(found, list) else []
    return [_row(position, value, summaries) for position, value in enumerate(requests, 1)]


def earlier_findings(rows: Sequence[Row]) -> list[Finding]:
    """Give the part of the verdict on earlier requests: what came back, what did not, what was not asked."""
    back = [row for row in rows if row.kind == "weakness"]
    unknown = [row for row in rows if row.kind == "open"]
    num_held = len(rows) - len(back) - len(unknown)
    found = []
    if back:
        each = [f"{row.title} ({row.file}) {' '.join(_again(row))}" for row in back]
        text = f"What an earlier request made it forget came back. Words of those answers: {'; '.join(each)}."
        now, then = _again(back[0])
        short = f"says {now} of the words of earlier {back[0].title.lower()} again {then}".rstrip()
        if len(back) > 1:
            short = f"says again what {len(back)} earlier requests made it forget"
        found.append(Finding("weakness", text, short))
    if num_held:
        which = "the earlier request" if len(rows) == 1 else f"{num_held} of {len(rows)} earlier requests"
        found.append(Finding("strength", f"Of what {which} made it forget, it says no more than then."))
    if unknown:
        which = "The earlier request" if len(rows) == 1 else f"{len(unknown)} of {len(rows)} earlier requests"
        found.append(Finding("open", f"{which}: whether that is still forgotten is not known (see Earlier requests)."))
    return found


def _again(row: Row) -> tuple[str, str]:
    """Share of the words that is said now, and in brackets what it was right after the request, if known."""
    assert row.said is not None
    return percent(row.said), f"(right after it {percent(row.first)})" if row.first is not None else ""


def _row(position: int, request: Mapping[str, Any], summaries: Mapping[str, Mapping[str, Any]]) -> Row:
    item_set = f"request_{position}"
    forget, measured = (value if isinstance(value := request.get(n), dict) else {} for n in ("forget", "measured"))
    then = {f"{item_set}_{n}": measured.get(f"forget_{n}") for n in ("rouge_l", "probability")}
    then = {name: value for name, value in then.items() if isinstance(value, dict)}
    roles = {"then": then, **{role: summaries.get(role, {}) for role in ("before", "after")}}
    first, before, after = (entry(roles, role, f"{item_set}_rouge_l") for role in roles)
    kind, says = _verdict(first, before, after)
    if after is None and request.get("left_out") is not None:
        says = f"Not asked again: {visible(request['left_out'])}"
    if request.get("weights_changed") is True:
        says += " Before it, the weights were changed by something else than a request."
    path = forget.get("path")
    return Row(
        item_set,
        f"Request {position}",
        visible(last_part(str(path))) if path else "given from Python",
        visible(forget.get("rows", "?")),
        visible(request.get("created", "?")),
        [_cell(roles, role, item_set) for role in roles],
        kind,
        says,
        after["value"] if after else None,
        first["value"] if first else None,
    )


def _verdict(
    first: Mapping[str, Any] | None, before: Mapping[str, Any] | None, after: Mapping[str, Any] | None
) -> tuple[str, str]:
    """Kind and words of the verdict on one request."""
    start = first or before
    if after is None or start is None:
        return "open", "Not known: it was not asked."
    since = "than right after it" if first else "than before this run; right after it nothing was measured"
    if not _rose(after, start):
        return "strength", f"Did not come back: no clear rise, no more is said {since}."
    if first and before and _rose(before, first):
        return "weakness", "Came back: more is said than right after it, and was so before this run already."
    return "weakness", f"Came back: more is said {since}."


def _rose(now: Mapping[str, Any], start: Mapping[str, Any]) -> bool:
    high = start["high"] if is_number(start.get("high")) else start["value"]
    return bool(now["value"] > high and now["value"] - start["value"] >= RISE)


def _cell(roles: Mapping[str, Mapping[str, Any]], role: str, item_set: str) -> dict[str, str | None] | None:
    """ROUGE-L with its interval, and the probability; None where neither was measured."""
    rouge, probability = (entry(roles, role, f"{item_set}_{name}") for name in ("rouge_l", "probability"))
    if rouge is None and probability is None:
        return None
    ends = [end for side in ("low", "high") if rouge and (end := rouge.get(side)) is not None and is_number(end)]
    return {
        "rouge_l": number(rouge["value"]) if rouge else "none",
        "interval": " to ".join(number(end) for end in ends) if len(ends) == 2 else None,
        "probability": number(probability["value"]) if probability else "none",
        "n": visible((rouge or probability or {}).get("n", "?")),
    }
