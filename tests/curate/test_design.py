import pytest

from amends.curate._adc.design import Class, Design, Subclass, design_of, read_design, write_design
from amends.io.errors import InputError

DESIGN = Design(
    "photos of <b>clothes</b>: 'no' and \u201cyes\u201d",
    (
        Class(
            "shirt", (Subclass("red", "red shirt", {"colour": "red"}), Subclass("on", "on: shirt", {"colour": "on"}))
        ),
        Class("1", (Subclass("null", "- null # 1"),)),
    ),
    {"colour": ("red", "on")},
    {"seed": 0, "merged": [{"kept": "a", "merged": "b"}]},
)


def test_what_was_written_is_read_back_whatever_the_names_are(tmp_path):
    write_design(tmp_path / "d.yaml", DESIGN)
    assert read_design(tmp_path / "d.yaml") == DESIGN


def test_queries_are_all_subclasses_with_their_class_in_order():
    assert [(name, sub.query) for name, sub in DESIGN.queries()] == [
        ("shirt", "red shirt"),
        ("shirt", "on: shirt"),
        ("1", "- null # 1"),
    ]


def test_a_short_design_is_filled_in_with_the_names(tmp_path):
    (tmp_path / "d.yaml").write_text("classes: [cat, {name: dog, subclasses: [poodle, {name: pug, query: a pug}]}]")
    found = read_design(tmp_path / "d.yaml")
    assert [(name, sub.name, sub.query) for name, sub in found.queries()] == [
        ("cat", "cat", "cat"),
        ("dog", "poodle", "poodle"),
        ("dog", "pug", "a pug"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "d.yaml: expected 'name: value' lines"),
        ("classes: []", "classes: expected a list"),
        ("classes: [cat, cat]", 'the class "cat" is there twice'),
        ("classes: [yes, cat]", "class 1: expected 'name: value' lines"),
        ("classes: [{name: no}, cat]", "class 1: name: expected a text"),
        ("classes: [{name: a, subclasses: [x]}, {name: b, subclasses: [x]}]", 'the query "x" is there twice'),
        ("classes: [{name: a, subclasses: [x, {name: x, query: y}]}, b]", 'the subclass "a: x" is there twice'),
        ("domain: a\nclasses: [cat, &x dog, *x]", "holds an alias"),
        ("domain: a\nclasses: [cat, [\n", "d.yaml:3: not YAML"),
        ("classes: !!python/object/apply:os.system [ls]", "not YAML"),
    ],
)
def test_a_design_that_cannot_be_used_is_refused_with_its_place(tmp_path, text, message):
    (tmp_path / "d.yaml").write_text(text)
    with pytest.raises(InputError) as error:
        read_design(tmp_path / "d.yaml")
    assert message in str(error.value)


def test_a_file_that_is_missing_or_a_folder_is_refused(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(InputError, match="the design cannot be read"):
            read_design(path)


def test_a_number_as_an_attribute_is_its_text():
    found = design_of({"classes": [{"name": "a", "subclasses": [{"name": "b", "attributes": {"age": 3}}]}]}, "here")
    assert found.classes[0].subclasses[0].attributes == {"age": "3"}
