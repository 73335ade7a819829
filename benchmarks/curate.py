"""Large pools: exact neighbours, memory, label errors beside cleanlab, parts on Ray: make bench NAME=curate.

Planted: embeddings in clusters, each with a true level of six, some rows that stray, and ratings of which a third is
wrong. Everything of DS2 runs on all rows; scikit-learn's exact search on a share of the rows to ask for, which is said
and scaled up. For a quick run: ARGS="--rows 20000". One thread counts best: OMP_NUM_THREADS=1.
"""

import argparse
import time
import warnings
from collections import defaultdict
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from _measure import claim, in_turn, once, peak_bytes
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.neighbors import NearestNeighbors

from amends.curate import ScoreCurator, adc_clean, entp
from amends.curate._labels.detectors import DETECTORS
from amends.curate._pools.scale import Here
from amends.curate._token_cleaning.masks import Tokens, masks_in_parts, offsets_of, token_mask
from amends.maths.neighbors import search, unit

FEATURES, LEVELS, CLUSTER_ROWS, STRAY = 384, 6, 100, 0.1
NOISE = np.array([0.2, 0.3, 0.35, 0.35, 0.3, 0.2])
"""Share of each level that is rated wrong, by one more often than by two."""
FEW_ROWS = 2 * 16_384 + 1000  # three tiles
LISTED = 27  # neighbours asked for in the comparison, as ScoreCurator lists


class World(NamedTuple):
    """Planted rows, with what their ratings should be."""

    points_ND: np.ndarray
    truth_N: np.ndarray
    ratings_N: np.ndarray


def planted(num_rows: int, seed: int = 0) -> World:
    """Plant clusters whose centres lean towards their level's direction, so that a linear model has a chance too."""
    rng = np.random.default_rng(seed)
    num_clusters = max(LEVELS, num_rows // CLUSTER_ROWS)
    level_of = rng.integers(0, LEVELS, num_clusters)
    centres = rng.normal(size=(num_clusters, FEATURES)) + 3 * rng.normal(size=(LEVELS, FEATURES))[level_of] / 4
    cluster_N = rng.integers(0, num_clusters, num_rows)
    points_ND = np.empty((num_rows, FEATURES), dtype=np.float32)
    for start in range(0, num_rows, 10_000):
        part = slice(start, start + 10_000)
        points_ND[part] = centres[cluster_N[part]] + rng.normal(size=(len(cluster_N[part]), FEATURES))
    strays_N = rng.random(num_rows) < STRAY
    truth_N = np.where(strays_N, rng.integers(0, LEVELS, num_rows), level_of[cluster_N])
    gap = np.abs(np.arange(LEVELS)[:, None] - np.arange(LEVELS))
    weight = np.where(gap == 0, 0, 0.5**gap)
    matrix = (1 - NOISE)[:, None] * np.eye(LEVELS) + NOISE[:, None] * weight / weight.sum(axis=1, keepdims=True)
    ratings_N = (matrix[truth_N].cumsum(axis=1) < rng.random(num_rows)[:, None]).sum(axis=1)
    return World(points_ND, truth_N, ratings_N)


class Timed(Here):
    """Workers in this process that note what each step takes."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, float] = defaultdict(float)
        self.cpu_s: dict[str, float] = defaultdict(float)

    def each(self, step: Any, *by_part: Any, shared: Any = ()) -> list[Any]:
        """Do the step and note its time."""
        wall, cpu = time.perf_counter(), time.process_time()
        found = super().each(step, *by_part, shared=shared)
        self.seconds[step.__name__] += time.perf_counter() - wall
        self.cpu_s[step.__name__] += time.process_time() - cpu
        return found


def f1(flag_N: np.ndarray, wrong_N: np.ndarray) -> float:
    """Harmonic mean of precision and recall."""
    return float(2 * (flag_N & wrong_N).sum() / (flag_N.sum() + wrong_N.sum()))


def beside_scikit_learn(world: World, asked: int, rounds: int) -> None:
    """Exact neighbours of some rows among all, both sides in turn, and the matrix product that limits them."""
    points_ND = unit(world.points_ND)
    num, queries_QD = len(points_ND), points_ND[:asked]
    one = torch.randn(2048, 2048)
    brute = {
        f"scikit-learn, {metric}": NearestNeighbors(n_neighbors=LISTED + 1, metric=metric, algorithm="brute").fit(
            points_ND
        )
        for metric in ("cosine", "euclidean")
    }
    same = (
        search(points_ND, queries_QD[:500], LISTED, 0).index_Qk
        == brute["scikit-learn, cosine"].kneighbors(queries_QD[:500], return_distance=False)[:, 1:]
    )
    sides = {"amends": lambda: search(points_ND, queries_QD, LISTED, 0)}
    sides |= {name: lambda model=model: model.kneighbors(queries_QD) for name, model in brute.items()}
    product = min((once(lambda: one @ one) for _ in range(12)), key=lambda cost: cost.cpu_s)
    costs = {"matrix product": product, **in_turn(sides, rounds)}
    flop = {name: 2.0 * len(queries_QD) * num * FEATURES for name in sides} | {"matrix product": 2.0 * 2048**3}
    print(f"\n## {LISTED} nearest of {len(queries_QD)} rows among {num}, {torch.get_num_threads()} threads")
    print(f"the same neighbours as scikit-learn's: {same.mean():.6f}\n")
    print("| | CPU s | for all rows, minutes | GFLOP/s of a core | share of the limit |\n|---|---|---|---|---|")
    rate = {name: flop[name] / cost.cpu_s / 1e9 for name, cost in costs.items()}
    for name, cost in costs.items():
        whole = "" if name == "matrix product" else f"{cost.cpu_s * num / len(queries_QD) / 60:.1f}"
        print(f"| {name} | {cost.cpu_s:.2f} | {whole} | {rate[name]:.1f} | {rate[name] / rate['matrix product']:.2f} |")
    share, times = rate["amends"] / rate["matrix product"], rate["amends"] / max(rate[name] for name in brute)
    claim("exact neighbours: share of the matrix product rate", share, 0.8, "", "higher")
    claim("exact neighbours: times faster than scikit-learn's faster brute force", times, 2, "x", "higher")


def ds2(world: World) -> np.ndarray:
    """Mend all ratings; give which are called wrong."""
    num, workers, made = len(world.ratings_N), Timed(), ScoreCurator()
    cost = once(lambda: made.fit(world.points_ND, world.ratings_N, workers=workers))
    peak, cpu = peak_bytes(), workers.cpu_s
    assert made.refusal_ is None, made.refusal_
    wrong_N, flag_N = world.ratings_N != world.truth_N, made.error_prob_ > 0.5
    searched = 2.0 * num**2 * FEATURES / cpu["_searched"] / 1e9
    print(f"\n## DS2 on {num} rows x {FEATURES}\n\n| step | wall s | CPU s |\n|---|---|---|")
    for name, seconds in sorted(workers.seconds.items(), key=lambda item: -item[1]):
        print(f"| {name.strip('_')} | {seconds:.1f} | {cpu[name]:.1f} |")
    print(f"| everything | {cost.wall_s:.1f} | {cost.cpu_s:.1f} |\n\nsearch: {searched:.1f} GFLOP/s of a core")
    print(f"agreement above chance {made.agreement_.above_chance:.2f}; warnings: {made.warnings_}")
    after = (made.curated_ != world.truth_N).mean()
    print(f"F1 of wrong ratings {f1(flag_N, wrong_N):.3f}; wrong {wrong_N.mean():.3f} -> {after:.3f}")
    claim(f"DS2 on {num} rows: peak memory of the process", peak / 2**30, 4.0, "GiB", "lower")
    claim(f"DS2 on {num} rows: minutes", cost.wall_s / 60, 30.0, "min", "lower")
    claim(f"DS2 on {num} rows: wrong ratings left, of those before", after / wrong_N.mean(), 0.6, "", "lower")
    return flag_N


def beside_cleanlab(world: World, most: int, flag_N: np.ndarray) -> None:
    """Label errors of the same rows, by all detectors on some, and by DS2 and cleanlab on all."""
    some = slice(0, most)
    wrong_N, points, ratings = world.ratings_N != world.truth_N, world.points_ND, world.ratings_N
    print(f"\n## Label errors of the first {len(ratings[some])} rows\n\n| | F1 | CPU s |\n|---|---|---|")
    found = {}
    for name in ("simifeat-vote", "simifeat-rank", "knn", "confident", "cleanlab"):
        if name == "cleanlab" and not find_spec("cleanlab"):
            print("cleanlab is not installed")
            continue
        detector = DETECTORS[name](**({} if name == "knn" else {"random_state": 0}))
        cost = once(lambda detector=detector: detector.fit(points[some], ratings[some]))
        found[name] = f1(detector.flag_, wrong_N[some])
        print(f"| {name} | {found[name]:.3f} | {cost.cpu_s:.1f} |", flush=True)
    if "cleanlab" not in found:
        return
    ahead = max(of for name, of in found.items() if name != "cleanlab") - found["cleanlab"]
    claim("label errors: F1 of the best of ours above cleanlab", ahead, 0.0, "F1", "higher")
    if most < len(ratings):
        from cleanlab.filter import find_label_issues

        peer: list[np.ndarray] = []

        def all_rows() -> None:
            model = LogisticRegression(max_iter=200)
            p = cross_val_predict(model, points, ratings, cv=5, method="predict_proba")
            peer.append(find_label_issues(ratings, p, n_jobs=1))

        cost = once(all_rows)
        print(f"\nall {len(ratings)} rows: DS2 {f1(flag_N, wrong_N):.3f}, cleanlab {f1(peer[0], wrong_N):.3f}")
        print(f"(logistic regression in 5 folds, {cost.cpu_s:.0f} CPU s, peak {peak_bytes() / 2**30:.1f} GiB)")
        ahead = f1(flag_N, wrong_N) - f1(peer[0], wrong_N)
        claim(f"label errors of {len(ratings)} rows: F1 of DS2 above cleanlab", ahead, 0.0, "F1", "higher")


def tokens(num: int) -> None:
    """Find the global cut of Token Cleaning in one part and in eight."""
    rng = np.random.default_rng(0)
    scores, offsets = rng.normal(size=num).astype(np.float32), offsets_of([300] * (num // 300))
    scores = scores[: offsets[-1]]
    whole: list[np.ndarray] = []
    cost = once(lambda: whole.append(token_mask(scores, offsets)))
    bounds = np.linspace(0, len(offsets) - 1, 9).astype(int)
    parts = [Tokens(scores[offsets[a] : offsets[b]], offsets[a : b + 1] - offsets[a]) for a, b in pairwise(bounds)]
    same = (np.concatenate(masks_in_parts(Here(8), parts)) == whole[0]).all()
    print(f"\n## Token Cleaning: the cut of {len(scores)} scores\n\n{cost.cpu_s:.1f} CPU s in one part")
    claim("token masks of 8 parts that differ from those of one", float(not same), 0.0, "", "lower")


def shown(workers: Timed, cost: Any) -> None:
    """Print what the steps took, the longest first."""
    print("| step | wall s | CPU s |\n|---|---|---|")
    for name, seconds in sorted(workers.seconds.items(), key=lambda item: -item[1])[:6]:
        print(f"| {name.strip('_')} | {seconds:.1f} | {workers.cpu_s[name]:.1f} |")
    print(f"| everything | {cost.wall_s:.1f} | {cost.cpu_s:.1f} |", flush=True)


def texts_of(world: World) -> list[dict[str, Any]]:
    """Rows with an instruction and a response of words of their own, beside words that many share."""
    rng = np.random.default_rng(1)
    words_N4 = rng.integers(0, 20_000, (len(world.ratings_N), 4))
    return [
        {
            "instruction": f"Explain how word{a} and word{b} go together, case {i}.",
            "output": f"Word{a} comes with word{c} in {i} of the cases, and word{d} follows.",
            "curated": int(rating),
        }
        for i, ((a, b, c, d), rating) in enumerate(zip(words_N4.tolist(), world.ratings_N, strict=True))
    ]


def mix(world: World, most: int) -> None:
    """Purge rows and choose the pairs of ENTP, and compare four parts with one on fewer rows."""
    some, low = World(*(of[:most] for of in world)), entp.Purging(low=3, high=4)
    rows, found = texts_of(some), []

    def planned(num: int, workers: Here) -> Any:
        how = {"embedding": some.points_ND[:num], "purging": low, "dry_run": True}
        return entp.run(rows[:num], **how, workers=workers)

    workers = Timed()
    cost = once(lambda: found.append(planned(len(rows), workers)))
    peak, told = peak_bytes(), found[0].summary
    print(
        f"\n## ENTP: {len(rows)} rows x {FEATURES}, {told['low']} with a low score, {told['groups']['pairs']} pairs\n"
    )
    shown(workers, cost)
    claim(f"ENTP on {len(rows)} rows, pairs chosen: peak memory", peak / 2**30, 4.0, "GiB", "lower")
    claim(f"ENTP on {len(rows)} rows, pairs chosen: minutes", cost.cpu_s / 60, 10.0, "CPU min", "lower")
    one, four = (planned(FEW_ROWS, Here(num)) for num in (1, 4))
    differ = one.pairs != four.pairs or one.outcome.verdicts != four.outcome.verdicts
    claim("ENTP: runs in 4 parts that differ from those in one", float(differ), 0.0, "", "lower")


def clean(world: World, most: int) -> None:
    """Clean rows as ADC does, and compare four parts with one on fewer rows."""
    some, found = World(*(of[:most] for of in world)), []
    rows = [
        {"text": f"text {i}", "label": f"class {rating}", "vector": point}
        for i, (rating, point) in enumerate(zip(some.ratings_N.tolist(), some.points_ND, strict=True))
    ]

    def cleaned(num: int, workers: Here) -> Any:
        return adc_clean.run(rows[:num], embedding="vector", workers=workers)

    workers = Timed()
    cost = once(lambda: found.append(cleaned(len(rows), workers)))
    peak, counts = peak_bytes(), found[0].outcome.counts()
    kept, number = found[0].outcome.of("kept"), {row["text"]: i for i, row in enumerate(rows)}
    wrong = np.mean([row["label"] != f"class {some.truth_N[number[row['text']]]}" for row in kept])
    before = (some.ratings_N != some.truth_N).mean()
    print(f"\n## ADC: {len(rows)} rows x {FEATURES}, {counts}, wrong labels {before:.3f} to {wrong:.3f}\n")
    shown(workers, cost)
    claim(f"ADC on {len(rows)} rows: peak memory", peak / 2**30, 4.0, "GiB", "lower")
    claim(f"ADC on {len(rows)} rows: minutes", cost.cpu_s / 60, 30.0, "CPU min", "lower")
    claim(f"ADC on {len(rows)} rows: wrong labels left, of those before", wrong / before, 0.5, "", "lower")
    one, four = (cleaned(FEW_ROWS, Here(num)) for num in (1, 4))
    differ = one.outcome.verdicts != four.outcome.verdicts or one.outcome.added != four.outcome.added
    claim("ADC: runs in 4 parts that differ from those in one", float(differ), 0.0, "", "lower")


def on_ray(world: World) -> None:
    """Mend the same rows on Ray with one worker and with two."""
    if not len(world.ratings_N) or not find_spec("ray"):
        print("\n## Ray: left out" + ("" if find_spec("ray") else ", ray[data] is not installed"))
        return
    import os

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import pyarrow as pa
    import ray
    import ray.data

    from amends.curate import ds2_on_ray

    num = len(world.ratings_N)
    flat = pa.array(world.points_ND.ravel())
    table = pa.table({"v": pa.FixedSizeListArray.from_arrays(flat, FEATURES), "rating": world.ratings_N})
    names, found, seconds = ("level", "error_prob", "suggested", "confidence", "curated", "long_tail"), {}, {}
    for num_cpus in (1, 2):
        store = max(200_000_000, 4 * world.points_ND.nbytes)
        ray.init(num_cpus=num_cpus, object_store_memory=store, include_dashboard=False, log_to_driver=False)
        try:
            dataset = ray.data.from_arrow([table.slice(start, 5000) for start in range(0, num, 5000)])
            started = time.perf_counter()
            done = ds2_on_ray(dataset, ScoreCurator(), rating="rating", embedding="v")
            out = pa.concat_tables(ray.get(done.to_arrow_refs()))
            seconds[num_cpus] = time.perf_counter() - started
            found[num_cpus] = {name: out[name].to_numpy() for name in (*names, "reason")}
        finally:
            ray.shutdown()
    here = ScoreCurator().fit(world.points_ND, world.ratings_N)
    differ = sum(int((found[1][name] != found[2][name]).sum()) for name in found[1])
    from_here = sum(int((found[1][name] != getattr(here, f"{name}_")).sum()) for name in names[1:-1])
    print(
        f"\n## Ray Data, {num} rows\n\n1 worker {seconds[1]:.1f} s, 2 workers {seconds[2]:.1f} s (starting Ray apart)"
    )
    claim("Ray: values that differ between 1 and 2 workers", differ, 0.0, "values", "lower")
    claim("Ray: values that differ from those of one process", from_here, 0.0, "values", "lower")


def main() -> None:
    """Run all parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--asked", type=int, default=1024, help="Rows that scikit-learn searches for.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--label-rows", type=int, default=20_000, help="Rows that every detector judges.")
    parser.add_argument("--ray-rows", type=int, default=40_000)
    parser.add_argument("--tokens", type=int, default=15_000_000)
    parser.add_argument("--text-rows", type=int, default=100_000, help="Rows that ENTP pairs and ADC cleans.")
    parser.add_argument("--only", choices=["mix", "clean"], help="Do this part alone.")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    world = planted(options.rows)
    print(f"# {options.rows} rows x {FEATURES}, {(world.ratings_N != world.truth_N).mean():.3f} of the ratings wrong")
    if options.only:
        {"mix": mix, "clean": clean}[options.only](world, options.text_rows)
        return
    flag_N = ds2(world)
    beside_scikit_learn(world, options.asked, options.rounds)
    beside_cleanlab(world, options.label_rows, flag_N)
    on_ray(World(*(of[: options.ray_rows] for of in world)))
    tokens(options.tokens)
    mix(world, options.text_rows)
    clean(world, options.text_rows)


if __name__ == "__main__":
    main()
