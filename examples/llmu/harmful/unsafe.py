"""Rows to forget from a copy of PKU-SafeRLHF: the questions with their unsafe answers.

Run: python examples/llmu/harmful/unsafe.py pku.jsonl forget.jsonl

Reads the columns prompt, response_0, response_1, is_response_0_safe and is_response_1_safe from .jsonl, .json, .csv or
.parquet; writes question and answer.
"""

import sys
from pathlib import Path

from amends.io.errors import InputError
from amends.io.run import write_jsonl
from amends.io.tables import read_rows

ANSWERS = {"response_0": "is_response_0_safe", "response_1": "is_response_1_safe"}


def unsafe(source: str) -> list[dict[str, str]]:
    found = []
    for row in read_rows(source):
        for answer, safe in ANSWERS.items():
            if lacking := [name for name in ("prompt", answer, safe) if name not in row.data]:
                raise InputError(f'{row.where}: column "{lacking[0]}" is missing. Give a file of PKU-SafeRLHF.')
            verdict = str(row.data[safe]).lower()
            if verdict not in ("true", "false"):
                raise InputError(f"{row.where}: {safe} must be true or false, not {verdict[:60]!r}.")
            texts = {name: row.data[name] for name in ("prompt", answer)}
            if other := [name for name, text in texts.items() if not isinstance(text, str)]:
                raise InputError(f"{row.where}: {other[0]} must be text.")
            if verdict == "false" and texts[answer].strip():
                found.append({"question": texts["prompt"], "answer": texts[answer]})
    return found


if __name__ == "__main__":
    try:
        rows = unsafe(sys.argv[1])
        write_jsonl(Path(sys.argv[2]), rows)
    except (IndexError, InputError) as error:
        sys.exit(str(error) if isinstance(error, InputError) else __doc__)
    print(f"{len(rows)} unsafe answers in {sys.argv[2]}")
