"""Collecting: every hit has one fate and a reason, every sample its query; interrupted runs lose and repeat nothing."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

from amends.curate import adc_collect
from amends.curate._adc.collect import COLUMNS
from amends.curate._adc.design import Class, Design, Subclass, write_design
from amends.curate._adc.sources import FolderCollector, Hit
from amends.io.atomic import check_manifest
from amends.io.errors import InputError
from amends.io.run import read_jsonl, write_jsonl
from amends.io.tables import read_rows
from amends.io.write import write_rows

from .web import Page, serving

JPEG = b"\xff\xd8\xff\xe0"


def design(*names):
    return Design("animals", tuple(Class(name, (Subclass(name, name),)) for name in names or ("cat", "dog")))


CATS = Design(
    "animals",
    (
        Class("cat", (Subclass("black", "black cat"), Subclass("white", "white cat"))),
        Class("dog", (Subclass("black", "black dog"), Subclass("pug", "pug dog"))),
    ),
)


class Fixed:
    """A source that has the same hits for a query each time."""

    name = identity = "fixed"

    def __init__(self, hits):
        self.hits, self.asked = hits, []

    def search(self, query, limit):
        self.asked.append(query)
        yield from self.hits.get(query, [])


def table(out):
    return [row.data for row in read_rows(Path(out) / "samples.parquet")]


def manifest(out):
    """All but times: the table, and the digest of every file."""
    rows = [{name: value for name, value in row.items() if name != "time"} for row in table(out)]
    others = [read_jsonl(Path(out) / f"{fate}.jsonl") for fate in ("missing", "refused")]
    others = [[{name: value for name, value in row.items() if name != "time"} for row in some] for some in others]
    files = {
        file.relative_to(out).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted((Path(out) / "files").rglob("*"))
        if file.is_file()
    }
    return rows, others, files


def put(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


# The job -----------------------------------------------------------------------------------------------------------


def test_every_hit_has_a_fate_and_every_sample_its_query(tmp_path):
    source = Fixed(
        {
            "cat": [
                Hit("a", "a text", licence=" CC BY 4.0 ", meta={"width": 3}),
                Hit("b", JPEG + b"1"),
                Hit("b", JPEG + b"1"),
                Hit("c", fault="closed"),
                Hit("d", "  "),
                Hit("e", tmp_path / "nothing"),
                Hit("f", b"\0"),
                Hit("g", 3),
                Hit("h", JPEG, "text"),
                Hit("http://e.org/a?token=s3cret"),
                Hit("i"),
                Hit("", "text"),
                Hit("j", "half \ud800"),
            ],
            "dog": [Hit("a", "a text")],
        }
    )
    found = adc_collect.run(design(), source, out=tmp_path / "raw")
    assert found.counts() == {"hits": 14, "collected": 3, "missing": 1, "refused": 10}
    rows = table(tmp_path / "raw")
    assert list(rows[0]) == list(COLUMNS)
    assert [(row["label"], row["subclass"], row["query"], row["rank"]) for row in rows] == [
        ("cat", "cat", "cat", 0),
        ("cat", "cat", "cat", 1),
        ("dog", "dog", "dog", 0),
    ]
    assert rows[0] | {"time": ""} == {
        **{"text": "a text", "path": None, "uri": "a", "sha256": hashlib.sha256(b"a text").hexdigest(), "rank": 0},
        **{"label": "cat", "subclass": "cat", "query": "cat", "source": "fixed", "licence": "CC BY 4.0", "time": ""},
        **{"kind": "text", "meta": '{"width": 3}'},
    }
    assert rows[0]["time"].endswith("+00:00")
    assert rows[1]["licence"] is None and rows[1]["kind"] == "image"
    assert (tmp_path / "raw" / rows[1]["path"]).read_bytes() == JPEG + b"1"
    reasons = [row["reason"] for row in read_jsonl(tmp_path / "raw" / "refused.jsonl")]
    assert reasons == [
        "stands twice among the hits of this query",
        "closed",
        "empty",
        "neither an image of a known kind nor a text in UTF-8",
        "its content is int: neither text, bytes nor a path",
        "is said to be text, but is image",
        "lies on the web, and --fetch was not given",
        "holds nothing, and its uri is no address",
        "has no uri: where it is from is not known",
        "holds half a character",
    ]
    (missing,) = read_jsonl(tmp_path / "raw" / "missing.jsonl")
    assert (missing["uri"], missing["query"], missing["reason"]) == ("e", "cat", "no such file")
    told = json.loads((tmp_path / "raw" / "summary.json").read_text())
    assert told["hits"] == told["collected"] + told["missing"] + told["refused"] == 14
    assert told["asked"] == 200 and told["different"] == 2
    for part in ("classes", "queries"):
        assert all(e["hits"] == e["collected"] + e["missing"] + e["refused"] for e in told[part])
        assert sum(entry["hits"] for entry in told[part]) == 14
    assert sum(entry["hits"] for entry in told["reasons"]) == 11
    assert told["licences"] == {"not known": 2, "CC BY 4.0": 1}
    assert check_manifest(tmp_path / "raw") == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw"]
    assert not any(b"s3cret" in file.read_bytes() for file in (tmp_path / "raw").rglob("*") if file.is_file())


def test_a_query_gets_at_most_its_number_and_later_sources_fill_up_what_is_open(tmp_path):
    one = Fixed({"cat": [Hit(f"a{i}", f"text {i}") for i in range(5)], "dog": [Hit("b", "")]})
    other = Fixed({name: [Hit(f"c{i}", f"more {i}") for i in range(9)] for name in ("cat", "dog")})
    other.name = "other"
    adc_collect.run(design(), [one, other], out=tmp_path / "raw", per_query=3)
    rows = table(tmp_path / "raw")
    assert [(row["query"], row["source"], row["rank"]) for row in rows] == [
        *[("cat", "fixed", rank) for rank in range(3)],
        *[("dog", "other", rank) for rank in range(3)],
    ]
    assert other.asked == ["dog"]


def test_a_text_of_several_queries_keeps_all_evidence_and_a_file_is_stored_once(tmp_path):
    same = [Hit("a", "a text"), Hit("b", JPEG)]
    adc_collect.run(design(), Fixed({"cat": same, "dog": same}), out=tmp_path / "raw")
    rows, _, files = manifest(tmp_path / "raw")
    assert [(row["label"], row["uri"]) for row in rows] == [("cat", "a"), ("cat", "b"), ("dog", "a"), ("dog", "b")]
    assert len(files) == 1


@pytest.mark.parametrize("kind", ["text", "image"])
def test_only_what_is_wanted_is_taken(tmp_path, kind):
    adc_collect.run(design(), Fixed({"cat": [Hit("a", "a text"), Hit("b", JPEG)]}), out=tmp_path / "raw", kind=kind)
    assert [row["kind"] for row in table(tmp_path / "raw")] == [kind]


def test_a_source_that_breaks_its_promise_is_named(tmp_path):
    class Broken:
        def search(self, query, limit):
            raise KeyError("url")

    with pytest.raises(InputError, match=r"Broken: search\('cat'\) failed: KeyError"):
        adc_collect.run(design(), Broken(), out=tmp_path / "raw")
    with pytest.raises(InputError, match="fixed: search gave dict"):
        adc_collect.run(design(), Fixed({"cat": [{"uri": "a"}]}), out=tmp_path / "other")


def test_nothing_collected_is_an_error_that_says_why(tmp_path):
    web = [Hit(f"http://e.org/{i}") for i in range(3)]
    with pytest.raises(InputError, match="none of 3 hits was collected; 3 of them: lies on the web"):
        adc_collect.run(design(), Fixed({"cat": web}), out=tmp_path / "raw")
    with pytest.raises(InputError, match="no source has a hit"):
        adc_collect.run(design(), Fixed({}), out=tmp_path / "raw")
    assert list(tmp_path.iterdir()) == []


WEB = {"fetch": True, "contact": "me@example.org", "allow_private": True, "pause_s": 0.0}
NASTY = ["=cmd|' /C calc'!A0", "<script>alert(1)</script>", "../../outside", "\x1b[31mred", "‮dlrow"]


def test_names_that_bite_stay_text(tmp_path):
    hits = {name: [Hit(f'x"><img src=x onerror=alert(1)>{name}', JPEG + name.encode(), None, name)] for name in NASTY}
    plan = design(*NASTY)
    adc_collect.run(plan, Fixed(hits), out=tmp_path / "raw")
    page = (tmp_path / "raw" / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page and "<img" not in page and "\x1b" not in page and "‮" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    rows = table(tmp_path / "raw")
    assert [row["label"] for row in rows] == NASTY
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw"]
    assert all(row["path"] == f"files/{row['sha256'][:2]}/{row['sha256']}.jpg" for row in rows)


# Going on ----------------------------------------------------------------------------------------------------------


class Stops(Fixed):
    """Ctrl-C at its third query."""

    def search(self, query, limit):
        if len(self.asked) == 2:
            raise KeyboardInterrupt
        yield from super().search(query, limit)


NAMES = [f"kind {i}" for i in range(5)]
HITS = {name: [Hit(f"{name} {j}", JPEG + f"{name} {j % 2}".encode()) for j in range(3)] for name in NAMES}


def test_an_interrupted_run_goes_on_query_by_query(tmp_path):
    adc_collect.run(design(*NAMES), whole := Fixed(HITS), out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt, match="the same command goes on"):
        adc_collect.run(design(*NAMES), Stops(HITS), out=tmp_path / "raw")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw.part", "whole"]
    adc_collect.run(design(*NAMES), rest := Fixed(HITS), out=tmp_path / "raw")
    assert (whole.asked, rest.asked) == (NAMES, NAMES[2:])
    assert manifest(tmp_path / "raw") == manifest(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw", "whole"]


def test_another_request_does_not_go_on(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        adc_collect.run(design(*NAMES), Stops(HITS), out=tmp_path / "raw")
    with pytest.raises(InputError, match=r"begun with other settings or data \(per_query\)"):
        adc_collect.run(design(*NAMES), Fixed(HITS), out=tmp_path / "raw", per_query=2)
    with pytest.raises(InputError, match=r"\(design\)"):
        adc_collect.run(design(*NAMES[1:]), Fixed(HITS), out=tmp_path / "raw")
    changed = Fixed(HITS)
    changed.identity = "another"
    with pytest.raises(InputError, match=r"\(sources\)"):
        adc_collect.run(design(*NAMES), changed, out=tmp_path / "raw")
    (tmp_path / "mine.part").mkdir()
    with pytest.raises(InputError, match="no unfinished collection"):
        adc_collect.run(design(*NAMES), Fixed(HITS), out=tmp_path / "mine")
    assert list((tmp_path / "mine.part").iterdir()) == []


def test_a_file_that_was_lost_meanwhile_is_taken_again(tmp_path):
    adc_collect.run(design(*NAMES), Fixed(HITS), out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        adc_collect.run(design(*NAMES), Stops(HITS), out=tmp_path / "raw")
    next(file for file in (tmp_path / "raw.part").rglob("*.jpg")).unlink()
    adc_collect.run(design(*NAMES), rest := Fixed(HITS), out=tmp_path / "raw")
    assert len(rest.asked) == 4  # three that were open, and that of the file
    assert manifest(tmp_path / "raw") == manifest(tmp_path / "whole")


def addresses(site, num=12):
    """Twelve files of two classes in a list; the third is gone, the last two queries share one."""
    rows = [{"uri": site.at(f"/{i}"), "label": ("cat", "dog")[i >= num // 2]} for i in range(num)]
    return [*rows, {"uri": site.at("/0"), "label": "dog"}]


def pages(num=12):
    return {f"/{i}": Page(JPEG + str(i).encode(), "image/jpeg") for i in range(num) if i != 2}


def start(tmp_path, out):
    words = ["curate", "adc_collect", "design.yaml", "--source", "list:list.jsonl", "--out", out, "--fetch"]
    words += ["--contact", "me@example.org", "--allow-private", "--pause-s", "0", "--concurrency", "1"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "amends", *words], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    )


def test_killed_in_a_fetch_a_run_goes_on_and_asks_for_no_file_twice(tmp_path, monkeypatch):
    there, held = pages(), {at: (threading.Event(), threading.Event()) for at in (3, 8)}

    def holding(at):
        def hold(before):
            if not before:
                asked, free = held[at]
                asked.set()
                free.wait(60)
            return Page(JPEG + str(at).encode(), "image/jpeg")

        return hold

    with serving(there | {f"/{at}": holding(at) for at in held}) as site:
        write_design(tmp_path / "design.yaml", design())
        write_jsonl(tmp_path / "list.jsonl", addresses(site))
        for asked, free in held.values():
            process = start(tmp_path, "raw")
            assert asked.wait(60)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            free.set()
            assert (tmp_path / "raw.part").is_dir() and not (tmp_path / "raw").exists()
            with (tmp_path / "raw.part" / "fetched.jsonl").open("ab") as file:
                file.write(b'{"address": "half a li')  # as a kill in the middle of a write leaves it
        process = start(tmp_path, "raw")
        _, told = process.communicate()
        assert process.returncode == 0, told
        assert "going on from raw.part" in told
        assert site.files_asked == {f"/{i}": 1 + (i in held) for i in range(12)}  # what was held never came
        monkeypatch.chdir(tmp_path)
        adc_collect.run("design.yaml", "list:list.jsonl", out="whole", **WEB)
    assert manifest(tmp_path / "raw") == manifest(tmp_path / "whole")
    rows, (missing, refused), files = manifest(tmp_path / "raw")
    assert len(rows) == 12 and len(files) == 11 and len(missing) == 1 and not refused
    assert len({(row["query"], row["uri"]) for row in rows}) == 12
    assert missing[0]["reason"] == "answered 404" and missing[0]["uri"].endswith("/2")


def test_what_is_missing_is_a_list_to_ask_again(tmp_path):
    there = pages()
    with serving(there) as site:
        write_jsonl(tmp_path / "list.jsonl", addresses(site))
        adc_collect.run(design(), f"list:{tmp_path / 'list.jsonl'}", out=tmp_path / "raw", **WEB)
        there["/2"] = Page(JPEG, "image/jpeg")
        adc_collect.run(design(), f"list:{tmp_path / 'raw' / 'missing.jsonl'}", out=tmp_path / "again", **WEB)
    (row,) = table(tmp_path / "again")
    assert (row["label"], row["query"]) == ("cat", "cat") and row["uri"].endswith("/2")


def test_the_web_is_left_alone_unless_asked_for(tmp_path):
    with serving(pages()) as site:
        write_jsonl(tmp_path / "list.jsonl", [*addresses(site), {"text": "a text", "label": "cat"}])
        adc_collect.run(design(), f"list:{tmp_path / 'list.jsonl'}", out=tmp_path / "raw")
        assert not site.asked
        with pytest.raises(InputError, match="--contact"):
            adc_collect.run(design(), f"list:{tmp_path / 'list.jsonl'}", out=tmp_path / "other", fetch=True)
        assert not site.asked
    assert len(table(tmp_path / "raw")) == 1


def test_what_a_server_calls_an_image_and_is_a_page_is_refused(tmp_path):
    page = Page(b"<!doctype html>Please log in", "image/jpeg")
    with serving({"/a": page, "/b": page._replace(kind="text/html"), "/c": Page(JPEG, "")}) as site:
        write_jsonl(tmp_path / "list.jsonl", [{"uri": site.at(path), "label": "cat"} for path in ("/a", "/b", "/c")])
        found = adc_collect.run(design(), f"list:{tmp_path / 'list.jsonl'}", out=tmp_path / "raw", **WEB)
    assert [row["reason"] for row in found.rows] == ["is said to be image, but is text", None, None]
    assert [(row["text"], Path(row["path"]).suffix) for row in table(tmp_path / "raw")] == [
        ("Please log in", ".html"),
        (None, ".jpg"),
    ]


# Sources -----------------------------------------------------------------------------------------------------------


def test_folders_are_named_after_classes_subclasses_or_queries(tmp_path):
    names = ["cat/black/a", "Black-Dog/10", "Black-Dog/9", "pug/a", "cat/loose", "black/which", "bird/a", "cat/dog/a"]
    photos = put(tmp_path / "photos", {f"{name}.jpg": JPEG + name.encode() for name in names} | {"cat/.hidden": b"x"})
    before = sorted(path for path in photos.rglob("*"))
    found = adc_collect.run(CATS, f"folder:{photos}", out=tmp_path / "raw")
    columns = ("uri", "label", "subclass", "query", "rank")
    assert [tuple(row[name] for name in columns) for row in table(tmp_path / "raw")] == [
        ("cat/black/a.jpg", "cat", "black", "black cat", 0),
        ("cat/loose.jpg", "cat", None, "white cat", 0),
        ("Black-Dog/9.jpg", "dog", "black", "black dog", 0),
        ("Black-Dog/10.jpg", "dog", "black", "black dog", 1),
        ("pug/a.jpg", "dog", "pug", "pug dog", 0),
    ]
    (warning,) = [text for text in found.record["warnings"] if "no class of the design" in text]
    assert "3 files" in warning  # black/ may be of both classes, cat/dog/ is of two, bird/ of none
    assert sorted(path for path in photos.rglob("*")) == before


def test_links_that_leave_the_folder_are_refused_and_links_inside_it_are_followed(tmp_path):
    put(tmp_path, {"secret.txt": b"secret", "outside/a.txt": b"secret"})
    photos = put(tmp_path / "photos", {"cat/a.txt": b"a text"})
    (photos / "cat/b.txt").symlink_to(tmp_path / "secret.txt")
    (photos / "cat/c.txt").symlink_to(photos / "cat/a.txt")
    (photos / "cat/d").symlink_to(tmp_path / "outside")
    (photos / "cat/e.txt").symlink_to(photos / "cat/e.txt")
    found = adc_collect.run(design(), f"folder:{photos}", out=tmp_path / "raw")
    assert {row["uri"]: row["reason"] for row in found.rows} == {
        "cat/a.txt": None,
        "cat/b.txt": "a link that leaves the folder",
        "cat/c.txt": None,
        "cat/d": "a link to a folder, which is not followed",
        "cat/e.txt": "a link that leaves the folder",
    }
    assert not any(b"secret" in file.read_bytes() for file in (tmp_path / "raw" / "files").rglob("*.txt"))


def test_a_file_over_the_limit_and_an_odd_one_are_refused(tmp_path):
    photos = put(tmp_path / "photos", {"cat/a.jpg": JPEG + bytes(2000), "cat/b.jpg": JPEG, "cat/c.jpg": b"\0"})
    os.mkfifo(photos / "cat/d.jpg")
    found = adc_collect.run(design(), f"folder:{photos}", out=tmp_path / "raw", most_mb=0.002)
    assert [row["reason"] for row in found.rows] == [
        "larger than 2,000 bytes",
        None,
        "neither an image of a known kind nor a text in UTF-8",
        "no such file",
    ]


def test_what_is_only_known_to_be_of_a_class_has_the_room_of_all_its_queries(tmp_path):
    photos = put(tmp_path / "photos", {f"cat/{i}.jpg": JPEG + bytes([i]) for i in range(12)})
    put(tmp_path / "photos", {f"cat/white/{i}.jpg": JPEG + bytes([99, i]) for i in range(3)})
    whole = adc_collect.run(CATS, f"folder:{photos}", out=tmp_path / "whole", per_query=8)
    queries = [row["query"] for row in whole.rows]
    assert (queries.count("black cat"), queries.count("white cat")) == (8, 7)
    assert not any("were not taken" in warning for warning in whole.record["warnings"])
    cut = adc_collect.run(CATS, f"folder:{photos}", out=tmp_path / "cut", per_query=5)
    assert len(cut.rows) == 10
    assert any('5 of 15 hits of "cat" were not taken (--per-query 5)' in of for of in cut.record["warnings"])


def test_the_order_of_a_folder_does_not_matter(tmp_path, monkeypatch):
    photos = put(tmp_path / "photos", {f"cat/{i}.jpg": JPEG + bytes([i]) for i in range(12)})
    one = FolderCollector(photos, design("cat"), "folder")
    walk = os.walk
    monkeypatch.setattr(
        os, "walk", lambda top: ((place, folders[::-1], files[::-1]) for place, folders, files in walk(top))
    )
    other = FolderCollector(photos, design("cat"), "folder")
    assert other.hits == one.hits and other.identity == one.identity
    assert [hit.uri for hit in one.search("cat", 12)] == [f"cat/{i}.jpg" for i in range(12)]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_a_list_has_addresses_paths_or_texts_for_queries_or_labels(tmp_path, suffix):
    put(tmp_path, {"lists/a.jpg": JPEG, "outside.jpg": JPEG})
    (tmp_path / "lists/link.jpg").symlink_to(tmp_path / "outside.jpg")
    rows = [
        {"path": "a.jpg", "query": "Black cat", "license": "CC0"},
        {"path": "../outside.jpg", "query": "black cat"},
        {"path": str(tmp_path / "outside.jpg"), "query": "black cat"},
        {"path": "link.jpg", "query": "black cat"},
        {"path": "gone.jpg", "query": "black cat"},
        {"text": "a white one", "label": "cat", "subclass": "white"},
        {"text": "any dog", "label": "dog"},
        {"text": "a bird", "label": "bird"},
        {"query": "pug dog"},
        {"uri": "file:///etc/passwd", "query": "pug dog"},
    ]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    write_rows(tmp_path / f"lists/list.{suffix}", [{name: row.get(name) for name in columns} for row in rows])
    source = f"list:{tmp_path}/lists/list.{suffix}"
    how = {"fetch": True, "contact": "me"}
    found = adc_collect.run(CATS, source, out=tmp_path / "raw", **how)
    leaves = "a path that leaves the list's folder"
    assert [(row["query"], row["subclass"], row["reason"]) for row in found.rows] == [
        ("black cat", "black", None),
        *[("black cat", "black", leaves)] * 3,
        ("black cat", "black", "no such file"),
        ("white cat", "white", None),
        ("black dog", None, None),
        ("pug dog", "pug", "no address, path or text"),
        ("pug dog", "pug", "not an address with http or https (file)"),
    ]
    assert table(tmp_path / "raw")[0]["licence"] == "CC0"
    assert any("1 rows have no class" in text for text in found.record["warnings"])


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("photos", "write KIND:WHERE"),
        ("command:./steal.sh", "write KIND:WHERE"),
        ("folder:nowhere", "no such folder"),
        ("list:nowhere.csv", "no such file"),
        ("corpus:list.jsonl", "--embedder"),
        ("service:service.yaml", "needs --fetch"),
        ("list:list.jsonl", "nothing in it is named like a class"),
    ],
)
def test_a_source_that_cannot_be_opened_is_an_error_and_leaves_nothing(tmp_path, monkeypatch, source, reason):
    monkeypatch.chdir(tmp_path)
    write_jsonl("list.jsonl", [{"text": "a bird", "label": "bird"}])
    with pytest.raises(InputError, match=reason):
        adc_collect.run(design(), source, out="raw")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["list.jsonl"]


# A corpus ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def by_letters(monkeypatch):
    """An embedder that knows how often each letter is in a text."""
    import torch

    from amends.lm import encoders

    def embed(encoder, texts):
        counts = torch.tensor([[float(text.count(letter)) for letter in "abcdefgh"] for text in texts])
        return torch.nn.functional.normalize(counts + 1e-3, dim=1)

    monkeypatch.setattr(encoders, "load_encoder", lambda name, kind: name)
    monkeypatch.setattr(encoders, "embed", embed)


def test_a_corpus_is_ranked_by_likeness_and_a_text_may_be_found_twice(tmp_path, by_letters):
    texts = ["aab", "b", "ab", "", "bb", "a", None, "gh"]
    write_jsonl(tmp_path / "corpus.jsonl", [{"said": text, "licence": "CC0"} for text in texts])
    source = f"corpus:{tmp_path / 'corpus.jsonl'}"
    how = {"embedder": "letters", "text": "said", "per_query": 3}
    adc_collect.run(design("a", "b"), source, out=tmp_path / "raw", **how)
    rows = table(tmp_path / "raw")
    assert [(row["query"], row["rank"], row["text"]) for row in rows] == [
        *[("a", rank, text) for rank, text in enumerate(["a", "aab", "ab"])],
        *[("b", rank, text) for rank, text in enumerate(["b", "bb", "ab"])],
    ]
    assert rows[0]["uri"].endswith("corpus.jsonl:6") and rows[0]["licence"] == "CC0"
    likeness = [json.loads(row["meta"])["cosine"] for row in rows]
    assert likeness[:3] == sorted(likeness[:3], reverse=True)
    adc_collect.run(design("a", "b"), source, out=tmp_path / "again", **how)
    assert manifest(tmp_path / "again") == manifest(tmp_path / "raw")
    with pytest.raises(InputError, match='no row has a text in the column "words"'):
        adc_collect.run(design("a"), source, out=tmp_path / "other", embedder="letters", text="words")


# A service ---------------------------------------------------------------------------------------------------------


def service(tmp_path, site, **lines):
    about = {"address": site.at("/search?q={query}&n={limit}"), "results": "data.items", "uri": "link"} | lines
    (tmp_path / "service.yaml").write_text(yaml.safe_dump(about))
    return f"service:{tmp_path / 'service.yaml'}"


def answer(*items):
    return Page(json.dumps({"data": {"items": items}}).encode(), "application/json")


HOW = {"fetch": True, "contact": "me", "pause_s": 0.0, "retries": 0}


def test_a_service_is_asked_for_each_query_and_its_addresses_are_fetched(tmp_path):
    there = {"/a": Page(JPEG, "image/jpeg"), "/b": Page(b"a page")}
    plan = design("cat & dog")
    with serving(there) as site:
        items = [{"link": site.at("/a"), "about": {"terms": "CC BY 4.0"}}, {"link": site.at("/b")}, {"link": 3}, "no"]
        there["/search?q=cat%20%26%20dog&n=3"] = answer(*items)
        there["/robots.txt"] = Page(b"User-agent: *\nDisallow: /search")
        source = service(tmp_path, site, licence="about.terms")
        found = adc_collect.run(plan, source, out=tmp_path / "raw", per_query=3, allow_private=True, **HOW)
        assert [(row["licence"], row["fate"], row["rank"]) for row in found.rows] == [
            ("CC BY 4.0", "collected", 0),
            (None, "collected", 1),
            (None, "refused", 2),
        ]
        both = [source, Fixed({"cat & dog": [Hit("a", "b")]})]
        closed = adc_collect.run(plan, both, out=tmp_path / "other", per_query=3, **HOW)
        assert "inside a machine" in closed.rows[0]["reason"]  # the service may be here, what it names may not
    assert site.asked["/a"] == 1


def test_a_service_may_give_texts_and_be_asked_page_by_page(tmp_path):
    there = {f"/s/cat?o={i}": answer({"t": f"text {i}"}, {"t": f"text {i + 1}"}) for i in (0, 2, 4)}
    with serving(there) as site:
        source = service(tmp_path, site, address=site.at("/s/{query}?o={offset}"), text="t")
        adc_collect.run(design("cat"), source, out=tmp_path / "raw", per_query=5, **HOW)
    assert [row["text"] for row in table(tmp_path / "raw")] == [f"text {i}" for i in range(5)]
    assert site.asked.total() == 3


def test_the_key_of_a_service_is_sent_and_stands_nowhere(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SEARCH_KEY", "k&y-5432")
    paths = {
        "/search?q=cat&k=k%26y-5432": answer({"link": "a"}, {"text": "no"}),
        "/search?q=dog&k=k%26y-5432": Page(status=500),
    }
    address = "/search?q={query}&k={key}"
    with serving(paths) as site:
        lines = {"address": site.at(address), "key": "SEARCH_KEY", "headers": {"Authorization": "Bearer {key}"}}
        source = service(tmp_path, site, **lines)
        adc_collect.run(
            design("cat"), [source, Fixed({"cat": [Hit("own", "b")]})], out=tmp_path / "raw", per_query=9, **HOW
        )
        assert site.headers[0]["Authorization"] == "Bearer k&y-5432"
        with pytest.raises(InputError) as told:
            adc_collect.run(design("cat", "dog"), source, out=tmp_path / "other", **HOW)
    everything = [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()]
    everything += [str(told.value).encode(), *map(str.encode, capsys.readouterr())]
    assert not any(b"5432" in data for data in everything)
    assert "the same command goes on" in str(told.value).lower() and (tmp_path / "other.part").is_dir()


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ({"address": "https://e.org/"}, "{query} must stand"),
        ({"keys": "A"}, "there is no line 'keys'"),
        ({"key": "NO_SUCH_KEY"}, "give both"),
        ({"headers": {"X-Key": "{key}"}}, "give both"),
        ({"key": "NO_SUCH_KEY", "headers": {"X-Key": "{key}"}}, "NO_SUCH_KEY holds no key"),
        ({"key": "HOME", "address": "http://e.org/?q={query}&k={key}"}, "unencrypted"),
        ({"results": 3}, "expected a text"),
        ({"headers": "X: y"}, "expected name: text lines"),
        ({"headers": {"X": "a\nY: b"}}, "printable ASCII"),
    ],
)
def test_a_service_that_is_not_well_described_is_refused_before_it_is_asked(tmp_path, lines, reason):
    with serving({}) as site:
        with pytest.raises(InputError, match=reason):
            adc_collect.run(design(), service(tmp_path, site, **lines), out=tmp_path / "raw", **HOW)
        assert not site.asked


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        (Page(b"no JSON"), 'no list at "data.items"'),
        (Page(b'{"data": []}'), 'no list at "data.items"'),
        (Page(b"[" * 100_000), 'no list at "data.items"'),
        (Page(status=401), "answered 401"),
        (Page(status=302, headers={"Location": "http://10.0.0.1/"}), "leads elsewhere"),
        (Page(status=0), "no answer"),
    ],
)
def test_a_service_that_does_not_answer_as_described_stops_the_run(tmp_path, page, reason):
    with serving({"/search?q=cat&n=100": page}) as site, pytest.raises(InputError, match=reason):
        adc_collect.run(design(), service(tmp_path, site), out=tmp_path / "raw", **HOW)


# The command -------------------------------------------------------------------------------------------------------


def test_the_command_says_what_it_did(tmp_path, amends):
    write_design(tmp_path / "design.yaml", design())
    photos = put(tmp_path / "photos", {"cat/a.jpg": JPEG, "dog/a.txt": b"a dog", "dog/b.txt": b"\0"})
    words = ["curate", "adc_collect", tmp_path / "design.yaml"]
    words += ["--source", f"folder:{photos}", "--out", tmp_path / "raw"]
    code, _, told = amends(*words)
    assert code == 0 and "3 hits: 2 collected, 0 missing, 1 refused" in " ".join(told.split())
    record = json.loads((tmp_path / "raw" / "run.json").read_text())
    assert record["command"] == "curate adc_collect" and record["config"]["source"] == [f"folder:{photos}"]
    code, _, told = amends(*words)
    assert code == 2 and "exists already" in told
