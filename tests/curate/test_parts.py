"""ENTP and ADC's cleaning in parts: four parts give the bytes of one."""

import json

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from amends.curate import adc_clean, entp
from amends.curate._adc.copies import AT_ONCE, close_pairs
from amends.curate._adc.samples import read_samples
from amends.curate._adc.sources import best_of, likest
from amends.curate._entp.benchmarks import read_benchmark
from amends.curate._entp.purge import Purging, purge, purge_in_parts
from amends.curate._entp.representatives import Grouping, group
from amends.curate._entp.rules import Instructions
from amends.curate._entp.terms import frequencies, vectorizer_of
from amends.curate._labels.doubts import mixed_subclasses
from amends.curate._labels.off_topic import off_topic
from amends.curate._pools.scale import Here, nearest_in_parts, parts_of, shares_of
from amends.curate.adc_clean import How
from amends.io.errors import InputError
from amends.io.tables import rows_of
from amends.maths.neighbors import nearest, unit

from .test_adc_clean import pool as collected
from .writers import Broken, Template, entp_run, facts, planted, unit_rows


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Tiles of which there are several in a test."""
    for module in ("scale", "lists"):
        monkeypatch.setattr(f"amends.curate._pools.{module}.TILE", 40)
    monkeypatch.setattr("amends.curate._entp.representatives.TILE", 2000)


class Counting(Here):
    """Workers that note how many parts each step was done in."""

    def __init__(self, num_parts):
        super().__init__(num_parts)
        self.parts = {}

    def each(self, step, *by_part, shared=()):
        self.parts[step.__name__] = max(len(by_part[0]), self.parts.get(step.__name__, 0))
        return super().each(step, *by_part, shared=shared)


def told(mixed):
    outcome = mixed.outcome
    return json.dumps(
        [mixed.pairs, mixed.fused, mixed.summary, outcome.verdicts, {k: list(v) for k, v in outcome.added.items()}]
    )


# ENTP


@pytest.fixture(scope="module")
def pool():
    """Planted topics; some rows lack what they need, or are there before, in this part or an earlier one."""
    rows = planted(60, np.random.default_rng(0))
    rows[50] = rows[50] | {"instruction": rows[3]["instruction"], "output": rows[3]["output"], "curated": 1}
    rows[90]["id"], rows[91]["curated"], rows[92]["output"] = rows[5]["id"], None, "short"
    rows[93]["embedding"], rows[93]["curated"] = None, 1
    return rows


@pytest.mark.parametrize(
    ("how", "grouping"),
    [
        ({}, {}),
        ({"control": "random"}, {}),
        ({"control": "evolve"}, {}),
        ({}, {"pairing": "nearest", "per_cluster": 3}),
    ],
)
def test_what_is_fused_in_parts_is_what_is_fused_at_once(pool, how, grouping):
    workers = Counting(4)
    grouping = Grouping(**grouping)
    whole, parts = (entp_run(pool, grouping=grouping, workers=w, **how) for w in (Here(1), workers))
    assert told(parts) == told(whole)
    assert len(whole.fused) > 10 or how
    assert {"_seen", "_keys", "_purged", "searched", "_silhouettes", "_representatives"} <= workers.parts.keys()
    assert {"_counted", "_picked", "_said", "_table"} <= workers.parts.keys()
    assert all(num > 1 for name, num in workers.parts.items() if name != "_name"), workers.parts


def test_repairs_and_new_partners_are_those_of_one_part(pool):
    class Picky(Broken):
        """Refuses at first, and takes no two samples of one topic together."""

        def domain(self, material):
            kinds = {sample["instruction"].rstrip("?.").split()[-1] for sample in material["samples"]}
            return super().domain(material) | {"compatible": len(kinds) > 1, "reason": "they contradict each other"}

    whole, parts = (entp_run(pool, Picky(1), rounds=2, workers=Here(num)) for num in (1, 4))
    assert told(parts) == told(whole)
    assert whole.record["calls"] == parts.record["calls"]
    assert any(row["conversations"]["domain"] == 2 for row in whole.pairs)
    assert {tuple(row["rounds"]) for row in whole.fused} == {(1, 1)}


def test_rows_that_are_there_before_are_found_across_parts(pool):
    rows = rows_of(pool)
    whole = purge(rows, Purging())
    parts = purge_in_parts(Here(3), [rows[:40], rows[40:40], rows[40:]], [0, 40, 40], Purging())
    assert [verdict for part in parts for verdict in part.verdicts] == whole.verdicts
    assert [sample for part in parts for sample in part.usable] == whole.usable
    assert [sample for part in parts for sample in part.low] == whole.low
    assert whole.verdicts[50].reason == "unusable: same prompt and answer as data[3]"
    sample_of = {sample.row: sample for sample in whole.usable}  # two rows have one id: each is known by its place
    assert pool[90]["id"] == pool[5]["id"] and [sample_of[i].id for i in (5, 90)] == ["data[5]", "data[90]"]
    alone = purge_in_parts(Here(), [rows[40:]], [40], Purging())[0]  # control: the part alone knows of neither
    assert alone.verdicts[10].reason == "low score 1"
    assert next(sample.id for sample in alone.usable if sample.row == 90) == pool[5]["id"]


def test_a_row_without_an_id_is_no_copy_of_one_whose_id_is_a_number():
    rows = rows_of([{"question": f"Ask {i}?", "answer": f"Say {i} now.", "curated": 1} for i in range(3)])
    rows[2].data["id"] = "0"
    assert [verdict.reason for verdict in purge(rows, Purging()).verdicts] == ["low score 1"] * 3


def test_options_that_do_not_go_together_are_no_fault_of_a_row():
    rows = rows_of([{"q": "Ask?", "a": "Say it now.", "curated": 1}])
    with pytest.raises(InputError, match="go together"):
        purge(rows, Purging(question_column="q"))


def test_neighbours_of_parts_are_those_of_scikit_learn():
    from sklearn.neighbors import NearestNeighbors

    points = unit_rows(333, 12, 0)
    found = [nearest_in_parts(Here(num), points, 333, 7) for num in (1, 4)]
    peer = NearestNeighbors(n_neighbors=8, metric="cosine", algorithm="brute").fit(points)
    distance, index = (of[:, 1:] for of in peer.kneighbors(points))
    for of in found:
        np.testing.assert_array_equal(of.index_Qk, index)
        assert 1 - of.similarity_Qk == pytest.approx(distance, abs=1e-6)
    np.testing.assert_array_equal(found[0].similarity_Qk, found[1].similarity_Qk)


def test_groups_of_parts_are_those_of_one():
    points = unit_rows(500, 8, 0)
    for how in (Grouping(), Grouping(pairing="nearest"), Grouping(theta=0.6, per_cluster=4, mmr=0.5)):
        whole, parts = (group(points, how, np.random.default_rng(0), workers=Here(num)) for num in (1, 4))
        assert parts.pairs == whole.pairs and parts.representatives == whole.representatives
        assert parts.silhouettes == whole.silhouettes and parts.theta == whole.theta
        np.testing.assert_array_equal(parts.clusters.label_N, whole.clusters.label_N)


def test_word_weights_of_counts_that_were_added_are_those_that_scikit_learn_learns_of_all():
    texts = [f"{' '.join(facts(i))} Pigs can fly, and so on." for i in range(9)] + ["", "1 2"]
    for how in ({}, {"token_pattern": r"(?u)\w+"}, {"stop_words": "english", "sublinear_tf": True}):
        made = vectorizer_of(frequencies(texts[:4], how) + frequencies(texts[4:], how), how)
        peer = TfidfVectorizer(**how).fit(texts)
        assert made.get_feature_names_out().tolist() == peer.get_feature_names_out().tolist()
        assert (made.transform(texts) != peer.transform(texts)).nnz == 0
    assert vectorizer_of(frequencies(["", "..."], {}), {}) is None


def test_the_instruction_that_is_repeated_is_the_first_of_all_parts():
    texts = ["Name a bird.", "Name a fish.", "Name one fish of the sea.", "Name a fish."]
    asked, own = ["name a FISH", "Name a bird!", "Something else now", "Name a fish"], [{1}, {0}, set(), {1, 3}]
    whole = Instructions(texts).twins(asked, own)
    assert whole == ["Name a fish.", None, None, "name a FISH"]
    for parts in ([texts[:2], texts[2:]], [texts[:1], [], texts[1:3], texts[3:]]):
        assert Instructions(parts, Here(len(parts))).twins(asked, own) == whole
        assert Instructions(parts, Here(len(parts))).twins(asked, own, rows=1)[:3] == whole[:3]


def test_a_benchmark_is_found_by_what_it_says_and_not_by_a_hash_that_hangs_on_the_process(tmp_path):
    import pickle
    import subprocess
    import sys

    (tmp_path / "b.jsonl").write_text(json.dumps({"q": " ".join(facts(1)[:2])}) + "\n", encoding="utf-8")
    (tmp_path / "found").write_bytes(pickle.dumps(read_benchmark(tmp_path / "b.jsonl")))
    code = (
        "import pickle, sys; from pathlib import Path\n"
        "print(pickle.loads(Path(sys.argv[1]).read_bytes()).place_of(sys.argv[2]))"
    )
    text = f"They say: {' '.join(facts(1)[:2])}"
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "found"), text],
            capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        )  # fmt: skip
        assert done.stdout.strip().endswith("b.jsonl:1")


@pytest.mark.parametrize(("num", "parts"), [(0, 0), (1, 1), (3, 3), (10, 4)])
def test_shares_are_runs_of_about_equal_size_and_together_all(num, parts):
    found = shares_of(list(range(num)), 4)
    assert len(found) == parts and [i for part in found for i in part] == list(range(num))
    assert not parts or max(map(len, found)) - min(map(len, found)) <= 1


# ADC


def messy():
    """Collected texts with exact and near copies, some across classes and parts, and rows that cannot be used."""
    rng, rows = np.random.default_rng(5), collected(num=300)
    chain = np.array(rows[0]["vector"])
    for i in range(30):
        chain = chain + 0.08 * rng.normal(size=16)
        rows.append(rows[0] | {"text": f"chain {i}", "vector": chain.tolist(), "rank": int(rng.integers(99))})
    rows += [rows[i] | {"rank": 999, "label": rows[i + i % 2]["label"]} for i in range(20)]
    rows += [{**rows[i], "text": f"odd {i}", "vector": rng.normal(size=16).tolist()} for i in range(6)]
    for i in range(0, 300, 2):
        rows[i] = rows[i] | {"subclass": "big"}
    rows[3]["label"], rows[5]["text"], rows[7]["vector"] = None, " ", [0.0] * 16
    return rows


def found_in(cleaned):
    added = {name: list(values) for name, values in cleaned.outcome.added.items()}
    rows = [row.data for row in cleaned.outcome.rows]
    queue, record = cleaned.queue, cleaned.record
    return json.dumps(
        [cleaned.outcome.verdicts, added, cleaned.mixed, cleaned.disputed, rows, queue, record["warnings"]]
    )


@pytest.mark.parametrize(
    "how", [{}, {"flagged": "relabel", "method": "simifeat-rank"}, {"method": "knn", "near": 0.99}]
)
def test_samples_cleaned_in_parts_are_those_cleaned_at_once(how, monkeypatch):
    monkeypatch.setattr("amends.curate._adc.copies.AT_ONCE", 30)
    workers, rows = Counting(4), messy()
    whole, parts = (
        adc_clean.run(rows, embedding="vector", how=How(**how), review=20, workers=w) for w in (Here(1), workers)
    )
    assert found_in(parts) == found_in(whole)
    reasons = " ".join(str(verdict.reason) for verdict in whole.outcome.verdicts)
    for words in ("the same as", "nearly the same", "found for", "label", "no embedding"):
        assert words in reasons
    assert {"_samples", "_close_pairs", "_distances", "_searched", "count_triples", "_mixed_in"} <= workers.parts.keys()
    assert all(num > 1 for num in workers.parts.values()), workers.parts


def test_texts_and_pictures_in_one_pool_are_refused_wherever_they_lie():
    rows = collected(num=100)
    rows[95] = {"path": "a.png", "label": "ant"}
    for num in (1, 4):
        with pytest.raises(InputError, match=r"data\[0\] is a text and data\[95\] a picture"):
            read_samples(rows, label="label", text="text", path="path", folder=None, most_pixels=9, workers=Here(num))


@pytest.mark.parametrize("num", [1, 2, AT_ONCE, AT_ONCE + 1, 3 * AT_ONCE - 7])
def test_close_pairs_are_all_pairs_with_such_a_cosine_in_any_number_of_parts(num):
    rng = np.random.default_rng(num)
    points = unit(rng.normal(size=(num, 6)))
    points[num // 2 :: 97] = points[:: max(1, 97)][: len(points[num // 2 :: 97])]  # equal ones, far apart
    cosine = points.astype(np.float64) @ points.astype(np.float64).T
    i, j = np.nonzero(np.triu(cosine >= 0.93, 1))
    found = [close_pairs(points, 0.93, Here(parts)) for parts in (1, 2, 4)]
    for pairs, values in found:
        np.testing.assert_array_equal(pairs, np.column_stack([i, j]))
        assert values == pytest.approx(cosine[i, j], abs=1e-6)
        np.testing.assert_array_equal(values, found[0][1])
    assert num < 3 or len(i)


def test_features_that_tell_nothing_apart_are_refused_in_any_number_of_parts():
    points = unit(np.ones((600, 3)) + 1e-4 * unit_rows(600, 3, 0))
    for num in (1, 4):
        with pytest.raises(InputError, match="do not tell samples apart"):
            close_pairs(points, 0.9, Here(num))


def test_distances_of_parts_are_means_to_the_nearest_and_limits_those_of_all():
    points, labels = unit_rows(200, 6, 0), np.arange(200) % 3
    whole, parts = (off_topic(points, labels, 3.0, Here(num)) for num in (1, 4))
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(one, other)
    assert whole.distance_N == pytest.approx(1 - nearest(points, 5).similarity_Qk.mean(axis=1), abs=1e-6)
    middle = np.median(whole.distance_N)
    limit = middle + 3 * 1.4826 * np.median(np.abs(whole.distance_N - middle))
    assert whole.limit_N.min() == pytest.approx(limit)


def test_subclasses_are_compared_class_by_class_in_any_number_of_parts():
    points = unit_rows(240, 5, 0)
    labels, subclasses = [f"class {i % 4}" for i in range(240)], [("a", "b", None)[i % 3] for i in range(240)]
    found = [mixed_subclasses(points, labels, subclasses, Here(num)) for num in (1, 3)]
    assert found[0] == found[1] and len(found[0]) == 4
    assert mixed_subclasses(points, labels, [None] * 240) == []


@pytest.mark.parametrize("limit", [1, 7, 90, 500])
def test_the_texts_most_like_a_query_are_those_of_all_in_any_number_of_parts(limit, monkeypatch):
    monkeypatch.setattr("amends.curate._adc.sources.TILE", 40)
    corpus, query = unit_rows(333, 6, 0), unit_rows(1, 6, 1)[0]
    corpus[200:220] = corpus[:20]  # equal ones, of which the first comes first
    found = [best_of([likest(part, corpus, query, limit) for part in parts_of(333, num)], limit) for num in (1, 2, 4)]
    assert found[0] == found[1] == found[2]
    assert [i for i, _ in found[0]] == np.argsort(-(corpus @ query).round(6), kind="stable")[:limit].tolist()


def test_a_model_that_counts_is_asked_as_often_in_parts(pool):
    one, four = Template(), Template()
    entp_run(pool, one, workers=Here(1))
    entp_run(pool, four, workers=Here(4))
    assert sorted(one.prompts) == sorted(four.prompts)


def test_what_the_workers_are_stands_in_no_record(pool):
    assert "workers" not in entp_run(pool, workers=Here(2)).record["config"]
    assert "workers" not in adc_clean.run(collected(), embedding="vector", workers=Here(2)).record["config"]
    assert entp.run(pool, embedding="embedding", dry_run=True, workers=Here(3)).record["estimate"]["pairs"] > 0
