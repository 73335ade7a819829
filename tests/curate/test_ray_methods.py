"""ENTP and ADC's cleaning on Ray: the rows, columns and reasons of one process, whatever the number of parts."""

import importlib.util
import sys

import numpy as np
import pyarrow as pa
import pytest

from amends.curate import adc_clean, adc_clean_on_ray, entp, entp_on_ray
from amends.curate.adc_clean import How
from amends.io.errors import InputError, NoResult

from . import writers
from .blocks import dataset_of, table_of
from .test_adc_clean import pool as collected
from .writers import Template, chat, entp_run, facts, planted

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray: amends[ray]"),
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]


@pytest.fixture(scope="module")
def pool():
    """Planted topics; some rows cannot be used, and some are there before, in another block."""
    rows = planted(40, np.random.default_rng(0))
    rows[60] |= {"instruction": rows[3]["instruction"], "output": rows[3]["output"], "curated": 1}
    rows[61]["curated"], rows[62]["output"], rows[63]["id"] = None, "short", rows[5]["id"]
    rows[64] |= {"embedding": None, "curated": 1}
    rows[65] |= {"embedding": [0.0] * 16, "curated": 0}
    return rows


def blocks(ray, rows, *cuts):
    return dataset_of(ray, pa.Table.from_pylist(rows), *cuts)


def opened():
    """Open the model that keeps what it is told to keep; in each task anew."""
    return chat(Template())


@pytest.fixture(scope="module")
def by_value(ray):
    """Workers do not find the modules of tests: what is theirs is sent whole."""
    for module in (writers, sys.modules[__name__]):
        ray.cloudpickle.register_pickle_by_value(module)


def without(dataset, *columns):
    return table_of(dataset).drop_columns(list(columns)).to_pylist()


@pytest.mark.parametrize("control", [None, "evolve"])
def test_what_is_fused_on_ray_is_what_is_fused_in_one_process(ray, by_value, pool, control):
    dataset, mixing = blocks(ray, pool, 7, 7, 62), entp.Mixing(control=control)
    one, two = (entp_on_ray(dataset, opened, embedding="embedding", mixing=mixing, num_parts=num) for num in (1, 2))
    here = entp_run(pool, mixing=mixing)
    rows = without(one.rows, "embedding")
    assert rows == without(two.rows, "embedding") and table_of(one.pairs).equals(table_of(two.pairs))
    assert [(row["fate"], row["reason"]) for row in rows] == here.outcome.verdicts
    assert [row["cluster"] for row in rows] == here.outcome.added["cluster"]
    assert [row["fused_into"] for row in rows] == here.outcome.added["fused_into"]
    assert [row["id"] for row in rows] == [row["id"] for row in pool]
    pairs = table_of(one.pairs).to_pylist()
    assert pairs == [{name: row[name] for name in pairs[0]} for row in here.pairs]
    assert one.summary == two.summary == {name: here.summary[name] for name in one.summary}
    reasons = [row["reason"] for row in rows]
    assert reasons[60] == "unusable: same prompt and answer as data[3]" and reasons[61] == 'no score in "curated"'
    assert reasons[64] == reasons[65] == "no embedding, or one without a direction"
    assert sum(row["status"] == "accepted" for row in pairs) > 10 or control


def test_a_benchmark_is_looked_for_by_workers_that_are_processes_of_their_own(ray, pool, tmp_path):
    there = next(row for row in pool if row["id"] == "2-0")
    fact = next(fact for fact in facts(2) if fact in there["output"])
    (tmp_path / "b.jsonl").write_text(f'{{"question": "{fact}"}}\n', encoding="utf-8")
    found = entp_on_ray(blocks(ray, pool, 30), embedding="embedding", benchmark=tmp_path / "b.jsonl", num_parts=2)
    told = [row["id"] for row in table_of(found.rows).to_pylist() if "benchmark" in str(row["reason"])]
    assert told == ["2-0"]
    assert {row["status"] for row in table_of(found.pairs).to_pylist()} == {"open"}  # there is no model


def test_a_grade_on_ray_is_that_of_one_process(ray, by_value, pool):
    class Judge(Template):
        def answers(self, conversations, seeds, max_new_tokens, temperature):
            from amends.lm.chat import Answer

            for i, conversation in enumerate(conversations):
                yield i, Answer(f'{{"grade": {1 + len(conversation[-1]["content"]) % 5}}}')

    how = {"embedding": "embedding", "mixing": entp.Mixing(least_grade=3)}
    found = entp_on_ray(blocks(ray, pool, 50), opened, judge=lambda: chat(Judge()), num_parts=2, **how)
    here = entp.run(pool, chat(Template()), judge=chat(Judge()), **how)
    grades = [(row["grade"], row["status"]) for row in table_of(found.pairs).to_pylist()]
    assert grades == [(row["grade"], row["status"]) for row in here.pairs]
    assert {"accepted", "rejected"} <= {status for _, status in grades}
    with pytest.raises(InputError, match="least_grade=3: give 1 to 5, and a judge"):
        entp_on_ray(blocks(ray, pool, 50), opened, **how)


def messy():
    """Collected texts with copies in several blocks, strangers, and rows that cannot be used."""
    rng, rows = np.random.default_rng(5), collected(num=300)
    rows += [rows[i] | {"rank": 999, "label": rows[i + i % 2]["label"]} for i in range(20)]
    near = [(np.array(rows[i]["vector"]) + 0.01 * rng.normal(size=16)).tolist() for i in range(20, 40)]
    rows += [rows[20 + i] | {"text": f"other {i}", "vector": vector} for i, vector in enumerate(near)]
    for i in range(0, 300, 2):
        rows[i] |= {"subclass": "big"}
    rows[3]["label"], rows[5]["text"] = None, " "
    rows[7]["vector"], rows[8]["vector"], rows[9]["vector"] = [0.0] * 16, None, [float("nan")] * 16
    return rows


@pytest.mark.parametrize("how", [How(near=0.99), How(flagged="relabel", method="knn", confidence=0.1)])
def test_samples_cleaned_on_ray_are_those_cleaned_in_one_process(ray, how):
    rows = messy()
    dataset = blocks(ray, rows, 8, 8, 310)
    one, two = (adc_clean_on_ray(dataset, embedding="vector", how=how, num_parts=num) for num in (1, 2))
    here = adc_clean.run(rows, embedding="vector", how=how)
    found = without(one.rows, "vector")
    assert found == without(two.rows, "vector")
    assert [(row["fate"], row["reason"]) for row in found] == here.outcome.verdicts
    for name, values in here.outcome.added.items():
        assert [row[name] for row in found] == list(values), name
    assert [row["label"] for row in found] == [row.data["label"] for row in here.outcome.rows]
    assert [row["text"] for row in found] == [row["text"] for row in rows]
    assert one.disputed == here.disputed and one.mixed == here.mixed and one.warnings == here.record["warnings"]
    reasons = " ".join(str(row["reason"]) for row in found)
    for words in ("the same as", "nearly the same", "found for", "no embedding", "no text", "no label"):
        assert words in reasons
    assert how.flagged == "drop" or any(row["label"] != row["found_as"] for row in found if row["fate"] == "kept")


def test_pictures_are_opened_where_the_workers_are(ray, tmp_path):
    from PIL import Image

    rng, rows = np.random.default_rng(0), []
    for i in range(60):
        pixels = rng.integers(0, 40, (16, 16), dtype=np.uint8) + 150 * (np.arange(16) < 8)[:: 1 - 2 * (i % 2)]
        Image.fromarray(pixels.astype(np.uint8)).resize((64, 64)).save(tmp_path / f"{i}.png")
        vector = [3 * (i % 2), 3 * (1 - i % 2), *rng.normal(size=6)]
        rows.append({"path": f"{i}.png", "label": "ab"[i % 2], "vector": [float(v) for v in vector]})
    (tmp_path / "5.png").write_bytes(b"no picture")
    rows[6]["path"] = "../../etc/passwd"
    rows[40]["path"] = "0.png"
    how = {"embedding": "vector", "folder": tmp_path, "how": How(method="knn", near=0.999)}
    found = table_of(adc_clean_on_ray(blocks(ray, rows, 20), num_parts=2, **how).rows).to_pylist()
    here = adc_clean.run(rows, **how).outcome
    assert [(row["fate"], row["reason"]) for row in found] == here.verdicts
    assert [row["perceptual_hash"] for row in found] == here.added["perceptual_hash"]
    assert [row["reason"] for row in found][5:7] == ["not a sound picture", "the path leads out of the folder"]
    assert found[40]["reason"] == "the same as data[0]"


def test_what_runs_here_runs_with_workers_on_ray_too(ray, by_value, pool):
    from amends.curate._ray.blocks import OnRay

    fused = [entp_run(pool, workers=workers).pairs for workers in (None, OnRay(2))]
    assert fused[0] == fused[1] and fused[0]
    here, there = (adc_clean.run(messy(), embedding="vector", workers=workers).outcome for workers in (None, OnRay(2)))
    assert here.verdicts == there.verdicts and here.added == there.added  # of rows, a NaN is not equal to itself


def test_vectors_of_another_length_are_refused_with_both_lengths(ray, pool):
    rows = [row | {"embedding": [1.0, 2.0]} if i == 10 else row for i, row in enumerate(collected(num=80))]
    rows[10]["vector"] = [1.0, 2.0]
    for row in rows:
        row.pop("embedding", None)
    found = table_of(adc_clean_on_ray(blocks(ray, rows, 40), embedding="vector", num_parts=2).rows).to_pylist()
    assert (found[10]["fate"], found[10]["reason"]) == ("refused", "the embedding has 2 numbers, and most have 16")
    pairs = [row | ({"embedding": [1.0, 2.0], "curated": 1} if i == 12 else {}) for i, row in enumerate(pool)]
    told = table_of(entp_on_ray(blocks(ray, pairs, 40), embedding="embedding").rows).to_pylist()
    assert (told[12]["fate"], told[12]["reason"]) == ("refused", "the embedding has 2 numbers, and most have 16")


def test_what_is_missing_or_there_already_is_named(ray, pool):
    with pytest.raises(InputError, match='no column "nope"'):
        entp_on_ray(blocks(ray, pool, 9), embedding="nope")
    with pytest.raises(InputError, match='no column "rating"'):
        entp_on_ray(blocks(ray, pool, 9), embedding="embedding", purging=entp.Purging(raw="rating"))
    with pytest.raises(NoResult, match="two are needed"):
        entp_on_ray(blocks(ray, pool, 9), embedding="embedding", purging=entp.Purging(low=-1))
    rows = collected(num=40)
    with pytest.raises(InputError, match='the column "split" is there already'):
        adc_clean_on_ray(blocks(ray, [row | {"split": "a"} for row in rows], 9), embedding="vector")
    with pytest.raises(InputError, match='no column "words" or "path"'):
        adc_clean_on_ray(blocks(ray, rows, 9), embedding="vector", text="words")
    with pytest.raises(InputError, match="--near 2"):
        adc_clean_on_ray(blocks(ray, rows, 9), embedding="vector", how=How(near=2))
