import json

import numpy as np
import pytest

from amends.curate import label_errors
from amends.io.atomic import check_manifest
from amends.io.errors import InputError
from amends.io.tables import read_rows
from amends.io.write import write_rows

NAMES = ["ant", "bee", "<b>cat</b>"]


def pool(num=240, seed=0):
    """Rows around a point for each label, every fifth with a wrong one, and what is right."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(1).normal(size=(3, 8))
    truth = np.arange(num) % 3
    labels = np.where(np.arange(num) % 5 == 0, (truth + rng.integers(1, 3, num)) % 3, truth)
    points = centres[truth] + 0.3 * rng.normal(size=(num, 8))
    rows = [
        {"text": f"row {i} <i>of</i> {NAMES[truth[i]]}", "kind": NAMES[labels[i]], "vector": points[i].tolist()}
        for i in range(num)
    ]
    return rows, [NAMES[c] for c in truth]


def run(rows, **how):
    return label_errors.run(rows, **({"label": "kind", "embedding": "vector"} | how))


def test_labels_are_marked_dropped_or_replaced_and_every_row_says_why():
    rows, truth = pool()
    wrong = [row["kind"] != right for row, right in zip(rows, truth, strict=True)]
    kept = run(rows)
    assert kept.outcome.counts() == {"rows": 240, "kept": 240, "dropped": 0, "refused": 0}
    marked = [row["label_error"] for row in kept.outcome.of("kept")]
    assert np.mean(np.array(marked) == wrong) > 0.97
    assert all(bool(row["reason"]) == row["label_error"] for row in kept.outcome.of("kept"))
    dropped = run(rows, flagged="drop").outcome
    assert dropped.counts() == {"rows": 240, "kept": 240 - sum(marked), "dropped": sum(marked), "refused": 0}
    assert "looks wrong (noise score" in dropped.of("dropped")[0]["reason"]
    mended = run(rows, flagged="relabel").outcome.of("kept")
    assert np.mean([row["kind"] == right for row, right in zip(mended, truth, strict=True)]) > 0.97
    assert next(row for row in mended if row["label_error"])["reason"].startswith('label "')
    assert rows[0]["kind"] != truth[0]  # what was given is not changed


def test_a_label_is_replaced_only_where_that_is_sure_enough():
    rows, _ = pool()
    mended = run(rows, flagged="relabel", confidence=1.0).outcome.of("kept")
    assert [row["kind"] for row in mended] == [row["kind"] for row in rows]
    assert any(row["label_error"] for row in mended)


def test_what_cannot_be_judged_is_refused_with_its_reason():
    rows, _ = pool()
    faults = {
        0: {"kind": None},
        1: {"kind": "  "},
        2: {"kind": ["ant"]},
        3: {"text": ""},
        4: {"vector": None},
        5: {"vector": [1.0, None]},
        6: {"vector": [float("nan")] * 8},
        7: {"vector": [1.0, 2.0]},
        8: {"vector": "eight numbers"},
        9: {"vector": [0.0] * 8},
        10: {"kind": "dog"},
    }
    for i, fault in faults.items():
        rows[i] |= fault
    del rows[11]["kind"]
    found = run(rows, text="text")
    reasons = [row["reason"] for row in found.outcome.of("refused")]
    assert reasons == [
        "no label",
        "no label",
        "the label is no single value",
        "no text",
        "vector is no list of numbers",
        "vector holds a number that is missing or infinite",
        "vector holds a number that is missing or infinite",
        "2 numbers, where most rows have 8",
        "vector is no list of numbers",
        "not judged: its features are all zeros",
        "not judged: it is the only row of its class",
        "no label",
    ]
    assert "3 of 240 rows were refused: no label." in found.record["warnings"]
    assert found.outcome.counts() == {"rows": 240, "kept": 228, "dropped": 0, "refused": 12}


def test_probabilities_come_as_a_list_or_by_class_and_in_the_order_of_numbers():
    """Labels 2 and 10 are in the order of numbers, not of their text."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 200)
    p = np.where(truth[:, None] == [0, 1], 0.9, 0.1)
    label = np.where(np.arange(200) % 10 == 0, 1 - truth, truth)
    rows = [{"n": (2, 10)[c], "p": q.tolist()} for c, q in zip(label, p, strict=True)]
    by_class = [{"n": row["n"], "p": {"10": row["p"][1], "2": row["p"][0]}} for row in rows]
    of_text = [{"n": row["n"], "p": json.dumps(row["p"])} for row in rows]
    for data in (rows, by_class, of_text):
        found = label_errors.run(data, label="n", proba="p", method="confident", flagged="relabel")
        assert [row["n"] for row in found.outcome.of("kept")] == [(2, 10)[c] for c in truth]
    whole = label_errors.run([row | {"n": float(row["n"])} if i % 2 else row for i, row in enumerate(by_class)],
                             label="n", proba="p", method="confident")  # fmt: skip
    assert whole.names == [2, 10]
    rows[3]["p"] = [0.5, 0.4]
    by_class[3]["p"] = {"2": 0.5, "3": 0.5}
    for data, reason in ((rows, "do not sum to 1"), (by_class, "other classes")):
        found = label_errors.run(data, label="n", proba="p", method="cleanlab")
        assert reason in found.outcome.of("refused")[0]["reason"]
        assert found.outcome.counts()["refused"] == 1


def given_probabilities(num_classes=12, num=240):
    """Rows with a label, of which a tenth is wrong, and what a model says of the right one."""
    rng = np.random.default_rng(0)
    truth = np.arange(num) % num_classes
    wrong = rng.choice(num, num // 10, replace=False)
    labels = truth.copy()
    labels[wrong] = (labels[wrong] + 1) % num_classes
    p = np.full((num, num_classes), 0.02)
    p[np.arange(num), truth] = 1 - 0.02 * (num_classes - 1)
    return [{"n": int(c), "p": q.round(4).tolist()} for c, q in zip(labels, p, strict=True)], set(wrong.tolist())


def judged(rows, **how):
    found = label_errors.run(rows, label="n", proba="p", method="confident", **how)
    return {i for i, wrong in enumerate(found.outcome.added["label_error"]) if wrong}, found


def test_a_list_is_refused_where_labels_are_text_and_their_order_as_numbers_is_another_one(tmp_path):
    """In CSV all labels are text: sorted 0, 1, 10, 11, 2, where the model's classes are 0, 1, 2."""
    rows, wrong = given_probabilities()
    assert judged(rows)[0] == wrong
    write_rows(tmp_path / "pool.csv", [row | {"p": json.dumps(row["p"])} for row in rows])
    with pytest.raises(InputError, match=r"Sorted as texts they are 0, 1, 10, 11, 2.* Give an object by label"):
        judged(tmp_path / "pool.csv")
    write_rows(tmp_path / "by.csv", [row | {"p": json.dumps(dict(enumerate(row["p"])))} for row in rows])
    assert judged(tmp_path / "by.csv")[0] == wrong
    few, wrong = given_probabilities(num_classes=10)  # both orders are the same
    assert judged([row | {"n": str(row["n"])} for row in few])[0] == wrong


def test_a_class_that_the_model_knows_and_no_row_has_is_left_out():
    rows, wrong = given_probabilities()
    some = [i for i, row in enumerate(rows) if row["n"] != 11]
    by_label = [rows[i] | {"p": dict(enumerate(rows[i]["p"]))} for i in some]
    found, _ = judged(by_label)
    assert len({some[i] for i in found} ^ wrong) <= 4  # rows whose right class is the one left out
    with pytest.raises(
        InputError, match=r"p holds 12 numbers for 11 labels \(0, 1, 2.*an object by label may have more"
    ):
        judged([rows[i] for i in some])
    unjudged = [rows[i] for i in some] + [{"n": 11, "p": None}]  # the only row with this label is refused
    assert judged(unjudged)[0] == found
    none = {label: 0.0 for label in range(11)} | {11: 1.0}
    assert judged([*by_label, {"n": 1, "p": none}])[1].outcome.of("refused")[0]["reason"].startswith("no label has")


def test_labels_are_numbers_of_numpy_or_python_and_1_is_1_point_0():
    rows, _ = pool()
    codes = [NAMES.index(row["kind"]) for row in rows]
    found = run([row | {"kind": np.int64(code)} for row, code in zip(rows, codes, strict=True)])
    assert found.names == [0, 1, 2]
    mixed = run([row | {"kind": float(c) if i % 2 else c} for i, (row, c) in enumerate(zip(rows, codes, strict=True))])
    assert found.names == mixed.names
    assert found.outcome.added == mixed.outcome.added


def test_it_is_said_where_most_labels_look_wrong():
    rows, _ = given_probabilities(num_classes=3)
    shifted = [row | {"p": row["p"][1:] + row["p"][:1]} for row in rows]
    assert "labels look wrong, which is most of them" in judged(shifted)[1].record["warnings"][-1]


def test_what_it_wrote_is_a_pool_for_it_again_and_a_column_of_the_user_is_named_before_the_work(monkeypatch):
    rows, _ = pool()
    again = run(run(rows).outcome.of("kept")).outcome.of("kept")
    assert "earlier_confidence" in again[0]
    monkeypatch.setattr(label_errors, "_embedding", None)  # nothing is read
    with pytest.raises(InputError, match='the column "confidence" is there already'):
        run([row | {"confidence": 1} for row in rows])


def test_a_text_or_a_vector_that_one_row_lacks_refuses_that_row():
    rows, _ = pool()
    rows[3]["text"] = float("nan")
    del rows[4]["vector"], rows[5]["text"]
    reasons = [row["reason"] for row in run(rows, text="text").outcome.of("refused")]
    assert reasons == ["no text", "vector is no list of numbers", "no text"]


def test_texts_with_two_labels_are_counted():
    rows, _ = pool()
    rows[1]["text"], rows[2]["text"] = rows[0]["text"], rows[3]["text"]
    rows[1]["kind"], rows[0]["kind"] = "ant", "bee"
    rows[2]["kind"] = rows[3]["kind"]
    assert any("1 texts stand in more than one row" in w for w in run(rows, text="text").record["warnings"])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"method": "oracle"}, "--method oracle: unknown"),
        ({"embedder": "x"}, "give one of --embedder"),
        ({"embedding": None}, "give one of --embedder"),
        ({"embedding": None, "embedder": "x"}, "name the columns to embed"),
        ({"embedding": None, "proba": "p"}, "simifeat-vote judges by neighbours"),
        ({"label": "sort"}, 'no row has the column "sort"'),
        ({"embedding": "text"}, "text is no list of numbers, and no other row"),
        ({"text": "title"}, 'the column "title" is missing'),
        ({"method": "knn", "folds": 3}, "--folds 3: goes with a model"),
        ({"method": "knn", "draws": 3}, "--draws 3: goes with SimiFeat"),
        ({"method": "confident", "k": 5}, "--k 5: goes with neighbours"),
        ({"embedding": None, "proba": "p", "method": "confident", "folds": 3}, "--folds 3: goes with"),
        ({"flagged": "drp"}, "--flagged drp: unknown. Choose one of keep, drop, relabel"),
        ({"confidence": 5}, "--confidence 5: expected 0 to 1"),
    ],
)
def test_options_that_cannot_work_are_refused(how, message):
    with pytest.raises(InputError, match=message):
        run(pool()[0], **how)


@pytest.mark.parametrize("method", ["simifeat-vote", "knn", "confident"])
def test_one_class_and_features_that_say_nothing_are_refused(method):
    rows, _ = pool()
    with pytest.raises(InputError, match=f"--label kind, {method}: 1 class in y"):
        run([row | {"kind": "ant"} for row in rows], method=method)
    with pytest.raises(InputError, match="every label is the only one"):
        run([row | {"kind": f"{i}"} for i, row in enumerate(rows)], method=method)
    if method != "confident":
        with pytest.raises(InputError, match="point the same way"):
            run([row | {"vector": [1.0] * 8} for row in rows], method=method)


@pytest.mark.parametrize("kind", [".jsonl", ".csv", ".parquet"])
def test_the_command_writes_the_rows_a_summary_and_a_page(tmp_path, amends, kind):
    rows, _ = pool()
    if kind == ".csv":
        rows = [row | {"vector": json.dumps(row["vector"])} for row in rows]
    write_rows(tmp_path / f"pool{kind}", rows)
    out = tmp_path / "out"
    options = ("--label", "kind", "--text", "text", "--embedding", "vector", "--method", "simifeat-rank")
    code, _, err = amends(
        "curate", "label_errors", tmp_path / f"pool{kind}", *options, "--flagged", "drop", "--out", out
    )
    assert code == 0, err
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert summary["rows"] == 240 == summary["kept"] + summary["dropped"]
    assert summary["look_wrong"] == sum(c["look_wrong"] for c in summary["classes"]) == summary["dropped"]
    np.testing.assert_allclose(np.sum(summary["transition"], axis=1), 1)
    assert len(list(read_rows(out / f"dropped{kind}"))) == summary["dropped"]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;cat&lt;/b&gt;" in page
    assert "<b>cat" not in page
    assert "<i>of" not in page
    assert check_manifest(out) == []
    code, _, err = amends("curate", "label_errors", tmp_path / f"pool{kind}", *options, "--out", out)
    assert code == 2
    assert "exists already" in err
