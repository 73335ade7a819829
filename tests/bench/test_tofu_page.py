"""The page of the table: which cells it shows, its intervals, and what it says in words."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from amends.bench._entries import Entry
from amends.bench._page import Line, in_words, lines_of, page, text_of
from amends.bench.tofu import versions_of
from amends.io.atomic import write_json
from amends.report.plots import Span

from .tofu_world import cell, claim, put_cell, run_small, summary

ROOT = Path(__file__).resolve().parents[2]
ROLES = {"before": summary(0.98, 1.0), "reference": summary(0.33, 1.0)}


def test_the_page_is_of_the_cells_that_are_there_whoever_writes_it(amends, world, tiny_model, tmp_path):
    out = tmp_path / "bench"
    claim(out, world, tiny_model)
    for name in ("flat", "ga", "npo+retain"):
        put_cell(out, name)
    put_cell(out, "ga", seed=1)
    put_cell(out, "flat", kind="published")
    put_cell(out, "gone_method")
    pages = []
    for methods in ("flat,ga", "npo+retain,flat"):
        code, _, err = run_small(amends, world, tiny_model, out, "--page-only", "--methods", methods, "--seeds", 1)
        assert code == 0, err
        pages.append((out / "tofu.md").read_text(encoding="utf-8"))
    assert "gone_method-0.json: no method of this version" in err
    assert pages[0] == pages[1]
    assert "5 of 5 cells are made" in pages[0] and "## forget, published settings" in pages[0]
    lines = [line for line in pages[0].splitlines() if line.startswith("| `")]
    assert [line.split(" | ")[:2] for line in lines] == [
        ["| `flat`", "1 of 1"],
        ["| `ga`", "2 of 2"],
        ["| `npo+retain`", "1 of 1"],
        ["| `flat`", "1 of 1"],
    ]


def test_the_page_alone_takes_the_plan_from_the_folder(amends, world, tiny_model, tmp_path):
    out = tmp_path / "bench"
    claim(out, world, tiny_model)
    put_cell(out, "ga")
    before = (out / "bench.json").read_bytes()
    idle = ["--epochs", 9, "--teach-rate", 1, "--rates", "fast", "--reference", "x=gone", "--taught", "no/such"]
    code, _, err = run_small(amends, world, tiny_model, out, "--page-only", *idle, "--layers", "7")
    assert code == 0, err
    assert "Searched: 1 epochs of 8 rows, rates 0.001, 0.01, layers all." in (out / "tofu.md").read_text(
        encoding="utf-8"
    )
    assert (out / "bench.json").read_bytes() == before


def test_a_page_of_no_cells_is_refused_and_nothing_is_made(amends, world, tiny_model, tmp_path):
    out = tmp_path / "bench"
    code, _, err = run_small(amends, world, tiny_model, out, "--page-only")
    assert code == 2
    assert "bench: no bench.json here, so there are no cells to write a page of. Give the --out that cells" in err
    assert not out.exists()
    out.mkdir()
    for content, what in (({"epochs": 1}, "eval_rows is missing"), ([], "not a list of settings")):
        write_json(out / "bench.json", content)
        code, _, err = run_small(amends, world, tiny_model, out, "--page-only")
        assert (code, f"not the plan of a table ({what})" in err) == (2, True), err


def test_the_page_alone_shows_what_is_missing_as_empty(amends, world, tiny_model, tmp_path):
    out = tmp_path / "bench"
    claim(out, world, tiny_model)
    code, _, err = run_small(amends, world, tiny_model, out, "--methods", "ga", "--page-only")
    assert code == 0, err
    assert not list(out.glob("cells/**/*.json"))
    text = (out / "tofu.md").read_text(encoding="utf-8")
    assert "0 of 2 cells are made" in text
    assert "| `ga` | 0 of 2 |" in text


def test_the_words_tell_forgetting_from_keeping_and_say_where_flat_loses():
    cells = [
        cell("flat", 0.34, 0.5),
        cell("npo+retain", 0.36, 0.8),
        cell("graddiff+retain", 0.3, 0.52),
        cell("po+retain", 0.7, 0.95),
        cell("ga", 0.0, 0.1, 400.0),
    ]
    told = "\n".join(in_words(lines_of(cells), ROLES))
    assert "at most 0.38): `npo+retain`, `graddiff+retain`, `flat`, `ga`." in told
    assert "Did not: `po+retain`." in told
    assert "zero-shot accuracy more than 0.03 lower): `ga`." in told
    assert "`flat` (keeps 0.50) loses to `npo+retain`, which forgot as much" in told
    assert "it keeps more than `ga`; the others cannot be told from it." in told


def test_a_search_that_ended_at_its_edge_is_told():
    def searched(name, rate):
        trials = [{"learning_rate": one} for one in (1e-4, 2e-4, 3e-4)]
        return cell(name, 0.6, 1.0, options={"learning_rate": rate}, trials=trials)

    told = in_words(lines_of([searched("flat", 2e-4), searched("ga", 3e-4), searched("ceu", 1e-4)]), ROLES)
    assert "At the edge: of `ga`, `ceu` the best rate is the least or the greatest that was searched" in told[2]
    assert "At the edge" not in "".join(in_words(lines_of([searched("flat", 2e-4)]), ROLES))


def test_flat_that_forgot_too_little_is_said_to_lose():
    told = in_words(lines_of([cell("flat", 0.6, 1.0), cell("ga", 0.3, 0.2)]), ROLES)
    assert told[-1].startswith("`flat` loses here")


def test_the_interval_over_seeds_is_that_of_the_questions_and_wider_where_seeds_differ():
    same = Line(Entry("flat"), [cell("flat", 0.4, 0.5)[1]] * 3, [], 3).value("forget_rouge_l")
    assert (same.value, same.high - same.value) == (pytest.approx(0.4), pytest.approx(0.04))
    differ = Line(Entry("flat"), [cell("flat", f, 0.5)[1] for f in (0.3, 0.4, 0.5)], [], 3).value("forget_rouge_l")
    questions, seeds = (0.04 / scipy.stats.norm.ppf(0.975)) ** 2, 0.01 / 3
    student = scipy.stats.t.ppf(0.975, 2 * (questions + seeds) ** 2 / seeds**2)
    assert differ.high - differ.value == pytest.approx(student * math.sqrt(questions + seeds))
    assert Line(Entry("flat"), [], [], 3).value("forget_rouge_l") is None


@pytest.mark.parametrize(("between", "least"), [(0.0, 0.92), (0.05, 0.92), (0.15, 0.86)])  # of seeds; of questions .05
@pytest.mark.parametrize("seeds", [2, 3])
def test_an_interval_over_few_seeds_holds_the_truth_about_as_often_as_it_says(between, seeds, least):
    rng, held, trials = np.random.default_rng(0), 0, 1000
    for questions, drawn in zip(rng.normal(0, 0.05, trials), rng.normal(0, between, (trials, seeds)), strict=True):
        made = []
        for value in (0.5 + questions + drawn).tolist():
            interval = {"value": value, "low": value - 1.96 * 0.05, "high": value + 1.96 * 0.05}
            made.append({"summary": {"forget_rouge_l": interval}})
        span = Line(Entry("flat"), made, [], seeds).value("forget_rouge_l")
        held += span.low <= 0.5 <= span.high
    assert held / trials >= least


def test_an_interval_that_is_shown_holds_its_value():
    assert text_of(Span(0.0038, 0.0021, 0.0049)) == "3.8e-03 (2.1e-03 to 4.9e-03)"
    assert text_of(Span(0.0038, 0.0, 0.02)) == "3.8e-03 (0 to 2.0e-02)"
    assert text_of(Span(0.5, 0.4567, 0.6)) == "0.50 (0.46 to 0.60)"
    assert text_of(Span(69.72, 9.96, 81.0)) == "69.7 (10.0 to 81.0)"


def test_one_question_to_keep_gives_no_interval_and_tells_no_two_apart():
    cells = [cell("flat", 0.3, 0.5), cell("npo+retain", 0.3, 0.9)]
    for _, record in cells:
        record["summary"]["retain_rouge_l"] |= {"low": None, "high": None}
    found, _ = page("T", cells, {"forget": ROLES}, "About.")
    assert "`flat` (keeps 0.50) loses to none" in found and "the others cannot be told from it." in found


def test_cells_of_two_versions_are_said_to_be():
    made = [{"versions": {"torch": "2.2"}}, {"versions": {"torch": "2.1", "peft": "1"}}, {"versions": {"torch": "2.2"}}]
    assert versions_of(made) == {"torch": ["2.1", "2.2"], "peft": ["1"]}


def test_an_empty_cell_is_empty_in_the_page_and_in_no_sentence():
    found, charts = page("T", [cell("flat", 0.3, 0.6), (cell("ga", 0, 0)[0], None)], {"forget": ROLES}, "About.")
    row = next(line for line in found.splitlines() if line.startswith("| `ga`"))
    assert set(row.replace("`ga`", "").replace("0 of 1", "").replace("|", "").strip()) == set()
    assert "`ga`" not in found.replace(row, "")
    assert list(charts) == ["forget-searched.svg"]


def test_the_published_table_is_that_of_the_recorded_cells(tmp_path, monkeypatch, amends):
    recorded = tmp_path / "bench"
    shutil.copytree(ROOT / "examples/tofu/bench", recorded)
    monkeypatch.chdir(ROOT)
    recipe = ROOT / "examples/tofu/bench.yaml"
    code, _, err = amends("bench", "tofu", "--config", recipe, "--out", recorded, "--page-only")
    assert code == 0, err
    assert (recorded / "tofu.md").read_text(encoding="utf-8") == (ROOT / "docs/tofu.md").read_text(encoding="utf-8")
    assert [(ROOT / "docs" / chart.name).is_file() for chart in recorded.glob("*.svg")] == [True]
