import hashlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amends.io.atomic import (
    Problem,
    check_manifest,
    check_new,
    lock,
    new_folder,
    sha256_file,
    sha256_json,
    write_json,
    write_manifest,
    write_text,
)
from amends.io.errors import InputError

HOLD = (
    "import sys; from amends.io.atomic import lock\nwith lock(sys.argv[1]): print('held', flush=True); sys.stdin.read()"
)


def everything(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_a_folder_gets_its_name_only_when_complete(tmp_path):
    with new_folder(tmp_path / "a" / "run") as folder:
        assert folder.name == f".run.tmp-{os.getpid()}"
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text("x")
        assert not (tmp_path / "a" / "run").exists()
    assert everything(tmp_path) == ["a", "a/run", "a/run/inner", "a/run/inner/file"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_inside_leaves_nothing(tmp_path, error):
    with pytest.raises(error), new_folder(tmp_path / "a" / "b" / "run") as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text("x")
        raise error
    assert everything(tmp_path) == []


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_what_exists_is_refused_and_untouched(tmp_path, kind):
    place = tmp_path / "run"
    if kind == "folder":
        place.mkdir()
    elif kind == "file":
        place.write_text("mine")
    else:
        place.symlink_to(tmp_path / "nowhere")
    for use in (check_new, lambda path: new_folder(path).__enter__()):
        with pytest.raises(InputError, match=r"run: exists already\. Give a name that is not taken, or remove it\.$"):
            use(place)
    assert everything(tmp_path) == ["run"]


def test_a_folder_that_comes_up_meanwhile_is_not_overwritten(tmp_path):
    with pytest.raises(InputError, match="exists already"), new_folder(tmp_path / "run"):
        (tmp_path / "run").mkdir()
    assert everything(tmp_path) == ["run"]


def test_a_place_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file is a file, not a folder\. Give another place\.$"):
        check_new(tmp_path / "file" / "run")


def test_a_place_that_cannot_be_written_to_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match=r"cannot be written to\. Give another place\.$"):
        check_new(tmp_path / "a" / "run")


def test_a_second_process_is_refused_until_the_first_is_done(tmp_path):
    place = tmp_path / "run"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLD, str(place)], **pipes) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=rf"run: another process \({other.pid} on .+\) is writing there\. Wait"):
            new_folder(place).__enter__()
        other.communicate("")
    assert everything(tmp_path) == []
    with new_folder(place):
        pass
    assert everything(tmp_path) == ["run"]


def test_the_lock_of_a_killed_process_is_taken_over_with_what_it_left(tmp_path):
    place = tmp_path / "run"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLD, str(place)], **pipes) as other:
        other.stdout.readline()
        (tmp_path / f".run.tmp-{other.pid}").mkdir()
        (tmp_path / f".run.tmp-{other.pid}" / "half").write_text("x")
        other.kill()
    assert (tmp_path / ".run.lock").exists()
    with new_folder(place):
        pass
    assert everything(tmp_path) == ["run"]


def test_the_lock_of_an_earlier_process_with_our_id_is_taken_over(tmp_path):
    (tmp_path / ".run.lock").write_text(f"{os.getpid()} {socket.gethostname()}")
    with new_folder(tmp_path / "run"):
        pass
    assert everything(tmp_path) == ["run"]


@pytest.mark.parametrize("owner", ["{dead} elsewhere", "", "nonsense", "99999999999999999999 {host}", "-1 {host}"])
def test_a_lock_whose_owner_may_be_alive_is_respected(tmp_path, dead_pid, owner):
    (tmp_path / ".run.lock").write_text(owner.format(dead=dead_pid, host=socket.gethostname()))
    with pytest.raises(InputError, match=r"if it no longer runs, remove .*\.run\.lock\.$"):
        lock(tmp_path / "run").__enter__()
    assert everything(tmp_path) == [".run.lock"]


def test_a_stale_lock_that_another_took_over_first_is_given_back(tmp_path, dead_pid, monkeypatch):
    file, rename = tmp_path / ".run.lock", Path.rename
    file.write_text(f"{dead_pid} {socket.gethostname()}")

    def slower(path, target):
        if path == file:
            monkeypatch.setattr(Path, "rename", rename)
            file.write_text(f"{os.getppid()} {socket.gethostname()}")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", slower)
    with pytest.raises(InputError, match=rf"another process \({os.getppid()} on "):
        lock(tmp_path / "run").__enter__()
    assert everything(tmp_path) == [".run.lock"]


def test_a_lock_held_through_the_work_admits_the_folder_at_its_end(tmp_path):
    with lock(tmp_path / "run"):
        with new_folder(tmp_path / "x" / ".." / "run"):
            pass
        assert everything(tmp_path) == [".run.lock", "run"]
    assert everything(tmp_path) == ["run"]


def test_text_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "new" / "file.txt"
    write_text(file, "é\r\n")
    assert file.read_bytes() == b"\xc3\xa9\r\n"

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_text(file, "other")
    assert file.read_bytes() == b"\xc3\xa9\r\n"
    assert everything(tmp_path) == ["new", "new/file.txt"]


def test_json_keeps_the_order_and_has_null_for_what_is_not_finite(tmp_path):
    write_json(tmp_path / "x.json", {"b": float("nan"), "a": [1.5, (float("inf"), "é")], "c": {"d": float("-inf")}})
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert text.startswith('{\n "b": null,\n "a": [\n  1.5,')
    assert json.loads(text) == {"b": None, "a": [1.5, [None, "é"]], "c": {"d": None}}


def test_digests_are_those_of_the_bytes(tmp_path):
    (tmp_path / "x").write_bytes(b"abc" * 100_000)
    assert sha256_file(tmp_path / "x") == hashlib.sha256(b"abc" * 100_000).hexdigest()
    assert sha256_json({"b": [1, "é"], "a": None}) == hashlib.sha256('{"a":null,"b":[1,"é"]}'.encode()).hexdigest()
    with pytest.raises(ValueError, match="not JSON compliant"):
        sha256_json(float("nan"))


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.integers() | st.booleans(), max_size=5))
def test_the_order_of_keys_does_not_change_the_digest(found):
    assert sha256_json(found) == sha256_json(dict(reversed(found.items())))


@pytest.fixture
def signed(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"\0" * 1000)
    (tmp_path / "model" / "manifest.json").write_text("{}")
    (tmp_path / "run.json").write_text("{}")
    write_manifest(tmp_path)
    return tmp_path


def flip(folder):
    data = bytearray((folder / "model" / "weights").read_bytes())
    data[500] ^= 1
    (folder / "model" / "weights").write_bytes(data)


def link(folder):
    copy = (folder / "model" / "weights").rename(folder.parent / f"{folder.name}-weights")
    (folder / "model" / "weights").symlink_to(copy)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda folder: None, []),
        (flip, [Problem("model/weights", "changed")]),
        (link, [Problem("model/weights", "changed")]),
        (lambda folder: (folder / "model" / "weights").write_bytes(b""), [Problem("model/weights", "size")]),
        (lambda folder: (folder / "run.json").unlink(), [Problem("run.json", "missing")]),
        (
            lambda folder: (folder / "model" / "manifest.json").write_text("[]"),
            [Problem("model/manifest.json", "changed")],
        ),
        (lambda folder: (folder / ".extra").write_text(""), [Problem(".extra", "unlisted")]),
        (
            lambda folder: (folder / "run.json").rename(folder / "model" / "run.json"),
            [Problem("model/run.json", "unlisted"), Problem("run.json", "missing")],
        ),
    ],
)
def test_a_manifest_finds_what_was_changed(signed, damage, expected):
    damage(signed)
    assert check_manifest(signed) == expected


def test_a_manifest_lists_size_and_digest_of_all_other_files(signed):
    files = json.loads((signed / "manifest.json").read_text())["files"]
    assert list(files) == ["model/manifest.json", "model/weights", "run.json"]
    assert files["run.json"] == {"bytes": 2, "sha256": hashlib.sha256(b"{}").hexdigest()}


def test_a_manifest_that_names_files_outside_reads_none_of_them(signed):
    write_json(signed / "manifest.json", {"files": {"/etc/passwd": {"bytes": 1, "sha256": ""}}})
    assert Problem("/etc/passwd", "missing") in check_manifest(signed)


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"files": []}', '{"files": {"a": 1}}', '{"files": {"a": {"bytes": 1}}}']
)
def test_a_manifest_of_another_shape_is_refused(signed, content):
    (signed / "manifest.json").write_text(content)
    with pytest.raises(InputError, match=r"manifest\.json: not a manifest: expected"):
        check_manifest(signed)


def test_a_folder_without_a_manifest_or_with_a_torn_one_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no manifest\.json in it\. Give a folder that amends wrote\.$"):
        check_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text('{"files": {')
    with pytest.raises(InputError, match=r"manifest\.json:1: not JSON at column 12"):
        check_manifest(tmp_path)


def test_text_is_not_written_through_a_link_that_waits_under_the_temporary_name(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / f".page.tmp-{os.getpid()}").symlink_to(victim)
    write_text(tmp_path / "page", "new")
    assert (victim.read_text(), (tmp_path / "page").read_text()) == ("mine", "new")
    assert everything(tmp_path) == ["page", "victim"]


def test_a_name_that_is_no_text_is_written_with_question_marks(tmp_path):
    write_text(tmp_path / "a", "b\udcffc")
    assert (tmp_path / "a").read_text() == "b?c"


@pytest.mark.parametrize("name", ["a\0b", "a\nb", "a\ud800", "~/a", "file:///a", "s3://a", "x" * 231, "x" * 231 + "/a"])
def test_a_name_that_cannot_be_meant_is_refused_before_any_work(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError):
        check_new(name)


def test_a_name_of_230_bytes_is_written(tmp_path):
    with new_folder(tmp_path / ("é" * 115)) as folder:
        (folder / "file").touch()
    assert everything(tmp_path) == ["é" * 115, "é" * 115 + "/file"]
