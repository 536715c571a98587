"""`atelier warm`: a few prompts of growing length, so that a server has compiled, captured and
cached what the first users would have waited for. Needs nothing but the core's own dependencies."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from atelier.errors import AtelierError

POLL_SECONDS = 1.0
TOO_LONG = (400, 413, 422)
PROBE_WORDS = 32
"""Of a first prompt that tells how many tokens a word takes."""


class NotWarm(AtelierError):
    """The server did not become ready, or answered none of the prompts."""


@dataclass(frozen=True)
class Warmed:
    """One prompt. `tokens` is what `usage` counted, `refused` what the server said against it."""

    wanted: int
    tokens: int | None
    seconds: float
    refused: str = ""


@dataclass
class WarmTarget:
    """An OpenAI-compatible server, asked without a session of its own."""

    url: str
    key: str = ""
    model: str = ""
    timeout: float = 600

    def __post_init__(self) -> None:
        whole = self.url if "://" in self.url else f"http://{self.url}"
        self.url = whole.rstrip("/").removesuffix("/v1").rstrip("/")

    def models(self) -> list[str]:
        """Names of the models that are ready; none while nobody answers."""
        try:
            answer = self._get("/v1/models")
            if answer.status_code != 200:
                return []
            listed = [one["id"] for one in answer.json()["data"]]
        except (httpx.HTTPError, ValueError, KeyError):
            return []
        # Ours lists a model before it is ready; others have no such route, or have it ready.
        return [name for name in listed if self._ready(name)]

    def _ready(self, name: str) -> bool:
        answer = self._get(f"/v2/models/{name}/ready")
        return answer.status_code not in (503, 425)

    def wait(self, seconds: float) -> None:
        """Until a model is ready.

        Raises:
            NotWarm: it took longer.
        """
        ends = time.monotonic() + seconds
        while not self.models():
            if time.monotonic() >= ends:
                raise NotWarm(f"{self.url} was not ready within {seconds:g} s")
            time.sleep(POLL_SECONDS)

    def warm(self, lengths: list[int], output_tokens: int = 8) -> Iterator[Warmed]:
        """Ask a prompt of each length, shortest first. One that is too long for the model is told,
        not an end.

        Raises:
            NotWarm: no model is ready there, or a request failed otherwise.
        """
        names = self.models()
        if not names or (self.model and self.model not in names):
            raise NotWarm(
                f"{self.url} has {', '.join(names) or 'no model'} ready"
                + (f", not {self.model}" if self.model else "")
                + ": --wait waits for it"
            )
        first = self._ask(self.model or names[0], PROBE_WORDS, PROBE_WORDS, 1)
        words_per_token = PROBE_WORDS / (first.tokens or PROBE_WORDS)
        for wanted in sorted(lengths):
            words = max(1, round(wanted * words_per_token))
            done = self._ask(self.model or names[0], wanted, words, output_tokens)
            if done.tokens:
                words_per_token = words / done.tokens
            yield done

    def _ask(self, model: str, wanted: int, words: int, output_tokens: int) -> Warmed:
        # A beginning of its own, or the prefix cache would spare the server its work.
        text = " ".join([str(wanted), *["warm"] * (words - 1)])
        body: dict[str, Any] = {
            "model": model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": output_tokens,
        }
        begun = time.monotonic()
        try:
            answer = httpx.post(
                f"{self.url}/v1/chat/completions",
                json=body,
                headers=self._headers(),
                timeout=self.timeout,
            )
        except httpx.HTTPError as error:
            raise NotWarm(f"{self.url}: a prompt of {wanted} tokens failed: {error!r}") from None
        seconds = time.monotonic() - begun
        if answer.status_code in TOO_LONG:
            return Warmed(wanted, None, seconds, answer.text[:200])
        if answer.status_code != 200:
            raise NotWarm(f"{self.url} answered {answer.status_code}: {answer.text[:300]}")
        usage = answer.json().get("usage") or {}
        return Warmed(wanted, usage.get("prompt_tokens"), seconds)

    def _get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, headers=self._headers(), timeout=10)

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}
