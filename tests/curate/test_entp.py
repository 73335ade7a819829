"""Purge and mix: every row is accounted for, calls add up, and planted facts come through where they must."""

import json

import numpy as np
import pytest

from amends.curate import entp
from amends.curate._entp.drafts import Draft, Mixing
from amends.curate._entp.fusion import Writer, fuse
from amends.curate._entp.purge import Sample, purge
from amends.curate._entp.rules import RULES, Checker, Instructions
from amends.io.errors import InputError
from amends.io.run import read_jsonl, read_run
from amends.io.tables import rows_of
from amends.lm.chat import Counts

from .writers import Broken, Saying, Template, chat, entp_run, facts, num_facts, planted, rated_right, topics_of, word


@pytest.fixture(scope="module")
def pool():
    return planted(60, np.random.default_rng(0))


@pytest.fixture(scope="module")
def mixed(pool):
    return entp_run(pool)


# Planted truth


def test_pairs_are_of_one_topic_and_random_ones_are_not(pool, mixed):
    same = [len(set(topics_of(row))) == 1 for row in mixed.pairs]
    assert len(same) >= 30 and np.mean(same) >= 0.95
    at_random = entp_run(pool, control="random").pairs
    assert len(at_random) == len(same)
    assert np.mean([len(set(topics_of(row))) == 1 for row in at_random]) <= 0.1


def test_fused_rows_hold_all_six_facts_and_rewritten_ones_at_most_three(pool, mixed):
    whole = [num_facts(topics_of(row)[0], row["output"]) == 6 for row in mixed.fused]
    assert len(whole) >= 30 and np.mean(whole) >= 0.9
    alone = entp_run(pool, control="one2one").fused
    assert len(alone) >= 30
    assert max(num_facts(topics_of(row)[0], row["output"]) for row in alone) <= 3


def test_fused_rows_say_more_facts_a_word_than_their_sources_together(pool, mixed):
    before = {row["id"]: row["output"] for row in pool}
    ratios = []
    for row in mixed.fused:
        topic, sources = topics_of(row)[0], " ".join(before[source] for source in row["source_ids"])
        dense = num_facts(topic, row["output"]) / len(row["output"].split())
        ratios.append(dense / (num_facts(topic, sources) / len(sources.split())))
    assert np.mean(ratios) >= 1.5


def test_checks_bring_back_facts_that_the_model_forgot(pool):
    class Forgetful(Template):
        """Leaves the last fact out, unless it is told what is missing."""

        def write(self, task, material):
            text = super().write(task, material)
            forgets = task == "response" and "problems" not in material
            return text[: text[:-1].rindex(".") + 1] if forgets else text

    checked, unchecked = (entp_run(pool, Forgetful(), control=control).fused for control in (None, "unchecked"))
    assert len(checked) == len(unchecked) >= 30
    assert {num_facts(topics_of(row)[0], row["output"]) for row in checked} == {6}
    assert {num_facts(topics_of(row)[0], row["output"]) for row in unchecked} == {5}


def test_curated_scores_put_fewer_good_rows_among_the_low_ones_than_raw_scores():
    from amends.curate import ScoreCurator

    rng = np.random.default_rng(0)
    num, topics = 1200, 12
    cluster = np.arange(num) % topics
    true = np.where(np.arange(topics) % 2, 1, 4)[cluster]
    points = rng.normal(size=(topics, 16))[cluster] + 0.2 * rng.normal(size=(num, 16))
    raw = np.where(rng.random(num) < 0.25, rng.choice([1, 4], num), true)
    curated = ScoreCurator(rounds=10, draws=11, bootstrap=2).fit(points, raw).curated_
    lost = {}
    for name, scores in (("raw", raw), ("curated", curated)):
        rows = rows_of(
            {"question": f"q {i}", "answer": f"an answer {i}", "s": s} for i, s in enumerate(scores.tolist())
        )
        low = purge(rows, entp.Purging(raw="s")).low
        lost[name] = sum(true[sample.row] == 4 for sample in low)
    assert lost["raw"] > 50
    assert lost["curated"] < lost["raw"] / 3


# Every row, every source, every call


def test_what_ds2_writes_is_a_pool(tmp_path):
    from amends.curate import ds2

    rng = np.random.default_rng(0)
    topic = np.arange(320) % 8
    points = rng.normal(size=(8, 16))[topic] + 0.2 * rng.normal(size=(320, 16))
    score = np.where(rng.random(320) < 0.15, rng.choice([1, 4], 320), np.where(topic % 2, 1, 4))
    rows = [
        {
            "question": f"Ask {i}?",
            "answer": f"It is {word(i)}.",
            "score": int(score[i]),
            "embedding": points[i].tolist(),
        }
        for i in range(320)
    ]
    found = ds2.run(rows, rating="score", embedding="embedding", out=tmp_path / "ds2", rounds=5, draws=5)
    curated = [row["curated"] for row in found.outcome.of("kept")]
    assert len(curated) > 300 and curated != [row["score"] for row in found.outcome.of("kept")]
    mixed = entp_run(tmp_path / "ds2" / "kept.jsonl", grouping=entp.Grouping(most_pairs=2))
    assert mixed.outcome.counts()["kept"] == sum(score >= 3 for score in curated)
    assert {"earlier_where", "earlier_reason"} <= set(mixed.outcome.of("kept")[0])


def test_every_row_is_kept_dropped_or_refused_and_says_why(pool, mixed):
    counts = mixed.outcome.counts()
    assert counts["rows"] == len(pool) == counts["kept"] + counts["dropped"] + counts["refused"]
    assert counts["kept"] == sum(row["curated"] >= 3 for row in pool) and counts["refused"] == 0
    assert all(row["reason"] for row in mixed.outcome.of("dropped"))
    children = {row["fused_into"] for row in mixed.outcome.of("dropped")} - {None}
    assert children == {row["id"] for row in mixed.fused}


def test_every_source_is_in_at_most_one_pair(mixed):
    sources = [source for row in mixed.pairs for source in row["source_ids"]]
    assert len(sources) == len(set(sources))


@pytest.mark.parametrize(("model", "rounds"), [(Template(), 3), (Broken(1), 3), (Broken(2, ("response",)), 3)])
def test_calls_are_1_and_1_and_n_q_and_1_and_n_a(tmp_path, model, rounds):
    rows = rated_right(10)
    for attempt in range(2):  # the second time from the cache
        mixed = entp_run(rows, model, rounds=rounds, cache=tmp_path / "answers.sqlite")
        for row in mixed.pairs:
            n_q, n_a = row["rounds"]
            assert row["conversations"] == {"domain": 1, "instruction": 1 + n_q, "response": 1 + n_a}
        conversations = sum(mixed.summary["fusion"]["conversations"].values())
        counts = Counts(**mixed.record["calls"])
        assert counts.asked == counts.calls + counts.cached == conversations
        assert (counts.calls == 0) == bool(attempt)


def test_a_model_that_never_keeps_the_rules_is_stopped_after_the_last_round():
    model = Broken(99)
    mixed = entp_run(rated_right(8), model, rounds=2)
    assert {row["status"] for row in mixed.pairs} == {"rejected"} and not mixed.fused
    assert {row["conversations"]["instruction"] for row in mixed.pairs} == {3}
    assert {row["reason"] for row in mixed.pairs} == {"instruction: refusal, missing"}
    assert all(len(row["history"]["instruction"]) == 3 for row in mixed.pairs)


def test_a_model_that_keeps_all_rules_is_asked_once():
    mixed = entp_run(rated_right(8), Template())
    assert mixed.fused and {tuple(row["rounds"]) for row in mixed.fused} == {(0, 0)}


def test_a_repair_is_asked_for_with_the_template_of_the_first_rule_broken():
    model = Broken(1)
    entp_run(rated_right(3), model)
    told = [material for task, material in model.asked if "problems" in material]
    assert told and all(list(material["problems"])[:2] == ["refusal", "missing"] for material in told)
    assert sum(RULES["refusal"].repair in prompt for prompt in model.prompts) == len(told)
    assert not any(RULES["missing"].repair in prompt for prompt in model.prompts)
    assert all(material["last"].startswith("I'm sorry") for material in told)


def test_without_checks_whatever_can_be_read_is_taken(pool):
    mixed = entp_run(pool, Broken(99), control="unchecked")
    assert mixed.summary["fusion"]["accept_rate"] == 1.0
    assert mixed.summary["fusion"]["rule_failures"]["response"]["last"]["refusal"] == len(mixed.pairs)
    assert {tuple(row["rounds"]) for row in mixed.pairs} == {(0, 0)}


@pytest.mark.parametrize(
    "text", ["no JSON here", '{"instruction": 3}', '{"text": "x"}', '{"instruction": "\\ud800 a b c"}']
)
def test_what_is_not_the_object_asked_for_is_repaired_and_then_rejected(text):
    mixed = entp_run(rated_right(3), Saying(text), rounds=2)
    assert {row["reason"] for row in mixed.pairs} == {"instruction: format"}
    assert {row["conversations"]["instruction"] for row in mixed.pairs} == {3}


def test_a_domain_that_cannot_be_read_is_asked_for_once_more_and_then_rejected():
    class Mute(Template):
        def say(self, task, material):
            return "hm" if task == "domain" else super().say(task, material)

    mixed = entp_run(rated_right(3), Mute())
    assert {json.dumps(row["conversations"]) for row in mixed.pairs} == {'{"domain": 2}'}
    assert mixed.summary["fusion"]["rejected_for"] == {"domain: cannot be read": len(mixed.pairs)}
    assert all(row["status"] == "rejected" and row["reason"].startswith("domain: ") for row in mixed.pairs)


# The same again


def test_the_same_seed_and_cache_write_the_same_bytes(tmp_path, pool):
    for name in ("one", "two"):
        entp_run(pool[:60], Broken(1), cache=tmp_path / "answers.sqlite", out=tmp_path / name)
    for file in ("fused.jsonl", "pairs.jsonl", "kept.jsonl", "dropped.jsonl"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    one, two = (read_run(tmp_path / name) for name in ("one", "two"))
    assert one["found"] == two["found"] and two["calls"]["calls"] == 0 < one["calls"]["calls"]
    entp_run(pool[:60], Broken(1), control="random", out=tmp_path / "random")
    assert (tmp_path / "random" / "pairs.jsonl").read_bytes() != (tmp_path / "one" / "pairs.jsonl").read_bytes()


def test_a_budget_stops_the_run_and_the_next_one_goes_on(tmp_path):
    rows, cache = rated_right(6), tmp_path / "answers.sqlite"
    whole = entp_run(rows)
    with pytest.raises(InputError, match="most_calls=7"):
        entp.run(rows, chat(Template(), cache, 7), embedding="embedding", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    found = entp.run(rows, chat(Template(), cache), embedding="embedding")
    assert found.pairs == whole.pairs and found.record["calls"]["cached"] == 7


def test_a_dry_run_asks_nothing_and_its_bounds_hold(tmp_path, pool):
    told = entp.run(pool, embedding="embedding", dry_run=True, out=tmp_path / "run").record["estimate"]
    assert not (tmp_path / "run").exists()
    for model in (Template(), Broken(1), Broken(99)):
        mixed = entp_run(pool, model)
        asked = mixed.record["calls"]["asked"]
        assert asked <= told["most_conversations"]
        assert mixed.record["calls"]["tokens"] <= told["most_tokens"]
    assert told["conversations_if_all_pass_at_once"] == 3 * len(mixed.pairs)
    with pytest.raises(InputError, match="--llm"):
        entp.run(pool, embedding="embedding")


def test_what_a_model_or_a_row_says_is_no_markup_in_the_report(tmp_path):
    rows = [row | {"output": f"<b>{row['output']}</b>"} for row in rated_right(3)]
    entp_run(rows, Saying('{"instruction": "<script>alert(1)</script> say it"}'), out=tmp_path / "run", rounds=0)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "alert(1)" in page and "<script" not in page and "<b>" not in page


def test_the_folder_can_be_read_and_trained_on(tmp_path, pool):
    mixed = entp_run(pool, out=tmp_path / "run")
    fused = read_jsonl(tmp_path / "run" / "fused.jsonl")
    assert fused == mixed.fused and {"instruction", "output", "source_ids", "licences", "generator"} <= set(fused[0])
    assert "Purge and mix" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    again = [{**row, "curated": 1} for row in read_jsonl(tmp_path / "run" / "kept.jsonl")]
    for row in again:
        row.pop("cluster"), row.pop("fused_into")
    assert "earlier_where" in entp_run(again, grouping=entp.Grouping(theta=-1.0)).outcome.of("dropped")[0]


# Licences, compatibility, benchmarks


def test_a_child_has_both_licences_and_those_that_do_not_mix_are_not_fused(pool):
    rows = [row | {"licence": ("CC BY-NC 4.0", "CC BY-SA 3.0")[row["id"].endswith("-1")]} for row in pool]
    free = entp_run(rows, purging=entp.Purging(licence_column="licence"))
    assert ["CC BY-NC 4.0", "CC BY-SA 3.0"] in [sorted(row["licences"]) for row in free.fused]
    assert any("licences" in warning for warning in free.record["warnings"])
    purging = entp.Purging(licence_column="licence", never_mix=("cc by-nc 4.0|CC BY-SA 3.0",))
    model = Template()
    found = entp_run(rows, model, purging=purging)
    assert found.fused and all(len(row["licences"]) == 1 for row in found.fused)
    sources = [source for row in found.pairs for source in row["source_ids"]]
    assert len(sources) == len(set(sources))
    halves = [{s["response"] for s in material["samples"]} for _, material in model.asked]
    licence = {row["output"]: row["licence"] for row in rows}
    assert all(len({licence[text] for text in half}) == 1 for half in halves)  # not even asked about


def test_a_low_row_without_a_licence_is_refused():
    rows = rated_right(4)
    rows = [row | {"licence": None if row["id"] == "0-0" else "MIT"} for row in rows]
    (refused,) = entp_run(rows, purging=entp.Purging(licence_column="licence")).outcome.of("refused")
    assert refused["id"] == "0-0" and refused["reason"] == 'no licence in "licence"'


@pytest.mark.parametrize("pair", ["MIT", "MIT|", "A|B|C"])
def test_licences_that_are_no_pair_are_refused(pair, pool):
    with pytest.raises(InputError, match="--never-mix"):
        entp_run(pool, purging=entp.Purging(never_mix=(pair,)))


def test_incompatible_samples_are_paired_again_once():
    class Picky(Template):
        """Takes no two samples of one topic together."""

        def domain(self, material):
            kinds = {sample["instruction"].rstrip("?.").split()[-1] for sample in material["samples"]}
            return super().domain(material) | {"compatible": len(kinds) > 1, "reason": "they contradict each other"}

    rows = rated_right(8)
    mixed = entp_run(rows, Picky())
    sources = [source for row in mixed.pairs for source in row["source_ids"]]
    assert len(sources) == len(set(sources)) == 16
    assert all(row["conversations"]["domain"] == 2 for row in mixed.pairs if row["status"] != "incompatible")
    assert mixed.fused and all(len(set(topics_of(row))) == 2 for row in mixed.fused)
    never = entp_run(rows, Picky(), control="random")
    assert {row["conversations"]["domain"] for row in never.pairs} == {1}


def test_what_shares_a_run_of_words_with_a_benchmark_is_dropped_before_and_rejected_after(tmp_path):
    rows = rated_right(6)
    benchmark = tmp_path / "bench.jsonl"
    benchmark.write_text(json.dumps({"question": facts(2)[1], "level": 3}) + "\n", encoding="utf-8")
    mixed = entp_run(rows, benchmark=benchmark)
    dropped = {row["id"]: row["reason"] for row in mixed.outcome.of("dropped")}
    assert "shares a run of words with the benchmark" in dropped["2-0"] and "bench.jsonl:1" in dropped["2-0"]
    assert all("benchmark" not in reason for name, reason in dropped.items() if name != "2-0")

    class Copying(Template):
        def write(self, task, material):
            return super().write(task, material) + (f" {facts(2)[1]}" if task == "response" else "")

    for control in (None, "unchecked"):
        caught = entp_run(rows, Copying(), benchmark=benchmark, control=control)
        assert {row["reason"] for row in caught.pairs} == {"response: contaminated"}
        assert {row["rounds"][1] for row in caught.pairs} == {0}  # it is not told to hide it


def test_the_best_candidate_is_kept_not_the_last():
    class Worse(Template):
        """Forgets a number the first time, and everything later."""

        def write(self, task, material):
            text = super().write(task, material)
            return text if task == "instruction" else "Nothing." if "last" in material else text.replace("1000", "")

    mixed = entp_run(rated_right(3), Worse())
    (row,) = [row for row in mixed.pairs if 0 in topics_of(row)]
    assert row["reason"] == "response: missing" and num_facts(0, row["output"]) == 5
    assert [len(loss) for loss in row["history"]["response"]] == [1, *[len(row["history"]["response"][1])] * 3]


def test_a_conversation_that_gets_no_answer_is_rejected_and_not_asked_again():
    class TooLong(Template):
        def answers(self, conversations, seeds, **how):
            for i, answer in super().answers(conversations, seeds, **how):
                is_part = '{"instruction": TEXT}' in conversations[i][-1]["content"]
                yield i, answer._replace(text=None, reason="longer than the model holds") if is_part else answer

    samples = [Sample(i, str(i), f"data[{i}]", f"Ask {i} this.", f"Say {i} that.", None) for i in range(2)]
    draft = Draft(tuple(samples), {"instruction": [], "response": []})
    writer = Writer(chat(TooLong()), Mixing())
    fuse([draft], writer, Checker(Instructions(["Ask 0 this.", "Ask 1 this."])), lambda d: {0, 1})
    assert draft.status == "rejected" and draft.reason == "instruction: no_answer"
    assert draft.asked == {"domain": 1, "instruction": 1} and writer.counts.failed == 1


def test_the_command_runs_on_a_file(tmp_path, pool, monkeypatch):
    from amends.cli import main

    source = tmp_path / "pool.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in pool), encoding="utf-8")
    monkeypatch.setattr(entp, "open_chat", lambda name, **how: chat(Template(), how["cache"], how["most_calls"]))
    common = ["curate", "entp", str(source), "--out", str(tmp_path / "run"), "--embedding", "embedding"]
    for more, makes_folder in (["--dry-run"], False), (["--llm", "any"], True):
        with pytest.raises(SystemExit) as ended:
            main([*common, *more])
        assert ended.value.code == 0 and (tmp_path / "run").is_dir() == makes_folder
    assert read_run(tmp_path / "run")["found"]["fusion"]["accepted"] == len(
        read_jsonl(tmp_path / "run" / "fused.jsonl")
    )
    assert (tmp_path / "run.answers.sqlite").is_file()
