import json

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from amends.io.atomic import sha256_json
from amends.io.errors import InputError
from amends.io.tables import rows_of
from amends.lm.generate import generate
from amends.lm.load import weights_sha256
from amends.lm.pairs import encode, read_pairs
from amends.maths.memorisation import auc
from amends.unlearn._read import record_sha256
from amends.verbs import audit
from amends.verbs._holdout import compare
from amends.verbs._measures import MEASURES

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's own


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def read(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def facts(start, stop):
    """Arbitrary pairs: nothing but having seen them tells the answer."""
    rng = np.random.default_rng(5)
    letters = rng.choice(list("abcdefghijklmnopqrstuvwxyz"), (stop, 8))
    rows = [{"id": f"r{i}", "question": "".join(a[:4]), "answer": "".join(a[4:])} for i, a in enumerate(letters)]
    return rows[start:stop]


@pytest.fixture(scope="module")
def taught(tmp_path_factory, tiny_model):
    """A model that was taught rows 0 to 15, and the files of rows."""
    from amends.cli import main

    folder = tmp_path_factory.mktemp("audit")
    seen, unseen = write(folder / "seen.jsonl", facts(0, 16)), write(folder / "unseen.jsonl", facts(16, 40))
    words = ["teach", "--model", tiny_model, "--data", seen, "--out", folder / "taught", "--epochs", 60]
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in [*words, "--lora-rank", 0, "--learning-rate", 0.02]])
    assert not stopped.value.code
    return folder / "taught", seen, unseen


def test_the_records_that_were_taught_stand_first(tmp_path, taught, tiny_model, amends):
    model, seen, unseen = taught
    out = tmp_path / "audit"
    code, _, err = amends("audit", "--model", model, "--data", seen, "--data", unseen, "--out", out, "--top", 16)
    assert code == 0, err
    scores = read(out / "scores.jsonl")
    assert [row["id"] for row in scores] == [row["id"] for row in facts(0, 40)]
    assert {row["where"] for row in scores[:2]} == {f"{seen}:1", f"{seen}:2"}
    assert sorted(row["rank"] for row in scores) == list(range(1, 41))
    combined = np.array([row["combined"] for row in scores])
    assert auc(combined[:16], combined[16:]) > 0.9
    names = [name for name, measure in MEASURES.items() if measure.by_default and not measure.needs_reference]
    for name in names:
        values = np.array([row[name] for row in scores], dtype=float)
        assert auc(values[:16], values[16:]) > 0.7, name
    first = sorted(scores, key=lambda row: row["rank"])[:16]
    assert [row["id"] for row in read(out / "ranked.jsonl")] == [row["id"] for row in first]
    record = json.loads((out / "run.json").read_text())
    assert record["config"]["measures"] == names
    assert record["weights"]["before"] == weights_sha256(AutoModelForCausalLM.from_pretrained(model))
    assert [record["data"][str(file)]["kept"] for file in (seen, unseen)] == [16, 24]
    assert amends("verify", out)[0] == 0


def test_the_ranked_list_is_taken_as_it_is_by_unlearn(tmp_path, taught, amends):
    model, seen, _ = taught
    assert amends("audit", "--model", model, "--data", seen, "--out", tmp_path / "audit", "--top", 3)[0] == 0
    ranked = tmp_path / "audit" / "ranked.jsonl"
    words = ["--model", model, "--forget", ranked, "--epochs", 1, "--eval-rows", 0, "--lora-rank", 4]
    code, _, err = amends("unlearn", "flat", *words, "--out", tmp_path / "forgotten")
    assert code == 0, err
    told = json.loads((tmp_path / "forgotten" / "run.json").read_text())["data"]["forget"]
    assert told["rows"] == told["kept"] == 3


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Who?", "completion": "Me.", "paraphrased_answer": "I.", "perturbed_answer": ["You.", "He."]},
        {"question": "Who?", "answer": "Me.", "right_answer": "You."},
        {"instruction": "Add.", "input": "1 and 2", "output": "3"},
        {"messages": [{"role": r, "content": c} for r, c in (("system", "s"), ("user", "u"), ("assistant", "a"))]},
        {"text": "one two three four five six seven"},
    ],
    ids=lambda row: next(iter(row)),
)
def test_a_ranked_row_is_read_as_the_record_that_it_was(tiny_model, row):
    how = {"tokenizer": AutoTokenizer.from_pretrained(tiny_model), "prefix_tokens": 9, "continuation_tokens": 50}
    (pair,) = read_pairs(rows_of([row]), **how).kept
    (again,) = read_pairs(rows_of([audit.row_of(pair)]), **how).kept
    assert (again.prompt, again.answer) == (pair.prompt, pair.answer)
    assert (again.paraphrase, again.wrong, again.right) == (pair.paraphrase, pair.wrong, pair.right)


def test_windows_of_plain_text_come_back_as_the_windows_that_they_were(tmp_path, tiny_model):
    book = tmp_path / "book.txt"
    book.write_text("abcd efg hij klm no  pq rs tuvw\n")  # windows of 4 + 4 bytes
    reading = audit.Reading(prefix_tokens=4, continuation_tokens=4)
    found = audit.run(tiny_model, book, reading=reading)
    assert [pair.prompt for pair in found.pairs] == ["abcd", " hij", " no ", "rs t"]
    ranked = write(tmp_path / "ranked.jsonl", found.ranked())
    again = audit.run(tiny_model, ranked, reading=reading)
    assert [(p.prompt, p.answer) for p in again.pairs] == [
        (found.pairs[i].prompt, found.pairs[i].answer) for i in found.order
    ]


def test_a_holdout_and_a_reference_say_what_is_memory(tmp_path, taught, tiny_model, amends):
    model, seen, unseen = taught
    out = tmp_path / "audit"
    words = ["--model", model, "--data", seen, "--holdout", unseen, "--reference", tiny_model, "--out", out]
    code, _, err = amends("audit", *words)
    assert code == 0, err
    summary = json.loads((out / "summary.json").read_text())
    assert summary["reference"]["holdout"]["auc"] > 0.95 and summary["combined"]["holdout"]["auc"] > 0.9
    assert summary["combined"]["holdout"]["tpr_at_fpr"]["0.01"] is None  # 24 rows cannot show one in a hundred
    assert abs(summary["words"]["holdout"]["auc"] - 0.5) < 0.25
    assert [row["id"] for row in read(out / "holdout.jsonl")] == [row["id"] for row in facts(16, 40)]
    assert json.loads((out / "run.json").read_text())["weights"].keys() == {"before", "reference"}
    page = (out / "report.html").read_text()
    assert "holdout, never seen" in page and "missing" in page


def test_a_model_that_was_taught_nothing_remembers_nothing(tiny_model):
    found = audit.run(tiny_model, facts(0, 40), holdout=facts(40, 120))
    for name in ("loss", "min_k", "combined"):
        assert found.membership[name].auc == pytest.approx(0.5, abs=3 * found.membership[name].standard_error), name
    assert not found.scores["extractable"].any()
    assert found.record["warnings"] == []


def test_extractable_is_what_the_model_itself_says(taught):
    model, seen, unseen = taught
    found = audit.run(model, [seen, unseen], answer_prefix=1)
    loaded, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    prompts = [(e := encode(tokenizer, p.prompt, [p.answer])[0]).prompt + e.answer[:1] for p in found.pairs]
    said = generate(loaded, tokenizer, prompts, stop_ids=[2], max_new_tokens=8)
    right = [text.startswith(pair.answer[1:]) for text, pair in zip(said, found.pairs, strict=True)]
    assert found.scores["extractable"].tolist() == right
    assert 0 < sum(right) < 40


def test_files_may_share_ids_and_what_is_given_twice_is_told(tmp_path, tiny_model, amends):
    one, other = write(tmp_path / "one.jsonl", facts(0, 4)), tmp_path / "other.jsonl"
    rows = [*facts(2, 6), *facts(0, 1)]  # of which rows 2, 3 and 0 stand in both
    write(other, [row | {"id": f"r{i}"} for i, row in enumerate(rows)])
    out = tmp_path / "audit"
    words = [word for file in (one, other, one) for word in ("--data", file)]
    code, _, err = amends("audit", "--model", tiny_model, *words, "--out", out)
    assert code == 0, err
    scores, said = read(out / "scores.jsonl"), " ".join(err.split())
    assert [row["id"] for row in scores] == ["r0", "r1", f"{one}:r2", f"{one}:r3", f"{other}:r2", f"{other}:r3"]
    assert f"left out {one}: given twice" in said and f"left out {other}:5: same prompt and answer as {one}:1" in said
    told = json.loads((out / "run.json").read_text())["data"]
    assert [[told[str(file)][name] for name in ("rows", "kept")] for file in (one, other)] == [[4, 4], [5, 2]]
    again = audit.run(tiny_model, out / "ranked.jsonl")  # as every reader of rows takes it: ids are unique
    assert len(again.pairs) == 6


def test_copies_are_counted_and_what_is_given_word_for_word_by_them(tmp_path, taught, tiny_model, amends):
    model, seen, _ = taught
    one, other, *_ = np.flatnonzero(audit.run(model, seen, measures="extractable").scores["extractable"])
    rows = facts(0, 16)
    again = write(tmp_path / "again.jsonl", [{**rows[one], "id": f"a{i}"} for i in range(11)] + [rows[other]])
    more = write(tmp_path / "more.jsonl", [{**rows[other], "id": f"b{i}"} for i in range(2)])
    out = tmp_path / "audit"
    words = [word for file in (seen, again, more) for word in ("--data", file)]
    assert amends("audit", "--model", model, *words, "--out", out)[0] == 0
    scores = read(out / "scores.jsonl")
    assert [row["copies"] for row in scores] == [{one: 12, other: 4}.get(i, 1) for i in range(16)]
    given = [row["copies"] for row in scores if row["extractable"] == 1]
    assert sorted(given)[-2:] == [4, 12]
    counts = json.loads((out / "summary.json").read_text())["extractable"]["eidetic"]
    assert counts == {"1": len(given) - 2, "10": len(given) - 1, "100": len(given)}
    assert f"{counts['1']} for k = 1, {counts['10']} for k = 10" in (out / "report.html").read_text()
    reading = audit.Reading(prefix_tokens=4, continuation_tokens=4)
    texts = [{"id": i, "text": text} for i, text in enumerate(("aaaabbbb" * 3 + "ccccdddd", "ccccdddd" * 2))]
    files = [write(tmp_path / f"{row['id']}.jsonl", [row]) for row in texts]
    assert audit.run(tiny_model, files, reading=reading).copies == [3, 3]


def test_an_auc_of_one_has_the_interval_of_as_many_rows_and_no_error_of_zero():
    found = compare(np.arange(20.0) + 9, np.arange(9.0))
    assert found.auc == 1 and np.isnan(found.standard_error)
    assert (found.low, found.high) == (pytest.approx(9 / (9 + 1.96**2)), 1)  # Wilson's, of 9 rows of 9
    turned = compare(np.arange(9.0), np.arange(20.0) + 9)
    assert (turned.auc, turned.low, turned.high) == (0, 0, pytest.approx(1 - found.low))
    alike = compare(np.zeros(20), np.zeros(9))
    assert alike.auc == 0.5 and np.isnan([alike.standard_error, alike.low, alike.high]).all()
    rng = np.random.default_rng(0)
    plain = compare(rng.normal(1, 1, 60), rng.normal(0, 1, 50))
    assert plain.high - plain.auc == pytest.approx(1.96 * plain.standard_error) and plain.low < plain.auc < plain.high
    few = compare(np.ones(1), np.zeros(9))
    assert few.auc == 1 and np.isnan([few.standard_error, few.low]).all()


def test_measures_are_chosen_and_the_rank_is_their_mean(taught):
    model, seen, _ = taught
    found = audit.run(model, seen, measures=["gradient", "loss"])
    assert list(found.scores) == ["gradient", "loss"]
    ranks = [np.argsort(np.argsort(found.scores[name])) for name in found.scores]
    assert found.combined == pytest.approx((np.mean(ranks, axis=0) + 0.5) / 16)
    assert found.order[0] == int(np.argmax(found.combined))
    assert [row["id"] for row in found.ranked(2)] == [found.pairs[i].id for i in found.order[:2]]


@pytest.mark.parametrize("name", MEASURES)
def test_each_measure_can_be_taken_alone_and_has_its_page(tmp_path, taught, tiny_model, name):
    model, _, _ = taught
    reference = tiny_model if MEASURES[name].needs_reference else None
    found = audit.run(model, facts(0, 3), measures=[name], reference=reference, out=tmp_path / "audit")
    assert list(found.scores) == [name]
    page = (tmp_path / "audit" / "report.html").read_text()
    assert "over 1 measures" not in page and ("word for word" in page) == (name == "extractable")
    assert f'<th scope="row">{name}<span class="small">' in page


def test_what_has_no_number_has_a_reason(tmp_path, taught, amends):
    model, _, _ = taught
    data = write(tmp_path / "data.jsonl", [*facts(0, 2), {"question": "short?", "answer": "ab", "id": "s"}])
    out = tmp_path / "audit"
    assert amends("audit", "--model", model, "--data", data, "--out", out, "--answer-prefix", 2, "--top-k", 1)[0] == 0
    scores = read(out / "scores.jsonl")
    assert scores[2]["extractable"] is None and scores[2]["sampling"] is None
    assert "2 go to the prefix" in scores[2]["missing"]["extractable"]
    for row in scores[:2]:  # with top k 1, sampling is greedy decoding
        assert (row["sampling"] == 0) == (row["extractable"] == 1)
        assert row["extractable"] == 1 or "top k" in row["missing"]["sampling"]
    page = (out / "report.html").read_text()
    assert "% of them word for word behind the first 2 tokens of each answer (1 have no more)." in page
    with pytest.raises(InputError, match="--answer-prefix"):
        audit.run(model, data, measures=["extractable"], answer_prefix=2)


def test_a_holdout_row_that_was_trained_on_is_left_out_and_one_of_another_kind_is_told(taught):
    model, seen, _ = taught
    dated = [{"question": f"In 2026, {row['question']}", "answer": row["answer"]} for row in facts(16, 40)]
    found = audit.run(model, seen, holdout=[*facts(3, 5), *dated])
    assert [pair.where for pair in found.holdout] == [f"holdout[{i}]" for i in range(2, 26)]
    (told,) = (value for name, value in found.record["data"].items() if name == "holdout")
    assert [row["reason"] for row in told["dropped"]] == [f"is also a record, {seen}:{i}" for i in (4, 5)]
    assert "Words alone" in found.record["warnings"][0]
    with pytest.raises(InputError, match="never seen"):
        audit.run(model, seen, holdout=facts(3, 5))


def test_plain_text_is_counted_by_windows_and_a_window_that_is_a_record_is_left_out_alone(tmp_path, tiny_model):
    book, other = tmp_path / "book.txt", tmp_path / "other.txt"
    book.write_text("aaaabbbb" * 3 + "ccccdddd")  # four windows of 4 + 4 tokens, which are bytes
    other.write_text("ccccdddd" + "eeeeffff" + "gggghhhh" + "iiiijjjj")
    reading = audit.Reading(prefix_tokens=4, continuation_tokens=4)
    found = audit.run(tiny_model, book, holdout=other, reading=reading)
    assert [pair.answer for pair in found.pairs] == ["bbbb", "dddd"]
    assert [pair.answer for pair in found.holdout] == ["ffff", "hhhh", "jjjj"]
    told = found.record["data"]
    assert [[told[str(file)][name] for name in ("rows", "kept")] for file in (book, other)] == [[4, 2], [4, 3]]
    assert [row["reason"] for row in told[str(book)]["dropped"]] == [f"same prompt and answer as {book}#0"] * 2
    assert told[str(other)]["dropped"] == [{"where": str(other), "reason": f"is also a record, {book}"}]
    assert told[str(book)]["sha256"] == sha256_json([record_sha256(pair) for pair in found.pairs])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--measures", "los"], "Did you mean loss?"),
        (["--measures", "bits"], "Give --reference"),
        (["--holdout", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--max-length", 3], "tokens, more than the 3"),
        (["--seed", -1], "Invalid value for '--seed'"),
        (["--seed", 2**32], "Invalid value for '--seed'"),
    ],
)
def test_what_can_be_mended_is_said_and_nothing_is_written(tmp_path, taught, amends, words, message):
    model, seen, _ = taught
    code, _, err = amends("audit", "--model", model, "--data", seen, "--out", tmp_path / "audit", *words)
    assert code == 2 and message in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--model", "--reference"])
def test_a_model_that_is_not_there_is_told_before_another_is_loaded(tmp_path, taught, amends, monkeypatch, option):
    monkeypatch.setattr(audit, "load", None)
    words = {"--model": taught[0], "--data": taught[1], "--out": tmp_path / "audit"} | {option: "no/such/model"}
    code, _, err = amends("audit", *(word for pair in words.items() for word in pair))
    assert code == 2 and "no/such/model: no such file or folder" in err


def test_a_reference_with_another_tokenizer_is_refused(tmp_path, taught, tiny_model):
    other = tmp_path / "other"
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.add_tokens(["abc"])
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(other)
    tokenizer.save_pretrained(other)
    with pytest.raises(InputError, match="another tokenizer"):
        audit.run(taught[0], taught[1], reference=other)


@pytest.fixture
def short(tmp_path, tiny_model):
    """A model of GPT-2's kind, which has no place for more than 48 tokens, with the tokenizer of the others."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=48, n_embd=16, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "short")
    tokenizer.save_pretrained(tmp_path / "short")
    return tmp_path / "short"


def test_rows_that_a_reference_does_not_take_are_told_before_anything_is_asked(
    tmp_path, taught, short, amends, monkeypatch
):
    model = taught[0]
    found = audit.run(model, facts(0, 2), reference=short)
    assert np.isfinite(found.scores["bits"]).all()
    data = write(tmp_path / "data.jsonl", [*facts(0, 2), {"id": "long", "question": "Who?", "answer": "M" * 60}])
    with monkeypatch.context() as patch:
        patch.setattr(audit, "answer_scores", None)
        words = ["audit", "--model", model, "--data", data, "--reference", short, "--out", tmp_path / "audit"]
        code, _, err = amends(*words)
        assert code == 2 and f"--reference: takes 48 tokens, and {data}:3 has" in " ".join(err.split())
    code, _, err = amends(*words, "--max-length", 48, "--skip-bad-rows")
    assert code == 0 and [row["id"] for row in read(tmp_path / "audit" / "scores.jsonl")] == ["r0", "r1"]


def test_a_reference_that_is_the_model_is_told(tmp_path, taught, tiny_model):
    model, seen, _ = taught
    found = audit.run(model, seen, reference=model)
    assert found.record["warnings"] == [audit.SAME_WEIGHTS] and not found.scores["bits"].any()
    assert audit.run(model, seen, reference=tiny_model).record["warnings"] == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": 0},
        {"answer_prefix": -1},
        {"top": 0},
        {"top": -5},
        {"top": 2.5},
        {"top_k": -1},
        {"share": 0},
        {"share": float("nan")},
        {"max_length": 1},
        {"seed": -1},
        {"reading": audit.Reading(prefix_tokens=0)},
        {"measures": "los"},
    ],
    ids=str,
)
def test_what_the_command_line_refuses_is_refused_from_python(tmp_path, monkeypatch, wrong):
    monkeypatch.setattr(audit, "load", None)
    with pytest.raises(InputError, match=r"needed|Did you mean loss"):
        audit.run("no model", facts(0, 2), out=tmp_path / "audit", **wrong)


@pytest.mark.parametrize(
    ("data", "says"),
    [(["file", *facts(0, 2)], "files and rows in one list"), (facts(0, 1)[0], "data is a dict"), (3, "data is a int")],
    ids=["both", "one row", "number"],
)
def test_data_that_are_neither_files_nor_rows_are_refused_and_none_is_passed_over(tmp_path, tiny_model, data, says):
    file = write(tmp_path / "data.jsonl", facts(2, 4))
    with pytest.raises(InputError, match=says):
        audit.run(tiny_model, [file if one == "file" else one for one in data] if isinstance(data, list) else data)


def test_measures_may_be_named_as_on_the_command_line(tiny_model):
    assert list(audit.run(tiny_model, facts(0, 2), measures="loss,em").scores) == ["loss", "em"]


def test_nothing_in_a_record_becomes_markup(tmp_path, tiny_model, amends):
    data = write(tmp_path / "data.jsonl", [{"question": "<script>alert(1)</script>\u202e", "answer": "</b>{{ 1 }}"}])
    assert amends("audit", "--model", tiny_model, "--data", data, "--out", tmp_path / "audit")[0] == 0
    page = (tmp_path / "audit" / "report.html").read_text()
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page and "\u202e" not in page
    assert "{{ 1 }}" in page
