"""Several requests one after the other, on a tiny random model."""

import json
import shutil
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load_file, save_file

from amends.evaluation.evaluate import build_suite
from amends.evaluation.refusals import refusals
from amends.evaluation.summary import SUMMARY_NAMES, summarise
from amends.io.atomic import sha256_json, write_json, write_manifest
from amends.io.errors import InputError
from amends.io.run import read_run
from amends.lm.load import load
from amends.unlearn import flat
from amends.unlearn._ledger import LEDGER, Entry, read_ledger
from amends.unlearn._read import read_data
from amends.unlearn._request import Request

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's own


def rows(num, town):
    return [{"id": f"{town}{i}", "question": f"Where in {town} is {i}?", "answer": f"{town} {i}."} for i in range(num)]


def write(file, records):
    file.write_text("".join(json.dumps(row) + "\n" for row in records))
    return file


def read(file):
    return json.loads(file.read_text())


@pytest.fixture
def unlearn(tmp_path, amends):
    """Carry out a request of its own data: unlearn(name, model, *options) -> run folder."""

    def carry_out(name, model, *options, rank=16, rows_=3, code=0):
        data = tmp_path / f"{name}.jsonl"
        if not data.exists():
            write(data, rows(rows_, name))
        words = ["--model", model, "--forget", data, "--out", tmp_path / name, "--epochs", 1, "--eval-rows", 1]
        found, _, err = amends("unlearn", "flat", *words, "--lora-rank", rank, *options)
        assert found == code, err
        carry_out.err = " ".join(err.split())
        return tmp_path / name

    return carry_out


@pytest.mark.parametrize("rank", [2, 0])
def test_three_requests_are_chained_asked_again_shown_and_verified(tmp_path, tiny_model, unlearn, amends, rank):
    first = unlearn("rome", tiny_model, rank=rank)
    second = unlearn("oslo", first / "model", rank=rank, rows_=4)
    third = unlearn("lima", second / "model", rank=rank, rows_=2)
    ledgers = [read_ledger(run / "model") for run in (first, second, third)]
    assert [len(ledger) for ledger in ledgers] == [1, 2, 3]
    assert ledgers[2][:2] == ledgers[1] and ledgers[1][:1] == ledgers[0]
    text = (third / "model" / LEDGER).read_text()
    assert not any(row[key] in text for town in ("rome", "oslo", "lima") for row in rows(2, town) for key in row)
    entries = ledgers[2]
    assert [entry.forget["rows"] for entry in entries] == [3, 4, 2]
    assert [entry.forget["path"] for entry in entries] == [
        str(tmp_path / f"{n}.jsonl") for n in ("rome", "oslo", "lima")
    ]
    assert [entry.weights["before"] for entry in entries[1:]] == [entry.weights["after"] for entry in entries[:2]]
    for run, entry in zip((first, second, third), entries, strict=True):
        after = read(run / "evaluation" / "after.json")["summary"]
        assert entry.measured["forget_rouge_l"]["value"] == after["forget_rouge_l"]["value"]
        assert entry.measured["forget_probability"]["n"] == entry.forget["rows"]
    for role in ("before", "after"):
        found = read(third / "evaluation" / f"{role}.json")
        assert [len(found["items"][name]) for name in ("forget", "request_1", "request_2")] == [2, 3, 4]
        assert tuple(found["summary"])[: len(SUMMARY_NAMES)] == SUMMARY_NAMES
        assert found["summary"]["request_2_rouge_l"]["n"] == 4
    # The model of the second request is the model before the third: the same questions give the same answers.
    asked = read(third / "evaluation" / "before.json")["items"]["request_2"]
    then = read(second / "evaluation" / "after.json")["items"]["forget"]
    assert [item["probability"] for item in asked] == pytest.approx([item["probability"] for item in then], rel=1e-5)
    assert [entry["left_out"] for entry in read_run(third)["data"]["earlier"]] == [None, None]
    page = (third / "report.html").read_text()
    assert page.count("Earlier requests</h2>") == 1
    assert [name in page for name in ("Request 1", "rome.jsonl", "Request 2", "Request 3")] == [True, True, True, False]
    assert "Earlier requests" not in (first / "report.html").read_text()
    assert "Requests carried out on these weights before: 2." in (third / "model" / "README.md").read_text()
    code, out, _ = amends("verify", third)
    assert code == 0, out
    assert {line[:18].strip() for line in out.splitlines()} == {"holds"}
    assert ["those of 2 of 2 earlier requests as they were" in out, "(earlier requests: 2)" in out] == [True] * 2
    assert "3 in all, each from the weights that the one before it left" in out


def test_rows_that_were_forgotten_are_not_taught_again_nor_taken_as_others(tiny_model, unlearn, amends, tmp_path):
    first = unlearn("rome", tiny_model)
    kept = write(tmp_path / "kept.jsonl", [*rows(1, "bern"), *rows(2, "rome")])
    for option in ("--retain", "--retain-eval", "--holdout"):
        evaluated = [] if option == "--retain" else ["--eval-rows", 2]
        unlearn("oslo", first / "model", option, kept, *evaluated, code=2)
        assert "kept.jsonl:2: the same row as" in unlearn.err
        assert f"rome.jsonl:1 of earlier request 1 (2 of 3 rows of {option} are such)" in unlearn.err
    unlearn("oslo", first / "model", "--retain", kept, "--eval-rows", 0, code=2)
    unlearn("oslo", first / "model", "--retain", write(tmp_path / "other.jsonl", rows(2, "bern")))


def test_what_cannot_be_asked_again_is_said_and_recorded_and_the_rest_is_asked(tiny_model, unlearn, amends, tmp_path):
    first = unlearn("rome", tiny_model)
    second = unlearn("oslo", first / "model")
    (tmp_path / "rome.jsonl").unlink()
    write(tmp_path / "oslo.jsonl", rows(2, "oslo"))
    third = unlearn("lima", second / "model")
    reasons = [entry["left_out"] for entry in read_run(third)["data"]["earlier"]]
    assert ["no such file" in reasons[0], "other rows" in reasons[1]] == [True, True]
    assert f"earlier request 1 is not asked again: {tmp_path / 'rome.jsonl'}" in unlearn.err
    assert len(read_run(third)["warnings"]) >= 2
    assert not {"request_1", "request_2"} & read(third / "evaluation" / "after.json")["items"].keys()
    assert "other rows than those that were forgotten" in (third / "report.html").read_text()
    code, out, _ = amends("verify", third)
    assert code == 0, out
    assert "those of 0 of 2 earlier requests as they were; the others were not asked in this run" in out
    write(tmp_path / "oslo.jsonl", rows(3, "oslo"))  # back again
    fourth = unlearn("bern", third / "model")
    items = read(fourth / "evaluation" / "after.json")["items"]
    assert [name in items for name in ("request_1", "request_2", "request_3")] == [False, True, True]
    # Gone after the run: what was asked cannot be asked again. Changed after it: it does not hold.
    (tmp_path / "lima.jsonl").rename(tmp_path / "away.jsonl")
    code, out, _ = amends("verify", fourth)
    unchecked = {line[19:].partition(":")[0] for line in out.splitlines() if line.startswith("cannot be checked")}
    assert (code, unchecked) == (0, {"earlier records", "after, asked again"})
    write(tmp_path / "lima.jsonl", rows(3, "cuzco"))
    code, out, _ = amends("verify", fourth, "--quick")
    wrong = {line[19:].partition(":")[0] for line in out.splitlines() if line.startswith("does not hold")}
    assert (code, wrong) == (1, {"earlier records"})


def test_weights_changed_since_are_warned_of_and_stay_in_the_ledger(tiny_model, unlearn, amends):
    first = unlearn("rome", tiny_model)
    file = first / "model" / "adapter_model.safetensors"
    save_file({name: tensor + 0.01 for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    second = unlearn("oslo", first / "model")
    assert "The weights of the model are not those that its last request left" in unlearn.err
    assert any("they were changed since then" in text for text in read_run(second)["warnings"])
    assert [entry.weights_changed for entry in read_ledger(second / "model")] == [False, True]
    third = unlearn("lima", second / "model", "--eval-rows", 0)
    assert not any("changed" in text for text in read_run(third)["warnings"])
    assert read_run(third)["data"]["earlier"][0]["left_out"] == "this run is without an evaluation (--eval-rows 0)."
    assert read_ledger(third / "model")[2].measured == {}
    code, out, _ = amends("verify", third)
    assert code == 0, out
    assert "the weights were changed by something else before request 2" in out


@pytest.mark.parametrize(
    "change",
    [
        lambda requests: requests[0]["measured"]["forget_probability"].update(value=0.5),
        lambda requests: requests[0]["forget"].update(rows=9),
        lambda requests: requests[1].update(created="2026-01-01T00:00:00+00:00"),
        lambda requests: requests[1]["weights"].update(after="0" * 64),
        lambda requests: requests.pop(),
        lambda requests: requests.pop(0),
        lambda requests: requests[1]["weights"].update(before="0" * 64),
    ],
)
def test_an_edited_ledger_does_not_hold_though_the_manifest_is_renewed(amends, change, edited):
    run = edited(change)
    code, out, _ = amends("verify", run, "--quick")
    assert code == 1
    assert [line[19:25] for line in out.splitlines() if line.startswith("does not hold")] == ["ledger"]


@pytest.fixture(scope="module")
def two(tmp_path_factory, tiny_model):
    """Run folder of a second request."""
    folder = tmp_path_factory.mktemp("two")
    model = tiny_model
    for name in ("rome", "oslo"):
        data = write(folder / f"{name}.jsonl", rows(2, name))
        flat.run(model, data, out=folder / name, epochs=1, eval_rows=1)
        model = folder / name / "model"
    return folder / "oslo"


@pytest.fixture
def edited(two, tmp_path):
    """Copy the run, edit its ledger and write a new manifest."""

    def edit(change):
        shutil.copytree(two, tmp_path / "edited")
        ledger = read(two / "model" / LEDGER)
        change(ledger["requests"])
        write_json(tmp_path / "edited" / "model" / LEDGER, ledger)
        write_manifest(tmp_path / "edited")
        return tmp_path / "edited"

    return edit


def test_a_changed_weight_breaks_the_run_it_belongs_to(two, tmp_path, amends):
    shutil.copytree(two, tmp_path / "run")
    file = tmp_path / "run" / "model" / "adapter_model.safetensors"
    save_file({name: tensor + 0.5 for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    write_manifest(tmp_path / "run")
    code, out, _ = amends("verify", tmp_path / "run")
    wrong = {line[19:].partition(":")[0] for line in out.splitlines() if line.startswith("does not hold")}
    assert (code, "weights after" in wrong, "after, asked again" in wrong) == (1, True, True)


GOOD = {
    "command": "unlearn flat",
    "created": "2026-01-01T00:00:00+00:00",
    "forget": {
        "path": "a.jsonl",
        "sha256": "0",
        "rows": 3,
        "question_column": None,
        "answer_column": None,
        "skip_bad_rows": False,
        "prefix_tokens": 100,
        "continuation_tokens": 100,
        "max_length": 64,
    },
    "weights": {"before": "a", "after": "b"},
    "weights_changed": False,
    "measured": {"forget_rouge_l": {"value": 0.5, "low": None, "high": None, "n": 3}},
}


@pytest.mark.parametrize(
    "ledger",
    [
        "{",
        "[]",
        "{}",
        '{"requests": {}}',
        {"requests": []},
        {"requests": [3]},
        {"requests": [GOOD | {"more": 1}]},
        {"requests": [{k: v for k, v in GOOD.items() if k != "weights"}]},
        {"requests": [GOOD | {"command": 3}]},
        {"requests": [GOOD | {"weights": {"before": "a"}}]},
        {"requests": [GOOD | {"forget": GOOD["forget"] | {"rows": True}}]},
        {"requests": [GOOD | {"forget": GOOD["forget"] | {"prefix_tokens": -5}}]},
        {"requests": [GOOD | {"measured": {"forget_rouge_l": {"value": None, "low": 0, "high": 1, "n": 3}}}]},
        {"requests": [GOOD | {"measured": {"other": {"value": 1, "low": 0, "high": 1, "n": 3}}}]},
        {"requests": [GOOD | {"weights_changed": True}]},  # the first has none before it
        {"requests": [GOOD, GOOD]},  # b is not a
        {"requests": [GOOD, GOOD | {"weights": {"before": "b", "after": "c"}, "weights_changed": True}]},
    ],
)
def test_a_damaged_ledger_is_the_users_to_mend(tmp_path, ledger):
    (tmp_path / LEDGER).write_text(ledger if isinstance(ledger, str) else json.dumps(ledger))
    with pytest.raises(InputError, match=r"ledger\.json"):
        read_ledger(tmp_path)


def test_a_sound_ledger_is_read_and_a_model_without_one_has_no_entries(tmp_path):
    assert read_ledger(tmp_path) == read_ledger("somebody/model") == read_ledger(torch.nn.Linear(1, 1)) == []
    next_one = GOOD | {"weights": {"before": "b", "after": "c"}, "measured": {}}
    write_json(tmp_path / LEDGER, {"requests": [GOOD, next_one]})
    assert [asdict(entry) for entry in read_ledger(tmp_path)] == [GOOD, next_one]
    assert isinstance(read_ledger(tmp_path)[0], Entry)


def test_a_damaged_ledger_stops_the_command_before_anything_is_written(tmp_path, two, amends):
    shutil.copytree(two / "model", tmp_path / "model")
    (tmp_path / "model" / LEDGER).write_text("{")
    words = ["--model", tmp_path / "model", "--forget", two.parent / "rome.jsonl", "--out", tmp_path / "run"]
    code, _, err = amends("unlearn", "flat", *words)
    assert (code, LEDGER in err, (tmp_path / "run").exists()) == (2, True, False)


def test_without_a_ledger_the_questions_have_the_digest_they_had_before_there_were_ledgers(tmp_path, tiny_model):
    data = write(tmp_path / "data.jsonl", rows(3, "rome"))
    result = flat.run(tiny_model, data, epochs=1, eval_rows=2)
    pairs = read_data("forget", Request(forget=data), load(tiny_model)).kept
    suite = build_suite(pairs, {}, refusals(), rows=2)
    assert list(suite.questions) == ["forget", "general"]
    old = sha256_json(
        {
            "questions": {
                name: [{k: v for k, v in (asdict(p) | {"where": ""}).items() if k != "right"} for p in kept]
                for name, kept in suite.questions.items()
            },
            "choices": suite.choices,
            "texts": suite.texts,
            "templates": suite.templates,
            "max_new_tokens": 64,
        }
    )
    assert result.evaluations["after"]["suite"] == old == suite.sha256()
    assert set(result.evaluations["after"]["summary"]) == set(SUMMARY_NAMES)
    assert build_suite(pairs, {}, refusals(), rows=2, earlier={"request_1": pairs}).sha256() != old


def test_an_interval_of_a_request_hangs_on_no_other_request():
    items = [{"id": str(k), "probability": k / 9, "rouge_l": (k % 4) / 4, "refused": k % 2 == 0} for k in range(10)]
    alone, both = (summarise(s, None) for s in ({"request_2": items}, {"request_1": items, "request_2": items}))
    assert alone["request_2_rouge_l"] == both["request_2_rouge_l"]
    assert alone["forget_rouge_l"] == summarise({}, None)["forget_rouge_l"]
    assert list(both)[len(SUMMARY_NAMES) :] == [
        f"request_{n}_{m}" for n in (1, 2) for m in ("probability", "rouge_l", "refusal_rate")
    ]
    assert len(summarise({"request_0": items, "request_": items, "requests": items}, None)) == len(SUMMARY_NAMES)


def test_recorded_evaluations_are_taken_over_with_the_same_earlier_requests_only(two, amends, tmp_path):
    words = ["--model", two.parent / "rome" / "model", "--forget", two.parent / "oslo.jsonl"]
    words += ["--epochs", 1, "--eval-rows", 1, "--evaluations", two / "evaluation"]
    code, _, err = amends("unlearn", "flat", *words, "--out", tmp_path / "same")
    assert (code, "taken from there" in err) == (0, True)
    shutil.copytree(two.parent / "rome" / "model", tmp_path / "model")
    (tmp_path / "model" / LEDGER).unlink()
    words[1] = tmp_path / "model"
    code, _, err = amends("unlearn", "flat", *words, "--out", tmp_path / "other")
    assert (code, "evaluating anew" in err) == (0, True)


def test_data_given_from_python_are_not_asked_again_and_why_is_said(tmp_path, tiny_model):
    first = flat.run(tiny_model, rows(2, "rome"), out=tmp_path / "a", epochs=1, eval_rows=1)
    assert first.out == tmp_path / "a"
    flat.run(tmp_path / "a" / "model", rows(2, "oslo"), out=tmp_path / "b", epochs=1, eval_rows=1)
    (earlier,) = read_run(tmp_path / "b")["data"]["earlier"]
    assert "given from Python" in earlier["left_out"]


def test_teaching_an_unlearned_model_does_not_pass_the_ledger_on_and_says_so(two, tmp_path, amends):
    data = write(tmp_path / "data.jsonl", rows(2, "rome"))
    code, _, err = amends(
        "teach", "--model", two / "model", "--data", data, "--out", tmp_path / "taught", "--epochs", 1
    )
    assert (code, "a ledger (requests to forget: 2)" in " ".join(err.split())) == (0, True)
    assert "not passed on" in read_run(tmp_path / "taught")["warnings"][0]
    assert read_ledger(tmp_path / "taught") == []
