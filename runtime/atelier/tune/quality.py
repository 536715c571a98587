"""Whether a faster server still answers alike: a few fixed requests, compared with what the start
answered."""

from __future__ import annotations

import base64
import io
import math
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from atelier.bench.bodies import conversations
from atelier.bench.load import OfferedLoad
from atelier.bench.target import Target
from atelier.tune.serving import TrialFailed

PROBES = 8
IDENTICAL = 100.0
"""Decibels that equal pictures are given, since theirs are endless."""


async def answers(target: Target, load: OfferedLoad) -> list[str]:
    """What the server answers to the first prompts of the load, whole and by greedy choice: texts,
    or pictures as base64.

    Raises:
        TrialFailed: it does not answer one.
    """
    talks = await conversations(load, target, min(PROBES, load.requests), "probe")
    return [await _answer(target, talk.path, talk.turns[0]) for talk in talks]


async def _answer(target: Target, path: str, body: dict[str, Any]) -> str:
    left_out = ("stream", "stream_options", "partial_images")
    whole = {name: value for name, value in body.items() if name not in left_out}
    try:
        status, answer = await target.post(path, whole)
    except (aiohttp.ClientError, TimeoutError) as error:
        raise TrialFailed(f"a probe of quality failed: {error!r}") from None
    if status != 200:
        raise TrialFailed(f"a probe of quality was answered {status}: {str(answer)[:300]}")
    try:
        if "data" in answer:
            return str(answer["data"][0]["b64_json"])
        choice = answer["choices"][0]
        said = choice["message"] if "message" in choice else {"content": choice["text"]}
    except (LookupError, TypeError):
        raise TrialFailed(f"a probe of quality has no answer: {str(answer)[:300]}") from None
    return str(said.get("content") or orjson.dumps(said.get("tool_calls")).decode())


def compared(reference: list[str], seen: list[str], kind: str) -> dict[str, float]:
    """The agreement of texts, or the PSNR of pictures, with the reference.

    Returns:
        `agreement`: the mean share of each text up to the first difference; or `psnr`: decibels of
        the worst picture.
    """
    pairs = list(zip(reference, seen, strict=True))
    if kind == "pictures":
        return {"psnr": min(psnr(one, other) for one, other in pairs)}
    return {"agreement": sum(shared(one, other) for one, other in pairs) / len(pairs)}


def shared(one: str, other: str) -> float:
    """The share of the longer text that both begin with."""
    longest = max(len(one), len(other))
    pairs = zip(one, other, strict=False)
    same = next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
    return same / longest if longest else 1.0


def psnr(one: str, other: str) -> float:
    """Peak signal-to-noise ratio of two pictures in base64, in decibels: 10 log10(255^2 / mean
    squared error); 0 if their sizes differ."""
    from PIL import Image, ImageChops, ImageStat

    pictures = []
    for text in (one, other):
        with Image.open(io.BytesIO(base64.b64decode(text))) as opened:
            pictures.append(opened.convert("RGB"))
    if pictures[0].size != pictures[1].size:
        return 0.0
    squares = ImageStat.Stat(ImageChops.difference(*pictures)).rms
    error = sum(value**2 for value in squares) / 3
    return min(IDENTICAL, 10 * math.log10(255**2 / error)) if error else IDENTICAL


def keep(path: Path, reference: list[str]) -> None:
    """Write the start's answers, for trials after a restart of the search."""
    path.write_bytes(orjson.dumps(reference))


def kept(path: Path) -> list[str] | None:
    """The start's answers, if it has been measured."""
    return orjson.loads(path.read_bytes()) if path.exists() else None
