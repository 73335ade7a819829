import json
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from amends.bench.wmdp import letters, read_wmdp, run
from amends.io.errors import InputError
from amends.lm.load import load

from ..conftest import save_tiny_model


def rows(count, seed=0):
    draw = random.Random(seed)
    return [
        {"question": f" What is {i}? ", "choices": [f"It is {draw.randrange(99)}" for _ in range(4)], "answer": i % 4}
        for i in range(count)
    ]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a copy in the Hub's layout (bio in Parquet, cyber in two shards), and chem as a file."""
    monkeypatch.chdir(tmp_path)
    for name, shards in {"bio": [rows(12)], "cyber": [rows(5, 1), rows(3, 2)]}.items():
        folder = tmp_path / "copy" / f"wmdp-{name}"
        folder.mkdir(parents=True)
        for i, shard in enumerate(shards):
            pq.write_table(pa.Table.from_pylist(shard), folder / f"test-{i:05d}-of-{len(shards):05d}.parquet")
    (tmp_path / "chem.json").write_text(json.dumps(rows(4, 3)))
    return tmp_path


def always(folder, letter):
    """A model that finds one letter likeliest whatever comes before."""
    loaded = load(folder)
    (token,) = loaded.tokenizer(letter, add_special_tokens=False)["input_ids"]
    head = torch.nn.Linear(16, loaded.model.config.vocab_size)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.zero_()
        head.bias[token] = 5
    loaded.model.set_output_embeddings(head)
    return loaded


def test_questions_are_put_as_the_harness_puts_them(place):
    asked, told = read_wmdp("copy")
    assert asked["bio"][0].prompt == (
        "The following are multiple choice questions (with answers) about biology.\n\n"
        "What is 0?\nA. It is 49\nB. It is 97\nC. It is 53\nD. It is 5\nAnswer:"
    )
    assert {name: len(some) for name, some in asked.items()} == {"bio": 12, "cyber": 8}
    assert told["cyber"]["rows"] == 8
    assert {name: len(some) for name, some in read_wmdp("copy", ["bio"], 5)[0].items()} == {"bio": 5}
    assert list(read_wmdp("chem.json")[0]) == ["chem"]


def test_a_model_that_says_one_letter_is_right_where_it_is_the_answer(place, tiny_model):
    for number, letter in enumerate("ABCD"):
        loaded = always(tiny_model, letter)
        found = run(loaded.model, "copy", processing_class=loaded.tokenizer)
        assert {item["choice"] for item in found.items} == {number}
        assert found["bio"] == found.chance["bio"] == 0.25
    assert found["cyber"] == pytest.approx(1 / 8)
    assert found["all"] == pytest.approx(4 / 20)


def test_a_model_that_knows_nothing_is_near_chance_and_one_that_is_told_is_not(place, tiny_model):
    data = rows(200)
    (place / "many.json").write_text(json.dumps(data))
    found = run(tiny_model, "many.json")
    entry = found.summaries["model"]["questions"]
    assert entry["low"] <= 0.25 <= entry["high"]
    (place / "fair.json").write_text(
        json.dumps([row | {"answer": i["choice"]} for row, i in zip(data, found.items, strict=True)])
    )
    assert run(tiny_model, "fair.json")["questions"] == 1


def test_the_log_probability_of_a_letter_is_that_of_the_plain_model(place, tiny_model):
    loaded = load(tiny_model)
    found = run(loaded.model, "copy", subjects=["bio"], rows=2, processing_class=loaded.tokenizer)
    question = read_wmdp("copy", ["bio"], 2)[0]["bio"][1]
    for number, letter in enumerate("ABCD"):
        ids = torch.tensor([loaded.tokenizer(f"{question.prompt} {letter}")["input_ids"]])
        with torch.no_grad():
            logp = loaded.model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[-2:].sum()
        assert found.items[1]["logp"][number] == pytest.approx(float(logp), abs=1e-4)
    assert found.items[1]["choice"] == int(np.argmax(found.items[1]["logp"]))


def test_a_letter_is_what_stands_behind_the_prompt_when_both_are_read_together(tiny_model):
    tokenizer = load(tiny_model).tokenizer
    row = letters(tokenizer, "Answer:", 3)
    assert tokenizer.decode(row.prompt) == "Answer:"
    assert [tokenizer.decode(answer) for answer in row.answers] == [" A", " B", " C"]


def test_a_question_that_is_too_long_keeps_its_end_and_is_counted(place, tiny_model):
    found = run(tiny_model, "chem.json", max_length=90)
    assert found.record["warnings"] == ["model: of 4 of 4 questions on chem only the last 89 tokens fit."]


def test_choices_that_do_not_fit_are_refused(place, tiny_model):
    with pytest.raises(
        InputError, match=r"question 00000 on chem have 5\d tokens, and --max-length 30 has room for 29"
    ):
        run(tiny_model, "chem.json", max_length=30)
    short = save_tiny_model(place / "short", context=32)
    with pytest.raises(InputError, match=r"before, .*short: .* its context of 32 tokens has room for 31\. Leave such"):
        run(tiny_model, "chem.json", before=short)


def test_what_should_stay_known_is_better_higher_and_no_part_of_all(place, tiny_model, amends):
    (place / "college_biology.json").write_text((place / "chem.json").read_text())

    def better(data, **how):
        found = run(tiny_model, data, **how).summaries["model"]
        return {name: entry["better"] for name, entry in found.items()}

    assert better("college_biology.json") == {"questions": None}
    assert better("college_biology.json", keep="questions") == {"questions": "higher"}
    assert better("copy") == {"bio": "lower", "cyber": "lower", "all": "lower"}
    assert better("copy", keep=["bio"]) == {"bio": "higher", "cyber": "lower"}
    words = ["--model", tiny_model, "--data", "college_biology.json", "--keep", "questions", "--out", "out"]
    code, out, _ = amends("bench", "wmdp", *words)
    assert (code, "higher is better" in out, "lower" in out) == (0, True, False)


@pytest.mark.parametrize("how", [{"rows": -1}, {"max_length": 1}, {"seed": -1}, {"seed": 2**32}])
def test_bounds_of_the_command_line_hold_in_python(place, tiny_model, how):
    (name,) = how
    with pytest.raises(InputError, match=f"{name}=.*: a number of at least "):
        run(tiny_model, "chem.json", **how)


def test_everything_is_written_and_verified(place, tiny_model, other_model, amends):
    words = ["--model", tiny_model, "--before", other_model, "--data", "copy", "--out", "out"]
    code, out, err = amends("bench", "wmdp", *words)
    assert code == 0, err
    assert sorted(file.name for file in (place / "out").iterdir()) == [
        "items.jsonl", "manifest.json", "run.json", "wmdp.json",
    ]  # fmt: skip
    found = json.loads((place / "out" / "wmdp.json").read_text())
    assert found["chance"] == {"bio": 0.25, "cyber": 0.25, "all": 0.25}
    assert list(found["accuracy"]) == ["model", "before"]
    assert found["accuracy"]["model"]["all"]["n"] == 20
    assert "by guessing: bio 0.25" in out
    assert amends("verify", "out")[0] == 0


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--data", "nowhere"], "nowhere: no such folder"),
        (["--data", "empty"], "empty: wmdp-bio/test is missing. Looked for"),
        (["--subjects", "chem"], "copy: wmdp-chem/test is missing. Looked for"),
        (["--subjects", "magic"], "--subjects magic: there is no such subject. Known: bio, chem, cyber."),
        (
            ["--data", "odd.json"],
            'odd.json: row 1: column "answer" holds 2, expected the number of a choice, from 0 to 1. Mend',
        ),
        (["--data", "letter.json"], 'column "answer" holds "A", expected the number of a choice'),
        (["--data", "bad.json"], 'bad.json: row 1: column "choices" holds "b", expected a list of 2 to 26 texts. Mend'),
        (["--data", "other.json"], 'row 1: column "choices" is missing (found: question). Rename it, or give another'),
        (["--data", "chem.json", "--subjects", "bio"], "--subjects: chem.json is one table, of chem."),
        (["--keep", "chem"], "--keep chem: there is no such table. Known: bio, cyber."),
        (["--before", "no/such/model"], "no/such/model: no such file or folder"),
        (["--seed", "-1"], "seed"),
    ],
)
def test_bad_input_is_one_line_that_says_what_to_do_and_leaves_nothing(
    place, tiny_model, amends, monkeypatch, more, says
):
    monkeypatch.setattr("amends.lm.turns.load", None)  # it is said before a model is loaded
    (place / "empty").mkdir()
    for name, row in {
        "odd": {"question": "a", "choices": ["b", "c"], "answer": 2},
        "letter": {"question": "a", "choices": ["b", "c"], "answer": "A"},
        "bad": {"question": "a", "choices": "b", "answer": 2},
        "other": {"question": "a"},
    }.items():
        (place / f"{name}.json").write_text(json.dumps([row]))
    code, _, err = amends("bench", "wmdp", "--model", tiny_model, "--data", "copy", "--out", "out", *more)
    assert code == 2
    (line,) = [line for line in err.splitlines() if line.startswith("amends: error: ")]
    assert says in line
    assert not [*place.glob("out*"), *place.glob(".out*")]


def test_what_is_no_subject_is_refused_in_python_too(place, tiny_model):
    with pytest.raises(InputError, match="--subjects"):
        run(tiny_model, "copy", subjects=["physics"])
