import getpass
import json
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import amends
from amends.io.atomic import write_json
from amends.io.errors import InputError
from amends.io.run import FIELDS, describe, platform_info, read_jsonl, read_run, told, versions, write_jsonl


def record() -> dict:
    return describe(
        command="unlearn flat",
        config={"divergence": "kl"},
        seed=0,
        data={"forget": {"rows": 1}},
        weights={"before": "a", "after": "b"},
        seconds={"in all": 1.5},
        stopped="all steps done",
        start={"v_f": 0.9},
        warnings=["low"],
    )


def test_a_record_comes_back_as_it_was_written(tmp_path):
    write_json(tmp_path / "run.json", record_ := record())
    assert read_run(tmp_path) == record_
    assert list(record_) == list(FIELDS)
    assert record_["amends"] == amends.__version__


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (True, True),
        (Path("a") / "b", "a/b"),
        (("No.", Path("c")), ["No.", "c"]),
        ([{"answer": "Up."}], {"rows": 1}),
        (np.zeros((4, 2)), {"rows": 4}),
        ({"rmse": 1}, {"rmse": 1}),
        (object(), None),
    ],
)
def test_whatever_an_option_is_given_it_can_be_written(value, said):
    assert told(value) == said and type(told(value)) is type(said)


@pytest.mark.parametrize("name", FIELDS)
def test_a_record_without_a_field_or_with_another_kind_is_refused(tmp_path, name):
    record_ = record()
    write_json(tmp_path / "run.json", {**record_, name: True})
    with pytest.raises(InputError, match=rf'run\.json: "{name}" has another kind of value\. The record was changed'):
        read_run(tmp_path)
    del record_[name]
    write_json(tmp_path / "run.json", record_)
    with pytest.raises(InputError, match=rf'run\.json: "{name}" is missing\. The record was changed'):
        read_run(tmp_path)


def test_what_is_no_run_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"not a run folder \(no run\.json\)\. Give a folder that amends wrote"):
        read_run(tmp_path)
    with pytest.raises(InputError, match=r"nowhere: no such folder\. Give one that amends wrote with --out\."):
        read_run(tmp_path / "nowhere")
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(InputError, match=r"run\.json: not the record of a run\."):
        read_run(tmp_path)
    (tmp_path / "run.json").write_text('{"amends": "0.1.0",\n')
    with pytest.raises(InputError, match=r"run\.json:2: not JSON at column 1"):
        read_run(tmp_path)


def test_versions_are_found_without_importing_the_packages():
    code = "import json, sys; from amends.io.run import versions; print(json.dumps([versions(), list(sys.modules)]))"
    found, modules = json.loads(subprocess.check_output([sys.executable, "-c", code]))
    assert found["python"] == platform.python_version()
    assert {"torch", "transformers", "numpy"} <= found.keys()
    assert not {"torch", "transformers", "datasets", "pyarrow", "numpy"} & set(modules)


def test_a_package_that_is_absent_is_left_out(monkeypatch):
    monkeypatch.setattr("amends.io.run.PACKAGES", ("numpy", "surely-not-installed"))
    assert versions().keys() == {"python", "numpy"}


def test_the_platform_names_neither_host_nor_user():
    assert platform_info().keys() == {"os", "machine", "cpus"}
    words = json.dumps(platform_info()).replace('"', " ").split()
    assert platform.node() not in words
    assert getpass.getuser() not in words


def test_lines_come_back_as_they_were_written(tmp_path):
    file = tmp_path / "history.jsonl"
    write_jsonl(file, [])
    assert read_jsonl(file) == []
    write_jsonl(file, iter([{"step": 1, "loss": float("nan")}, {"step": 2, "where": "é\u2028"}]))
    assert read_jsonl(file) == [{"step": 1, "loss": None}, {"step": 2, "where": "é\u2028"}]


def test_a_torn_last_line_is_named(tmp_path):
    (tmp_path / "history.jsonl").write_text('{"step": 1}\n{"st')
    with pytest.raises(InputError, match=r"history\.jsonl:2: not JSON"):
        read_jsonl(tmp_path / "history.jsonl")
