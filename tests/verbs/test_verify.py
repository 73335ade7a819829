import io
import json
import sys

import pytest
import typer

from amends.evaluation.evaluate import Suite
from amends.evaluation.summary import summarise
from amends.io.atomic import write_json, write_manifest
from amends.io.run import describe
from amends.verbs.verify import command


def lines(out):
    """What was checked, and the word for it."""
    return {line[19:].partition(":")[0]: line[:18].strip() for line in out.splitlines()}


@pytest.fixture
def forget(tmp_path):
    file = tmp_path / "forget.jsonl"
    rows = [{"id": f"a{i}", "question": f"Where was {i} born?", "answer": f"In town {i}."} for i in range(3)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def run(tmp_path, tiny_model, forget, amends):
    options = ["--model", tiny_model, "--forget", forget, "--epochs", 1, "--eval-rows", 2]
    code, _, err = amends("unlearn", "flat", *options, "--out", tmp_path / "run")
    assert code == 0, err
    return tmp_path / "run"


def test_a_run_just_made_holds(run, amends):
    code, out, _ = amends("verify", run)
    assert code == 0
    found = lines(out)
    assert set(found.values()) == {"holds"}
    assert list(found) == [
        "manifest",
        "forget records",
        "weights before",
        "weights after",
        "ledger",
        "summary before",
        "summary after",
        "after, asked again",
    ]
    assert "absolute tolerance 0.001, perplexity 1%" in out
    assert "asked again" not in amends("verify", run, "--quick")[1]


def test_questions_left_out_as_too_long_are_said_and_left_out_again(tmp_path, tiny_model, forget, amends):
    asked = [{"question": "Where is it?", "answer": "Here."}, {"question": "And that?", "answer": "x" * 3000}]
    (tmp_path / "keep.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    words = ["--model", tiny_model, "--forget", forget, "--epochs", 0.1, "--eval-rows", 2, "--out", tmp_path / "run"]
    code, _, err = amends("unlearn", "flat", *words, "--retain-eval", tmp_path / "keep.jsonl", "--skip-bad-rows")
    assert code == 0, err
    assert f"left out {tmp_path / 'keep.jsonl'}:2" in err.replace("\n", "")
    told = json.loads((tmp_path / "run/run.json").read_text())["data"]["retain_eval"]
    assert (told["rows"], told["kept"], len(told["dropped"])) == (2, 1, 1)
    code, out, _ = amends("verify", tmp_path / "run")
    assert (code, lines(out)["after, asked again"]) == (0, "holds")


@pytest.mark.parametrize("old", [False, True])
def test_plain_text_is_continued_again_as_far_as_it_was(tmp_path, tiny_model, amends, monkeypatch, old):
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": "It was a dark and stormy night, they say. " * 9}) + "\n")
    words = ["--model", tiny_model, "--forget", tmp_path / "text.jsonl", "--epochs", 0.1, "--eval-rows", 1]
    with monkeypatch.context() as patch:
        if old:  # an evaluation of a version that let all answers have 64 tokens, and did not name any others
            patch.setattr(Suite, "with_room", lambda suite, tokenizer: suite)
        assert amends("unlearn", "ga", *words, "--out", tmp_path / "run")[0] == 0
    for file in (tmp_path / "run" / "evaluation").iterdir():
        evaluation = json.loads(file.read_text())
        assert evaluation["text_tokens"] == ({} if old else {"forget": 100})
        if old:
            del evaluation["text_tokens"]
            for item in evaluation["items"]["forget"]:  # and to which equal short texts were no leak
                del item["leak_threshold"]
                item["leaked"] = True
            evaluation["summary"] = summarise(evaluation["items"], None)
            assert evaluation["summary"]["forget_leak_rate"]["value"] == 1
            write_json(file, evaluation)
    write_manifest(tmp_path / "run")
    code, out, _ = amends("verify", tmp_path / "run")
    assert (code, set(lines(out).values())) == (0, {"holds"}), out
    assert ("without leak rates, which an older version told otherwise" in out) == old
    evaluation = json.loads((tmp_path / "run/evaluation/after.json").read_text()) | {"text_tokens": {"forget": 80}}
    write_json(tmp_path / "run/evaluation/after.json", evaluation)
    assert lines(amends("verify", tmp_path / "run")[1])["after, asked again"] == "does not hold"


def test_a_changed_weight_is_named(run, amends):
    file = run / "model" / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-4] ^= 1  # lowest byte of the last float32
    file.write_bytes(data)
    code, out, _ = amends("verify", run, "--quick")
    assert code == 1
    assert {what for what, word in lines(out).items() if word != "holds"} == {"manifest", "weights after"}
    assert "model/adapter_model.safetensors changed" in out


def test_an_edited_metric_is_named(run, amends):
    file = run / "evaluation" / "after.json"
    evaluation = json.loads(file.read_text())
    evaluation["summary"]["forget_probability"]["value"] += 0.5
    write_json(file, evaluation)
    code, out, _ = amends("verify", run)
    assert code == 1
    wrong = {what for what, word in lines(out).items() if word == "does not hold"}
    assert wrong == {"manifest", "ledger", "summary after", "after, asked again"}
    assert out.count("forget_probability") == 2


def test_an_edited_answer_with_its_summary_is_found_by_asking_again(run, amends):
    file = run / "evaluation" / "after.json"
    evaluation = json.loads(file.read_text())
    for item in evaluation["items"]["text"]:
        item["nats"] *= 1.1
    write_json(file, evaluation)
    code, out, _ = amends("verify", run)
    assert code == 1
    assert lines(out)["after, asked again"] == "holds"  # the stored summary was not touched
    assert lines(out)["summary after"] == "does not hold"


def test_an_edited_forget_file_is_named(run, forget, amends):
    forget.write_text(forget.read_text().replace("In town 2.", "In town 9."))
    code, out, _ = amends("verify", run)
    assert code == 1
    wrong = {what for what, word in lines(out).items() if word == "does not hold"}
    assert wrong == {"forget records", "after, asked again"}
    assert "a2 new or changed" in out


def test_an_edited_list_of_records_is_named(run, amends):
    file = run / "forget.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[1:]))
    code, out, _ = amends("verify", run, "--quick")
    assert code == 1
    assert {what for what, word in lines(out).items() if word != "holds"} == {"manifest", "forget records"}


def test_a_faulty_forget_file_does_not_hold_and_one_that_is_gone_cannot_be_checked(run, forget, amends):
    forget.write_text("{")
    code, out, _ = amends("verify", run, "--quick")
    assert (code, lines(out)["forget records"]) == (1, "does not hold")
    forget.unlink()
    code, out, _ = amends("verify", run)
    assert code == 0
    assert {what for what, word in lines(out).items() if word == "cannot be checked"} == {
        "forget records",
        "after, asked again",
    }


def test_another_file_that_is_gone_cannot_be_checked_and_one_that_changed_does_not_hold(
    tmp_path, tiny_model, forget, amends
):
    files = {name: tmp_path / f"{name}.jsonl" for name in ("retain-eval", "templates")}
    words = ["--model", tiny_model, "--forget", forget, "--epochs", 0.1, "--eval-rows", 1, "--out", tmp_path / "run"]
    for name, file in files.items():
        file.write_text('{"question": "Where is it?", "answer": "Here."}\n')
        words += [f"--{name}", file]
    assert amends("unlearn", "flat", *words)[0] == 0
    for file in files.values():
        file.rename(tmp_path / "aside")
        code, out, _ = amends("verify", tmp_path / "run")
        assert code == 0
        assert {what for what, word in lines(out).items() if word == "cannot be checked"} == {"after, asked again"}
        assert f"after, asked again: {file}: no such file any more" in out
        (tmp_path / "aside").rename(file)
    files["retain-eval"].write_text('{"question": "Where is it?", "answer": "There."}\n')
    code, out, _ = amends("verify", tmp_path / "run")
    assert (code, lines(out)["after, asked again"]) == (1, "does not hold")


def write_run(folder, command):
    told = describe(command=command, config={}, seed=0, data={}, weights={}, seconds={})
    write_json(folder / "run.json", told)
    write_manifest(folder)


@pytest.mark.parametrize("command", ["fair drops", "curate ds2", "bench wmdp", "assess"])
def test_of_a_run_without_a_model_the_files_are_checked(tmp_path, amends, command):
    write_run(tmp_path, command)
    code, out, _ = amends("verify", tmp_path)
    assert (code, lines(out)) == (0, {"manifest": "holds"})


def test_of_a_folder_that_holds_runs_one_is_named(tmp_path, amends):
    write_run(tmp_path / "tofu" / "models" / "taught", "teach")
    code, _, err = amends("verify", tmp_path / "tofu")
    assert code == 2
    assert f"not a run folder itself. Give one of those in it, such as {tmp_path}/tofu/models/taught." in err


def test_a_name_that_the_terminal_has_no_letters_for_is_escaped(tmp_path, monkeypatch):
    write_run(tmp_path, "fair drops")
    (tmp_path / "日本é").write_text("new")
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="latin-1"))
    with pytest.raises(typer.Exit) as stopped:
        command(tmp_path)
    assert stopped.value.exit_code == 1
    assert raw.getvalue().decode("latin-1").startswith("does not hold      manifest: \\u65e5\\u672cé")


def test_another_model_before_does_not_hold_and_a_missing_one_cannot_be_checked(run, tmp_path, amends, other_model):
    code, out, _ = amends("verify", run, "--quick", "--model", other_model)
    assert (code, lines(out)["weights before"]) == (1, "does not hold")
    code, out, _ = amends("verify", run, "--quick", "--model", tmp_path / "nowhere")
    assert (code, lines(out)["weights before"]) == (0, "cannot be checked")


def test_what_was_given_from_python_cannot_be_checked(tmp_path, tiny_model, amends):
    from amends.lm.load import load
    from amends.unlearn import ga

    loaded = load(tiny_model)
    rows = [{"question": "Where?", "answer": "Here."}]
    ga.run(loaded.model, rows, processing_class=loaded.tokenizer, out=tmp_path / "run", epochs=1, eval_rows=1)
    code, out, _ = amends("verify", tmp_path / "run")
    assert code == 0
    wrong = {what for what, word in lines(out).items() if word == "cannot be checked"}
    assert wrong == {"forget records", "weights before", "after, asked again"}


def test_of_templates_given_from_python_as_rows_no_other_questions_are_suspected(tmp_path, tiny_model, forget, amends):
    from amends.unlearn import flat

    flat.run(tiny_model, forget, templates=[{"answer": "No idea."}], out=tmp_path / "run", epochs=1, eval_rows=1)
    code, out, _ = amends("verify", tmp_path / "run")
    assert code == 0 and "after, asked again: templates was given from Python" in out


def test_a_folder_that_is_no_run_is_refused(tmp_path, amends):
    code, out, err = amends("verify", tmp_path)
    assert (code, out) == (2, "")
    assert "amends: error:" in err
    assert "not a run folder" in err
