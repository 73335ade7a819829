"""Asking many conversations: nothing is lost, nothing is asked twice, and what cannot be read is missing."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import pytest

from amends.io.errors import InputError
from amends.lm.chat import Chat, Counts, ask, json_object, open_chat, some_text

from .fake_server import Say, digest, number_of, serving, steady, talks

ROOT = Path(__file__).resolve().parents[2]


def rating(answer):
    value = json_object(answer)["rating"]
    if value not in range(1, 11):
        raise ValueError(f"rating {value} is not from 1 to 10")
    return value


def kept_in(cache):
    with closing(sqlite3.connect(cache)) as file:
        return file.execute("SELECT count(*) FROM answers").fetchone()[0]


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


CHANGES = [{"version": "2"}, {"temperature": 0.5}, {"seed": 1}, {"max_new_tokens": 21}]


@pytest.mark.parametrize(("change", "anew"), [*((change, 3) for change in CHANGES), ({}, 0), ({"temperature": 1}, 0)])
def test_what_may_change_an_answer_is_asked_anew_and_nothing_else(tmp_path, change, anew):
    with serving(steady) as server:
        chat = open_chat(server.name, cache=tmp_path / "c")
        ask(chat, talks(3), some_text, **BASIS)
        assert ask(chat, talks(3), some_text, **(BASIS | change)).counts.calls == anew


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
        whole = ask(open_chat(name, cache=tmp_path / "c"), talks(15), some_text, version="1")
        good, rng, told = (tmp_path / "c").read_bytes(), random.Random(0), 0
        used = [at for at, byte in enumerate(good) if byte]
        for _ in range(100):
            at = rng.choice(used)
            (tmp_path / "c").write_bytes(good[:at] + bytes([good[at] ^ 1 << rng.randrange(8)]) + good[at + 1 :])
            try:
                found = ask(open_chat(name, cache=tmp_path / "c"), talks(15), some_text, version="1")
                assert found.values == whole.values
            except InputError as error:
                assert "not a cache of answers, or damaged" in str(error) or "cannot be used" in str(error)
                told += 1
            for left in tmp_path.glob("c-*"):
                left.unlink()
        assert told > 30  # the rest hit free space, or made a key unknown, whose answer was asked for again
