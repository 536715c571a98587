"""Fetching input pictures: limits on size, time and redirects, and which addresses are public."""

from __future__ import annotations

import ipaddress
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from atelier.errors import InvalidRequest, PayloadTooLarge
from atelier.protocols.http.remote import RemotePictures, is_public
from atelier.settings import Settings

LIMIT = 10_000


class Site(BaseHTTPRequestHandler):
    """A picture, and the ways in which a site can be tiresome."""

    def do_GET(self) -> None:
        if self.path == "/picture":
            self._answer(200, b"a picture")
        elif self.path.startswith("/hops/"):
            left = int(self.path.rsplit("/", 1)[1])
            self._answer(302, b"", f"/hops/{left - 1}" if left else "/picture")
        elif self.path == "/elsewhere":
            self._answer(302, b"", "http://example.com/picture")
        elif self.path == "/huge":
            self._answer(200, b"x" * (LIMIT + 1))
        elif self.path == "/slow":
            self.send_response(200)
            self.end_headers()
            for _ in range(50):
                self.wfile.write(b"x")
                time.sleep(0.1)
        elif self.path == "/slow-headers":
            with suppress(OSError):
                for drop in range(50):
                    self.wfile.write(b"x" if drop else b"HTTP/1.1 200 OK\r\nX: ")
                    time.sleep(0.1)
        else:
            self._answer(404, b"")

    def _answer(self, status: int, body: bytes, location: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if location:
            self.send_header("Location", location)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://localhost:{server.server_port}"
    server.shutdown()


@pytest.fixture
def pictures() -> RemotePictures:
    """A site in this test is on the loopback address, so that is what counts as public here, over
    IPv4."""
    settings = Settings(allowed_image_hosts=["localhost"], max_body_bytes=LIMIT)
    return RemotePictures(settings, check=lambda address: address.is_loopback, seconds=1)


def test_a_picture_is_fetched_from_an_allowed_host(pictures: RemotePictures, site: str) -> None:
    assert pictures.fetch(f"{site}/picture", "image") == b"a picture"


def test_three_redirects_are_followed_and_a_fourth_is_not(
    pictures: RemotePictures, site: str
) -> None:
    assert pictures.fetch(f"{site}/hops/2", "image") == b"a picture"
    with pytest.raises(InvalidRequest, match="redirected more than 3 times"):
        pictures.fetch(f"{site}/hops/3", "image")


def test_a_redirect_does_not_leave_the_allowed_hosts(pictures: RemotePictures, site: str) -> None:
    with pytest.raises(InvalidRequest, match=r"not fetched from http://example\.com"):
        pictures.fetch(f"{site}/elsewhere", "image")


def test_a_picture_above_the_limit_is_refused(pictures: RemotePictures, site: str) -> None:
    with pytest.raises(PayloadTooLarge):
        pictures.fetch(f"{site}/huge", "image")


@pytest.mark.alone
@pytest.mark.parametrize("path", ["/slow", "/slow-headers"])
def test_a_site_that_drips_is_given_up_in_time(
    pictures: RemotePictures, site: str, path: str
) -> None:
    began = time.monotonic()
    with pytest.raises(InvalidRequest, match="longer than 1 s"):
        pictures.fetch(site + path, "image")
    assert time.monotonic() - began < 3


@pytest.mark.parametrize("path", ["/missing", "/ x"])
def test_what_is_no_picture_is_a_bad_request(
    pictures: RemotePictures, site: str, path: str
) -> None:
    with pytest.raises(InvalidRequest, match="cannot be fetched"):
        pictures.fetch(site + path, "image")


def test_a_host_is_connected_to_only_at_an_address_that_was_checked(site: str) -> None:
    seen = []
    settings = Settings(allowed_image_hosts=["localhost"])
    refusing = RemotePictures(settings, check=lambda address: bool(seen.append(address)))
    with pytest.raises(InvalidRequest, match="not a public address"):
        refusing.fetch(f"{site}/picture", "image")
    assert seen[0].is_loopback


PRIVATE = """127.0.0.1 10.1.2.3 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 0.0.0.0 224.0.0.1
255.255.255.255 ::1 ::
fe80::1 fc00::1 ff02::1 ::ffff:10.0.0.1 64:ff9b::a00:1 2002:a00:1::1 fec0::1 ::127.0.0.1
64:ff9b:1::a00:1"""


@pytest.mark.parametrize("address", PRIVATE.split())
def test_private_and_special_addresses_are_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_addresses_of_the_open_internet_are(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))
