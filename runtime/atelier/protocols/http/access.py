"""Who may ask: API keys, as plain ASGI middleware."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from atelier.caller import CALLER
from atelier.errors import Unauthorized
from atelier.protocols.http.error_bodies import ANTHROPIC, error_response
from atelier.settings import Settings

# What anybody may read: probes, metrics, lists of models, and pictures, whose names cannot be
# guessed. The rest needs a key.
OPEN = re.compile(
    r"/|/health|/metrics|/openapi\.json|/docs|(/openai)?/v1/models(/[^/:]+)?"
    r"|/v2|/v2/health/(live|ready)"
    r"|/v2/models(/[^/]+(/(ready|config))?)?|/v1/images/files/[^/]+|/images/[^/]+"
)


class Keys:
    """The accepted API keys. No keys: everybody is let in."""

    def __init__(self, settings: Settings) -> None:
        self._digests = [_digest(key.get_secret_value().encode()) for key in settings.api_keys]

    def check(self, headers: Mapping[str, str], path: str = "") -> None:
        """Look for `authorization: Bearer KEY` among headers or gRPC metadata; names in lower case.
        On routes of Anthropic's shape, `x-api-key: KEY` will do too. Sets `CALLER`.

        Raises:
            Unauthorized: no key, or none that is accepted. Takes equally long for every wrong key.
        """
        if not self._digests:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        keys = [given] if scheme.lower() == "bearer" else []
        wanted = "Authorization: Bearer KEY"
        if ANTHROPIC.fullmatch(path):
            keys += [headers["x-api-key"]] if "x-api-key" in headers else []
            wanted = "x-api-key: KEY"
        if not keys:
            raise Unauthorized(f"an API key is needed: send the header {wanted}")
        digests = [_digest(key.strip().encode()) for key in keys]
        accepted = [
            known
            for digest in digests
            for known in self._digests
            if hmac.compare_digest(digest, known)
        ]
        if not accepted:
            raise Unauthorized("the API key is not accepted")
        CALLER.set(accepted[0].hex())


def _digest(key: bytes) -> bytes:
    """Equal lengths, so that comparing tells nothing about the keys."""
    return hashlib.sha256(key).digest()


class ApiKeys:
    """Answers 401 to requests without an accepted key, before anything of the body is read."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._keys = Keys(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not (
            scope["method"] in ("GET", "HEAD") and OPEN.fullmatch(scope["path"])
        ):
            try:
                headers = {
                    name.decode("latin-1"): value.decode("latin-1")
                    for name, value in scope["headers"]
                }
                self._keys.check(headers, scope["path"])
            except Unauthorized as error:
                await error_response(Request(scope), error)(scope, receive, send)
                return
        await self._app(scope, receive, send)
