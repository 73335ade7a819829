"""Requests that take too long in all."""

import socket
from types import SimpleNamespace

import httpx2
import pytest

from amends.io.deadline import Deadline

EVENTS = ("connection.connect_tcp", "connection.start_tls", "proxy.start_tls", "socks.connect_tcp", "socks.start_tls")


def connected(deadline, event="connection.connect_tcp"):
    """Our end of a connection that the deadline heard of, and the other's."""
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    deadline.trace(f"{event}.complete", {"return_value": SimpleNamespace(get_extra_info=lambda name: ours)})
    return ours, theirs


@pytest.mark.parametrize("event", EVENTS)
def test_a_connection_of_any_kind_is_ended(event):
    deadline = Deadline(0.05)
    with pytest.raises(httpx2.ReadTimeout, match=r"no whole answer in 0\.05 s"), deadline:
        ours, theirs = connected(deadline, event)
        with ours, theirs:
            assert ours.recv(1) == b""


def test_a_request_on_the_connection_of_the_one_before_is_ended():
    deadline = Deadline(0.5)
    with deadline:
        ours, theirs = connected(deadline)
    with ours, theirs, pytest.raises(httpx2.ReadTimeout), deadline:
        assert ours.recv(1) == b""


def test_a_mistake_of_the_users_is_told_and_not_the_time():
    deadline = Deadline(0.05)
    with pytest.raises(ValueError, match="too many bytes"), deadline:
        ours, theirs = connected(deadline)
        with ours, theirs:
            assert ours.recv(1) == b""
        raise ValueError("too many bytes")
