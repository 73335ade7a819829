"""What may be added to purge and mix: a judge, making samples harder, plain answers, one language."""

import json
import re

import pytest

from amends.curate import entp
from amends.curate._entp.drafts import Draft, Mixing
from amends.curate._entp.fusion import Writer
from amends.curate._entp.judge import judge, read_digit, read_grade
from amends.curate._entp.prompts import WAYS, read_plain, read_yes_or_no
from amends.curate._entp.purge import Sample, purge
from amends.io.errors import InputError
from amends.io.tables import rows_of
from amends.lm.chat import Answer

from .writers import Template, chat, entp_run, rated_right


class Grading:
    """A judge that gives one grade, or says something else."""

    identity = "grading-1"

    def __init__(self, says):
        self.says, self.prompts, self.name = says, [], f"judge {says}"

    def answers(self, conversations, seeds, **how):
        for i, conversation in enumerate(conversations):
            self.prompts.append(conversation[-1]["content"])
            yield i, Answer(self.says(i) if callable(self.says) else self.says)


def grades(says, rows=5, **how):
    model = Grading(says)
    mixing = entp.Mixing(**how)
    return model, entp.run(rated_right(rows), chat(Template()), embedding="embedding", mixing=mixing, judge=chat(model))


# The judge


def test_a_judge_sees_what_was_accepted_and_its_grades_are_told_and_reject_nothing_by_themselves():
    model, mixed = grades('I think {"grade": 1, "reason": "dull"} it is.')
    assert len(model.prompts) == len(mixed.fused) == len(mixed.pairs) > 2
    assert all(row["output"] in json.loads(prompt.split("\n\n")[0].removeprefix("Material: "))["response"]
               for row, prompt in zip(mixed.fused, model.prompts, strict=True))  # fmt: skip
    assert {row["grade"] for row in mixed.fused} == {1}
    assert mixed.summary["fusion"]["grades"] == {"mean": 1.0, "n": len(mixed.fused), "unreadable": 0}
    assert mixed.record["judging"]["asked"] == len(mixed.fused) and "by the judge" in mixed.page


def test_without_a_judge_no_grade_is_asked_for_and_none_is_0():
    mixed = entp_run(rated_right(5))
    assert {row["grade"] for row in mixed.pairs} == {None} and mixed.record["judging"] == {}
    assert mixed.summary["fusion"]["grades"] == {"mean": None, "n": 0, "unreadable": 0}
    assert "by the judge" not in mixed.page


def test_a_grade_below_the_least_rejects_and_one_at_it_does_not():
    _, mixed = grades(lambda i: f'{{"grade": {2 + i % 2}, "reason": ""}}', least_grade=3)
    assert {row["status"] for row in mixed.pairs if row["grade"] == 3} == {"accepted"}
    assert {row["reason"] for row in mixed.pairs if row["grade"] == 2} == {"judge: grade 2 of 5, below 3"}
    assert len(mixed.fused) == sum(row["grade"] == 3 for row in mixed.pairs) > 0


@pytest.mark.parametrize("says", ["very good", '{"grade": 9}', '{"grade": true}', '{"grade": "4"}', '{"mark": 4}'])
def test_a_grade_that_cannot_be_read_is_missing_and_counted_and_rejects_nothing(says):
    _, mixed = grades(says, least_grade=5)
    assert len(mixed.fused) == len(mixed.pairs)
    assert {row["grade"] for row in mixed.pairs} == {None} and all(row["no_grade"] for row in mixed.pairs)
    assert mixed.summary["fusion"]["grades"] == {"mean": None, "n": 0, "unreadable": len(mixed.pairs)}
    assert mixed.record["judging"]["unparseable"] == len(mixed.pairs)


def test_rejected_drafts_are_not_graded():
    model = Grading('{"grade": 5}')
    draft = Draft((Sample(0, "a", "data[0]", "Ask.", "Say.", None),), {"instruction": [], "response": []})
    draft.status = "rejected"
    judge([draft], Writer(chat(model), Mixing()))
    assert not model.prompts and draft.grade is None and draft.no_grade is None


@pytest.mark.parametrize(("least", "with_judge"), [(3, False), (6, True), (0, True)])
def test_a_least_grade_needs_a_judge_and_a_place_on_the_scale(least, with_judge):
    with pytest.raises(InputError, match=f"--least-grade {least}"):
        entp_run(rated_right(3), judge=chat(Grading("5")) if with_judge else None, mixing=Mixing(least_grade=least))


def test_a_dry_run_counts_the_judge_and_its_bounds_hold():
    how = {"embedding": "embedding", "dry_run": True}
    without, told = (entp.run(rated_right(5), judge=judge, **how).record["estimate"] for judge in (None, "any"))
    extra = {"most_conversations_of_the_judge", "most_tokens_of_the_judge"}
    assert told.keys() - without.keys() == extra and {name: told[name] for name in without} == without
    assert told["most_conversations_of_the_judge"] == told["pairs"]
    model, mixed = grades('{"grade": 4}')
    assert len(model.prompts) <= told["most_conversations_of_the_judge"]
    spoken = sum(len(prompt) // 4 for prompt in model.prompts) + 512 * len(model.prompts)
    assert spoken <= told["most_tokens_of_the_judge"]
    assert mixed.record["judging"]["asked"] == told["pairs"]  # each was accepted


# Plain answers


class Plain(Template):
    """Says what it has to say, and nothing around it."""

    def answers(self, conversations, seeds, max_new_tokens, temperature):
        for i, conversation in enumerate(conversations):
            text = conversation[-1]["content"]
            self.prompts.append(text)
            material, _, _ = text.removeprefix("Material: ").rpartition("\n\n")
            told = json.loads(material)
            if "keep" not in told:
                yield i, Answer("Yes.")
            else:
                yield i, Answer(self.write("response" if "instruction" in told else "instruction", told))


def test_a_model_that_answers_in_plain_words_fuses_the_same_texts():
    rows = rated_right(6)
    plain = entp_run(rows, Plain(), mixing=Mixing(form="plain"))
    assert plain.fused and [row["output"] for row in plain.fused] == [row["output"] for row in entp_run(rows).fused]
    assert not entp_run(rows, Plain()).fused  # control: it writes no JSON


@pytest.mark.parametrize("says", ["Yes, they do.", "yes no", "", "compatible", '{"compatible": true}'])
def test_anything_but_yes_or_no_is_no_verdict(says):
    with pytest.raises(ValueError, match="expected yes or no"):
        read_yes_or_no(says)
    assert read_yes_or_no(" **Yes**. ")["compatible"] and not read_yes_or_no('"no"')["compatible"]


@pytest.mark.parametrize(
    "says",
    ["", "Sure, here it is.", "Here's an instruction: do it.", "Instruction: Name it.", '{"instruction": "Name"}',
     "**New Instruction:** Name it.", "Response: It is red."],
)  # fmt: skip
def test_a_text_that_is_announced_labelled_or_json_is_not_the_text_alone(says):
    with pytest.raises(ValueError, match="expected the text alone"):
        read_plain(says)


@pytest.mark.parametrize("says", ["Name the response of a cell.", "Here and there it rains.", "An answer is sought."])
def test_a_text_that_only_begins_alike_is_taken(says):
    assert read_plain(f" {says}\n") == says


def test_what_is_no_text_alone_is_repaired_in_the_same_form():
    class Chatty(Plain):
        def write(self, task, material):
            return f"Sure! {super().write(task, material)}"

    model = Chatty()
    mixed = entp_run(rated_right(3), model, mixing=Mixing(form="plain", rounds=1))
    assert {row["reason"] for row in mixed.pairs} == {"instruction: format"}
    repairs = [prompt for prompt in model.prompts if '"last"' in prompt]
    assert repairs and all("It was not the text alone" in prompt and "JSON object" not in prompt for prompt in repairs)


def test_a_plain_text_that_was_broken_off_is_truncated_and_repaired():
    class Long(Plain):
        def answers(self, *asked, **how):
            for i, answer in super().answers(*asked, **how):
                yield i, answer._replace(cut=answer.text != "Yes.")

    model = Long()
    mixed = entp_run(rated_right(3), model, mixing=Mixing(form="plain", rounds=1))
    assert mixed.pairs and all("truncated" in row["reason"] for row in mixed.pairs)
    assert any("It broke off." in prompt for prompt in model.prompts)


def test_grades_are_read_strictly_in_both_forms():
    assert read_digit(" 4.") == 4 and read_grade('{"grade": 4}') == 4
    for says in ("4 of 5", "six", "6", "0", "-3", "4.5"):
        with pytest.raises(ValueError, match="one digit"):
            read_digit(says)


# Making samples harder


class Evolving(Template):
    """Adds to an instruction, and answers anew."""

    def write(self, task, material):
        (sample,) = material["samples"]
        if task == "instruction":
            return f"{sample['instruction'].rstrip('.?')}, in exactly two steps."
        return "First comes one step, and then another one, so there are two steps in all."


def test_the_control_evolve_makes_the_first_sample_of_each_pair_harder_alone():
    rows, model = rated_right(10), Evolving()
    mixed = entp_run(rows, model, control="evolve")
    fused = entp_run(rows)
    assert len(mixed.pairs) == len(fused.pairs) and {len(row["source_ids"]) for row in mixed.pairs} == {1}
    assert {row["source_ids"][0] for row in mixed.pairs} == {row["source_ids"][0] for row in fused.pairs}
    assert mixed.fused and all("in exactly two steps" in row["instruction"] for row in mixed.fused)
    assert all(row["conversations"] == {"domain": 1, "instruction": 1, "response": 1} for row in mixed.pairs)
    assert all(row["keep"]["response"] == [] and row["keep"]["instruction"] for row in mixed.pairs)
    ways = {way for prompt in model.prompts for way in WAYS if way in prompt}
    assert len(ways) > 1
    again = Evolving()
    assert entp_run(rows, again, control="evolve").fused == mixed.fused and again.prompts == model.prompts


def test_an_instruction_that_only_lost_what_it_was_about_is_not_a_harder_one():
    class Losing(Evolving):
        def write(self, task, material):
            text = super().write(task, material)
            return "Do something that takes two steps." if task == "instruction" else text

    assert {row["reason"] for row in entp_run(rated_right(4), Losing(), control="evolve", rounds=1).pairs} == {
        "instruction: missing"
    }


# One language


def test_rows_that_are_surely_in_another_language_are_refused_and_unsure_ones_stay():
    told = [
        ("Wie heißt die Hauptstadt von Frankreich?", "Die Hauptstadt von Frankreich heißt Paris.", 1),
        ("What is the capital of France?", "The capital of France is the city of Paris.", 1),
        ("日本の首都はどこですか", "日本の首都は東京です。 そうです。", 5),
        ("Convert 3 to 4:", "def f(x): return x", 1),
    ]
    rows = rows_of({"instruction": asked, "output": said, "score": score} for asked, said, score in told)
    found = purge(rows, entp.Purging(raw="score", language="en"))
    assert [verdict.fate for verdict in found.verdicts] == ["refused", "dropped", "refused", "dropped"]
    for i, code in ((0, "de"), (2, "ja")):
        assert re.fullmatch(rf"looks like language {code} \(\d\.\d\d\), not en", found.verdicts[i].reason)
    assert purge(rows, entp.Purging(raw="score")).verdicts[2].fate == "kept"
    assert purge(rows, entp.Purging(raw="score", language="de")).verdicts[0].fate == "dropped"


def test_a_language_that_is_none_is_refused():
    with pytest.raises(InputError, match="--language english: unknown"):
        entp_run(rated_right(3), purging=entp.Purging(language="english"))
