"""Input pictures given as text: base64, or a URL where ALLOWED_IMAGE_HOSTS names its host, bounded
in size, time and redirects.

A name may point anywhere, so the address is checked where the connection is made: what is resolved
is what is checked and what is connected to. Private, local and other special addresses are never
reached, whatever redirects or DNS say.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import unquote, unquote_to_bytes, urljoin, urlsplit

import httpcore

from atelier.errors import InvalidRequest, PayloadTooLarge, shown
from atelier.settings import Settings

SECONDS = 10.0
REDIRECTS = 3
MOVED = {301, 302, 303, 307, 308}

URL_SAFE = str.maketrans("-_", "+/")
"""The alphabet for URLs and file names (RFC 4648, section 5), to the usual one."""

SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_public(address: Address) -> bool:
    """True of addresses of the open internet; of an IPv6 address that carries an IPv4 address, both
    must be."""
    if isinstance(address, ipaddress.IPv6Address):
        nat64 = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF) if address in NAT64 else None
        teredo = address.teredo[1] if address.teredo else None
        inner = address.ipv4_mapped or address.sixtofour or teredo or nat64
        if inner is not None:
            return is_public(inner)
        if any(address in network for network in NOT_PUBLIC):
            return False
    return address.is_global and not address.is_multicast


NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

NOT_PUBLIC = tuple(
    map(
        ipaddress.IPv6Network,
        (
            "::/96",  # IPv4-compatible, deprecated: RFC 4291, section 2.5.5.1
            "64:ff9b:1::/48",  # local NAT64: RFC 8215
            "fec0::/10",  # site-local, deprecated: RFC 3879
        ),
    )
)
"""Which Python's table, made of what is registered today, calls global."""


class HurriedStream(httpcore.NetworkStream):
    """A connection whose every read ends at `ends`, however slowly bytes drip in before; `late` is
    what is said then."""

    def __init__(self, inner: httpcore.NetworkStream, ends: float, late: str) -> None:
        self._inner = inner
        self._ends = ends
        self._late = late

    def _left(self) -> float:
        left = self._ends - time.monotonic()
        if left <= 0:
            raise httpcore.ReadTimeout(self._late)
        return left

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            return self._inner.read(max_bytes, self._left())
        except httpcore.ReadTimeout:
            raise httpcore.ReadTimeout(self._late) from None

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, self._left())

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        encrypted = self._inner.start_tls(ssl_context, server_hostname, self._left())
        return HurriedStream(encrypted, self._ends, self._late)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


def picture_bytes(text: str, where: str, settings: Settings) -> bytes:
    """The bytes of a picture given as base64, bare or as a data URL, or as a URL of an allowed
    host. Blocks.

    Padding may be missing, the alphabet may be that for URLs, characters may be percent-encoded.

    Raises:
        InvalidRequest: none of these; `where` is named.
    """
    text = text.strip().removeprefix("\ufeff")
    if SCHEME.match(text):
        return RemotePictures(settings).fetch(text, where)
    head, _, rest = text.partition(",") if text[:5].lower() == "data:" else ("", "", text)
    bare = "".join(rest.split())  # encoders break lines
    bare = (unquote(bare) if "%" in bare else bare).translate(URL_SAFE).rstrip("=")
    try:
        return base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        if head and not head.lower().endswith("base64"):  # RFC 2397 has bytes as percent-encoding
            return unquote_to_bytes(rest)
        raise InvalidRequest(
            f"{where}: not base64: {error}: {shown(text)}; send the picture's bytes in base64, bare"
            " or as a data URL, or a URL of a host in ALLOWED_IMAGE_HOSTS",
            where,
        ) from None


def picture_text(value: Any) -> Any:
    """The text or bytes of a picture that is an object around them: OpenAI's `image_url`, with or
    without `url` in it, or `b64` as KServe's v1 protocol writes binary values."""
    for name in ("image_url", "url", "b64_json", "b64"):
        if isinstance(value, dict) and value.get(name):
            value = value[name]
    return value


class CheckedBackend(httpcore.SyncBackend):
    """Connects only to addresses that pass `check`, and for no longer than `seconds` from now."""

    def __init__(self, check: Callable[[Address], bool], seconds: float) -> None:
        self._check = check
        self._ends = time.monotonic() + seconds
        self._late = f"it took longer than {seconds:g} s"

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"{host} cannot be resolved: {error}") from None
        address = str(found[0][4][0])
        if not self._check(ipaddress.ip_address(address.partition("%")[0])):
            raise httpcore.ConnectError(f"{host} is {address}, which is not a public address")
        stream = super().connect_tcp(address, port, timeout, local_address, socket_options)
        return HurriedStream(stream, self._ends, self._late)


class RemotePictures:
    """Fetches pictures from the hosts that the settings allow. Blocks; for worker threads.

    `check` says which addresses may be connected to; `seconds` bounds a fetch, redirects included.
    """

    def __init__(
        self,
        settings: Settings,
        check: Callable[[Address], bool] = is_public,
        seconds: float = SECONDS,
    ) -> None:
        self._hosts = {host.lower() for host in settings.allowed_image_hosts}
        self._limit = settings.max_body_bytes
        self._seconds = seconds
        self._check = check

    def fetch(self, url: str, where: str) -> bytes:
        """The body of `url`, not yet known to be a picture.

        Raises:
            InvalidRequest: the host is not allowed, cannot be reached, or answers with anything but
                the picture in time.
            PayloadTooLarge: it is larger than MAX_BODY_BYTES.
        """
        ends = time.monotonic() + self._seconds
        backend = CheckedBackend(self._check, self._seconds)
        with httpcore.ConnectionPool(network_backend=backend) as pool:
            for _ in range(REDIRECTS + 1):
                self._check_url(url, where)
                try:
                    location, body = self._get(pool, url, ends)
                except (
                    httpcore.NetworkError,
                    httpcore.TimeoutException,
                    httpcore.ProtocolError,
                    OSError,
                ) as error:
                    raise InvalidRequest(
                        f"{where}: {url[:200]} cannot be fetched: {error}", where
                    ) from None
                if location is None:
                    return body
                url = urljoin(url, location)
        raise InvalidRequest(f"{where}: the URL is redirected more than {REDIRECTS} times", where)

    def _check_url(self, url: str, where: str) -> None:
        try:
            parts = urlsplit(url)
            host, scheme, _ = (parts.hostname or "").lower(), parts.scheme, parts.port
        except ValueError as error:
            raise InvalidRequest(f"{where}: {url[:200]!r} is not a URL: {error}", where) from None
        if not (url.isascii() and url.isprintable()):
            raise InvalidRequest(
                f"{where}: {url[:200]!r} is not a URL: percent-encode what is not ASCII", where
            )
        if scheme not in ("http", "https") or host not in self._hosts:
            raise InvalidRequest(
                f"{where}: pictures are not fetched from {scheme}://{host}; send the picture as"
                " base64 or as a data URL, or have its host named in ALLOWED_IMAGE_HOSTS",
                where,
            )

    def _get(
        self, pool: httpcore.ConnectionPool, url: str, ends: float
    ) -> tuple[str | None, bytes]:
        """Where the answer points to, or else its body."""
        left = max(0.01, ends - time.monotonic())
        timeouts = dict.fromkeys(("connect", "read", "write", "pool"), left)
        with pool.stream(
            "GET", url, headers={"Accept": "image/*"}, extensions={"timeout": timeouts}
        ) as response:
            headers = {name.lower(): value for name, value in response.headers}
            if response.status in MOVED and b"location" in headers:
                return headers[b"location"].decode("latin-1"), b""
            if response.status != 200:
                raise httpcore.ProtocolError(f"it answered with status {response.status}")
            body = bytearray()
            for chunk in response.iter_stream():
                body += chunk
                if len(body) > self._limit:
                    raise PayloadTooLarge(
                        f"the picture at {url[:200]} is larger than MAX_BODY_BYTES={self._limit}"
                    )
            return None, bytes(body)
