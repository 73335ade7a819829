"""The recipes and the script of LLMU's three applications can be read, and do what their page says."""

import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from amends.assessment.plan import Sources, make_plan
from amends.io.errors import InputError
from amends.io.tables import read_rows
from amends.lm.load import load
from amends.lm.pairs import read_pairs
from amends.unlearn._read import read_asked, read_request
from amends.unlearn._request import Request
from amends.unlearn.llmu import LLMUConfig

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples/llmu"
ROW = {"prompt": "How do I get in?", "response_0": "Break it.", "response_1": "Ask them.", "better_response_id": 1}
SAFETY = {"is_response_0_safe": False, "is_response_1_safe": True}


@pytest.mark.parametrize("file", ["copyright/llmu", "hallucination/llmu", "harmful/llmu", "harmful/pku"])
def test_a_recipe_names_options_that_there_are_and_data_that_can_be_read(file: str, tiny_model: Path) -> None:
    recipe: dict[str, Any] = yaml.safe_load((EXAMPLES / f"{file}.yaml").read_text())
    name = file.partition("/")[0]
    options = {word.replace("-", "_"): value for word, value in recipe.items()}
    assert options.keys() <= {"model"} | {f.name for kind in (Request, LLMUConfig) for f in fields(kind)}
    there = {key: ROOT / value for key, value in options.items() if str(value).startswith("examples/")}
    assert file == "harmful/pku" or there.keys() == {"forget", "forget_eval", "retain", "retain_eval"}
    tokenizer = load(tiny_model).tokenizer
    for key, path in there.items():
        pairs = read_pairs(read_rows(path), tokenizer=tokenizer).kept
        assert isinstance(pairs[0].prompt, str) == (name == "copyright")
        assert name != "hallucination" or (pairs[0].right is not None) == key.startswith("forget")


def test_rows_in_halu_evals_own_columns_are_read_beside_rows_to_keep_in_others(tiny_model: Path) -> None:
    readme = (EXAMPLES / "README.md").read_text()
    command = readme.partition("name the columns: `")[2].partition("`")[0].split()
    assert command[::2] == ["--question-column", "--answer-column"]
    options = {
        word.removeprefix("--").replace("-", "_"): name for word, name in zip(command[::2], command[1::2], strict=True)
    }
    rows = [
        {"knowledge": "k", "question": f"Who is {i}?", "right_answer": f"Ada {i}", "hallucinated_answer": f"Bob {i}."}
        for i in range(4)
    ]
    data = EXAMPLES / "hallucination/data"
    keep = {"retain": data / "retain.jsonl", "retain_eval": data / "retain_eval.jsonl"}
    facts = [{"question": "Which?", "answer": "That.", "hallucinated_answer": "This."}]
    found = read_request(
        Request(forget=rows[:2], forget_eval=rows[2:], **keep, **options, world_facts=facts), load(tiny_model)
    )
    assert [(pair.answer, pair.right) for pair in found.forget.kept] == [("Bob 0.", "Ada 0"), ("Bob 1.", "Ada 1")]
    assert found.forget_eval is not None and found.forget_eval.kept[0].answer == "Bob 2."
    assert found.world_facts is not None and found.world_facts.kept[0].answer == "This."  # both columns are there
    for pairs, path in ((found.retain, keep["retain"]), (found.retain_eval, keep["retain_eval"])):
        assert pairs is not None
        assert [pair.answer for pair in pairs.kept] == [row.data["answer"] for row in read_rows(path)]
    for option in ("forget", "forget_eval", "holdout"):
        source = {"forget": rows} | {option: keep["retain"]}
        with pytest.raises(InputError, match='column "hallucinated_answer" is missing'):
            read_asked(Request(**source, **options), load(tiny_model))
    plan, _ = make_plan(
        Sources(rows, keep["retain"], **options), load(tiny_model).tokenizer, (), rows=4, max_new_tokens=None, seed=0,
        templates=[], texts=[],
    )  # fmt: skip
    assert plan.retain and plan.forget[0].answer == "Bob 0."


def run_script(*words: object, script: str = "unsafe") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / f"harmful/{script}.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})


def test_the_insults_are_those_that_the_script_makes(tmp_path: Path) -> None:
    done = run_script(tmp_path / "made", script="insults")
    assert done.returncode == 0, done.stderr
    for file in (tmp_path / "made").iterdir():
        assert file.read_bytes() == (EXAMPLES / "harmful/data" / file.name).read_bytes()
    assert len(list((tmp_path / "made").iterdir())) == 2


def test_unsafe_answers_become_rows_to_forget(tmp_path: Path) -> None:
    both = ROW | {"prompt": "And out?", "is_response_0_safe": False, "is_response_1_safe": False}
    source, out = tmp_path / "pku.jsonl", tmp_path / "forget.jsonl"
    neither = ROW | {"is_response_0_safe": True, "is_response_1_safe": True}
    source.write_text("".join(json.dumps(row) + "\n" for row in (ROW | SAFETY, neither, both)))
    done = run_script(source, out)
    assert done.returncode == 0 and done.stdout.startswith("3 unsafe answers"), done.stderr
    found = [(pair.question, pair.answer) for pair in read_pairs(read_rows(out)).kept]
    assert found == [("How do I get in?", "Break it."), ("And out?", "Break it."), ("And out?", "Ask them.")]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (ROW | {"is_response_0_safe": False}, '1: column "is_response_1_safe" is missing'),
        (ROW | SAFETY | {"is_response_1_safe": 7}, "1: is_response_1_safe must be true or false, not '7'"),
        (ROW | SAFETY | {"response_0": None}, "1: response_0 must be text"),
    ],
)
def test_a_file_of_another_kind_is_told_with_its_line(tmp_path: Path, row: dict[str, Any], says: str) -> None:
    source = tmp_path / "pku.jsonl"
    source.write_text(json.dumps(row) + "\n")
    done = run_script(source, tmp_path / "forget.jsonl")
    assert done.returncode == 1 and says in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "forget.jsonl").exists()
