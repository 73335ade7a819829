import datasets
import numpy as np
import pandas as pd
import pytest

from amends.curate._pool import Outcome, Verdict, read_pool, text_of
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
    row = rows_of([{"question": "Why?", "input": "", "answer": "So."}])[0]
    assert text_of(row, ["answer"]) == "So."
    assert text_of(row, ["question", "input", "answer"]) == "question: Why?\nanswer: So."
    with pytest.raises(InputError, match='the column "title" is missing'):
        text_of(row, ["title"])


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
