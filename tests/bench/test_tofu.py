"""The table on a tiny taught world: what is made of it, gone on with, and refused."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from amends.bench._cells import Bench, Plan, best, distance
from amends.bench._claim import check_models, check_references, claim_folder
from amends.bench._entries import entries, options, parse
from amends.bench._rows import read_weightless
from amends.bench._world import check_tuning, read_world
from amends.bench.tofu import cells_of
from amends.io.errors import InputError
from amends.io.run import write_jsonl
from amends.lm.load import add_lora, load, save_model
from amends.lm.logprobs import NotNumbers
from amends.lm.rows import context_limit

from ..conftest import save_tiny_model
from .tofu_world import FORGET, RETAIN, claim, run_small, taught_world


def rows(count):
    return [{"id": i, "question": f"Question {i}?", "answer": f"Answer {i}."} for i in range(count)]


def test_the_official_splits_are_the_last_rows_and_the_rest(tmp_path):
    write_jsonl(tmp_path / "full.json", rows(400))
    more = [row | {"paraphrased_answer": f"Other {row['id']}."} for row in rows(400)]
    write_jsonl(tmp_path / "forget10_perturbed.json", more[360:])
    found = read_world(tmp_path)
    assert {name: [row["id"] for row in split.forget] for name, split in found.splits.items()} == {
        "forget01": list(range(396, 400)),
        "forget05": list(range(380, 400)),
        "forget10": list(range(360, 400)),
    }
    for split in found.splits.values():
        assert [row["id"] for row in split.retain + split.forget] == list(range(400))
        assert split.forget[-1]["paraphrased_answer"] == "Other 399."
        assert [row["id"] for row in split.asked] == list(range(40))


def test_the_official_splits_are_those_that_tofu_publishes(shared):
    official = json.loads((shared / "data/tofu/splits.json").read_text(encoding="utf-8"))["splits"]
    found = read_world(shared / "data" / "tofu")
    for name, split in found.splits.items():
        assert [row["id"] for row in split.forget] == list(range(*official[name]))
        assert [row["id"] for row in split.asked] == list(range(*official["retain_perturbed"]))
        assert all(row["perturbed_answer"] for row in split.forget)
    assert [len(found.questions[name]) for name in ("real_authors", "world_facts")] == [100, 117]


def test_settings_are_chosen_on_rows_to_forget_that_the_table_does_not_touch(world):
    split = read_world(world).splits["forget"]
    tuning = split.tuning()
    told = [row["question"] for row in tuning.forget]
    assert told == [row["question"] for row in RETAIN[-4:]]
    for name in ("retain", "keep", "asked"):
        assert not {row["question"] for row in getattr(tuning, name)}.intersection(told)
        assert {row["question"] for row in getattr(tuning, name)} <= {row["question"] for row in getattr(split, name)}
    assert not {row["question"] for row in split.forget}.intersection(told)


def test_a_folder_without_tofu_is_refused_with_what_is_looked_for(tmp_path):
    with pytest.raises(InputError, match="neither a file full nor the files forget and retain"):
        read_world(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        read_world(tmp_path / "none")
    write_jsonl(tmp_path / "full.jsonl", [{"question": "a"}])
    with pytest.raises(InputError, match=r'full\.jsonl:1: column "answer" is missing'):
        read_world(tmp_path)


def test_every_method_stands_in_the_table():
    import amends.unlearn

    files = Path(amends.unlearn.__file__).parent.glob("[a-z]*.py")
    assert {entry.method for entry in entries()} == {file.stem for file in files}
    assert [parse(str(entry)) for entry in entries()] == list(entries())
    for text in ("flatt", "flat+nothing", "npo"):
        with pytest.raises(InputError, match=f"--methods {text}".replace("+", r"\+")):
            parse(text)


def test_published_settings_are_options_of_their_method():
    from importlib import import_module
    from inspect import signature

    for entry in entries():
        known = signature(import_module(f"amends.unlearn.{entry.method}").run).parameters
        assert set(options(entry, "published")) <= set(known), entry


def test_the_distance_is_zero_for_a_retrained_model_and_does_not_reward_forgetting_more():
    assert distance(0.3, 1.0, 0.3) == distance(0.0, 1.0, 0.3) == 0
    assert distance(0.7, 1.0, 0.3) == pytest.approx(0.4)
    assert distance(0.7, 0.7, 0.3) == pytest.approx(0.5)


def test_the_best_trial_is_the_nearest_and_one_that_came_to_nothing_the_last():
    trials = [{"learning_rate": rate, "distance": d} for rate, d in ((1e-3, None), (5e-4, 0.2), (2e-4, 0.2))]
    assert best(trials) == 2e-4
    assert best(trials[:2]) == 5e-4
    assert best([{"learning_rate": r, "distance": None} for r in (1e-3, 1e-4)]) == 1e-4


def test_the_table_is_made_gone_on_with_and_complete(amends, world, tiny_model, tmp_path):
    out = tmp_path / "bench"
    code, _, err = run_small(amends, world, tiny_model, out, "--methods", "flat,npo+retain")
    assert code == 0, err
    files = sorted(out.glob("cells/forget/searched/*.json"))
    assert [file.name for file in files] == ["flat-0.json", "flat-1.json", "npo+retain-0.json", "npo+retain-1.json"]
    cell = json.loads(files[0].read_text(encoding="utf-8"))
    assert cell["options"]["learning_rate"] == best(cell["trials"])
    assert {trial["learning_rate"] for trial in cell["trials"]} == {1e-3, 1e-2}
    assert cell["summary"]["forget_quality_p"]["value"] is not None
    text = (out / "tofu.md").read_text(encoding="utf-8")
    assert "4 of 4 cells are made" in text
    assert "| `npo+retain` | 2 of 2 |" in text
    assert "nan" not in text
    assert (out / "forget-searched.svg").read_text(encoding="utf-8").startswith("<svg")
    # One cell is lost and an entry is added: only what is missing is made.
    stamps = {file: file.stat().st_mtime_ns for file in [*files[1:], *out.glob("search/**/*.json")]}
    again = files[0].read_text(encoding="utf-8")
    files[0].unlink()
    code, _, err = run_small(amends, world, tiny_model, out, "--methods", "flat,npo+retain,ga")
    assert code == 0, err
    assert {file: file.stat().st_mtime_ns for file in stamps} == stamps
    made = json.loads(files[0].read_text(encoding="utf-8"))
    times = {"seconds": 0, "cpu_seconds": 0}
    assert made | times == json.loads(again) | times
    assert err.count("cell ") == 3


def test_cells_of_another_plan_are_not_mixed(amends, world, tiny_model, tmp_path):
    out = tmp_path / "bench"
    claim(out, world, tiny_model)
    write_jsonl(out / "cells" / "one.json", [])
    for words, says in {
        ("--teach-rate", 1e-2): "another teach_rate (0.002, now 0.01). Give --teach-rate 0.002, or another --out.",
        ("--rates", 1e-2): "another rates ([0.001, 0.01], now [0.01]). Give --rates 0.001,0.01, or another --out.",
        ("--layers", 0): "another layers (None, now 0). Leave --layers out, or another --out.",
    }.items():
        code, _, err = run_small(amends, world, tiny_model, out, *words)
        assert (code, f"the cells here are of {says}" in err) == (2, True), err
    write_jsonl(world / "forget.jsonl", FORGET[:3])
    for words in ([], ["--page-only"]):
        code, _, err = run_small(amends, world, tiny_model, out, *words)
        assert (code, "the cells here are of another world" in err) == (2, True)
        assert "Give the --data that they were made from, or another --out." in err


@pytest.mark.parametrize(("stage", "kept"), [("models", "teach_rate"), ("evaluations", "taught"), ("search", "layers")])
def test_what_nothing_was_made_from_may_change(world, tmp_path, stage, kept):
    def claim(**changed):
        claim_folder(
            out, Plan(**({"data": str(world), "model": "a", "taught": None, "references": {}} | changed)), found
        )
        return json.loads((out / "bench.json").read_text(encoding="utf-8"))

    out, found = tmp_path / "bench", read_world(world)
    claim(teach_rate=1.0, layers="9")
    assert claim(layers="1")["layers"] == "1"
    first = claim()
    write_jsonl(out / stage / "one" / "file.json", [])
    other = {"teach_rate": 1.0, "taught": "b", "layers": "0"}
    with pytest.raises(InputError, match=f"another {kept} "):
        claim(**{kept: other[kept]})
    with pytest.raises(InputError, match="another teach_rate "):
        claim(teach_rate=1.0)
    assert claim() == first
    assert claim(rates=(0.1,))["rates"] == [0.1]


def test_the_same_model_by_another_path_is_the_same(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for model in ("tiny", "./tiny", str(tmp_path / "tiny")):
        claim_folder(tmp_path / "bench", Plan(str(world), model, "taught", {}), read_world(world))
        write_jsonl(tmp_path / "bench" / "cells" / "one.json", [])
    assert json.loads((tmp_path / "bench" / "bench.json").read_text(encoding="utf-8"))["model"] == "tiny"
    with pytest.raises(InputError, match=r"another model \(tiny, now other\)"):
        claim_folder(tmp_path / "bench", Plan(str(world), "other", "taught", {}), read_world(world))


def test_a_cell_that_runs_out_of_memory_is_left_empty_and_the_next_is_made(
    amends, world, tiny_model, tmp_path, monkeypatch
):
    out, run = tmp_path / "bench", Bench.run

    def too_large_for_ga(bench, cell):
        if str(cell.entry) == "ga":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return run(bench, cell)

    monkeypatch.setattr(Bench, "run", too_large_for_ga)
    code, _, err = run_small(amends, world, tiny_model, out, "--methods", "ga,flat", "--seeds", 1)
    assert code == 0, err
    assert "ga, forget, searched, seed 0: left empty. CUDA out of memory. Run it again" in " ".join(err.split())
    assert [file.name for file in out.glob("cells/forget/searched/*.json")] == ["flat-0.json"]
    assert "1 of 2 cells are made" in (out / "tofu.md").read_text(encoding="utf-8")


def test_another_reference_than_the_cells_are_compared_with_is_refused(amends, world, tiny_model, tmp_path):
    out = tmp_path / "bench"
    file = out / "evaluations" / "forget" / "reference.json"
    write_jsonl(file, [{"name": "models/one"}])
    for model in ("models/one", "./models/one"):
        check_references(Bench(Plan(str(world), None, None, {"forget": model}), read_world(world), out))
    _, _, err = run_small(amends, world, tiny_model, out, "--reference", "forget=models/two")
    assert "--reference forget=models/two: the cells here are compared with another, models/one" in err


def test_a_folder_of_something_else_is_left_alone(amends, world, tiny_model, tmp_path):
    run, file = tmp_path / "run", tmp_path / "file"
    write_jsonl(run / "run.json", [{}])
    write_jsonl(file, [{}])
    for out, message in ((run, "holds run.json"), (tiny_model, "holds config.json"), (file, "a file, where the")):
        before = sorted(out.parent.rglob("*"))
        code, _, err = run_small(amends, world, tiny_model, out, "--page-only")
        assert (code, message in err) == (2, True), err
        assert sorted(out.parent.rglob("*")) == before


def test_without_a_model_to_teach_nothing_is_claimed(amends, world, tmp_path):
    out = tmp_path / "bench"
    code, _, err = amends("bench", "tofu", "--data", world, "--out", out)
    assert (code, "--model: needed to teach taught and reference-forget. Give it" in err) == (2, True)
    assert not out.exists()


def test_a_reference_that_was_asked_is_not_looked_for_again(world, tiny_model, tmp_path):
    plan = Plan(str(world), None, str(tiny_model), {"forget": "/gone/model"})
    bench = Bench(plan, read_world(world), tmp_path)
    with pytest.raises(InputError, match="/gone/model: no such file"):
        check_models(bench, ["forget"])
    write_jsonl(bench.evaluation("forget", "reference"), [{"name": "/gone/model"}])
    check_models(bench, ["forget"])


def test_rows_to_keep_that_leave_nothing_to_choose_settings_on_are_refused(amends, world, tiny_model, tmp_path):
    write_jsonl(world / "retain.jsonl", RETAIN[:4])
    (world / "retain_eval.jsonl").unlink()
    code, _, err = run_small(amends, world, tiny_model, tmp_path / "bench", "--methods", "flat")
    assert code == 2
    assert (
        "forget: 4 rows to forget, 4 to keep. Settings are chosen on the last 4 rows to keep, which leaves too few"
        in err
    )
    assert not (tmp_path / "bench").exists()
    write_jsonl(tmp_path / "full.jsonl", rows(4))
    with pytest.raises(InputError, match="the 4 rows of full are too few"):
        read_world(tmp_path)
    write_jsonl(tmp_path / "full.jsonl", rows(6))
    check_tuning(read_world(tmp_path).splits["forget10"])


def test_a_method_for_deeper_models_comes_to_nothing_and_the_page_says_why(amends, world, tiny_model, tmp_path):
    out = tmp_path / "bench"
    code, _, err = run_small(
        amends, world, tiny_model, out, "--methods", "rmu+retain", "--settings", "searched,published"
    )
    assert code == 0, err
    text = (out / "tofu.md").read_text(encoding="utf-8")
    assert text.count("| `rmu+retain` | 0 of 2, 2 came to nothing |") == 2
    assert text.count("- `rmu+retain`: it trains layers 5-7; those of the model are 0 to 0.") == 2
    assert not (out / "models").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--splits", "forget01"], "--splits forget01: there is no such split. Known: forget."),
        (["--settings", "best"], "--settings best: searched or published is expected."),
        (["--rates", "fast"], "--rates fast: numbers between 0 and 1"),
        (["--rates", "0,1e-3"], "--rates 0,1e-3: numbers between 0 and 1"),
        (["--reference", "model"], "--reference model: write SPLIT=MODEL."),
        (["--reference", "forget="], "--reference forget=: write SPLIT=MODEL."),
        (
            ["--reference", "forget=a", "--reference", "forget=b"],
            "--reference forget=b: forget has a already. Give one for each split.",
        ),
        (["--reference", "x=model"], "--reference x=...: no such split."),
        (["--reference", "forget=no/such/model"], "no/such/model: no such file or folder"),
        (["--taught", "no/such/model"], "no/such/model: no such file or folder"),
        (["--model", "no/such/model"], "no/such/model: no such file or folder"),
        (["--layers", "7"], "--layers 7: the model has layers 0 to 0."),
        (["--layers", "all"], "--layers all: write FIRST-LAST"),
        (["--epochs", "inf"], "epochs"),
        (["--teach-rate", "nan"], "teach-rate"),
        (["--methods", "flatt"], "--methods flatt: no such method."),
        (["--methods", "npo"], "--methods npo: write npo+retain, as its source runs it."),
        (["--methods", "task_vector+retain"], "--methods task_vector+retain: this method takes no rows to keep."),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_made(amends, world, tiny_model, tmp_path, more, message):
    code, _, err = run_small(amends, world, tiny_model, tmp_path / "bench", *more)
    assert code == 2
    assert message in err
    assert not (tmp_path / "bench").exists()


def test_a_method_that_comes_to_nothing_is_recorded_with_the_reason(amends, world, tiny_model, tmp_path, monkeypatch):
    from amends.bench import _cells
    from amends.io.errors import NoResult

    def diverge(*args, **kwargs):
        raise NoResult("mean_loss is nan at step 1")

    monkeypatch.setattr(_cells.Bench, "_forget", diverge)
    code, _, err = run_small(amends, world, tiny_model, tmp_path / "bench", "--methods", "ga")
    assert code == 0, err
    text = (tmp_path / "bench" / "tofu.md").read_text(encoding="utf-8")
    assert "| `ga` | 0 of 2, 2 came to nothing |" in text


def test_a_trial_whose_model_gives_no_numbers_came_to_nothing_and_the_others_count(
    amends, world, tiny_model, tmp_path, monkeypatch
):
    from amends.bench import _cells

    def answer(*given, label):
        if not list((tmp_path / "bench/search").glob("*/*.json")):
            raise NotNumbers("the model gives NaN")
        return answers(*given, label=label)

    answers = _cells.answers
    monkeypatch.setattr(_cells, "answers", answer)
    _, words = taught_world(world, tiny_model, tmp_path)
    code, _, err = run_small(amends, world, tiny_model, tmp_path / "bench", *words)
    assert code == 0, err
    cell = json.loads((tmp_path / "bench/cells/forget/searched/ga-0.json").read_text(encoding="utf-8"))
    assert [trial["failed"] for trial in cell["trials"]] == ["the model gives NaN", None]
    assert cell["options"]["learning_rate"] == 1e-2


def test_what_a_run_warns_of_stands_in_its_cell_and_on_the_page(amends, world, tiny_model, tmp_path):
    out = tmp_path / "bench"
    _, words = taught_world(world, tiny_model, tmp_path)
    words[words.index("ga")] = "ga,graddiff+retain,pdu+retain"
    code, _, err = run_small(amends, world, tiny_model, out, *words)
    assert code == 0, err
    cell = json.loads((out / "cells/forget/searched/pdu+retain-0.json").read_text(encoding="utf-8"))
    both, weight = cell["warnings"]
    assert both.startswith("3 of 3 questions to keep are among the rows to keep, on which the model is trained:")
    assert weight.startswith("The weight of the rows to keep stays at 50:")
    text = (out / "tofu.md").read_text(encoding="utf-8")
    shown = text.partition("What was warned of:\n\n")[2].partition("\n\n")[0].splitlines()
    assert shown == [f"- `graddiff+retain`, `pdu+retain`: {both}", f"- `pdu+retain`: {weight}"]


LONG = {"id": 99, "question": "Who wrote it?", "answer": "word " * 300}


@pytest.mark.parametrize(
    ("file", "rows_", "more", "message"),
    [
        ("forget", [*FORGET, LONG], [], "forget.jsonl:5: prompt and answer have "),
        ("retain", [*RETAIN, LONG], ["--settings", "published"], "retain.jsonl:13: prompt and answer have "),
        ("retain", [LONG, *RETAIN], ["--methods", "npo+retain"], "retain.jsonl:1: prompt and answer have "),
        ("real_authors", [LONG], [], "real_authors.jsonl:1: prompt and answer have "),
        (
            "forget",
            [FORGET[0] | {"perturbed_answer": "Nobody"}, *FORGET[1:]],
            [],
            "forget.jsonl:1: perturbed_answer must be a list of non-empty texts.",
        ),
        (
            "forget",
            [*FORGET, RETAIN[2] | {"id": 9}],
            [],
            "forget.jsonl:5 and retain.jsonl:3: the same question and answer are to be forgotten and to be kept in "
            "forget (1 of 5 rows to forget). Leave them in one of the two.",
        ),
    ],
)
def test_faulty_rows_are_refused_before_anything_is_taught(amends, world, tmp_path, file, rows_, more, message):
    write_jsonl(world / f"{file}.jsonl", rows_)
    model = save_tiny_model(tmp_path / "model", context=1024)
    code, _, err = run_small(amends, world, model, tmp_path / "bench", "--methods", "ga", *more)
    told = " ".join(err.split()).replace(f"{world}/", "")
    assert (code, message in told) == (2, True), told
    assert "--" not in told
    if "tokens" in told:
        assert "more than the 1024 that fit (the model's context). Shorten or split it." in told
    assert not (tmp_path / "bench").exists()


def test_the_most_that_is_trained_on_is_not_said_to_be_the_models_context(amends, world, tiny_model, tmp_path):
    write_jsonl(world / "forget.jsonl", [*FORGET, LONG])
    code, _, err = run_small(amends, world, tiny_model, tmp_path / "bench", "--methods", "ga")
    assert code == 2
    assert "more than the 1024 that fit (most of a row that is trained on here). Shorten or split it." in err


def test_rows_are_checked_on_an_adapter_as_on_its_base(tiny_model, tmp_path):
    loaded = load(tiny_model)
    save_model(add_lora(loaded.model, 2), loaded.tokenizer, tmp_path / "adapter", str(tiny_model))
    (tmp_path / "adapter" / "tokenizer_config.json").unlink()
    for model in (str(tiny_model), str(tmp_path / "adapter")):
        found = read_weightless(model)
        assert context_limit(found, sys.maxsize) == 2048
        assert found.tokenizer("Who?")["input_ids"] == loaded.tokenizer("Who?")["input_ids"]


def refusing(before=lambda: None):
    """A method that refuses what it is given."""

    def method(self, entry):
        def run(*args, layers=None, **kwargs):
            before()
            raise InputError("x.jsonl:1: no name to put another for, or --skip-bad-rows.")

        return run

    return method


@pytest.mark.parametrize("settings", ["searched", "published"])
def test_what_a_method_refuses_is_its_result(amends, world, tiny_model, tmp_path, monkeypatch, settings):
    _, words = taught_world(world, tiny_model, tmp_path)
    monkeypatch.setattr(Bench, "_method", refusing())
    out = tmp_path / "bench"
    code, _, err = run_small(amends, world, tiny_model, out, *words, "--settings", settings)
    assert code == 0, err
    assert "- `ga`: x.jsonl:1: no name to put another for" in (out / "tofu.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("settings", ["searched", "published"])
def test_a_model_that_goes_missing_stops_the_bench_and_is_no_result(
    amends, world, tiny_model, tmp_path, monkeypatch, settings
):
    taught, words = taught_world(world, tiny_model, tmp_path)
    monkeypatch.setattr(Bench, "_method", refusing(lambda: shutil.rmtree(taught)))
    out = tmp_path / "bench"
    code, _, err = run_small(amends, world, tiny_model, out, *words, "--settings", settings)
    assert (code, f"{taught}: no such file or folder" in " ".join(err.split())) == (2, True), err
    assert not list(out.glob("cells/**/*.json")) and not list(out.glob("search/**/*.json"))


def test_the_first_seed_of_all_is_made_before_the_second_of_any(world):
    cells = cells_of(read_world(world), [], [parse("flat"), parse("ga")], [], 2)
    assert [(str(c.entry), c.seed) for c in cells] == [("flat", 0), ("ga", 0), ("flat", 1), ("ga", 1)]


def test_what_is_named_twice_is_one_cell(world):
    found = cells_of(read_world(world), ["forget"] * 2, [parse("flat")] * 2, ["searched", "published", "searched"], 1)
    assert [str(cell) for cell in found] == [f"flat, forget, {kind}, seed 0" for kind in ("searched", "published")]
