"""A server with the OpenAI interface on loopback that behaves as a test tells it to."""

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

MOST_DROPS = 200  # that a head drips which nobody ends


class Say(NamedTuple):
    """One reply: an answer at 200, else the message of an error; status 0 drops the connection."""

    text: str | None
    status: int = 200
    headers: dict[str, str] = {}  # noqa: RUF012 - a default that nobody changes
    raw: bytes | None = None
    drips: bool = False  # comes whole, but takes seconds
    halts_s: float = 0  # in the middle
    head_drips: bool = False  # for 10 s, as long as somebody reads


def digest(body: dict[str, Any]) -> Say:
    """Answer with what hangs on all that was asked, and on nothing else."""
    return Say(hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:12])


class FakeServer(ThreadingHTTPServer):
    """Counts what it is asked; `behave` gets the body and how often this very question came before."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, behave: Callable[[dict[str, Any], int], Say]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behave = behave
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.seen: Counter[str] = Counter()
        self.at_once = self.most_at_once = self.drops = 0
        self.guard = threading.Lock()

    @property
    def name(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1#tiny/model"

    def handle_error(self, *_: object) -> None:
        """A client that went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeServer

    def log_message(self, *_: object) -> None:
        pass

    def _drip(self) -> None:
        self.flush_headers()
        self.wfile.write(b"X-Wait: ")
        for _ in range(MOST_DROPS):
            self.server.drops += 1
            self.wfile.write(b".")
            threading.Event().wait(0.05)
        self.wfile.write(b"\r\n")

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = json.dumps(body["messages"])
        with server.guard:
            before = server.seen[question]
            server.seen[question] += 1
            server.bodies.append(body)
            server.headers.append(dict(self.headers))
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        try:
            say = server.behave(body, before)
        finally:
            with server.guard:
                server.at_once -= 1
        if say.status == 0:
            self.close_connection = True
            return
        told: dict[str, Any] = {"error": {"message": say.text}}
        if say.status == 200:
            told = {"choices": [{"message": {"role": "assistant", "content": say.text}}], "usage": {"total_tokens": 7}}
        data = json.dumps(told).encode() if say.raw is None else say.raw
        self.send_response(say.status)
        for name, value in {"Content-Length": str(len(data)), **say.headers}.items():
            self.send_header(name, value)
        if say.head_drips:
            self._drip()
        self.end_headers()
        for start in range(0, len(data), 8) if say.drips else ():
            self.wfile.write(data[start : start + 8])
            threading.Event().wait(0.1)
        if say.halts_s:
            self.wfile.write(data[:8])
            threading.Event().wait(say.halts_s)
            self.wfile.write(data[8:])
        elif not say.drips:
            self.wfile.write(data)


@contextmanager
def serving(behave: Callable[[dict[str, Any], int], Say]) -> Iterator[FakeServer]:
    with FakeServer(behave) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def talks(count: int, start: int = 0) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": f"Rate sample {i}."}] for i in range(start, start + count)]


def number_of(body: dict[str, Any]) -> int:
    """Of the conversation that `talks` made."""
    return int(body["messages"][-1]["content"].split()[-1].rstrip("."))


def steady(body: dict[str, Any], before: int) -> Say:
    return digest(body)
