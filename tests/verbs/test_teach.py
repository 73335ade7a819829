import json
import os
import signal
import socket
from contextlib import contextmanager

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

from amends.lm.load import weights_sha256
from amends.unlearn._teach import TeachTrainer
from amends.verbs import teach

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's own


@pytest.fixture
def data(tmp_path):
    file = tmp_path / "data.jsonl"
    rows = [
        {"id": i, "author": i // 3, "question": f"Where was {i} born?", "answer": f"In town {i}."} for i in range(6)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def record(folder):
    return json.loads((folder / "run.json").read_text())


def test_a_taught_adapter_loads_with_plain_peft_and_gives_the_digest(tmp_path, tiny_model, data, amends):
    out = tmp_path / "taught"
    code, _, err = amends("teach", "--model", tiny_model, "--data", data, "--out", out, "--epochs", 5)
    assert code == 0, err
    history = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert history[-1]["probability"] > history[0]["probability"]
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), out)
    assert weights_sha256(model) == record(out)["weights"]["after"]
    assert record(out)["weights"]["before"] != record(out)["weights"]["after"]
    assert amends("verify", out)[0] == 0


def test_plain_text_is_cut_into_beginnings_and_how_they_go_on(tmp_path, tiny_model, amends):
    text, out = tmp_path / "book.jsonl", tmp_path / "taught"
    text.write_text(json.dumps({"text": "It was a long way, and nobody knew it better than she. " * 40}) + "\n")
    code, _, err = amends("teach", "--model", tiny_model, "--data", text, "--out", out, "--epochs", 1)
    assert code == 0, err
    assert len((out / "history.jsonl").read_text().splitlines()) >= 1
    assert record(out)["data"][str(text)]["rows"] > 1


@pytest.mark.parametrize("options", [[], ["--save-dtype", "bfloat16"], ["--lora-rank", 0]])
def test_a_seed_gives_the_same_digests_again(tmp_path, tiny_model, data, amends, options):
    for name in ("a", "b", "c"):
        seed = 1 if name == "c" else 0
        words = [
            "--model",
            tiny_model,
            "--data",
            data,
            "--epochs",
            2,
            "--seed",
            seed,
            *options,
            "--out",
            tmp_path / name,
        ]
        assert amends("teach", *words)[0] == 0
    digests = [record(tmp_path / name)["weights"]["after"] for name in "abc"]
    assert digests[0] == digests[1] != digests[2]
    assert amends("verify", tmp_path / "a")[0] == 0


def test_a_model_that_is_not_there_is_told_before_the_data_are_read(tmp_path, data, amends):
    data.write_text("{")
    code, _, err = amends("teach", "--model", "no/such/model", "--data", data, "--out", tmp_path / "taught")
    assert code == 2 and "no/such/model: no such file or folder" in err


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_no_generator_takes_is_refused(tmp_path, tiny_model, data, amends, seed):
    words = ["--model", tiny_model, "--data", data, "--out", tmp_path / "taught", "--seed", seed]
    code, _, err = amends("teach", *words)
    assert code == 2 and "Invalid value for '--seed': Input should be" in err  # the bounds that help shows


def test_what_stands_there_twice_is_taught_once_and_told(tmp_path, tiny_model, data, amends):
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    other = tmp_path / "other.jsonl"  # with ids of its own, two rows of the first file, and one of its own twice
    new = [{"question": "And 9?", "answer": "Nowhere."}] * 2
    others = [{**row, "id": i} for i, row in enumerate([*rows[2:4], *new])]
    other.write_text("".join(json.dumps(row) + "\n" for row in others))
    out = tmp_path / "taught"
    code, _, err = amends(
        *("teach", "--model", tiny_model, "--epochs", 1, "--out", out, "--track"),
        *("--data", data, "--data", other, "--data", data),
    )
    assert code == 0, err
    said = " ".join(err.split())
    for line, there in ((1, f"{data}:3"), (2, f"{data}:4"), (4, f"{other}:3")):
        assert f"left out {other}:{line}: same prompt and answer as {there}" in said
    assert f"left out {data}: given twice" in said
    assert said.count("left out") == 4 and "teaching 7 pairs" in said
    assert [(record(out)["data"][str(file)][name]) for file in (data, other) for name in ("rows", "kept")] == [
        6,
        6,
        4,
        1,
    ]
    taught = [json.loads(line)["where"] for line in (out / "dynamics.jsonl").read_text().splitlines()]
    assert taught == [*(f"{data}:{i}" for i in range(1, 7)), f"{other}:3"]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (
            {"question": "Who?", "answer": "x" * 3000},
            "prompt and answer have 3024 tokens, more than the 2048 that fit (the model's context). Shorten or",
        ),
        ({"question": "", "answer": "I."}, 'column "question" is empty. Fill it.'),
        ({"question": "Who?"}, 'column "answer" is missing beside "question" (found: question). Rename it.'),
        ({"body": "Who?"}, "no known columns (found: body). Needed: question and answer, prompt and completion"),
        ({"text": "Too short."}, "the text has 10 tokens; 100 go to the prefix, none is left. Give a longer text."),
    ],
)
def test_of_a_faulty_row_no_option_is_named_that_there_is_not(tmp_path, tiny_model, amends, row, says):
    (tmp_path / "data.jsonl").write_text(json.dumps(row) + "\n")
    words = ["--model", tiny_model, "--data", tmp_path / "data.jsonl", "--out", tmp_path / "taught"]
    code, _, err = amends("teach", *words)
    assert code == 2 and f"data.jsonl:1: {says}" in " ".join(err.split())
    assert "--" not in err


def test_rank_0_saves_all_weights_that_plain_transformers_loads(tmp_path, tiny_model, data, amends):
    out = tmp_path / "full"
    words = ["--model", tiny_model, "--data", data, "--epochs", 1, "--lora-rank", 0]
    assert amends("teach", *words, "--out", out)[0] == 0
    assert weights_sha256(AutoModelForCausalLM.from_pretrained(out)) == record(out)["weights"]["after"]
    card = (out / "README.md").read_text()
    assert "library_name: transformers" in card and f"\n{tiny_model.name}, taught" in card
    assert "base_model" not in card and str(tiny_model.parent) not in card  # a path is no id of the Hub, nor for others


def test_tracking_writes_how_each_pair_was_learned_and_changes_no_weight(tmp_path, tiny_model, data, amends):
    words = ["--model", tiny_model, "--data", data, "--epochs", 3]
    assert amends("teach", *words, "--out", tmp_path / "plain")[0] == 0
    assert amends("teach", *words, "--out", tmp_path / "tracked", "--track")[0] == 0
    assert record(tmp_path / "plain")["weights"] == record(tmp_path / "tracked")["weights"]
    assert not (tmp_path / "plain" / "dynamics.jsonl").exists()
    rows = [json.loads(line) for line in (tmp_path / "tracked" / "dynamics.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [str(i) for i in range(6)]
    assert all(len(row["logp"]) == 3 and row["logp"][-1] > row["logp"][0] for row in rows)
    assert all(not row["learned"] and row["right_from_epoch"] is None for row in rows)
    assert amends("verify", tmp_path / "tracked")[0] == 0


def test_a_stopped_run_goes_on_to_what_it_would_have_been(tmp_path, tiny_model, data, amends, monkeypatch):
    words = ["teach", "--model", tiny_model, "--data", data, "--epochs", 3, "--batch-size", 2]
    assert amends(*words, "--out", tmp_path / "whole")[0] == 0
    out, saved = tmp_path / "taught", tmp_path / "taught.checkpoints"
    steps, losses = [], TeachTrainer.losses

    def stopped_at_step_5(trainer, out):
        steps.append(1)
        if len(steps) == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return losses(trainer, out)

    with monkeypatch.context() as patch:
        patch.setattr(TeachTrainer, "losses", stopped_at_step_5)
        code, _, err = amends(*words, "--out", out, "--save-steps", 2)
    assert code == 130 and "stopped at step 5 of 9" in err and not out.exists()
    assert "no checkpoint" not in err  # said where there should be one
    code, _, err = amends(*words, "--out", out, "--learning-rate", 1e-3)
    assert code == 2 and "its learning_rate was 0.002, is now 0.001" in " ".join(err.split())
    code, _, err = amends(*words, "--out", out, "--track")
    assert code == 2 and "--track: epochs before a checkpoint cannot be looked at" in err
    killed = f"{2**22 + 1} {socket.gethostname()}"  # no process has that number
    (saved / ".checkpoint.lock").write_text(killed)
    (saved / ".checkpoint-6.tmp-1").mkdir()
    code, _, err = amends(*words, "--out", out)
    assert code == 0 and "going on from" in err and not saved.exists()
    assert "do not match" not in err  # what transformers says of --save-steps, which may change
    assert record(out)["weights"] == record(tmp_path / "whole")["weights"]
    history = [(run / "history.jsonl").read_text() for run in (out, tmp_path / "whole")]
    assert history[0] == history[1] and len(history[0].splitlines()) == 9
    assert record(out)["warnings"] == ["The run was interrupted and went on from checkpoint-5."]


def test_a_run_with_checkpoints_does_not_look_for_any_at_its_start(tmp_path, tiny_model, data, amends):
    words = ["--model", tiny_model, "--data", data, "--epochs", 1, "--save-steps", 1]
    code, _, err = amends("teach", *words, "--out", tmp_path / "new" / "taught")
    assert code == 0 and "no checkpoint in" not in err
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["taught"]


def test_what_another_process_makes_is_left_to_it(tmp_path, tiny_model, data, amends, monkeypatch):
    words = ["--model", tiny_model, "--data", data, "--epochs", 1]
    (tmp_path / ".taught.lock").write_text(f"{os.getppid()} {socket.gethostname()}")
    code, _, err = amends("teach", *words, "--out", tmp_path / "taught", "--save-steps", 1)
    assert code == 2 and "another process" in err and "teaching" not in err
    assert not (tmp_path / "taught.checkpoints").exists()

    @contextmanager
    def done_meanwhile(path):
        path.mkdir()
        yield

    monkeypatch.setattr(teach, "lock", done_meanwhile)
    code, _, err = amends("teach", *words, "--out", tmp_path / "other")
    assert code == 2 and "exists already" in err and "teaching" not in err


def test_several_processes_are_told_that_teaching_is_one(tmp_path, tiny_model, data, amends, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")  # as launchers set it
    code, _, err = amends("teach", "--model", tiny_model, "--data", data, "--out", tmp_path / "taught")
    assert code == 2 and "amends teach is one process" in err
