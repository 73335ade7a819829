"""What may be fetched, and what not: each rule beside the same request where it does not bite."""

import functools
import gzip
import io
import socket
import ssl
import subprocess
import threading
import tracemalloc
import urllib.robotparser
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx2
import pytest

from amends.curate._adc import addresses
from amends.curate._adc.addresses import Missing, Refused, checked, is_public, shown
from amends.curate._adc.contents import look_at
from amends.curate._adc.fetch import Manners, Web
from amends.io.errors import InputError

from .web import Page, serving

JPEG = b"\xff\xd8\xff\xe0" + bytes(100)


def web(**how):
    return Web(Manners(**({"contact": "me@example.org", "allow_private": True, "pause_s": 0.0, "retries": 0} | how)))


def outcome(address, **how):
    """What comes of an address: its bytes, or the reason."""
    with web(**how) as one:
        try:
            return one.get(address)[0]
        except (Missing, Refused) as error:
            return f"{type(error).__name__}: {error}"


def test_servers_hear_who_asks_and_get_no_cookie_back():
    pages = {"/a": Page(headers={"Set-Cookie": "id=1; Path=/"}), "/b": Page()}
    with serving(pages) as site, web() as one:
        for path in ("/a", "/b"):
            assert one.get(site.at(path))[0] == b"a page"
    assert {found["User-Agent"].split()[0].split("/")[0] for found in site.headers} == {"amends"}
    assert all("contact: me@example.org" in found["User-Agent"] for found in site.headers)
    assert not any(name in found for found in site.headers for name in ("Cookie", "Authorization", "Referer"))


def test_no_proxy_of_the_environment_is_used(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with serving({"/a": Page()}) as site:
        with pytest.raises(httpx2.ConnectError), httpx2.Client() as other:
            other.get(site.at("/a"))
        assert outcome(site.at("/a")) == b"a page"


@pytest.mark.parametrize("contact", ["", " ", "me\r\nX-Evil: 1", "mé@example.org"])
def test_a_contact_that_no_header_can_hold_is_refused(contact):
    with pytest.raises(InputError, match="--contact"):
        Manners(contact)


# Addresses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "file:///etc/passwd",
        "ftp://example.org/a",
        "data://text/plain,a",
        "javascript://%0aalert(1)",
        "http:///etc/passwd",
        "http://me:secret@example.org/",
        "http://example.org/\x00",
        "http://[::1/",
        "http://example.org/" + "a" * 3000,
    ],
)
def test_only_plain_addresses_of_the_web_are_asked(address, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("asked for a host"))
    assert outcome(address).startswith("Refused: ")
    assert str(checked("https://example.org/a?b=c#d")) == "https://example.org/a?b=c"


@pytest.mark.parametrize(
    "number",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "fe80::1",
        "fc00::1",
        "::ffff:127.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "ff0e::1",
    ],
)
def test_addresses_inside_are_told_from_public_ones(number):
    assert not is_public(number)
    for public in ("8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"):
        assert is_public(public)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "[::ffff:127.0.0.1]"])
def test_this_machine_is_not_asked_unless_that_is_allowed(host):
    with serving({"/a": Page()}) as site:
        assert "inside a machine or a private network" in outcome(site.at("/a", host), allow_private=False)
        assert not site.asked
        if "ffff" not in host:  # the test's own guard knows no address of IPv6
            assert outcome(site.at("/a", host)) == b"a page"


def test_a_public_name_with_one_private_address_is_refused(monkeypatch):
    entry = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
    found = [(*entry, ("8.8.8.8", 80)), (*entry, ("10.0.0.1", 80))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    assert "10.0.0.1" in outcome("http://example.org/", allow_private=False)
    found.pop()
    assert addresses.machines(checked("http://example.org/"), False) == ["8.8.8.8"]


def test_the_address_that_was_checked_is_the_one_that_is_asked(monkeypatch):
    resolve, answers = socket.getaddrinfo, []

    def rebinding(host, *args, **how):
        if host != "rebind.example":
            return resolve(host, *args, **how)
        answers.append("127.0.0.1" if len(answers) < 2 else "127.0.0.2")  # robots.txt and the file, then the attack
        return resolve(answers[-1], *args, **how)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    monkeypatch.setattr(addresses, "is_public", lambda number: number == "127.0.0.1")
    with serving({"/a": Page(), "/b": Page()}) as site, web(allow_private=False) as one:
        assert one.get(site.at("/a", "rebind.example"))[0] == b"a page"
        assert answers == ["127.0.0.1"] * 2  # once for each request: what was checked was connected to
        assert {found["Host"] for found in site.headers} == {f"rebind.example:{site.server_port}"}
        with pytest.raises(Refused, match=r"127\.0\.0\.2"):
            one.get(site.at("/b", "rebind.example"))


def test_a_name_that_leads_nowhere_is_missing(monkeypatch):
    def fails(*_, **__):
        raise socket.gaierror("no such name")

    monkeypatch.setattr(socket, "getaddrinfo", fails)
    assert outcome("http://nowhere.example/") == "Missing: its robots.txt cannot be read: its host has no address"


@pytest.mark.parametrize(
    ("address", "kept"),
    [
        ("https://me:pw@example.org/a?b=c", "https://example.org/a?b=c"),
        ("https://me:p@w@example.org", "https://example.org"),
        ("https://e.org/?X-Amz-Signature=abc&x=1", "https://e.org/?X-Amz-Signature=REMOVED&x=1"),
        ("https://e.org/?apiKey=abc;access_token=d", "https://e.org/?apiKey=REMOVED;access_token=REMOVED"),
        ("https://e.org/?%74oken=abc", "https://e.org/?%74oken=REMOVED"),
        ("https://e.org/a#access_token=abc", "https://e.org/a"),
        ("https://e.org/?keywords=cat&design=1&monkey=2", "https://e.org/?keywords=cat&design=1&monkey=2"),
        ("photos/a@b?token=c.jpg", "photos/a@b?token=c.jpg"),
    ],
)
def test_no_password_and_no_key_stays_in_an_address(address, kept):
    assert shown(address) == kept
    assert shown(kept) == kept


# Redirects ---------------------------------------------------------------------------------------------------------


def moved(place):
    return Page(b"", status=302, headers={"Location": place})


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("file:///etc/passwd", "redirected: not an address with http or https (file)"),
        ("http://me:pw@127.0.0.1/", "redirected: the address holds a user name or password"),
        ("http://127.0.0.1:99999999/", "redirected: no address of the web"),
    ],
)
def test_a_redirect_is_checked_as_the_first_address_was(place, reason):
    with serving({"/a": moved(place), "/b": moved("/c"), "/c": Page()}) as site:
        assert reason in outcome(site.at("/a"))
        assert outcome(site.at("/b")) == b"a page"


def test_a_redirect_to_a_private_address_is_not_followed(monkeypatch):
    monkeypatch.setattr(addresses, "is_public", lambda number: number == "127.0.0.1")
    with serving({"/secret": Page()}, "127.0.0.2") as inner, serving({"/a": moved(inner.at("/secret"))}) as site:
        assert "127.0.0.2" in outcome(site.at("/a"), allow_private=False)
        assert not inner.asked
        assert outcome(site.at("/a"), allow_private=True) == b"a page"


def test_redirects_end():
    pages = {f"/{i}": moved(f"/{i + 1}") for i in range(1, 9)} | {"/9": Page()}
    with serving(pages) as site:
        assert outcome(site.at("/4")) == b"a page"
        assert outcome(site.at("/3")) == "Refused: more than 5 redirects"


def test_robots_of_the_place_that_a_redirect_leads_to_hold():
    rules = Page(b"User-agent: *\nDisallow: /")
    with serving({"/robots.txt": rules, "/a": Page()}, "127.0.0.2") as closed:
        with serving({"/a": moved(closed.at("/a"))}) as site:
            assert outcome(site.at("/a")) == "Refused: robots.txt does not allow it"
        assert set(closed.asked) == {"/robots.txt"}


# robots.txt and owners ---------------------------------------------------------------------------------------------

RULES = b"""User-agent: *
Disallow: /*.jpg$
Allow: /
Disallow: /private
"""


def test_robots_txt_is_obeyed_with_wildcards_and_the_longest_match():
    pages = {"/robots.txt": Page(RULES), "/a.jpg": Page(), "/private/a": Page(), "/a": Page()}
    with serving(pages) as site, web() as one:
        for path in ("/a.jpg", "/private/a"):
            with pytest.raises(Refused, match=r"robots\.txt does not allow it"):
                one.get(site.at(path))
        assert one.get(site.at("/a"))[0] == b"a page"
        assert site.asked == {"/robots.txt": 1, "/a": 1}
    weak = urllib.robotparser.RobotFileParser()  # why protego is needed
    weak.parse(RULES.decode().splitlines())
    assert weak.can_fetch("amends", "http://e.org/a.jpg") and weak.can_fetch("amends", "http://e.org/private/a")


def test_robots_txt_may_speak_to_us_by_name():
    pages = {"/robots.txt": Page(b"User-agent: amends\nDisallow: /\n\nUser-agent: *\nAllow: /"), "/a": Page()}
    with serving(pages) as site:
        assert "robots.txt does not allow it" in outcome(site.at("/a"))
    pages["/robots.txt"] = Page(b"User-agent: other\nDisallow: /\n\nUser-agent: *\nAllow: /")
    with serving(pages) as site:
        assert outcome(site.at("/a")) == b"a page"


@pytest.mark.parametrize(("status", "allowed"), [(404, True), (403, True), (500, False), (503, False), (429, False)])
def test_without_rules_all_is_allowed_and_with_rules_that_cannot_be_read_nothing(status, allowed):
    with serving({"/robots.txt": Page(status=status), "/a": Page()}) as site, web() as one:
        if allowed:
            assert one.get(site.at("/a"))[0] == b"a page"
        else:
            for _ in range(2):
                with pytest.raises((Missing, Refused), match=r"its robots\.txt cannot be read"):
                    one.get(site.at("/a"))
        assert site.asked["/a"] == allowed and site.asked["/robots.txt"] == 1


def waits(monkeypatch):
    """Take down how long is waited, and do not."""
    found = []
    monkeypatch.setattr(Web, "_wait", lambda self, seconds: found.append(seconds))
    return found


def test_the_pause_between_two_requests_is_ours_or_that_of_robots_txt_if_longer(monkeypatch):
    found = waits(monkeypatch)
    for rules, pause in ((b"", 7), (b"User-agent: *\nCrawl-delay: 40", 40)):
        with serving({"/robots.txt": Page(rules), "/a": Page(), "/b": Page()}) as site, web(pause_s=7.0) as one:
            one.get(site.at("/a"))
            found.clear()
            one.get(site.at("/b"))
            assert found == [pytest.approx(pause, abs=2)]


def test_a_host_that_wants_hours_between_requests_is_left_alone():
    with serving({"/robots.txt": Page(b"User-agent: *\nCrawl-delay: 9000"), "/a": Page()}) as site:
        assert outcome(site.at("/a")) == "Refused: robots.txt asks for 9000 s between two requests"


@pytest.mark.parametrize(
    ("headers", "refused"),
    [
        ({"X-Robots-Tag": "noai, noimageai"}, True),
        ({"X-Robots-Tag": "amends: noindex"}, True),
        ({"TDM-Reservation": "1"}, True),
        ({"X-Robots-Tag": "googlebot: noindex"}, False),
        ({"X-Robots-Tag": "nofollow"}, False),
        ({"TDM-Reservation": "0"}, False),
    ],
)
def test_owners_can_opt_out_by_headers(headers, refused):
    with serving({"/a": Page(headers=headers)}) as site:
        assert ("opts out" in str(outcome(site.at("/a")))) == refused


# Sizes -------------------------------------------------------------------------------------------------------------


def test_a_file_over_the_limit_is_refused_by_its_head_alone():
    with serving({"/a": Page(b"x" * 1001), "/b": Page(b"x" * 1000)}) as site:
        assert outcome(site.at("/a"), most_bytes=1000) == "Refused: larger than 1,000 bytes"
        assert outcome(site.at("/b"), most_bytes=1000) == b"x" * 1000


def test_an_endless_file_is_left_at_the_limit():
    with serving({"/a": Page(b"x" * 100_000, in_pieces=True)}) as site:
        assert outcome(site.at("/a"), most_bytes=250_000) == "Refused: larger than 250,000 bytes"
    assert site.sent < 50_000_000  # of 100 MB; what the sockets hold is more than the limit


@pytest.mark.parametrize(("said", "there"), [(10, 5), (5, 10)])
def test_a_size_that_lies_gives_no_more_and_no_less_than_it_says(said, there):
    lying = Page(b"x" * there, headers={"Content-Length": str(said), "Connection": "close"})
    with serving({"/a": lying}) as site:
        found = outcome(site.at("/a"))
    assert found == b"x" * 5 if said < there else found.startswith("Missing: no answer (RemoteProtocolError)")


def test_a_gzip_bomb_is_left_at_the_limit_and_an_honest_gzip_is_unpacked():
    def packed(data):
        return Page(gzip.compress(data), headers={"Content-Encoding": "gzip"})

    with serving({"/bomb": packed(bytes(50_000_000)), "/a": packed(b"x" * 1000)}) as site:
        tracemalloc.start()
        assert outcome(site.at("/bomb"), most_bytes=100_000) == "Refused: larger than 100,000 bytes"  # packed: 50,000
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
        tracemalloc.stop()
        assert outcome(site.at("/a"), most_bytes=1000) == b"x" * 1000
        assert outcome(site.at("/a"), most_bytes=999) == "Refused: larger than 999 bytes"


@pytest.mark.parametrize(
    ("data", "packing", "reason"),
    [
        (gzip.compress(b"x" * 1000, mtime=0)[:-9], "gzip", "Missing: damaged: its gzip ends early"),
        (b"no gzip", "gzip", "Missing: damaged: its gzip cannot be unpacked"),
        (b"a page", "br", "Refused: packed as br, which was not asked for"),
        (b"a page", "gzip, gzip", "Refused: packed as gzip, gzip, which was not asked for"),
    ],
)
def test_what_cannot_be_unpacked_is_no_file(data, packing, reason):
    with serving({"/a": Page(data, headers={"Content-Encoding": packing})}) as site:
        assert outcome(site.at("/a")) == reason


def test_all_files_together_have_a_limit():
    with serving({f"/{i}": Page(b"x" * 400) for i in range(3)}) as site, web(most_bytes_in_all=1000) as one:
        assert [len(one.get(site.at(path))[0]) for path in ("/0", "/1")] == [400, 400]
        with pytest.raises(Refused, match="the limit of all files together"):
            one.get(site.at("/2"))


@pytest.mark.parametrize("kind", ["application/zip", "video/mp4", "application/json"])
def test_other_types_are_refused_before_they_are_read(kind):
    with serving({"/a": Page(kind=kind), "/b": Page(kind="application/octet-stream")}) as site:
        assert "neither text nor image" in outcome(site.at("/a"))
        assert outcome(site.at("/b")) == b"a page"


# Faults ------------------------------------------------------------------------------------------------------------


def test_a_server_that_asks_to_wait_is_given_the_time_it_asks_for(monkeypatch):
    found = waits(monkeypatch)
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    for asked, seconds in (("17", 17), (later, 100), ("soon", 0)):
        busy = Page(status=503, headers={"Retry-After": asked})
        with serving({"/a": lambda before, busy=busy: Page() if before else busy}) as site:
            found.clear()
            assert outcome(site.at("/a"), retries=1) == b"a page"
            assert max(found) == pytest.approx(seconds, abs=2)


def test_after_its_retries_a_file_is_missing_and_one_that_is_gone_is_not_asked_for_again(monkeypatch):
    waits(monkeypatch)
    with serving({"/a": Page(status=503), "/b": Page(status=0)}) as site:
        assert outcome(site.at("/a"), retries=2) == "Missing: answered 503 in 3 tries"
        assert outcome(site.at("/b"), retries=1).startswith("Missing: no answer (RemoteProtocolError) in 2 tries")
        assert outcome(site.at("/gone"), retries=2) == "Missing: answered 404"
    assert site.files_asked == {"/a": 3, "/b": 2, "/gone": 1}


def test_a_server_that_asks_for_hours_is_not_waited_for(monkeypatch):
    found = waits(monkeypatch)
    with serving({"/a": Page(status=429, headers={"Retry-After": "86400"})}) as site:
        assert outcome(site.at("/a"), retries=3) == "Missing: answered 429 and asks to wait 86400 s"
    assert site.files_asked == {"/a": 1} and max(found) < 100


@pytest.mark.parametrize("in_head", [False, True])
def test_a_file_that_drips_is_given_up(in_head):
    drips = Page(b"x", in_pieces=True, pause_s=0.05, in_head=in_head)
    with serving({"/a": drips, "/b": Page(b"x"), "/robots.txt": Page()}) as site:
        assert outcome(site.at("/a"), timeout_s=0.5) == "Missing: no answer (ReadTimeout) in 1 tries"
        assert outcome(site.at("/b"), timeout_s=0.5) == b"x"
    assert site.sent < 500  # of 1,000 pieces


def test_a_stopped_web_waits_for_nothing():
    with serving({"/a": Page()}) as site, web(pause_s=1000.0) as one:
        threading.Timer(0.2, one.stop).start()
        with pytest.raises(Missing, match="stopped"):
            one.get(site.at("/a"))


# TLS ---------------------------------------------------------------------------------------------------------------


def test_a_certificate_must_be_that_of_the_name_and_not_of_the_address(tmp_path, monkeypatch):
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days", "2"]
    made += ["-subj", "/CN=right.example", "-addext", "subjectAltName=DNS:right.example"]
    subprocess.run(made, check=True, capture_output=True)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(cert, key)
    server.num_tickets = 0  # a client takes a ticket that it did not read for the end of the connection
    resolve = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *a, **k: resolve("127.0.0.1" if "example" in host else host, *a, **k)
    )
    trusting = functools.partial(httpx2.Client, verify=ssl.create_default_context(cafile=str(cert)))
    monkeypatch.setattr(httpx2, "Client", trusting)
    with serving({"/a": Page(), "/robots.txt": Page(b"")}) as site, web() as one:
        site.socket = server.wrap_socket(site.socket, server_side=True)
        assert one.get(f"https://right.example:{site.server_port}/a")[0] == b"a page"
        with pytest.raises(Missing, match=r"its robots\.txt cannot be read: no answer \(ConnectError\)"):
            one.get(f"https://wrong.example:{site.server_port}/a")


# Contents ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "kind", "suffix"),
    [
        (JPEG, "image", ".jpg"),
        (b"\x89PNG\r\n\x1a\n" + bytes(9), "image", ".png"),
        (b"GIF89a" + bytes(9), "image", ".gif"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "image", ".webp"),
        (b"\0\0\0\x20ftypavif" + bytes(9), "image", ".avif"),
        (b"BM\x10\0\0\0\0\0\0\0", "image", ".bmp"),
        ("BM is a firm; Zürich".encode(), "text", ".txt"),
        (b"<!DOCTYPE html><title>no</title><p>Hello", "text", ".html"),
    ],
)
def test_files_are_known_by_their_bytes(data, kind, suffix):
    found = look_at(data)
    assert (found.kind, found.suffix) == (kind, suffix)


@pytest.mark.parametrize(
    "data", [b"", b"  ", b"%PDF-1.7", b"\x7fELF\0", "Zürich".encode("latin-1"), b"a\0b", b"PK\3\4", b"\x1b[31m"]
)
def test_what_is_neither_text_nor_image_is_refused(data):
    with pytest.raises(Refused):
        look_at(data)


def test_an_svg_is_no_image_and_no_text():
    with pytest.raises(Refused, match="SVG"):
        look_at(b"<?xml version='1.0'?><svg><script>alert(1)</script></svg>")


@pytest.mark.parametrize(
    ("page", "seen"),
    [
        ("<head><title>t</title><body><p>One &amp; two<style>x{}</style><br>three", "One & two\nthree"),
        ("<script>if (a < b) bad('</p>')</script>after", "after"),
        ("<SCRIPT src=x>bad()</SCRIPT >after", "after"),
        ("one<!-- <b>hidden</b> -->two<!-- open <b>hidden</b>", "onetwo"),
        ("a < b, 1 <2", "a\n< b, 1\n<2"),
        ("one<b", "one"),
    ],
)
def test_of_a_page_the_table_has_what_a_reader_sees(page, seen):
    assert look_at(f"<html>{page}".encode()).text == seen
    assert look_at(page.encode()).text == page  # without the tag it is any text


@pytest.mark.parametrize("unit", ["<a ", "<!--", "<a b='", "</", "<?", "&", "<script>", "<!-- -->"])
def test_a_broken_page_takes_no_more_than_one_pass(unit):
    look_at(b"<html>x" + unit.encode() * 60_000)  # minutes or hours if the time grew with the square


def test_a_picture_that_a_library_wrote_is_known():
    from PIL import Image

    for name, suffix in (("JPEG", ".jpg"), ("PNG", ".png"), ("GIF", ".gif"), ("BMP", ".bmp"), ("TIFF", ".tif")):
        file = io.BytesIO()
        Image.new("RGB", (3, 3)).save(file, name)
        assert look_at(file.getvalue())[:2] == ("image", suffix)
