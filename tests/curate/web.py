"""A small web on loopback that behaves as a test tells it to, and counts what it is asked."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Page(NamedTuple):
    """What stands at a path; status 0 drops the connection."""

    data: bytes = b"a page"
    kind: str = "text/plain"
    status: int = 200
    headers: dict[str, str] = {}  # noqa: RUF012 - a default that nobody changes
    in_pieces: bool = False  # a thousand times, without Content-Length
    pause_s: float = 0.0  # after each piece
    in_head: bool = False  # pieces of a head without end


class Site(ThreadingHTTPServer):
    """`pages` has a Page for each path, or a function of how often it was asked before."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, pages: dict[str, Page | Callable[[int], Page]], host: str) -> None:
        super().__init__((host, 0), _Handler)
        self.pages, self.asked, self.headers, self.sent = pages, Counter(), [], 0
        self.guard = threading.Lock()

    def at(self, path: str, host: str = "") -> str:
        return f"http://{host or self.server_address[0]}:{self.server_port}{path}"

    @property
    def files_asked(self) -> Counter[str]:
        return Counter({path: number for path, number in self.asked.items() if path != "/robots.txt"})

    def handle_error(self, *_: object) -> None:
        """A client that went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # a connection stays open for the next request
    server: Site

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        with self.server.guard:
            before = self.server.asked[self.path]
            self.server.asked[self.path] += 1
            self.server.headers.append(dict(self.headers))
        found: Any = self.server.pages.get(self.path, Page(b"no such page", status=404))
        page = found(before) if callable(found) else found
        if page.status == 0:
            self.close_connection = True
            return
        self.send_response(page.status)
        size = {"Connection": "close"} if page.in_pieces else {"Content-Length": str(len(page.data))}
        for name, value in {"Content-Type": page.kind, **size, **page.headers}.items():
            self.send_header(name, value)
        if page.in_head:
            self.flush_headers()
            self.wfile.write(b"X-More: ")
        else:
            self.end_headers()
        for _ in range(1000 if page.in_pieces else 1):
            self.wfile.write(page.data)
            threading.Event().wait(page.pause_s)
            with self.server.guard:
                self.server.sent += len(page.data)


@contextmanager
def serving(pages: dict[str, Page | Callable[[int], Page]], host: str = "127.0.0.1") -> Iterator[Site]:
    with Site(pages, host) as site:
        thread = threading.Thread(target=site.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield site
        finally:
            site.shutdown()
            thread.join()
