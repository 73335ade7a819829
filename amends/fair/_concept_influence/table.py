"""What `amends fair concept_influence` reads: rows by what they are for, of the same kinds, and concepts by name."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from amends.fair._concept_influence.concepts import Transport, group_transport, set_column
from amends.fair._tables.table import column, features
from amends.io.errors import InputError
from amends.io.rows import Row


def parts_of(rows: list[Row], name: str, read: Mapping[str, list[Row]]) -> tuple[list[Row], dict[str, list[Row]]]:
    """Part rows by what a column says they are for."""
    parts: dict[str, list[Row]] = {"train": [], "validation": [], "test": []}
    for row, value in zip(rows, column(rows, name, "--split"), strict=True):
        if value not in parts:
            raise InputError(f'{row.where}, column "{name}": {value!r}, expected train, validation or test.')
        parts[value].append(row)
    if not parts["train"]:
        raise InputError(f'{rows[0].where}: no row is for training (column "{name}"). Some must say train.')
    if twice := [part for part in read if parts[part]]:
        raise InputError(f"--{twice[0]}: --split {name} says such rows too. Give one of the two.")
    return parts["train"], {**read, **{part: parts[part] for part in ("validation", "test") if parts[part]}}


def like(rows: Sequence[Row], X: pd.DataFrame, part: str) -> pd.DataFrame:
    """Features of other rows, of the same kinds as those to train on."""
    frame = features(rows, list(X), [])
    if strange := [name for name in X if X[name].dtype != frame[name].dtype]:
        raise InputError(f'{part} rows: the column "{strange[0]}" holds words here, and numbers there. Mend it.')
    return frame


def concepts_of(
    names: Sequence[str],
    transport: Transport,
    set_to: Sequence[str],
    dependent: Sequence[str],
    said_in: list[str],
    X: pd.DataFrame,
    seed: int,
) -> dict[str, Any]:
    """Make the concepts that were asked for."""
    if "group" in names and transport == "column" and not said_in:
        raise InputError("--transport column: the group is no feature here. Name its column with --feature too.")
    found: dict[str, Any] = {name: name for name in names if name != "group"}
    if "group" in names:
        found["group"] = group_transport(transport, columns=said_in, random_state=seed)
    for text in set_to:
        column, _, value = text.partition("=")
        if strange := [name for name in (column, *dependent) if name not in X]:
            raise InputError(f'--set {text}: the column "{strange[0]}" is no feature. There are: {", ".join(X)[:200]}.')
        is_number = X[column].dtype.kind == "f"
        try:
            set_value = float(value) if is_number else value
        except ValueError:
            raise InputError(f'--set {text}: the column "{column}" holds numbers. Give one.') from None
        if not is_number and value not in set(X[column]):
            raise InputError(
                f"--set {text}: no row has this value. There are: {', '.join(sorted(set(X[column])))[:200]}."
            )
        found[text] = set_column(column, set_value, dependents=[d for d in dependent if d != column], random_state=seed)
    return found
