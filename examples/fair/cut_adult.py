"""Cut data/adult.csv out of Adult: python examples/fair/cut_adult.py PATH/adult.parquet examples/fair/data/adult.csv.

Rows of `train` and `validation` are drawn at random from adult.data, rows of `test` from adult.test. `score` is the
probability of more than 50K by a logistic regression that was trained on 16,000 other rows of adult.data and sees
neither sex nor race.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

NUMBERS = ["age", "education_num", "capital_gain", "capital_loss", "hours_per_week"]
WORDS = ["workclass", "marital_status", "occupation", "relationship"]
PARTS = {"train": 1000, "validation": 600, "test": 800}
NUM_MODEL = 16_000


def main(source: Path, target: Path) -> None:
    rows = pd.read_parquet(source)
    rng = np.random.default_rng(0)
    places = {name: rng.permutation(np.flatnonzero(rows["split"] == name)) for name in ("train", "test")}
    drawn = {"train": places["train"][: PARTS["train"]], "test": places["test"][: PARTS["test"]]}
    drawn["validation"] = places["train"][PARTS["train"] :][: PARTS["validation"]]
    learnt = rows.iloc[places["train"][-NUM_MODEL:]]
    features = make_column_transformer((StandardScaler(), NUMBERS), (OneHotEncoder(handle_unknown="ignore"), WORDS))
    model = make_pipeline(features, LogisticRegression(max_iter=1000)).fit(learnt, learnt["income"] == ">50K")
    parts = []
    for name in PARTS:
        part = rows.iloc[np.sort(drawn[name])][[*NUMBERS, *WORDS, "race", "sex", "income"]]
        part = part.assign(score=model.predict_proba(part)[:, 1].round(4), split=name)
        parts.append(part)
    pd.concat(parts).to_csv(target, index=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
