"""A design is what the model said, or an error; every query names its class; the same answers give the same bytes."""

import json

import pytest

from amends.curate import adc_design
from amends.curate._adc.design import read_design
from amends.curate._adc.talk import SAMPLE, VERSIONS
from amends.io.errors import InputError, NoResult
from amends.lm.chat import Answer, Chat

CLASSES = ["shirt", "coat", "scarf"]
AXES = {"colour": ["red", "blue"], "material": ["wool", "silk", "linen"]}


class Designer:
    """A model that answers each task by a table; an answer may be a list, one for each time it is asked."""

    name, identity = "designer", "designer-1"

    def __init__(self, **said):
        self.said, self.asked = said, []

    def answers(self, conversations, seeds, max_new_tokens, temperature):
        for i, conversation in enumerate(conversations):
            head, _, task = conversation[-1]["content"].partition("\n\n")
            material = json.loads(head.removeprefix("Plan of a data set: "))
            name = next(key for key in ("classes", "axes", "values", "add") if f'{{"{key}": [' in task)
            self.asked.append((name, material))
            yield i, Answer(self.answer(name, material), tokens=10)

    def answer(self, name, material):
        said = self.said.get(name)
        if callable(said):
            said = said(material)
        if said is None:
            said = {
                "classes": {"classes": CLASSES},
                "axes": {"axes": list(AXES)},
                "values": {"values": AXES.get(material.get("attribute"))},
                "add": {"add": [], "merge": [], "drop": []},
            }[name]
        return said if isinstance(said, str) else f"Of course! {json.dumps(said)} I hope that helps."


def run(tmp_path, model=None, **how):
    return adc_design.run("photos of clothes", Chat(model or Designer(), tmp_path / "answers.sqlite"), **how)


def test_subclasses_are_all_combinations_and_every_query_names_its_class(tmp_path):
    found = run(tmp_path, out=tmp_path / "design.yaml")
    assert read_design(tmp_path / "design.yaml") == found.design
    assert [one.name for one in found.design.classes] == CLASSES
    pairs = found.design.queries()
    assert {(name, *sub.attributes.values()) for name, sub in pairs} == {
        (name, colour, material) for name in CLASSES for colour in AXES["colour"] for material in AXES["material"]
    }
    assert len(pairs) == 18
    assert all(name in sub.query and all(v in sub.query for v in sub.attributes.values()) for name, sub in pairs)


def test_the_same_answers_give_the_same_bytes_and_the_second_run_asks_nothing(tmp_path):
    for name in ("a.yaml", "b.yaml"):
        found = run(tmp_path, out=tmp_path / name, most_subclasses=9)
    assert (tmp_path / "a.yaml").read_bytes() == (tmp_path / "b.yaml").read_bytes()
    assert found.counts.calls == 0
    assert found.counts.cached == found.counts.asked == 7


def test_where_the_design_comes_from_is_recorded(tmp_path):
    origin = run(tmp_path, seed=3).design.origin
    assert origin["prompts"] == VERSIONS
    assert (origin["llm"], origin["identity"], origin["seed"]) == ("designer", "designer-1", 3)
    assert (origin["conversations"], origin["unparseable"]) == (7, 0)


def test_of_too_many_subclasses_some_are_drawn_by_the_seed_and_the_rest_is_counted(tmp_path):
    found, again, other = (run(tmp_path, most_subclasses=9, seed=seed) for seed in (0, 0, 1))
    assert [len(one.subclasses) for one in found.design.classes] == [3, 3, 3]
    assert found.design.origin["left_out"] == 9
    assert "9 combinations" in found.warnings[0]
    assert found.design.queries() == again.design.queries() != other.design.queries()


def test_the_review_adds_merges_and_drops_and_says_what_was_merged(tmp_path):
    def review(material):
        if material["list"] == "colour":
            return {"add": ["Green", "RED"], "merge": [], "drop": ["blue"]}
        merge = [["coat", "scarf"]] if material["list"] == "classes" else []
        return {"add": [], "merge": merge, "drop": []}

    found = run(tmp_path, Designer(add=review)).design
    assert [one.name for one in found.classes] == ["shirt", "coat"]
    assert found.axes["colour"] == ("red", "Green")
    assert found.origin["merged"] == [{"list": "classes", "kept": "coat", "merged": "scarf", "by": "the model"}]


@pytest.mark.parametrize(
    "answer",
    [
        {"add": [], "merge": [], "drop": ["hat"]},
        {"add": [], "merge": [["shirt", "hat"]], "drop": []},
        {"add": [], "merge": [["shirt", "coat"]], "drop": ["shirt"]},
        {"add": [], "merge": [["shirt"]], "drop": []},
        {"add": [], "merge": [], "drop": CLASSES},
        {"add": [], "merge": [], "drop": CLASSES[:2]},
        {"add": [3], "merge": [], "drop": []},
        {"add": [], "merge": [[["shirt"], "coat"]], "drop": []},
        {"add": []},
        "All good!",
    ],
)
def test_a_review_that_cannot_be_read_changes_nothing_and_is_counted(tmp_path, answer):
    def review(material):
        return answer if material["list"] == "classes" else {"add": [], "merge": [], "drop": []}

    found = run(tmp_path, Designer(add=review))
    assert [one.name for one in found.design.classes] == CLASSES
    assert found.counts.unparseable == found.design.origin["unparseable"] == 1
    assert 'The list "classes" was not looked through' in found.warnings[0]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("I'm a helpful assistant.", "no JSON objects in the answer"),
        ({"classes": ["shirt"]}, "a single class"),
        ({"classes": ["shirt", "Shirt "]}, "a single class"),
        ({"classes": ["shirt", ""]}, "is no name"),
        ({"classes": ["shirt", "..."]}, "is no name"),
        ({"classes": ["TEXT", "shirt"]}, "is no name"),
        ({"classes": ["shirt", "co\u202eat"]}, "is no name"),
        ({"classes": ["shirt", "x" * 81]}, "longer than 80"),
        ({"classes": ["shirt", {"coat": 1}]}, "is no name"),
        ({"classes": "shirt, coat"}, "not a list"),
        ({"classes": [f"c{i}" for i in range(201)]}, "not a list of 1 to 200"),
        ({"classes": CLASSES, "axes": []}, "classes alone was asked for"),
        ({"classes": SAMPLE[1]}, "repeats the example"),
        ({"classes": [*SAMPLE[1], "coat"]}, "repeats the example"),
    ],
)
def test_without_a_readable_list_of_classes_there_is_an_error_and_no_design(tmp_path, answer, reason):
    model = Designer(classes=answer)
    with pytest.raises(NoResult) as error:
        run(tmp_path, model, out=tmp_path / "design.yaml")
    assert reason in str(error.value)
    assert "more capable model with --llm, or give the --classes" in str(error.value)
    assert not (tmp_path / "design.yaml").exists()
    assert [name for name, _ in model.asked] == ["classes"] * 3


def test_an_attribute_without_readable_values_is_left_out_and_without_any_there_is_an_error(tmp_path):
    some = Designer(values=lambda material: "many" if material["attribute"] == "colour" else None)
    found = run(tmp_path, some)
    assert list(found.design.axes) == ["material"]
    assert 'The attribute "colour" was left out' in found.warnings[0]
    with pytest.raises(NoResult, match="no list of values could be read"):
        run(tmp_path / "..", Designer(values="none"), num_classes=3)


def test_classes_of_the_user_are_neither_asked_for_nor_looked_through(tmp_path):
    model = Designer()
    found = run(tmp_path, model, classes=["hat", "glove"], num_axes=0)
    assert [(name, sub.query) for name, sub in found.design.queries()] == [("hat", "hat"), ("glove", "glove")]
    assert model.asked == [] and found.counts.asked == 0
    alone = adc_design.run("clothes", classes=["hat", "glove"], num_axes=0)
    assert alone.design.classes == found.design.classes and alone.design.origin["llm"] is None
    run(tmp_path, model, classes=["hat", "glove"])
    assert {material["list"] for name, material in model.asked if name == "add"} == set(AXES)
    assert all(material["classes"] == ["hat", "glove"] for _, material in model.asked)


def test_a_query_that_two_subclasses_would_have_stands_once(tmp_path):
    model = Designer(axes={"axes": ["cut"]}, values={"values": ["long sleeved", "sleeved"]})
    found = run(tmp_path, model, classes=["shirt", "shirt long"], query="{class} {values}")
    assert [(name, sub.query) for name, sub in found.design.queries()] == [
        ("shirt", "shirt long sleeved"),
        ("shirt", "shirt sleeved"),
        ("shirt long", "shirt long long sleeved"),
    ]
    assert found.design.origin["left_out"] == 1


def test_a_dry_run_asks_nothing_and_bounds_what_is_asked(tmp_path):
    model = Designer(add="no")
    dry = run(tmp_path, model, dry_run=True, out=tmp_path / "design.yaml")
    assert model.asked == [] and not (tmp_path / "design.yaml").exists()
    wet = run(tmp_path, model)
    assert wet.counts.asked == dry.estimate["conversations"]
    assert wet.counts.calls <= dry.estimate["calls_at_most"]
    assert wet.counts.tokens <= dry.estimate["tokens_at_most"]
    assert run(tmp_path, dry_run=True, classes=["a", "b"], num_axes=0).estimate["conversations"] == 0


def test_a_budget_that_is_used_up_goes_on_from_the_cache(tmp_path):
    model = Designer()
    with pytest.raises(InputError, match="as many as allowed"):
        adc_design.run("clothes", Chat(model, tmp_path / "a.sqlite", most_calls=3))
    found = adc_design.run("clothes", Chat(model, tmp_path / "a.sqlite"))
    assert found.counts.cached == 3 and found.counts.calls == 4


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"query": "{values}"}, "must hold {class}"),
        ({"query": "{class} {other}"}, "no other braces"),
        ({"query": "{class}"}, "has no {values}"),
        ({"classes": ["one"]}, "only one"),
        ({"classes": ["one", " "]}, "is no name"),
        ({"most_subclasses": 2}, "each of the 3 classes needs one"),
        ({"num_axes": 9}, "expected 0 to 5"),
    ],
)
def test_options_that_cannot_be_are_refused(tmp_path, how, message):
    with pytest.raises(InputError) as error:
        run(tmp_path, **how)
    assert message in str(error.value)
    with pytest.raises(InputError, match="DOMAIN is empty"):
        adc_design.run("  ", Chat(Designer()))
    with pytest.raises(InputError, match="--llm"):
        adc_design.run("clothes")


def test_names_with_nearly_one_meaning_are_merged_and_told(tmp_path, monkeypatch):
    import torch

    from amends.lm import encoders

    angle = {"red": 0.0, "crimson": 0.2, "blue": 1.5, "shirt": 0.0, "tee": 0.1, "coat": 2.0}  # cosines .98, .995

    def embed(encoder, texts):
        return torch.tensor([[torch.tensor(angle[t]).cos(), torch.tensor(angle[t]).sin()] for t in texts])

    monkeypatch.setattr(encoders, "load_encoder", lambda *_: None)
    monkeypatch.setattr(encoders, "embed", embed)
    model = Designer(
        classes={"classes": ["shirt", "tee", "coat"]},
        axes={"axes": ["colour"]},
        values={"values": ["red", "crimson", "blue"]},
    )
    found = run(tmp_path, model, embedder="fake").design
    assert [one.name for one in found.classes] == ["shirt", "coat"]
    assert found.axes == {"colour": ("red", "blue")}
    assert [(m["kept"], m["merged"], m["by"]) for m in found.origin["merged"]] == [
        ("shirt", "tee", "cosine 1.00"),
        ("red", "crimson", "cosine 0.98"),
    ]
    mine = run(tmp_path, model, embedder="fake", classes=["shirt", "tee"])
    assert [one.name for one in mine.design.classes] == ["shirt", "tee"]
    assert 'The classes "shirt" and "tee" have nearly one meaning' in mine.warnings[0]


def test_the_command_writes_the_design_of_a_real_model_or_says_why_not(amends, tiny_model, tmp_path):
    """A model of random weights: it can name no class."""
    args = ("curate", "adc_design", "photos of clothes", "--out", tmp_path / "d.yaml")
    code, out, err = amends(*args, "--llm", tiny_model, "--max-new-tokens", 5)
    assert code == 2 and "no list of classes could be read" in err
    assert not (tmp_path / "d.yaml").exists()
    code, out, err = amends(*args, "--dry-run")
    assert code == 0 and "conversations: 7" in out + err
    code, out, err = amends(
        *args, "--llm", tiny_model, "--num-axes", 0, "--classes", "shirt", "--classes", "coat", "--max-new-tokens", 5
    )
    assert code == 0, err
    assert [sub.query for _, sub in read_design(tmp_path / "d.yaml").queries()] == ["shirt", "coat"]
