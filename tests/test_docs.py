"""The documentation is in step with the code: one file = one command = one page = one test."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"), key=str)

spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
generate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(generate)

COMMANDS = list(generate.command_names())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_tables_in_the_page_are_those_of_the_code(page):
    text = page.read_text(encoding="utf-8")
    assert generate.updated(text) == text, "run: make docs"
    assert text.count("<!-- ") == 2 * len(generate.TABLE.findall(text)), "a marker without its partner"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_page_in_the_contents_and_its_test(name):
    page = generate.page_of(name)
    text = (DOCS / page).read_text(encoding="utf-8")
    assert text.startswith(f"# amends {name}\n")
    assert f"<!-- options: {name} -->" in text
    assert page in str(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    folder, _, file = page.removesuffix(".md").rpartition("/")
    assert (ROOT / "tests" / folder / f"test_{file}.py").is_file()


def test_every_page_of_a_command_belongs_to_a_command_that_exists():
    pages = {f"{page.parent.name}/{page.name}" for page in PAGES if page.parent != DOCS}
    assert pages == {generate.page_of(name) for name in COMMANDS}


def test_an_old_table_is_noticed_and_mended():
    name = COMMANDS[0]
    old = f"Above.\n<!-- options: {name} -->\nold\n<!-- end -->\nBelow.\n"
    new = generate.updated(old)
    assert new.startswith(f"Above.\n<!-- options: {name} -->\n\n| option |")
    assert new.endswith("|\n\n<!-- end -->\nBelow.\n")
    assert "| `--config` | path |" in new
    assert generate.updated(new) == new


def test_the_page_of_a_rival_has_each_of_its_options_and_tells_of_those_that_differ_from_flats():
    rows, text = generate._option_rows("unlearn simnpo"), generate.option_table("unlearn simnpo")
    table, _, shared = text.partition("defaults included: ")
    assert set(re.findall("`--[^`]*`", table + shared)) == set(rows)
    assert "| `--model` |" in table  # what has to be given stands on each page
    assert "| `--delta` |" in table  # what FLAT has not
    assert "| `--forget-weight` | float, at least 0 | 0.125 |" in table  # FLAT's is 1
    assert "`--epochs`" in shared
    assert "--config" in generate.option_table("unlearn flat").splitlines()[-1]  # FLAT's page has them all


def test_the_site_builds_without_a_warning_and_asks_nothing_of_other_hosts(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "<td><code>--config</code></td>" in (tmp_path / "site/unlearn/flat/index.html").read_text(encoding="utf-8")
    for page in (tmp_path / "site").rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        for loads in ('src="http', 'src="//', 'rel="stylesheet" href="http', "@import url(http"):
            assert loads not in text, f"{page.name}: {loads}"


def test_the_names_of_the_benchmarks_are_told_without_an_installation(tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "benchmarks").mkdir()
    for name in ("one", "_shared"):
        (tmp_path / "benchmarks" / f"{name}.py").touch()

    alone = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}

    def bench(*more):
        words = ["make", "PYTHON=false", "bench", *more]  # no installation comes of that Python
        return subprocess.run(words, cwd=tmp_path, env=alone, capture_output=True, text=True, check=False)

    assert bench().stdout == "make bench NAME=... with one of:\n  one\n"
    assert bench("NAME=two").stdout == "There is no benchmarks/two.py; 'make bench' lists the names.\n"
    assert "amends needs Python 3.11" in bench("NAME=one").stdout
