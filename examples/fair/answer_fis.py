"""Stand in for the person who labels: python examples/fair/answer_fis.py RUN/query.csv FOLDER/answers.csv ANSWERED.csv.

Fills the column income of the rows that were asked for.
"""

import sys

import pandas as pd


def main(query: str, answers: str, target: str) -> None:
    rows, known = pd.read_csv(query), pd.read_csv(answers)
    rows["income"] = known["income"].to_numpy()[rows["pool_row"]]
    rows.to_csv(target, index=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
