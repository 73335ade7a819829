"""Read rows from the files people have, and name each fault with its place.

Everything is streamed, apart from .json and .txt files, which are read whole up to a limit. Nothing here can run code
that a file brings.
"""

import difflib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from amends.io._csv import csv_rows
from amends.io._lines import check_unpacked, lines, unreadable, whole
from amends.io.errors import InputError
from amends.io.rows import Row, checked, most_bytes, too_large

MAX_DIGITS = 300  # of an integer in JSON
BATCH_ROWS, BATCH_BYTES = 64, 128_000_000  # read at once of .parquet, at most

UNSAFE = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib", ".npy", ".h5")
READ = (
    "Read are .jsonl and .ndjson (also .gz), .json, .csv, .parquet, .txt, and folders written by datasets.save_to_disk."
)


def read_rows(path: str | Path) -> Iterator[Row]:
    """Stream the rows of a table.

    Parameters
    ----------
    path : str or Path
        .jsonl, .ndjson (both also .gz): one object a line, blank lines skipped. .json: a list of objects,
        {"data": [...]}, one object a line, or one object, which is a row; in a list of texts each is a row with the
        column "text". .csv: comma, double quotes, a header; all values are text. .parquet. .txt: one row with the
        column "text". A folder written by `datasets.save_to_disk`, of one split. Text is UTF-8, with or without BOM. A
        .gz or .parquet file must not hold more than 200 times its own size, or 64 GB.

    Returns
    -------
    iterator of Row, at least one. A row has at most 100 kB beside its column "text", and with that at most 2 MB. A
    .json or .txt file has at most 50 MB; a .txt file is one row for which only that limit holds.

    Raises
    ------
    InputError : at the call if the path is missing or of a kind that is not read; while iterating at the first fault.
    """
    name, path = str(path), Path(path)
    return _at_least_one(_reader(path, name)(path, name), name)


EXPECTED = "expected a list of dictionaries or a datasets.Dataset."


def rows_of(records: Iterable[Mapping[str, Any]], name: str = "data") -> list[Row]:
    """Rows from dictionaries (a list, a `datasets.Dataset`), located as `data[3]`.

    Raises
    ------
    InputError : something else.
    """
    if isinstance(records, str | Mapping) or not isinstance(records, Iterable):
        raise InputError(f"{name} is a {type(records).__name__}: {EXPECTED}")
    records = list(records)
    for number, record in enumerate(records):
        if not isinstance(record, Mapping):
            raise InputError(f"{name}[{number}] is a {type(record).__name__}: {EXPECTED}")
    return [Row(dict(record), f"{name}[{number}]") for number, record in enumerate(records)]


def read_json(path: str | Path) -> Any:
    """Read one JSON file strictly: no duplicate keys, no NaN, at most 50 MB.

    Raises
    ------
    InputError : missing, too large, not UTF-8 or not JSON, with the line.
    """
    return _parse(whole(Path(path), str(path)), str(path))


def _reader(path: Path, name: str) -> Callable[[Path, str], Iterator[Row]]:
    try:
        if path.is_dir():
            return _folder_reader(path, name)
        lower = path.name.lower()
        for suffix in UNSAFE:
            if lower.removesuffix(".gz").endswith(suffix):
                raise InputError(
                    f"{name}: {suffix} files are not opened, because such formats can carry code. "
                    "Save the rows as .jsonl or .parquet."
                )
        if not path.exists():
            raise InputError(f"{name}: no such file or folder.{_near(path)}")
    except OSError as error:
        raise unreadable(name, error) from error
    for suffix, reader in READERS.items():
        if lower.endswith(suffix):
            return reader
    kind = f"{path.suffix} files" if path.suffix else "files without a suffix"
    raise InputError(f"{name}: {kind} are not read. {READ}")


def _folder_reader(path: Path, name: str) -> Callable[[Path, str], Iterator[Row]]:
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        return _dataset_rows
    tables = sorted(str(p) for p in path.iterdir() if p.name.lower().endswith(tuple(READERS)))
    hint = f" Give a file in it, such as {tables[0]}." if tables else ""
    raise InputError(f"{name}: not a folder written by datasets.save_to_disk.{hint or f' {READ}'}")


def _near(path: Path) -> str:
    with suppress(OSError):
        names = [p.name for p in path.parent.iterdir()]
        if near := difflib.get_close_matches(path.name, names, n=1):
            return f" Did you mean {path.with_name(near[0])}?"
    return ""


def _at_least_one(rows: Iterator[Row], name: str) -> Iterator[Row]:
    row = None
    for row in rows:
        yield row
    if row is None:
        raise InputError(f"{name}: no row in it (empty, blank lines or a header alone). Give a file with rows.")


# Text and JSON ------------------------------------------------------------------------------------------------------


def _text_rows(path: Path, name: str) -> Iterator[Row]:
    text = whole(path, name).replace("\r\n", "\n")
    if text.strip():
        yield Row({"text": text}, name)


def _parse(text: str, name: str, line: int | None = None) -> Any:
    """Strict JSON; `line` is the place of a single line in its file, None for a whole file."""
    where = name if line is None else f"{name}:{line}"
    try:
        value = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_constant, parse_float=_finite, parse_int=_integer
        )
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except json.JSONDecodeError as error:
        hint = "Write one JSON object a line; name a file with one list in it .json." if line else "Mend that place."
        raise InputError(
            f"{name}:{(line or 1) + error.lineno - 1}: not JSON at column {error.colno}: {error.msg}. {hint}"
        ) from error
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise InputError(f"{where}: half a character ({half} without its other half). Write the whole one.") from error
    except RecursionError as error:
        raise InputError(f"{where}: nested too deeply. Write a flat object of columns.") from error
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f'the key "{key[:60]}" stands twice in one object. Keep one of the two.')
        found[key] = value
    return found


def _constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not allowed in JSON. Write null or leave the key out.")


def _finite(text: str) -> float:
    if math.isinf(value := float(text)):
        raise ValueError(f"the number {text[:60]} is too large. Write it as text, in quotes.")
    return value


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number of {len(text)} digits is too large. Write it as text, in quotes.")
    return int(text)


def _jsonl_rows(path: Path, name: str) -> Iterator[Row]:
    for number, line in lines(path, name, lambda line: b'"text"' in line):
        if line.strip():
            data = _object(_parse(line.rstrip("\r\n"), name, number), f"{name}:{number}")
            if (size := len(line.rstrip("\r\n").encode())) > most_bytes(data):
                raise too_large(f"{name}:{number}", str(size))
            yield Row(data, f"{name}:{number}")


def _json_rows(path: Path, name: str) -> Iterator[Row]:
    text = whole(path, name)
    first, _, rest = text.lstrip().partition("\n")
    if first.startswith("{") and first.rstrip().endswith("}") and rest.strip():
        yield from _jsonl_rows(path, name)  # as the Hub's data sets often have it
        return
    found = _parse(text, name) if text.strip() else []
    if isinstance(found, dict):
        data = found.get("data")
        found = data if isinstance(data, list) else [found]
    if not isinstance(found, list):
        raise InputError(f'{name}: expected a list of objects or {{"data": [...]}}, not {_kind(found)}. Write a list.')
    if all(isinstance(value, str) for value in found):
        found = [{"text": value} for value in found]
    for number, value in enumerate(found, 1):
        where = f"{name}: row {number}"
        row = Row(_object(value, where, ""), where)
        checked(*row)
        yield row


def _object(value: Any, where: str, otherwise: str = "; name a file with one list in it .json") -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    raise InputError(
        f'{where}: expected a JSON object, found {_kind(value)}. Write {{"column": value, ...}}{otherwise}.'
    )


def _kind(value: Any) -> str:
    kinds = {type(None): "null", bool: "true or false", str: "a string", list: "a list", dict: "an object"}
    return kinds.get(type(value), "a number")


# Other formats ----------------------------------------------------------------------------------------------------


def _parquet_rows(path: Path, name: str) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        packed = path.stat().st_size
        with pq.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            if twice := [column for column in columns if columns.count(column) > 1]:
                raise InputError(f'{name}: the column "{twice[0][:60]}" stands twice. Rename one of the two.')
            groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
            check_unpacked(sum(max(group.total_byte_size, group.num_rows) for group in groups), packed, name)
            number = unpacked = 0
            for i, group in enumerate(groups):
                # One value may be as large as its row group, and a dictionary can give it to every row.
                at_once = max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, group.total_byte_size)))
                for batch in file.iter_batches(batch_size=at_once, row_groups=[i]):
                    for data in batch.to_pylist():
                        number += 1
                        unpacked += checked(data, where := f"{name}: row {number}")
                        check_unpacked(unpacked, packed, name)
                        yield Row(data, where)
            if number != file.metadata.num_rows:
                raise ValueError(f"{number} rows instead of {file.metadata.num_rows}")
    except InputError:
        raise
    except (pa.ArrowException, OSError, ValueError, ArithmeticError) as error:
        raise InputError(f"{name}: not a sound Parquet file ({str(error)[:200]}). Write it again.") from error


def _dataset_rows(path: Path, name: str) -> Iterator[Row]:
    from datasets import DatasetDict, load_from_disk

    try:
        found = load_from_disk(str(path))
        if isinstance(found, DatasetDict):
            if len(found) != 1:
                splits = list(found)
                raise InputError(
                    f"{name}: several splits ({', '.join(splits)}). Give the folder of one, such as {path / splits[0]}."
                )
            found = next(iter(found.values()))
        rows = (data for batch in found.with_format("arrow").iter(BATCH_ROWS) for data in batch.to_pylist())
        for number, data in enumerate(rows, 1):  # as Arrow has them: no picture is opened, no address is followed
            checked(data, where := f"{name}: row {number}")
            yield Row(data, where)
    except InputError:
        raise
    except Exception as error:  # what a broken folder raises is not documented: KeyError, TypeError, ArrowInvalid, ...
        raise InputError(
            f"{name}: not a sound folder of datasets.save_to_disk ({type(error).__name__}: {str(error)[:200]}). "
            "Write it again."
        ) from error


READERS: dict[str, Callable[[Path, str], Iterator[Row]]] = {
    ".jsonl": _jsonl_rows,
    ".ndjson": _jsonl_rows,
    ".jsonl.gz": _jsonl_rows,
    ".ndjson.gz": _jsonl_rows,
    ".json": _json_rows,
    ".csv": csv_rows,
    ".parquet": _parquet_rows,
    ".txt": _text_rows,
}
