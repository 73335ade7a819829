"""How long a request to a server may take in all."""

import socket
import threading
from contextlib import suppress
from typing import Any, Self

import httpx2


class Deadline:
    """Ends requests that take too long in all; the time-outs of a client are for each piece that comes.

    It stands around a request whose extension `trace` is `trace`. Several may follow each other, also on the connection
    of the one before, as long as nothing else uses that connection.

    Raises
    ------
    httpx2.ReadTimeout : at the end of the block, where the time had passed before the request was done.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._socket: socket.socket | None = None
        self._passed = threading.Event()

    def __enter__(self) -> Self:
        """Begin to count."""
        self._passed = threading.Event()
        self._timer = threading.Timer(self._seconds, self._end, [self._passed])
        self._timer.daemon = True
        self._timer.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        """Count no more; what was read when the time had passed is not the whole."""
        self._timer.cancel()
        if self._passed.is_set() and (error is None or isinstance(error, httpx2.RequestError)):
            raise httpx2.ReadTimeout(f"no whole answer in {self._seconds:g} s") from error

    def trace(self, event: str, info: dict[str, Any]) -> None:
        """Hear of each new connection, through a proxy or not, as the client's extension `trace` tells it."""
        if event.endswith((".connect_tcp.complete", ".start_tls.complete")):
            self._socket = info["return_value"].get_extra_info("socket")
            if self._passed.is_set():
                self._end(self._passed)

    def _end(self, passed: threading.Event) -> None:
        passed.set()
        if self._socket:
            with suppress(OSError):  # closed meanwhile
                # Of TLS too, below it: the reader finds the end, and no lock.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
