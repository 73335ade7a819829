"""Whatever is wrong with what is given: one line that says where, exit code 2, and nothing left behind."""

import json
import pickle
import shutil

import pytest
from safetensors.torch import load_file, save_file

ROWS = [{"id": i, "question": f"Where was {i} born?", "answer": f"In town {i}."} for i in range(3)]


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def model_with(tmp_path, tiny_model, file, content):
    folder = shutil.copytree(tiny_model, tmp_path / "bad")
    (folder / "model.safetensors").unlink()
    (folder / file).write_bytes(content)
    return folder


def nan_model(tmp_path, tiny_model):
    folder = shutil.copytree(tiny_model, tmp_path / "bad")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def foreign_adapter(tmp_path, tiny_model, other_model):
    """An adapter of the tiny model whose settings name another one."""
    from amends.lm.load import add_lora, load, save_model

    loaded = load(tiny_model)
    save_model(add_lora(loaded.model, 2), loaded.tokenizer, tmp_path / "bad", str(tiny_model))
    file = tmp_path / "bad" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(other_model)}))
    return tmp_path / "bad"


# name: (content of forget.jsonl or None, further options, what the message must contain)
FILES = {
    "a missing file": (None, [], "forget.jsonl: no such file"),
    "a wrong column": (lines(ROWS[0], {"prompt": "a", "response": "b"}), [], "forget.jsonl:2: column"),
    "an empty answer": (
        lines(*ROWS[:2], {"question": "a", "answer": " "}),
        [],
        'forget.jsonl:3: column "answer" is empty',
    ),
    "a row of 200 kB": (
        lines(ROWS[0], {"question": "a", "answer": "b" * 200_000}),
        [],
        "forget.jsonl:2: the row has 200",
    ),
    "invalid UTF-8": (lines(*ROWS) + b'{"question": "\xff"}\n', [], "forget.jsonl:4: not valid UTF-8"),
    "a torn line": (lines(*ROWS) + b'{"question": ', [], "forget.jsonl:4: not JSON"),
    "duplicate ids": (lines(ROWS[0], ROWS[0] | {"answer": "Other."}), [], "forget.jsonl:2: id '0' was used before"),
    "an answer beyond the context": (
        lines(ROWS[0], {"question": "a", "answer": "b" * 3000}),
        [],
        "forget.jsonl:2: prompt",
    ),
    "an answer beyond --max-length": (lines(*ROWS), ["--max-length", 30], "--max-length"),
    "a learning rate out of all bounds": (lines(*ROWS), ["--learning-rate", 1e30], "--learning-rate"),
    "rows to keep that are to be forgotten": (lines(*ROWS), ["--retain", "FORGET"], "rows of --retain are among those"),
    "questions to keep that are to be forgotten": (
        lines(*ROWS),
        ["--retain-eval", "FORGET", "--eval-rows", 1],
        "rows of --retain-eval are among those",
    ),
    "a weight of rows to keep that are not there": (
        lines(*ROWS),
        ["--retain-weight", 3],
        "--retain-weight: there are no rows to keep",
    ),
    "questions that nobody is asked": (
        lines(*ROWS),
        ["--world-facts", "FORGET"],
        "--world-facts: nothing is evaluated",
    ),
    "evaluations that are no folder": (
        lines(*ROWS),
        ["--evaluations", "FORGET", "--eval-rows", 1],
        "forget.jsonl: no such folder",
    ),
    "layers without end": (lines(*ROWS), ["--layers", "0-99999999999"], "the model has layers 0 to 0"),
    "an infinite number of epochs": (lines(*ROWS), ["--epochs", "inf"], "inf is not a finite number"),
    "a seed below 0": (lines(*ROWS), ["--seed", -1], "'--seed': Input should be greater than or equal to 0"),
    "an unknown divergence": (lines(*ROWS), ["--divergence", "kk"], "--divergence"),
    "an unknown option": (lines(*ROWS), ["--lora-rang", 2], "--lora-rang"),
    "a missing model": (lines(*ROWS), ["--model", "./nowhere"], "./nowhere: no such file or folder"),
    "one column named of two": (lines(*ROWS), ["--answer-column", "answer"], "--question-column"),
    "a missing reference": (lines(*ROWS), ["--eval-rows", 1, "--reference", "./no"], "./no: no such file"),
}


@pytest.fixture
def refused(tmp_path, amends):
    """Run `unlearn flat`, expect one line of error with these words, and nothing at or beside the output."""

    def refused(model, words, *options):
        out = tmp_path / "runs" / "first"
        there = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
        given = ["--forget", tmp_path / "forget.jsonl", "--eval-rows", 0, "--epochs", 3, *options]
        given += [] if "--model" in options else ["--model", model]
        code, stdout, err = amends("unlearn", "flat", *given, "--out", out)
        errors = [line for line in err.splitlines() if line.startswith("amends: error:")]
        assert (code, len(errors), stdout.strip()) == (2, 1, ""), err
        assert words in errors[0]
        assert "Traceback" not in err
        assert err.rstrip().endswith(errors[0])
        assert not (tmp_path / "runs").exists()
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == there

    return refused


@pytest.mark.parametrize("name", FILES)
def test_bad_data_and_options(name, tmp_path, tiny_model, refused):
    content, options, words = FILES[name]
    if content is not None:
        (tmp_path / "forget.jsonl").write_bytes(content)
    refused(tiny_model, words, *[tmp_path / "forget.jsonl" if word == "FORGET" else word for word in options])


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_empty_templates(tmp_path, tiny_model, refused, content):
    (tmp_path / "forget.jsonl").write_bytes(lines(*ROWS))
    (tmp_path / "none.txt").write_bytes(content)
    refused(tiny_model, "none.txt: no row in it", "--templates", tmp_path / "none.txt")


def test_an_unknown_option_in_the_recipe(tmp_path, tiny_model, refused):
    (tmp_path / "forget.jsonl").write_bytes(lines(*ROWS))
    (tmp_path / "run.yaml").write_text("epochs: 1\nlearning_rat: 1\n")
    refused(tiny_model, "run.yaml:2: there is no option 'learning_rat'", "--config", tmp_path / "run.yaml")


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_pickle_where_safetensors_should_be(tmp_path, tiny_model, refused, file):
    (tmp_path / "forget.jsonl").write_bytes(lines(*ROWS))
    refused(model_with(tmp_path, tiny_model, file, pickle.dumps({"a": "b"})), "safetensors")


def test_an_adapter_of_another_model(tmp_path, tiny_model, other_model, refused):
    (tmp_path / "forget.jsonl").write_bytes(lines(*ROWS))
    refused(foreign_adapter(tmp_path, tiny_model, other_model), "adapter was made for other weights")


def test_a_model_with_a_weight_that_is_not_a_number(tmp_path, tiny_model, refused):
    (tmp_path / "forget.jsonl").write_bytes(lines(*ROWS))
    refused(nan_model(tmp_path, tiny_model), "at step 1")


def test_an_output_that_exists_is_left_as_it_was(tmp_path, tiny_model, amends):
    (tmp_path / "forget.jsonl").write_bytes(lines(*ROWS))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    given = ["--forget", tmp_path / "forget.jsonl", "--model", tiny_model, "--out", tmp_path / "run"]
    code, _, err = amends("unlearn", "flat", *given)
    assert (code, err.count("amends: error:")) == (2, 1)
    assert f"{tmp_path / 'run'}: exists already" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["forget.jsonl", "run"]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine.txt"]


def test_faulty_rows_are_left_out_on_request_and_counted(tmp_path, tiny_model, amends):
    bad = [
        {"question": "a", "answer": ""},
        {"id": 0, "question": "b", "answer": "c"},
        {"question": "a", "answer": "b" * 3000},
    ]
    (tmp_path / "forget.jsonl").write_bytes(lines(*ROWS, *bad))
    given = ["--forget", tmp_path / "forget.jsonl", "--model", tiny_model, "--eval-rows", 0, "--epochs", 1]
    code, _, err = amends("unlearn", "flat", *given, "--skip-bad-rows", "--out", tmp_path / "run")
    assert code == 0, err
    about = json.loads((tmp_path / "run" / "run.json").read_text())["data"]["forget"]
    assert (about["rows"], about["kept"]) == (6, 3)
    for row, (place, reason) in zip(
        about["dropped"], [(":4", "is empty"), (":5", "used before"), (":6", "tokens")], strict=True
    ):
        assert row["where"].endswith(place)
        assert reason in row["reason"]
