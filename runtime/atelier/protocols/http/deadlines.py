"""How long a request may take: its own `timeout` and the header X-Request-Timeout."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar

from atelier.errors import InvalidRequest, shown
from atelier.images.request import ImageRequest
from atelier.text.request import TextRequest

Wanted = TypeVar("Wanted", ImageRequest, TextRequest)


def seconds_allowed(headers: Mapping[str, str]) -> float | None:
    """The header X-Request-Timeout in seconds, if it is sent.

    Raises:
        InvalidRequest: it is not a positive number.
    """
    text = headers.get("x-request-timeout")
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InvalidRequest(
            f"X-Request-Timeout: {shown(text)} is not a positive number of seconds",
            "X-Request-Timeout",
        )
    return seconds


def timed(wanted: Wanted, headers: Mapping[str, str]) -> Wanted:
    """The request with the shorter of its own `timeout` and the header X-Request-Timeout (seconds).

    Raises:
        InvalidRequest: the header is not a positive number.
    """
    seconds = seconds_allowed(headers)
    if seconds is None:
        return wanted
    return wanted.model_copy(update={"timeout": min(seconds, wanted.timeout or seconds)})
