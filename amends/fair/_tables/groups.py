"""Groups of people, as any table gives them: one column or several, of any data frame."""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from amends.maths.arrays import IntArray


class Groups(NamedTuple):
    """The group of every row."""

    names: list[Any]
    """Values as they stand in the data, sorted; of several columns their texts, joined by a comma."""
    code_N: IntArray
    """Place of a row's group in `names`."""

    @property
    def sizes(self) -> dict[Any, int]:
        """Rows of each group."""
        counts = np.bincount(self.code_N, minlength=len(self.names)).tolist()
        return dict(zip(self.names, counts, strict=True))


def read_groups(sensitive_features: Any, num_rows: int, name: str = "sensitive_features") -> Groups:
    """Read the group of every row.

    Parameters
    ----------
    sensitive_features : list, array (N,) or (N, C), series, data frame, or None
        Of several columns each combination that there is makes a group, as in fairlearn. None: all rows are one group.

    Raises
    ------
    ValueError : another number of rows, no column, or a value that is missing; with the first such row.
    """
    if sensitive_features is None:
        return Groups(["all"], np.zeros(num_rows, dtype=np.int64))
    values = sensitive_features.to_numpy() if hasattr(sensitive_features, "to_numpy") else sensitive_features
    values = np.asarray(values, dtype=object)
    if values.ndim not in (1, 2) or len(values) != num_rows or not values.size:
        raise ValueError(f"{name}: of shape {values.shape}, expected one value or several for each of {num_rows} rows.")
    values = values.reshape(num_rows, -1)
    missing_N = pd.isna(values).any(axis=1)
    if missing_N.any():
        first = int(np.flatnonzero(missing_N)[0])
        raise ValueError(
            f"{name}: row {first} has no group, and {missing_N.sum() - 1} more. Leave such rows out, or name their "
            'group, such as "unknown".'
        )
    joined = [row[0] if len(row) == 1 else ", ".join(map(str, row)) for row in values.tolist()]
    names = sorted(set(joined), key=lambda value: (isinstance(value, str), value))
    place = {value: number for number, value in enumerate(names)}
    return Groups(names, np.array([place[value] for value in joined], dtype=np.int64))
