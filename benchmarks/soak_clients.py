"""Who comes to the soak: good clients of every protocol, and those that leave, dawdle, hurry or
send nonsense; and the report of what they saw."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

from benchmarks.serving import PROMPTS

KEY = "soak-key"
DOCUMENTED = {200, 202, 400, 401, 404, 413, 429, 499, 503, 504}
PREDICT = "/v1/models/model:predict"
# Bytes of resident memory: allocator arenas and caches that fill, not a leak a request.
GROWTH = 64 << 20


@dataclass
class SoakReport:
    """What the clients saw: answers by kind of client and code, probe latencies, memory and depth
    afterwards."""

    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    probes: dict[str, list[float]] = field(
        default_factory=lambda: {
            "/v1/models": [],
            "/v2/health/live": [],
            "/metrics": [],
        }
    )
    memory: tuple[float, float] = (0, 0)
    depth: float = -1
    shortages: float = 0
    outcomes: dict[str, float] = field(default_factory=dict)
    kills: int = 0

    def p99(self, path: str) -> float:
        """Seconds."""
        return statistics.quantiles(self.probes[path], n=100)[98]

    def problems(self) -> list[str]:
        """What a calm server would not have shown."""
        found = list(self.faults)
        odd = {
            f"{kind}: {code}": n
            for (kind, code), n in self.answers.items()
            if code not in DOCUMENTED
        }
        if odd:
            found.append(f"undocumented answers: {odd}")
        if self.depth != 0:
            found.append(f"{self.depth:g} requests are left in the queue")
        if self.memory[1] - self.memory[0] > GROWTH:
            found.append(
                f"memory grew from {self.memory[0] / 2**20:.0f} to {self.memory[1] / 2**20:.0f} MiB"
            )
        return found + [
            f"no {kind} request was served" for kind in GOOD if not self.answers[kind, 200]
        ]


@dataclass
class SoakClient:
    """One of the soak's clients, and how it behaves."""

    http: httpx.AsyncClient
    dice: random.Random
    side: int
    report: SoakReport

    def fields(self) -> dict[str, Any]:
        return {
            "prompt": self.dice.choice(PROMPTS),
            "num_inference_steps": self.dice.randint(2, 12),
            "guidance_scale": self.dice.choice([1.0, 3.0, 5.0]),
            "width": self.side // self.dice.choice([1, 2]),
            "height": self.side,
            "seed": self.dice.randrange(2**31),
        }

    def count(self, kind: str, answer: httpx.Response) -> httpx.Response:
        self.report.answers[kind, answer.status_code] += 1
        if answer.status_code == 429 and int(answer.headers.get("retry-after", 0)) < 1:
            self.report.faults.append("a 429 without Retry-After")
        return answer

    async def v1(self) -> None:
        self.count("v1", await self.http.post(PREDICT, json={"instances": [self.fields()]}))

    async def v2(self) -> None:
        fields = self.fields()
        tensor = {
            "name": "prompt",
            "datatype": "BYTES",
            "shape": [1],
            "data": [fields.pop("prompt")],
        }
        body = {"inputs": [tensor], "parameters": fields}
        self.count("v2", await self.http.post("/v2/models/model/infer", json=body))

    async def openai(self) -> None:
        body = {
            "prompt": self.dice.choice(PROMPTS),
            "steps": 4,
            "size": f"{self.side}x{self.side}",
            "n": 2,
        }
        self.count("openai", await self.http.post("/v1/images/generations", json=body))

    async def stream(self) -> None:
        body = {"prompt": self.dice.choice(PROMPTS), "steps": 8, "size": f"{self.side}x{self.side}"}
        more = {"stream": True, "partial_images": self.dice.randint(0, 3)}
        self.count("stream", await self.http.post("/v1/images/generations", json=body | more))

    async def job(self) -> None:
        headers = {"Prefer": "respond-async"}
        answer = await self.http.post(PREDICT, json={"instances": [self.fields()]}, headers=headers)
        self.count("job", answer)
        if answer.status_code == 202:
            place = answer.headers["Location"]
            self.count("job", await self.http.get(place))
            await asyncio.sleep(self.dice.random() / 4)
            self.count("job", await self.http.delete(place))

    async def leave(self) -> None:
        """Close the connection before the answer is there."""
        body = {"instances": [self.fields() | {"num_inference_steps": 50}]}
        patience = self.dice.random() / 3
        try:
            self.count(
                "leave", await asyncio.wait_for(self.http.post(PREDICT, json=body), patience)
            )
        except TimeoutError:
            self.report.answers["leave", 499] += 1

    async def nonsense(self) -> None:
        body = self.dice.choice([
            b"", b"{", b"[]", b"\xff\xfe", b'{"instances": []}', b'{"instances": [{}]}',
                b'{"instances": [{"prompt": 7}]}',
            b'{"instances": [{"prompt": "a", "width": 13}]}',
            b'{"instances": [{"prompt": "a", "colour": "red"}]}',
            b'{"instances": [{"prompt": "a", "image": "AAAA"}]}',
            b'{"instances": [{"prompt": "a", "seed": 1e400}]}',
            b'{"instances": [{"prompt": "a", "num_inference_steps": 100000}]}',
        ])  # fmt: skip
        path = self.dice.choice([PREDICT, "/v1/images/generations", "/v2/models/model/infer"])
        headers = {"Content-Type": "application/json"}
        self.count("nonsense", await self.http.post(path, content=body, headers=headers))

    async def stranger(self) -> None:
        """Without a key, to a model that is not here, or with a body that is too large."""
        body = {"instances": [self.fields()]}
        way = self.dice.randrange(3)
        if way == 0:
            self.count(
                "stranger",
                await self.http.post(PREDICT, json=body, headers={"Authorization": "Bearer no"}),
            )
        elif way == 1:
            self.count("stranger", await self.http.post("/v1/models/other:predict", json=body))
        else:
            self.count("stranger", await self.http.post(PREDICT, content=b" " * 100_000))

    async def hurry(self) -> None:
        """A deadline that cannot be kept, or just so."""
        fields = self.fields() | {
            "timeout": self.dice.choice([0.001, 0.05, 0.2]),
            "num_inference_steps": 40,
        }
        self.count("hurry", await self.http.post(PREDICT, json={"instances": [fields]}))

    async def drip(self) -> None:
        """A body that comes byte by byte, and sometimes never ends."""
        body = json.dumps({"instances": [self.fields() | {"num_inference_steps": 2}]}).encode()
        ends = self.dice.random() < 0.7

        async def pieces() -> AsyncIterator[bytes]:
            for start in range(0, len(body) if ends else len(body) // 2, 24):
                yield body[start : start + 24]
                await asyncio.sleep(0.05)
            if not ends:
                raise ConnectionError("the client has had enough")

        try:
            headers = {"Content-Type": "application/json"}
            self.count("drip", await self.http.post(PREDICT, content=pieces(), headers=headers))
        except ConnectionError:
            self.report.answers["drip", 499] += 1

    async def sip(self) -> None:
        """A client that reads its answer in sips and leaves before the end."""
        url = urlsplit(str(self.http.base_url))
        reader, writer = await asyncio.open_connection(url.hostname, url.port, limit=1024)
        body = json.dumps({"instances": [self.fields() | {"num_inference_steps": 2}]}).encode()
        # `close`: after a short answer, such as a 429, it would sip at nothing until the server's
        # keep-alive ends.
        headers = {
            "Host": "soak",
            "Authorization": f"Bearer {KEY}",
            "Connection": "close",
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
        }
        lines = [
            f"POST {PREDICT} HTTP/1.1",
            *(f"{name}: {value}" for name, value in headers.items()),
            "",
            "",
        ]
        writer.write("\r\n".join(lines).encode() + body)
        line = await reader.readline()
        self.report.answers["sip", int(line.split()[1])] += 1
        for _ in range(5):
            await reader.read(256)
            await asyncio.sleep(0.1)
        writer.close()


GOOD = ("v1", "v2", "openai", "stream", "job")
KINDS = (
    *GOOD,
    "v1",
    "leave",
    "leave",
    "nonsense",
    "nonsense",
    "stranger",
    "hurry",
    "hurry",
    "drip",
    "sip",
)
