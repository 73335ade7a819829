"""One run from the command line to its folder, on a tiny random model."""

import json
import subprocess
import sys

import datasets
import numpy as np
import pytest
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import amends.unlearn
from amends.io.atomic import check_manifest
from amends.io.errors import InputError
from amends.io.run import FIELDS, read_run
from amends.lm.load import load, weights_sha256
from amends.unlearn import _compare, _run, flat
from amends.unlearn._config import ForgetConfig
from amends.unlearn._method import method_names, trainer_named
from amends.unlearn._read import read_templates

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's own


def rows(num, town="town"):
    return [
        {
            "id": f"a{i}",
            "question": f"Where was {i} born?",
            "answer": f"In {town} {i}.",
            "perturbed_answer": ["Up.", "Out."],
        }
        for i in range(num)
    ]


def write(file, records):
    file.write_text("".join(json.dumps(row) + "\n" for row in records))
    return file


@pytest.fixture
def forget(tmp_path):
    return write(tmp_path / "forget.jsonl", rows(4))


def read(file):
    return json.loads(file.read_text())


def test_a_run_folder_has_every_file_and_plain_peft_gives_the_digest(tmp_path, tiny_model, other_model, forget, amends):
    out, retain = tmp_path / "runs" / "first", write(tmp_path / "retain.jsonl", rows(3, "city"))
    options = ["--reference", other_model, "--retain-eval", retain, "--epochs", 2, "--batch-size", 2, "--eval-rows", 3]
    code, stdout, err = amends("unlearn", "flat", "--model", tiny_model, "--forget", forget, "--out", out, *options)
    assert code == 0, err
    assert stdout.strip() == ""
    assert "at step 4 of 4" in err  # no terminal, so lines in place of a bar
    there = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert there >= {
        "run.json",
        "forget.jsonl",
        "history.jsonl",
        "report.html",
        "manifest.json",
        "model/README.md",
        "model/adapter_model.safetensors",
        "model/tokenizer_config.json",
        "evaluation/before.json",
        "evaluation/after.json",
        "evaluation/reference.json",
    }
    assert check_manifest(out) == []
    record = read_run(out)
    assert record.keys() == FIELDS.keys() | {"method"}
    assert record["data"]["forget"]["kept"] == 4
    assert record["start"].keys() == {"v_f", "v_e"}
    history = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in history] == [1, 2, 3, 4]
    assert history[0].keys() >= {"epoch", "loss", "v_e", "v_f", "weight_e", "weight_f", "learning_rate"}
    found = {role: read(out / "evaluation" / f"{role}.json") for role in ("before", "after", "reference")}
    assert {role: evaluation["role"] for role, evaluation in found.items()} == {role: role for role in found}
    assert len({evaluation["suite"] for evaluation in found.values()}) == 1
    assert len({evaluation["weights"] for evaluation in found.values()}) == 3
    assert found["after"]["weights"] == record["weights"]["after"]
    assert [len(found["after"]["items"][name]) for name in ("forget", "retain", "general")] == [4, 3, 3]
    assert found["after"]["summary"]["forget_quality_ks"]["value"] is not None
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), out / "model")
    assert weights_sha256(plain) == record["weights"]["after"] != record["weights"]["before"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["forget.jsonl", "retain.jsonl", "runs"]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["first"]


@pytest.mark.parametrize("method", ["flat", "ga"])
def test_rank_0_saves_all_weights_that_plain_transformers_loads(tmp_path, tiny_model, forget, amends, method):
    out = tmp_path / "run"
    options = ["--epochs", 1, "--lora-rank", 0, "--eval-rows", 0]
    code, _, err = amends("unlearn", method, "--model", tiny_model, "--forget", forget, "--out", out, *options)
    assert code == 0, err
    assert weights_sha256(AutoModelForCausalLM.from_pretrained(out / "model")) == read_run(out)["weights"]["after"]
    assert not (out / "evaluation").exists()


def test_a_recipe_says_what_the_command_line_does_not(tmp_path, tiny_model, forget, amends):
    recipe = tmp_path / "flat.yaml"
    recipe.write_text(f"model: {tiny_model}\nforget: {forget}\ndivergence: tv\neval_rows: 0\nepochs: 3\n")
    code, _, err = amends("unlearn", "flat", "--config", recipe, "--epochs", 1, "--out", tmp_path / "run")
    assert code == 0, err
    config = read_run(tmp_path / "run")["config"]
    assert (config["divergence"], config["epochs"], config["forget"]) == ("tv", 1, str(forget))


def test_evaluations_of_the_same_model_and_questions_are_taken_over(tmp_path, tiny_model, forget, amends):
    options = ["unlearn", "flat", "--model", tiny_model, "--forget", forget, "--epochs", 1, "--eval-rows", 2]
    assert amends(*options, "--out", tmp_path / "a")[0] == 0
    again = ["--evaluations", tmp_path / "a" / "evaluation"]
    code, _, err = amends(*options, *again, "--out", tmp_path / "b")
    assert code == 0
    assert "taken from there" in err
    files = [tmp_path / name / "evaluation" / "before.json" for name in "ab"]
    assert read(files[0]) == read(files[1])
    code, _, err = amends(*options, *again, "--eval-rows", 1, "--out", tmp_path / "c")
    assert code == 0
    assert "evaluating anew" in err


@pytest.mark.parametrize("broken", ["evaluate", "render_report"])
def test_what_fails_after_the_training_does_not_lose_the_model(
    tmp_path, tiny_model, forget, amends, monkeypatch, broken
):
    def fail(*args, role="", **options):
        if role != "before":
            raise RuntimeError("no more room")
        return evaluate(*args, role=role, **options)

    evaluate = _compare.evaluate
    monkeypatch.setattr(_compare if broken == "evaluate" else _run, broken, fail)
    out = tmp_path / "run"
    words = ["--model", tiny_model, "--forget", forget, "--out", out, "--epochs", 1, "--eval-rows", 1]
    code, _, err = amends("unlearn", "flat", *words)
    assert code == 1
    assert ["no more room" in err, f"the model is kept in {out}" in " ".join(err.split())] == [True, True]
    assert weights_sha256(load(out / "model").model) == read_run(out)["weights"]["after"]
    assert check_manifest(out) == []
    assert not (out / "report.html").exists() or broken == "evaluate"
    code, found, _ = amends("verify", out, "--quick")
    assert code == 0 and "does not hold" not in found


def test_a_reference_that_nothing_would_be_compared_with_is_refused(tmp_path, tiny_model, forget, amends):
    words = ["--model", tiny_model, "--forget", forget, "--out", tmp_path / "run", "--eval-rows", 0]
    code, _, err = amends("unlearn", "flat", *words, "--reference", tiny_model)
    assert code == 2
    assert "--reference" in err


def test_all_methods_are_asked_the_same_questions(tmp_path, tiny_model, forget, amends):
    for method in ("flat", "ga"):
        words = ["--model", tiny_model, "--forget", forget, "--out", tmp_path / method, "--epochs", 1, "--eval-rows", 1]
        assert amends("unlearn", method, *words)[0] == 0
    suites = [read(tmp_path / method / "evaluation" / "after.json")["suite"] for method in ("flat", "ga")]
    assert suites[0] == suites[1]


def test_dictionaries_from_python_leave_everything_in_memory(tmp_path, tiny_model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaded = load(tiny_model)
    kept = rows(2, "city")
    result = flat.run(
        loaded.model,
        rows(3),
        processing_class=loaded.tokenizer,
        templates=["No idea."],
        retain=kept,
        retain_eval=kept,
        epochs=1,
        eval_rows=2,
    )
    assert result.out is None
    assert result.history[0].keys() >= {"loss", "v_e", "v_f", "retain_nll"}
    assert len(result.evaluations["after"]["items"]["retain"]) == 2
    assert list(tmp_path.iterdir()) == []


def test_ascent_lowers_the_probability_and_stops_where_told(tmp_path, tiny_model, forget, amends):
    out = tmp_path / "run"
    options = ["--epochs", 20, "--learning-rate", 0.05, "--lora-rank", 0, "--eval-rows", 0, "--stop-v-f", 1e-3]
    code, _, err = amends("unlearn", "ga", "--model", tiny_model, "--forget", forget, "--out", out, *options)
    assert code == 0, err
    record = read_run(out)
    assert record["stopped"].startswith("v_f = ")
    history = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert len(history) < 20
    assert "v_e" not in history[0]


def test_rows_left_out_are_counted_with_their_reasons(tmp_path, tiny_model, amends):
    data = rows(3)
    data[1]["answer"] = " "
    data.append(rows(1)[0] | {"id": "long", "answer": "x" * 5000})
    forget = write(tmp_path / "forget.jsonl", data)
    options = ["--epochs", 1, "--eval-rows", 0, "--skip-bad-rows"]
    words = ["--model", tiny_model, "--forget", forget, "--out", tmp_path / "run"]
    code, _, err = amends("unlearn", "flat", *words, *options)
    assert code == 0, err
    about = read_run(tmp_path / "run")["data"]["forget"]
    assert (about["rows"], about["kept"]) == (4, 2)
    assert [row["where"].rpartition(":")[2] for row in about["dropped"]] == ["2", "4"]
    assert ["is empty" in about["dropped"][0]["reason"], "tokens" in about["dropped"][1]["reason"]] == [True, True]


def test_the_package_of_methods_imports_no_torch_until_it_is_asked():
    code = "import sys, amends.unlearn as u; assert 'torch' not in sys.modules; u.flat.run"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
    for name in method_names():
        trainer = trainer_named(name)
        for one in (trainer, trainer.config_class()):
            assert one is ForgetConfig or getattr(amends.unlearn, one.__name__) is one
    assert {"NPOTrainer", "npo_loss", "rmu"} <= {*dir(amends.unlearn)}
    with pytest.raises(ImportError):
        from amends.unlearn import nothing  # noqa: F401


def test_what_a_method_has_no_use_for_is_told_before_anything_is_read(tmp_path, forget, amends):
    words = ["--model", "./nowhere", "--forget", forget, "--out", tmp_path / "run"]
    assert "GradDiff needs rows to keep" in amends("unlearn", "graddiff", *words)[2]
    for method, option in (("rmu", "--floor-v-f"), ("task_vector", "--stop-v-f"), ("kl", "--retain-loss")):
        assert f"No such option: {option}" in amends("unlearn", method, *words, option, 0.5)[2]


def test_of_a_folder_of_checkpoints_nothing_else_is_removed(tmp_path, tiny_model, forget, amends):
    (tmp_path / "run.checkpoints").mkdir()
    (tmp_path / "run.checkpoints" / "notes.txt").write_text("precious")
    words = ["--model", tiny_model, "--forget", forget, "--epochs", 1, "--eval-rows", 0, "--save-steps", 1]
    assert amends("unlearn", "flat", *words, "--out", tmp_path / "run")[0] == 0
    assert [path.name for path in (tmp_path / "run.checkpoints").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("method", ["flat", "task_vector"])
def test_weights_that_are_not_numbers_are_not_saved(tmp_path, tiny_model, forget, amends, method):
    words = ["--model", tiny_model, "--forget", forget, "--epochs", 1, "--eval-rows", 0, "--out", tmp_path / "run"]
    broken = ["--learning-rate", 1e38] if method == "flat" else ["--scale", 1e300]
    code, _, err = amends("unlearn", method, *words, *broken)
    assert code == 2 and "holds values that are not numbers after step 1" in " ".join(err.split())
    assert not (tmp_path / "run").exists()


def test_nothing_is_added_to_a_finished_run(tmp_path, tiny_model, forget, amends):
    words = ["--model", tiny_model, "--forget", forget, "--epochs", 1, "--eval-rows", 0]
    assert amends("unlearn", "flat", *words, "--out", tmp_path / "run")[0] == 0
    code, _, err = amends("unlearn", "flat", *words, "--out", tmp_path / "run" / "second")
    assert code == 2 and "is a finished run" in err


def test_question_sets_may_have_the_columns_that_are_named_or_known_ones(tmp_path, tiny_model, amends):
    named = [{"q": f"Where was {i} born?", "a": f"In town {i}."} for i in range(8)]
    forget, retain = write(tmp_path / "f.jsonl", named[:4]), write(tmp_path / "r.jsonl", named[4:])
    facts = write(tmp_path / "w.jsonl", [{"question": "What is up?", "answer": "The sky."}])
    words = ["--model", tiny_model, "--forget", forget, "--question-column", "q", "--answer-column", "a"]
    words += ["--retain-eval", retain, "--world-facts", facts, "--eval-rows", 2, "--epochs", 1]
    code, _, err = amends("unlearn", "flat", *words, "--out", tmp_path / "run")
    assert code == 0, err
    write(retain, [{"q": "Where?", "a": "x" * 3000}])
    code, _, err = amends("unlearn", "flat", *words, "--out", tmp_path / "other")
    assert code == 2 and "r.jsonl:1: prompt and answer have" in err


def test_of_a_conversation_the_last_answer_is_forgotten_and_that_is_said(tiny_model, capsys):
    turns = [
        ("user", "Where is Ada?"),
        ("assistant", "At home."),
        ("user", "Thanks."),
        ("assistant", "You are welcome."),
    ]
    rows = [{"messages": [{"role": role, "content": text} for role, text in turns]}]
    flat.run(tiny_model, rows, epochs=0.1, eval_rows=0)
    said = " ".join(capsys.readouterr().err.split())
    assert "warning: 1 rows to forget, forget[0] the first, have answers in earlier turns" in said


def test_an_adapter_goes_on_training_at_its_rank_and_at_no_other(tmp_path, tiny_model, forget, amends):
    words = ["--forget", forget, "--epochs", 0.1, "--eval-rows", 0]
    model = tmp_path / "one" / "model"
    assert amends("unlearn", "ga", "--model", tiny_model, *words, "--lora-rank", 3, "--out", tmp_path / "one")[0] == 0
    code, _, err = amends("unlearn", "ga", "--model", model, *words, "--lora-rank", 4, "--out", tmp_path / "two")
    assert (code, "is an adapter of rank 3, which goes on training. Leave it out" in " ".join(err.split())) == (2, True)
    for name, more, rank in (("three", [], 3), ("four", ["--lora-rank", 0], 0)):
        assert amends("unlearn", "ga", "--model", model, *words, *more, "--out", tmp_path / name)[0] == 0
        assert read_run(tmp_path / name)["config"]["lora_rank"] == rank


def test_an_alternative_must_fit_the_model_where_it_is_asked(tmp_path, tiny_model, amends):
    rows = [{"question": "Where is Ada?", "answer": "At home.", "perturbed_answer": ["In the " + "far " * 2100]}]
    (tmp_path / "forget.jsonl").write_text(json.dumps(rows[0]) + "\n")
    words = ["--model", tiny_model, "--forget", tmp_path / "forget.jsonl", "--epochs", 0.1, "--out", tmp_path / "run"]
    code, _, err = amends("unlearn", "ga", *words, "--eval-rows", 1)
    assert (code, "forget.jsonl:1: prompt and perturbed_answer have" in err) == (2, True)
    assert amends("unlearn", "ga", *words, "--eval-rows", 0)[0] == 0


def test_from_python_what_was_meant_is_named(tiny_model):
    rows = [{"question": "Where?", "answer": "There."}]
    with pytest.raises(InputError, match=r"epoch: no such option. Did you mean epochs\?"):
        flat.run(tiny_model, rows, epoch=1)
    for name, wrong, what in (
        ("batch_size", 2.5, "batch_size=2.5: a whole number"),
        ("seed", -1, "seed=-1: a number of at least 0"),
        ("layers", 1, "layers is a int: a text"),
        ("reference", object(), "reference is a object: a text"),
    ):
        with pytest.raises(InputError, match=what):
            flat.run(tiny_model, rows, **{name: wrong})
    with pytest.raises(InputError, match="forget is a DatasetDict: expected a list of dictionaries"):
        flat.run(tiny_model, datasets.DatasetDict(train=datasets.Dataset.from_list(rows)))
    with pytest.raises(InputError, match=r"forget\[0\] is a str: expected a list of dictionaries"):
        flat.run(tiny_model, ["Where?"])
    for wrong, what in (
        (5, "templates is a int"),
        ([5], r"templates\[0\] is a int"),
        ({"a": "b"}, "templates is a dict"),
    ):
        with pytest.raises(InputError, match=what):
            flat.run(tiny_model, rows, templates=wrong)


def test_templates_may_be_texts_rows_and_lines_of_a_file_however_its_name_is_written(tmp_path):
    (tmp_path / "no.TXT").write_text("I do not know.\n\nNo idea.\n")
    rows = [{"answer": "I do not know.", "text": None}, {"text": " No idea. "}]
    for given in (
        tmp_path / "no.TXT",
        rows,
        datasets.Dataset.from_list(rows),
        np.array(["I do not know.", "No idea."]),
    ):
        assert read_templates(given) == ["I do not know.", "No idea."]
    with pytest.raises(InputError, match=r"templates\[1\]: a text is needed in the column answer or text"):
        read_templates([{"answer": "No."}, {"answer": ""}])


def test_data_sets_in_memory_are_counted_in_the_record(tiny_model, tmp_path):
    data = {name: datasets.Dataset.from_list(rows(2, name)) for name in ("home", "street", "city")}
    out, given = tmp_path / "run", {"retain": data["street"], "retain_eval": data["city"], "epochs": np.int64(1)}
    flat.run(tiny_model, data["home"], out=out, eval_rows=1, save_steps=1, templates=("No.",), **given)
    record = read_run(out)
    assert [record["config"][name] for name in ("forget", "retain", "retain_eval")] == [{"rows": 2}] * 3
    assert (record["config"]["templates"], record["config"]["epochs"]) == (["No."], 1)


def test_a_frozen_adapter_in_memory_goes_on_training(tiny_model, tmp_path):
    rows = [{"question": "Where?", "answer": "There."}]
    flat.run(tiny_model, rows, out=tmp_path / "one", epochs=1, eval_rows=0, lora_rank=2)
    frozen = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "one" / "model")
    assert not any(p.requires_grad for p in frozen.parameters())
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    found = flat.run(frozen, rows, processing_class=tokenizer, epochs=1, eval_rows=0, learning_rate=1e-2)
    assert {name.split(".")[-3] for name, p in found.model.named_parameters() if p.requires_grad} == {
        "lora_A",
        "lora_B",
    }


def test_a_model_in_memory_that_cannot_be_what_it_seems_is_refused(tiny_model):
    rows, own = [{"question": "Where?", "answer": "There."}], {"epochs": 0.1, "eval_rows": 0}
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    found = flat.run(model, rows, processing_class=tokenizer, **own)
    with pytest.raises(InputError, match="this model holds an adapter, such as an earlier run puts into it"):
        flat.run(model, rows, processing_class=tokenizer, **own)
    found.model.add_adapter("mine", LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(InputError, match=r"adapters named default, mine; .* must be the only one"):
        flat.run(found.model, rows, processing_class=tokenizer, **own)
    whole = found.model.unload()
    flat.run(whole, rows, processing_class=tokenizer, **own, lora_rank=0)
    whole.is_quantized = True
    with pytest.raises(InputError, match=r"--lora-rank 0: .* is quantised"):
        flat.run(whole, rows, processing_class=tokenizer, **own, lora_rank=0)


def test_rows_that_are_trained_on_and_asked_are_told(tmp_path, tiny_model, forget, amends):
    keep = tmp_path / "keep.jsonl"
    keep.write_text("".join(json.dumps({"question": f"Who is {i}?", "answer": f"Bob {i}."}) + "\n" for i in range(2)))
    words = ["--model", tiny_model, "--forget", forget, "--epochs", 0.1, "--eval-rows", 1, "--out", tmp_path / "run"]
    code, _, err = amends("unlearn", "ga", *words, "--retain", keep, "--retain-eval", keep)
    assert (code, "warning: 2 of 2 rows of --retain-eval are among those of --retain" in " ".join(err.split())) == (
        0,
        True,
    )


def test_rows_to_keep_of_another_form_are_warned_of(tmp_path, tiny_model, forget, amends):
    (tmp_path / "keep.txt").write_text("It rained all day, and nobody came to the fair by the river. " * 9)
    words = ["--model", tiny_model, "--forget", forget, "--epochs", 0.1, "--eval-rows", 0, "--out", tmp_path / "run"]
    code, _, err = amends("unlearn", "ga", *words, "--retain", tmp_path / "keep.txt")
    assert (code, "of different forms, questions and plain text" in " ".join(err.split())) == (0, True)


def test_a_reference_with_the_weights_of_the_model_before_is_warned_of(tmp_path, tiny_model, forget, amends):
    words = ["--model", tiny_model, "--forget", forget, "--epochs", 0.1, "--eval-rows", 1, "--out", tmp_path / "run"]
    code, _, err = amends("unlearn", "ga", *words, "--reference", tiny_model)
    assert code == 0
    assert "warning: The reference has the weights of the model before" in " ".join(err.split())
    assert read_run(tmp_path / "run")["warnings"][0].startswith("The reference has the weights")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--templates", "FORGET"], "forget.jsonl:1 is among them"),
        (["--optimizer", "muon", "--lora-rank", 0], "--optimizer muon: it moves matrices only"),
        (["--layers", "0-4"], "--layers 0-4: the model has layers 0 to 0."),
        (["--prefix-tokens", 9], "--prefix-tokens: no row is plain text that is cut. Leave it out."),
        (["--evaluations", "."], "neither before.json nor reference.json is there"),
    ],
)
def test_what_cannot_be_trained_is_said_before_anything_is_asked(tmp_path, tiny_model, forget, amends, more, says):
    words = ["--model", tiny_model, "--forget", forget, "--eval-rows", 1, "--out", tmp_path / "run"]
    code, _, err = amends("unlearn", "flat", *words, *[forget if word == "FORGET" else word for word in more])
    assert code == 2
    assert says in err and "evaluating" not in err
