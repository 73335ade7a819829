"""What answers conversations: a language model in this process, or a server with the OpenAI interface.

Both have a name, an identity that changes when their answers may, and `answers`, which gives each answer as soon as it
is there. `amends.lm.chat` asks any object like that.
"""

import hashlib
import ipaddress
import json
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from itertools import islice
from typing import Any, NamedTuple, Protocol

import httpx2

from amends.io.deadline import Deadline
from amends.io.errors import InputError
from amends.io.retry import retry_after_s
from amends.lm.generate import generate
from amends.lm.load import Loaded, weights_sha256
from amends.lm.pairs import Message, encode
from amends.lm.rows import context_of
from amends.lm.templates import plain_ids, turn_end

MOST_BYTES = 20_000_000  # of one reply of a server
MOST_WAIT_S = 300.0  # that a server may ask for between two tries
MOST_FAILED = 10  # conversations in a row, before a server is given up
CONNECT_S = 10.0  # to reach a server at all
REFUSED = (400, 413, 422)  # something is wrong with this one conversation, mostly its length
AGAIN = (408, 425, 429)  # and all from 500
LIMITS = ("max_tokens", "max_completion_tokens")  # what most servers call it, and what some take in its place alone

PROBE: list[Message] = [{"role": "user", "content": "Rate 10 of 27 <samples>:\n{} (Zoë, 3.5)"}]
"""A conversation by whose tokens ways to ask a local model are told apart."""


class Answer(NamedTuple):
    """What a model said to one conversation."""

    text: str | None
    """Without white space around it; None if there is no answer."""
    reason: str = ""
    """Why there is none."""
    tokens: int | None = None
    """Read and written, where known."""
    retried: int = 0
    """Calls beyond the first that it took."""
    fault: bool = False
    """There is none because the server failed again and again."""
    cut: bool = False
    """The text was broken off at `max_new_tokens`; a server says so, a model in this process does not."""


class Model(Protocol):
    """Something that answers conversations."""

    @property
    def name(self) -> str:
        """As the user named it; holds no secret."""
        ...

    @property
    def identity(self) -> str:
        """Another one where the same conversation may be answered in another way."""
        ...

    def answers(
        self, conversations: Sequence[list[Message]], seeds: Sequence[int], max_new_tokens: int, temperature: float
    ) -> Iterator[tuple[int, Answer]]:
        """Give the number of each conversation with its answer, in any order; one seed for each is used above 0."""
        ...


class LocalModel:
    """A causal language model in this process, asked through its own chat template.

    loaded : what `amends.lm.load.load` gives.
    batch_size : int, default 32. Conversations answered together, those of like length first.
    """

    def __init__(self, loaded: Loaded, batch_size: int = 32) -> None:
        self.loaded, self.batch_size, self.name = loaded, batch_size, loaded.name
        # What stands around a text is the template's, the tokenizer's and our own doing, and tokens tell all of them.
        asked = encode(loaded.tokenizer, PROBE, ["a"])[0].prompt, turn_end(loaded.tokenizer)
        known = f"{weights_sha256(loaded.model)} {loaded.tokenizer.chat_template} {asked}"
        self.identity = hashlib.sha256(known.encode()).hexdigest()

    def answers(
        self, conversations: Sequence[list[Message]], seeds: Sequence[int], max_new_tokens: int, temperature: float
    ) -> Iterator[tuple[int, Answer]]:
        """Answer them in batches; one that is longer than the model's context gets no answer."""
        model, tokenizer = self.loaded.model, self.loaded.tokenizer
        context = context_of(model)
        order = sorted(range(len(conversations)), key=lambda i: sum(len(m["content"]) for m in conversations[i]))
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            prompts = {i: encode(tokenizer, conversations[i], ["a"])[0].prompt for i in batch}
            for i in batch:
                if context and len(prompts[i]) + max_new_tokens > context:
                    asked = f"{len(prompts.pop(i))} tokens to read and {max_new_tokens} to write"
                    yield i, Answer(None, f"{asked} are more than the model holds ({context})")
            texts = generate(
                model,
                tokenizer,
                list(prompts.values()),
                stop_ids=turn_end(tokenizer),
                max_new_tokens=max_new_tokens,
                batch_size=self.batch_size,
                temperature=temperature,
                seed=[seeds[i] for i in prompts],
            )
            for (i, ids), text in zip(prompts.items(), texts, strict=True):
                yield i, Answer(text, tokens=len(ids) + len(plain_ids(tokenizer, text)))


class _Reply(NamedTuple):
    status: int
    retry_after: str
    data: bytes


class _Line(NamedTuple):
    """A client of one connection at a time, so that the deadline of a call knows the one that an earlier call made."""

    client: httpx2.Client
    deadline: Deadline


class Server:
    """A server with the OpenAI interface for chats: vLLM, llama.cpp, `transformers serve`, a hosted one.

    Parameters
    ----------
    name : str
        Its address and the model on it: http://HOST:PORT/v1#MODEL, or https.
    concurrency : int, default 8
        Calls under way at the same time, at most.
    timeout_s : float, default 120
        Seconds that one call may take, from its connection to the end of its answer.
    retries : int, default 5
        Further tries after a failed connection, a time-out, the states 408, 425, 429 and 500 to 599, or a reply without
        an answer in it.
    pause_s : float, default 1
        Before the first of them; doubled before each further one, and longer if the server asks for it (Retry-After).
    key_variable : str, default "AMENDS_API_KEY"
        Environment variable with the server's key, which is sent to it alone; without the variable no key is sent.

    Raises
    ------
    InputError : no such address, or a key that would cross the network unencrypted.
    """

    def __init__(
        self,
        name: str,
        concurrency: int = 8,
        timeout_s: float = 120.0,
        retries: int = 5,
        pause_s: float = 1.0,
        key_variable: str = "AMENDS_API_KEY",
    ) -> None:
        self.concurrency, self.timeout_s, self.retries, self.pause_s = concurrency, timeout_s, retries, pause_s
        self.key_variable, self._key = key_variable, os.environ.get(key_variable, "").strip()
        url = httpx2.URL()
        with suppress(httpx2.InvalidURL):
            url = httpx2.URL(name)
        if not url.host or not url.fragment or url.query or url.userinfo:
            shown = f"{url.copy_with(userinfo=b'', query=None, fragment=None)}: " if url.host else ""  # no secret
            raise InputError(
                f"{shown}not the address of a model. Write http://HOST:PORT/v1#MODEL, without password and question "
                f"mark. A key goes into the environment variable {key_variable}."
            )
        self._is_here = url.host == "localhost"
        with suppress(ValueError):
            self._is_here = self._is_here or ipaddress.ip_address(url.host).is_loopback
        if not (self._key.isascii() and self._key.isprintable()):
            raise InputError(f"{key_variable}: holds a character that no key has. Set it again.")
        if self._key and url.scheme == "http" and not self._is_here:
            raise InputError(
                f"{name}: the key in {key_variable} would cross the network unencrypted. Use https, or a tunnel to "
                "this machine, or unset the variable."
            )
        path = url.path.rstrip("/").removesuffix("/chat/completions")
        self.name, self.base, self.model = name, str(url.copy_with(path=path, fragment=None)), url.fragment
        self.identity = f"{self.base}#{self.model}"  # what stands behind it is not known from here
        self._limit, self._answered = LIMITS[0], False

    def answers(
        self, conversations: Sequence[list[Message]], seeds: Sequence[int], max_new_tokens: int, temperature: float
    ) -> Iterator[tuple[int, Answer]]:
        """Give answers as they come. After an error, or Ctrl-C, the calls under way are still waited for and given.

        Raises
        ------
        InputError : what no retry mends: no such server or model, a wrong key, too many calls; or `MOST_FAILED`
            conversations in a row without an answer, where refusals count only as long as nothing was answered.
        """
        stop, waiting = threading.Event(), iter(range(len(conversations)))
        running: dict[Future[Answer], tuple[int, _Line]] = {}
        error: BaseException | None = None
        failed, answered = 0, False
        with ExitStack() as clients, ThreadPoolExecutor(self.concurrency) as pool:
            free = self._lines(clients, min(self.concurrency, len(conversations)))

            def begin(count: int) -> None:
                for i in islice(waiting, count):
                    line = free.pop()
                    body = {"model": self.model, "messages": conversations[i], self._limit: max_new_tokens}
                    body |= {"temperature": temperature} | ({"seed": seeds[i]} if temperature else {})
                    running[pool.submit(self._ask, line, stop, body)] = i, line

            try:
                begin(self.concurrency)
                while running:
                    try:
                        for future in wait(running, return_when=FIRST_COMPLETED).done:
                            i, line = running.pop(future)
                            free.append(line)
                            yield i, (answer := future.result())
                            if answer.text is not None:
                                failed, answered = 0, True
                            elif answer.fault or not answered:
                                failed += 1
                            if failed >= MOST_FAILED:
                                raise InputError(f"{self.name}: {failed} calls in a row failed, with {answer.reason}.")
                            begin(1)
                    except (InputError, KeyboardInterrupt) as found:
                        error, waiting = error or found, iter(())
                        stop.set()
            finally:
                stop.set()
        if error:
            raise error

    def _lines(self, clients: ExitStack, count: int) -> list[_Line]:
        known = httpx2.create_ssl_context(trust_env=not self._is_here)
        return [
            _Line(
                clients.enter_context(
                    httpx2.Client(
                        headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
                        timeout=httpx2.Timeout(self.timeout_s, connect=min(CONNECT_S, self.timeout_s)),
                        limits=httpx2.Limits(max_connections=1),
                        verify=known,
                        trust_env=not self._is_here,  # no proxy between two processes of one machine
                    )
                ),
                Deadline(self.timeout_s),
            )
            for _ in range(count)
        ]

    def _ask(self, line: _Line, stop: threading.Event, body: dict[str, Any]) -> Answer:
        """Ask until there is an answer, or a reason why there will be none."""
        for retried in range(self.retries + 1):
            asked_s, unreachable = 0.0, False
            try:
                reply = self._post(line, body)
                if reply.status == 400 and LIMITS[0] in body and LIMITS[1] in _message(reply.data):
                    self._limit = LIMITS[1]
                    body[self._limit] = body.pop(LIMITS[0])
                    reply = self._post(line, body)
            except httpx2.RequestError as error:  # the connection; its text may be empty
                unreachable = isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.ProxyError)
                problem = f"{type(error).__name__} {self._shown(str(error))}".strip()
            else:
                if reply.status == 200 and (answer := self._read(reply, retried)):
                    return answer
                problem = f"{reply.status} {self._shown(_message(reply.data))}".strip()
                if reply.status in REFUSED:
                    return Answer(None, problem, retried=retried)
                if reply.status not in (200, *AGAIN) and reply.status < 500:
                    raise InputError(self._advice(reply.status, problem))
                asked_s = retry_after_s(reply.retry_after)
                unreachable = reply.status == 429
            pause_s = max(asked_s, self.pause_s * 2**retried)
            if asked_s > MOST_WAIT_S:
                raise InputError(f"{self.name}: asks to wait {asked_s:.0f} s ({problem}). Run it again then.")
            if retried == self.retries or _pause(stop, pause_s):
                break
        if unreachable:  # has nothing to do with this conversation: the next one would fare no better
            raise InputError(
                f"{self.name}: gave no answer in {retried + 1} calls ({problem}). See that it runs, or ask fewer at a "
                "time; answers in the cache are not asked for again."
            )
        return Answer(None, problem, retried=retried, fault=True)

    def _post(self, line: _Line, body: dict[str, Any]) -> _Reply:
        address, data = f"{self.base}/chat/completions", bytearray()
        told = {"trace": line.deadline.trace}
        with line.deadline, line.client.stream("POST", address, json=body, extensions=told) as response:
            for piece in response.iter_bytes():
                data += piece
                if len(data) > MOST_BYTES:
                    raise InputError(f"{self.name}: sends more than {MOST_BYTES:,} bytes, which is no chat's answer.")
            return _Reply(response.status_code, response.headers.get("Retry-After", ""), bytes(data))

    def _read(self, reply: _Reply, retried: int) -> Answer | None:
        """Find the answer in a reply; None if there is none, which may be this once.

        Raises
        ------
        InputError : it is no server of this kind, and never gave an answer.
        """
        found: Any = None
        with suppress(ValueError, RecursionError):
            found = json.loads(reply.data)
        try:
            choice = found["choices"][0]
            text = choice["message"].get("content") or ""  # null: thoughts only, or nothing
            text = text.strip().encode(errors="replace").decode()  # half a character becomes "?"
        except (LookupError, TypeError, AttributeError):
            if self._answered or (isinstance(found, dict) and not found.keys().isdisjoint(("choices", "error"))):
                return None
            raise InputError(
                f"{self.name}: answers, but not as an OpenAI-compatible server does. Is the path right? It mostly ends "
                f"in /v1. It says: {self._shown(_message(reply.data))}"
            ) from None
        self._answered = True
        usage = found.get("usage")
        tokens = usage.get("total_tokens") if isinstance(usage, dict) else None
        cut = choice.get("finish_reason") == "length"
        return Answer(text, tokens=tokens if isinstance(tokens, int) else None, retried=retried, cut=cut)

    def _shown(self, text: str) -> str:
        return " ".join((text.replace(self._key, "[key]") if self._key else text).split())[:300]

    def _advice(self, status: int, problem: str) -> str:
        if status in (401, 403):
            what = "was refused" if self._key else "is missing"
            return f"{self.name}: {problem}. The key {what}; put the right one into {self.key_variable}."
        if status == 404:
            return f"{self.name}: {problem}. No such model or path; {self.base}/models lists the models there are."
        return f"{self.name}: {problem}. Mend that and run it again."


def _pause(stop: threading.Event, seconds: float) -> bool:
    """Wait, and say whether all was stopped meanwhile."""
    return stop.wait(seconds)


def _message(data: bytes) -> str:
    """Find what a server says of an error: its message, else all of it."""
    text = data[:2000].decode(errors="replace")
    with suppress(ValueError, RecursionError):
        found = json.loads(data)
        found = found.get("error", found.get("detail", found)) if isinstance(found, dict) else found
        found = found.get("message", found) if isinstance(found, dict) else found
        return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)
    return text
