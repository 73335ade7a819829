import json

import numpy as np
import pandas as pd
import pytest

from amends import cli
from amends.curate import ds2
from amends.io.atomic import check_manifest
from amends.io.errors import InputError, NoResult
from amends.io.run import read_run
from amends.io.tables import read_rows

from .planted import planted, said

FEW = {"rounds": 10, "draws": 11}
COLUMNS = ["level", "error_prob", "suggested", "confidence", "curated", "long_tail", "reason", "where"]


def rows_of(world):
    return [
        {"id": i, "text": f"row {i}", "rating": int(rating), "vector": point.tolist(), "prompt": f"p{i}"}
        for i, (rating, point) in enumerate(zip(world.ratings, world.points, strict=True))
    ]


@pytest.fixture(scope="module")
def world():
    return planted(0.0, num_rows=1500)


@pytest.fixture(scope="module")
def found(world, tmp_path_factory):
    rows = rows_of(world)
    rows[3]["rating"] = "I'd say it is a 4"
    rows[4]["rating"] = None
    rows[5]["rating"] = 9
    rows[6]["vector"][0] = float("nan")
    rows[7]["vector"] = rows[7]["vector"][:5]
    rows[8]["text"] = "  "
    rows[9]["text"] = "row 0"
    rows[10]["text"] = "<script>alert(1)</script> & <b>"
    out = tmp_path_factory.mktemp("ds2") / "run"
    return ds2.run(rows, rating="rating", text="text", embedding="vector", scale="0-5", budget=200, out=out, **FEW), out


def test_every_row_is_kept_dropped_or_refused_with_its_reason(found):
    outcome = found[0].outcome
    assert outcome.counts() == {"rows": 1500, "kept": 200, "dropped": 1294, "refused": 6}
    reasons = {row["id"]: row["reason"] for row in outcome.of("refused")}
    assert reasons == {
        3: 'the rating is no whole number: "I\'d say it is a 4"',
        4: "no rating",
        5: "the rating 9 is not from 0 to 5",
        6: "the embedding has no direction (NaN, infinite or zero)",
        7: "the embedding has 5 numbers, and others have 32",
        8: "no text",
    }
    dropped = {row["id"]: row for row in outcome.of("dropped")}
    assert dropped[9]["reason"] == "the same text as data[0]"
    assert dropped[9]["level"] is None
    assert all(row["reason"].startswith(("not among the 200 best", "the same text")) for row in dropped.values())


def test_what_is_refused_is_warned_of_with_its_number(found):
    told = " ".join(found[0].record["warnings"])
    assert "1 of 1500 rows were refused: no rating." in told
    assert "the rating is no whole number" in told


def test_the_selected_rows_are_better_than_by_raw_ratings(found, world):
    good = [world.truth[i] >= 4 for i in found[0].selected]
    raw = np.argsort(-world.ratings, kind="stable")[:200]
    assert np.mean(good) > (world.truth[raw] >= 4).mean() + 0.1


def test_the_folder_holds_the_same_and_is_whole(found):
    curation, out = found
    assert not check_manifest(out)
    assert {path.name for path in out.iterdir()} == {
        "kept.jsonl", "dropped.jsonl", "refused.jsonl", "noise.json", "run.json", "report.html", "manifest.json"
    }  # fmt: skip
    kept = [row.data for row in read_rows(out / "kept.jsonl")]
    assert kept == json.loads(json.dumps(curation.outcome.of("kept")))
    assert set(COLUMNS) < set(kept[0])
    changed = [row for row in kept if row["curated"] != row["level"]]
    assert changed and all(row["reason"].startswith(f"rating {row['level']} -> {row['curated']}") for row in changed)
    record = read_run(out)
    assert record["data"]["pool"]["kept"] == 200
    noise = json.loads((out / "noise.json").read_text(encoding="utf-8"))
    assert np.array(noise["neighbours"]["transition"]).sum(axis=1) == pytest.approx(1)
    assert noise["neighbours"]["agreement"]["above_chance"] > 0.2


def test_the_report_shows_the_noise_and_what_changed_and_takes_nothing_for_markup(found):
    page = (found[1] / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    for section in ("How the ratings err", "What changed", "What was selected", "What became of every row"):
        assert section in page
    assert page.count("<svg") == 3


def test_the_command_writes_what_the_function_gives(world, tmp_path, capsys):
    file = tmp_path / "pool.jsonl"
    pd.DataFrame(rows_of(world)).iloc[:1200].to_json(file, orient="records", lines=True)
    arguments = ["curate", "ds2", str(file), "--rating", "rating", "--embedding", "vector", "--budget", "50"]
    with pytest.raises(SystemExit) as end:
        cli.main([*arguments, "--out", str(tmp_path / "out"), "--rounds", "10", "--draws", "11", "--group", "prompt"])
    assert end.value.code == 0
    assert "1200 rows: 50 kept, 1150 dropped, 0 refused" in capsys.readouterr().err
    kept = [row.data["id"] for row in read_rows(tmp_path / "out" / "kept.jsonl")]
    again = ds2.run(file, rating="rating", embedding="vector", budget=50, group="prompt", **FEW)
    assert kept == [row["id"] for row in again.outcome.of("kept")]


def test_embeddings_in_csv_are_read_as_json_and_a_row_without_one_is_refused(world, tmp_path):
    rows = rows_of(world)[:1200]
    del rows[3]["vector"]
    file = tmp_path / "pool.csv"
    pd.DataFrame([row | {"vector": json.dumps(row.get("vector"))} for row in rows]).to_csv(file, index=False)
    read, given = (ds2.run(data, rating="rating", embedding="vector", curate=False) for data in (file, rows))
    assert [row["reason"] for row in read.outcome.of("refused")] == ["the embedding is no list of numbers"]
    assert read.outcome.added == given.outcome.added


def test_rows_without_a_group_are_nobodys_siblings(world):
    for nothing in (None, float("nan"), "", pd.NA):
        rows = [row | {"prompt": "one" if i < 3 else nothing} for i, row in enumerate(rows_of(world))]
        found = ds2.run(rows, rating="rating", embedding="vector", group="prompt", **FEW)
        assert found.curator.num_siblings_ <= 6


def test_where_siblings_leave_no_row_enough_neighbours_nothing_is_said_to_be_judged(world):
    rows = [row | {"prompt": i % 8} for i, row in enumerate(rows_of(world))]
    with pytest.raises(NoResult, match="no row has 9 neighbours that are no twins or siblings"):
        ds2.run(rows, rating="rating", embedding="vector", group="prompt", **FEW)


def test_what_ds2_wrote_goes_into_ds2_again_and_a_column_of_the_user_is_named_first(world, monkeypatch):
    rows = rows_of(world)
    first = ds2.run(rows, rating="rating", embedding="vector", curate=False).outcome.of("kept")
    again = ds2.run(first, rating="rating", embedding="vector", curate=False, budget=50)
    assert {"earlier_level", "earlier_curated", "earlier_reason"} < set(again.outcome.of("kept")[0])
    monkeypatch.setattr(ds2, "embeddings", None)  # no embedding is read
    with pytest.raises(InputError, match='the column "level" is there already'):
        ds2.run([row | {"level": 1} for row in rows], rating="rating", embedding="vector")


def test_a_budget_of_all_rows_is_called_one(tmp_path):
    rows = [{"r": i % 3} for i in range(9)]
    for name, budget, told in (("all", None, "No budget was given"), ("nine", 9, "The budget is as large")):
        ds2.run(rows, rating="r", curate=False, budget=budget, out=tmp_path / name)
        assert told in (tmp_path / name / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", [".parquet", ".csv"])
def test_rows_are_written_in_the_kind_they_came_in(tmp_path, kind):
    file = tmp_path / f"pool{kind}"
    frame = pd.DataFrame({"r": [1, 2, 3, 3], "id": range(4)})
    frame.to_parquet(file) if kind == ".parquet" else frame.to_csv(file, index=False)
    ds2.run(file, rating="r", curate=False, budget=2, out=tmp_path / "out")
    assert [int(row.data["id"]) for row in read_rows(tmp_path / "out" / f"kept{kind}")] == [2, 3]
    assert "What was selected" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_ratings_that_do_not_cluster_are_refused_and_nothing_is_written(world, tmp_path):
    rows = rows_of(world)
    for row, rating in zip(rows, np.random.default_rng(0).permutation(world.ratings), strict=True):
        row["rating"] = int(rating)
    with pytest.raises(NoResult, match=r"above chance .* --no-curate"):
        ds2.run(rows, rating="rating", embedding="vector", out=tmp_path / "out", **FEW)
    assert not (tmp_path / "out").exists()
    raw = ds2.run(rows, rating="rating", embedding="vector", curate=False, budget=100)
    assert raw.outcome.added["curated"] == raw.outcome.added["level"] == [row["rating"] for row in rows]
    assert min(raw.outcome.added["curated"][i] for i in raw.selected) >= 4
    assert "error_prob" not in raw.outcome.added


def test_several_raters_are_put_together_without_any_text(tmp_path):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 4000)
    matrices = ([[0.8, 0.2], [0.2, 0.8]], [[0.7, 0.3], [0.3, 0.7]], [[0.75, 0.25], [0.15, 0.85]])
    labels = np.stack([said(np.array(T), truth, rng) for T in matrices], axis=1)
    rows = [dict(zip("abc", of, strict=True)) for of in labels.tolist()]
    rows[0] = {"a": None, "b": None, "c": None}
    found = ds2.run(rows, rating=["a", "b", "c"], budget=1000, out=tmp_path / "out")
    assert found.outcome.counts()["refused"] == 1
    assert found.outcome.of("refused")[0]["reason"] == "no rating"
    assert truth[found.selected].mean() > truth[labels[:, 0] == 1].mean() + 0.05
    assert found.raters.matrices_MKK == pytest.approx(np.array(matrices), abs=0.08)
    certainty = [found.outcome.added["certainty"][i] for i in found.selected]
    assert certainty == sorted(certainty, reverse=True)
    assert "How the raters err" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_ratings_from_1_to_10_are_compressed(world):
    rows = rows_of(world)
    for row in rows:
        row["rating"] = [1, 5, 6, 7, 8, 10][row["rating"]]
    found = ds2.run(rows, rating="rating", embedding="vector", compress=True, curate=False)
    assert found.outcome.added["level"] == world.ratings.tolist()
    assert found.levels.names.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"r": 1, "v": [1, 0]}] * 3, {}, "all ratings are 1"),
        ([{"r": 1, "v": [1, 0]}, {"r": 2, "v": [0, 1]}], {}, "2 of 2 rows can be judged"),
        ([{"r": 1, "v": [1, 0]}] * 5, {"budget": 6}, "--budget 6: only 5 of 5"),
        ([{"r": 1, "v": [1, 0]}] * 5, {"budget": 0}, "--budget 0"),
        ([{"r": 1}] * 5, {}, 'no row has the column "v"'),
        ([{"r": 1, "v": [1, 0]}] * 5, {"rating": "score"}, 'no row has the column "score"'),
        ([{"r": 1, "v": [1, 0]}] * 5, {"rating": ["r", "r"]}, "2 columns of ratings"),
        ([{"r": i, "v": [1, i]} for i in range(5)], {"group": "prompt"}, 'no row has the column "prompt"'),
        ([{"r": 1, "v": [1, 0]}] * 5, {"embedding": None}, "The ratings of one rater are mended by neighbours"),
        ([{"r": 1, "v": [1, 0]}] * 5, {"embedder": "x"}, "give one of them"),
        ([{"r": 1, "v": [1, 0]}] * 5, {"k": 2}, "--k 2: expected 3 or more"),
        ([{"r": 1, "v": [1, 0]}] * 5, {"confidence": 5}, "--confidence 5: expected 0 or more, up to 1"),
        ([{"r": 1, "v": [1, 0]}] * 5, {"near": float("nan")}, "--near nan"),
        ([{"r": 1, "v": [1, 0]}] * 5, {"exchangeable": True}, "--exchangeable: goes with several ratings"),
        ([{"r": 1, "v": [1, 0]}] * 5, {"cache": "a.sqlite"}, "--cache: goes with --rater"),
        ([{"r": 1, "v": [1, 0]}] * 5, {"most_calls": 3}, "--most-calls: goes with --rater"),
        ([{"r": 1, "v": [1, 0]}] * 5, {"curate": False, "rounds": 9}, "--rounds: is about mending"),
        ([{"r": 1}] * 5, {"embedding": None, "curate": False, "group": "no"}, "--group: goes with --embedder"),
        ([{"r": 1}] * 5, {"rating": (), "rater": "m", "text": "t", "scale": "1-5"}, "--scale: goes with --rating"),
        ([{"r": 1, "v": [1, 0]}] * 5, {"embedding": None, "embedder": "x"}, "name the columns to embed"),
        (
            [{"r": 1, "v": [1, 0], "curated": 3}, *[{"r": i, "v": [1, i]} for i in range(4)]],
            {"curate": False},
            "curated",
        ),
    ],
)
def test_what_cannot_be_done_is_named(rows, options, message):
    if options.get("rating") == ["r", "r"]:
        rows = [*rows, {"r": 2, "v": [0, 1]}]
    with pytest.raises(InputError, match=message):
        ds2.run(rows, **({"rating": "r", "embedding": "v"} | options))


def test_a_row_of_a_megabyte_is_named(tmp_path):
    file = tmp_path / "pool.jsonl"
    file.write_text(json.dumps({"rating": 1, "prompt": "x" * 10**6}) + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"pool.jsonl:1: the row has"):
        ds2.run(file, rating="rating", text="prompt", embedder="none")
