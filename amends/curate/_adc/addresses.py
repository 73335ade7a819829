"""Addresses on the web that come from data: which may be asked, which machine that is, and how they are shown."""

import ipaddress
import re
import socket
from urllib.parse import unquote

import httpx2

MOST_CHARACTERS = 2000  # of an address
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
_SECRET = re.compile(
    r"(api|access|auth)?(key|token)|auth|jwt|credentials?|passw(or)?d|pwd|secret|session(id)?|sid|sig(nature)?", re.I
)
"""A word in the name of a parameter whose value is no one else's business."""


class Missing(Exception):
    """It may be taken, but is not to be had; `lasting` if asking again is no use."""

    def __init__(self, reason: str, lasting: bool = False) -> None:
        super().__init__(reason)
        self.lasting = lasting


class Refused(Exception):
    """It is not taken, by a rule of ours or of its owner."""

    def __init__(self, reason: str, lasting: bool = True) -> None:
        super().__init__(reason)
        self.lasting = lasting


def is_on_the_web(address: str) -> bool:
    """Whether it is an address, of whatever kind, and not a path."""
    return "://" in address


def shown(address: str) -> str:
    """Give an address as files and messages may hold it: no password, no value of a parameter named like a secret."""
    scheme, mark, rest = address.partition("://")
    if not mark:
        return address
    place, *more = re.split(r"(?=[/?#])", rest.partition("#")[0], maxsplit=1)
    text = f"{scheme}://{place.rpartition('@')[2]}{''.join(more)}"
    return re.sub(r"([?&;]([^=&;?]+)=)[^&;]*", lambda m: f"{m[1]}REMOVED" if _is_secret(m[2]) else m[0], text)


def _is_secret(parameter: str) -> bool:
    name = unquote(parameter)
    return any(_SECRET.fullmatch(word) for word in (name, *_WORDS.findall(name)))


def checked(address: str) -> httpx2.URL:
    """Read an address that something may be fetched from.

    Raises
    ------
    Refused : another scheme than http and https, no host, a password in it, too long, no address at all.
    """
    if len(address) > MOST_CHARACTERS:
        raise Refused(f"the address has over {MOST_CHARACTERS} characters")
    try:
        url = httpx2.URL(address)
        if (url.port or 0) > 65535:
            raise ValueError("no such port")
    except (httpx2.InvalidURL, ValueError, TypeError) as error:
        raise Refused("no address of the web") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise Refused(f"not an address with http or https ({url.scheme or 'none'})")
    if url.userinfo:
        raise Refused("the address holds a user name or password")
    return url.copy_with(fragment=None)


def machines(url: httpx2.URL, allow_private: bool) -> list[str]:
    """Find the IP addresses behind a host, to connect to those and no others.

    A name that is asked for once, checked, and then asked for again could lead elsewhere the second time.

    Raises
    ------
    Missing : the name leads nowhere.
    Refused : one of them is no public one.
    """
    try:
        found = socket.getaddrinfo(url.raw_host.decode("ascii"), url.port or 0, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Missing("its host has no address") from error
    numbers = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if not allow_private and (inner := next((number for number in numbers if not is_public(number)), None)):
        raise Refused(f"its host is {inner}, inside a machine or a private network", lasting=False)
    return numbers


def is_public(number: str) -> bool:
    """Whether an IP address belongs to the public network, also where it carries an IPv4 address inside."""
    ip = ipaddress.ip_address(number)
    inner = None
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.is_global and not ip.is_multicast if inner is None else inner.is_global and not inner.is_multicast
