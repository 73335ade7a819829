"""Rows of CSV files: comma, double quotes, a header."""

import csv
from collections.abc import Iterator
from pathlib import Path

from amends.io._lines import lines
from amends.io.errors import InputError
from amends.io.rows import MAX_ROW_BYTES, MAX_TEXT_BYTES, Row, most_bytes, too_large


def csv_rows(path: Path, name: str) -> Iterator[Row]:
    """Stream the rows; all values are text."""
    start, size = 1, 0  # first line of the row at hand; its bytes so far
    header: list[str] = []
    most = MAX_ROW_BYTES

    def feed() -> Iterator[str]:
        nonlocal size
        for _, line in lines(path, name, lambda _: most > MAX_ROW_BYTES):
            size += len(line.encode())
            if size > most + 2:  # one line is capped already, so this row has several
                raise InputError(
                    f"{name}:{start}: the row that begins here has over {most} bytes. Is a quote left open?"
                )
            yield line

    number = 0
    reader = csv.reader(feed(), strict=True)
    try:
        for values in reader:
            if values and not header:
                header = _header(values, f"{name}:{start}")
                if "text" in header:
                    most = MAX_TEXT_BYTES
                    # The limit of the csv module holds for the whole process, so it is never made less.
                    csv.field_size_limit(max(csv.field_size_limit(), most))
            elif values:
                number += 1
                if len(values) != len(header):
                    raise InputError(
                        f"{name}:{start}: {len(values)} values, but the header has {len(header)} columns "
                        f"({', '.join(header)[:200]}). Put values that hold commas or line breaks in double quotes."
                    )
                data = dict(zip(header, values, strict=True))
                if size > MAX_ROW_BYTES + 2 and size > most_bytes(data) + 2:
                    raise too_large(f"{name}:{start}", str(size))
                yield Row(data, f"{name}: row {number}")
            start, size = reader.line_num + 1, 0
    except csv.Error as error:
        raise InputError(
            f"{name}:{start}: not CSV: {error}. Put values that hold commas, quotes or line breaks in double quotes, "
            'and write a quote inside as "".'
        ) from error


def _header(values: list[str], where: str) -> list[str]:
    header = [value.strip() for value in values]
    if not all(header):
        raise InputError(f"{where}: column {header.index('') + 1} of the header has no name. Name each column.")
    if twice := [column for column in header if header.count(column) > 1]:
        raise InputError(f'{where}: the column "{twice[0][:60]}" stands twice in the header. Rename one of the two.')
    if len(header) == 1 and (separator := next((s for s in ";\t|" if s in header[0]), None)):
        raise InputError(f"{where}: the header has one column that holds {separator!r}. Separate columns with commas.")
    return header
