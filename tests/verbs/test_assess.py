import json
import math
from types import SimpleNamespace

import pytest
import torch
from transformers import BertForSequenceClassification, BertModel

from amends.assessment import ask as asking
from amends.assessment.attacks import Curve
from amends.assessment.axes import AXES, AXIS_OF, LIMITS
from amends.io.errors import InputError
from amends.lm import load as loading
from amends.lm import turns
from amends.lm.load import load
from amends.report.assessment import name_of, render_assessment
from amends.verbs import assess as assessing
from amends.verbs.assess import run

from ..conftest import save_tiny_model
from ..lm.test_encoders import save

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's own

EVIL = "<script>alert(1)</script>"
FILES = ["assessment.json", "items.jsonl", "manifest.json", "report.html", "run.json"]


def rows(word, count):
    return [
        {"question": f"Where was {word} {i} born?", "answer": f"In {word} town {i}, it is said."} for i in range(count)
    ]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with forget.jsonl (with other wordings), retain.jsonl and holdout.jsonl."""
    monkeypatch.chdir(tmp_path)
    forget = [
        row
        | {
            "question": f"{row['question']} {EVIL}",
            "paraphrased_question": f"The birthplace of number {i}?",
            "reversed_question": f"Who was born in ann town {i}?",
            "reversed_answer": f"ann {i}",
            "perturbed_answer": [f"In {other} town {i}, it is said." for other in ("dan", "eve")],
        }
        for i, row in enumerate(rows("ann", 6))
    ]
    for name, data in {"forget": forget, "retain": rows("bob", 14), "holdout": rows("cleo", 5)}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    return tmp_path


@pytest.fixture
def assess(place, amends, tiny_model, other_model):
    """Run `amends assess` on two tiny models with eight new tokens."""

    def assess(*more, before=tiny_model, after=other_model):
        words = ["--before", before, "--after", after, "--out", "out", "--max-new-tokens", 8]
        data = [] if "--forget" in more else ["--forget", "forget.jsonl"]
        return amends("assess", *words, *data, *more)

    return assess


def found(place):
    made = json.loads((place / "out" / "assessment.json").read_text())
    return made, {m["metric"]: m for m in made["measures"]}


def test_everything_that_is_given_is_measured_and_written(place, assess, amends, tiny_model):
    code, out, err = assess(
        "--retain", "retain.jsonl", "--holdout", "holdout.jsonl", "--reference", tiny_model, "--rows", 8
    )
    assert code in (0, 3), err
    assert sorted(file.name for file in (place / "out").iterdir()) == FILES
    made, by_name = found(place)
    assert code == (3 if made["verdict"] == "fail" else 0)
    assert {name: m["axis"] for name, m in by_name.items() if m["limit"] is not None} == AXIS_OF
    assert AXIS_OF.keys() == LIMITS.keys()
    gaps = {name for name, m in by_name.items() if m["missing"]}
    # random models know nothing, so that nothing can come back; and the reference is the model before
    assert gaps - {"distinct_words", "output_perplexity"} == {
        "forget_rate", "int8_restored", "int4_restored", "relearn_recovery", "relearn_area", "relearn_excess",
        "relearn_retain_recovery", "relearn_retain_excess", "relearn_text_recovery", "relearn_text_excess",
        "gibberish",
    }  # fmt: skip
    assert all(by_name[name]["after"] is None for name in gaps)
    assert by_name["drift"]["after"] > 0.1
    assert by_name["privleak"]["before"] == 0  # the reference is the model before
    assert len(out.splitlines()) == 14
    assert set(made["curves"]) == {"forget", "retain", "text"}
    for by_role in made["curves"].values():
        assert {role: of["steps"] for role, of in by_role.items()} == {
            "before": [0], "after": [0, 5, 10, 20, 50], "reference": [0, 5, 10, 20, 50],
        }  # fmt: skip
    page = (place / "out" / "report.html").read_text()
    assert page.count("<svg") == 4
    assert all(f'"taught-{lesson}-title' in page for lesson in made["curves"])
    assert "Relearning elsewhere" in page
    items = [json.loads(line) for line in (place / "out" / "items.jsonl").read_text().splitlines()]
    assert {i["role"] for i in items} == {"before", "after", "reference"}
    sets = {"forget", "forget_sampled", "forget_int8", "forget_int4", "near", "far", "general"}
    assert {i["item_set"] for i in items} == sets
    assert {i["variant"] for i in items if i["item_set"] == "forget"} == {
        "question", "paraphrase_1", "reversed", "prefix_1", "prefix_3", "prefix_5", "few_shot", "cloze", "typos",
        "mixed",
    }  # fmt: skip
    assert {i["expected"] for i in items if i["variant"] == "reversed"} == {f"ann {i}" for i in range(6)}
    assert json.loads((place / "out" / "run.json").read_text())["config"]["reference"] == str(tiny_model)
    code, out, _ = amends("verify", "out")
    assert code == 0, out


def test_the_page_escapes_what_others_wrote_and_asks_for_nothing(place, assess):
    assert assess("--retain", "retain.jsonl", "--rows", 4, "--axes", "elicitation,neighbours")[0] in (0, 3)
    page = (place / "out" / "report.html").read_text()
    assert EVIL not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "<script" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page


@pytest.mark.parametrize(
    ("model", "name"), [("runs/first/model", "first"), ("runs/first/model/", "first"), ("org/tiny", "tiny"), ("", "")]
)
def test_the_page_calls_the_model_of_a_run_by_the_name_of_the_run(model, name):
    assert name_of(model) == name


def test_a_model_that_did_not_change_has_moved_nothing_and_forgot_nothing(place, tiny_model):
    model = load(tiny_model)  # three times, for one that is the same object is asked once
    one = run(
        model.model,
        load(tiny_model).model,
        "forget.jsonl",
        retain="retain.jsonl",
        holdout="holdout.jsonl",
        reference=load(tiny_model).model,
        max_new_tokens=8,
        rows=4,
        axes=[axis for axis in AXES if not axis.startswith("relearning")],
        processing_class=model.tokenizer,
    )
    zero = ("drift", "changed", "retain_loss", "general_loss", "spill_over", "over_refusal", "degenerate", "privleak")
    zero += ("kl_reference", "js_reference", "rouge_distance", "truth_ratio_ks")
    assert {name: one[name].after for name in zero} == dict.fromkeys(zero, 0)
    assert one["truth_ratio_p"].after == 1
    assert one["mia_auc_reference"].after == 0.5
    assert one["leak_8"].after >= one["leak_1"].after
    assert one["perplexity_ratio"].after == pytest.approx(1)
    assert one["int4_flips"].after == one["int8_flips"].after == 0
    assert one["forget_rate"].after is None  # nothing was to be forgotten: the reference is the same model
    for m in one.measures:
        if m.before is not None and m.reference is not None:
            assert m.before == pytest.approx(m.after, abs=1e-9) == m.reference


def test_a_model_in_two_roles_is_asked_once_and_stands_in_both(place, tiny_model, other_model, monkeypatch):
    asked, ask = [], asking.ask_model
    monkeypatch.setattr(asking, "ask_model", lambda *a: asked.append(a[2]) or ask(*a))
    options = {"axes": ["elicitation", "likeness", "relearning"], "rows": 4, "max_new_tokens": 4}
    one = run(tiny_model, str(other_model), "forget.jsonl", reference=other_model, **options)
    assert asked == ["after", "reference", "before"][::2]
    assert one["kl_reference"].after == 0 < one["kl_reference"].before
    assert one.curves["forget"]["after"] == one.curves["forget"]["reference"]
    asked.clear()
    two = run(tiny_model, load(other_model).model, "forget.jsonl", reference=other_model,
              processing_class=load(tiny_model).tokenizer, **options)  # fmt: skip
    assert asked == ["after", "reference", "before"]
    for mine, theirs in zip(one.measures, two.measures, strict=True):
        assert mine == theirs


def test_what_is_not_given_is_a_gap_with_its_reason_and_never_0(place, assess):
    (place / "forget.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows("ann", 2)))
    code, out, _ = assess()
    assert code == 0
    _, by_name = found(place)
    for name, reason in {
        "retain_loss": "--retain",
        "retain_rouge": "--retain",
        "spill_over": "--retain",
        "over_refusal": "--retain",
        "rouge_few_shot": "--retain",
        "rouge_paraphrase": "paraphrased_question",
        "mia_auc_loss": "--holdout",
        "privleak": "--holdout",
        "gibberish": "--gibberish",
        "rouge_reversed": "reversed_question",
        "relearn_excess": "four rows",
        "relearn_retain_recovery": "--retain",
        "relearn_retain_excess": "--retain",
        "relearn_text_excess": "--reference",
        "kl_reference": "--reference",
        "rouge_distance": "--reference",
        "truth_ratio_ks": "--reference",
        "mia_auc_gradient": "--holdout",
    }.items():
        assert by_name[name]["after"] is None
        assert reason in by_name[name]["missing"]
        assert by_name[name]["verdict"] is None
        assert "One row" not in by_name[name]["meaning"]
    assert by_name["forget_rate"]["missing"] == "The model before says next to nothing of the answers to forget."
    assert "not judged over_refusal: It needs questions to keep (--retain)." in out


def test_an_answer_without_words_is_left_out_of_rouge_and_its_row_of_the_page(place, assess):
    forget = [*rows("ann", 2), {"question": "How does it end?", "answer": "?!"}]
    (place / "forget.jsonl").write_text("".join(json.dumps(row) + "\n" for row in forget))
    assert assess("--axes", "elicitation")[0] in (0, 3)
    _, by_name = found(place)
    assert by_name["forget_rouge"]["n"] == by_name["worst_case_rouge"]["n"] == 2
    items = [json.loads(line) for line in (place / "out" / "items.jsonl").read_text().splitlines()]
    assert all((i["rouge_l"] is None) == (i["id"] == items[-1]["id"]) for i in items)
    page = (place / "out" / "report.html").read_text()
    assert "Where was ann 1 born?" in page and "How does it end?" not in page
    curve = Curve((0, 5), [[0.5, 1.0], [math.nan, math.nan]])
    asked = SimpleNamespace(curves={"forget": curve}, tested={"forget": ["a", "b"]})
    made = assessing.curves_of(SimpleNamespace(asked={"after": asked, "before": knowing(a=0.9, b=None, taught=0.1)}))
    assert made["forget"]["after"] == {"steps": [0, 5], "rouge_l": [0.5, 1.0]}
    assert made["forget"]["before"] == {"steps": [0], "rouge_l": [0.9]}  # of the rows that are tested


def knowing(**scores):
    """A model before that says so much of these rows."""
    plain = {"item_set": "forget", "variant": "question"}
    return SimpleNamespace(curves={}, answers=[plain | {"id": i, "rouge_l": score} for i, score in scores.items()])


def test_as_many_rows_to_keep_and_pieces_of_text_are_taught_as_rows_to_forget(tiny_model, other_model, place):
    options = {"axes": ["relearning_elsewhere"], "max_new_tokens": 4, "texts": ["One two three.", "x", "Four five."]}
    one = run(tiny_model, other_model, "forget.jsonl", retain="retain.jsonl", **options)
    assert one["relearn_retain_recovery"].n == one["relearn_text_recovery"].n == 6
    assert "training on 3 rows to keep" in one["relearn_retain_recovery"].meaning
    assert "training on 2 pieces of plain text" in one["relearn_text_recovery"].meaning  # one token is no piece
    bare = run(tiny_model, other_model, "forget.jsonl", **options | {"texts": ["x"]})
    assert bare["relearn_text_recovery"].missing == bare["relearn_text_excess"].missing == "There is no text."
    assert bare.curves == {}


def test_the_page_of_a_folder_from_before_there_were_several_attacks_is_drawn(place, assess):
    assert assess("--axes", "neighbours", "--rows", 2)[0] in (0, 3)
    made, _ = found(place)
    assert made["curves"] == {}
    by_role = {"after": {"steps": [0.0, 50.0], "rouge_l": [0.1, 0.4]}}

    def page(curves):
        (place / "out" / "assessment.json").write_text(json.dumps(made | {"curves": curves}))
        return render_assessment(place / "out")

    assert page(by_role) == page({"forget": by_role})
    assert page(by_role).count("<svg") == 1
    assert "after: from 0.10 to 0.40" in page(by_role)
    with_level = page({"forget": by_role | {"before": {"steps": [0.0], "rouge_l": [0.875]}}})
    assert "The dotted line is the model before, 0.88." in with_level and "before: from" not in with_level
    assert "the relearning attack was not made" in page({})
    wordless = {role: {"steps": [0.0, 50.0], "rouge_l": [None, None]} for role in ("before", "after")}
    assert "no answer that is tested has a word to find" in page({"forget": wordless})
    elsewhere = page({"text": by_role})
    assert "taught-text-title" in elsewhere and "the relearning attack was not made" in elsewhere


def test_plain_text_is_cut_as_the_run_that_forgot_it_cut_it(place, assess, tiny_model, amends):
    text = {"id": "a", "text": "It was a dark and stormy night, they say."}  # its tokens are bytes
    (place / "text.jsonl").write_text(json.dumps(text) + "\n")
    cut = ["--forget", "text.jsonl", "--prefix-tokens", 12, "--continuation-tokens", 9]
    words = ["--model", tiny_model, "--epochs", 0.1, "--eval-rows", 1, "--out", "run"]
    assert amends("unlearn", "ga", *words, *cut)[0] == 0
    code, _, err = assess("--axes", "elicitation", *cut)
    assert code in (0, 3), err
    items = [json.loads(line) for line in (place / "out" / "items.jsonl").read_text().splitlines()]
    said = {(i["id"], i["question"], i["expected"]) for i in items if i["variant"] == "question"}
    assert said == {("a#0", text["text"][:12], text["text"][12:21]), ("a#21", text["text"][21:33], text["text"][33:])}
    runs = [json.loads((place / name / "run.json").read_text()) for name in ("out", "run")]
    assert runs[0]["data"]["forget"] == runs[1]["data"]["forget"]  # its digest, too
    for name, value in (("prefix_tokens", 12), ("continuation_tokens", 9)):
        assert [made["config"][name] for made in runs] == [value, value]


def test_gibberish_is_what_the_classifier_named_does_not_call_clean(place, assess, tiny_model, monkeypatch):
    save(place / "odd", tiny_model, BertForSequenceClassification, id2label={0: "good", 1: "bad"})
    code, _, err = assess("--axes", "quality", "--gibberish", "odd")
    assert code == 2 and "odd: has no class 'clean' (found: good, bad)" in err
    model = save(place / "fit", tiny_model, BertForSequenceClassification, id2label={0: "clean", 1: "noise"})
    model.classifier.weight.data.zero_()
    model.classifier.bias.data = torch.tensor([0.7, 0.3]).log()
    model.save_pretrained(place / "fit")
    save(place / "near", tiny_model, BertModel)
    monkeypatch.setattr(asking, "generate", lambda _, __, prompts, **___: ["Well, well.", ""] * (len(prompts) // 2))
    code, _, err = assess("--axes", "quality", "--gibberish", "fit", "--embedder", "near", "--retain", "retain.jsonl")
    assert code in (0, 3), err
    measured = found(place)[1]["gibberish"]
    assert measured["after"] == measured["before"] == pytest.approx(0.3, abs=1e-5)
    assert measured["n"] == 10  # of six questions to forget and fourteen to keep every other answer is empty


def test_a_limit_that_is_asked_for_and_cannot_be_judged_fails_the_release(place, assess):
    code, out, _ = assess("--limit", "over_refusal=1", "--axes", "neighbours")
    assert code == 3
    assert "fail       over_refusal: It needs questions to keep" in out
    assert (place / "out" / "report.html").exists()


def test_a_limit_that_is_broken_ends_with_3_and_one_that_is_kept_with_0(place, assess, tiny_model):
    options = ["--axes", "utility", "--limit"]
    assert assess(*options, "perplexity_ratio=0")[0] == 3
    made, by_name = found(place)
    assert made["verdict"] == by_name["perplexity_ratio"]["verdict"] == "fail"
    for file in (place / "out").iterdir():
        file.unlink()
    (place / "out").rmdir()
    assert assess(*options, "perplexity_ratio=5", after=tiny_model)[0] == 0
    assert found(place)[0]["verdict"] == "pass"


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--axes", "elicitation,magic"], "--axes magic: there is no such axis. Known: elicitation"),
        (["--limit", "magic=1"], "there is no such limit"),
        (["--limit", "privleak=much"], "a number of 0 or more is needed"),
        (["--retain", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--reference", "./nowhere"], "./nowhere: no such file or folder"),
        (["--holdout", "bad.jsonl"], "bad.jsonl:1"),
        (["--forget", "odd.jsonl"], "odd.jsonl:1: paraphrased_question must be a text"),
        (["--forget", "half.jsonl"], "half.jsonl:1: reversed_question needs reversed_answer beside it"),
        (["--rows", "0"], "rows"),
        (["--retain", "empty.jsonl"], 'empty.jsonl:1: column "question" is empty. Fill it.'),
        (["--seed", "-1"], "Invalid value for '--seed'"),
        (["--holdout", "forget.jsonl"], "forget.jsonl:1: the same row as forget.jsonl:1 (6 of 6 rows of --holdout"),
        (["--retain", "retain.jsonl", "--holdout", "retain.jsonl"], "(14 of 14 rows of --holdout"),
        (["--retain", "forget.jsonl"], "(6 of 6 rows of --retain are among those to forget or to keep). Give other"),
        (["--prefix-tokens", "9"], "--prefix-tokens: no row is plain text that is cut. Leave it out."),
        (["--continuation-tokens", "9"], "--continuation-tokens: no row is plain text that is cut. Leave it out."),
        (
            ["--forget", "short.jsonl"],
            "the text has 30 tokens; 100 go to the prefix, none is left to forget. Lower --prefix",
        ),
        (["--limit", "leak_8=0.1"], "--limit leak_8: is measured on the axis sampling, which --axes leaves out. Add"),
    ],
)
def test_bad_input_is_one_line_that_says_what_to_do_and_leaves_nothing(place, assess, more, says):
    (place / "empty.jsonl").write_text('{"question": "", "answer": "a"}\n')
    (place / "short.jsonl").write_text('{"text": "It was a dark and stormy night"}\n')
    (place / "bad.jsonl").write_text('{"question": "a"}\n')
    (place / "odd.jsonl").write_text('{"question": "a", "answer": "b c", "paraphrased_question": 3}\n')
    (place / "half.jsonl").write_text('{"question": "a", "answer": "b c", "reversed_question": "d"}\n')
    code, _, err = assess("--axes", "neighbours", *more)
    assert code == 2
    (line,) = [line for line in err.splitlines() if line.startswith("amends: error: ")]
    assert says in line and "--skip-bad-rows" not in line
    assert not [*place.glob("out*"), *place.glob(".out*")]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"rows": 0}, "rows=0: a number of at least 1"),
        ({"seed": -1}, "seed=-1: a number of at least 0"),
        ({"prefix_tokens": 0}, "prefix_tokens=0: a number of at least 1"),
        ({"templates": "No idea"}, "No idea"),
        ({"texts": ["It was", 3]}, r"texts\[1\] is int: give a list of texts"),
        ({"max_new_tokens": 2.5}, "max_new_tokens=2.5: a whole number"),
    ],
    ids=str,
)
def test_what_the_command_line_refuses_is_refused_from_python(tiny_model, wrong, says):
    with pytest.raises(InputError, match=says):
        assessing.run(tiny_model, tiny_model, rows("ann", 1), **wrong)


def test_one_text_or_limit_is_a_list_of_one(tiny_model):
    more = {"axes": "utility", "max_new_tokens": 2}
    text = "It was the best of times."
    one, other = (run(tiny_model, tiny_model, rows("ann", 1), texts=texts, **more) for texts in (text, [text]))
    assert one["perplexity_ratio"] == other["perplexity_ratio"] and one["perplexity_ratio"].n == 1
    assert run(tiny_model, tiny_model, rows("ann", 1), limits="retain_loss=.5", **more)["retain_loss"].limit == 0.5


@pytest.mark.parametrize("role", ["before", "reference"])
def test_a_model_that_is_not_there_is_told_before_another_is_loaded(place, assess, monkeypatch, tiny_model, role):
    monkeypatch.setattr(turns, "load", None)
    monkeypatch.setattr(assessing, "load_encoder", None)
    given = {"before": tiny_model, "reference": tiny_model} | {role: "no/such/model"}
    code, _, err = assess("--reference", given["reference"], "--gibberish", "any", before=given["before"])
    assert code == 2 and "no/such/model: no such file or folder" in err


def test_an_output_that_is_there_is_not_replaced(place, assess):
    (place / "out").mkdir()
    code, _, err = assess()
    assert code == 2
    assert "exists already" in err


def test_adapters_on_one_base_take_turns_on_it(place, assess, amends, tiny_model, monkeypatch):
    for name in ("forget", "retain"):
        words = ["--model", tiny_model, "--data", f"{name}.jsonl", "--epochs", 1]
        assert amends("teach", *words, "--out", name)[0] == 0
        for file in (place / name).glob("tokenizer*"):  # else its own may be another
            file.unlink()
    bases = []
    plain = loading._load_plain
    monkeypatch.setattr(loading, "_load_plain", lambda *a, **k: bases.append(a[0]) or plain(*a, **k))
    code, _, err = assess(
        *("--reference", "retain", "--rows", 4, "--axes", "quantisation,locality"), before="forget", after="retain"
    )
    assert code in (0, 3), err
    assert len(bases) == 1
    _, by_name = found(place)
    assert 0 < by_name["drift"]["after"] < 1
    assert by_name["int4_rouge"]["after"] is not None


def test_answers_so_long_that_no_question_fits_are_refused_and_some_that_do_not_are_told(
    place, amends, tmp_path_factory
):
    small = save_tiny_model(tmp_path_factory.mktemp("small") / "model", context=128)
    questions = ["Who?", "Who was it?", "Who in the whole wide world was it again?"]
    (place / "forget.jsonl").write_text("".join(json.dumps({"question": q, "answer": "I."}) + "\n" for q in questions))
    words = ["--before", small, "--after", small, "--forget", "forget.jsonl", "--axes", "locality", "--out", "out"]
    code, _, err = amends("assess", *words, "--max-new-tokens", 2000)
    said = " ".join(err.split())
    assert code == 2 and "--max-new-tokens 2000: beside so long an answer none of the questions to forget fits" in said
    assert not (place / "out").exists()
    most = int(said.partition("Give at most ")[2].partition(",")[0])
    assert amends("assess", *words, "--max-new-tokens", most + 1)[0] == 2
    code, _, err = amends("assess", *words, "--max-new-tokens", most)
    assert code == 0
    warning = "after: 2 prompts of the variant question leave no room for the answer"
    assert f"warning: {warning}" in " ".join(err.split())
    assert json.loads((place / "out" / "run.json").read_text())["warnings"][0].startswith(warning)


def test_a_row_longer_than_the_context_is_named(place, amends, tmp_path_factory):
    small = save_tiny_model(tmp_path_factory.mktemp("small") / "model", context=128)
    row = {"question": "Where?", "answer": "x" * 200, "id": "--"}
    (place / "forget.jsonl").write_text(json.dumps(row) + "\n")
    words = ["--before", small, "--after", small, "--forget", "forget.jsonl", "--axes", "sampling", "--out", "out"]
    code, _, err = amends("assess", *words)
    assert code == 2
    assert "forget.jsonl:1: prompt and answer have" in err and "more than the 128 that fit" in " ".join(err.split())
    assert "--" not in err  # no option of other commands
