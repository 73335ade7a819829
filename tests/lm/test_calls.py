"""A server in trouble, the key that belongs to it alone, and a model in this process."""

import json
import logging
import math
import threading
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
import torch
from scipy.stats import chisquare

from amends.io.errors import InputError
from amends.lm import _calls
from amends.lm.chat import Chat, Counts, LocalModel, ask, json_object, open_chat, some_text
from amends.lm.generate import _OwnDraws, generate
from amends.lm.load import load
from amends.lm.pairs import encode
from amends.lm.templates import turn_end

from .fake_server import MOST_DROPS, Say, digest, number_of, serving, steady, talks


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("AMENDS_API_KEY", raising=False)


def hang(body, before):
    threading.Event().wait(0.6)
    return digest(body)


TROUBLE = {
    "500": lambda body: Say("oops", 500),
    "503": lambda body: Say("loading", 503),
    "429": lambda body: Say("slow down", 429),
    "dropped": lambda body: Say(None, 0),
    "hangs": lambda body: hang(body, 0),
    "drips": lambda body: digest(body)._replace(drips=True),
    "cut": lambda body: Say(None, 200, {"Content-Length": "99999", "Connection": "close"}, b'{"choi'),
}


@pytest.mark.parametrize("kind", TROUBLE)
def test_what_passes_is_tried_again(kind):
    with serving(lambda body, before: TROUBLE[kind](body) if before < 2 else digest(body)) as server:
        chat = open_chat(server.name, timeout_s=0.3, pause_s=0)
        replies = ask(chat, talks(3), some_text, version="1")
        assert len(server.bodies) == 9
    assert replies.counts == Counts(asked=3, calls=3, retried=6, tokens=21)


def test_a_call_ends_in_time_however_its_answer_halts(monkeypatch):
    monkeypatch.setattr(_calls.httpx2, "Timeout", lambda *_, **__: None)  # so that nothing else ends it

    def halt_once(body, before):
        return digest(body)._replace(halts_s=0 if before or number_of(body) == 0 else 20)

    with serving(halt_once) as server:
        chat = open_chat(server.name, timeout_s=0.5, pause_s=0, concurrency=1)
        assert ask(chat, talks(3), some_text, version="1").counts == Counts(asked=3, calls=3, retried=2, tokens=21)


def test_a_call_ends_in_time_on_the_connection_of_an_earlier_one_too():
    def drip_once(body, before):
        return digest(body)._replace(head_drips=not before and number_of(body) > 0)

    with serving(drip_once) as server:
        chat = open_chat(server.name, timeout_s=0.5, pause_s=0, concurrency=1)
        assert ask(chat, talks(2), some_text, version="1").counts == Counts(asked=2, calls=2, retried=1, tokens=14)
    assert server.drops < MOST_DROPS / 2


def test_pauses_double_and_are_as_long_as_the_server_asks_for(monkeypatch):
    paused = []
    monkeypatch.setattr(_calls, "_pause", lambda stop, seconds: bool(paused.append(seconds)))
    then = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    asks = [{}, {"Retry-After": "30"}, {}, {"Retry-After": then}, {"Retry-After": "nan"}]
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


@pytest.mark.parametrize("raw", [b"<html>hello</html>", b"[]", b'{"hello": "you"}', b"[" * 100_000])
def test_a_server_of_another_kind_is_told_apart(raw):
    with (
        serving(lambda body, before: Say(None, raw=raw)) as server,
        pytest.raises(InputError, match="not as an OpenAI-compatible server does"),
    ):
        ask(open_chat(server.name), talks(3), some_text, version="1")


ODD = {
    b'{"error": {"message": "overloaded"}}': "200 overloaded",
    b'{"choices": []}': '200 {"choices": []}',
    b'{"choices": [{"message": {"content": ["a"]}}]}': "200 ",
    b"<html>busy</html>": "200 <html>busy</html>",
}


@pytest.mark.parametrize("raw", ODD)
def test_a_reply_without_an_answer_is_tried_again_and_costs_its_conversation_alone(raw, tmp_path):
    def behave(body, before):
        return Say(None, raw=raw) if number_of(body) == 4 or (number_of(body) == 5 and not before) else digest(body)

    with serving(behave) as server:
        chat = open_chat(server.name, cache=tmp_path / "c", retries=2, pause_s=0, concurrency=1)
        replies = ask(chat, talks(9), some_text, version="1")
        assert [i for i, value in enumerate(replies.values) if value is None] == [4]
        assert replies.reasons[4].startswith(ODD[raw]) and replies.counts.failed == 1
        assert replies.counts.retried == 3 and len(server.bodies) == 9 + 3


def test_a_rerun_gets_past_a_conversation_that_is_never_answered(tmp_path):
    raw = b'{"error": {"message": "overloaded"}}'
    with serving(lambda body, before: Say(None, raw=raw) if number_of(body) == 1 else digest(body)) as server:
        for calls in (3, 1):
            chat = open_chat(server.name, cache=tmp_path / "c", retries=0)
            assert ask(chat, talks(3), some_text, version="1").counts.calls == calls


def test_a_message_without_content_is_an_empty_answer():
    raw = b'{"choices": [{"message": {"role": "assistant"}}]}'
    with serving(lambda body, before: Say(None, raw=raw)) as server:
        replies = ask(open_chat(server.name), talks(1), str, version="1")
    assert replies.values == [""] and replies.counts.failed == 0


def test_what_was_broken_off_is_marked_and_stays_so_in_the_cache(tmp_path):
    def behave(body, before):
        ends = "length" if number_of(body) == 1 else "stop"
        told = {"choices": [{"message": {"content": '{"a": 1'}, "finish_reason": ends}]}
        return Say(None, raw=json.dumps(told).encode())

    with serving(behave) as server:
        for _ in range(2):
            chat = open_chat(server.name, cache=tmp_path / "c")
            assert ask(chat, talks(3), str, version="1").cut == [False, True, False]
        replies = ask(chat, talks(3), json_object, version="1", max_new_tokens=7, attempts=1)
    assert [reason.endswith("expected one (it was cut off at 7 tokens)") for reason in replies.reasons] == replies.cut


def test_a_server_that_wants_the_newer_name_of_the_limit_gets_it():
    def behave(body, before):
        if "max_tokens" in body:
            return Say("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", 400)
        return digest({"messages": body["messages"], "n": body["max_completion_tokens"]})

    with serving(behave) as server:
        chat = open_chat(server.name, concurrency=1, retries=0)
        replies = ask(chat, talks(3), some_text, version="1", max_new_tokens=9)
        assert [list({"max_tokens", "max_completion_tokens"} & body.keys()) for body in server.bodies] == [
            ["max_tokens"], *[["max_completion_tokens"]] * 3
        ]  # fmt: skip
    assert replies.counts.failed == 0 and replies.counts.retried == 0


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


def test_failures_with_answers_between_them_do_not_stop_a_run():
    with serving(lambda body, before: Say("x", 500) if number_of(body) % 2 else digest(body)) as server:
        chat = open_chat(server.name, concurrency=1, retries=0)
        assert ask(chat, talks(30), some_text, version="1").counts.failed == 15


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


@pytest.mark.parametrize(
    "bad",
    [
        "http://u:secret@h/v1#m",
        "http://h/v1",
        "http://h/v1?key=secret#m",
        "http:///v1?secret#m",
        "http://u:se?cret@h#m",
    ],
)
def test_what_is_no_address_of_a_model_is_refused(bad):
    with pytest.raises(InputError, match="not the address of a model") as refused:
        open_chat(bad)
    assert "cret" not in str(refused.value)
    assert str(refused.value).startswith("http://h/v1: " if "h/v1" in bad else "not ")


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


def test_a_seed_stays_with_its_prompt_whatever_the_order_and_the_lengths(local):
    prompts, seeds = [[5] * 9, [7] * 6, [9] * 3], [1, 2, 3]
    how = {"stop_ids": turn_end(local.tokenizer), "max_new_tokens": 8, "temperature": 1.0}
    said = generate(local.model, local.tokenizer, prompts, seed=seeds, **how)
    assert generate(local.model, local.tokenizer, prompts[::-1], seed=seeds[::-1], **how) == said[::-1]
    assert generate(local.model, local.tokenizer, prompts, seed=seeds[::-1], **how) != said


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
    assert "are more than the model holds (2048)" in replies.reasons[2]
    assert replies.counts.failed == 1


def test_other_weights_or_another_template_make_another_identity(local, tiny_model, other_model):
    identity = LocalModel(local).identity
    changed = load(tiny_model)
    assert LocalModel(changed).identity == identity != LocalModel(load(other_model)).identity
    changed.tokenizer.chat_template += " "
    assert LocalModel(changed).identity != identity


def test_a_prompt_that_its_template_writes_otherwise_is_not_answered_from_the_cache(local, tiny_model, tmp_path):
    changed = load(tiny_model)
    changed.tokenizer.chat_template = f"{{{{ bos_token }}}}{changed.tokenizer.chat_template}"
    for calls, token in ((1, "<one>"), (0, "<one>"), (1, "<other>")):
        changed.tokenizer.bos_token = token
        chat = Chat(LocalModel(changed), tmp_path / "answers.sqlite")
        assert ask(chat, talks(1), str, version="1", max_new_tokens=2).counts.calls == calls
