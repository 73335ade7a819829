"""How long a request to a server may take in all."""

import socket
import threading
from contextlib import suppress
from typing import Any, Self


class Deadline:
    """Ends a request that takes too long in all; the time-outs of a client are for each piece that comes.

    Its connection is told by `trace`, where it is new, or else by `watch`. Where `passed` is true at the end, what was
    read is not the whole.
    """

    def __init__(self, seconds: float) -> None:
        self.passed = False
        self._sockets: list[socket.socket] = []
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        """Begin to count."""
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Count no more."""
        self._timer.cancel()

    def trace(self, event: str, info: dict[str, Any]) -> None:
        """Hear of each new connection, as the client's extension `trace` tells it."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self.watch(info["return_value"])

    def watch(self, stream: Any) -> None:
        """End the request on this connection, a stream of the client."""
        self._sockets.append(stream.get_extra_info("socket"))
        if self.passed:
            self._end()

    def _end(self) -> None:
        self.passed = True
        for one in self._sockets:
            with suppress(OSError):  # closed meanwhile
                socket.socket.shutdown(one, socket.SHUT_RDWR)  # of TLS too: the reader finds the end, and no lock
