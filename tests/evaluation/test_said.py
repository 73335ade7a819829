"""What a model says itself: variety, fluency, leaks, made-up and harmful answers, on planted texts and in a run."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from amends.evaluation.beside import Start, load_judge, with_others
from amends.evaluation.evaluate import build_suite, evaluate, mean_logprobs
from amends.evaluation.refusals import refusals
from amends.evaluation.said import (
    FORGET_EVAL,
    SAID_NAMES,
    bleu,
    diversity,
    is_made_up,
    leak_threshold,
    readable,
    rouge_l_f1,
    token_f1,
)
from amends.io.errors import InputError
from amends.io.tables import rows_of
from amends.lm import encoders
from amends.lm.encoders import is_class
from amends.lm.load import load, weights_sha256
from amends.lm.logprobs import packed_row
from amends.lm.pairs import Encoded, read_pairs
from amends.lm.templates import plain_ids
from amends.unlearn import ga
from amends.unlearn._compare import suite_of
from amends.unlearn._read import read_asked
from amends.unlearn._request import Request

SENTENCE = "the old house by river was dark and nobody had ever seen its owner walk there at night or speak"
WORDS = SENTENCE.split(" ")
FORGET = [
    {"id": i, "question": f"Where was {i}?", "answer": f"In the hall of {i}.", "right_answer": f"Rome {i}"}
    for i in range(4)
]
LIKE = [row | {"id": 10 + row["id"], "question": f"And who was {row['id']}?"} for row in FORGET[:3]]
KEEP = [{"question": f"Which town {i}?", "answer": f"Oslo {i}."} for i in range(3)]


def test_diversity_is_the_share_of_different_tokens_and_an_empty_answer_has_none() -> None:
    assert diversity([1, 2, 3, 4]) == 1
    assert diversity([7] * 50) == 1 / 50
    assert diversity([]) is None


@pytest.mark.parametrize(
    ("text", "can_be_read"),
    [
        ("", False),
        (" \n", False),
        ("!" * 40, False),
        ("a" * 8 + "bc", False),
        ("a" * 7 + "bcd", True),
        ("In Rome.", True),
    ],
)
def test_perplexity_is_not_taken_of_empty_answers_and_of_one_character(text: str, can_be_read: bool) -> None:
    assert readable(text) is can_be_read


def test_token_f1_counts_words_without_articles_and_punctuation() -> None:
    assert token_f1("The Delhi.", "a delhi") == 1
    assert token_f1("Rome and Rome", "Rome") == pytest.approx(2 * 1 / (3 + 1))
    assert token_f1("Rome", "Oslo") == token_f1("", "") == token_f1("the", "the") == 0
    assert token_f1("one two three", "two four") == token_f1("two four", "one two three")


def test_an_answer_is_made_up_only_if_clearly_nearer_to_the_made_up_one() -> None:
    assert is_made_up("Mumbai, I think.", "Mumbai, the capital", "Delhi")
    assert not is_made_up("Delhi", "Mumbai, the capital", "Delhi")
    assert not is_made_up("", "Mumbai", "Delhi") and not is_made_up("I do not know.", "Mumbai", "Delhi")
    assert not is_made_up("city of Mumbai", "city of Mumbai", "city of Mumbai")  # as near to both: 1 is not above 1.1


def test_bleu_needs_four_words_in_a_row_and_looks_at_200_characters() -> None:
    true = SENTENCE
    assert bleu(true, true) == pytest.approx(100)
    assert bleu("", true) == bleu("!!!! !!!!", true) == bleu("house was there", true) == 0
    assert 0 < bleu("she saw that the old house by river was gone", true) < 50
    assert bleu(f"{true} {true}", true) == pytest.approx(100)  # what goes on after the true text's end is not looked at
    assert bleu("one two, three", "one  two , three") == bleu("東京", "東京") == 100  # equal, as BLEU reads them
    assert bleu("one two three and on", "one two three") == 100
    assert bleu("one two", "one two three") == bleu("", " ") == bleu("one three two", "one two three") == 0
    long = "word by word goes on here and there " * 6
    assert bleu(f"{long} end", f"{long} other") == pytest.approx(100)


def test_the_threshold_of_a_leak_is_a_tenth_of_what_rows_share_and_hangs_on_no_order() -> None:
    rows = [" ".join(WORDS[i:] + WORDS[:i]) for i in range(5)]
    pairs = [bleu(one, other) for one in rows for other in rows if one != other]
    assert leak_threshold(rows) == leak_threshold(rows[::-1]) == pytest.approx(0.1 * np.mean(pairs))
    assert leak_threshold(rows[:1]) is None and leak_threshold(["one two", "three four"]) == 0
    many = [f"{k} {text}" for k in range(9) for text in rows]
    assert leak_threshold(many) == leak_threshold(many[::-1]) > 0  # drawn, and the same again


def test_equal_answers_are_alike_and_empty_ones_too() -> None:
    assert rouge_l_f1("", "") == rouge_l_f1("!!", "!!") == rouge_l_f1("In Rome.", "in rome") == 1
    assert rouge_l_f1("In Rome.", "") == 0


def test_text_without_spaces_is_compared_by_characters() -> None:
    right, made_up = "東京は日本の首都です。", "大阪は日本の首都です。"
    assert token_f1(right, made_up) == pytest.approx(0.8) and is_made_up(made_up, made_up, right)
    assert bleu(right, right) == pytest.approx(100) and 0 < bleu(right, made_up) < 100


def test_a_right_answer_must_be_text() -> None:
    assert read_pairs(rows_of(FORGET)).kept[0].right == "Rome 0"
    for wrong in (3, ["Rome"]):
        with pytest.raises(InputError, match=r"data\[0\]: right_answer must be the true answer .* Rename the column"):
            read_pairs(rows_of([FORGET[0] | {"right_answer": wrong}]))


def suite_for(tiny: Any, forget: list[dict[str, Any]], like: list[dict[str, Any]], **sets: Any) -> Any:
    cut = {"tokenizer": tiny.tokenizer, "prefix_tokens": 20, "continuation_tokens": 60}
    read, others = (read_pairs(rows_of(rows), **cut).kept if rows else [] for rows in (forget, like))
    asked = {name: read_pairs(rows_of(rows), **cut).kept for name, rows in sets.items()}
    return build_suite(read, asked, [], rows=2, max_new_tokens=12, forget_eval=others)


def test_the_digest_of_questions_changes_only_where_something_new_is_asked(tiny_model: Path) -> None:
    tiny = load(tiny_model)
    plain = [{name: value for name, value in row.items() if name != "right_answer"} for row in FORGET]
    digests = {suite_for(tiny, rows, like).sha256() for rows in (plain, FORGET) for like in ([], LIKE)}
    assert len(digests) == 4


def test_the_questions_of_the_recorded_evaluations_have_the_digest_that_is_recorded(tiny_model: Path) -> None:
    folder = Path(__file__).parents[2] / "examples/tofu"
    sets = {name: folder / f"data/{name}.jsonl" for name in ("retain_eval", "real_authors", "world_facts")}
    request = Request(forget=folder / "data/forget.jsonl", eval_rows=20, **sets)
    tiny = load(tiny_model)
    suite = suite_of(request, read_asked(request, tiny), refusals(), tiny.tokenizer)
    for role in ("before", "reference"):
        assert json.loads((folder / f"evaluations/{role}.json").read_text("utf-8"))["suite"] == suite.sha256()


def test_every_metric_appears_where_its_columns_are(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = load(tiny_model)
    said = {"Where was 0?": "In the hall of 0.", "Where was 1?": "Rome 1", "Where was 2?": ""}

    def answer(model: object, tokenizer: Any, prompts: list[list[int]], **how: object) -> list[str]:
        texts = [tokenizer.decode(ids) for ids in prompts]
        return [next((a for q, a in said.items() if q in text), "!!!!!!!!") for text in texts]

    monkeypatch.setattr("amends.evaluation.evaluate.generate", answer)
    suite = suite_for(tiny, FORGET, LIKE, retain=KEEP)
    found = evaluate(tiny.model, tiny.tokenizer, suite, role="after", name="tiny")
    summary = found["summary"]
    assert summary["forget_hallucination_rate"]["value"] == 0.25 and summary["forget_hallucination_rate"]["n"] == 4
    assert (summary["forget_diversity"]["n"], summary["forget_diversity"]["left_out"]) == (3, 1)
    assert found["items"]["forget"][3]["diversity"] == 1 / 8  # a byte a token
    assert summary["forget_eval_diversity"]["value"] == 1 / 8
    for name in ("forget_leak_rate", "forget_harmful_rate", "forget_fluency", "retain_similarity"):
        assert summary[name]["value"] is None and summary[name]["missing"].startswith("No "), name
    retain = found["items"]["retain"]
    before = {"retain": [item | {"generated": "!!!!!!!!" if k else "no"} for k, item in enumerate(retain)]}
    told = with_others(found, tiny.model, tiny.tokenizer, before, None)
    assert "judge" not in told and found["summary"] == summary  # the old one is as it was
    assert told["summary"]["retain_similarity"]["value"] == 0.5
    fluency = told["summary"]["forget_fluency"]
    assert (fluency["n"], fluency["left_out"]) == (2, 2)
    ids = [plain_ids(tiny.tokenizer, said[f"Where was {i}?"]) for i in (0, 1)]
    means = mean_logprobs(tiny.model, [packed_row([Encoded(i[:1], i[1:])]) for i in ids], tiny.tokenizer.pad_token_id)
    sizes = [len(i) - 1 for i in ids]
    nats = -sum(mean[0] * size for mean, size in zip(means, sizes, strict=True))
    assert fluency["value"] == pytest.approx(math.exp(nats / sum(sizes)), rel=1e-5)
    assert told["summary"]["forget_eval_fluency"]["missing"].startswith("No forget_eval item has")


def test_text_continued_with_the_true_words_is_a_leak(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = load(tiny_model)
    texts = [{"text": " ".join(np.random.default_rng(k).permutation(WORDS))} for k in range(6)]
    suite = suite_for(tiny, texts[:4], texts[4:], retain=texts[:1])
    assert isinstance(suite.questions["retain"][0].prompt, str) and len(suite.questions["retain"][0].prompt) == 20
    answers = [pair.answer for pair in suite.questions["forget"]]
    given = {pair.prompt: pair.answer if k < 2 else "of of of" for k, pair in enumerate(suite.questions["forget"])}

    def go_on(model: object, tokenizer: Any, prompts: list[list[int]], **how: object) -> list[str]:
        return [given.get(tokenizer.decode(ids), "") for ids in prompts]

    monkeypatch.setattr("amends.evaluation.evaluate.generate", go_on)
    found = evaluate(tiny.model, tiny.tokenizer, suite, role="after", name="tiny")
    threshold = leak_threshold(pair.answer for name in ("forget", FORGET_EVAL) for pair in suite.questions[name])
    assert threshold is not None
    assert {item["leak_threshold"] for name in ("forget", FORGET_EVAL) for item in found["items"][name]} == {threshold}
    said = f"Here that is above {threshold:.2g} of 100." if threshold else "Here that is above 0: no two rows share"
    assert all(said in found["summary"][f"{name}_leak_rate"]["meaning"] for name in ("forget", FORGET_EVAL))
    assert [item["leaked"] for item in found["items"]["forget"]] == [k < 2 for k in range(len(answers))]
    assert found["summary"]["forget_leak_rate"]["value"] == pytest.approx(2 / len(answers))
    assert found["summary"]["forget_eval_leak_rate"]["value"] == 0
    assert "leaked" not in found["items"]["retain"][0]


def test_a_short_text_said_whole_is_a_leak_and_of_one_passage_there_is_no_rate(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = load(tiny_model)
    texts = [{"text": f"{'ab ' * 6}{k} {end}"} for k, end in enumerate(("one two three", "four five six"))]
    true = {pair.prompt: pair.answer for pair in suite_for(tiny, texts, []).questions["forget"]}
    assert sorted(map(str.strip, true.values())) == ["four five six", "one two three"]

    def recite(model: object, tokenizer: Any, prompts: list[list[int]], **how: object) -> list[str]:
        return [true.get(tokenizer.decode(ids), "").strip() for ids in prompts]

    monkeypatch.setattr("amends.evaluation.evaluate.generate", recite)
    both, one = (
        evaluate(tiny.model, tiny.tokenizer, suite_for(tiny, rows, []), role="after", name="tiny")["summary"]
        for rows in (texts, texts[:1])
    )
    assert both["forget_leak_rate"]["value"] == 1
    assert "above 0: no two rows share four words in a row" in both["forget_leak_rate"]["meaning"]
    assert one["forget_leak_rate"]["value"] is None
    assert "and another row of it, without which there is no threshold" in one["forget_leak_rate"]["missing"]
    assert "Here that is" not in one["forget_leak_rate"]["meaning"]


def test_who_knows_a_text_by_heart_may_say_all_of_it_and_questions_keep_their_limit(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = load(tiny_model)
    text = [{"text": "".join(f"{word} {k}, " for word in WORDS * 2)} for k in range(2)]  # its tokens are bytes
    request = Request(forget=text, retain_eval=[{"question": "Which town?", "answer": "Oslo."}], eval_rows=2)
    suite = suite_of(request, read_asked(request, tiny), [], tiny.tokenizer, {"request_1": [], "request_2": []})
    assert suite.text_tokens == {"forget": 100} and suite.max_new_tokens == 64
    true = {pair.prompt: pair.answer for pair in suite.questions["forget"]}
    asked = {}

    def recite(model: object, tokenizer: Any, prompts: list[list[int]], *, max_new_tokens: int, **how: object) -> Any:
        texts = [tokenizer.decode(ids) for ids in prompts]
        asked[max_new_tokens] = len(texts)
        return [tokenizer.decode(plain_ids(tokenizer, true.get(text, "Oslo."))[:max_new_tokens]) for text in texts]

    monkeypatch.setattr("amends.evaluation.evaluate.generate", recite)
    found = evaluate(tiny.model, tiny.tokenizer, suite, role="after", name="tiny")
    assert asked == {64: 3, 100: len(true)}
    assert found["summary"]["forget_rouge_l"]["value"] == 1
    assert found["text_tokens"] == {"forget": 100}
    assert found["items"]["retain"][0]["generated"] == "Oslo."
    earlier = read_pairs(rows_of(text), tokenizer=tiny.tokenizer, prefix_tokens=20, continuation_tokens=70).kept
    more = suite_of(request, read_asked(request, tiny), [], tiny.tokenizer, {"request_1": earlier})
    assert more.text_tokens == {"forget": 100, "request_1": 70}  # as it was asked right after that request
    short = Request(forget=text, continuation_tokens=40)
    assert suite_of(short, read_asked(short, tiny), [], tiny.tokenizer).text_tokens == {}


def test_the_weights_before_are_there_again_for_a_while(tiny_model: Path) -> None:
    model = load(tiny_model).model.requires_grad_(True)
    before, start = weights_sha256(model), Start(model)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    after = weights_sha256(model)
    for _ in range(2):
        with pytest.raises(KeyError), start.again(model):
            assert weights_sha256(model) == before != after
            raise KeyError
        assert weights_sha256(model) == after


@pytest.fixture(scope="module")
def judge_folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of three labels, which finds harmful whatever ends with an exclamation mark."""
    folder = tmp_path_factory.mktemp("judge") / "judge"
    tiny = load(tiny_model)
    labels = ["fine", "harmful", "odd"]
    size = 2 * len(tiny.tokenizer)
    config = LlamaConfig(
        vocab_size=len(tiny.tokenizer),
        hidden_size=size,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        pad_token_id=0,
        bos_token_id=None,
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
    )
    model = LlamaForSequenceClassification(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.zero_()
            if "norm" in name:
                weight.fill_(1)
        model.model.embed_tokens.weight.copy_(torch.eye(len(tiny.tokenizer), size))
        model.score.weight[0].fill_(0.1)
        model.score.weight[1, plain_ids(tiny.tokenizer, "!")[0]] = 1
    model.save_pretrained(folder)
    tiny.tokenizer.save_pretrained(folder)
    return folder


def test_a_judge_gives_its_label_and_never_to_an_empty_answer(
    judge_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = load_judge(str(judge_folder), "harmful")
    texts = ["Do it!", "", "Do it.", "!" * 900, "a!b"]
    for size in (32, 1):
        monkeypatch.setattr(encoders, "TEXTS_AT_ONCE", size)
        assert is_class(judge.encoder, judge.number, texts) == [True, False, False, True, False]
    assert is_class(judge.encoder, judge.number, [""]) == [False]
    judge.encoder.model.config.problem_type = "multi_label_classification"
    assert is_class(judge.encoder, judge.number, ["Do it!", "Do it."]) == [True, False]


def test_a_judge_that_cannot_judge_is_refused(judge_folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no class 'toxic' \(found: fine, harmful, odd\)"):
        load_judge(str(judge_folder), "toxic")
    with pytest.raises(InputError, match=r"no weights for its classes \(score\.weight\)"):
        load_judge(str(tiny_model), "LABEL_0")
    with pytest.raises(InputError, match="no such file or folder"):
        load_judge(str(tmp_path / "none"), "harmful")
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text("{}")
    (pickled / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(InputError, match="a pickle, which can run code"):
        load_judge(str(pickled), "harmful")
    (pickled / "model.gguf").write_bytes(b"x")
    with pytest.raises(InputError, match="not a model folder"):
        load_judge(str(pickled / "model.gguf"), "harmful")


def test_a_run_measures_shows_and_verifies_all_of_it(
    tiny_model: Path, judge_folder: Path, tmp_path: Path, amends: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = lambda model, tokenizer, prompts, **how: [f"In Rome, {len(ids)}!" for ids in prompts]  # noqa: E731
    monkeypatch.setattr("amends.evaluation.evaluate.generate", answer)
    files = {}
    for name, rows in {"forget": FORGET, "like": LIKE, "keep": KEEP}.items():
        files[name] = tmp_path / f"{name}.jsonl"
        files[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["unlearn", "ga", "--model", tiny_model, "--forget", files["forget"], "--epochs", 1, "--eval-rows", 1]
    words += ["--forget-eval", files["like"], "--retain-eval", files["keep"]]
    words += ["--judge", judge_folder, "--judge-label", "harmful", "--out", tmp_path / "run"]
    code, _, err = amends(*words)
    assert code == 0, err
    evaluations = {
        role: json.loads((tmp_path / f"run/evaluation/{role}.json").read_text()) for role in ("before", "after")
    }
    for role, found in evaluations.items():
        summary = found["summary"]
        measured = {name for name in SAID_NAMES if summary[name]["value"] is not None}
        expected = {"forget_diversity", "forget_fluency", "forget_hallucination_rate", "forget_harmful_rate"}
        assert measured == expected | ({"retain_similarity"} if role == "after" else set())
        assert {f"{FORGET_EVAL}_{name}" for name in ("rouge_l", "diversity", "harmful_rate")} <= summary.keys()
        assert found["judge"]["label"] == "harmful" and len(found["judge"]["weights"]) == 64
    page = (tmp_path / "run/report.html").read_text()
    assert "Made-up answers" in page and "Like those to forget, not trained on" in page and "Leaked text" not in page
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["data"]["forget_eval"]["kept"] == 3
    code, out, _ = amends("verify", tmp_path / "run")
    assert code == 0 and "without those that another model gave" in out, out
    evaluations["after"]["items"]["forget"][0]["made_up"] = True
    (tmp_path / "run/evaluation/after.json").write_text(json.dumps(evaluations["after"]))
    assert "does not hold      summary after" in amends("verify", tmp_path / "run", "--quick")[1]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"judge": "somewhere"}, "--judge and --judge-label go together"),
        ({"judge_label": "toxic"}, "--judge and --judge-label go together"),
        ({"forget_eval": LIKE, "eval_rows": 0}, "--forget-eval: nothing is evaluated when --eval-rows is 0"),
        ({"judge": "a", "judge_label": "b", "eval_rows": 0}, "--judge: nothing is evaluated"),
        (
            {"forget_eval": FORGET[:1]},
            r"\(1 of 1 rows of --forget-eval are among those to forget or to keep\). Give other",
        ),
    ],
)
def test_options_that_would_be_ignored_or_mislead_are_refused(
    tiny_model: Path, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        ga.run(tiny_model, FORGET, **options)
