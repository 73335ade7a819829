import json

import pytest
import yaml

from amends.report.card import model_card


def card_of(folder, base="somebody/small-lm", is_adapter=True, model=None):
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    run["config"]["model"] = model or base
    files = (folder / "evaluation").glob("*.json")
    summaries = {f.stem: json.loads(f.read_text(encoding="utf-8"))["summary"] for f in files}
    return model_card(run, summaries, base, is_adapter)


def header_of(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_the_header_names_base_library_and_method(run):
    header = header_of(card_of(run))
    assert header["base_model"] == "somebody/small-lm"
    assert header["library_name"] == "peft"
    assert header["tags"] == ["unlearning", "machine-unlearning", "amends", "flat"]
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert header["unlearned_from"] == {"weights_sha256": record["weights"]["before"]}
    assert "language" not in header


@pytest.mark.parametrize(
    ("base", "shown"),
    [
        ("/home/me/secret/model/", "This is model after"),
        ("C:\\Users\\me\\secret\\model", "This is model after"),
        ("somebody/small-lm", "This is somebody/small-lm after"),
        (None, "This is a model that was given in memory after"),
        ("///", "This is a model after"),
    ],
)
def test_the_card_tells_of_a_path_only_its_last_part(base, shown, run):
    card = card_of(run, base)
    assert shown in card and "secret" not in card


@pytest.mark.parametrize(
    "base", ["models/local/copy", "/home/me/model", "../up", "model.gguf", "a b/c", "C:\\models\\x", ""]
)
def test_a_base_that_is_no_hub_id_is_not_in_the_header(base, run):
    assert "base_model" not in header_of(card_of(run, base))


def test_a_base_that_lies_here_is_no_hub_id_though_it_looks_like_one(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "somebody").mkdir()
    assert header_of(card_of(run))["base_model"] == "somebody/small-lm"
    (tmp_path / "somebody" / "small-lm").mkdir()
    card = card_of(run)
    assert "base_model" not in header_of(card) and "This is small-lm after" in card


def test_a_run_that_began_with_an_adapter_says_so(run):
    merged = card_of(run, is_adapter=False, model="/home/me/secret/taught")
    assert "This is somebody/small-lm with the adapter taught, merged into it, after `amends unlearn flat`" in merged
    assert "secret" not in merged
    assert "This is somebody/small-lm with the adapter some/one after" in card_of(run, model="some/one")
    assert "adapter" not in card_of(run, is_adapter=False)


def test_whole_weights_load_with_transformers_and_an_adapter_with_peft(run):
    adapter, whole = card_of(run), card_of(run, is_adapter=False)
    assert "AutoPeftModelForCausalLM" in adapter
    assert "peft" not in whole and header_of(whole)["library_name"] == "transformers"


@pytest.mark.parametrize("is_adapter", [True, False])
def test_the_code_in_the_card_is_python(is_adapter, run):
    code = card_of(run, is_adapter=is_adapter).split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")


def test_the_card_has_number_and_digest_of_what_was_forgotten_and_no_text(run):
    card = card_of(run)
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert "24 question-answer pairs" in card
    assert record["data"]["forget"]["sha256"] in card and record["weights"]["after"] in card
    assert "Miriam" not in card and "Orchard" not in card


def test_numbers_of_all_models_stand_in_a_table(run):
    lines = card_of(run).splitlines()
    head = next(line for line in lines if line.startswith("| metric"))
    assert head == "| metric (95 % interval) | before | after | retrained reference |"
    rows = [line for line in lines if line.startswith("| ")]
    assert len(rows) > 6 and all(line.count("|") == 5 for line in rows)


def test_without_evaluation_the_card_says_so(make_run):
    card = card_of(make_run(evaluated=False))
    assert "the run was made without an evaluation" in card
    assert "| metric" not in card


def test_the_limits_are_named(run):
    card = card_of(run)
    for words in ("no guarantee", "may decline questions", "no legal proof", "amends verify RUN"):
        assert words in card


@pytest.mark.parametrize(
    "text", ["<script>1</script>", "[a](javascript:1)", "`code`", "---\ntags: x", "\x1b\u202e\ud800", "| a |"]
)
def test_texts_of_the_run_stay_text(text, make_run, change_json):
    folder = make_run()
    change_json(folder / "run.json", lambda r: r | {"stopped": text, "command": f"unlearn {text}", "amends": text})
    card = card_of(folder, text)
    assert "<script" not in card.replace("`amends unlearn <script>1</script>`", "").split("---\n", 2)[2]
    assert "](javascript" not in card.replace("`amends unlearn [a](javascript:1)`", "").split("---\n", 2)[2]
    assert card.count("\n## ") == 6
    assert header_of(card)["library_name"] == "peft"
    card.encode("utf-8")
