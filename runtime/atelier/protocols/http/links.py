"""Where clients reach this server, for the URLs in its answers: behind a proxy that ends TLS the
connection tells another scheme than theirs.

What a request says of its way here is believed, whoever says it: it changes no answer but its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from fastapi import Request

from atelier.settings import Settings

HOST = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?")
PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)+")
PAIR = re.compile(r'(?:^|;)\s*(\w+)\s*=\s*(?:"([^"]*)"|([^;"\s]*))')


def public_base(request: Request, settings: Settings) -> str:
    """PUBLIC_URL, or scheme, host and prefix as `Forwarded` (RFC 7239) or the `X-Forwarded-`
    headers tell them, else as the request itself does. Of several proxies the first counts, which
    the client spoke with."""
    if settings.public_url:
        return settings.public_url.rstrip("/")
    told = forwarded(request.headers)
    scheme = told.get("proto", "").lower()
    host, prefix = told.get("host", ""), told.get("prefix", "").rstrip("/")
    if scheme not in ("http", "https"):
        scheme = request.url.scheme
    if not HOST.fullmatch(host):
        host = request.url.netloc
    return f"{scheme}://{host}{prefix if PREFIX.fullmatch(prefix) else ''}"


def forwarded(headers: Mapping[str, str]) -> dict[str, str]:
    """What the first proxy tells: proto, host, prefix, those that it does tell."""
    first = headers.get("forwarded", "").split(",")[0]
    told = {name.lower(): quoted or bare for name, quoted, bare in PAIR.findall(first)}
    for name in ("proto", "host", "prefix"):
        value = headers.get(f"x-forwarded-{name}", "").split(",")[0].strip()
        if value:
            told.setdefault(name, value)
    return told
