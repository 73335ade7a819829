import html
import re

import pytest

from amends.report.card import model_card
from amends.report.earlier import earlier_findings, earlier_rows
from amends.report.unlearning import render_report
from amends.report.verdict import in_short, verdict


def value(low, middle, high, n=10):
    return {"value": middle, "low": low, "high": high, "n": n, "better": "lower"}


def request(rouge=None, path="data/january.jsonl", left_out=None, changed=False):
    return {
        "created": "2026-01-01T00:00:00+00:00",
        "forget": {"path": path, "rows": 20},
        "weights_changed": changed,
        "measured": {"forget_rouge_l": value(*rouge)} if rouge else {},
        "left_out": left_out,
    }


def rows_of(requests, **roles):
    """Rows of the report, from ROUGE-L of each request before and after: (low, middle, high) or None."""
    summaries = {
        role: {f"request_{n}_rouge_l": value(*v) for n, v in enumerate(values, 1) if v}
        for role, values in roles.items()
    }
    return earlier_rows({"data": {"earlier": requests}}, summaries)


LOW, MIDDLE, HIGH = (0.0, 0.1, 0.2), (0.15, 0.3, 0.45), (0.5, 0.6, 0.7)


@pytest.mark.parametrize(
    ("then", "before", "after", "kind", "words"),
    [
        (LOW, LOW, LOW, "strength", "Did not come back"),
        (LOW, LOW, (0.1, 0.2, 0.3), "strength", "Did not come back"),  # as high as its interval goes, not beyond
        (LOW, LOW, MIDDLE, "weakness", "Came back: more is said than right after it."),
        (LOW, HIGH, HIGH, "weakness", "was so before this run already"),
        (LOW, HIGH, LOW, "strength", "Did not come back"),
        (HIGH, HIGH, LOW, "strength", "Did not come back"),
        ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), (0.0, 0.009, 0.03), "strength", "Did not come back"),
        ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), (0.0, 0.011, 0.03), "weakness", "Came back"),
        (None, LOW, HIGH, "weakness", "than before this run; right after it nothing was measured"),
        (None, LOW, LOW, "strength", "right after it nothing was measured"),
        (LOW, None, HIGH, "weakness", "Came back: more is said than right after it."),
        (LOW, LOW, None, "open", "Not known"),
        (None, None, LOW, "open", "Not known"),
    ],
)
def test_a_request_came_back_when_more_is_said_than_its_interval_right_after_it(then, before, after, kind, words):
    (row,) = rows_of([request(then)], before=[before], after=[after])
    assert (row.kind, words in row.says) == (kind, True), row.says


def test_the_verdict_and_its_sentence_name_what_came_back():
    requests = [request(LOW), request(LOW, "/home/me/february.jsonl"), request(LOW, left_out="x: gone.")]
    rows = rows_of(requests, before=[LOW, LOW, None], after=[HIGH, LOW, None])
    back, held, unknown = earlier_findings(rows)
    assert [back.kind, held.kind, unknown.kind] == ["weakness", "strength", "open"]
    assert "Request 1 (january.jsonl) 60 % (right after it 10 %)" in back.text
    assert "1 of 3 earlier requests" in held.text and "1 of 3 earlier requests" in unknown.text
    assert rows[2].says == "Not asked again: x: gone."
    first = verdict({"before": {"forget_rouge_l": value(*HIGH)}, "after": {"forget_rouge_l": value(*LOW)}})
    assert in_short([*first, back]).endswith(
        "but it says 60 % of the words of earlier request 1 again (right after it 10 %)."
    )
    rows = rows_of(requests[:2], before=[LOW, LOW], after=[HIGH, HIGH])
    (both,) = earlier_findings(rows)
    assert both.short == "says again what 2 earlier requests made it forget"
    assert "february.jsonl" in both.text and "/home" not in both.text
    assert [f.kind for f in earlier_findings(rows_of(requests[:1], before=[LOW], after=[LOW]))] == ["strength"]
    assert earlier_findings([]) == []


def test_weights_that_something_else_changed_are_named():
    (row,) = rows_of([request(LOW, changed=True)], after=[LOW])
    assert "the weights were changed by something else" in row.says


@pytest.mark.parametrize(
    "earlier", [3, "x", [3], [{}], [{"forget": 3, "measured": []}], [{"measured": {"forget_rouge_l": 3}}], {}, None]
)
def test_a_damaged_list_of_requests_does_not_stop_the_report(make_run, change_json, earlier):
    folder = make_run()
    change_json(folder / "run.json", lambda r: r | {"data": r["data"] | {"earlier": earlier}})
    assert "<h1>" in render_report(folder)


@pytest.fixture
def page(make_run, change_json):
    """Render a run with these earlier requests, of which the first came back."""

    def make(requests):
        folder = make_run()
        change_json(folder / "run.json", lambda r: r | {"data": r["data"] | {"earlier": requests}})
        for role, rouge in (("before", LOW), ("after", HIGH)):
            summary = {"request_1_rouge_l": value(*rouge), "request_1_probability": value(*rouge)}
            items = [{"id": "a", "question": "Who?", "answer": "Ann.", "generated": f"{role} Ann."}]
            change_json(
                folder / f"evaluation/{role}.json",
                lambda e, s=summary, i=items: e | {"summary": e["summary"] | s, "items": e["items"] | {"request_1": i}},
            )
        return render_report(folder)

    return make


def test_the_page_has_a_row_for_each_earlier_request_and_what_was_said(page):
    text = re.sub(
        r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page([request(LOW), request(LOW, left_out="x.")])))
    )
    section = text[text.index("What was forgotten before") : text.index("Forgetting against keeping")]
    for words in ("Request 1 january.jsonl , 20 rows", "0.100 0.000 to 0.200", "0.600 0.500 to 0.700", "Came back"):
        assert words in section, section
    assert "not measured" in section and "Not asked again: x." in section
    assert "Earlier request 1 " in text and "after Ann." in text
    lead = text[: text.index("Verdict A")] if "Verdict A" in text else text
    assert "of the words of earlier request 1 again" in lead


def test_hostile_paths_and_reasons_are_shown_and_do_nothing(page):
    plain = page([request(LOW, "x"), request(LOW, "x", left_out="x: gone")])
    for path in (
        "<script>alert(1)</script>.jsonl",
        "<img src=x onerror=alert(1)>",
        "a\u202eb\x1b.jsonl",
        "' onx='1.jsonl",
        "{{ 7*7 }}",
    ):
        found = page([request(LOW, path), request(LOW, path, left_out=f"{path}: gone")])
        assert re.findall(r"<\w+", found) == re.findall(r"<\w+", plain), path
        assert not [c for c in found if not c.isprintable() and c != "\n"], path


def test_without_earlier_requests_the_page_and_the_card_do_not_speak_of_them(run):
    assert 'id="earlier"' not in render_report(run)


def test_the_card_counts_the_earlier_requests():
    run = {"command": "unlearn ga", "amends": "1", "seed": 0, "stopped": "", "weights": {}, "config": {}}
    assert "before: 2. `ledger.json`" in model_card(run | {"data": {"earlier": [1, 2]}}, {}, None, True)
    assert "ledger" not in model_card(run | {"data": {}}, {}, None, True)
