"""Fetch files from the web politely: what robots.txt allows, slowly, within limits, from public machines alone."""

import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import NamedTuple, Self

import httpx2
from protego import Protego

from amends import __version__
from amends.curate._adc.addresses import Missing, Refused, checked, machines
from amends.io.deadline import Deadline
from amends.io.errors import InputError
from amends.io.retry import retry_after_s

AGENT = "amends"  # the name that robots.txt may speak to
MOST_REDIRECTS = 5
MOST_ROBOTS_BYTES = 1_000_000  # RFC 9309 asks for at least 500 KiB
MOST_WAIT_S = 300.0  # that a server may ask for, between two requests or two tries
CONNECT_S = 10.0
AGAIN = (408, 425, 429, 500, 502, 503, 504)
MOVED = (301, 302, 303, 307, 308)
OPT_OUT = {"noai", "noimageai", "noindex", "noimageindex"}
TYPES = ("text/", "image/", "application/octet-stream", "binary/octet-stream")  # and none at all: contents decide


@dataclass(frozen=True)
class Manners:
    """How the web is asked."""

    contact: str
    """Address of mail or page of who collects, told to every server."""
    allow_private: bool = False
    """Take files from this machine and private networks, too."""
    pause_s: float = 1.0
    """Between two requests to a host, at least; before the first retry, and doubled before each further one."""
    timeout_s: float = 60.0
    """That one file may take."""
    retries: int = 2
    """Further tries after a failed connection, a time-out, or the states in `AGAIN`."""
    most_bytes: int = 20_000_000
    """Of a file, unpacked."""
    most_bytes_in_all: int = 10_000_000_000
    """Of all files together."""
    concurrency: int = 8
    """Hosts that are asked at the same time, at most."""

    def __post_init__(self) -> None:
        if not self.contact.strip() or not (self.contact.isascii() and self.contact.isprintable()):
            raise InputError("--contact: tell servers who asks: an address of mail or of a page, in ASCII characters.")


class Reply(NamedTuple):
    """What a server answered; the content is empty unless the state is 200."""

    status: int
    headers: Mapping[str, str]
    data: bytes


@dataclass
class _Host:
    """What is known of a server: its rules, and from when on it may be asked again."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    robots: Protego | None = None
    closed: Missing | Refused | None = None
    """Why its rules are not known, and so nothing is asked of it."""
    pause_s: float = 0.0
    free_at: float = 0.0


class _Call(NamedTuple):
    """A request, and what its reply must be like."""

    url: httpx2.URL
    most_bytes: int
    headers: Mapping[str, str] = {}
    check: Callable[[httpx2.Headers], None] = lambda headers: None
    """Refuses a reply by its head, before its body is read."""
    private: bool = False


class Web:
    """The web, asked politely; threads share one.

    No cookie is kept, no proxy used, no redirect followed that was not checked as the first address was; the IP address
    that was checked is the one that is connected to.
    """

    def __init__(self, manners: Manners, spent_bytes: int = 0) -> None:
        self.manners = manners
        self._left_bytes = manners.most_bytes_in_all - spent_bytes
        self._hosts: dict[str, _Host] = {}
        self._guard = threading.Lock()
        self._stop = threading.Event()
        self._client = httpx2.Client(
            headers={
                "User-Agent": f"{AGENT}/{__version__} (collects a data set; contact: {manners.contact})",
                "Accept": "image/*, text/*;q=0.9",
                "Accept-Encoding": "gzip",
            },
            timeout=httpx2.Timeout(manners.timeout_s, connect=min(CONNECT_S, manners.timeout_s)),
            # A connection is known by its IP address and would serve another host's name without its certificate.
            limits=httpx2.Limits(max_keepalive_connections=0),
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            trust_env=False,
            follow_redirects=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def stop(self) -> None:
        """Have all that waits give up."""
        self._stop.set()

    def get(self, address: str) -> tuple[bytes, str]:
        """Fetch a file.

        Returns
        -------
        (bytes, str) : content, and the type that the server says it has, which may be a lie.

        Raises
        ------
        Missing, Refused : with the reason.
        """
        reply = self._follow(checked(address), self._politely)
        if reply.status != 200:
            raise Missing(f"answered {reply.status}", lasting=400 <= reply.status < 500)
        return reply.data, reply.headers.get("Content-Type", "").partition(";")[0].strip().lower()

    def ask(self, address: str, headers: Mapping[str, str], most_bytes: int) -> Reply:
        """Ask a service that the user named: it may be on this machine, and robots.txt does not speak of it.

        Raises
        ------
        Missing, Refused : no answer; another state than 200 is an answer.
        """
        call = _Call(checked(address), most_bytes, headers, private=True)
        host = self._host(call.url)
        with host.lock:
            return self._patiently(call, host)

    # One file ---------------------------------------------------------------------------------------------------

    def _follow(self, url: httpx2.URL, ask: Callable[[httpx2.URL], Reply]) -> Reply:
        for _ in range(MOST_REDIRECTS + 1):
            reply = ask(url)
            place = reply.headers.get("Location")
            if reply.status not in MOVED or not place:
                return reply
            try:
                url = checked(str(url.join(place)))
            except (httpx2.InvalidURL, ValueError) as error:
                raise Refused("redirected to no address of the web") from error
            except Refused as error:
                raise Refused(f"redirected: {error}") from error
        raise Refused(f"more than {MOST_REDIRECTS} redirects")

    def _politely(self, url: httpx2.URL) -> Reply:
        """Ask for a file if the robots.txt of its host lets us, one after another at each host."""
        host = self._host(url)
        with host.lock:
            if host.closed:
                raise host.closed.with_traceback(None)
            if host.robots is None:
                try:
                    host.robots = self._robots(url, host)
                except (Missing, Refused) as error:
                    host.closed = type(error)(f"its robots.txt cannot be read: {error}", error.lasting)
                    raise host.closed from error
                host.pause_s = float(host.robots.crawl_delay(AGENT) or 0)
            if not host.robots.can_fetch(str(url), AGENT):
                raise Refused("robots.txt does not allow it")
            if host.pause_s > MOST_WAIT_S:
                raise Refused(f"robots.txt asks for {host.pause_s:.0f} s between two requests")
            call = _Call(url, self.manners.most_bytes, {}, self._check, self.manners.allow_private)
            return self._patiently(call, host)

    def _host(self, url: httpx2.URL) -> _Host:
        with self._guard:
            return self._hosts.setdefault(f"{url.scheme}://{url.netloc.decode()}", _Host())

    def _robots(self, url: httpx2.URL, host: _Host) -> Protego:
        """Read the rules of a host (RFC 9309): none if there is no such file, all forbidden if that cannot be told."""

        def ask(place: httpx2.URL) -> Reply:
            return self._patiently(_Call(place, MOST_ROBOTS_BYTES, private=self.manners.allow_private), host)

        reply = self._follow(url.copy_with(path="/robots.txt", query=None), ask)
        if reply.status != 200 and not 400 <= reply.status < 500:
            raise Refused(f"answered {reply.status}", lasting=False)
        return Protego.parse(reply.data.decode("utf-8-sig", errors="replace"))

    def _check(self, headers: httpx2.Headers) -> None:
        """Refuse by what the head says: that its owner opts out, another type, too large."""
        for part in headers.get("X-Robots-Tag", "").lower().split(","):
            agent, _, rule = part.rpartition(":")
            if rule.strip() in OPT_OUT and agent.strip() in ("", AGENT):
                raise Refused(f"its owner opts out (X-Robots-Tag: {rule.strip()})")
        if headers.get("TDM-Reservation", "").strip() == "1":
            raise Refused("its owner opts out (TDM-Reservation)")
        said = headers.get("Content-Type", "").strip().lower()
        if said and not said.startswith(TYPES):
            raise Refused(f"says that it is {said[:60]}, neither text nor image")
        size = headers.get("Content-Length", "")
        if size.isdecimal() and int(size) > self.manners.most_bytes:
            raise Refused(f"larger than {self.manners.most_bytes:,} bytes")

    # One request ------------------------------------------------------------------------------------------------

    def _patiently(self, call: _Call, host: _Host) -> Reply:
        """Ask until there is an answer that will stay the same; the caller holds the host's lock."""
        pause_s = max(self.manners.pause_s, host.pause_s)
        for tried in range(self.manners.retries + 1):
            self._wait(host.free_at - time.monotonic())
            asked_s = 0.0
            try:
                reply = self._once(call)
            except httpx2.RequestError as error:  # its text may hold the address
                problem = f"no answer ({type(error).__name__})"
            else:
                if reply.status not in AGAIN:
                    return reply
                problem, asked_s = f"answered {reply.status}", retry_after_s(reply.headers.get("Retry-After", ""))
            finally:
                host.free_at = time.monotonic() + pause_s
            if asked_s > MOST_WAIT_S:
                raise Missing(f"{problem} and asks to wait {asked_s:.0f} s")
            if tried < self.manners.retries:
                self._wait(max(asked_s, self.manners.pause_s * 2**tried))
        raise Missing(f"{problem} in {self.manners.retries + 1} tries")

    def _wait(self, seconds: float) -> None:
        if self._stop.wait(max(seconds, 0)):
            raise Missing("stopped")

    def _once(self, call: _Call) -> Reply:
        with Deadline(self.manners.timeout_s) as deadline:
            return self._reply(call, deadline)

    def _reply(self, call: _Call, deadline: Deadline) -> Reply:
        url = call.url
        numbers = machines(url, call.private)
        for last, number in enumerate(numbers, 1 - len(numbers)):
            try:
                with self._client.stream(
                    "GET",
                    url.copy_with(host=number),
                    headers={**call.headers, "Host": url.netloc.decode()},
                    extensions={"sni_hostname": url.raw_host.decode(), "trace": deadline.trace},
                ) as response:
                    data = b""
                    if response.status_code == 200:
                        call.check(response.headers)
                        data = b"".join(self._pieces(response, call.most_bytes))
                    return Reply(response.status_code, response.headers, data)
            except (httpx2.ConnectError, httpx2.ConnectTimeout):
                if not last:
                    raise
        raise AssertionError("a host has at least one address")

    def _pieces(self, response: httpx2.Response, most: int) -> Iterator[bytes]:
        """Read and unpack a body, never more than its limit, whatever its head says."""
        packed = response.headers.get("Content-Encoding", "identity").strip().lower()
        if packed not in ("identity", "gzip", "x-gzip", ""):
            raise Refused(f"packed as {packed[:20]}, which was not asked for")
        unpack = zlib.decompressobj(31) if packed.endswith("gzip") else None
        size = 0
        for raw in response.iter_raw():
            try:
                piece = unpack.decompress(raw, most + 1 - size) if unpack else raw
            except zlib.error as error:
                raise Missing("damaged: its gzip cannot be unpacked") from error
            size += len(piece)
            if size > most:
                raise Refused(f"larger than {most:,} bytes")
            with self._guard:
                self._left_bytes -= len(piece)
                if self._left_bytes < 0:
                    raise Refused("the limit of all files together is reached", lasting=False)
            yield piece
        if unpack and not unpack.eof:
            raise Missing("damaged: its gzip ends early")
