"""The requests of a load: conversations of one or several turns, and pictures. Everything is made
before the clock runs, from the load's seed."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from atelier.bench.load import SIZE, OfferedLoad
from atelier.bench.target import Target
from atelier.bench.wording import Writer
from atelier.errors import SettingsError

TOOL = {
    "type": "function",
    "function": {
        "name": "generate_image",
        "description": "Draw a picture.",
        "parameters": {
            "type": "object",
            "properties": {"prompt": {"type": "string", "maxLength": 80}},
            "required": ["prompt"],
        },
    },
}
SCHEMA = {
    "type": "object",
    "properties": {
        "shape": {"enum": ["circle", "square", "star", "triangle"]},
        "colour": {"enum": ["red", "green", "blue", "yellow"]},
        "count": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["shape", "colour", "count"],
    "additionalProperties": False,
}
SUBJECTS = (
    "a red circle on a blue background",
    "a green square above a yellow star",
    "a large purple triangle on a white background",
    "a small orange circle left of a blue square",
)


@dataclass
class Talk:
    """What one user asks, turn after turn. `at` is when an open loop begins it, in seconds."""

    index: int
    turns: list[dict[str, Any]] = field(default_factory=list)
    """A body for each turn; in a chat its `messages` hold the new message alone."""
    path: str = "/v1/chat/completions"
    at: float | None = None


@dataclass(frozen=True)
class TraceLine:
    """A line of a trace in Mooncake's form: milliseconds, and lengths in tokens."""

    timestamp: float
    input_length: int
    output_length: int


def read_trace(path: Path) -> list[TraceLine]:
    """A trace file: a JSON object a line.

    Raises:
        SettingsError: it cannot be read; names the line.
    """
    lines = []
    try:
        texts = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"--trace {path} cannot be read: {error}") from None
    for number, text in enumerate(texts, 1):
        if not text.strip():
            continue
        try:
            found = orjson.loads(text)
            lengths = int(found["input_length"]), int(found["output_length"])
            lines.append(TraceLine(float(found["timestamp"]), *lengths))
        except (ValueError, KeyError, TypeError) as error:
            raise SettingsError(
                f"{path}:{number}: needs timestamp (ms), input_length and output_length:"
                f" {type(error).__name__}: {error}"
            ) from None
    if not lines:
        raise SettingsError(f"--trace {path} holds no requests")
    return sorted(lines, key=lambda line: line.timestamp)


def moments(load: OfferedLoad, count: int) -> list[float | None]:
    """When each request of an open loop begins: Poisson, or bursts at Poisson times."""
    if load.rate is None:
        return [None] * count
    chance, at, times = random.Random(load.seed), 0.0, []
    for index in range(count):
        if index % load.burst == 0 and index:
            at += chance.expovariate(load.rate / load.burst)
        times.append(at)
    return list(times)


async def conversations(load: OfferedLoad, target: Target, count: int, arm: str = "") -> list[Talk]:
    """The requests of a load.

    Args:
        arm: makes prompts begin differently, so that two arms on one server do not warm each
            other's prefix cache. Lengths are the same.
    """
    if target.kind == "pictures":
        return [_picture(load, target, index) for index in range(count)]
    trace = read_trace(load.trace)[:count] if load.trace else []
    count = len(trace) or count
    times = moments(load, count)
    writer = Writer(
        target.count_text if load.scenario == "completion" else target.count_chat,
        exact=target.tokenizer == "/tokenize",
    )
    prefixes = await _prefixes(load, target)
    made = []
    for index in range(count):
        chance = random.Random(f"{load.seed} {index}")
        length = load.prompt_tokens[index % len(load.prompt_tokens)]
        output, at = load.output_tokens, times[index]
        if trace:
            length, output = trace[index].input_length, trace[index].output_length
            at = (trace[index].timestamp - trace[0].timestamp) / 1000
        opening = " ".join(filter(None, (prefixes[index % len(prefixes)], arm, str(index))))
        texts = [await writer.write(length + load.shared_prefix, chance, opening)]
        texts += [
            await writer.write(length, chance, f"{arm} {turn}".strip())
            for turn in range(1, load.turns)
        ]
        made.append(_talk(load, target, index, texts, output, at))
    return made


async def _prefixes(load: OfferedLoad, target: Target) -> list[str]:
    """Beginnings that requests share: longer than a cache block, so that it can be found."""
    if not load.shared_prefix:
        return [""]
    plain = Writer(target.count_text, exact=target.tokenizer == "/tokenize")
    return [
        await plain.write(load.shared_prefix, random.Random(f"{load.seed} prefix {index}"))
        for index in range(load.prefixes)
    ]


def _talk(
    load: OfferedLoad, target: Target, index: int, texts: list[str], output: int, at: float | None
) -> Talk:
    shared: dict[str, Any] = {
        "model": target.model,
        "max_tokens": output,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if load.scenario in ("chat", "completion"):
        # Special tokens stay in the text, so that it can be counted against `usage`.
        shared |= {"ignore_eos": True, "skip_special_tokens": False}
    if load.scenario == "completion":
        return Talk(index, [shared | {"prompt": texts[0]}], "/v1/completions", at)
    if load.scenario == "tools":
        choice = {"type": "function", "function": {"name": "generate_image"}}
        shared |= {"tools": [TOOL], "tool_choice": choice}
    elif load.scenario == "json":
        form = {"name": "thing", "schema": SCHEMA, "strict": True}
        shared |= {"response_format": {"type": "json_schema", "json_schema": form}}
    turns = [shared | {"messages": [{"role": "user", "content": text}]} for text in texts]
    return Talk(index, turns, at=at)


def _picture(load: OfferedLoad, target: Target, index: int) -> Talk:
    size = load.sizes[index % len(load.sizes)]
    assert SIZE.fullmatch(size)
    body: dict[str, Any] = {
        "model": target.model,
        "prompt": SUBJECTS[index % len(SUBJECTS)],
        "size": size,
        "steps": load.steps[index % len(load.steps)],
        "seed": load.seed + index,
        "stream": True,
        "partial_images": load.previews,
    }
    times = moments(load, index + 1)
    return Talk(index, [body], "/v1/images/generations", times[index])
