"""FAN's part of `make bench NAME=fair`: promises on new rows, planted and on Adult, beside abstention and peers.

`measure` reads adult/adult.parquet (Adult, CC BY 4.0) under the data folder, and skips that part without it.
"""

import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from _measure import Claim
from fairlearn.postprocessing import ThresholdOptimizer
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from amends.fair import AbstainingFairClassifier
from amends.fair._fan.kept import count, rates_of
from amends.fair._fan.program import Promises, solve
from amends.fair._fan.rules import ABSTAINED, cells_by_label

NUM_BASE = 16_000  # rows that the base learns from
NUM_AIF360 = 4000  # rows that AIF360 searches on, which takes long
DROPPED = ["fnlwgt", "income", "split", "education"]
PLANTED_RATES = (0.25, 0.7)


class Part(NamedTuple):
    """Rows with their features, scores of the base, labels 0 and 1, and groups 0 and 1."""

    X: Any
    score_N: np.ndarray
    label_N: np.ndarray
    group_N: np.ndarray


def planted(num: int, seed: int) -> Part:
    """Scores that are a noisy logit of the label, of which the groups have unequal shares."""
    rng = np.random.default_rng(seed)
    group_N = rng.integers(0, 2, num)
    label_N = (rng.random(num) < np.array(PLANTED_RATES)[group_N]).astype(np.int64)
    score_N = 1 / (1 + np.exp(-(1.5 * (2 * label_N - 1) + 1.5 * rng.normal(size=num))))
    return Part(score_N[:, None], score_N, label_N, group_N)


def adult(data: Path, seed: int) -> tuple[Part, Part]:
    """Rows for the rule, and the test rows, scored by a logistic regression on 16,000 other rows; group 1 is Male."""
    rows = pd.read_parquet(data / "adult" / "adult.parquet")
    label_N, group_N = (rows["income"] == ">50K").to_numpy(dtype=int), (rows["sex"] == "Male").to_numpy(dtype=int)
    X = rows.drop(columns=DROPPED)
    words = [name for name in X if not pd.api.types.is_numeric_dtype(X[name])]
    figures = [name for name in X if name not in words]
    made = make_column_transformer(
        (StandardScaler(), figures), (OneHotEncoder(handle_unknown="ignore", sparse_output=False), words)
    )
    train = np.random.default_rng(seed).permutation(np.flatnonzero(rows["split"] == "train"))
    learnt = train[:NUM_BASE]
    base = make_pipeline(made, LogisticRegression(max_iter=1000)).fit(X.iloc[learnt], label_N[learnt])

    def part(places: np.ndarray) -> Part:
        some = X.iloc[places]
        # Trees take the words as numbers.
        codes = some.assign(**{name: X[name].astype("category").cat.codes.iloc[places] for name in words})
        return Part(codes.to_numpy(dtype=float), base.predict_proba(some)[:, 1], label_N[places], group_N[places])

    return part(train[NUM_BASE:]), part(np.flatnonzero(rows["split"] == "test"))


# Sides: each takes the rows for the rule and the test rows, and returns fates of the test rows ------------------------


def by_confidence(test: Part, num: int) -> np.ndarray:
    """Abstain on the scores nearest to 0.5."""
    fate_N = (test.score_N >= 0.5).astype(np.int64)
    fate_N[np.argsort(np.abs(test.score_N - 0.5), kind="stable")[:num]] = ABSTAINED
    return fate_N


def by_fan(fit: Part, test: Part, seed: int, **how: Any) -> np.ndarray:
    """Fates by our estimator."""
    columns = (lambda of: np.column_stack([of.score_N, of.X])) if how.get("mode") == "surrogate" else _score
    model = AbstainingFairClassifier("precomputed", random_state=seed, **how)
    said_N = model.fit(columns(fit), fit.label_N, sensitive_features=fit.group_N).predict(
        columns(test), sensitive_features=test.group_N
    )
    return np.where(said_N == model.abstain_, ABSTAINED, said_N).astype(np.int64)


def _score(of: Part) -> np.ndarray:
    return of.score_N[:, None]


class Scores(ClassifierMixin, BaseEstimator):
    """A classifier whose feature is its score, for peers that want one."""

    def fit(self, X: Any, y: Any) -> "Scores":
        """Know the classes."""
        self.classes_ = np.array([0, 1])
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Decide at 0.5."""
        return (np.asarray(X)[:, 0] >= 0.5).astype(int)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Both classes."""
        score_N = np.asarray(X)[:, 0]
        return np.stack([1 - score_N, score_N], axis=1)


def by_fairlearn(fit: Part, test: Part, seed: int, constraints: str) -> np.ndarray:
    """Thresholds by group, no abstention."""
    peer = ThresholdOptimizer(
        estimator=Scores().fit(None, None), constraints=constraints, prefit=True, predict_method="predict_proba"
    )
    peer.fit(_score(fit), fit.label_N, sensitive_features=fit.group_N)
    return np.asarray(peer.predict(_score(test), sensitive_features=test.group_N, random_state=seed), dtype=np.int64)


def by_aif360(fit: Part, test: Part, seed: int, metric: str) -> np.ndarray:
    """Decisions flipped by group near the threshold, no abstention; searched on `NUM_AIF360` rows."""
    from aif360.algorithms.postprocessing import RejectOptionClassification
    from aif360.datasets import BinaryLabelDataset

    def table(of: Part, places: np.ndarray, predicted: bool) -> Any:
        label_N = (of.score_N >= 0.5).astype(float) if predicted else of.label_N.astype(float)
        frame = pd.DataFrame({"group": of.group_N[places].astype(float), "label": label_N[places]})
        made = BinaryLabelDataset(df=frame, label_names=["label"], protected_attribute_names=["group"])
        if predicted:
            made.scores = of.score_N[places][:, None]
        return made

    low, high = int(_more_accepted(fit) == 0), int(_more_accepted(fit) == 1)
    some = np.random.default_rng(seed).permutation(len(fit.label_N))[:NUM_AIF360]
    peer = RejectOptionClassification(
        [{"group": low}], [{"group": high}], 0.01, 0.99, 25, 20, metric_name=metric, metric_ub=0.03, metric_lb=-0.03
    )
    peer.fit(table(fit, some, False), table(fit, some, True))
    found = peer.predict(table(test, np.arange(len(test.label_N)), True))
    return np.asarray(found.labels[:, 0], dtype=np.int64)


def _more_accepted(of: Part) -> int:
    accepted = [float((of.score_N[of.group_N == group] >= 0.5).mean()) for group in (0, 1)]
    return int(accepted[1] > accepted[0])


def by_mapie(fit: Part, test: Part, seed: int, share: float) -> np.ndarray:
    """Abstain between two thresholds, with least error on decided rows.

    At 90 % confidence that error is not above the base's, and at most `share` is abstained on. It knows no groups.
    """
    from mapie.risk_control import BinaryClassificationController, BinaryRisk, abstention_rate

    def decide(X: Any, low: float, high: float) -> np.ndarray:
        score_N = np.asarray(X)[:, 0]
        return np.where(score_N < low, 0.0, np.where(score_N >= high, 1.0, np.nan))

    # Its own "accuracy" counts a row that is abstained on as wrong.
    wrong = BinaryRisk(
        risk_occurrence=lambda y_true, y_pred: ~np.isnan(y_pred) & (y_pred != y_true),
        risk_condition=lambda y_true, y_pred: ~np.isnan(y_pred),
        higher_is_better=False,
    )
    pairs = np.array([(low, high) for low in np.linspace(0.1, 0.5, 9) for high in np.linspace(0.5, 0.9, 9)])
    error = float(((fit.score_N >= 0.5) != fit.label_N).mean())
    peer = BinaryClassificationController(
        decide, [wrong, abstention_rate], [error, share], list_predict_params=pairs, best_predict_param_choice=wrong
    )
    said_N = np.asarray(peer.calibrate(_score(fit), fit.label_N).predict(_score(test)), dtype=float)
    return np.where(np.isnan(said_N), ABSTAINED, np.nan_to_num(said_N)).astype(np.int64)


# What is measured ---------------------------------------------------------------------------------------------------


def judged(test: Part, fate_N: np.ndarray) -> dict[str, float]:
    """Change of accuracy and abstention of both groups, and gaps over whole groups and over decided rows."""
    base_N = (test.score_N >= 0.5).astype(np.int64)
    rates = rates_of(count(test.group_N, test.label_N, base_N, fate_N, 2))
    change_G = rates["base error"] - rates["error of decided"]
    return {
        "accuracy change 0": float(change_G[0]),
        "1": float(change_G[1]),
        "abstained 0": float(rates["abstained"][0]),
        "1 ": float(rates["abstained"][1]),
        "DP": float(np.ptp(rates["accepted"])),
        "EOp": float(np.ptp(rates["true positive"])),
        "DP of decided": float(np.ptp(rates["accepted of decided"])),
        "EOp of decided": float(np.ptp(rates["true positive of decided"])),
    }


def sides(fit: Part, test: Part, seed: int, caps: tuple[float, float]) -> dict[str, dict[str, float]]:
    """Every method on one draw; `caps` of abstention for the program on labels, and for the bins of the score."""
    by_label, by_bin = caps
    num = round(0.2 * len(test.label_N))
    parity, hits = "demographic_parity", "equal_opportunity"
    learnt = {"mode": "surrogate", "eps": 0.03, "max_abstain": by_label}
    half = {**learnt, "surrogate_cut": "half"}
    bins = {"mode": "scorebins", "eps": 0.03, "max_abstain": by_bin}
    calls: dict[str, Callable[[], np.ndarray]] = {
        "base": lambda: (test.score_N >= 0.5).astype(np.int64),
        "confidence, 20 % abstained": lambda: by_confidence(test, num),
        f"FAN, models, DP, cap {by_label:g}": lambda: by_fan(fit, test, seed, notion=parity, **learnt),
        f"FAN, models cut at 0.5, DP, cap {by_label:g}": lambda: by_fan(fit, test, seed, notion=parity, **half),
        f"FAN, models, EOp, cap {by_label:g}": lambda: by_fan(fit, test, seed, notion=hits, **learnt),
        f"FAN, score bins, DP, cap {by_bin:g}": lambda: by_fan(fit, test, seed, notion=parity, **bins),
        f"FAN, score bins, EOp, cap {by_bin:g}": lambda: by_fan(fit, test, seed, notion=hits, **bins),
        "fairlearn thresholds, DP": lambda: by_fairlearn(fit, test, seed, "demographic_parity"),
        "fairlearn thresholds, EOp": lambda: by_fairlearn(fit, test, seed, "true_positive_rate_parity"),
    }
    if find_spec("aif360"):
        calls["AIF360 reject option, DP"] = lambda: by_aif360(fit, test, seed, "Statistical parity difference")
        calls["AIF360 reject option, EOp"] = lambda: by_aif360(fit, test, seed, "Equal opportunity difference")
    if find_spec("mapie"):
        calls["MAPIE, accuracy and abstention"] = lambda: by_mapie(fit, test, seed, by_label)
    found = {}
    for name, call in calls.items():
        started = time.process_time()
        found[name] = judged(test, call()) | {"CPU s": time.process_time() - started}
    # Abstention by confidence on as many rows as the bins of the score abstain on.
    share_G = [found[f"FAN, score bins, DP, cap {by_bin:g}"][name] for name in ("abstained 0", "1 ")]
    size_G = np.bincount(test.group_N)
    same = judged(test, by_confidence(test, round(float(size_G @ share_G))))
    found["confidence, as many as score bins, DP"] = same
    return found


def table(title: str, rounds: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Print means with least and most of the gaps; return the means."""
    columns = list(rounds[0]["base"])
    print(f"\n{title}, {len(rounds)} seeds\n\n| | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    means = {}
    for name in rounds[0]:
        values = {c: [r[name][c] for r in rounds if c in r[name]] for c in columns}
        means[name] = {c: float(np.mean(v)) if v else np.nan for c, v in values.items()}
        cells = [f"{means[name][c]:.3f}" if v else "" for c, v in values.items()]
        for place, c in enumerate(columns):
            if c in ("DP", "EOp"):
                cells[place] += f" ({min(values[c]):.3f} to {max(values[c]):.3f})"
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    return means


def measure(data: Path, seeds: int) -> list[Claim]:
    """Print the tables, and return what they come to."""
    for package in ("aif360", "mapie"):
        if not find_spec(package):
            print(f"{package} is not installed: left out.")
    warnings.simplefilter("ignore")  # the peers' own
    claims = []
    settings: dict[str, tuple[Callable[[int], tuple[Part, Part]], tuple[float, float]]] = {
        "planted": (lambda seed: (planted(8000, seed), planted(8000, 1000 + seed)), (0.2, 0.3))
    }
    if (data / "adult" / "adult.parquet").is_file():
        settings["Adult"] = (lambda seed: adult(data, seed), (0.2, 0.1))
    else:
        print(f"{data}/adult/adult.parquet is missing: Adult is left out.")
    for name, (draw, caps) in settings.items():
        found = table(f"{name}, groups 0 and 1", [sides(*draw(seed), seed, caps) for seed in range(seeds)])
        bins = found[f"FAN, score bins, DP, cap {caps[1]:g}"]
        same = found["confidence, as many as score bins, DP"]
        harm = min(bins["accuracy change 0"], bins["1"])
        claims += [
            Claim(f"{name}: gap of score bins, DP, on new rows", bins["DP"], 0.05, "DP", "lower"),
            Claim(f"{name}: gap left by confidence abstention on as many rows", same["DP"], 0.1, "DP", "higher"),
            Claim(f"{name}: worst change of accuracy of a group, score bins, DP", 100 * harm, 0.0, "points", "higher"),
            Claim(
                f"{name}: worst abstention above its cap",
                max(bins["abstained 0"], bins["1 "]) - caps[1],
                0.02,
                "",
                "lower",
            ),
        ]
    return claims


def seconds(num_rows: int) -> dict[str, float]:
    """Seconds of process time of the main steps, on planted scores."""
    of = planted(num_rows, 0)
    model = AbstainingFairClassifier("precomputed", max_abstain=0.3, random_state=0)
    base_N = (of.score_N >= 0.5).astype(np.int64)
    row_GYB = count(of.group_N, of.label_N, base_N, np.zeros(num_rows, dtype=np.int64), 2).sum(axis=3)
    error_G = (row_GYB[:, 0, 1] + row_GYB[:, 1, 0]) / row_GYB.sum(axis=(1, 2))
    promises = Promises("demographic_parity", 0.03, np.full(2, 0.3), error_G)
    steps: dict[str, Callable[[], Any]] = {
        "program in whole rows, cells of group and label": lambda: solve(cells_by_label(row_GYB), promises, whole=True),
        "fit, score bins": lambda: model.fit(_score(of), of.label_N, sensitive_features=of.group_N),
        "predict": lambda: model.predict(_score(of), sensitive_features=of.group_N),
        "report": lambda: model.report(_score(of), of.label_N, sensitive_features=of.group_N),
    }
    found = {}
    for name, step in steps.items():
        started = time.process_time()
        step()
        found[name] = time.process_time() - started
    return found
