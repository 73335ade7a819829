"""Language models as raters and writers: ask many conversations, keep every answer, read values from the answers.

A conversation is a list of messages {"role", "content"}. An answer that cannot be read is asked for again, and what
remains unread is a missing value with its reason, and counted.
"""

import hashlib
import json
import math
import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Generic, TypeVar

from amends.io.atomic import sha256_json
from amends.io.errors import InputError
from amends.io.progress import track
from amends.lm._calls import Answer, LocalModel, Model, Server
from amends.lm.load import load
from amends.lm.pairs import ROLES, Message

__all__ = ["Answer", "Chat", "Counts", "LocalModel", "Model", "Replies", "Server", "ask", "json_object", "open_chat"]
__all__ += ["some_text"]
T = TypeVar("T")
WARMER = 0.7
"""Least temperature at which an unreadable answer is asked for again: at 0 it would be the same one."""
APPLICATION = 0x616D6E64  # "amnd", in the head of a cache file


@dataclass
class Chat:
    """A model to ask, the file its answers are kept in, and what it may cost.

    model : `LocalModel`, `Server`, or any `amends.lm._calls.Model`.
    cache : Path, optional. SQLite file; several processes may use it together. Without one nothing is kept.
    most_calls : int, optional. New calls that may be made in all.
    calls : int. New calls made so far; answers from the cache are none.
    """

    model: Model
    cache: Path | None = None
    most_calls: int | None = None
    calls: int = 0


@dataclass(frozen=True)
class Counts:
    """What asking came to; counts of several askings are added with +."""

    asked: int = 0
    """Conversations."""
    unparseable: int = 0
    """Of them without a value, since no answer could be read."""
    failed: int = 0
    """Of them without a value, since there was no answer: too long, refused, or the server failed."""
    calls: int = 0
    """New calls, with those for second attempts."""
    cached: int = 0
    """Answers that took no new call: from the cache, or the same conversation twice."""
    retried: int = 0
    """Further tries of calls that the server did not answer at first."""
    tokens: int | None = 0
    """Read and written in new calls; None if one of them did not say."""

    def __add__(self, other: "Counts") -> "Counts":
        both = [(getattr(self, field.name), getattr(other, field.name)) for field in fields(self)]
        return Counts(*(None if None in pair else sum(pair) for pair in both))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Replies(Generic[T]):
    """Values read from answers, in the order of the conversations."""

    values: list[T | None]
    """None is missing; the reason says why."""
    texts: list[str | None]
    """The last answer to each; None if there was none."""
    reasons: list[str | None]
    """Why a value is missing; None if it is there."""
    cut: list[bool]
    """Whether the last answer was broken off, as `Answer.cut`; a value read from it may be of a part."""
    counts: Counts


def open_chat(
    name: str,
    *,
    cache: str | Path | None = None,
    most_calls: int | None = None,
    batch_size: int = 32,
    concurrency: int = 8,
    timeout_s: float = 120.0,
    retries: int = 5,
    pause_s: float = 1.0,
    key_variable: str = "AMENDS_API_KEY",
) -> Chat:
    """Open a model by name.

    Parameters
    ----------
    name : str
        Whatever `amends.lm.load.load` reads, or the address of a model on a server: http://HOST:PORT/v1#MODEL.
    cache, most_calls
        See `Chat`.
    batch_size : int, default 32
        Of a local model: conversations answered together.
    concurrency, timeout_s, retries, pause_s, key_variable
        Of a server: see `amends.lm._calls.Server`.

    Raises
    ------
    InputError : nothing there, an address that is none, a number out of range.
    """
    for option, value, least in (
        ("batch_size", batch_size, 1),
        ("concurrency", concurrency, 1),
        ("retries", retries, 0),
    ):
        if value < least:
            raise InputError(f"{option}={value}: must be at least {least}.")
    if not 0 < timeout_s < math.inf or not 0 <= pause_s < math.inf:
        raise InputError(f"timeout_s={timeout_s}, pause_s={pause_s}: must be seconds.")
    model: Model
    if re.match("https?://", name):
        model = Server(name, concurrency, timeout_s, retries, pause_s, key_variable)
    else:
        model = LocalModel(load(name), batch_size)
    return Chat(model, None if cache is None else Path(cache), most_calls)


def some_text(answer: str) -> str:
    """Take any answer but an empty one."""
    if not answer.strip():
        raise ValueError("the answer is empty")
    return answer


def json_object(answer: str) -> dict[str, Any]:
    """Read the one JSON object in an answer, whatever prose stands around it.

    Raises
    ------
    ValueError : none, or several that differ, a name twice in one, NaN or infinity. An object inside one that is cut
        off is not taken for the whole.
    """
    found: list[dict[str, Any]] = []
    depth = end = 0
    for brace in re.finditer(r"[{}]", answer):
        if brace.start() < end:
            continue
        if brace[0] == "}":
            depth = max(depth - 1, 0)
            continue
        if depth == 0:
            with suppress(json.JSONDecodeError, RecursionError):
                value, end = _STRICT.raw_decode(answer, brace.start())
                if value not in found:
                    found.append(value)
                continue
        depth += 1
    if len(found) != 1:
        raise ValueError(f"{len(found) or 'no'} JSON objects in the answer, expected one")
    return found[0]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError(f"a name twice in one JSON object: {', '.join(names)[:100]}")
    return dict(pairs)


def _finite(number: str) -> float:
    if not math.isfinite(value := float(number)):
        raise ValueError(f"{number[:20]} in the answer is not a finite number")
    return value


_STRICT = json.JSONDecoder(object_pairs_hook=_once, parse_float=_finite, parse_constant=_finite)


def ask(
    chat: Chat,
    conversations: Sequence[list[Message]],
    parse: Callable[[str], T],
    *,
    version: str,
    attempts: int = 3,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    seed: int = 0,
    label: str = "asking",
) -> Replies[T]:
    """Ask each conversation, and read a value from each answer.

    Parameters
    ----------
    parse : function
        Of an answer, its value; it raises ValueError, with the reason, where it cannot be read. `some_text` takes all
        but empty ones, `json_object` is a start for the rest.
    version : str
        Of the prompt: another one makes the cache ask anew.
    attempts : int, default 3
        How often an answer that cannot be read is asked for, from the second time on at a temperature of `WARMER` or
        more.
    max_new_tokens : int, default 256
    temperature : float, default 0
        0 is the likeliest token each time. Above, each conversation is drawn for from a stream of its own, which
        depends on it, on `seed` and on the attempt.
    label : str
        Stands at the progress bar.

    Raises
    ------
    InputError : a conversation that is none, most_calls reached, a cache that cannot be used, a server that is not
        there. What was answered is in the cache then, and the same call goes on from there.
    """
    if attempts < 1 or max_new_tokens < 1 or not 0 <= temperature < math.inf:
        raise InputError(
            f"attempts={attempts}, max_new_tokens={max_new_tokens}, temperature={temperature}: the first two must be "
            "at least 1, the last a number from 0 on."
        )
    for number, conversation in enumerate(conversations):
        _check(number, conversation)
    size = len(conversations)
    values: list[T | None] = [None] * size
    texts: list[str | None] = [None] * size
    reasons: list[str | None] = [None] * size
    cut = [False] * size
    counts, left, failed = Counts(asked=size), list(range(size)), 0
    for attempt in range(attempts):
        heat = float(max(temperature, WARMER) if attempt else temperature)  # 1 and 1.0 are one key
        how = {"max_new_tokens": max_new_tokens, "temperature": heat}
        drawn = [seed, attempt] if heat else None
        answers, cost = _answers(
            chat, [conversations[i] for i in left], how, {"seed": drawn, "version": version}, label
        )
        counts += cost
        unread = []
        for i, answer in zip(left, answers, strict=True):
            texts[i], reasons[i], cut[i] = answer.text, None, answer.cut
            if answer.text is None:
                reasons[i] = answer.reason
                failed += 1
                continue
            try:
                values[i] = parse(answer.text)
            except ValueError as error:
                reasons[i] = str(error) or "cannot be read"
                if answer.cut:
                    reasons[i] = f"{reasons[i]} (it was cut off at {max_new_tokens} tokens)"
                unread.append(i)
        left = unread
    return Replies(values, texts, reasons, cut, counts + Counts(unparseable=len(left), failed=failed))


def _check(number: int, conversation: list[Message]) -> None:
    if not isinstance(conversation, list) or not conversation:
        raise InputError(f"conversation {number}: not a list of messages.")
    for message in conversation:
        if not isinstance(message, dict) or set(message) != {"role", "content"} or message["role"] not in ROLES:
            raise InputError(f"conversation {number}: a message needs a content and a role, one of {', '.join(ROLES)}.")
        if not isinstance(message["content"], str) or re.search("[\ud800-\udfff]", message["content"]):
            raise InputError(f"conversation {number}: a content that is not text, or has half a character.")


def _answers(
    chat: Chat, conversations: list[list[Message]], how: dict[str, Any], marks: dict[str, Any], label: str
) -> tuple[list[Answer], Counts]:
    """Give the answers in the cache, and ask the model for the others."""
    fixed = {"model": chat.model.identity, **how, **marks}
    keys = [sha256_json({"messages": conversation, **fixed}) for conversation in conversations]
    with _cache(chat.cache) as cache:
        found = {key: answer for key in dict.fromkeys(keys) if (answer := _get(cache, key))}
        missing = {key: i for i, key in reversed(list(enumerate(keys))) if key not in found}
        new = sorted(missing.values())
        allowed = new if chat.most_calls is None else new[: max(chat.most_calls - chat.calls, 0)]
        seeds = [int(keys[i][:8], 16) >> 1 for i in allowed]  # 31 bits, which every server takes
        answers = chat.model.answers([conversations[i] for i in allowed], seeds, **how)
        made: list[Answer] = []
        if allowed:
            for number, answer in track(answers, label, len(allowed)):
                chat.calls += 1
                key = keys[allowed[number]]
                found[key] = answer if answer.text is None else _keep(cache, key, answer)
                made.append(answer)
    if len(allowed) < len(new):
        kept = f"are kept in {chat.cache}; run it again and it goes on" if chat.cache else "are lost without a cache"
        raise InputError(
            f"{chat.model.name}: {chat.calls} new calls were made, as many as allowed (most_calls={chat.most_calls}). "
            f"Of {len(set(keys))} conversations {len(found)} have their answers, which {kept}."
        )
    cost = Counts(calls=len(made), cached=len(keys) - len(made))
    for answer in made:
        cost += Counts(retried=answer.retried, tokens=0 if answer.text is None else answer.tokens)
    return [found[key] for key in keys], cost


@contextmanager
def _cache(path: Path | None) -> Iterator[sqlite3.Connection]:
    """Open the file of answers, or one in memory; each answer is a transaction, so that a kill leaves the others."""
    if path and not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent} for the cache. Make it, or name another.")
    try:
        with closing(sqlite3.connect(path or ":memory:", timeout=60, isolation_level=None)) as cache:
            cache.execute("BEGIN IMMEDIATE")
            (kind,), (tables,) = (
                cache.execute("PRAGMA application_id"),
                cache.execute("SELECT count(*) FROM sqlite_master"),
            )
            if kind == (0,) and tables == (0,):
                cache.execute("CREATE TABLE answers (key TEXT PRIMARY KEY, answer TEXT, digest TEXT)")
                cache.execute(f"PRAGMA application_id = {APPLICATION}")
            elif kind != (APPLICATION,):
                raise InputError(f"{path}: a database, but no cache of answers. Name another file for it.")
            cache.execute("COMMIT")
            with suppress(sqlite3.OperationalError):  # another process is at it, and the mode stays in the file
                cache.execute("PRAGMA journal_mode = WAL")
            cache.execute("PRAGMA synchronous = NORMAL")
            yield cache
    except sqlite3.OperationalError as error:
        raise InputError(f"{path}: the cache cannot be used: {error}.") from error
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: not a cache of answers, or damaged: {error}. Move it away, or name another."
        ) from error


def _get(cache: sqlite3.Connection, key: str) -> Answer | None:
    row = cache.execute("SELECT answer, digest FROM answers WHERE key = ?", (key,)).fetchone()
    if row is None:
        return None
    answer, digest = row
    if not isinstance(answer, str) or digest != _digest(key, answer):
        raise sqlite3.DatabaseError("an answer is not as it was written")
    return Answer(*json.loads(answer))


def _keep(cache: sqlite3.Connection, key: str, answer: Answer) -> Answer:
    """Keep an answer, and give the one that is kept: another process may have been first."""
    text = json.dumps(Answer(answer.text, tokens=answer.tokens, cut=answer.cut))
    cache.execute("INSERT INTO answers VALUES (?, ?, ?) ON CONFLICT DO NOTHING", (key, text, _digest(key, text)))
    return _get(cache, key) or answer


def _digest(key: str, answer: str) -> str:
    return hashlib.sha256(f"{key} {answer}".encode()).hexdigest()
