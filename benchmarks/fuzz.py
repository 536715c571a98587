"""Bodies of all protocols with something changed, sent to a running server: `python -m
benchmarks.fuzz URL MODEL --seconds 600`.

A 5xx, but for 503 and 504, or an answer later than `LATE_SECONDS` is a finding; the body is printed
with its seed. Growth of memory and of open files is printed too, given the server's process: from
the beginning, and over the second half, when caches are full.
"""

from __future__ import annotations

import argparse
import base64
import copy
import io
import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil
from PIL import Image

LATE_SECONDS = 20.0
DRAWING = {"seed": 1, "num_inference_steps": 2, "width": 32, "height": 32}
SAID = [{"role": "user", "content": "hi"}]
CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 1e-300, 1e300, 0.5, "", " ", "\0", "a",
    "x" * 5000, "é" * 100, "\u202e", "[" * 300, "../../etc/passwd", "http://[::1", "{{ 7*7 }}",
    "<|im_end|>", "9" * 400, [], [None], [[]], [1, "a", None], {}, {"a": {}}, {"": ""},
    {"$ref": "#"}, {"type": "object"}, ["a"] * 200,
]  # fmt: skip


@dataclass
class Findings:
    """What a run has shown."""

    codes: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    grown_bytes: int = 0
    grown_files: int = 0
    late_bytes: int = 0
    late_files: int = 0


def picture() -> str:
    """A small PNG as base64."""
    out = io.BytesIO()
    Image.linear_gradient("L").resize((32, 32)).convert("RGB").save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def corpus(model: str, language: bool) -> list[tuple[str, Any]]:
    """Routes and sound bodies of a server of pictures or of a language model."""
    tensor = {"name": "prompt", "datatype": "BYTES", "shape": [1], "data": ["a"]}
    v2 = {"inputs": [tensor], "id": "1", "outputs": None}
    if not language:
        edit = {"prompt": "a", "image": picture(), "size": "32x32", "steps": 2}
        return [
            (f"/v1/models/{model}:predict", {"instances": [{"prompt": "a", **DRAWING}]}),
            (
                f"/v1/models/{model}:predict",
                {
                    "instances": [{"prompt": "a", "image": picture(), "strength": 0.5}, "b"],
                    "parameters": DRAWING | {"negative_prompt": "c", "guidance_scale": 2.0},
                },
            ),
            (f"/v2/models/{model}/infer", v2 | {"parameters": DRAWING}),
            (
                "/v1/images/generations",
                {"prompt": "a", "n": 1, "size": "32x32", "steps": 2, "response_format": "b64_json"},
            ),
            (
                "/v1/images/generations",
                {"prompt": "a", "size": "32x32", "steps": 2, "stream": True, "partial_images": 1},
            ),
            ("/v1/images/edits", edit | {"mask": None, "quality": "low"}),
            ("/v1/images/variations", {"image": picture(), "size": "32x32", "steps": 2}),
        ]
    short = {"max_tokens": 2, "temperature": 0}
    return [
        ("/v1/chat/completions", {"model": model, "messages": SAID, **short, "stop": ["x"]}),
        ("/v1/chat/completions", {"messages": SAID, **short, "tools": [TOOL], "stream": True}),
        (
            "/v1/chat/completions",
            {"messages": SAID, "max_tokens": 8, "tools": [TOOL], "tool_choice": "required"},
        ),
        (
            "/v1/chat/completions",
            {
                "messages": [
                    *SAID,
                    {"role": "assistant", "content": None, "tool_calls": [CALL]},
                    {"role": "tool", "tool_call_id": "a", "content": "1"},
                ],
                "tools": [TOOL],
                **short,
            },
        ),
        (
            "/v1/chat/completions",
            {
                "messages": SAID,
                "max_tokens": 8,
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "schema": SCHEMA},
                },
            },
        ),
        ("/v1/responses", {"input": "a", "max_output_tokens": 2, "instructions": "b"}),
        (
            "/v1/responses",
            {
                "input": [
                    {"type": "message", "role": "user", "content": "a"},
                    {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                    {"type": "function_call_output", "call_id": "c", "output": "1"},
                ],
                "tools": [{"type": "function", "name": "f", "parameters": SCHEMA}],
                "max_output_tokens": 2,
                "stream": True,
            },
        ),
        ("/v1/completions", {"prompt": ["a", "b"], **short, "logprobs": 2, "n": 2, "seed": 1}),
        ("/v1/completions", {"prompt": [1, 2, 3], **short, "logit_bias": {"5": 1}}),
        ("/v1/embeddings", {"input": ["a", "b"], "encoding_format": "float"}),
        (
            "/v1/messages",
            {"max_tokens": 2, "system": [{"type": "text", "text": "s"}], "messages": SAID},
        ),
        ("/v1/messages/count_tokens", {"messages": SAID, "tools": []}),
        ("/tokenize", {"messages": SAID}),
        ("/detokenize", {"tokens": [1, 2]}),
        (f"/v1/models/{model}:predict", {"instances": [{"prompt": "a"}], "parameters": short}),
        (f"/v2/models/{model}/infer", v2 | {"parameters": short}),
        (f"/v2/models/{model}/generate", {"text_input": "a", "parameters": short}),
    ]


def changed(body: Any, chance: random.Random) -> Any:
    """The body with one to three values replaced, left out, repeated or wrapped."""
    body = json.loads(json.dumps(body))
    for _ in range(chance.randint(1, 3)):
        holder, key = chance.choice(list(places(body)))
        if isinstance(holder[key], str) and chance.random() < 0.3:
            text = holder[key]
            at = chance.randrange(len(text) + 1)
            holder[key] = text[:at] + chance.choice(["", "A", "=", "\0", "é", '"']) + text[at + 1 :]
            continue
        act = chance.randrange(4)
        if act == 0:
            del holder[key]
        elif act == 1:
            holder[key] = [copy.deepcopy(holder[key]) for _ in range(chance.choice([1, 2, 50]))]
        elif act == 2 and isinstance(holder, dict):
            holder[str(chance.choice(["extra", "prompt_2", "sigmas", key]))] = copy.deepcopy(
                chance.choice(ODD)
            )
        else:
            holder[key] = copy.deepcopy(chance.choice(ODD))
        if not list(places(body)):
            return body
    return body


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container and key of the value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, one in list(inner):
        yield value, key
        if isinstance(one, dict | list):
            yield from places(one)


def fuzz(
    url: str, model: str, language: bool, seconds: float, seed: int = 1, pid: int | None = None
) -> Findings:
    """Send changed bodies for so long."""
    chance, found = random.Random(seed), Findings()
    bodies = corpus(model, language)
    with httpx.Client(base_url=url, timeout=LATE_SECONDS) as client:
        before = _held(pid)
        half = before
        began = time.monotonic()
        while (spent := time.monotonic() - began) < seconds:
            if half is before and spent > seconds / 2:
                half = _held(pid)
            path, body = chance.choice(bodies)
            raw = json.dumps(changed(body, chance)).encode()
            if chance.random() < 0.2:
                spoiled = bytearray(raw)
                spoiled[chance.randrange(len(spoiled))] = chance.randrange(256)
                raw = bytes(spoiled)
            try:
                answer = client.post(
                    path,
                    content=raw,
                    headers={"Content-Type": "application/json", "X-Request-Timeout": "10"},
                )
            except httpx.TimeoutException:
                found.faults.append(f"{path}: no answer within {LATE_SECONDS:g} s: {raw[:2000]!r}")
                continue
            except httpx.TransportError as error:
                found.faults.append(f"{path}: {error!r}: {raw[:2000]!r}")
                continue
            found.codes[answer.status_code] += 1
            if answer.status_code >= 500 and answer.status_code not in (503, 504):
                found.faults.append(
                    f"{path}: {answer.status_code} {answer.text[:300]}: {raw[:2000]!r}"
                )
        after = _held(pid)
    found.grown_bytes, found.grown_files = after[0] - before[0], after[1] - before[1]
    found.late_bytes, found.late_files = after[0] - half[0], after[1] - half[1]
    return found


def _held(pid: int | None) -> tuple[int, int]:
    """Bytes and open files of a process and its children."""
    if pid is None:
        return 0, 0
    root = psutil.Process(pid)
    held = [root, *root.children(recursive=True)]
    return sum(one.memory_info().rss for one in held), sum(one.num_fds() for one in held)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("--language", action="store_true", help="the model is a language model")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pid", type=int, help="of the server, to see what it holds")
    given = parser.parse_args()
    found = fuzz(given.url, given.model, given.language, given.seconds, given.seed, given.pid)
    told = {
        "codes": dict(found.codes),
        "faults": len(found.faults),
        "grown_MiB": found.grown_bytes / 2**20,
        "grown_files": found.grown_files,
        "second_half_MiB": found.late_bytes / 2**20,
        "second_half_files": found.late_files,
    }
    print(json.dumps(told))
    for fault in found.faults:
        print(fault)
    raise SystemExit(bool(found.faults))


if __name__ == "__main__":
    main()
