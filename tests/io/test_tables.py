import csv
import gzip
import importlib
import json
import pickle
import tracemalloc
import warnings
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amends.io._lines import MAX_WHOLE_BYTES
from amends.io.errors import InputError
from amends.io.rows import MAX_ROW_BYTES, Row
from amends.io.tables import READERS, read_json, read_rows

GOOD = b'{"question": "Who?", "answer": "Me."}\n'
LIST = "Read are .jsonl and .ndjson (also .gz), .json, .csv, .parquet, .txt, and folders written by datasets"
EMPTY = "no row in it (empty, blank lines or a header alone). Give a file with rows."
TWICE = 'the key "a" stands twice in one object. Keep one of the two.'

FAULTS = [
    # JSON Lines
    ("f.jsonl", GOOD * 316 + b'{"answer": "\xff"}', ":317: not valid UTF-8 (byte 0xff at column 13). Save the file"),
    ("f.jsonl", b'{"a": "\xc3\xa9\xff"}', ":1: not valid UTF-8 (byte 0xff at column 9). Save the file as UTF-8."),
    ("f.jsonl", '{"a": "b"}'.encode("utf-16"), ":1: not valid UTF-8 (byte 0xff at column 1)"),
    ("f.jsonl", b"\xef\xbb\xbf\xff", ":1: not valid UTF-8 (byte 0xff at column 1)"),
    ("f.jsonl", GOOD + b'{"a": 1', ":2: not JSON at column 8: Expecting ',' delimiter. Write one JSON object a line"),
    ("f.jsonl", GOOD + b"\n\n{'a': 1}", ":4: not JSON at column 2: Expecting property name"),
    ("f.jsonl", b"[\n" + GOOD + b"]", ":1: not JSON at column 2: Expecting value. Write one JSON object a line; name"),
    ("f.jsonl", b'{"a": 1} {"a": 2}', ":1: not JSON at column 10: Extra data."),
    ("f.jsonl", GOOD + b"[1]", ':2: expected a JSON object, found a list. Write {"column": value, ...}'),
    ("f.jsonl", b'"text"', ":1: expected a JSON object, found a string."),
    ("f.jsonl", b"null", ":1: expected a JSON object, found null."),
    ("f.jsonl", b"true", ":1: expected a JSON object, found true or false."),
    ("f.jsonl", b"3", ":1: expected a JSON object, found a number."),
    ("f.jsonl", b'{"a": 1, "b": 2, "a": 1}', f":1: {TWICE}"),
    ("f.jsonl", b'{"b": [{"a": 1, "a": 2}]}', f":1: {TWICE}"),
    ("f.jsonl", b'{"a": NaN}', ":1: NaN is not allowed in JSON. Write null or leave the key out."),
    ("f.jsonl", b'{"a": [-Infinity]}', ":1: -Infinity is not allowed in JSON."),
    ("f.jsonl", b'{"a": 1e999}', ":1: the number 1e999 is too large. Write it as text, in quotes."),
    ("f.jsonl", b'{"a": 1' + b"0" * 5000 + b"}", ":1: a number of 5001 digits is too large. Write it as text"),
    ("f.jsonl", b'{"a": ' + b"[" * 40000 + b"]" * 40000 + b"}", ":1: nested too deeply. Write a flat object"),
    ("f.jsonl", b'{"a": "\\uD83D"}', ":1: half a character (\\ud83d without its other half). Write the whole one."),
    ("f.jsonl", b"", f": {EMPTY}"),
    ("f.jsonl", b"\n  \n\r\n", f": {EMPTY}"),
    ("f.jsonl", b"\xef\xbb\xbf", f": {EMPTY}"),
    ("f.jsonl", GOOD + b'{"a": "' + b"x" * 200_000 + b'"}\n', ":2: the row has 200009 bytes, and 100000 are allowed."),
    ("f.jsonl", b"x" * (MAX_ROW_BYTES + 1), ":1: the row has 100001 bytes, and 100000 are allowed. Shorten or split"),
    ("f.jsonl", b"x" * 10_200_000, ":1: the row has more than 10000000 bytes, and 100000 are allowed."),
    ("f.jsonl.gz", GOOD, ": cannot be read: Not a gzipped file"),
    ("f.jsonl.gz", gzip.compress(GOOD)[:-9], ": cannot be read: Compressed file ended before the end-of-stream"),
    ("f.ndjson.gz", gzip.compress(GOOD + b"{"), ":2: not JSON at column 2"),
    # JSON
    ("f.json", b'[{"a": 1},\n {"a": 1,,}]', ":2: not JSON at column 10: Expecting property name enclosed in double q"),
    ("f.json", b'[{"a": 1},\n {"a": "\xff"}]', ":2: not valid UTF-8 (byte 0xff at column 9)"),
    ("f.json", b'"a"', ': expected a list of objects or {"data": [...]}, not a string. Write a list.'),
    ("f.json", b'{"data": [1]}', ": row 1: expected a JSON object, found a number."),
    ("f.json", b'[{"a": 1}, 2]', ": row 2: expected a JSON object, found a number."),
    ("f.json", b'[{"a": 1, "a": 2}]', f": {TWICE}"),
    ("f.json", b"[" * 100_000, ": nested too deeply."),
    ("f.json", b"[]", f": {EMPTY}"),
    ("f.json", b" \n", f": {EMPTY}"),
    ("f.json", json.dumps([{"a": "x" * 200_000}]).encode(), ": row 1: the row has 200009 bytes, and 100000 are"),
    # CSV
    ("f.csv", b'a,b\n"x\ny",1\n1,2,3\n', ":4: 3 values, but the header has 2 columns (a, b). Put values that hold"),
    ("f.csv", b"a,b\n1\n", ":2: 1 values, but the header has 2 columns (a, b)."),
    ("f.csv", b"a,,b\n1,2,3\n", ":1: column 2 of the header has no name. Name each column."),
    ("f.csv", b"a,b,a\n1,2,3\n", ':1: the column "a" stands twice in the header. Rename one of the two.'),
    ("f.csv", b"a;b\n1;2\n", ":1: the header has one column that holds ';'. Separate columns with commas."),
    ("f.csv", b'a,b\n1,2\n"x"y,2\n', ":3: not CSV: ',' expected after '\"'. Put values that hold commas, quotes or"),
    ("f.csv", b'a,b\n1,2\n"x,2\n3,4\n', ":3: not CSV: unexpected end of data. Put values"),
    ("f.csv", b'a,b\n1,2\n"x,2\n' + b"3,4\n" * 50_000, ":3: the row that begins here has over 100000 bytes. Is a quo"),
    ("f.csv", b"a\n" + b"x" * 200_000, ":2: the row has 200000 bytes, and 100000 are allowed."),
    ("f.csv", b"a\n" + b'"' + b"x\n" * 60_000 + b'"', ":2: the row that begins here has over 100000 bytes. Is a"),
    ("f.csv", b"text\n" + b'"' + b"x\n" * 1_100_000, ":2: the row that begins here has over 2000000 bytes. Is a q"),
    ("f.csv", b"a,b\n1,\xe9\n", ":2: not valid UTF-8 (byte 0xe9 at column 3). Save the file as UTF-8."),
    ("f.csv", b"a,b\n", f": {EMPTY}"),
    ("f.csv", b"", f": {EMPTY}"),
    # Parquet, text
    ("f.parquet", b"", ": not a sound Parquet file ("),
    ("f.parquet", b"PAR1" + b"\0" * 100 + b"PAR1", ": not a sound Parquet file ("),
    ("f.txt", b"ok\n\xff", ":2: not valid UTF-8 (byte 0xff at column 1)"),
    ("f.txt", b" \n", f": {EMPTY}"),
    # what is not read
    ("f.tsv", b"a\tb\n", f": .tsv files are not read. {LIST}"),
    ("forget", b"", ": files without a suffix are not read."),
    *((f"f{s}", b"", f": {s} files are not opened, because such formats can carry code. Save the rows as .jsonl")
      for s in (".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib", ".npy", ".h5")),
    ("F.PKL", b"", ": .pkl files are not opened"),
    ("f.pkl.gz", b"", ": .pkl files are not opened"),
]  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def message(path) -> str:
    with pytest.raises(InputError) as caught:
        list(read_rows(path))
    return str(caught.value)


def test_a_json_file_with_an_object_a_line_is_read_by_lines(tmp_path):
    file = tmp_path / "full.json"
    file.write_text('{"a": 1}\n\n{"a": 2}\n', encoding="utf-8")
    assert [(row.data, row.where) for row in read_rows(file)] == [({"a": 1}, f"{file}:1"), ({"a": 2}, f"{file}:3")]
    file.write_text('{"a": 1}\n{"a": 2\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"full\.json:2: not JSON"):
        list(read_rows(file))


@pytest.mark.parametrize(("name", "content", "expected"), FAULTS, ids=[f"{f[0]}-{f[2][:60]}" for f in FAULTS])
def test_a_fault_is_named_with_its_place_and_the_way_out(here, name, content, expected):
    Path(name).write_bytes(content)
    assert message(name).startswith(name + expected)
    assert len(message(name)) < 500


def test_rows_before_a_fault_are_read(here):
    Path("f.jsonl").write_bytes(GOOD + b"\n{")
    rows = read_rows("f.jsonl")
    assert next(rows) == Row({"question": "Who?", "answer": "Me."}, "f.jsonl:1")
    with pytest.raises(InputError, match=r"^f\.jsonl:3: not JSON"):
        next(rows)


def test_a_missing_file_is_told_at_the_call_with_the_nearest_name(here):
    Path("data").mkdir()
    Path("data/forget.jsonl").write_bytes(GOOD)
    with pytest.raises(
        InputError, match=r"^data/forgt\.jsonl: no such file or folder\. Did you mean data/forget\.jsonl\?$"
    ):
        read_rows("data/forgt.jsonl")
    with pytest.raises(InputError, match=r"^nowhere/x\.jsonl: no such file or folder\.$"):
        read_rows("nowhere/x.jsonl")


def test_a_name_the_system_cannot_hold_is_an_input_error(here):
    assert "cannot be read: File name too long" in message("x" * 5000 + ".jsonl")


def test_a_pickle_is_never_loaded(here):
    class Trap:
        def __reduce__(self):
            return (Path("sprung").touch, ())

    for name in ("rows.pkl", "rows.bin", "rows.jsonl", "rows.json", "rows.csv", "rows.parquet", "rows.txt"):
        Path(name).write_bytes(pickle.dumps(Trap()))
        message(name)
    assert not Path("sprung").exists()


def test_the_largest_row_allowed_is_read_with_any_line_end_and_bom(here):
    line = b'{"a": "' + b"x" * (MAX_ROW_BYTES - 9) + b'"}'
    assert len(line) == MAX_ROW_BYTES
    Path("f.jsonl").write_bytes(b"\xef\xbb\xbf" + line + b"\r\n" + line + b"\n" + line)
    assert [row.where for row in read_rows("f.jsonl")] == ["f.jsonl:1", "f.jsonl:2", "f.jsonl:3"]


def test_a_huge_line_is_never_held_in_memory(here):
    with open("f.jsonl", "wb") as file:
        file.truncate(200_000_000)  # sparse: one line of zero bytes
    tracemalloc.start()
    try:
        assert message("f.jsonl").startswith("f.jsonl:1: the row has more than 10000000 bytes")
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["f.json", "f.txt"])
def test_a_file_that_is_read_whole_has_a_stated_limit(here, name):
    with open(name, "wb") as file:
        file.truncate(MAX_WHOLE_BYTES + 1)
    assert message(name).startswith(f"{name}: larger than 50 MB, the limit for this kind of file. Split it, or save")


def test_blank_lines_are_skipped_and_still_counted(here):
    Path("f.jsonl").write_bytes(b"\xef\xbb\xbf\n" + GOOD + b" \r\n" + GOOD)
    assert [row.where for row in read_rows("f.jsonl")] == ["f.jsonl:2", "f.jsonl:4"]


def test_line_separators_inside_a_string_do_not_end_the_line(here):
    Path("f.jsonl").write_text('{"a": "x\u2028y\u0085z"}\n{"a": "\\uD83D\\uDE00"}\n', encoding="utf-8")
    assert [row.data["a"] for row in read_rows("f.jsonl")] == ["x\u2028y\u0085z", "\U0001f600"]


def test_the_place_has_the_path_as_it_was_written(here):
    Path("f.jsonl").write_bytes(GOOD)
    assert next(read_rows("./f.jsonl")).where == "./f.jsonl:1"
    assert next(read_rows(here / "f.jsonl")).where == f"{here}/f.jsonl:1"


def test_a_suffix_is_read_in_any_case_and_compressed(here):
    Path("F.JSONL.GZ").write_bytes(gzip.compress(GOOD))
    assert [row.data["answer"] for row in read_rows("F.JSONL.GZ")] == ["Me."]


def test_json_is_a_list_or_a_list_under_data(here):
    for content in ('[{"a": 1}, {"a": null}]', '\ufeff{"data": [{"a": 1}, {"a": null}]}'):
        Path("f.json").write_text(content, encoding="utf-8")
        assert list(read_rows("f.json")) == [Row({"a": 1}, "f.json: row 1"), Row({"a": None}, "f.json: row 2")]


@pytest.mark.parametrize("content", ['{"a": 1, "b": [2]}\n', '{\n "a": 1,\n "b": [2]\n}', ' {"a": 1, "b": [2]}'])
def test_one_json_object_is_one_row(here, content):
    Path("f.json").write_text(content, encoding="utf-8")
    assert list(read_rows("f.json")) == [Row({"a": 1, "b": [2]}, "f.json: row 1")]


def test_what_stands_beside_a_list_under_data_is_left_alone(here):
    Path("f.json").write_text('{"version": 1, "data": [{"a": 1}]}', encoding="utf-8")
    assert list(read_rows("f.json")) == [Row({"a": 1}, "f.json: row 1")]


def test_csv_rows_are_numbered_without_the_header_and_blank_lines(here):
    Path("f.csv").write_bytes(b'\xef\xbb\xbf\na, b\r\n"x\r\ny",""\r\n\r\n1,2')
    assert list(read_rows("f.csv")) == [
        Row({"a": "x\r\ny", "b": ""}, "f.csv: row 1"),
        Row({"a": "1", "b": "2"}, "f.csv: row 2"),
    ]


LONG = "word " * 100_000  # half a megabyte


def test_a_text_may_be_longer_than_other_rows_in_every_format_that_has_long_ones(here):
    Path("f.jsonl").write_text(json.dumps({"title": "a", "text": LONG}) + "\n" + json.dumps({"text": "b"}))
    Path("f.json").write_text(json.dumps([{"text": LONG}]))
    Path("g.json").write_text(json.dumps([LONG, "b"]))
    for name, text in (("f.csv", LONG), ("g.csv", LONG.replace("d ", 'd"\n'))):
        with Path(name).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("title", "text"), ("a", text), ("b", "c")])
        assert [row.data["text"] for row in read_rows(name)] == [text, "c"]
    for name in ("f.jsonl", "f.json", "g.json"):
        assert next(read_rows(name)).data["text"] == LONG
    assert [row.data for row in read_rows("g.json")][1] == {"text": "b"}


@pytest.mark.parametrize(
    "row", [{"text": "a", "other": LONG}, {"other": '"text"' + LONG}, {"text": ["a", LONG]}, {"text": LONG * 11}]
)
@pytest.mark.parametrize("name", ["f.jsonl", "f.json", "f.csv"])
def test_a_row_is_not_large_because_it_names_a_text(here, row, name):
    Path(name).write_text(json.dumps([row] if name == "f.json" else row))
    if name == "f.csv":
        if isinstance(row.get("text"), list):
            return  # all of CSV is text
        with Path(name).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([row.keys(), row.values()])
    assert "the row has" in message(name)


def test_a_list_of_texts_with_something_else_in_it_is_refused(here):
    Path("f.json").write_text('["a", 1]')
    assert message("f.json") == 'f.json: row 1: expected a JSON object, found a string. Write {"column": value, ...}.'


def test_a_csv_file_may_be_larger_than_a_row_may_be(here):
    Path("f.csv").write_bytes(b"a,b\n" + b"word,word\n" * 20_000)
    assert sum(1 for _ in read_rows("f.csv")) == 20_000


def test_text_is_one_row_longer_than_other_rows_may_be(here):
    Path("f.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo" + b"." * 2 * MAX_ROW_BYTES)
    (row,) = read_rows("f.txt")
    assert row == Row({"text": "one\ntwo" + "." * 2 * MAX_ROW_BYTES}, "f.txt")


def test_a_parquet_file_with_damage_or_a_large_row_is_refused(here):
    pq.write_table(pa.table({"a": ["word " * 50] * 500}), "f.parquet", compression="snappy")
    sound = Path("f.parquet").read_bytes()
    assert len(list(read_rows("f.parquet"))) == 500
    Path("f.parquet").write_bytes(sound[: len(sound) // 2])
    assert message("f.parquet").startswith("f.parquet: not a sound Parquet file (")
    Path("f.parquet").write_bytes(sound[:20] + b"\xff" * 60 + sound[80:])
    assert message("f.parquet").startswith("f.parquet: not a sound Parquet file (")
    pq.write_table(pa.table({"a": ["x", "y" * 200_000]}), "f.parquet")
    assert message("f.parquet").startswith("f.parquet: row 2: the row has 200009 bytes")
    pq.write_table(pa.table([pa.array([1]), pa.array([2])], names=["a", "a"]), "f.parquet")
    assert message("f.parquet").startswith('f.parquet: the column "a" stands twice.')


@pytest.fixture
def datasets():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its imports; ours come later
        return importlib.import_module("datasets")


def test_a_datasets_folder_of_one_split_is_read(here, datasets):
    split = datasets.Dataset.from_dict({"question": ["q", "r"], "answer": ["a", "b"]})
    split.save_to_disk("one")
    assert list(read_rows("one")) == [
        Row({"question": "q", "answer": "a"}, "one: row 1"),
        Row({"question": "r", "answer": "b"}, "one: row 2"),
    ]
    datasets.DatasetDict({"train": split}).save_to_disk("dict")
    assert [row.where for row in read_rows("dict")] == ["dict: row 1", "dict: row 2"]


def test_a_picture_in_a_datasets_folder_is_not_opened(here, datasets):
    image = {"bytes": None, "path": "http://example.org/a.png"}
    parts = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    features = datasets.Features({"question": datasets.Value("string"), "picture": parts})
    datasets.Dataset.from_dict({"question": ["q"], "picture": [image]}, features=features).save_to_disk("pictures")
    info = json.loads(Path("pictures/dataset_info.json").read_text())
    info["features"]["picture"] = {"_type": "Image"}
    Path("pictures/dataset_info.json").write_text(json.dumps(info))
    assert datasets.load_from_disk("pictures").features["picture"].decode
    assert list(read_rows("pictures")) == [Row({"question": "q", "picture": image}, "pictures: row 1")]


def test_a_datasets_folder_of_several_splits_is_refused_with_their_names(here, datasets):
    split = datasets.Dataset.from_dict({"a": ["b"]})
    datasets.DatasetDict({"train": split, "test": split}).save_to_disk("both")
    assert message("both") == "both: several splits (train, test). Give the folder of one, such as both/train."
    assert [row.data for row in read_rows("both/test")] == [{"a": "b"}]


def test_a_folder_that_is_no_dataset_or_a_broken_one_is_refused(here, datasets):
    Path("folder").mkdir()
    assert message("folder").startswith(f"folder: not a folder written by datasets.save_to_disk. {LIST}")
    Path("folder/b.jsonl").write_bytes(GOOD)
    assert message("folder").endswith("save_to_disk. Give a file in it, such as folder/b.jsonl.")
    datasets.Dataset.from_dict({"a": ["b"]}).save_to_disk("broken")
    next(Path("broken").glob("*.arrow")).write_bytes(b"no arrow")
    assert message("broken").startswith("broken: not a sound folder of datasets.save_to_disk (")
    Path("broken/state.json").unlink()
    assert message("broken").startswith("broken: not a sound folder of datasets.save_to_disk (")


def test_read_json_is_as_strict_as_read_rows(here):
    Path("x.json").write_text('{"a": [1, 2.5, "é", null]}', encoding="utf-8")
    assert read_json("x.json") == {"a": [1, 2.5, "é", None]}
    Path("x.json").write_text('{"a": 1,\n "b": NaN}')
    with pytest.raises(InputError, match=r"^x\.json: NaN is not allowed"):
        read_json("x.json")
    with pytest.raises(InputError, match=r"^y\.json: cannot be read: No such file or directory\."):
        read_json("y.json")


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
SCALAR = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
)
VALUE = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=8
)
QUIET = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@QUIET
@given(
    rows=st.lists(st.dictionaries(TEXT, VALUE, max_size=4), min_size=1, max_size=5),
    bom=st.booleans(),
    ascii_=st.booleans(),
)
def test_rows_written_as_json_lines_come_back_equal(tmp_path, rows, bom, ascii_):
    file = tmp_path / "f.jsonl"
    text = "".join(json.dumps(row, ensure_ascii=ascii_) + "\n" for row in rows)
    file.write_bytes(b"\xef\xbb\xbf" * bom + text.encode())
    assert [row.data for row in read_rows(file)] == rows
    (tmp_path / "f.json").write_text(json.dumps(rows, ensure_ascii=ascii_), encoding="utf-8")
    assert [row.data for row in read_rows(tmp_path / "f.json")] == rows


@QUIET
@given(
    values=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_rows_written_as_csv_come_back_equal(tmp_path, values, quoting):
    file = tmp_path / "f.csv"
    with file.open("w", encoding="utf-8", newline="") as out:
        csv.writer(out, quoting=quoting).writerows([("question", "answer"), *values])
    assert [tuple(row.data.values()) for row in read_rows(file)] == values


@QUIET
@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {"question": TEXT, "id": st.none() | st.integers(-(2**63), 2**63 - 1), "wrong": st.lists(TEXT, max_size=3)}
        ),
        min_size=1,
        max_size=150,
    )
)
def test_rows_written_as_parquet_come_back_equal(tmp_path, rows):
    schema = pa.schema({"question": pa.string(), "id": pa.int64(), "wrong": pa.list_(pa.string())})
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / "f.parquet")
    assert list(read_rows(tmp_path / "f.parquet")) == [
        Row(row, f"{tmp_path}/f.parquet: row {number}") for number, row in enumerate(rows, 1)
    ]


@QUIET
@given(
    content=st.binary(max_size=200),
    name=st.sampled_from([f"f{suffix}" for suffix in READERS]),
)
def test_any_bytes_give_rows_or_an_input_error(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    try:
        assert list(read_rows(tmp_path / name))
    except InputError as error:
        assert str(error).startswith(str(tmp_path / name))
