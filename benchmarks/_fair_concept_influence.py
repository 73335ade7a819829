"""Concept influence, for make bench NAME=fair: what is predicted against refits, planted label bias, and its rivals.

Real data are read from a folder: adult/adult.parquet (UCI, CC BY 4.0) and compas/compas_two_years.parquet.
"""

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from _measure import Claim
from fairlearn.metrics import demographic_parity_difference, equal_opportunity_difference
from fairlearn.reductions import DemographicParity, ExponentiatedGradient, TruePositiveRateParity
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from amends.fair import ConceptInfluence, group_transport, label_flip, removal
from amends.fair._concept_influence.concepts import counterparts

TRAIN, FLIPS = 6000, 150
GAPS = {"demographic_parity": demographic_parity_difference, "equal_opportunity": equal_opportunity_difference}
CONSTRAINTS = {"demographic_parity": DemographicParity, "equal_opportunity": TruePositiveRateParity}


class Part(NamedTuple):
    """Rows with features, labels and groups (0 and 1)."""

    x_ND: np.ndarray
    y_N: np.ndarray
    group_N: np.ndarray


def adult(folder: Path, seed: int) -> list[Part]:
    """6,000 rows to train on, 10,000 to validate, the rest to test with; group 1: women; sex is the last feature."""
    frame = pd.read_parquet(folder / "adult" / "adult.parquet")
    y_N, group_N = (frame.income == ">50K").to_numpy(int), (frame.sex == "Female").to_numpy(int)
    frame = frame.drop(columns=["income", "split", "fnlwgt", "sex"])
    words = frame.select_dtypes(exclude="number").columns.tolist()
    parts = _parts(frame, words, y_N, group_N, [TRAIN, 10_000], seed)
    return [part._replace(x_ND=np.column_stack([part.x_ND, part.group_N])) for part in parts]


def compas(folder: Path, seed: int) -> list[Part]:
    """2,500 rows to train on, 1,800 to validate, the rest to test with; group 1: African-American; race no feature."""
    frame = pd.read_parquet(folder / "compas" / "compas_two_years.parquet")
    kept = frame.days_b_screening_arrest.between(-30, 30) & (frame.is_recid != -1) & (frame.c_charge_degree != "O")
    frame = frame[kept & (frame.score_text != "N/A")]
    y_N, group_N = frame.two_year_recid.to_numpy(int), (frame.race == "African-American").to_numpy(int)
    frame = frame[["age_cat", "sex", "priors_count", "c_charge_degree"]]
    return _parts(frame, ["age_cat", "sex", "c_charge_degree"], y_N, group_N, [2500, 1800], seed)


def _parts(
    frame: pd.DataFrame, words: list[str], y_N: np.ndarray, group_N: np.ndarray, sizes: list[int], seed: int
) -> list[Part]:
    order = np.random.default_rng(seed).permutation(len(frame))
    cut = np.split(order, np.cumsum(sizes))
    encode = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore", sparse_output=False), words), remainder=StandardScaler()
    ).fit(frame.iloc[cut[0]])
    x_ND = encode.transform(frame)
    return [Part(x_ND[some], y_N[some], group_N[some]) for some in cut]


def model(num_rows: int, penalty: float = 1e-3) -> LogisticRegression:
    """Logistic regression with this penalty of the mean loss."""
    return LogisticRegression(C=1 / (penalty * num_rows), max_iter=5000, tol=1e-8)


def explained(train: Part, val: Part, metric: str, **how: Any) -> ConceptInfluence:
    """Fit, with validation rows and groups."""
    found = ConceptInfluence(model(len(train.y_N)), metric=metric, num_bootstrap=0, random_state=0, **how)
    return found.fit(
        train.x_ND,
        train.y_N,
        sensitive_features=train.group_N,
        X_val=val.x_ND,
        y_val=val.y_N,
        sensitive_features_val=val.group_N,
    )


def told(estimator: Any, part: Part) -> dict[str, float]:
    """Accuracy and gaps of decisions, by fairlearn."""
    decided_N = estimator.predict(part.x_ND)
    of = {name: float(gap(part.y_N, decided_N, sensitive_features=part.group_N)) for name, gap in GAPS.items()}
    return {"accuracy": float((decided_N == part.y_N).mean()), **of}


# What is predicted, against refits ---------------------------------------------------------------------------------


def one_by_one(data: Path, seed: int) -> dict[str, dict[str, float]]:
    """COMPAS, 150 rows of every concept changed one at a time: correlation and slope of predicted and actual change."""
    train, val, _ = compas(data, seed)
    rows = {}
    for metric in GAPS:
        found = explained(train, val, metric)
        found.explain({"label": label_flip(), "removal": removal(), "group, nearest": group_transport()})
        for concept in found.scores_:
            seen = found.verify(concept, FLIPS)
            slope = np.polyfit(seen.predicted, seen.actual, 1)[0]
            r = np.corrcoef(seen.predicted, seen.actual)[0, 1]
            rows[f"{metric}, {concept}"] = {"r": float(r), "slope": float(slope)}
    return rows


def batches(data: Path, seed: int) -> dict[str, dict[str, float]]:
    """COMPAS, many labels flipped at once: how far the prediction overshoots."""
    train, val, _ = compas(data, seed)
    found = explained(train, val, "demographic_parity")
    change_N = found.explain(["label"])["label"].to_numpy()
    rows = {}
    for num in (25, 100, 250):
        first = np.argsort(change_N, kind="stable")[:num]
        y_N = train.y_N.copy()
        y_N[first] = 1 - y_N[first]
        refit = model(len(y_N)).fit(train.x_ND, y_N)
        p_V = refit.predict_proba(val.x_ND)[:, 1]
        signed = p_V[val.group_N == 0].mean() - p_V[val.group_N == 1].mean()
        rows[f"{num} flips"] = {
            "gap before": found.disparity_,
            "predicted change": float(change_N[first].sum()),
            "actual change": float(abs(signed) - found.disparity_),
            "gap after, signed": float(signed),
        }
    return rows


# Planted label bias --------------------------------------------------------------------------------------------------


def planted(train: Part, rng: np.random.Generator, group: int, label: int) -> tuple[Part, np.ndarray]:
    """Flip 40 % of one group's rows of one label; which they are."""
    there = np.flatnonzero((train.group_N == group) & (train.y_N == label))
    flipped = rng.permutation(there)[: round(0.4 * len(there))]
    y_N = train.y_N.copy()
    y_N[flipped] = 1 - y_N[flipped]
    is_flipped_N = np.zeros(len(y_N), bool)
    is_flipped_N[flipped] = True
    return train._replace(y_N=y_N), is_flipped_N


def loss_of(estimator: Any, part: Part) -> np.ndarray:
    """Training loss of every row, (N,)."""
    p_NK = estimator.predict_proba(part.x_ND)
    return np.asarray(-np.log(p_NK[np.arange(len(part.y_N)), part.y_N]))


def flipped_back(train: Part, score_N: np.ndarray, num: int) -> Part:
    """Flip the labels of the rows with the lowest scores."""
    y_N, first = train.y_N.copy(), np.argsort(score_N, kind="stable")[:num]
    y_N[first] = 1 - y_N[first]
    return train._replace(y_N=y_N)


def mislabels(parts: list[Part], seed: int, metric: str, group: int, label: int) -> dict[str, dict[str, float]]:
    """Labels of one group are wrong: who finds them, and what flipping as many of the first ones does."""
    clean, val, test = parts
    train, wrong_N = planted(clean, np.random.default_rng(seed), group, label)
    found, num = explained(train, val, metric), int(wrong_N.sum())
    rng = np.random.default_rng(seed + 1)
    scores = {
        "concept influence": found.explain(["label"])["label"].to_numpy(),
        "first order, no curvature": explained(train, val, metric, solver="identity")
        .explain(["label"])["label"]
        .to_numpy(),
        "removal score": found.explain(["removal"])["removal"].to_numpy(),
        "training loss": -loss_of(found.estimator_, train),
        "random": rng.uniform(size=len(wrong_N)),
    }
    rows = {
        "clean labels": told(model(len(wrong_N)).fit(clean.x_ND, clean.y_N), test),
        "labels as planted": told(found.estimator_, test),
    }
    for name, score_N in scores.items():
        fixed = flipped_back(train, score_N, num)
        first = np.argsort(score_N, kind="stable")[:num]
        rows[f"flip back by {name}"] = told(
            model(num).set_params(C=found.estimator_.C).fit(fixed.x_ND, fixed.y_N), test
        )
        rows[f"flip back by {name}"] |= {
            "AUC": float(roc_auc_score(wrong_N, -score_N)),
            "precision@k": float(wrong_N[first].mean()),
        }
    found.explain(["label"])
    repaired = found.repair("label", max_rows=num / len(wrong_N), step=max(0.002, num / len(wrong_N) / 5))
    rows["repair, guarded"] = told(repaired.estimator, test)
    if len(repaired.edits):
        rows["repair, guarded"]["precision@k"] = float(wrong_N[repaired.edits.row].mean())
    return rows


# The trade-off -------------------------------------------------------------------------------------------------------


def trade_off(parts: list[Part], seed: int, metric: str) -> dict[str, dict[str, float]]:
    """Accuracy and gap on test rows of repairs of 5 % of the training rows, and of methods that change training."""
    train, val, test = parts
    found = explained(train, val, metric)
    found.explain(
        {
            "label": label_flip(),
            "removal": removal(),
            "group": group_transport(columns=[train.x_ND.shape[1] - 1], random_state=seed),
        }
    )
    rows = {"as given": told(found.estimator_, test)}
    for concept in found.scores_:
        rows[f"repair by {concept}"] = told(found.repair(concept, max_rows=0.05).estimator, test)
    far = found.repair("group", max_rows=0.3, step=0.02, accuracy_tol=0.02)
    rows["repair by group, 30 % of rows, accuracy -0.02"] = told(far.estimator, test)
    N, rng = len(train.y_N), np.random.default_rng(seed)
    C = found.estimator_.C
    random = flipped_back(train, rng.uniform(size=N), round(0.05 * N))
    rows["5 % of labels flipped at random"] = told(model(N).fit(random.x_ND, random.y_N), test)
    left = np.argsort(loss_of(found.estimator_, train))[: round(0.95 * N)]
    rows["5 % of highest loss left out"] = told(model(N).set_params(C=C).fit(train.x_ND[left], train.y_N[left]), test)
    counts = np.array([[((train.group_N == g) & (train.y_N == y)).sum() for y in (0, 1)] for g in (0, 1)])
    weight_GK = counts.sum(axis=1, keepdims=True) * counts.sum(axis=0) / (N * counts)  # Kamiran and Calders 2012
    reweighed = model(N).fit(train.x_ND, train.y_N, sample_weight=weight_GK[train.group_N, train.y_N])
    rows["reweighing"] = told(reweighed, test)
    reduced = ExponentiatedGradient(model(N), CONSTRAINTS[metric](), max_iter=20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reduced.fit(train.x_ND, train.y_N, sensitive_features=train.group_N)

    class Seeded(NamedTuple):
        def predict(self, x_ND: np.ndarray) -> np.ndarray:
            return np.asarray(reduced.predict(x_ND, random_state=seed))

    rows["ExponentiatedGradient (fairlearn)"] = told(Seeded(), test)
    return rows


# All of it -----------------------------------------------------------------------------------------------------------


def table(title: str, rounds: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Print means with least and most over the seeds; return the means."""
    columns = list(dict.fromkeys(column for one in rounds for side in one.values() for column in side))
    print(f"\n{title}, {len(rounds)} seeds\n\n| | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    means: dict[str, dict[str, float]] = {}
    for name in rounds[0]:
        values = {c: [r[name][c] for r in rounds if c in r[name]] for c in columns}
        values = {c: of for c, of in values.items() if of}
        means[name] = {c: float(np.mean(v)) for c, v in values.items()}
        cells = [
            f"{means[name][c]:.3f} ({min(values[c]):.3f} to {max(values[c]):.3f})" if c in values else ""
            for c in columns
        ]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    return means


def measure(data: Path, seeds: int) -> list[Claim]:
    """Run all, on the data sets that are in the folder."""
    claims: list[Claim] = []
    if (data / "compas").is_dir():
        found = table("COMPAS, single rows changed", [one_by_one(data, seed) for seed in range(seeds)])
        claims.append(
            Claim(
                "concept influence: least correlation with refits",
                min(r["r"] for r in found.values()),
                0.99,
                "r",
                "higher",
            )
        )
        off = max(abs(r["slope"] - 1) for r in found.values())
        claims.append(Claim("concept influence: largest error of the slope", off, 0.05, "", "lower"))
        table("COMPAS, many labels at once", [batches(data, seed) for seed in range(seeds)])
        rounds = [mislabels(compas(data, seed), seed, "demographic_parity", 1, 0) for seed in range(seeds)]
        table("COMPAS, demographic parity, 40 % of one group's negatives flipped (control)", rounds)
    else:
        print(f"{data}/compas is not there: its tables are left out")
    if not (data / "adult").is_dir():
        print(f"{data}/adult is not there: its tables are left out")
        return claims
    for metric in ("equal_opportunity", "demographic_parity"):
        rounds = [mislabels(adult(data, seed), seed, metric, 1, 1) for seed in range(seeds)]
        found = table(f"Adult, {metric}, 40 % of positive women flipped to negative", rounds)
        mended = found["flip back by concept influence"]
        claims.append(Claim(f"Adult, {metric}: AUC of planted rows", mended["AUC"], 0.85, "AUC", "higher"))
        apart = abs(mended[metric] - found["clean labels"][metric])
        claims.append(Claim(f"Adult, {metric}: gap to that of clean labels", apart, 0.06, "", "lower"))
        ahead = mended["AUC"] - found["flip back by training loss"]["AUC"]
        claims.append(Claim(f"Adult, {metric}: AUC above training loss", ahead, 0.0, "AUC", "higher"))
    for metric in GAPS:
        rounds = [trade_off(adult(data, seed), seed, metric) for seed in range(seeds)]
        found = table(f"Adult, {metric}, the trade-off", rounds)
        lost = found["as given"]["accuracy"] - found["repair by label"]["accuracy"]
        claims.append(Claim(f"Adult, {metric}: accuracy lost by repair of labels", lost, 0.005, "", "lower"))
        for rival in ("5 % of labels flipped at random", "5 % of highest loss left out", "reweighing"):
            ahead = found[rival][metric] - found["repair by label"][metric]
            claims.append(Claim(f"Adult, {metric}: gap by {rival} above repair of labels", ahead, 0.0, "", "higher"))
        reduced = found["ExponentiatedGradient (fairlearn)"][metric] - found["repair by label"][metric]
        claims.append(Claim(f"Adult, {metric}: gap by fairlearn's above repair of labels", reduced, 0.0, "", "higher"))
    return claims


def seconds(num_rows: int) -> dict[str, float]:
    """Process time of the main steps on planted data: 20 columns, two groups, 10,000 validation rows."""
    rng = np.random.default_rng(0)
    parts = []
    for size in (num_rows, 10_000):
        group_N = rng.integers(0, 2, size)
        x_ND = rng.normal(size=(size, 20)) + 0.3 * group_N[:, None]
        parts.append(Part(x_ND, (x_ND[:, :3].sum(axis=1) + rng.logistic(size=size) > 1).astype(int), group_N))
    train, val = parts
    found = ConceptInfluence(LogisticRegression(max_iter=1000), num_bootstrap=50, random_state=0)

    def fit() -> None:
        found.fit(
            train.x_ND,
            train.y_N,
            sensitive_features=train.group_N,
            X_val=val.x_ND,
            y_val=val.y_N,
            sensitive_features_val=val.group_N,
        )

    nearest = group_transport(random_state=0)
    steps: dict[str, Callable[[], Any]] = {
        "fit": fit,
        "score labels": lambda: found.explain(["label"]),
        "score removal": lambda: found.explain(["removal"]),
        "nearest rows of the other group": lambda: counterparts(nearest, found.rows_),
        "score groups": lambda: found.explain({"group": nearest}),
        "one batch of a repair": lambda: found.repair("group", max_rows=0.01, step=0.01),
    }
    took = {}
    for name, step in steps.items():
        started = time.process_time()
        step()
        took[name] = time.process_time() - started
    return took
