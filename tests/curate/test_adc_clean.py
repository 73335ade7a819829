"""Planted noise and copies go, splits share none, rows are accounted for; what knows nothing judges nothing."""

import csv
import hashlib
import json
import os

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from amends.curate import adc_clean
from amends.curate._adc.clean_page import summary
from amends.curate.adc_clean import How
from amends.io.atomic import check_manifest
from amends.io.errors import InputError
from amends.io.run import read_run
from amends.io.tables import read_rows
from amends.io.write import write_rows

NAMES = ("ant", "bee", "cat", "dog")


def pool(num=200, seed=0, noise=0.2, classes=4):
    """Texts around a point for each class, some found for the wrong one; none is a copy."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(1).normal(size=(classes, 16))
    truth = np.arange(num) % classes
    wrong = rng.random(num) < noise
    label = np.where(wrong, (truth + 1) % classes, truth)
    points = centres[truth] + 0.35 * rng.normal(size=(num, 16))
    return [
        {
            "text": f"number {i} is about a {NAMES[truth[i]]}",
            "label": NAMES[label[i]],
            "query": f"little {NAMES[label[i]]}",
            "subclass": "little",
            "rank": i // classes,
            "vector": points[i].tolist(),
            "true": NAMES[truth[i]],
        }
        for i in range(num)
    ]


def digits(seed=0, tail=False, num_odd=20):
    """Digits of which 22 % stand in a wrong class, by a rule for each class, and some whose pixels were shuffled."""
    X, y = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    keep = np.ones(len(y), bool)
    for c in range(5, 10) if tail else ():
        here = rng.permutation(np.flatnonzero(y == c))
        keep[here[len(here) // 20 :]] = False
    X, y = X[keep], y[keep]
    T = (
        0.78 * np.eye(10)
        + 0.15 * np.eye(10)[:, (np.arange(10) - 1) % 10]
        + 0.07 * np.eye(10)[:, (np.arange(10) - 3) % 10]
    )
    rows = [
        {"text": f"digit {i}", "label": str(rng.choice(10, p=T[c])), "vector": x.tolist(), "true": str(c)}
        for i, (x, c) in enumerate(zip(X, y, strict=True))
    ]
    for i in range(num_odd):
        x = rng.permutation(X[rng.integers(len(X))])
        rows.append({"text": f"odd {i}", "label": str(rng.integers(10)), "vector": x.tolist(), "true": "odd"})
    return rows


def run(rows, out=None, **how):
    options = {
        name: how.pop(name) for name in ("votes", "review", "folder", "embedder", "seed", "most_pixels") if name in how
    }
    options = options if "embedder" in options else {"embedding": "vector"} | options
    return adc_clean.run(rows, out=out, how=How(**how), **options)


def wrong_share(rows):
    return np.mean([row["label"] != row["true"] for row in rows])


def fates(found):
    return [(verdict.fate, verdict.reason) for verdict in found.outcome.verdicts]


# Planted truth


@pytest.mark.parametrize(("tail", "seen"), [(False, 0.019), (True, 0.006)])
def test_less_than_half_of_the_planted_noise_is_left(tail, seen):
    rows = digits(tail=tail)
    raw = wrong_share(rows)
    assert raw > 0.2
    kept = run(rows, near=0.995).outcome.of("kept")
    assert wrong_share(kept) < raw / 2
    assert wrong_share(kept) == pytest.approx(seen, abs=0.01)
    assert len(kept) > 0.85 * sum(row["label"] == row["true"] for row in rows)
    mended = run(rows, near=0.995, flagged="relabel").outcome.of("kept")
    assert wrong_share(mended) < raw / 2


def test_classes_that_lost_most_of_their_rows_are_told_of():
    found = run(digits(tail=True), near=0.995)
    told = [warning for warning in found.record["warnings"] if warning.startswith("Of the class")]
    assert len(told) == 5 and all(f'class "{c}"' in " ".join(told) for c in range(5, 10))


def test_planted_odd_pictures_are_found_and_few_others():
    found = run(digits(), near=0.995)
    off = [row for row in found.outcome.of("dropped") if row["reason"].startswith("off topic")]
    hits = sum(row["true"] == "odd" for row in off)
    assert hits >= 14 and hits / len(off) >= 0.7  # seen: 20 of 20, precision 0.74
    without = run(digits(num_odd=0), near=0.995)
    assert sum(str(reason).startswith("off topic") for _, reason in fates(without)) < 0.01 * 1797
    assert not any(str(reason).startswith("off topic") for _, reason in fates(run(digits(), near=0.995, deviations=0)))


def test_a_scattered_class_is_not_off_topic():
    rng = np.random.default_rng(0)
    tight = [rng.normal(size=32) * 0.02 + np.eye(32)[0] for _ in range(150)]
    wide = [rng.normal(size=32) * 0.2 + np.eye(32)[1] for _ in range(50)]
    rows = [{"text": f"t {i}", "label": "ab"[i >= 150], "vector": v.tolist()} for i, v in enumerate([*tight, *wide])]
    dropped = [i for i, (_, reason) in enumerate(fates(run(rows, near=1.0))) if str(reason).startswith("off topic")]
    assert len(dropped) <= 2


@pytest.mark.parametrize("method", ["simifeat-vote", "simifeat-rank", "knn", "confident", "cores"])
def test_features_that_know_nothing_judge_nothing(method):
    rng = np.random.default_rng(0)
    rows = [row | {"vector": rng.normal(size=32).tolist()} for row in pool()]
    found = run(rows, method=method)
    assert found.outcome.counts() == {"rows": 200, "kept": 200, "dropped": 0, "refused": 0}
    assert set(found.outcome.added["noise_score"]) == set(found.outcome.added["distance"]) == {None}
    assert any("these features do not tell the classes apart" in warning for warning in found.record["warnings"])
    assert summary(found)["look_wrong"] is None
    assert run(pool(), method=method).looked.refusal is None


def test_planted_copies_are_found_and_nothing_else():
    rows = pool(noise=0)
    rng = np.random.default_rng(5)
    copies = [
        rows[i] | {"text": f"  NUMBER {i} is\nabout a {rows[i]['true'].upper()} ", "rank": 999} for i in range(0, 20)
    ]
    near = [
        rows[i] | {"text": f"other {i}", "vector": (np.array(rows[i]["vector"]) + 0.01 * rng.normal(size=16)).tolist()}
        for i in range(20, 40)
    ]
    found = run([*rows, *copies, *near], near=0.99)
    assert all(reason == f"the same as data[{i}]" for i, (_, reason) in enumerate(fates(found)[200:220]))
    assert all(reason.startswith("nearly the same (cosine") for _, reason in fates(found)[220:])
    assert not any("same" in str(reason) for _, reason in fates(found)[:200])


def test_a_copy_that_cannot_be_compared_takes_no_other_along():
    rows = pool(noise=0)
    rows[0]["rank"] = 50
    rows.append(rows[0] | {"rank": 3, "vector": None})
    told = fates(run(rows))
    assert told[0] == ("kept", None)
    assert told[200][0] == "refused"


def test_the_best_hit_of_a_search_stays():
    rows = pool(noise=0)
    rows[0]["rank"] = 50
    rows.append(rows[0] | {"rank": 3})
    found = run(rows)
    assert fates(found)[0] == ("dropped", "the same as data[200]")
    assert fates(found)[200] == ("kept", None)


# What is found for two classes


def test_what_was_found_for_two_classes_gets_neither_label():
    rows = pool(noise=0)
    rows.append(rows[0] | {"label": "bee"})
    rows.append(rows[4] | {"text": "another", "label": "dog"})
    found = run(rows, near=0.999, review=3)
    assert fates(found)[0] == ("dropped", 'the same as data[200], which was found for "bee"')
    assert fates(found)[200] == ("dropped", 'the same as data[0], which was found for "ant"')
    assert fates(found)[4] == ("dropped", 'nearly the same (cosine 1.000) as data[201], which was found for "dog"')
    assert sorted(found.disputed) == [0, 4, 200, 201]
    assert [row["row"] for row in found.queue] == sorted(found.disputed)[:3]
    assert summary(found)["found_for_two_classes"] == 4


def test_a_vote_settles_what_was_found_for_two_classes(tmp_path):
    rows = pool(noise=0)
    rows.append(rows[0] | {"label": "bee"})
    rows.append(rows[4] | {"text": "another", "label": "dog"})
    first = run(rows, tmp_path / "a", near=0.999, review=10)
    voted = {0: "ant", 201: "ant"}
    fill(tmp_path / "a" / "review.csv", tmp_path / "votes.csv", voted)
    found = run(rows, near=0.999, votes=tmp_path / "votes.csv")
    assert found.votes == voted
    assert fates(found)[0] == ("kept", None)
    assert fates(found)[200] == ("dropped", 'the same as data[0], which a person says is "ant"')
    assert fates(found)[201] == ("kept", 'label "dog" -> "ant" (voted)')
    assert fates(found)[4][1].startswith("nearly the same")
    assert first.outcome.counts()["kept"] + 2 == found.outcome.counts()["kept"]


# Identities


def test_cleaning_what_was_cleaned_finds_no_more_copies(tmp_path):
    rows = pool(noise=0.1)
    rng = np.random.default_rng(5)
    chain = np.array(rows[0]["vector"])
    for i in range(30):  # each near the one before, the last far from the first, in no order of rank
        chain = chain + 0.08 * rng.normal(size=16)
        rows.append(rows[0] | {"text": f"chain {i}", "vector": chain.tolist(), "rank": int(rng.integers(99))})
    found = run(rows, near=0.99)
    names = [name for name in rows[0] if name not in adc_clean.ADDED]
    again = run([{name: row[name] for name in names} for row in found.outcome.of("kept")], near=0.99)
    assert sum("same" in str(reason) for _, reason in fates(found)) > 5
    assert not any("same" in str(reason) for _, reason in fates(again))


def test_splits_share_no_group_of_copies_and_have_their_shares():
    rows = pool(num=400, noise=0)
    rng = np.random.default_rng(5)
    for start in range(0, 40, 4):  # chains of which more than one link stays
        chain = np.array(rows[start]["vector"])
        for i in range(12):
            chain = chain + 0.1 * rng.normal(size=16)
            rows.append(rows[start] | {"text": f"chain {start} {i}", "vector": chain.tolist()})
    kept = run(rows, near=0.985).outcome.of("kept")
    split_of = {}
    for row in kept:
        assert split_of.setdefault(row["copy_group"], row["split"]) == row["split"]
    assert len(split_of) < len(kept) - 5  # some groups have several rows
    for name in NAMES:
        splits = [row["split"] for row in kept if row["label"] == name]
        assert splits.count("train") / len(splits) == pytest.approx(0.8, abs=0.05)
        assert splits.count("val") / len(splits) == pytest.approx(0.1, abs=0.05)


def test_every_label_traces_to_its_query_or_says_what_changed_it():
    found = run(pool(), flagged="relabel")
    rows = found.outcome.of("kept")
    changed = [row for row in rows if row["label"] != row["found_as"]]
    assert changed
    for row in rows:
        assert row["query"] == f"little {row['found_as']}"
        assert (row["label"] != row["found_as"]) == str(row["reason"]).startswith("label")


def test_the_same_seed_gives_the_same_files_and_another_one_other_splits(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(pool(), tmp_path / name, seed=seed, review=5)
    for file in ("kept.jsonl", "dropped.jsonl", "summary.json", "review.csv", "README.md"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert (tmp_path / "a" / "kept.jsonl").read_bytes() != (tmp_path / "c" / "kept.jsonl").read_bytes()
    assert check_manifest(tmp_path / "a") == []


def test_every_row_is_kept_dropped_or_refused_and_what_was_given_is_not_changed(tmp_path):
    rows = pool()
    rows[3]["label"], rows[5]["text"], rows[7]["vector"] = None, " ", [0.0] * 16
    rows[8]["vector"], rows[9]["vector"], rows[10]["text"] = [float("nan")] * 16, None, "\ufffd\ufffd\x00"
    rows[11]["label"] = "eel"
    before = json.dumps(rows)
    found = run(rows, tmp_path / "out")
    assert json.dumps(rows) == before
    counts = found.outcome.counts()
    assert counts["rows"] == 200 == counts["kept"] + counts["dropped"] + counts["refused"]
    assert {i: reason for i, (fate, reason) in enumerate(fates(found)) if fate == "refused"} == {
        3: "no label",
        5: "no text",
        7: "no embedding, or one without a direction (NaN, infinite, zero)",
        8: "no embedding, or one without a direction (NaN, infinite, zero)",
        9: "no embedding, or one without a direction (NaN, infinite, zero)",
        10: "the text is no readable text",
        11: "not judged: it is the only row of its class",
    }
    assert all(reason for fate, reason in fates(found) if fate != "kept")
    assert read_run(tmp_path / "out")["command"] == "curate adc_clean"
    written = [list(read_rows(tmp_path / "out" / f"{fate}.jsonl")) for fate in ("kept", "dropped", "refused")]
    assert sum(map(len, written)) == 200


def test_a_label_whose_other_is_not_sure_enough_is_dropped_where_it_was_to_be_replaced():
    found = {confidence: run(pool(), flagged="relabel", confidence=confidence) for confidence in (0.0, 1.0)}
    assert found[1.0].outcome.added["label_error"] == found[0.0].outcome.added["label_error"]
    for i, wrong in enumerate(found[1.0].outcome.added["label_error"]):
        if wrong:
            assert fates(found[1.0])[i][0] == "dropped" and fates(found[0.0])[i][0] == "kept"
            assert "(confidence 0." in fates(found[1.0])[i][1] and "->" in fates(found[0.0])[i][1]


def test_labels_that_are_numbers_stay_numbers():
    rows = [row | {"label": NAMES.index(row["label"])} for row in pool()]
    kept = run(rows, flagged="relabel").outcome.of("kept")
    assert {type(row["label"]) for row in kept} == {int}
    assert any(row["label"] != row["found_as"] for row in kept)


# Rank and subclasses


def test_doubt_grows_with_the_rank_where_it_was_planted():
    rows = pool(num=400, noise=0)
    rng = np.random.default_rng(0)
    for row in rows:
        if rng.random() < row["rank"] / 250:
            row["label"] = NAMES[(NAMES.index(row["label"]) + 1) % 4]
    by_rank = summary(run(rows))["by_rank"]
    assert by_rank[0]["from"] == 0 and by_rank[-1]["to"] == 99
    shares = [part["look_wrong"] / part["judged"] for part in by_rank]
    assert len(shares) == 5 and shares[0] < 0.1 and shares[-1] > 0.25
    assert sum(part["judged"] for part in by_rank) == summary(run(rows))["judged"]


def test_subclasses_that_are_one_are_offered_for_merging_and_others_are_not():
    rng = np.random.default_rng(0)
    centres = {"beige": np.eye(16)[0], "cream": np.eye(16)[0], "black": np.eye(16)[1]}
    rows = [
        {"text": f"{c} {i}", "label": "shirt", "subclass": c, "vector": (v * 2 + 0.3 * rng.normal(size=16)).tolist()}
        for c, v in centres.items()
        for i in range(60)
    ]
    rows += [
        {"text": f"coat {i}", "label": "coat", "vector": (np.eye(16)[2] + 0.1 * rng.normal(size=16)).tolist()}
        for i in range(60)
    ]
    found = run(rows, near=0.999)
    assert [(pair.label, pair.one, pair.other) for pair in found.mixed] == [("shirt", "beige", "cream")]
    assert found.mixed[0].mixing == pytest.approx(1, abs=0.15)


# Review and votes


def fill(queue, votes, answers):
    with open(queue, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["vote"] = answers.get(int(row["row"]), "")
    with open(votes, "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def test_the_queue_holds_no_formula_and_votes_are_taken_back_as_truth(tmp_path):
    rows = pool()
    for row in rows:
        row["label"] = "=1+1" if row["label"] == "ant" else row["label"]
        row["text"] = f"=HYPERLINK({row['text']})"
    found = run(rows, tmp_path / "a", review=100, flagged="keep")
    with open(tmp_path / "a" / "review.csv", encoding="utf-8", newline="") as file:
        cells = [value for row in csv.reader(file) for value in row]
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in cells)
    assert "'=1+1" in cells and any(cell.startswith("'=HYPER") for cell in cells)
    queue = [row["row"] for row in found.queue]
    scores = [score for i in queue if (score := found.outcome.added["noise_score"][i]) is not None]
    assert len(queue) == 100 and scores == sorted(scores, reverse=True)
    answers = {queue[0]: "'=1+1", queue[1]: "(none)", queue[2]: rows[queue[2]]["label"]}
    fill(tmp_path / "a" / "review.csv", tmp_path / "votes.csv", answers)
    again = run(rows, votes=tmp_path / "votes.csv", review=100)
    assert again.outcome.rows[queue[0]].data["label"] == "=1+1"
    assert fates(again)[queue[0]][0] == "kept"
    assert fates(again)[queue[1]] == ("dropped", "a person says that it belongs to no class")
    assert fates(again)[queue[2]] == ("kept", None)
    assert not set(answers) & {row["row"] for row in again.queue}
    assert summary(again)["voted"]["rows"] == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vote": "Ant"}, 'Did you mean "ant"?'),
        ({"vote": "zebra"}, "Write a label of the data, or (none)"),
        ({"row": 999}, "there is no row '999'"),
        ({"row": -1}, "there is no row '-1'"),
        ({"sha256": "0" * 64}, "row 0 holds something else now"),
        ({"vote": None}, 'the column "vote" is missing'),
    ],
)
def test_votes_that_do_not_fit_the_data_are_refused(tmp_path, change, message):
    rows = pool()
    vote = {"row": 0, "sha256": hashlib.sha256(rows[0]["text"].encode()).hexdigest(), "vote": "ant"} | change
    write_rows(tmp_path / "v.csv", [{k: v for k, v in vote.items() if v is not None}])
    with pytest.raises(InputError) as error:
        run(rows, votes=tmp_path / "v.csv")
    assert message in str(error.value)


# The data card and the report


def test_the_card_says_sources_licences_and_what_was_not_checked_and_escapes_what_others_wrote(tmp_path):
    rows = [row | {"source": "<b>shop</b>", "licence": "CC0" if i % 2 else None} for i, row in enumerate(pool())]
    for row in rows:
        row["label"] = "| <script>" if row["label"] == "ant" else row["label"]
    found = run(rows, tmp_path / "a")
    card = (tmp_path / "a" / "README.md").read_text(encoding="utf-8")
    kept = found.outcome.counts()["kept"]
    assert "<script>" not in card and "<b>" not in card and "&lt;b\\>shop" in card
    assert f"| kept | {kept} |" in card and "CC0" in card and "not known" in card
    assert "## What was not checked" in card and "Any row by a person" in card
    assert "The test split comes from the same search" in card
    report = (tmp_path / "a" / "report.html").read_text(encoding="utf-8")
    assert "<script>" not in report and "Transition matrix" in report and "By rank in the search" in report
    told = json.loads((tmp_path / "a" / "summary.json").read_text(encoding="utf-8"))
    assert told["kept"] == kept == sum(told["splits"].values()) == sum(told["licences"].values())


# Pictures


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Digits as PNG files in folders, as a collection leaves them, each with its pixels as an embedding."""
    folder = tmp_path_factory.mktemp("raw")
    X, y = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    rows = []
    for i in range(300):
        label = (y[i] + 1) % 10 if rng.random() < 0.15 else y[i]
        path = folder / "files" / str(label) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(X[i]).save(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        about = {"path": f"files/{label}/{i}.png", "sha256": digest, "kind": "image", "label": str(label)}
        rows.append(about | {"query": f"the digit {label}", "rank": i % 30, "vector": X[i].tolist(), "true": str(y[i])})
    write_rows(folder / "samples.parquet", rows)
    return folder, rows


def picture(x, size=32):
    return Image.fromarray((x.reshape(8, 8) * 15.9).astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)


def test_a_folder_of_pictures_is_cleaned_and_saved_anew_ones_are_found(raw, tmp_path):
    folder, rows = raw
    found = run(str(folder), tmp_path / "out", near=1.0)
    assert wrong_share(found.outcome.of("kept")) < wrong_share(rows) / 2
    assert (tmp_path / "out" / "kept.parquet").exists()
    X, _ = load_digits(return_X_y=True)
    picture(X[0], 64).save(folder / "anew.png")
    picture(X[1], 48).convert("RGB").save(folder / "anew.jpg", quality=95)
    extra = [
        rows[i] | {"path": name, "sha256": None, "label": rows[i]["label"], "vector": np.roll(X[i], 31).tolist()}
        for i, name in ((0, "anew.png"), (1, "anew.jpg"))
    ]
    told = fates(run([*rows, *extra], near=1.0, folder=folder))[300:]
    assert [reason.partition(" (")[0] for _, reason in told] == ["nearly the same", "nearly the same"]
    assert all("bits of the perceptual hash differ" in reason for _, reason in told)
    assert not any(
        "hash" in str(reason) for _, reason in fates(run([*rows, *extra], near=1.0, folder=folder, hash_bits=-1))
    )


def test_pictures_that_are_kept_are_copied_into_folders_with_safe_names(raw, tmp_path):
    from amends.curate._adc.images import folder_names

    folder, rows = raw
    strange = {"0": "../../escape", "1": "a/b", "2": "a b", "3": "CON", "4": "\u732b"}
    rows = [row | {"label": strange.get(row["label"], row["label"])} for row in rows]
    how = {"embedding": "vector", "how": How(near=1.0), "folder": folder}
    found = adc_clean.run(rows, out=tmp_path / "out", export="imagefolder", **how)
    place = tmp_path / "out" / "pictures"
    labels = json.loads((place / "labels.json").read_text(encoding="utf-8"))
    kept = found.outcome.of("kept")
    there = {(file.parts[-3], labels[file.parts[-2]], file.stem) for file in place.rglob("*.png")}
    assert there == {(row["split"], row["label"], row["sha256"]) for row in kept}
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    assert all(name.replace("_", "").replace("-", "").isalnum() and name != "CON" for name in labels)
    assert len(set(folder_names(["a/b", "a b", "", "CON", "A_B"]).values())) == 5
    with pytest.raises(InputError, match="these are texts"):
        adc_clean.run(pool(), embedding="vector", export="imagefolder")


def test_broken_pictures_are_refused_and_none_leads_out_of_the_folder(raw, tmp_path):
    folder, rows = raw
    Image.new("1", (20000, 20000)).save(folder / "bomb.png")
    Image.new("1", (8000, 8000)).save(folder / "large.png")
    good = (folder / rows[0]["path"]).read_bytes()
    (folder / "cut.png").write_bytes(good[: len(good) // 2])
    (folder / "text.png").write_text("no picture")
    (folder / "page.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")
    (tmp_path / "outside.png").write_bytes(good)
    os.symlink(tmp_path / "outside.png", folder / "link.png")
    faults = {
        "cut.png": "not a sound picture",
        "text.png": "not a sound picture",
        "bomb.png": "more than 50,000,000 pixels",
        "large.png": "8000 x 8000 pixels, more than 50,000,000",
        "page.eps": "not a sound picture",
        "none.png": "no such file",
        "x" * 300 + ".png": "no such file",
        "link.png": "the path leads out of the folder",
        f"../{tmp_path.name}/outside.png": "the path leads out of the folder",
        str(tmp_path / "outside.png"): "the path leads out of the folder",
        "files": "no such file",
        "": "no path",
    }
    odd = [rows[0] | {"path": path, "sha256": None} for path in faults]
    odd.append(rows[0] | {"sha256": "0" * 64})
    told = fates(run([*rows, *odd], folder=folder, near=1.0))[300:]
    assert told == [("refused", reason) for reason in faults.values()] + [
        ("refused", "the file is not the one that was collected (sha256)")
    ]


@pytest.fixture(scope="module", params=["clip", "vit", "pooled"])
def tiny_eye(request, tmp_path_factory):
    """A random encoder of pictures with its processor."""
    import torch
    from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTModel

    folder = tmp_path_factory.mktemp("eye") / request.param
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    if request.param == "clip":
        seen = size | {"image_size": 32, "patch_size": 8}
        read = size | {"vocab_size": 99, "max_position_embeddings": 16}
        model = CLIPModel(CLIPConfig(text_config=read, vision_config=seen, projection_dim=8))
        kind = "CLIPImageProcessor"
    else:
        model = ViTModel(ViTConfig(**size, image_size=32, patch_size=8), add_pooling_layer=request.param == "pooled")
        kind = "ViTImageProcessor"
    model.save_pretrained(folder)
    edge = {"height": 32, "width": 32}
    about = {"image_processor_type": kind, "size": edge, "crop_size": edge, "do_resize": True, "do_normalize": True}
    about |= {"do_rescale": True, "rescale_factor": 1 / 255, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(about))
    return folder


def seen_by(folder, pixels):
    """What a model makes of one picture, written out without its processor."""
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder).eval()
    x = torch.tensor((pixels / 255 - 0.5) / 0.5, dtype=torch.float32).permute(2, 0, 1)[None]
    with torch.no_grad():
        if folder.name == "clip":
            vector = model.visual_projection(model.vision_model(x).pooler_output)
        else:
            out = model(x)
            vector = out.pooler_output if folder.name == "pooled" else out.last_hidden_state[:, 0]
    return (vector / vector.norm()).numpy()[0]


def test_pictures_are_embedded_by_a_model_each_as_if_it_were_alone(raw, tiny_eye):
    from amends.lm.image_encoders import embed_images, load_image_encoder

    encoder = load_image_encoder(str(tiny_eye))
    X, _ = load_digits(return_X_y=True)
    pictures = [picture(x).convert("RGB") for x in X[:40]]
    found_ND = embed_images(encoder, iter(pictures)).numpy()
    assert found_ND.shape == (40, 8 if tiny_eye.name == "clip" else 16)
    assert np.linalg.norm(found_ND, axis=1) == pytest.approx(np.ones(40), abs=1e-5)
    assert embed_images(encoder, pictures[35:36]).numpy()[0] == pytest.approx(found_ND[35], abs=1e-5)
    assert found_ND[35] == pytest.approx(seen_by(tiny_eye, np.asarray(pictures[35])), abs=1e-4)
    if tiny_eye.name != "clip":
        return
    folder, _ = raw
    found = run(str(folder), embedder=str(tiny_eye), near=0.99999)
    assert found.record["weights"]["embedder"]
    assert found.outcome.counts()["rows"] == 300


def test_an_encoder_of_texts_or_a_pickle_is_no_encoder_of_pictures(tiny_model, tiny_eye, tmp_path):
    import shutil

    from amends.lm.image_encoders import load_image_encoder

    with pytest.raises(InputError, match="could not be loaded as an encoder of pictures"):
        load_image_encoder(str(tiny_model))
    shutil.copytree(tiny_eye, tmp_path / "p")
    (tmp_path / "p" / "model.safetensors").rename(tmp_path / "p" / "pytorch_model.bin")
    with pytest.raises(InputError, match="no safetensors"):
        load_image_encoder(str(tmp_path / "p"))


# Bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: [row | {"label": "ant"} for row in rows], "one class"),
        (lambda rows: [row | {"vector": [1.0] * 16} for row in rows], "these features do not tell samples apart"),
        (lambda rows: [row | {"vector": [0.0] * 16} for row in rows], 'no row has a usable vector in "vector"'),
        (lambda rows: [{"text": "a"}], 'no row has the column "label"'),
        (lambda rows: [{"label": "a"}], 'no row has the column "text" or "path"'),
        (lambda rows: [{"label": "a", "text": "b"}], 'no row has the column "vector"'),
        (lambda rows: [row | {"text": ""} for row in rows], "no text, and no other row can be used"),
        (lambda rows: [*rows, rows[0] | {"text": "short", "vector": [1.0, 2.0]}], "an embedding of 2 numbers"),
        (lambda rows: [*rows, {"path": "a.png", "label": "ant", "kind": "image"}], "Clean them apart"),
        (lambda rows: [row | {"split": "train"} for row in rows], 'the column "split" is there already'),
        (lambda rows: [row | {"text": "one"} for row in rows], "every row was found for two classes"),
        (lambda rows: [row | {"path": "a.png", "kind": "image"} for row in rows], "need the folder"),
    ],
)
def test_data_that_cannot_be_cleaned_are_refused_with_the_place(change, message):
    with pytest.raises(InputError) as error:
        run(change(pool()))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"near": 0.0}, "--near 0"),
        ({"hash_bits": 40}, "--hash-bits 40"),
        ({"deviations": -1.0}, "--deviations -1"),
        ({"shares": (0.5, 0.5, 0.5)}, "expected three shares that sum to 1"),
        ({"method": "magic"}, "--method magic: unknown"),
        ({"embedder": None}, "give one of --embedder and --embedding"),
    ],
)
def test_options_that_cannot_be_are_refused(how, message):
    with pytest.raises(InputError) as error:
        run(pool(), **how)
    assert message in str(error.value)


def test_a_row_of_a_megabyte_is_a_row_of_text_and_all_rows_the_same_are_one(tmp_path):
    rows = pool()
    rows[0]["text"] = "x" * 1_000_000
    write_rows(tmp_path / "p.jsonl", rows)
    assert run(tmp_path / "p.jsonl").outcome.counts()["rows"] == 200
    same = [row | {"text": "one", "label": "ant"} for row in rows]
    with pytest.raises(InputError, match="one class"):
        run(same)
    two = [row | {"text": row["label"]} for row in rows]
    found = run(two)
    assert found.outcome.counts()["dropped"] == 196
    assert "4 samples are left, fewer than 10" in found.looked.refusal


def test_no_test_split_is_missed_where_none_was_asked_for():
    told = {shares: run(pool(), shares=shares).record["warnings"] for shares in ((1, 0, 0), (0.99, 0.01, 0))}
    assert not any("No row in test" in warning for warnings in told.values() for warning in warnings)


def test_what_it_kept_is_a_pool_for_it_again():
    kept = run(pool()).outcome.of("kept")
    again = run(kept).outcome.of("kept")
    assert {"found_as", "earlier_found_as", "split", "earlier_split"} <= set(again[0])


def test_labels_may_be_numbers_of_numpy_and_1_is_1_point_0():
    names = sorted({row["label"] for row in pool()})
    rows = [row | {"label": names.index(row["label"])} for row in pool()]
    odd = [row | {"label": float(row["label"]) if i % 2 else np.int64(row["label"])} for i, row in enumerate(rows)]
    one, other = run(rows), run(odd)
    assert one.outcome.counts() == other.outcome.counts()
    assert one.looked.names == other.looked.names == ["0", "1", "2", "3", "4"][: len(names)]
    assert one.record["warnings"] == other.record["warnings"]


def test_the_command_cleans_a_table(amends, tmp_path):
    write_rows(tmp_path / "p.csv", pool())
    out = tmp_path / "out"
    code, _, err = amends(
        "curate", "adc_clean", tmp_path / "p.csv", "--embedding", "vector", "--out", out, "--review", 5
    )
    assert code == 0, err
    assert "200 rows: " in err and "done: " in err
    assert (out / "kept.csv").exists() and (out / "review.csv").exists()
    code, _, err = amends("curate", "adc_clean", tmp_path / "p.csv", "--embedding", "vector", "--out", out)
    assert code == 2 and "exists already" in err
    split = ("--split", 0.6, 0.2, 0.2)
    code, _, err = amends(
        "curate", "adc_clean", tmp_path / "p.csv", "--embedding", "vector", "--out", tmp_path / "b", *split
    )
    assert code == 0, err
