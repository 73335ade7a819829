import json
import subprocess
import sys

import pytest

from amends import cli
from amends.io.atomic import check_manifest, write_json, write_manifest, write_text
from amends.io.errors import InputError
from amends.io.run import describe
from amends.verbs.report import command


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    data = {"forget": {"path": "f.jsonl", "rows": 1, "kept": 1, "dropped": [], "sha256": "0"}}
    weights = {"before": "1", "after": "2"}
    config = {"model": "somebody/small-lm", "divergence": "kl"}
    write_json(
        folder / "run.json",
        describe(command="unlearn flat", config=config, seed=0, data=data, weights=weights, seconds={}),
    )
    write_text(folder / "history.jsonl", "")
    write_text(folder / "report.html", "old")
    write_manifest(folder)
    return folder


def test_the_page_is_written_anew_and_the_manifest_agrees(run):
    command(run)
    assert (run / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert check_manifest(run) == []


def test_a_page_elsewhere_leaves_the_run_as_it_was(run, tmp_path):
    before = {file.name: file.read_bytes() for file in run.iterdir()}
    command(run, out=tmp_path / "new" / "page.html")
    assert (tmp_path / "new" / "page.html").is_file()
    assert {file.name: file.read_bytes() for file in run.iterdir()} == before


def test_another_page_inside_the_run_is_listed(run):
    command(run, out=run / "second.html")
    assert "second.html" in json.loads((run / "manifest.json").read_text(encoding="utf-8"))["files"]
    assert check_manifest(run) == []


def test_a_changed_run_is_not_given_a_new_manifest(run, tmp_path):
    write_text(run / "history.jsonl", "{}\n")
    with pytest.raises(InputError, match=r"history\.jsonl: size"):
        command(run)
    assert (run / "report.html").read_text(encoding="utf-8") == "old"
    command(run, out=tmp_path / "page.html")


@pytest.mark.parametrize("name", ["run.json", "history.jsonl", "manifest.json"])
def test_a_file_of_the_run_is_not_overwritten(name, run):
    with pytest.raises(InputError, match="is part of the run"):
        command(run, out=run / name)


def test_a_file_elsewhere_is_replaced_only_if_it_is_a_page(run, tmp_path):
    (tmp_path / "forget.jsonl").write_text("mine")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    for name in ("forget.jsonl", "gone"):
        with pytest.raises(InputError, match=f"{name}: exists already"):
            command(run, out=tmp_path / name)
    assert (tmp_path / "forget.jsonl").read_text() == "mine" and (tmp_path / "gone").is_symlink()
    (tmp_path / "page.html").write_text("old")
    command(run, out=tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_a_folder_as_out_is_refused(run, tmp_path):
    with pytest.raises(InputError, match="is a folder"):
        command(run, out=tmp_path)


@pytest.mark.parametrize("as_beside", [True, False])
def test_what_is_no_run_folder_is_refused(as_beside, run, tmp_path):
    with pytest.raises(InputError, match="not a run folder"):
        command(*((run, [tmp_path]) if as_beside else (tmp_path,)))


def test_the_command_line_takes_runs_beside(run):
    with pytest.raises(SystemExit) as stop:
        cli.main(["report", str(run), "--beside", str(run)])
    assert stop.value.code == 0
    assert "FLAT (kl)" in (run / "report.html").read_text(encoding="utf-8")


def test_the_verb_needs_no_torch(run):
    code = "import sys, amends.verbs.report; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
