"""Hostile input through the real command: one line that says what is wrong, exit code 2, nothing made, nothing run."""

import importlib.util
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import amends.unlearn.flat  # noqa: F401  before HOME is changed: matplotlib makes its cache there
from amends.io.tables import read_rows


def module(file):
    """Import a file of the tests, which are no package."""
    spec = importlib.util.spec_from_file_location(f"hostile_{file.stem}", file)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


generate = module(Path(__file__).with_name("generate.py"))
pages = module(Path(__file__).parents[1] / "report" / "test_unlearning.py")
DATA, MODELS, OUTPUTS, READ, RECIPES = (
    getattr(generate, name) for name in ("DATA", "MODELS", "OUTPUTS", "READ", "RECIPES")
)


def everything(folder):
    """Each file, folder and link with what tells whether it was touched."""
    found = {}
    for path in folder.rglob("*"):
        stat = path.lstat()
        found[str(path)] = (stat.st_mode, stat.st_mtime_ns if path.is_symlink() or not path.is_dir() else 0)
    return found


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Run in tmp_path/inside; what is made beside it is outside."""
    (tmp_path / "inside").mkdir()
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    yield tmp_path / "inside"
    shutil.rmtree(tmp_path)  # some are large


@pytest.fixture
def refused(place, amends, tiny_model):
    """Run `unlearn flat`; expect one line of error with these words, and that nothing changed anywhere."""

    def refused(says, **options):
        given = {"model": tiny_model, "forget": "f.jsonl", "out": "new/run", "eval-rows": 0, "epochs": 1} | options
        before = everything(place.parent)
        words = [str(word) for name, value in given.items() if value is not None for word in (f"--{name}", value)]
        code, out, err = amends("unlearn", "flat", *words)
        assert (code, out) == (2, ""), err
        errors = [line for line in err.splitlines() if line.startswith("amends: error: ")]
        assert len(errors) == 1 and err.endswith(errors[0] + "\n"), err
        assert says in errors[0]
        assert all(line.startswith("amends: ") and line.isprintable() for line in err.splitlines()), err
        assert len(errors[0]) < 2500
        assert everything(place.parent) == before

    return refused


@pytest.mark.parametrize("name", [name for name, case in DATA.items() if not isinstance(case.says, READ)])
def test_data_is_refused(name, place, refused):
    path = generate.write(DATA[name], place).relative_to(place)
    refused(DATA[name].says.replace("FILE", str(path)), forget=path)


@pytest.mark.parametrize("name", [name for name, case in DATA.items() if isinstance(case.says, READ)])
def test_what_is_odd_but_sound_is_read(name, place, amends, tiny_model):
    path = generate.write(DATA[name], place).relative_to(place)
    assert list(read_rows(path))[-1].data["question"] == DATA[name].says
    given = ["--model", tiny_model, "--eval-rows", 0, "--epochs", 1, "--lora-rank", 2, "--batch-size", 2]
    code, out, err = amends("unlearn", "flat", "--forget", path, "--out", "run", *given)
    assert (code, out) == (0, ""), err
    assert all(line.isprintable() for line in err.splitlines())
    assert sorted(os.listdir(place)) == sorted([path.name, "run"])
    assert sorted(os.listdir(place.parent)) == ["home", "inside"]
    names = {str(p.relative_to("run")) for p in Path("run").iterdir()}
    assert names == {"run.json", "forget.jsonl", "history.jsonl", "manifest.json", "model", "report.html"}
    record = json.loads(Path("run/run.json").read_text(encoding="utf-8"))
    assert record["data"]["forget"]["kept"] == len(list(read_rows(path)))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_refused(name, place, refused):
    (place / "f.jsonl").write_bytes(generate.GOOD)
    case = RECIPES[name]
    path = generate.write(case, place).relative_to(place)
    text = path.read_text(encoding="latin-1") if path.stat().st_size < 10_000 else ""
    given = [option for option in ("out", "forget", "model") if f"\n{option}:" in f"\n{text}"]
    refused(case.says.replace("FILE", str(path)), config=path, **dict.fromkeys(given))


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_place_to_write_to_is_refused(name, place, refused):
    (place / "f.jsonl").write_bytes(generate.GOOD)
    (place.parent / "outside").mkdir()
    (place / "link").symlink_to(place.parent / "nowhere")
    (place / "elsewhere").symlink_to(place.parent / "outside")
    value, says = OUTPUTS[name]
    refused(says, out=value)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_refused(name, place, refused, tiny_model):
    (place / "f.jsonl").write_bytes(generate.GOOD)
    path = generate.write_model(MODELS[name], place, tiny_model)
    refused(MODELS[name].says.replace("FILE", str(path)), model=path)


@pytest.mark.parametrize("kind", ["pickle", "torch", "numpy"])
def test_the_canary_sings_where_a_pickle_is_opened(kind, place):
    """The control: what amends refuses does run in a reader that trusts it."""
    path = place / "f"
    generate.pickled(path) if kind == "pickle" else generate.pickled_in(kind)(path)
    assert not (place / "CANARY").exists()
    if kind == "pickle":
        pickle.loads(path.read_bytes())
    elif kind == "torch":
        import torch

        torch.load(path, weights_only=False)
    else:
        import numpy as np

        np.load(path, allow_pickle=True)
    assert (place / "CANARY").exists()


def test_the_code_beside_a_tokenizer_is_not_run(place, amends, tiny_model):
    (place / "f.jsonl").write_bytes(generate.GOOD)
    model = shutil.copytree(tiny_model, place / "model")
    generate.code("tokenizer_config.json", AutoTokenizer=["evil.Evil", "evil.Evil"])(model)
    given = ["--model", model, "--eval-rows", 0, "--epochs", 1, "--lora-rank", 2]
    assert amends("unlearn", "flat", "--forget", "f.jsonl", "--out", "run", *given)[0] == 0
    assert sorted(os.listdir(place)) == ["f.jsonl", "model", "run"]


LARGE = [
    "a row of 200 MB",
    "200 MB of .json",
    "gzip of 10 GB in 10 MB",
    "gzip of a row of 1 GB",
    "Parquet that claims 2^31 rows",
    "Parquet with a dictionary of 20 MB",
    "Parquet with an answer for 100,000 rows",
]
READER = """
import resource, sys
import pyarrow.parquet
from amends.io.errors import InputError
from amends.io.tables import read_rows

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

before = peak()
for path in sys.argv[1:]:
    try:
        for row in read_rows(path): pass
    except InputError as error:
        print(error)
print((peak() - before) * (1 if sys.platform == "darwin" else 1024))
"""


def test_what_is_large_is_refused_in_little_memory(place):
    paths = []
    for name in LARGE:
        (place / name).mkdir()
        paths.append(generate.write(DATA[name], place / name))
    done = subprocess.run([sys.executable, "-c", READER, *paths], capture_output=True, text=True, check=True)
    *messages, num_bytes = done.stdout.splitlines()
    assert len(messages) == len(LARGE)
    for name, path, message in zip(LARGE, paths, messages, strict=True):
        assert DATA[name].says.replace("FILE", str(path)) in message
    assert int(num_bytes) < 200_000_000


def test_no_more_of_a_bomb_is_unpacked_than_is_free(place, monkeypatch):
    from amends.io import _lines

    sizes = []
    check = _lines.check_unpacked
    monkeypatch.setattr(_lines, "check_unpacked", lambda size, *rest: sizes.append(size) or check(size, *rest))
    path = generate.write(DATA["gzip of 10 GB in 10 MB"], place)
    with pytest.raises(_lines.InputError, match="200 times its own size"):
        list(read_rows(path))
    assert _lines.FREE_BYTES < sizes[-1] < 1.1 * _lines.FREE_BYTES


def test_rows_that_are_alike_may_be_packed_well(place):
    import gzip

    (place / "f.jsonl.gz").write_bytes(gzip.compress(generate.GOOD * 20_000))
    assert sum(1 for _ in read_rows("f.jsonl.gz")) == 20_000


@pytest.mark.parametrize("link", ["{name}", ".{name}.lock", ".{name}.tmp-{pid}"])
def test_a_link_that_waits_where_the_run_is_written_is_not_followed(link, place, amends, tiny_model):
    (place / "f.jsonl").write_bytes(generate.GOOD)
    victim = place.parent / "outside"
    victim.mkdir()
    (victim / "mine").write_text("mine")
    before = everything(victim)
    (place / link.format(name="run", pid=os.getpid())).symlink_to(victim)
    given = ["--model", tiny_model, "--eval-rows", 0, "--epochs", 1, "--lora-rank", 2]
    code, _, err = amends("unlearn", "flat", "--forget", "f.jsonl", "--out", "run", *given)
    assert code == (0 if "tmp" in link else 2), err
    assert everything(victim) == before
    assert (place / "run").is_symlink() == (link == "{name}")


def test_a_link_that_is_put_there_during_the_run_is_not_followed(place, amends, tiny_model, monkeypatch):
    from amends.unlearn import _run

    (place / "f.jsonl").write_bytes(generate.GOOD)
    (place.parent / "outside").mkdir()
    save = _run.save_model

    def race(*given):
        (place / "run").symlink_to(place.parent / "outside")
        save(*given)

    monkeypatch.setattr(_run, "save_model", race)
    given = ["--model", tiny_model, "--eval-rows", 0, "--epochs", 1, "--lora-rank", 2]
    code, _, err = amends("unlearn", "flat", "--forget", "f.jsonl", "--out", "run", *given)
    assert code == 2 and "run: exists already" in err
    assert sorted(os.listdir(place)) == ["f.jsonl", "run"]
    assert os.listdir(place.parent / "outside") == []


def test_rows_that_are_left_out_are_told_without_escapes(place, amends, tiny_model):
    bad = {"\x1b]0;owned\x07\x1b[2J\x9b1m\u202e": 1}
    (place / "f.jsonl").write_bytes(generate.GOOD + json.dumps(bad).encode())
    given = ["--model", tiny_model, "--eval-rows", 0, "--epochs", 1, "--lora-rank", 2, "--skip-bad-rows"]
    code, out, err = amends("unlearn", "flat", "--forget", "f.jsonl", "--out", "run", *given)
    assert (code, out) == (0, "")
    assert "amends: left out f.jsonl:2: no known columns" in err
    assert all(line.isprintable() for line in err.splitlines())
    code, out, err = amends("verify", "run", "--quick")
    assert code == 0, out
    ids = [json.loads(line) for line in Path("run/forget.jsonl").read_text().splitlines()]
    Path("run/forget.jsonl").write_text("".join(json.dumps(row | {"id": "\x1b[2J"}) + "\n" for row in ids))
    code, out, err = amends("verify", "run", "--quick")
    assert code == 1 and "new or changed" in out
    assert all(line.isprintable() for line in (out + err).splitlines())


def test_an_error_is_traced_without_escapes(place, amends):
    (place / "f.yaml").write_text('"\\e[2J": 1')
    code, _, err = amends("--traceback", "unlearn", "flat", "--config", "f.yaml")
    assert code == 2 and err.startswith("Traceback")
    assert all(line.isprintable() for line in err.splitlines())


# What a page or a card shows of texts that others wrote

FIELDS = {
    "run.json": ("config.max_length", "config.forget", "config.model", "config.templates", "data", "weights"),
    "evaluation/after.json": ("items", "items.forget", "items.zero_shot", "summary", "suite"),
}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, tiny_model):
    """Two evaluated runs: on all payloads, in the name of the model and of the data too, and on harmless texts."""
    from amends.cli import main

    def run(texts, name):
        folder = tmp_path_factory.mktemp("evaluated")
        rows, kept = (
            [json.dumps({"id": text, "question": f"{text} {kind}", "answer": f"{text} a"}) + "\n" for text in texts]
            for kind in ("q", "r")
        )
        forget, retain = folder / f"{name}.jsonl", folder / f"{name} retain.jsonl"
        forget.write_text("".join([*rows, *(json.dumps({"id": text, "question": text}) + "\n" for text in texts[:3])]))
        retain.write_text("".join(kept))
        model = shutil.copytree(tiny_model, folder / name)
        given = ["--forget", forget, "--model", model, "--out", folder / "run", "--retain-eval", retain]
        given += ["--eval-rows", 2, "--epochs", 1, "--lora-rank", 2, "--skip-bad-rows"]
        with pytest.raises(SystemExit) as stopped:
            main(["unlearn", "flat", *map(str, given)])
        assert not stopped.value.code
        return folder / "run"

    kept = [text for text in pages.PAYLOADS if len(text) < 1000]  # one is longer than the context
    assert len(kept) == 39
    return run(kept, "<img src=x onerror=alert(1)>"), run([f"x{i}" for i in range(39)], "x")


def elements(page):
    """Each element with its attributes, but for those of the charts, whose number depends on the values."""
    return set(pages.Outline(re.sub(r"<svg .*?</svg>", "<svg>", page, flags=re.DOTALL)).tags)


def test_no_text_of_a_run_changes_the_structure_of_its_report(evaluated):
    hostile, harmless = (page.joinpath("report.html").read_text(encoding="utf-8") for page in evaluated)
    assert len(re.findall("<svg ", hostile)) == len(re.findall("<svg ", harmless)) > 0
    assert elements(hostile) == elements(harmless)
    assert {c for c in hostile if not c.isprintable()} <= set("\n\u200c\u200d")
    told = pages.told(hostile)
    shown = [" ".join(f"{text} q".split()) for text in pages.PAYLOADS[:20]]
    assert [text for text in [*shown, "<img src=x onerror=alert(1)>.jsonl"] if text not in told] == []


def test_no_text_of_a_run_is_markup_in_its_card(evaluated):
    card = (evaluated[0] / "model/README.md").read_text(encoding="utf-8")
    assert not pages.Outline(card).tags
    assert not re.search(r"\]\(", card)
    assert {c for c in card if not c.isprintable()} == {"\n"}


def test_what_a_run_writes_has_fixed_names_and_no_spreadsheet(evaluated):
    """No id and no text names a file, and no cell is there for a spreadsheet to compute."""
    names = [{str(path.relative_to(run)) for path in run.rglob("*")} for run in evaluated]
    assert names[0] == names[1]
    assert {Path(name).suffix for name in names[0]} == {"", ".json", ".jsonl", ".html", ".md", ".safetensors", ".jinja"}


@pytest.mark.parametrize("value", [None, "\x1b[2J", [[]]], ids=repr)
@pytest.mark.parametrize(("file", "field"), [(file, field) for file, fields in FIELDS.items() for field in fields])
def test_a_value_of_another_kind_is_told_by_verify(file, field, value, evaluated, amends):
    path = evaluated[0] / file
    sound = path.read_text(encoding="utf-8")
    changed = json.loads(sound)
    *outer, last = field.split(".")
    (changed[outer[0]] if outer else changed)[last] = value
    try:
        path.write_text(json.dumps(changed), encoding="utf-8")
        code, out, err = amends("verify", evaluated[0], "--quick")
    finally:
        path.write_text(sound, encoding="utf-8")
    assert code in (1, 2)
    assert "mistake in amends" not in err
    assert all(line.isprintable() for line in (out + err).splitlines())
