"""What goes into purge and mix: what is unusable, what is low, and what cannot be right."""

import numpy as np
import pytest

from amends.curate import entp
from amends.curate._entp.purge import purge
from amends.io.errors import InputError, NoResult
from amends.io.tables import rows_of

from .writers import entp_run, planted, rated_right


@pytest.fixture(scope="module")
def pool():
    return planted(20, np.random.default_rng(0))


def test_unusable_rows_are_dropped_and_those_without_a_score_refused_each_with_its_reason():
    base = {"instruction": "Name a colour.", "output": "Red is one.", "score": 1}
    rows = [
        base,
        base,
        base | {"output": " "},
        base | {"output": "Red"},
        base | {"instruction": ""},
        base | {"score": None},
        base | {"score": float("nan"), "output": "Another one."},
        base | {"score": "2", "output": "Pink is one."},
        base | {"score": 3, "output": "Blue is one."},
        base | {"score": 2.5, "output": "Green is one."},
    ]
    found = purge(rows_of(rows), entp.Purging(raw="score"))
    assert [(v.fate, v.reason) for v in found.verdicts] == [
        ("dropped", "low score 1"),
        ("dropped", "unusable: same prompt and answer as data[0]"),
        ("dropped", 'unusable: column "output" is empty'),
        ("dropped", "unusable: the response is shorter than 2 words"),
        ("dropped", 'unusable: column "instruction" is empty'),
        ("refused", 'no score in "score"'),
        ("refused", 'no score in "score"'),
        ("dropped", "low score 2"),
        ("kept", None),
        ("dropped", "score 2.5 is neither low nor high"),
    ]
    assert [sample.where for sample in found.low] == ["data[0]", "data[7]"]


def test_raw_scores_are_warned_of(pool):
    rows = [{("rating" if name == "curated" else name): value for name, value in row.items()} for row in pool]
    assert any("raw scores" in w for w in entp_run(rows, purging=entp.Purging(raw="rating")).record["warnings"])
    assert not entp_run(pool).record["warnings"]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"purging": entp.Purging(curated="nope")}, 'column "nope" is missing'),
        ({"purging": entp.Purging(curated="a", raw="b")}, "--curated and --raw"),
        ({"purging": entp.Purging(low=3)}, "--low 3, --high 3"),
        ({"purging": entp.Purging(curated="output")}, "which is no score"),
        ({"embedding": "nope"}, "no row has an embedding"),
        ({"embedding": None}, "give one of --embedder"),
        ({"embedding": np.ones((2, 3))}, r"embeddings \(2, 3\): expected a vector for each"),
        ({"embedder": "any"}, "give one of --embedder"),
    ],
)
def test_what_cannot_be_right_is_named(pool, options, match):
    with pytest.raises(InputError, match=match):
        entp_run(pool, **options)


def test_files_may_use_the_same_ids_for_other_rows():
    rows = rated_right(6)
    ids = [str(i % 6) for i in range(len(rows))]
    found = entp_run([row | {"id": name} for row, name in zip(rows, ids, strict=True)], dry_run=True)
    own = entp_run(rows, dry_run=True)
    assert [v.fate for v in found.outcome.verdicts] == [v.fate for v in own.outcome.verdicts]
    assert not any("used before" in str(v.reason) for v in found.outcome.verdicts)
    assert len({pair["id"] for pair in found.pairs}) == len(found.pairs) == len(own.pairs)


def test_a_pair_that_is_new_is_not_told_what_was_said_of_another():
    from amends.curate._entp.drafts import drafts_of
    from amends.curate._entp.plan import Plan
    from amends.curate._entp.purge import Sample
    from amends.curate._entp.terms import Weights
    from amends.curate._pools.scale import Here

    named = enumerate(["a1", "a2", "b1", "b2", "c1", "c2"])
    samples = [Sample(i, name, f"p:{i}", f"instruction {name}", f"response {name} word", None) for i, name in named]
    points = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1], [1, 0.05, 0], [0.05, 1, 0]], dtype=np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    weights = Weights([sample.instruction for sample in samples])
    drafts = drafts_of([samples[0:2], samples[2:4], samples[4:6]], weights)
    for draft, name in zip(drafts, "abc", strict=True):
        draft.status, draft.reason, draft.domain = "incompatible", f"the {name} samples contradict", {"domain": name}
    before = {frozenset(draft.samples): (draft.reason, draft.domain) for draft in drafts}
    plan = Plan(list(range(6)), points, None, drafts, weights, 1, set(), Here())
    plan.pair_again(drafts)
    left = [draft for draft in drafts if draft.status == "incompatible"]
    assert left
    for draft in left:
        reason, domain = before.get(frozenset(draft.samples), (None, None))
        assert draft.domain == domain
        assert draft.reason == "no other partner was left" + (f" ({reason})" if reason else "")


def test_two_low_rows_are_the_least(pool):
    with pytest.raises(NoResult, match="two are needed"):
        entp_run([row for row in pool if row["curated"] == 5] + pool[:1])


def test_a_low_row_without_an_embedding_is_refused():
    rows = [row | {"embedding": [np.nan] * 16} if row["id"] == "0-0" else row for row in rated_right(4)]
    (refused,) = entp_run(rows).outcome.of("refused")
    assert refused["id"] == "0-0" and "no embedding" in refused["reason"]
