"""The server that is measured: where it is, which model it has, and how it counts tokens."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import aiohttp
import orjson

from atelier.errors import AtelierError

CONNECT_SECONDS = 10
KEY_NEEDED = (401, 403)


class TargetError(AtelierError):
    """The server cannot be measured: it is not there, refuses, or has no such model."""


@dataclass
class Target:
    """An OpenAI-compatible server. `url` has no `/v1`; `tokenizer` says how prompts are counted."""

    url: str
    model: str
    session: aiohttp.ClientSession
    kind: Literal["text", "pictures"] = "text"
    tokenizer: Literal["/tokenize", "usage"] = "usage"
    facts: dict[str, Any] = field(default_factory=dict)
    """What the server says of itself, for the result."""

    async def get(self, path: str) -> Any:
        """JSON of a GET; None unless it is answered with 200."""
        async with self.session.get(self.url + path) as answer:
            if answer.status != 200:
                return None
            try:
                return orjson.loads(await answer.read())
            except orjson.JSONDecodeError:
                return None

    async def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Status and JSON of a POST."""
        async with self.session.post(self.url + path, json=body) as answer:
            data = await answer.read()
            try:
                return answer.status, orjson.loads(data)
            except orjson.JSONDecodeError:
                return answer.status, data.decode(errors="replace")

    async def count_chat(self, text: str) -> int:
        """Prompt tokens of one user message, template included.

        Raises:
            TargetError: the server cannot count it.
        """
        messages = [{"role": "user", "content": text}]
        if self.tokenizer == "/tokenize":
            return await self._tokenized({"messages": messages})
        body = {"model": self.model, "messages": messages, "max_tokens": 1}
        return _prompt_tokens(*await self.post("/v1/chat/completions", body))

    async def count_text(self, text: str) -> int:
        """Tokens of a prompt without a template.

        Raises:
            TargetError: the server cannot count it.
        """
        if self.tokenizer == "/tokenize":
            return await self._tokenized({"prompt": text})
        body = {"model": self.model, "prompt": text, "max_tokens": 1}
        return _prompt_tokens(*await self.post("/v1/completions", body))

    async def count_output(self, text: str) -> int:
        """Tokens that a text has without a beginning token; only with `/tokenize`."""
        return await self._tokenized({"prompt": text, "add_special_tokens": False})

    async def _tokenized(self, what: dict[str, Any]) -> int:
        status, answer = await self.post("/tokenize", {"model": self.model} | what)
        if status != 200:
            raise TargetError(f"{self.url}/tokenize answered {status}: {str(answer)[:300]}")
        return int(answer["count"])


def _prompt_tokens(status: int, answer: Any) -> int:
    usage = answer.get("usage") if isinstance(answer, dict) else None
    if status != 200 or not usage:
        raise TargetError(
            f"the server has no /tokenize, and its answer ({status}) has no usage to count prompts"
            f" with: {str(answer)[:300]}"
        )
    return int(usage["prompt_tokens"])


def base_url(url: str) -> str:
    """An address as people give it, without `/v1` and with a scheme."""
    whole = url if "://" in url else f"http://{url}"
    return whole.rstrip("/").removesuffix("/v1").rstrip("/")


@asynccontextmanager
async def connected(
    url: str, model: str = "", key: str = "", kind: str = "auto", give_up: float = 600
) -> AsyncIterator[Target]:
    """A target that has answered.

    Args:
        model: the served name; empty: the only one, or the first.
        give_up: seconds that a request may take.
        kind: `auto` asks the server's metadata, which only Atelier has; others are text.

    Raises:
        TargetError: nobody answers there, or it has no such model.
    """
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    limits = aiohttp.ClientTimeout(total=give_up, sock_connect=CONNECT_SECONDS)
    connections = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        headers=headers, timeout=limits, connector=connections
    ) as session:
        target = Target(base_url(url), model, session)
        try:
            await _look(target, kind)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise TargetError(
                f"{target.url} does not answer: {str(error) or type(error).__name__}"
            ) from None
        yield target


async def _look(target: Target, kind: str) -> None:
    async with target.session.get(f"{target.url}/v1/models") as answer:
        if answer.status != 200:
            raise TargetError(
                f"{target.url}/v1/models answered {answer.status}: "
                + ("give --api-key" if answer.status in KEY_NEEDED else "no OpenAI API is there")
            )
        listed = orjson.loads(await answer.read())
        target.facts["server"] = answer.headers.get("Server", "")
    names = [one["id"] for one in listed.get("data", [])]
    if not names or (target.model and target.model not in names):
        raise TargetError(
            f"{target.url} has no model {target.model!r}: it has {', '.join(names) or 'none'}"
        )
    target.model = target.model or names[0]
    metadata = await target.get(f"/v2/models/{target.model}")
    if isinstance(metadata, dict) and metadata.get("platform"):
        target.facts |= {"platform": metadata["platform"]}
        target.facts["properties"] = metadata.get("properties", {})
    elif isinstance(version := await target.get("/version"), dict):
        target.facts |= version
    outputs = metadata.get("outputs", []) if isinstance(metadata, dict) else []
    draws = any(output.get("name") == "image" for output in outputs)
    wanted = kind if kind != "auto" else "pictures" if draws else "text"
    target.kind = "pictures" if wanted == "pictures" else "text"
    if target.kind == "text":
        status, answer = await target.post("/tokenize", {"model": target.model, "prompt": "a"})
        if status in KEY_NEEDED:
            raise TargetError(f"{target.url} answered {status}: give --api-key")
        counts = status == 200 and isinstance(answer, dict) and "count" in answer
        target.tokenizer = "/tokenize" if counts else "usage"
