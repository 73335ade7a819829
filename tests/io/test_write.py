"""Rows that are written are the rows that are read."""

import pytest

from amends.io.errors import InputError
from amends.io.retry import retry_after_s
from amends.io.tables import read_rows
from amends.io.write import write_rows


@pytest.mark.parametrize("value", ["x", 10**30, "\ud800", [1, "x"]])
def test_a_column_that_parquet_cannot_hold_is_named_and_nothing_is_written(tmp_path, value):
    with pytest.raises(InputError, match=r'^t\.parquet: Parquet cannot hold the column "b": .*\. Write \.jsonl\.$'):
        write_rows(tmp_path / "t.parquet", [{"a": 1, "b": 1}, {"a": 2, "b": value}])
    assert not list(tmp_path.iterdir())


def test_csv_stays_exact_where_a_spreadsheet_would_calculate(tmp_path):
    cells = ["=HYPERLINK(0)", "+1", "-1", "@a", "\tb", "\uff1d1"]
    write_rows(tmp_path / "t.csv", [{"a": cell} for cell in cells])
    assert [row.data["a"] for row in read_rows(tmp_path / "t.csv")] == cells


@pytest.mark.parametrize("header", ["nan", "inf", "-inf", "1e400", "", "soon"])
def test_a_time_that_is_no_number_is_none(header):
    assert retry_after_s(header) == 0
