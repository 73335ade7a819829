"""Make data/proxies.csv: python examples/fair/plant_proxies.py PATH/adult.parquet examples/fair/data/proxies.csv.

4,000 rows of adult.test: income above 50K (0 or 1), whether a model predicts it that sees neither sex nor race, four
guesses of sex that were drawn at random with the error rates below, and the sex itself, to compare with.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from cut_adult import NUM_MODEL, NUMBERS, WORDS
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

NUM_ROWS = 4000
MALE = {"guess_1": (0.15, 0.80), "guess_2": (0.30, 0.75), "guess_3": (0.45, 0.90), "guess_4": (0.20, 0.65)}
"""How often a guess says "M" of a woman and of a man."""


def main(source: Path, target: Path) -> None:
    rows = pd.read_parquet(source)
    rng = np.random.default_rng(0)
    learnt = rows.iloc[rng.permutation(np.flatnonzero(rows["split"] == "train"))[:NUM_MODEL]]
    some = rows.iloc[np.sort(rng.permutation(np.flatnonzero(rows["split"] == "test"))[:NUM_ROWS])]
    features = make_column_transformer((StandardScaler(), NUMBERS), (OneHotEncoder(handle_unknown="ignore"), WORDS))
    model = make_pipeline(features, LogisticRegression(max_iter=1000)).fit(learnt, learnt["income"] == ">50K")
    man = (some["sex"] == "Male").to_numpy()
    table = {"income": (some["income"] == ">50K").to_numpy().astype(int), "predicted": model.predict(some).astype(int)}
    for name, (of_woman, of_man) in MALE.items():
        table[name] = np.where(rng.random(len(some)) < np.where(man, of_man, of_woman), "M", "F")
    pd.DataFrame({**table, "sex": np.where(man, "M", "F")}).to_csv(target, index=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
