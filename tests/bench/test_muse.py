import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rouge_score.rouge_scorer import RougeScorer
from scipy.stats import binomtest

from amends.bench import muse as bench
from amends.bench._muse import first_tokens, read_muse, until_stop
from amends.bench.muse import pieces_of, run
from amends.io.errors import InputError
from amends.lm.load import load

from ..conftest import instead, save_tiny_model
from .conftest import copying, invented, subsets_of, taught, write_hub

MEASURES = ["verbmem", "knowmem_forget", "knowmem_retain", "mia_auc_min_k_40", "privleak", "privleak_no_reference"]
FILES = ["items.jsonl", "manifest.json", "muse.json", "run.json"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def measured(place):
    return json.loads((place / "out" / "muse.json").read_text())


def test_both_layouts_hold_the_same_questions(hub, repository):
    one, other = read_muse(hub), read_muse(repository)
    assert one.verbmem == other.verbmem
    assert one.knowmem == other.knowmem
    assert one.privleak == other.privleak
    assert {name: told["sha256"] for name, told in one.told.items()} == {
        name: told["sha256"] for name, told in other.told.items()
    }


def test_the_examples_stand_before_every_question_and_the_prompt_ends_with_the_open_answer(hub, subsets):
    examples = subsets["knowmem"]["forget_qa_icl"]
    asked = read_muse(hub).knowmem["forget"]
    assert len(asked) == len(subsets["knowmem"]["forget_qa"])
    for one, row in zip(asked, subsets["knowmem"]["forget_qa"], strict=True):
        shown = [f"Question: {e['question']}\nAnswer: {e['answer']}" for e in examples]
        assert one.prompt == "\n\n".join([*shown, f"Question: {row['question']}\nAnswer: "])
        assert one.answer == row["answer"]


def test_everything_is_measured_written_and_verified(place, hub, tiny_model, other_model, amends):
    words = ["--model", tiny_model, "--before", other_model, "--reference", other_model, "--data", hub, "--out", "out"]
    code, out, err = amends("bench", "muse", *words, "--max-length", 300)
    assert code == 0, err
    assert sorted(file.name for file in (place / "out").iterdir()) == FILES
    found = measured(place)
    assert list(found) == ["model", "before", "reference"]
    for summary in found.values():
        assert list(summary) == MEASURES
        assert all(
            entry["missing"] is None and entry["low"] <= entry["value"] <= entry["high"] for entry in summary.values()
        )
    assert found["before"]["privleak"]["value"] == 0  # it is the reference
    assert found["model"]["knowmem_retain"]["better"] == "higher"
    assert [line.split()[0] for line in out.splitlines()] == ["model", *MEASURES]
    items = [json.loads(line) for line in (place / "out" / "items.jsonl").read_text().splitlines()]
    assert {(i["role"], i["item_set"]) for i in items} == {
        (role, name) for role in found for name in ("verbmem", "knowmem_forget", "knowmem_retain", "forget", "holdout")
    }
    assert "text" not in items[-1]
    code, out, _ = amends("verify", "out")
    assert code == 0, out
    assert "weights model" in out


def test_a_model_that_copies_the_text_knows_all_of_it_and_nothing_else(hub, tiny_model, subsets):
    texts = [row["text"] for row in subsets["raw"]["forget"]]
    copy = copying(tiny_model, texts)
    found = run(copy.model, hub, parts=["verbmem", "knowmem"], processing_class=copy.tokenizer)
    assert found["verbmem"] == pytest.approx(1)
    verbmem = found.summaries["model"]["verbmem"]
    assert verbmem["low"] == pytest.approx(
        binomtest(verbmem["n"], verbmem["n"]).proportion_ci(method="wilson").low, abs=1e-4
    )
    assert found["knowmem_forget"] == 0  # it does not answer
    silent = copying(tiny_model, [])
    assert run(silent.model, hub, parts=["verbmem"], processing_class=silent.tokenizer)["verbmem"] == 0


def test_a_model_that_knows_the_answers_to_keep_alone_is_told_as_such(hub, tiny_model):
    asked = read_muse(hub).knowmem
    knowing = copying(tiny_model, [f"{q.prompt}{q.answer}\n\nQuestion: another" for q in asked["retain"]])
    found = run(knowing.model, hub, parts=["knowmem"], processing_class=knowing.tokenizer)
    assert found["knowmem_retain"] == pytest.approx(1)
    assert found["knowmem_forget"] == 0


def test_texts_that_were_trained_on_are_told_from_those_that_were_not(tmp_path, tiny_model):
    forget, holdout = invented(8, "abcdefghijkl", 0), invented(8, "mnopqrstuvwx", 2)
    copy = write_hub(tmp_path / "parted", subsets_of(forget, forget, holdout, 40))
    member, other = taught(tiny_model, forget), taught(tiny_model, holdout)
    how = {"parts": ["privleak"], "processing_class": member.tokenizer}
    found = run(member.model, copy, reference=other.model, **how)
    assert found["mia_auc_min_k_40"] == 1
    assert found["privleak"] == found["privleak_no_reference"] == -100
    assert found.summaries["reference"]["mia_auc_min_k_40"]["value"] == 0  # trained on the holdout instead: the control
    again = run(other.model, copy, reference=other.model, **how)
    assert again["privleak_no_reference"] == 100
    assert again["privleak"] == 0


def test_forget_texts_that_are_the_holdout_texts_cannot_be_told_apart(tmp_path, tiny_model, subsets):
    texts = [row["text"] for row in subsets["raw"]["forget"]]
    copy = write_hub(tmp_path / "same", subsets_of(texts, texts, texts, 40))
    found = run(tiny_model, copy, parts=["privleak"])
    assert found["mia_auc_min_k_40"] == 0.5
    assert found["privleak_no_reference"] == 0
    entry = found.summaries["model"]["mia_auc_min_k_40"]
    assert entry["low"] < 0.5 < entry["high"]


def test_without_a_reference_privleak_is_a_gap_with_its_reason(place, hub, tiny_model, amends):
    code, out, _ = amends("bench", "muse", "--model", tiny_model, "--data", hub, "--out", "out", "--parts", "privleak")
    assert code == 0
    found = measured(place)["model"]
    assert found["privleak"]["value"] is None
    assert "--reference" in found["privleak"]["missing"]
    assert "against the reference's" in found["privleak"]["meaning"]
    assert "as there is no reference" in found["privleak_no_reference"]["meaning"]
    assert found["privleak_no_reference"]["value"] is not None
    assert "privleak: There is no model retrained" in out
    assert list(found) == ["mia_auc_min_k_40", "privleak", "privleak_no_reference"]


def test_min_k_of_a_text_in_pieces_counts_every_token_but_the_first_once(tiny_model):
    tokenizer = load(tiny_model).tokenizer
    text = "one two three four five six"
    for limit in (2, 3, 7, 26, 27, 100):
        pieces = pieces_of(tokenizer, text, limit)
        assert all(len(p.prompt) == 1 and 1 <= len(p.answers[0]) <= limit - 1 for p in pieces)
        assert tokenizer.decode([i for p in pieces for i in p.answers[0]]) == text[1:]
        assert tokenizer.decode([i for p in pieces for i in p.prompt]) == text[:: limit - 1][: len(pieces)]
    assert pieces_of(tokenizer, "a", 5) == []


def test_a_whole_text_has_the_min_k_that_the_plain_model_gives_it(hub, tiny_model, subsets):
    import torch

    loaded = load(tiny_model)
    found = run(loaded.model, hub, parts=["privleak"], processing_class=loaded.tokenizer)
    text = subsets["privleak"]["forget"][0]["text"]
    ids = torch.tensor([loaded.tokenizer(text)["input_ids"]])
    with torch.no_grad():
        logp = loaded.model(input_ids=ids).logits[0, :-1].log_softmax(-1)
    own = np.sort(logp.gather(-1, ids[0, 1:, None])[:, 0].numpy())
    item = next(i for i in found.items if i["item_set"] == "forget")
    assert item["min_k_40"] == pytest.approx(-own[: int(0.4 * len(own))].mean(), rel=1e-4)
    assert item["tokens"] == len(own)


def test_a_prompt_that_is_too_long_keeps_its_end_and_is_counted(hub, tiny_model, subsets):
    texts = [row["text"] for row in subsets["raw"]["forget"]]
    copy = copying(tiny_model, texts)
    found = run(copy.model, hub, parts=["verbmem"], max_length=148, processing_class=copy.tokenizer)
    assert found["verbmem"] == pytest.approx(1)  # twenty characters are enough to find the place
    assert found.record["warnings"] == ["model: of 8 of 8 passages only the last 20 tokens fit."]
    assert all(item["cut"] for item in found.items)
    whole = run(copy.model, hub, parts=["verbmem"], processing_class=copy.tokenizer)
    assert not any(item["cut"] for item in whole.items)
    with pytest.raises(InputError, match=r"--max-length 128: no room for a prompt before the 128 new tokens of verb"):
        run(copy.model, hub, parts=["verbmem"], max_length=128, processing_class=copy.tokenizer)


def test_a_context_without_room_is_named_with_its_model_before_any_is_asked(tmp_path, hub, tiny_model, monkeypatch):
    short = save_tiny_model(tmp_path / "short", context=64)
    monkeypatch.setattr("amends.lm.turns.load", None)
    with pytest.raises(
        InputError, match=r"reference, .*short: its context of 64 tokens .* 128 new ones of verbmem\. L"
    ):
        run(tiny_model, hub, reference=short)


@pytest.mark.parametrize("how", [{"rows": 0}, {"rows": -1}, {"max_length": 1}, {"seed": -1}, {"seed": 2**32}])
def test_bounds_of_the_command_line_hold_in_python(hub, tiny_model, how):
    (name,) = how
    with pytest.raises(InputError, match=f"{name}=.*: a number of at least "):
        run(tiny_model, hub, **how)


def test_one_part_may_be_named_without_a_list(hub, tiny_model):
    assert list(run(tiny_model, hub, parts="verbmem", rows=1).summaries["model"]) == ["verbmem"]


def test_a_passage_said_by_heart_counts_in_every_script_and_one_without_words_not_at_all(tmp_path, tiny_model):
    texts = ["начало пути и дальше до самого конца", "abcd efgh ijkl mnop qrst uvwx", "abcd efgh ... !!! ,,,"]
    rows = [{"prompt": text[:9], "gt": text[9:]} for text in texts]
    (tmp_path / "verbmem").mkdir()
    (tmp_path / "verbmem" / "forget.json").write_text(json.dumps(rows))
    copy = copying(tiny_model, texts)
    found = run(copy.model, tmp_path, parts=["verbmem"], processing_class=copy.tokenizer)
    assert [item["rouge_l"] for item in found.items] == [1, 1, None]
    assert (found["verbmem"], found.summaries["model"]["verbmem"]["left_out"]) == (1, 1)


def test_an_answer_ends_at_a_blank_line_or_the_next_question():
    assert until_stop("Paris\n\nQuestion: b") == "Paris"
    assert until_stop("Paris\nQuestion: b") == "Paris"
    assert until_stop("Paris Question: b") == "Paris "
    assert until_stop("\n\nParis") == ""
    assert until_stop("Paris\nFrance") == "Paris\nFrance"


def test_a_continuation_is_compared_with_as_many_tokens_as_are_generated(tiny_model):
    tokenizer = load(tiny_model).tokenizer
    assert first_tokens(tokenizer, "abcdef", 4) == "abcd"
    assert first_tokens(tokenizer, "abc", 4) == "abc"


def test_rouge_is_that_of_the_package_without_stemmer(hub, tiny_model, subsets):
    found = run(tiny_model, hub, parts=["knowmem"], rows=2)
    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    for item in found.items:
        assert item["rouge_l"] == scorer.score(item["expected"], item["generated"])["rougeL"].fmeasure
    assert len(found.items) == 4


def test_the_same_numbers_come_out_again(hub, tiny_model):
    one, other = (run(tiny_model, hub, rows=3) for _ in range(2))
    assert one.summaries == other.summaries
    assert one.items == other.items


def test_a_file_that_is_missing_is_named_with_the_names_that_were_looked_for(tmp_path, hub, tiny_model):
    copy = tmp_path / "copy"
    shutil.copytree(hub, copy)
    for file in (copy / "knowmem").glob("retain_qa_icl*"):
        file.unlink()
    with pytest.raises(InputError, match=r"knowmem/retain_qa_icl is missing\. Looked for .*retain2_qa_icl.*--parts"):
        read_muse(copy)
    assert read_muse(copy, ["verbmem", "privleak"]).knowmem == {}


def test_a_shard_that_is_missing_is_named_and_a_whole_file_is_not_added_to_its_shards(tmp_path, hub):
    copy = tmp_path / "copy"
    shutil.copytree(hub, copy)
    first, second = sorted((copy / "verbmem").iterdir())
    told = read_muse(copy, ["verbmem"]).told["verbmem"]
    assert told["paths"] == [str(first), str(second)]
    whole = pa.concat_tables([pq.read_table(file) for file in (first, second)])
    second.rename(tmp_path / "away")
    with pytest.raises(InputError, match=r"verbmem/forget: shard 00001-of-00002 is missing \(1 of 2 in all\)"):
        read_muse(copy, ["verbmem"])
    pq.write_table(whole, copy / "verbmem" / "forget.parquet")
    again = read_muse(copy, ["verbmem"]).told["verbmem"]
    assert (again["rows"], again["sha256"]) == (told["rows"], told["sha256"])
    assert again["paths"] == [str(copy / "verbmem" / "forget.parquet")]


def test_shards_of_two_downloads_are_refused(tmp_path, hub):
    copy = tmp_path / "copy"
    shutil.copytree(hub, copy)
    first = min((copy / "verbmem").iterdir())
    shutil.copy(first, first.with_name("forget-00000-of-00001.parquet"))
    with pytest.raises(InputError, match="cut into 1 and into 2 shards"):
        read_muse(copy, ["verbmem"])


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's own
@pytest.mark.parametrize("name", ["raw/forget.txt", "raw/forget.json", "scal/forget_4.json", "corpus.jsonl", "hub"])
def test_what_is_to_be_forgotten_goes_to_a_method_as_it_is(place, repository, hub, tiny_model, amends, name):
    row = {"title": "On a", "abstract": "About a.", "text": "a b c d e f " * 30}
    (place / "corpus.jsonl").write_text(json.dumps(row))
    files = {"corpus.jsonl": place / "corpus.jsonl", "hub": hub / "sust" / "forget_1-00000-of-00001.parquet"}
    cut = ["--prefix-tokens", 20, "--continuation-tokens", 60, "--epochs", 1, "--eval-rows", 0]
    words = ["--model", tiny_model, "--forget", files.get(name, repository / name), "--out", "out", *cut]
    code, _, err = amends("unlearn", "ga", *words)
    assert code == 0, err
    told = json.loads((place / "out" / "run.json").read_text())["data"]["forget"]
    assert told["kept"] > 2


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--data", "nowhere"], "nowhere: no such folder"),
        (["--parts", "verbmem,magic"], "--parts magic: there is no such part. Known: verbmem"),
        (["--parts", "verbmem,"], "--parts '': there is no such part. Known: verbmem"),
        (["--model", "./nowhere"], "./nowhere: no such file or folder"),
        (["--before", "./nowhere"], "./nowhere: no such file or folder"),
        (["--reference", "no/such/model"], "no/such/model: no such file or folder"),
        (["--rows", "0"], "rows"),
        (["--seed", "-1"], "seed"),
        (["--data", "odd"], 'odd/verbmem/forget.json: row 1: column "gt" is missing (found: prompt)'),
        (["--data", "bad"], 'bad/verbmem/forget.json: row 1: column "gt" holds 3, expected some text. Mend the file.'),
    ],
)
def test_bad_input_is_one_line_that_says_what_to_do_and_leaves_nothing(
    place, hub, tiny_model, amends, monkeypatch, more, says
):
    monkeypatch.setattr("amends.lm.turns.load", None)  # it is said before a model is loaded
    for name, row in {"odd": {"prompt": "a"}, "bad": {"prompt": "a", "gt": 3}}.items():
        (place / name / "verbmem").mkdir(parents=True)
        (place / name / "verbmem" / "forget.json").write_text(json.dumps([row]))
    words = ["--model", tiny_model, "--data", hub, "--out", "out"]
    code, _, err = amends("bench", "muse", *instead(words, more))
    assert code == 2
    (line,) = [line for line in err.splitlines() if line.startswith("amends: error: ")]
    assert says in line
    assert not [*place.glob("out*"), *place.glob(".out*")]


def test_a_stand_in_cut_from_books_is_measured(books, tiny_model):
    found = run(tiny_model, books, rows=4, max_length=300)
    assert list(found.summaries["model"]) == list(bench.NAMES)
    assert all(entry["n"] for entry in found.summaries["model"].values())
    copy = copying(tiny_model, [f"{p.prompt}{p.continuation}" for p in read_muse(books).verbmem])
    said = run(copy.model, books, parts=["verbmem"], processing_class=copy.tokenizer)
    assert said["verbmem"] == pytest.approx(1)
