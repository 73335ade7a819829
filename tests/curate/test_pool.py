import datasets
import numpy as np
import pandas as pd
import pytest

from amends.curate._pools.pool import Outcome, Verdict, read_pool, texts_of
from amends.io.errors import InputError
from amends.io.tables import read_rows, rows_of

ROWS = [{"text": "one", "score": 3}, {"text": "two", "score": None}, {"text": "", "score": 1}]
VERDICTS = [Verdict("kept", "score 3 -> 4"), Verdict("refused", "no score"), Verdict("dropped", "empty")]


def outcome():
    return Outcome(rows_of(ROWS), VERDICTS, {"curated": [4, None, None]})


def test_every_row_has_one_fate_and_keeps_its_reason():
    found = outcome()
    assert found.counts() == {"rows": 3, "kept": 1, "dropped": 1, "refused": 1}
    assert found.of("kept") == [{**ROWS[0], "curated": 4, "reason": "score 3 -> 4", "where": "data[0]"}]
    assert found.of("dropped")[0]["reason"] == "empty"


@pytest.mark.parametrize("kind", [".jsonl", ".csv", ".parquet"])
def test_what_is_written_reads_back(tmp_path, kind):
    found = outcome()
    found.write(tmp_path, kind)
    (kept,) = read_rows(tmp_path / f"kept{kind}")
    assert str(kept.data["curated"]) == "4"
    assert kept.data["reason"] == "score 3 -> 4"
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{n}{kind}" for n in ("dropped", "kept", "refused")]


def test_the_same_rows_come_from_every_kind_of_pool(tmp_path):
    frame = pd.DataFrame(ROWS[:1])
    (tmp_path / "a.jsonl").write_text('{"text": "one", "score": 3}\n', encoding="utf-8")
    pools = [ROWS[:1], frame, datasets.Dataset.from_list(ROWS[:1]), tmp_path / "a.jsonl", [tmp_path / "a.jsonl"]]
    assert [read_pool(pool)[0].data for pool in pools] == [ROWS[0]] * len(pools)


def test_a_polars_frame_is_a_pool_like_its_rows():
    polars = pytest.importorskip("polars")
    rows = [{"text": "one", "score": 3, "vector": [0.5, 1.0]}, {"text": None, "score": None, "vector": None}]
    assert read_pool(polars.DataFrame(rows)) == read_pool(rows)
    with pytest.raises(InputError, match="at least one"):
        read_pool(polars.DataFrame(rows).clear())


@pytest.mark.parametrize("pool", [[], 3, ["no/such.jsonl"], [3]])
def test_what_is_no_pool_is_refused(pool):
    with pytest.raises(InputError):
        read_pool(pool)


def test_a_column_that_would_be_overwritten_is_named():
    with pytest.raises(InputError, match=r'data\[0\]: the column "curated" is there already'):
        Outcome(rows_of([{"curated": 1}]), [Verdict("kept")], {"curated": [2]})


def test_a_text_of_several_columns_says_which_is_which():
    rows = rows_of([{"question": "Why?", "input": "", "answer": "So."}])
    assert texts_of(rows, ["answer"]) == ["So."]
    assert texts_of(rows, ["question", "input", "answer"]) == ["question: Why?\nanswer: So."]
    with pytest.raises(InputError, match='the column "title" is missing'):
        texts_of(rows, ["title"])


def test_a_text_that_is_missing_in_one_row_stops_no_other():
    frame = pd.DataFrame({"text": ["one", float("nan"), pd.NA, None, " "]})
    assert texts_of(read_pool(frame), ["text"]) == ["one", "", "", "", ""]
    assert texts_of(rows_of([{"text": "one"}, {"id": 2}]), ["text"]) == ["one", ""]
    with pytest.raises(InputError, match=r'data\[1\]: the column "text" holds no text'):
        texts_of(rows_of([{"text": "one"}, {"text": 2}]), ["text"])


def test_columns_of_an_earlier_curation_are_renamed_and_those_of_the_user_named():
    earlier = Outcome(read_pool(ROWS[:1]), [Verdict("kept")], {"curated": [4]}).of("kept")
    (row,) = read_pool(earlier, ["curated"])
    assert row.data == {**ROWS[0], "earlier_curated": 4, "earlier_reason": None, "earlier_where": "data[0]"}
    assert "curated" in read_pool(earlier)[0].data  # what is not written stays
    with pytest.raises(InputError, match='the column "curated" is there already'):
        read_pool([{"curated": 1}], ["curated"])


def test_numbers_of_numpy_are_numbers_in_rows_that_python_gives():
    row = {"a": np.int64(2), "b": np.float32(0.5), "c": np.bool_(True), "d": pd.NA}
    assert [type(value) for value in read_pool([row])[0].data.values()] == [int, float, bool, type(None)]


def test_what_a_curation_wrote_is_a_pool_for_the_next_and_the_one_after_it():
    rows = ROWS[:1]
    for times in range(1, 4):
        pool = read_pool(rows)
        rows = Outcome(pool, [Verdict("kept", f"round {times}")], {}).of("kept")
    told = {name: value for name, value in rows[0].items() if name.endswith("reason")}
    assert told == {"earlier_earlier_reason": "round 1", "earlier_reason": "round 2", "reason": "round 3"}


def test_a_reason_of_the_users_own_is_not_taken_for_one_of_ours():
    with pytest.raises(InputError, match='the column "reason" is there already'):
        Outcome(read_pool([{"text": "one", "reason": "mine"}]), [Verdict("kept")], {})


def test_an_array_has_the_digest_of_the_list_of_its_numbers_and_of_all_of_them():
    numbers = np.arange(3000, dtype=np.float32) / 7

    def digest(values):
        return Outcome(rows_of([{"v": values}]), [Verdict("kept")], {}).about(None)["sha256"]

    assert digest(numbers) == digest(numbers.tolist())
    assert digest(numbers) != digest(np.where(np.arange(3000) == 1500, 0, numbers))  # a printed array leaves it out
