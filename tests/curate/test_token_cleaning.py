"""Token Cleaning: scores that are exact, labels, and runs that go on where they were stopped."""

import json
import shutil

import numpy as np
import pytest
import torch
from datasets import load_from_disk
from transformers import AutoModelForCausalLM, AutoTokenizer

from amends.curate import token_cleaning
from amends.curate._token_cleaning import stages
from amends.curate._token_cleaning.masks import offsets_of
from amends.curate._token_cleaning.page import runs
from amends.curate._token_cleaning.rows import read_token_pool
from amends.curate._token_cleaning.stages import finetune, log_probabilities, token_numbers
from amends.curate.token_cleaning import Training, run, score, to_dataset, token_mask
from amends.io.errors import InputError
from amends.io.tables import read_rows, rows_of
from amends.lm import logprobs
from amends.lm.load import Loaded, load, save_model
from amends.lm.logprobs import packed_row
from amends.lm.pairs import encode, read_pairs
from amends.lm.rows import encode_rows
from amends.lm.templates import turn_end

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's own
SMALL = Training(lora_rank=4, learning_rate=0.01, epochs=1, batch_size=2, accumulation=2)
ROWS = [{"question": f"Who is {i}?", "answer": f"Person {i}" + " who lives here" * (i % 4) + "."} for i in range(24)]


def pairs_of(rows=ROWS):
    return read_pairs(rows_of(rows)).kept


# Scores


def test_a_model_scored_against_itself_scores_nothing(tiny_model):
    found = score(tiny_model, tiny_model, pairs_of())
    assert not found.scores.any()
    assert found.offsets[-1] == sum(len(row.answers[0]) for row in found.rows)


def test_the_scores_of_an_answer_add_up_to_its_likelihood_ratio_by_plain_transformers(tiny_model, other_model):
    found = score(tiny_model, other_model, pairs_of())
    models = [AutoModelForCausalLM.from_pretrained(model) for model in (tiny_model, other_model)]
    for i in (0, 3):
        prompt, answer = found.rows[i].prompt, found.rows[i].answers[0]
        ids = torch.tensor([prompt + answer])
        with torch.no_grad():
            logp = [model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1) for model in models]
        ratios = [p.gather(-1, ids[0, len(prompt) :, None]).sum() for p in logp]
        total = found.scores[found.offsets[i] : found.offsets[i + 1]].sum()
        assert total == pytest.approx(float(ratios[1] - ratios[0]), abs=1e-4)
        assert abs(total) > 1e-3


def test_scores_change_sign_when_base_and_reference_change_places(tiny_model, other_model):
    there, back = score(tiny_model, other_model, pairs_of()), score(other_model, tiny_model, pairs_of())
    np.testing.assert_array_equal(there.scores, -back.scores)


def test_a_score_depends_on_its_row_alone(tiny_model, other_model):
    pairs = pairs_of()
    all_ = score(tiny_model, other_model, pairs)
    turned = score(tiny_model, other_model, pairs[::-1])
    for i in (0, 3, 7):
        own = all_.scores[all_.offsets[i] : all_.offsets[i + 1]]
        np.testing.assert_allclose(score(tiny_model, other_model, [pairs[i]]).scores, own, atol=1e-4)
        j = len(pairs) - 1 - i
        np.testing.assert_allclose(turned.scores[turned.offsets[j] : turned.offsets[j + 1]], own, atol=1e-4)


def test_scores_are_computed_at_the_precision_of_the_weights(tiny_model, monkeypatch):
    loaded, rows = load(tiny_model), encode_rows(AutoTokenizer.from_pretrained(tiny_model), pairs_of(), 512)
    exact = log_probabilities(loaded.model, rows, 0)
    monkeypatch.setattr(logprobs, "autocast", lambda: torch.autocast("cpu", torch.bfloat16))
    np.testing.assert_array_equal(log_probabilities(loaded.model, rows, 0), exact)
    rounded = torch.cat(logprobs.note(loaded.model, rows, 0, lambda out: out.logp_BA))[:, 0].numpy()
    assert np.abs(rounded - exact).max() > 1e-4


def test_adapters_of_one_base_are_scored_on_one_base_in_memory(tiny_model, tmp_path, monkeypatch):
    rows = encode_rows(AutoTokenizer.from_pretrained(tiny_model), pairs_of(), 512)
    masks = [np.ones(len(row.answers[0]), dtype=bool) for row in rows]
    for seed in (0, 1):
        tuned = finetune(load(tiny_model), rows, masks, Training(4, 0.05, 2, 8, 1, seed))
        (tmp_path / str(seed)).mkdir()
        save_model(tuned.model, tuned.tokenizer, tmp_path / str(seed), str(tiny_model))
        for file in (tmp_path / str(seed)).glob("*token*"):
            file.unlink()
        (tmp_path / str(seed) / "chat_template.jinja").unlink(missing_ok=True)
    one, other = (load(tmp_path / str(seed)) for seed in (0, 1))
    apart = score(one, other, pairs_of())
    assert apart.scores.any()
    held = []
    monkeypatch.setattr(token_cleaning, "load", lambda *a, **k: held.append(k.get("instead_of")) or load(*a, **k))
    together = score(tmp_path / "0", tmp_path / "1", pairs_of())
    assert [before is not None for before in held] == [False, True]
    np.testing.assert_array_equal(together.scores, apart.scores)
    held.clear()
    for module in (token_cleaning, stages):
        monkeypatch.setattr(module, "load", lambda *a, **k: held.append(k.get("instead_of")) or load(*a, **k))
    found = run(ROWS, base=tmp_path / "0", reference=tmp_path / "1")
    assert [before is not None for before in held] == [False, True]
    np.testing.assert_array_equal(found.scored.scores, apart.scores)


def test_a_reference_with_other_tokens_or_another_template_is_refused(tiny_model):
    loaded = load(tiny_model)
    for change, named in (
        (lambda tokenizer: tokenizer.add_tokens(["new"]), "another tokenizer"),
        (
            lambda tokenizer: setattr(tokenizer, "chat_template", "{{ messages[0]['content'] }}"),
            "another chat template",
        ),
    ):
        changed = AutoTokenizer.from_pretrained(tiny_model)
        change(changed)
        with pytest.raises(InputError, match=named):
            score(loaded, loaded._replace(tokenizer=changed), pairs_of())


# Labels


def test_all_tokens_kept_are_the_labels_of_plain_fine_tuning(tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    found = score(tiny_model, tiny_model, pairs_of())
    table = to_dataset(found.rows, token_mask(found.scores, found.offsets, keep=1), found.offsets)
    for pair, row in zip(pairs_of(), table, strict=True):
        prompt = tokenizer.apply_chat_template(pair.prompt, tokenize=False, add_generation_prompt=True)
        before, whole = (tokenizer(text)["input_ids"] for text in (prompt, f"{prompt}{pair.answer}<|im_end|>"))
        assert row["input_ids"] == whole
        assert row["labels"] == [-100] * len(before) + whole[len(before) :]
        assert row["attention_mask"] == [1] * len(whole)


def test_labels_are_the_ids_where_a_token_is_kept_and_rows_without_one_are_left_out(tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    rows = [packed_row(encode(tokenizer, "ab", [answer])) for answer in ("cde", "fg")]
    (row,) = to_dataset(rows, np.array([False, True, False, False, False]), offsets_of([3, 2]))
    ids = rows[0].prompt + rows[0].answers[0]
    assert row["labels"] == [-100, -100, -100, ids[3], -100]


def test_the_text_of_runs_is_the_answer_and_no_character_is_torn(tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)  # of bytes
    ids = tokenizer("é日b")["input_ids"]
    assert runs(tokenizer, ids, np.array([True, False, False, True, True, False])) == [
        (False, "é"),
        (True, "日"),
        (False, "b"),
    ]


# Runs


def test_self_evolving_is_what_its_description_says_step_by_step(tiny_model):
    found = run(ROWS, base=tiny_model, self_evolving=True, chunks=3, keep=0.5, keep_ends=False, training=SMALL)
    base, theta = load(tiny_model), load(tiny_model)
    rows = encode_rows(base.tokenizer, pairs_of(), 512)
    offsets = offsets_of([len(row.answers[0]) for row in rows])
    masks = [np.ones(len(row.answers[0]), dtype=bool) for row in rows[:8]]
    for begin in (0, 8, 16):
        part, places = rows[begin : begin + 8], offsets[begin : begin + 9]
        if begin:
            scores = log_probabilities(theta.model, part, 0) - log_probabilities(base.model, part, 0)
            assert np.abs(scores).max() > 0.001
            np.testing.assert_array_equal(found.scored.scores[places[0] : places[-1]], scores)
            mask = token_mask(scores, places - places[0], keep=0.5)
            np.testing.assert_array_equal(found.mask[places[0] : places[-1]], mask)
            masks = np.split(mask, (places - places[0])[1:-1])
        else:
            assert np.isnan(found.scored.scores[: places[-1]]).all() and found.mask[: places[-1]].all()
        theta = finetune(theta, part, masks, SMALL)
    last = [dict(model.model.named_parameters()) for model in (found.model, theta)]
    assert all(torch.equal(last[0][name], last[1][name]) for name in last[1])
    assert [part["tokens"] for part in found.summary["parts"]] == [offsets[16] - offsets[8], offsets[24] - offsets[16]]


@pytest.fixture(scope="module")
def files(tmp_path_factory, tiny_model):
    """A pool with faults, and the run folder of a self-evolving run on it."""
    folder = tmp_path_factory.mktemp("tokens")
    faults = [ROWS[0], {"question": "Empty?", "answer": " "}, {"question": "Long?", "answer": "x" * 3000}, {"q": 1}]
    rows = [row | {"source": f"s{i % 2}"} for i, row in enumerate([*ROWS, *faults])]
    rows[9]["answer"] = "<script>alert(1)</script> \u202e " + rows[9]["answer"]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(folder / "data.jsonl", base=tiny_model, out=folder / "run", self_evolving=True, chunks=3, training=SMALL)
    return folder


def test_every_row_has_its_fate_and_its_reason(files):
    told = {name: [row.data for row in read_rows(files / "run" / f"{name}.jsonl")] for name in ("kept", "refused")}
    dropped = [row.data for row in read_rows(files / "run" / "dropped.jsonl")]
    assert len(told["kept"]) + len(dropped) + len(told["refused"]) == 28
    assert [row["reason"][:20] for row in told["refused"]] == [
        'column "answer" is e',
        "prompt and answer ha",
        "no known columns (fo",
    ]
    assert not any("--skip-bad-rows" in row["reason"] for row in told["refused"])  # there is no such option here
    assert any("same prompt and answer" in row["reason"] for row in dropped)
    assert all(row["kept_tokens"] == row["answer_tokens"] and row["mean_score"] is None for row in told["kept"][:8])
    table = load_from_disk(files / "run" / "cleaned")
    assert [sum(label != -100 for label in row["labels"]) for row in table] == [r["kept_tokens"] for r in told["kept"]]
    end = turn_end(AutoTokenizer.from_pretrained(files / "run" / "model"))[0]
    assert {row["labels"][-1] for row in table} == {end}
    scores = [row.data for row in read_rows(files / "run" / "scores.parquet")]
    assert sum(sum(row["kept"]) for row in scores) == sum(row["kept_tokens"] for row in told["kept"])
    assert scores[0]["scores"] == [None] * len(scores[0]["token_ids"])  # it made the reference: missing, not 0


def test_a_run_folder_verifies_and_its_page_shows_text_as_text(files, amends):
    code, said, _ = amends("verify", files / "run")
    assert code == 0 and said.count("holds") == 3, said  # manifest, base, model
    page = (files / "run" / "report.html").read_text()
    assert "&lt;script&gt;" in page.replace('</span><span class="kept">', "").replace(
        '</span><span class="dropped">', ""
    )
    assert (
        "<script" not in page
        and "\u202e" not in page
        and "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")
    )


def test_files_with_the_same_ids_are_one_pool_and_a_file_given_twice_counts_once(tiny_model, tmp_path):
    parts = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    for part, rows in zip(parts, (ROWS[:4], ROWS[4:8]), strict=True):
        part.write_text("".join(json.dumps({"id": i} | row) + "\n" for i, row in enumerate(rows)))
    pool = read_token_pool([*parts, parts[0]], AutoTokenizer.from_pretrained(tiny_model), 512)
    assert [pair.answer for pair in pool.pairs] == [row["answer"] for row in ROWS[:8]]
    assert {number: verdict.fate for number, verdict in pool.left_out.items()} == dict.fromkeys(range(8, 12), "dropped")


def test_a_stopped_run_goes_on_where_it_was_and_ends_the_same(files, tiny_model, tmp_path, monkeypatch):
    made, real = [], finetune

    def failing(loaded, *args, label, **kwargs):
        made.append(label)
        if made == ["making the reference", "part 1"]:
            raise KeyboardInterrupt
        return real(loaded, *args, label=label, **kwargs)

    monkeypatch.setattr(stages, "finetune", failing)
    again = {"base": tiny_model, "out": tmp_path / "run", "self_evolving": True, "chunks": 3, "training": SMALL}
    with pytest.raises(KeyboardInterrupt):
        run(files / "data.jsonl", **again)
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="stages of another request"):
        run(files / "data.jsonl", **(again | {"keep": 0.5}))
    run(files / "data.jsonl", **again)
    assert made[2:] == ["part 1", "part 2"]
    assert not (tmp_path / "run.stages").exists()
    for file in ("scores.parquet", "summary.json", "kept.jsonl", "model/adapter_model.safetensors"):
        assert (tmp_path / "run" / file).read_bytes() == (files / "run" / file).read_bytes(), file


def test_a_run_that_goes_on_takes_no_scores_of_another_reference(tiny_model, other_model, tmp_path, monkeypatch):
    reference = tmp_path / "reference"
    how = {"base": tiny_model, "reference": reference}

    def stop(*_):
        raise KeyboardInterrupt

    shutil.copytree(tiny_model, reference)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(token_cleaning, "write", stop)
        run(ROWS, out=tmp_path / "run", **how)
    shutil.rmtree(reference)
    shutil.copytree(other_model, reference)
    found, fresh = run(ROWS, out=tmp_path / "run", **how), run(ROWS, **how)
    np.testing.assert_array_equal(found.scored.scores, fresh.scored.scores)
    assert found.record["weights"] == fresh.record["weights"]


def test_the_command_says_that_there_is_nothing_to_train_on(files, tiny_model, other_model, tmp_path, amends):
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    common = ("curate", "token_cleaning", data, "--base", tiny_model, "--reference", other_model)
    code, _, err = amends(*common, "--level", "threshold", "--threshold", 1e6, "--out", tmp_path / "run")
    assert code == 0, err
    assert "there is nothing to train on" in err and "cleaned" not in err


def test_the_command_cleans_with_a_reference_that_was_taught_and_by_source(files, tiny_model, tmp_path, amends):
    words = ["curate", "token_cleaning", files / "data.jsonl", "--base", tiny_model, "--reference", files / "run/model"]
    words += ["--source-column", "source", "--keep", 0.5, "--no-keep-ends"]
    code, _, err = amends(*words, "--out", tmp_path / "run")
    assert code == 0, err
    told = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [entry["name"] for entry in told["sources"]] == ["s0", "s1"]
    assert [entry["kept"] for entry in told["sources"]] == [int(0.5 * entry["tokens"]) for entry in told["sources"]]
    scored = [row.data for row in read_rows(tmp_path / "run" / "scores.parquet")]
    assert told["tokens"] == sum(len(row["scores"]) for row in scored)
    assert told["kept"] == sum(sum(row["kept"]) for row in scored) == sum(e["kept"] for e in told["sources"])
    assert amends("verify", tmp_path / "run")[0] == 0


def test_a_warm_up_is_the_first_part_of_a_self_evolving_run(tiny_model):
    warm = run(ROWS, base=tiny_model, warmup_rows=8, training=SMALL)
    evolving = run(ROWS, base=tiny_model, self_evolving=True, chunks=3, training=SMALL)
    part = slice(0, warm.scored.offsets[16])
    np.testing.assert_allclose(warm.scored.scores[part], evolving.scored.scores[part], atol=1e-5)
    after = slice(part.stop, None)
    moved = np.abs(warm.scored.scores[after] - evolving.scored.scores[after])
    assert moved.max() > 1e-3  # there the reference has gone on learning


def test_a_reference_that_is_the_base_is_noticed(tiny_model):
    found = run(ROWS, base=tiny_model, reference=tiny_model)
    assert found.record["warnings"][0].startswith("All scores are the same")


def surer(model, folder, times):
    """The same model with logits that many times as large."""
    loaded = load(model)
    with torch.no_grad():
        loaded.model.get_output_embeddings().weight.mul_(times)
    folder.mkdir()
    save_model(loaded.model, loaded.tokenizer, folder, None)
    return folder


def test_a_reference_that_is_only_less_sure_is_warned_of_and_one_that_learned_is_not(tiny_model, tmp_path):
    base = surer(tiny_model, tmp_path / "base", 40)
    found = run(ROWS, base=base, reference=surer(tiny_model, tmp_path / "flat", 20), keep_ends=False)
    told = found.summary["least_likely"]
    assert told["tokens"] == found.summary["tokens"] // 4
    assert told["mean_score"] > 1 and told["mean_rise"] > 0.6 * told["mean_score"]
    assert any("rises by" in warning for warning in found.record["warnings"])
    how = Training(lora_rank=4, learning_rate=0.05, epochs=3, batch_size=4, accumulation=1)
    learned = run(ROWS, base=base, warmup_rows=12, training=how, keep_ends=False)
    assert learned.summary["least_likely"]["mean_score"] > 1
    assert not any("rises by" in warning for warning in learned.record["warnings"])


def test_the_rise_of_the_vocabulary_is_that_of_plain_transformers(tiny_model):
    rows = encode_rows(AutoTokenizer.from_pretrained(tiny_model), pairs_of(), 512)
    found = token_numbers(load(tiny_model).model, rows, 0)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    ids = torch.tensor([rows[0].prompt + rows[0].answers[0]])
    with torch.no_grad():
        logp = model(ids).logits[0, len(rows[0].prompt) - 1 : -1].log_softmax(-1)
    np.testing.assert_allclose(found[: len(logp), 1], logp.mean(-1), atol=1e-4)
    np.testing.assert_array_equal(found[:, 0], log_probabilities(load(tiny_model).model, rows, 0))


def test_a_threshold_that_nothing_passes_drops_every_row_and_says_so(tiny_model, other_model, tmp_path):
    found = run(ROWS, base=tiny_model, reference=other_model, out=tmp_path / "run", level="threshold", threshold=1e6)
    assert found.outcome.counts() == {"rows": 24, "kept": 0, "dropped": 24, "refused": 0}
    assert "No token is kept." in found.record["warnings"]
    assert not (tmp_path / "run" / "cleaned").exists() and (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({}, "a reference is needed"),
        ({"warmup_rows": 3, "self_evolving": True}, "a reference is needed"),
        ({"warmup_rows": 24}, "--warmup-rows 24"),
        ({"self_evolving": True, "chunks": 25}, "--chunks 25"),
        ({"self_evolving": True, "chunks": 1}, "--chunks 1"),
        ({"warmup_rows": 3, "source_column": "source"}, '"source" .--source-column. is missing'),
        ({"warmup_rows": 3, "data": [{"text": "A long text."}]}, "plain text has no prompt"),
        ({"warmup_rows": 3, "data": [{"question": "a", "answer": "b", "kept_tokens": 1}]}, '"kept_tokens" is there'),
        ({"warmup_rows": 3, "max_length": 5}, "no row can be scored"),
        ({"warmup_rows": 3, "chunks": 4}, "--chunks 4: goes with --self-evolving"),
        (
            {"reference": "any"},
            "--accumulation 2, --batch-size 2, --learning-rate 0.01, --lora-rank 4: how a reference",
        ),
    ],
)
def test_what_cannot_be_done_is_said_before_the_long_part(tiny_model, monkeypatch, change, named):
    monkeypatch.setattr(stages, "token_numbers", None)
    with pytest.raises(InputError, match=named):
        run(**({"data": ROWS, "base": tiny_model, "training": SMALL} | change))


@pytest.mark.parametrize(("way", "value"), [("line", "64"), ("line", "8"), ("recipe", "64")])
def test_an_option_of_a_training_that_there_is_not_is_refused_though_it_be_the_default(tmp_path, capsys, way, value):
    from amends.cli import main

    (tmp_path / "data.jsonl").write_text('{"question": "a", "answer": "b"}\n', encoding="utf-8")
    (tmp_path / "how.yaml").write_text(f"lora_rank: {value}\n", encoding="utf-8")
    more = ["--lora-rank", value] if way == "line" else ["--config", str(tmp_path / "how.yaml")]
    common = ["curate", "token_cleaning", str(tmp_path / "data.jsonl"), "--out", str(tmp_path / "run"), "--base", "x"]
    for reference, named in (["--reference", "y"], True), ([], False):
        with pytest.raises(SystemExit) as ended:
            main([*common, *reference, *more])
        assert ended.value.code == 2
        assert (f"--lora-rank {value}: how a reference is made here" in capsys.readouterr().err) == named


def test_a_model_whose_numbers_are_none_is_refused(tiny_model, other_model):
    broken = load(other_model)
    with torch.no_grad():
        broken.model.get_input_embeddings().weight.fill_(torch.nan)
    found = score(load(tiny_model), Loaded(*broken), pairs_of())
    with pytest.raises(InputError, match="is not a number"):
        token_mask(found.scores, found.offsets)
