"""Curation on Ray: the rows, columns and reasons of one process, whatever the number of parts."""

import importlib.util

import numpy as np
import pyarrow as pa
import pytest

from amends.curate import (
    ConfidentLearning,
    DeepKNN,
    ScoreCurator,
    ds2_on_ray,
    label_errors,
    label_errors_on_ray,
    token_mask_on_ray,
)
from amends.curate._token_cleaning.masks import offsets_of, token_mask
from amends.io.errors import InputError

from .blocks import table_of
from .planted import planted

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray: amends[ray]"),
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]
NUM = 16_384 + 2_000  # two parts
FEW = {"rounds": 3, "draws": 7, "bootstrap": 2}


@pytest.fixture(scope="module")
def rows():
    """Planted ratings; some rows cannot be judged."""
    world = planted(0.05, num_rows=NUM, clusters=120)
    vectors = world.points.tolist()
    vectors[5], vectors[6], vectors[7], vectors[8] = None, [1.0], [0.0] * 32, [float("nan")] * 32
    ratings = world.ratings.tolist()
    ratings[9] = None
    return pa.table(
        {
            "id": np.arange(NUM),
            "embedding": pa.array(vectors, pa.list_(pa.float32())),
            "score": ratings,
            "prompt": [None if i % 7 == 0 else f"prompt {i // 2}" for i in range(NUM)],
        }
    )


@pytest.fixture(scope="module")
def dataset(ray, rows):
    return ray.data.from_arrow([rows.slice(0, 5), rows.slice(5, 9000), rows.slice(9005)])


def test_ratings_mended_on_ray_are_those_mended_in_one_process(rows, dataset):
    how = {"rating": "score", "embedding": "embedding", "group": "prompt", "budget": 4000}
    one, two = (table_of(ds2_on_ray(dataset, ScoreCurator(**FEW), num_parts=num, **how)) for num in (1, 2))
    assert one.drop_columns("embedding").equals(two.drop_columns("embedding"))  # a NaN is not equal to itself
    assert one["id"].to_pylist() == list(range(NUM))
    good = [i for i in range(NUM) if i not in (5, 6, 7, 8, 9)]
    curator = ScoreCurator(**FEW)
    groups = np.array([-1 if i % 7 == 0 else i // 2 for i in good])
    vectors = np.array([rows["embedding"][i].as_py() for i in good], dtype=np.float32)
    curator.fit(vectors, [rows["score"][i].as_py() for i in good], groups)
    for name in ("error_prob", "suggested", "confidence", "curated"):
        mine = [one[name][i].as_py() for i in good]
        assert mine == getattr(curator, f"{name}_").tolist()
    fates = one["fate"].to_pylist()
    assert [i for i in range(NUM) if fates[i] == "refused"] == [5, 6, 7, 8, 9]
    assert one["reason"].to_pylist()[5:10] == [
        "the embedding is no list of numbers",
        "the embedding is no list of numbers",
        *["the embedding has no direction (NaN, infinite or zero)"] * 2,
        "no rating",
    ]
    assert fates.count("kept") == 4000
    curated = np.array([one["curated"][i].as_py() for i in good])
    kept = np.array([fates[i] == "kept" for i in good])
    assert curated[kept].min() >= curated[~kept].max()
    changed = (curated != np.array([rows["score"][i].as_py() for i in good])).sum()
    assert changed > 1000
    assert sum("->" in (reason or "") for reason in one["reason"].to_pylist()) == changed


@pytest.mark.parametrize("made", [DeepKNN(), ConfidentLearning("precomputed")])
def test_labels_judged_on_ray_are_those_judged_in_one_process(ray, rows, made):
    some = rows.slice(20, 600)
    labels = [f"class {value}" for value in some["score"].to_pylist()]
    labels[3] = None
    vectors = np.array(some["embedding"].to_pylist(), dtype=np.float32)
    if isinstance(made, ConfidentLearning):
        vectors = np.exp(20 * vectors[:, :6]) / np.exp(20 * vectors[:, :6]).sum(axis=1, keepdims=True)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(float).ravel()), vectors.shape[1])
    table = pa.table({"vector": vectors, "label": labels})
    dataset = ray.data.from_arrow([table.slice(0, 100), table.slice(100)])
    found = table_of(label_errors_on_ray(dataset, made, label="label", embedding="vector", flagged="relabel"))
    method = "knn" if isinstance(made, DeepKNN) else "confident"
    column = {"embedding" if method == "knn" else "proba": "vector"}
    outcome = label_errors.run(table.to_pylist(), label="label", method=method, flagged="relabel", **column).outcome
    for name, values in outcome.added.items():
        assert found[name].to_pylist() == list(values), name
    assert found["fate"].to_pylist() == [verdict.fate for verdict in outcome.verdicts]
    assert found["reason"].to_pylist() == [verdict.reason for verdict in outcome.verdicts]
    assert found["label"].to_pylist() == [row.data["label"] for row in outcome.rows]
    assert found["label"].to_pylist() != labels


def test_probabilities_of_labels_whose_order_cannot_be_told_are_refused_on_ray_too(ray):
    table = pa.table({"p": [[0.8, 0.2], [0.3, 0.7], [0.6, 0.4]], "label": ["10", "9", "9"]})
    how = {"label": "label", "embedding": "p"}
    with pytest.raises(InputError, match=r'texts they are 10, 9, as numbers 9, 10.* Make "label" a column of numbers'):
        label_errors_on_ray(ray.data.from_arrow(table), ConfidentLearning("precomputed"), **how)


@pytest.mark.parametrize(
    "how", [{}, {"level": "sample"}, {"source": "source"}, {"level": "threshold", "threshold": 0.5}]
)
def test_tokens_chosen_on_ray_are_those_chosen_in_one_process(ray, how):
    rng = np.random.default_rng(0)
    lists = [rng.normal(size=num).round(1).tolist() for num in rng.integers(1, 9, 300)]
    lists[7], lists[8] = [], [None, None]
    sources = [f"source {i % 3}" for i in range(300)]
    table = pa.table({"scores": pa.array(lists, pa.list_(pa.float32())), "source": sources})
    dataset = ray.data.from_arrow([table.slice(0, 20), table.slice(20, 0), table.slice(20)])
    found = table_of(token_mask_on_ray(dataset, scores="scores", **how))
    there = [of if of != [None, None] else [] for of in lists]
    offsets = offsets_of([len(of) for of in there])
    ends = np.zeros(offsets[-1], dtype=bool)
    ends[[end - 1 for of, end in zip(there, offsets[1:], strict=True) if of]] = True
    settings = {name: value for name, value in how.items() if name != "source"}
    settings |= {"sources": sources} if "source" in how else {}
    mask = token_mask(
        np.array([score for of in there for score in of], dtype=np.float32), offsets, always_keep=ends, **settings
    )
    assert [kept for of in found["kept"].to_pylist() for kept in of] == mask.tolist()
    assert found["fate"].to_pylist()[7:9] == ["refused", "refused"]
    assert found["kept_tokens"].to_pylist() == [sum(of) for of in found["kept"].to_pylist()]
    dropped = [not any(of) and bool(of) for of in found["kept"].to_pylist()]
    assert [fate == "dropped" for fate in found["fate"].to_pylist()] == dropped


def test_columns_that_are_missing_or_there_already_are_named(ray):
    dataset = ray.data.from_arrow(pa.table({"vector": [[1.0, 2.0]] * 4, "score": [1, 2, 1, 2], "reason": ["mine"] * 4}))
    with pytest.raises(InputError, match='no column "rating"'):
        ds2_on_ray(dataset, ScoreCurator(), rating="rating", embedding="vector")
    with pytest.raises(InputError, match='the column "reason" is there already'):
        ds2_on_ray(dataset, ScoreCurator(), rating="score", embedding="vector")
