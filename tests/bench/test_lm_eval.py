import importlib.util
import json
import random
import subprocess
import sys
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pytest
import yaml

from amends.bench import lm_eval as bench
from amends.bench import muse, wmdp
from amends.evaluation.evaluate import mean_logprobs
from amends.evaluation.metrics import truth_ratio, truth_ratio_score
from amends.io.errors import InputError
from amends.lm.load import load
from amends.lm.logprobs import PackedRow
from amends.lm.templates import plain_ids

from ..conftest import instead, save_tiny_model
from .conftest import subsets_of, taught, write_hub

MUSE_TASKS = ["amends_muse_knowmem_forget", "amends_muse_knowmem_retain", "amends_muse_verbmem"]
TOFU_TASKS = ["amends_tofu_choice", "amends_tofu_rouge"]
needs_harness = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs lm-eval: amends[lm-eval]")
quiet = pytest.mark.filterwarnings("ignore")  # the harness's own


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """MUSE's shape, of a round of four words in which some are another."""
    draw = random.Random(0)

    def text(start):
        words = list(islice(cycle(["abcd", "efgh", "ijkl", "mnop"]), start, start + 60))
        for at in draw.sample(range(10, 60), 20):
            words[at] = "other"
        return " ".join(words)

    texts = [text(i % 4) for i in range(12)]
    return write_hub(tmp_path_factory.mktemp("copy") / "muse", subsets_of(texts[:8], texts[8:], texts, 40))


@pytest.fixture(scope="module")
def model(tmp_path_factory, tiny_model):
    """A tiny model that goes round the four words, saved plainly."""
    loaded = taught(tiny_model, [" ".join(["abcd efgh ijkl mnop"] * 10)] * 4, 80)
    folder = tmp_path_factory.mktemp("model") / "round"
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tofu(tmp_path_factory):
    file = tmp_path_factory.mktemp("tofu") / "forget.jsonl"
    rows = [
        {"question": f"Who is {i}?", "answer": f"Ann {i}, of Rome", "paraphrased_answer": f"She is Ann {i}",
         "perturbed_answer": [f"Bob {i}", f"Cleo {i}, the third of it", "abcd efgh ijkl"]} for i in range(5)
    ]  # fmt: skip
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def by_task(result):
    return {(task, metric): value for task, metric, value, _ in result.lines()}


@needs_harness
@quiet
def test_the_harness_gives_muse_the_numbers_and_answers_of_amends(copy, model):
    theirs = bench.run(model, ["amends_muse"], muse=copy)
    ours = muse.run(model, copy, parts=["verbmem", "knowmem"], rows=1000)
    assert 0.1 < ours["verbmem"] < 0.9  # else the comparison says nothing
    for name in ("verbmem", "knowmem_forget", "knowmem_retain"):
        assert by_task(theirs)[f"amends_muse_{name}", "rouge_l_f1"] == pytest.approx(ours[name], abs=1e-12)
        said = [i["filtered_resps"][0] for i in theirs.items if i["task"] == f"amends_muse_{name}"]
        assert said == [i["generated"] for i in ours.items if i["item_set"] == name]


@needs_harness
@quiet
def test_the_harness_s_own_wmdp_task_chooses_as_amends_does(tmp_path, model, monkeypatch):
    import lm_eval
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    draw = random.Random(0)
    data = [
        {"question": f"What is {i}?", "choices": draw.sample(["abcd", "efgh", "ijkl", "mnop"], 4), "answer": i % 4}
        for i in range(12)
    ]
    (tmp_path / "wmdp-bio.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    ours = wmdp.run(model, tmp_path)
    loaded = load(model)
    local = {
        "include": str(Path(lm_eval.__file__).parent / "tasks/wmdp/wmdp_bio.yaml"),
        "task": "local_bio",
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "wmdp-bio.jsonl")}, "cache_dir": str(tmp_path / "c")},
    }
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "local_bio.yaml").write_text(yaml.safe_dump(local))
    theirs = simple_evaluate(
        model=HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer),
        tasks=["local_bio"],
        task_manager=TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False),
        bootstrap_iters=0,
    )
    samples = sorted(theirs["samples"]["local_bio"], key=lambda sample: sample["doc_id"])
    logp = [[found[0] for found in sample["filtered_resps"]] for sample in samples]
    assert np.allclose(logp, [item["logp"] for item in ours.items], atol=1e-4)
    assert theirs["results"]["local_bio"]["acc,none"] == ours["bio"]


@needs_harness
@quiet
def test_the_harness_gives_tofu_the_truth_ratio_and_recall_of_amends(tofu, model):
    found = by_task(bench.run(model, ["amends_tofu"], tofu=tofu))
    loaded = load(model)
    rows = [json.loads(line) for line in tofu.read_text().splitlines()]
    packed = [
        PackedRow(
            plain_ids(loaded.tokenizer, f"Question: {row['question']}\nAnswer:"),
            [plain_ids(loaded.tokenizer, f" {text}") for text in (row["paraphrased_answer"], *row["perturbed_answer"])],
        )
        for row in rows
    ]
    means = np.array(mean_logprobs(loaded.model, packed, loaded.tokenizer.pad_token_id))
    expected = truth_ratio_score(truth_ratio(means[:, 1:], means[:, 0]))
    assert found["amends_tofu_choice", "truth_ratio"] == pytest.approx(expected, rel=1e-4)
    assert found["amends_tofu_choice", "acc"] == np.mean(means.argmax(axis=1) == 0)
    assert ("amends_tofu_rouge", "rouge_l_recall") in found


@needs_harness
@quiet
def test_what_was_read_and_asked_is_recorded_with_the_digests_of_amends(copy, model, tofu):
    found = bench.run(model, "amends_*", muse=copy, tofu=tofu)
    assert {item["task"] for item in found.items} == {*MUSE_TASKS, *TOFU_TASKS}
    ours = muse.run(model, copy, parts=["verbmem", "knowmem"], rows=1000)
    data = found.record["data"]
    assert {name: data[name] for name in ours.record["data"]} == ours.record["data"]
    assert (data["tofu"]["path"], data["tofu"]["kept"]) == (str(tofu), 5)
    assert found.record["versions"]["lm_eval"]
    for name in ("verbmem", "knowmem_retain"):
        asked = [(i["prompt"], i["cut"]) for i in found.items if i["task"] == f"amends_muse_{name}"]
        assert asked == [(i["prompt"], i["cut"]) for i in ours.items if i["item_set"] == name]
    (item, *_) = [item for item in found.items if item["task"] == "amends_tofu_choice"]
    assert (item["prompt"], item["choices"][0]) == ("Question: Who is 0?\nAnswer:", " She is Ann 0")
    some = bench.run(model, ["amends_muse_v?rbmem"], muse=copy, rows=2)
    assert (list(some.record["data"]), some.record["data"]["verbmem"]["kept"]) == (["verbmem"], 2)


@needs_harness
@quiet
def test_prompts_of_which_only_the_end_fits_are_counted_and_marked(tmp_path, copy, tofu):
    short = save_tiny_model(tmp_path / "short", context=148)
    found = bench.run(short, ["amends_muse_verbmem", "amends_tofu_choice"], muse=copy, tofu=tofu)
    assert found.record["warnings"] == [
        "amends_muse_verbmem: of 8 of 8 prompts only the end fits the context of 148 tokens with an answer."
    ]
    ours = muse.run(short, copy, parts="verbmem")
    assert ours.record["warnings"] == ["model: of 8 of 8 passages only the last 20 tokens fit."]
    assert {(i["task"], i["cut"]) for i in found.items} == {
        ("amends_muse_verbmem", True),
        ("amends_tofu_choice", False),
    }
    shorter = save_tiny_model(tmp_path / "shorter", context=40)
    again = bench.run(shorter, ["amends_tofu_choice"], tofu=tofu)
    lengths = [max(len(i["prompt"] + c) for c in i["choices"]) for i in again.items]  # a token is a byte
    assert min(lengths) > 41  # the last one is not put in
    assert all(item["cut"] for item in again.items)
    assert again.record["warnings"] == [
        "amends_tofu_choice: of 5 of 5 prompts only the end fits the context of 40 tokens with an answer."
    ]


@needs_harness
@quiet
def test_a_context_without_room_for_an_answer_is_named(tmp_path, copy):
    short = save_tiny_model(tmp_path / "short", context=64)
    with pytest.raises(
        InputError, match=r"--tasks amends_muse_verbmem: the context of .*short, 64 tokens, has no room"
    ):
        bench.run(short, ["amends_muse"], muse=copy)


@pytest.mark.parametrize("how", [{"rows": -1}, {"batch_size": 0}, {"seed": -1}, {"seed": 2**32}])
def test_bounds_of_the_command_line_hold_in_python(tiny_model, how):
    (name,) = how
    with pytest.raises(InputError, match=f"{name}=.*: a number of at least "):
        bench.run(tiny_model, ["amends_muse"], **how)


@needs_harness
@quiet
def test_the_command_writes_what_verify_checks(tmp_path, monkeypatch, copy, model, amends):
    monkeypatch.chdir(tmp_path)
    words = ["--model", model, "--tasks", "amends_muse_knowmem_retain", "--muse", copy, "--rows", 1, "--out", "out"]
    code, out, err = amends("bench", "lm_eval", *words)
    assert code == 0, err
    assert out.startswith("amends_muse_knowmem_retain rouge_l_f1 ")
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == [
        "items.jsonl", "lm_eval.json", "manifest.json", "run.json",
    ]  # fmt: skip
    assert len((tmp_path / "out" / "items.jsonl").read_text().splitlines()) == 1
    assert amends("verify", "out")[0] == 0


@needs_harness
@quiet
@pytest.mark.parametrize(
    ("more", "says"),
    [
        (
            ["--tasks", "amends_magic"],
            "--tasks amends_magic: the harness knows no such task. Ours are amends_muse_knowmem_forget",
        ),
        (["--tasks", "amends_x*"], "--tasks amends_x*: the harness knows no such task. Ours are amends_muse_knowmem"),
        (["--tasks", "amends_muse_verbmem"], "Where is your copy? Give its place: --muse"),
        (["--tasks", "amends_tofu_choice", "--tofu", "plain.jsonl"], "plain.jsonl:1: has no wrong answers"),
        (["--tasks", "amends_tofu_rouge", "--tofu", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
    ],
)
def test_bad_input_is_one_line_that_says_what_to_do(tmp_path, monkeypatch, model, amends, more, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    code, _, err = amends("bench", "lm_eval", "--model", model, "--out", "out", *more)
    assert code == 2
    (line,) = [line for line in err.splitlines() if line.startswith("amends: error: ")]
    assert says in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "says"), [(["--model", "./nowhere"], "./nowhere: no such file or folder"), (["--seed", "-1"], "seed")]
)
def test_a_model_that_is_not_there_and_a_seed_that_is_none_are_refused_first(tmp_path, tiny_model, amends, more, says):
    words = ["--model", tiny_model, "--tasks", "amends_muse", "--out", tmp_path / "out"]
    code, _, err = amends("bench", "lm_eval", *instead(words, more))
    assert (code, says in err) == (2, True)
    assert not (tmp_path / "out").exists()


def test_without_the_harness_the_extra_is_named(tmp_path, monkeypatch, tiny_model):
    monkeypatch.setattr("amends.io.errors.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'amends\[lm-eval\]'"):
        bench.run(tiny_model, ["arc_easy"], out=tmp_path / "out")


def test_the_folder_of_our_tasks_is_printed_and_each_names_its_file_and_a_function_that_is_there(amends):
    code, out, _ = amends("bench", "lm_eval", "--tasks-path")
    assert code == 0
    assert out.strip() == str(bench.TASKS)
    from amends.bench.tasks import documents

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))
    files = sorted(bench.TASKS.glob("*.yaml"))
    assert [file.stem for file in files] == [*MUSE_TASKS, *TOFU_TASKS]
    for file in files:
        task = yaml.load(file.read_text(), Loader)
        assert task["task"] == file.stem
        for name in (task["custom_dataset"], task["process_results"]):
            assert callable(getattr(documents, name.removeprefix("documents.")))


def test_a_listing_of_the_commands_imports_no_harness():
    code = "import sys; from amends import cli; cli.root(); print('lm_eval' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
