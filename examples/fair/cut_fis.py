"""Cut rows to label out of data/adult.csv: python examples/fair/cut_fis.py FOLDER.

`labelled` (200 rows) and `pool` (800) are the rows `train` without sex and race, and the pool without the income.
`validation` shows the sex. `answers` is what a person would be asked: the incomes of the pool.
"""

import sys
from pathlib import Path

import pandas as pd

HERE = Path(__file__).parent


def main(folder: Path) -> None:
    rows = pd.read_csv(HERE / "data" / "adult.csv").drop(columns="score")
    train = rows[rows["split"] == "train"].drop(columns=["split", "sex", "race"])
    parts = {
        "labelled": train[:200],
        "pool": train[200:].drop(columns="income"),
        "answers": train[200:][["income"]],
        "validation": rows[rows["split"] == "validation"].drop(columns=["split", "race"]),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        part.to_csv(folder / f"{name}.csv", index=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
