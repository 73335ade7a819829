import gzip
import hashlib
import json
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "amends" / "data"
TOFU = REPOSITORY / "examples" / "tofu" / "data"
LLMU = {name: REPOSITORY / "examples" / "llmu" / name / "data" for name in ("copyright", "hallucination")}


def read(path: Path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_gz(path: Path):
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def refusals():
    return (PACKAGE / "refusals.txt").read_text(encoding="utf-8").splitlines()


def without(row, *names):
    return {name: value for name, value in row.items() if name not in names}


@pytest.mark.parametrize("folder", [PACKAGE, TOFU, *LLMU.values()], ids=["package", "tofu", *LLMU])
def test_every_data_file_is_listed_with_its_rows_size_and_digest(folder):
    text = (folder / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| (\S+) \| (\d+) \| (\d+) \| ([0-9a-f]{64}) \|$", text, flags=re.MULTILINE)
    assert {name for name, *_ in listed} == {file.name for file in folder.iterdir()} - {"README.md"}
    for name, rows, size, digest in listed:
        content = (folder / name).read_bytes()
        assert (len(content.splitlines()), len(content)) == (int(rows), int(size)), name
        assert hashlib.sha256(content).hexdigest() == digest, name


def test_what_llmu_is_measured_on_is_none_of_what_it_trains_on():
    for folder in LLMU.values():
        rows = [json.dumps(without(row, "id")) for file in sorted(folder.glob("*.jsonl")) for row in read(file)]
        assert len(rows) == len(set(rows)) > 20


def test_the_made_up_answers_are_those_of_halueval(shared):
    known = {row["id"]: row for row in read_gz(shared / "data/halueval/halueval_qa_500.jsonl.gz")}
    for name in ("forget", "forget_eval"):
        for row in read(LLMU["hallucination"] / f"{name}.jsonl"):
            full = known[row["id"]]
            assert row["answer"] == full["hallucinated_answer"] != row["right_answer"] == full["right_answer"]


def test_the_refusals_are_a_hundred_short_lines_with_openings_of_their_own():
    lines = refusals()
    assert len(lines) == 100
    assert all(3 <= len(line.split()) <= 20 and line == line.strip() and line.endswith(".") for line in lines)
    assert len({" ".join(line.casefold().split()[:3]) for line in lines}) == 100


def test_no_refusal_is_one_of_the_known_lists(shared):
    known = (shared / "data/tofu/idontknow.txt").read_text(encoding="utf-8").splitlines()
    lists = json.loads((shared / "data/refusal_templates/refusals.json").read_text(encoding="utf-8"))
    known += [line for group in lists.values() for line in group]

    def bare(line):
        return re.sub(r"\W+", " ", line.casefold().replace("\u2019", "'")).strip()

    assert not {bare(line) for line in refusals()} & {bare(line) for line in known}


def test_the_general_questions_have_distinct_ids_and_full_sentences():
    rows = read(PACKAGE / "general_questions.jsonl")
    assert len(rows) == 40 and len({r["id"] for r in rows}) == 40 and len({r["question"] for r in rows}) == 40
    for row in rows:
        assert set(row) == {"id", "question", "answer"}
        assert row["question"].endswith("?") and row["answer"].endswith(".") and len(row["answer"].split()) >= 3


def test_the_zero_shot_rows_are_openbookqa_and_copa_with_a_valid_gold():
    rows = read(PACKAGE / "zero_shot.jsonl")
    assert [r["task"] for r in rows] == ["openbookqa"] * 150 + ["copa"] * 100
    assert len({r["id"] for r in rows}) == 250
    for row in rows:
        assert set(row) == {"id", "task", "context", "choices", "gold"}
        assert len(row["choices"]) == (4 if row["task"] == "openbookqa" else 2) and 0 <= row["gold"] < len(
            row["choices"]
        )


def test_the_text_rows_are_long_enough_and_distinct():
    rows = read(PACKAGE / "text.jsonl")
    assert len(rows) == 24 == len({r["id"] for r in rows}) == len({r["text"] for r in rows})
    assert all(set(row) == {"id", "text"} and len(row["text"]) >= 600 for row in rows)


def test_the_tofu_slices_are_the_two_last_and_the_eighteen_first_authors():
    forget, retain = read(TOFU / "forget.jsonl"), read(TOFU / "retain.jsonl")
    assert [r["id"] for r in forget] == list(range(3960, 4000))
    assert [r["id"] for r in retain] == [i for i in range(360) if i % 20 < 10]
    kept, measured = read(TOFU / "retain_train.jsonl"), read(TOFU / "retain_eval.jsonl")
    assert [r["id"] % 20 for r in measured] == [2, 7] * 18 and sorted(kept + measured, key=lambda r: r["id"]) == retain
    for row in forget + retain:
        assert set(row) == {
            "id",
            "author",
            "question",
            "answer",
            "paraphrased_question",
            "paraphrased_answer",
            "perturbed_answer",
        }
        assert row["author"] == row["id"] // 20 and len(row["perturbed_answer"]) == 5
    unseen = read(TOFU / "unseen.jsonl")
    assert [r["id"] for r in unseen] == [i for i in range(400, 600) if i % 20 < 10]
    for name, num in (("real_authors", 100), ("world_facts", 117)):
        rows = read(TOFU / f"{name}.jsonl")
        assert [r["id"] for r in rows] == list(range(num))
        assert all(set(r) == {"id", "question", "answer", "perturbed_answer"} for r in rows)
        assert all(len(r["perturbed_answer"]) == 3 for r in rows)


def test_the_tofu_slices_equal_the_official_rows(shared):
    full = read_gz(shared / "data/tofu/tofu_full.jsonl.gz")
    for name, rows in (("forget", full[3960:]), ("retain", [r for r in full[:360] if r["id"] % 20 < 10])):
        assert {r["perturbed_origin"] for r in rows} == {"tofu"}
        assert read(TOFU / f"{name}.jsonl") == [without(r, "perturbed_origin") for r in rows]
    columns = ("id", "author", "question", "answer")
    assert read(TOFU / "unseen.jsonl") == [{c: r[c] for c in columns} for r in full[400:600] if r["id"] % 20 < 10]
    for name in ("real_authors", "world_facts"):
        rows = read_gz(shared / f"data/tofu/{name}.jsonl.gz")
        assert read(TOFU / f"{name}.jsonl") == [without(r, "full_sentence_answer") for r in rows]


def test_the_package_slices_equal_their_sources(shared):
    found = read(PACKAGE / "zero_shot.jsonl")
    for task, num in (("openbookqa", 150), ("copa", 100)):
        rows = read_gz(shared / f"data/zeroshot/{task}.jsonl.gz")[:num]
        own = [r for r in found if r["task"] == task]
        assert [without(r, "id", "task") for r in own] == [without(r, "id") for r in rows]
    book = {f"pan-{r['id']}": r for r in read_gz(shared / "data/gutenberg/great_god_pan.jsonl.gz")}
    passages = read(PACKAGE / "text.jsonl")
    assert all(book[r["id"]]["text"] == r["text"] for r in passages)
    assert {book[r["id"]]["chapter"] for r in passages} == set(range(1, 9))
