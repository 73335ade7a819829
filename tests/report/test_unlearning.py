import json
import re
import shutil
from collections import Counter
from html.parser import HTMLParser

import pytest
from scipy.stats import ks_2samp

from amends.evaluation.summary import FIRST_NAMES
from amends.io.errors import InputError
from amends.report._text import number, percent, visible
from amends.report.unlearning import render_report
from amends.report.verdict import Finding, entry, in_short, verdict

PAYLOADS = [
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)>",
    "<svg><script>1</script></svg>",
    '"><script>1</script>',
    "' onmouseover='alert(1)",
    '" onfocus="alert(1)" autofocus="',
    "<iframe src=//example.org>",
    "<a href='javascript:alert(1)'>a</a>",
    "</title><script>1</script>",
    "</style><script>1</script>",
    "</bdi></dd></dl></main>",
    "<!--",
    "-->",
    "<![CDATA[",
    "]]>",
    "<?xml version='1.0'?>",
    "<!DOCTYPE html>",
    "<base href=//example.org/>",
    "<meta http-equiv=refresh content='0;url=//example.org'>",
    "<link rel=stylesheet href=//example.org>",
    "<form action=//example.org>",
    "<input autofocus onfocus=alert(1)>",
    "{{ 7 * 7 }}",
    "{% raw %}",
    "{{ self.__init__.__globals__ }}",
    "${7*7}",
    "$\\frac{1}{0}$",
    "&lt;script&gt;",
    "&#60;script&#62;",
    "a\x00b\x07\x1b[31m",
    "\u202egnp.exe",
    "\u2066a\u200b\ufeff",
    "%3Cscript%3E",
    "\ufffe\U000e0041",
    "a\nb\r\nc\u2028d",
    "x" * 3000,
    "\u0645\u0631\u062d\u0628\u0627 \u4f60\u597d \U0001f469\u200d\U0001f4bb",
    "<style>*{display:none}</style>",
]
WORDS = {"id", "where", "task", "better", "role", "suite", "weights"}


class Outline(HTMLParser):
    """Elements with the names of their attributes, and what the attributes and texts are."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.text = Counter(), [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags[tag, tuple(name for name, _ in attrs)] += 1
        self.attributes += attrs

    def handle_data(self, data):
        self.text.append(data)


def told(page):
    return " ".join(" ".join(Outline(page).text).split())


def with_texts(value, text):
    """The same JSON with every free text replaced; what is looked up by the code stays."""
    if isinstance(value, dict):
        return {key: item if key in WORDS else with_texts(item, text) for key, item in value.items()}
    if isinstance(value, list):
        return [with_texts(item, text) for item in value]
    return text if isinstance(value, str) else value


def hostile(folder, text):
    for file in folder.glob("evaluation/*.json"):
        evaluation = with_texts(json.loads(file.read_text(encoding="utf-8")), text) | {"suite": text, "weights": text}
        file.write_text(json.dumps(evaluation), encoding="utf-8")
    file = folder / "run.json"
    run = with_texts(json.loads(file.read_text(encoding="utf-8")), text)
    run["command"] = f"unlearn {text}"
    run["weights"] = {"before": text, "after": text}
    run["data"]["forget"]["dropped"] = [{"where": text, "reason": text}]
    run["versions"][text], run["platform"][text], run["config"][text], run["start"][text] = text, text, text, 0.5
    run["data"]["earlier"] = [
        {
            "created": text,
            "forget": {"path": f"{text}/{text}", "rows": text},
            "measured": {"forget_rouge_l": {"value": 0.1, "n": text}},
            "left_out": text if n == 2 else None,
        }
        for n in (1, 2)
    ]
    run["data"][text] = dict(run["data"]["forget"])
    file.write_text(json.dumps(run), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def template_runs(tmp_path_factory, run):
    """Two small runs with few questions, copied for each text."""

    def make(*texts):
        folder = tmp_path_factory.mktemp("hostile")
        for name, text in zip(("one", "two"), texts, strict=True):
            shutil.copytree(run, folder / name)
            for file in (folder / name).glob("evaluation/*.json"):
                content = json.loads(file.read_text(encoding="utf-8"))
                content["items"] = {key: items[:2] for key, items in content["items"].items()}
                content["summary"]["retain_probability"] |= {"value": None, "missing": "why"}
                content["items"]["request_1"] = content["items"]["forget"]
                content["summary"]["request_1_rouge_l"] = {"value": 0.9, "low": 0.8, "high": 1.0, "n": "many"}
                file.write_text(json.dumps(content), encoding="utf-8")
            hostile(folder / name, text)
        return render_report(folder / "one", [folder / "two"])

    return make


@pytest.fixture(scope="module")
def harmless(template_runs):
    return Outline(template_runs("x", "y")).tags


@pytest.mark.parametrize("payloads", [PAYLOADS[i : i + 2] for i in range(0, 40, 2)], ids=range(20))
def test_no_text_changes_the_structure_of_the_page(payloads, template_runs, harmless):
    page = template_runs(*payloads)
    outline = Outline(page)
    assert outline.tags == harmless
    assert not [c for c in page if not c.isprintable() and c not in "\n\u200c\u200d"]
    page.encode("utf-8")


def test_there_are_forty_payloads():
    assert len(set(PAYLOADS)) == 40


def test_the_page_has_no_script_and_no_address_outside_itself(run, beside):
    page = render_report(run, beside)
    outline = Outline(page)
    assert not {"script", "iframe", "object", "embed", "form", "base"} & {tag for tag, _ in outline.tags}
    assert not [name for name, _ in outline.attributes if name.startswith("on")]
    addresses = [
        v for name, v in outline.attributes if name in ("src", "href", "xlink:href", "action", "srcset", "data")
    ]
    assert all(address.startswith("#") or address == "data:," for address in addresses)
    assert set(re.findall(r"https?://[^\s\"'<]+", page)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert "url(" not in page.replace("url(#", "") and "@import" not in page
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert ("content", policy) in outline.attributes


def test_ids_are_unique_and_every_reference_has_its_target(run, beside):
    attributes = Outline(render_report(run, beside)).attributes
    ids = [value for name, value in attributes if name == "id"]
    assert len(ids) == len(set(ids))
    wanted = {v[1:] for name, v in attributes if name in ("href", "xlink:href") and v.startswith("#")}
    wanted |= {i for name, v in attributes if name in ("aria-labelledby", "aria-describedby") for i in v.split()}
    wanted |= {v[5:-1] for name, v in attributes if name == "clip-path"}
    assert wanted <= set(ids)


def test_the_same_folder_gives_the_same_bytes(run, beside):
    assert render_report(run, beside) == render_report(run, beside)


def test_runs_beside_get_columns_of_their_own(run, beside):
    text = told(render_report(run, beside))
    assert "Gradient ascent (GA)" in text
    assert "FLAT (kl) with retain data" in text
    assert "None." in told(render_report(run)) or "v_e is above 0.2" in text


def test_two_runs_of_one_method_are_told_apart(run):
    text = told(render_report(run, [run, run]))
    assert "FLAT (kl), run 2" in text


def test_other_questions_beside_are_warned_of(run, make_run, change_json):
    other = make_run()
    change_json(other / "evaluation/after.json", lambda e: e | {"suite": "another"})
    assert "asked other questions than this run" in told(render_report(run, [other]))


def test_a_missing_set_is_explained_in_a_footnote(make_run, change_json):
    folder = make_run(reference=None)
    text = told(render_report(folder))
    assert "There is no reference, a model trained without the forget rows, to compare with." in text
    assert "no forget quality: see notes" in text and "1 - ROUGE-L, to forget" in text
    for file in folder.glob("evaluation/*.json"):
        change_json(file, lambda e: e | {"items": {k: v for k, v in e["items"].items() if k != "retain"}})
    assert "None: no such questions were asked in this run." in told(render_report(folder))


@pytest.mark.parametrize(
    ("absent", "axis"),
    [
        ([], "model utility"),
        (["model_utility_arith"], "ROUGE-L, to keep"),
        (["model_utility_arith", "retain_rouge_l"], "ROUGE-L, everyday"),
        (["model_utility_arith", "retain_rouge_l", "general_rouge_l"], None),
    ],
)
def test_forgetting_is_drawn_against_what_was_measured_of_keeping(absent, axis, make_run, change_json):
    folder = make_run()
    for file in folder.glob("evaluation/*.json"):
        change_json(
            file,
            lambda e: e | {"summary": {k: v | {"value": None} if k in absent else v for k, v in e["summary"].items()}},
        )
    text = told(render_report(folder))
    assert f"{axis} (kept →)" in text if axis else "No chart: it needs questions to forget, and" in text


def test_a_metric_without_value_nor_reason_is_explained_too(make_run, change_json):
    folder = make_run()
    change_json(folder / "evaluation/after.json", lambda e: e | {"summary": {}})
    assert "does not hold the metric" in told(render_report(folder))


def test_a_run_without_evaluation_says_that_nothing_is_known(make_run):
    text = told(render_report(make_run(evaluated=False)))
    assert "Nothing was measured" in text
    assert "v_f below 0.05 at step 23" in text
    assert "Declined questions" not in text


def test_a_run_without_a_step_has_no_history_chart(make_run):
    folder = make_run()
    (folder / "history.jsonl").write_text("")
    assert "No chart: no step was made" in told(render_report(folder))


def test_dropped_rows_stand_with_place_and_reason(run):
    text = told(render_report(run))
    assert "26 rows read, 24 kept, 2 dropped" in text
    assert "data/forget.jsonl:19 : the answer is empty" in text or "data/forget.jsonl:19: the answer is empty" in text


def test_control_characters_are_shown(make_run, change_json):
    folder = make_run()
    change_json(folder / "run.json", lambda r: r | {"stopped": "a\u202eb\x1b[1m"})
    assert "a⟨U+202E⟩b␛[1m" in render_report(folder)


@pytest.mark.parametrize("kind", ["flat", "ga"])
def test_the_verdict_names_the_weaknesses(kind, make_run):
    text = told(render_report(make_run(kind=kind)))
    assert "Weakness" in text
    assert ("It declines 0 % of the questions that it should keep answering" in text) == (kind == "ga")


def value(low, middle, high, better="lower"):
    return {"value": middle, "low": low, "high": high, "better": better, "n": 10}


@pytest.mark.parametrize(
    ("before", "after", "reference", "kind", "words"),
    [
        ((0.8, 0.9, 1.0), (0.2, 0.3, 0.4), (0.25, 0.3, 0.35), "strength", "no more than that is left"),
        ((0.8, 0.9, 1.0), (0.0, 0.1, 0.2), (0.25, 0.3, 0.35), "strength", "give away"),
        ((0.8, 0.9, 1.0), (0.5, 0.6, 0.7), (0.25, 0.3, 0.35), "weakness", "part of them is still there"),
        ((0.8, 0.9, 1.0), (0.8, 0.9, 1.0), (0.25, 0.3, 0.35), "weakness", "they are still there"),
        ((0.2, 0.3, 0.4), (0.2, 0.3, 0.4), (0.25, 0.3, 0.35), "open", "no clear drop"),
        ((0.8, 0.9, 1.0), (0.2, 0.3, 0.4), None, "strength", "no retrained reference"),
        ((0.8, 0.9, 1.0), (0.7, 0.8, 0.9), None, "weakness", "nothing shows that they were forgotten"),
        (None, (0.2, 0.3, 0.4), None, "open", "was not measured"),
        ((0, 0, 0), (0, 0, 0), None, "open", "did not know them before"),
        ((0, 0, 0.01), (0, 0.004, 0.01), (0, 0, 0), "open", "did not know them before"),
        ((0, 0, 0), (0.5, 0.6, 0.7), None, "weakness", "nothing shows that they were forgotten"),
    ],
)
def test_the_verdict_on_forgetting_follows_from_the_intervals(before, after, reference, kind, words):
    roles = {"before": before, "after": after, "retrained reference": reference}
    found = verdict({role: {"forget_rouge_l": value(*v)} for role, v in roles.items() if v})
    assert found[0].kind == kind
    assert words in found[0].text


def test_newer_metrics_are_shown_only_where_somebody_has_them(make_run, change_json):
    folder = make_run()
    assert "Memorisation" in render_report(folder) and "Privacy" not in render_report(folder)
    auc = value(0.4, 0.5, 0.6, "half") | {"meaning": "0.5: cannot be told apart."}
    for role, more in (("before", {}), ("after", {"mia_auc_loss": auc}), ("reference", {})):
        change_json(
            folder / f"evaluation/{role}.json",
            lambda e, more=more: e | {"summary": {k: v for k, v in e["summary"].items() if k in FIRST_NAMES} | more},
        )
    page = render_report(folder)
    assert "Memorisation" not in page and "AUC of the loss" in page and "PrivLeak" not in page
    assert "near 0.5 is better" in told(page)


HARM, GOOD, OPEN = (
    Finding("weakness", "", "declines"),
    Finding("strength", "", "declines no more"),
    Finding("open", ""),
)


@pytest.mark.parametrize(
    ("after", "kind", "words"),
    [((0.4, 0.5, 0.6), "weakness", "may be drawn out"), ((0.1, 0.2, 0.3), "strength", "no likelier than a model")],
)
def test_the_verdict_says_when_the_answers_are_still_likely(after, kind, words):
    reference = {"forget_probability": value(0.05, 0.1, 0.15)}
    told = verdict({"after": {"forget_probability": value(*after)}, "retrained reference": reference})
    assert [finding.kind for finding in told if words in finding.text] == [kind]
    alone = verdict({"after": {"forget_probability": value(*after)}})
    assert not any("token" in finding.text for finding in alone)


FORGOT = {"forget_rouge_l": value(0.9, 0.9, 0.9)}, {"forget_rouge_l": value(0.1, 0.1, 0.1)}


def after_a_change(name, before, after, better="higher", half=0.3, n=10):
    """The verdict on a run that forgot and changed one measure."""
    sides = [value(v - half, v, v + half, better) | {"n": n} for v in (before, after)]
    return verdict({role: was | {name: v} for role, was, v in zip(("before", "after"), FORGOT, sides, strict=True)})


@pytest.mark.parametrize(
    ("name", "before", "after", "better", "words"),
    [
        ("retain_rouge_l", 0.9, 0.1, "higher", "says 10 % of the words of the answers to keep (before 90 %)"),
        ("retain_probability", 0.9, 0.1, "higher", "finds the answers to keep less likely (10 % a token, before 90 %)"),
        ("general_rouge_l", 0.7, 0.05, "higher", "says 5 % of the words of everyday answers (before 70 %)"),
        ("general_probability", 0.8, 0.05, "higher", "finds everyday answers less likely (5 % a token, before 80 %)"),
        ("zero_shot_accuracy", 0.48, 0.25, "higher", "answers 25 % of multiple-choice questions right (before 48 %)"),
        ("model_utility_geo", 0.6, 0.1, "higher", "has a model utility of 0.100 (before 0.600)"),
        ("text_perplexity", 50.0, 60.0, "lower", "reads plain text worse (perplexity 50.0, now 60.0)"),
    ],
)
def test_a_loss_of_any_ability_stands_in_the_sentence_and_a_gain_does_not(name, before, after, better, words):
    assert in_short(after_a_change(name, before, after, better)).endswith(f", but it {words}.")
    better_now = in_short(after_a_change(name, after, before, better))
    assert better_now.endswith("; no clear harm was found in what was asked.")
    same = after_a_change(name, before, before, better)
    assert [finding.kind for finding in same] == ["strength", "strength"]


@pytest.mark.parametrize(("after", "kind"), [(0.48, "strength"), (0.46, "strength"), (0.44, "weakness")])
def test_right_choices_count_in_points_as_guessing_gets_some(after, kind):
    assert after_a_change("zero_shot_accuracy", 0.48, after)[1].kind == kind


@pytest.mark.parametrize(
    ("name", "before", "after", "better"),
    [
        ("text_perplexity", 255.6, 255.5, "lower"),
        ("retain_rouge_l", 0.5, 0.4, "higher"),
        ("retain_refusal_rate", 0.0, 0.0, "lower"),
    ],
)
def test_what_was_measured_on_one_question_is_not_clear(name, before, after, better):
    found = after_a_change(name, before, after, better, half=0, n=1)
    assert found[1].kind == "open" and "not clear" in found[1].text
    assert in_short(found).endswith("; harm is not ruled out.")
    assert after_a_change(name, before, after, better, half=0, n=2)[1].kind != "open"


def test_a_test_that_could_find_nothing_is_no_strength():
    assert ks_2samp([1, 2, 3], [4, 5, 6]).pvalue > 0.05 > ks_2samp([1, 2, 3, 4], [5, 6, 7, 8]).pvalue
    for n, kind in ((1, "open"), (3, "open"), (4, "strength")):
        assert after_a_change("forget_quality_p", 1.0, 1.0, "higher", half=0, n=n)[1].kind == kind


@pytest.mark.parametrize(
    ("kind", "others", "sentence"),
    [
        ("strength", [HARM], "It says 2 %, but it declines."),
        ("strength", [HARM, GOOD, HARM, HARM], "It says 2 %, but it declines, declines and declines."),
        ("weakness", [HARM], "It says 2 %; and it declines."),
        ("strength", [GOOD], "It says 2 %; no clear harm was found in what was asked."),
        ("strength", [GOOD, OPEN], "It says 2 %; harm is not ruled out."),
        ("strength", [], "It says 2 %; whether it was harmed was not measured."),
    ],
)
def test_one_sentence_names_every_harm(kind, others, sentence):
    assert in_short([Finding(kind, "", "It says 2 %"), *others]) == sentence


def test_the_sentence_stands_at_the_top_with_the_numbers_of_all_models(run):
    text = told(render_report(run))
    lead = text[text.index("The model now says") : text.index("What was asked")]
    assert re.match(
        r"The model now says \d+ % of the words of the answers to forget \(before \d+ %, a model that", lead
    )
    assert ", but it declines" in lead


def test_a_value_that_is_no_finite_number_counts_as_none():
    assert entry({"after": {"a": {"value": float("nan")}}}, "after", "a") is None
    assert entry({"after": {"a": {"value": True}}}, "after", "a") is None


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"items": {}, "summary": []}', '{"items": {"forget": 3}, "summary": {}}']
)
def test_a_damaged_evaluation_is_the_users_to_mend(content, make_run):
    folder = make_run()
    (folder / "evaluation/after.json").write_text(content)
    with pytest.raises(InputError, match=r"after\.json: not an evaluation"):
        render_report(folder)


def test_a_run_of_another_command_is_refused(make_run, change_json):
    folder = make_run()
    change_json(folder / "run.json", lambda r: r | {"command": "teach"})
    with pytest.raises(InputError, match="a run of 'amends teach'"):
        render_report(folder)


def test_half_a_character_is_shown_as_a_sign():
    assert visible("a\ud800b") == "a⟨U+D800⟩b"
    assert visible("a\nb") == "a␊b" and visible("a\nb", lines=True) == "a\nb"


@pytest.mark.parametrize(
    ("share", "words"), [(0, "0 %"), (0.001, "under 1 %"), (0.5, "50 %"), (0.999, "over 99 %"), (1, "100 %")]
)
def test_a_share_is_never_rounded_to_none_or_all(share, words):
    assert percent(share) == words


@pytest.mark.parametrize(
    ("value", "words"), [(0, "0.000"), (0.1234, "0.123"), (1e-7, "1.0e-07"), (31.25, "31.2"), (12345.6, "12,346")]
)
def test_numbers_keep_three_digits_that_count(value, words):
    assert number(value) == words
