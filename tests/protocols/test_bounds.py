"""Every field of every route has a bound, and what is beyond it costs nothing: a 4xx at once, in
little memory, whatever its size."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import annotated_types as at
import httpx
import psutil
import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from atelier import bounds
from atelier.images.request import ImageRequest
from atelier.protocols.openai.image_bodies import EditBody, GenerationBody, VariationBody
from atelier.protocols.openai.image_upscaling import UpscaleBody
from atelier.text.request import TextRequest
from tests.conftest import Server
from tests.protocols.pictures import encoded

MIB = 2**20
SECONDS = 0.1
LONG = "x" * (2 * MIB)
MANY = [1] * 250_000
DEEP: Any = []
for _ in range(bounds.MAX_DEPTH + 2):
    DEEP = [DEEP]
PICTURE = base64.b64encode(encoded((200, 0, 0))).decode()

BY_HAND: dict[str, Any] = {
    # bounded by settings
    "width": 10**9,
    "height": 10**9,
    "num_inference_steps": 10**9,
    "steps": 10**9,
    "n": 10**9,
    "num_images_per_prompt": 10**9,
    "max_tokens": 10**9,
    # bounded by their type
    "stream": LONG,
    "timeout": -1,
    "output": {"s3": LONG},
    "prompt_syntax": LONG,
    "step_cache": 2.0,
    "format": LONG,
    "size": "99999x99999",
    "quality": LONG,
    "response_format": LONG,
    "output_format": LONG,
    "background": LONG,
    "ignore_eos": LONG,
    "skip_special_tokens": LONG,
    "parallel_tool_calls": LONG,
    "tool_choice": LONG,
    "model": LONG,
    # bounded by what they hold
    "prompt": LONG * 2,
    "negative_prompt": LONG,
    "image": [PICTURE] * (bounds.MAX_INPUT_PICTURES + 1),
    "mask_image": LONG,
    "lora": {str(index): 1.0 for index in range(100_000)},
    "control": [{"name": "x", "image": "x"}] * 50_000,
    "image_prompt": [{"name": "x", "image": "x"}] * 50_000,
    "highres": {str(index): 1.0 for index in range(100_000)},
    "task": LONG,
    "upscale": LONG,
    "messages": [{"role": "user", "content": "x"}] * 50_000,
    "tools": [{"type": "function", "function": {"name": "f"}}] * 50_000,
    "logit_bias": {str(index): 1.0 for index in range(100_000)},
    "stop": ["x"] * 100_000,
    "stop_token_ids": MANY,
}
INSIDE = {"cut_to_context", "prompt_ids", "template_arguments"}
"""Of TextRequest, and no field of a body by that name."""

FREE = {"user", "safety_identifier"}
"""Ignored, whatever they hold: the limit of the body is theirs."""


def beyond(name: str, field: FieldInfo) -> Any:
    """A value beyond the field's bound, by hand or from its own constraints."""
    if name in BY_HAND:
        return BY_HAND[name]
    for one in field.metadata:
        if isinstance(one, at.Le):
            return one.le + 1
        if isinstance(one, at.Lt):
            return one.lt
        if isinstance(one, at.MaxLen):
            return LONG
    raise AssertionError(f"{name} has no bound")


def fields_of(*classes: type[BaseModel]) -> list[str]:
    names = [name for one in classes for name in one.model_fields]
    return [name for name in dict.fromkeys(names) if name not in INSIDE | FREE]


def processes_of(server: Server) -> list[psutil.Process]:
    root = psutil.Process(server.process.pid)
    return [root, *root.children(recursive=True)]


def refuse(server: Server, path: str, body: Any, seconds: float = SECONDS) -> None:
    """A 4xx for little of the processor's time, in the best of three tries: the machine's own time
    is shared with others."""
    sent = body if isinstance(body, bytes) else json.dumps(body).encode()
    processes, times = processes_of(server), []
    for _ in range(3):
        began = sum(sum(one.cpu_times()[:2]) for one in processes)
        answer = httpx.post(
            server.url + path, content=sent, headers={"Content-Type": "application/json"}
        )
        times.append(sum(sum(one.cpu_times()[:2]) for one in processes) - began)
        assert answer.status_code in (400, 404, 413), answer.text[:300]
        assert len(answer.content) < 8000
        if times[-1] < seconds:
            return
    raise AssertionError(f"{times} seconds of the processor")


@contextmanager
def little_memory(server: Server, most: int) -> Iterator[None]:
    """The server and its workers may hold `most` bytes more at the highest than before."""
    processes = processes_of(server)

    def held() -> int:
        return sum(one.memory_info().rss for one in processes)

    before, highest, over = held(), 0, threading.Event()

    def watch() -> None:
        nonlocal highest
        while not over.wait(0.005):
            highest = max(highest, held())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
    assert highest - before < most, f"{(highest - before) / MIB:.0f} MiB"


@pytest.mark.alone
@pytest.mark.parametrize("name", fields_of(ImageRequest))
def test_a_field_of_predict_beyond_its_bound(server: Server, name: str) -> None:
    value = beyond(name, ImageRequest.model_fields[name])
    instance = {"prompt": "a", "image": PICTURE} if name == "mask_image" else {"prompt": "a"}
    refuse(server, f"/v1/models/{server.model}:predict", {"instances": [instance | {name: value}]})


@pytest.mark.alone
@pytest.mark.parametrize("route", ["generations", "edits", "variations"])
@pytest.mark.parametrize("name", fields_of(GenerationBody))
def test_a_field_of_an_images_route_beyond_its_bound(server: Server, route: str, name: str) -> None:
    fields = {"generations": GenerationBody, "edits": EditBody, "variations": VariationBody}
    value = beyond(name, fields[route].model_fields[name])
    body = {"prompt": "a", name: value}
    refuse(
        server,
        f"/v1/images/{route}",
        body if route == "generations" else body | {"image": PICTURE},
    )


@pytest.mark.alone
@pytest.mark.parametrize("name", fields_of(TextRequest))
def test_a_field_of_a_chat_or_completion_beyond_its_bound(scenes: Server, name: str) -> None:
    value = beyond(name, TextRequest.model_fields[name])
    if name == "logprobs":
        value, name = 21, "top_logprobs"
    chat = {"messages": [{"role": "user", "content": "x"}], "logprobs": True, name: value}
    if name == "prompt":
        chat = {"messages": [{"role": "user", "content": value}]}
    refuse(scenes, "/v1/chat/completions", chat)
    if name != "prompt_logprobs":  # which a response does not have
        spelled = {"prompt": "input", "messages": "input", "max_tokens": "max_output_tokens"}
        text = {"text": value} if name == "response_format" else {}
        refuse(scenes, "/v1/responses", {"input": "x", spelled.get(name, name): value} | text)
    if name in ("messages", "tools", "tool_choice", "parallel_tool_calls", "top_logprobs"):
        return
    refuse(scenes, "/v1/completions", {"prompt": "x", name: value})
    refuse(scenes, "/v1/models/scenes:predict", {"instances": [{"prompt": "x", name: value}]})


@pytest.mark.alone
@pytest.mark.parametrize("name", fields_of(UpscaleBody))
def test_a_field_of_upscaling_beyond_its_bound(server: Server, name: str) -> None:
    value = beyond(name, UpscaleBody.model_fields[name])
    refuse(server, "/v1/images/upscale", {"image": PICTURE, name: value})


@pytest.mark.alone
@pytest.mark.parametrize("name", ["sigmas", "timesteps", "eta", "lora", "highres", "control"])
def test_a_list_or_a_number_in_text_beyond_its_bound(server: Server, name: str) -> None:
    text = "[" + "1," * MIB + "1]"
    refuse(server, "/v1/images/generations", {"prompt": "a", name: text})


SCHEMA: dict[str, Any] = {"type": "object", "properties": {"a": {"enum": ["x" * 100] * 4000}}}
TEXT_BODIES: dict[str, tuple[str, Any]] = {
    "prompts": ("/v1/completions", {"prompt": ["a"] * 200_000}),
    "prompt ids": ("/v1/completions", {"prompt": MANY}),
    "a prompt in lists": ("/v1/completions", {"prompt": DEEP}),
    "embedding inputs": ("/v1/embeddings", {"input": ["a"] * 200_000}),
    "an embedding input": ("/v1/embeddings", {"input": LONG}),
    "tokenize": ("/tokenize", {"prompt": LONG}),
    "detokenize": ("/detokenize", {"tokens": [10**9] * 200_000}),
    "instances": ("/v1/models/scenes:predict", {"instances": ["a"] * 200_000}),
    "messages of Anthropic": (
        "/v1/messages",
        {"max_tokens": 4, "messages": [{"role": "user", "content": "x"}] * 50_000},
    ),
    "a system text of Anthropic": (
        "/v1/messages",
        {"max_tokens": 4, "system": LONG, "messages": [{"role": "user", "content": "x"}]},
    ),
    "items of a response": (
        "/v1/responses",
        {"input": [{"role": "user", "content": "x"}] * 50_000},
    ),
    "a schema of a response": (
        "/v1/responses",
        {"input": "x", "text": {"format": {"type": "json_schema", "schema": SCHEMA}}},
    ),
    "generate": ("/v2/models/scenes/generate", {"text_input": LONG}),
    "a schema": (
        "/v1/chat/completions",
        {
            "messages": [{"role": "user", "content": "x"}],
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "a", "schema": SCHEMA},
            },
        },
    ),
    "a chat template of one's own": (
        "/v1/chat/completions",
        {
            "messages": [{"role": "user", "content": "x"}],
            "chat_template_kwargs": {"chat_template": "{{ 1 }}"},
        },
    ),
    "tensor elements": (
        "/v2/models/scenes/infer",
        {
            "inputs": [
                {"name": "prompt", "datatype": "BYTES", "shape": [100_000], "data": ["a"] * 100_000}
            ]
        },
    ),
}


@pytest.mark.alone
@pytest.mark.parametrize("what", TEXT_BODIES)
def test_a_body_of_text_beyond_its_bound(scenes: Server, what: str) -> None:
    path, body = TEXT_BODIES[what]
    refuse(scenes, path, {"model": "scenes"} | body)


RESPONSE_FIELDS: dict[str, Any] = {
    "background": LONG,
    "conversation": LONG,
    "include": ["x"] * 100_000,
    "instructions": LONG,
    "metadata": {str(index): "x" for index in range(100_000)},
    "previous_response_id": LONG,
    "prompt": LONG,
    "reasoning": LONG,
    "store": LONG,
    "text": {"format": LONG},
    "top_logprobs": 10**9,
    "truncation": LONG,
}
"""Fields that only a response has; those without effect may hold what they like."""


@pytest.mark.alone
@pytest.mark.parametrize("name", RESPONSE_FIELDS)
def test_a_field_of_a_response_beyond_its_bound(scenes: Server, name: str) -> None:
    refuse(scenes, "/v1/responses", {"input": "x", name: RESPONSE_FIELDS[name]})


@contextmanager
def probed(server: Server) -> Iterator[list[float]]:
    """Liveness probes one after the other; the list has the seconds of each."""
    delays: list[float] = []
    over = threading.Event()

    def probe() -> None:
        with httpx.Client() as client:
            while not over.wait(0.002):
                began = time.perf_counter()
                client.get(f"{server.url}/v2/health/live").raise_for_status()
                delays.append(time.perf_counter() - began)

    prober = threading.Thread(target=probe)
    prober.start()
    try:
        yield delays
    finally:
        over.set()
        prober.join()


@pytest.mark.alone
def test_two_million_instances_cost_what_their_bytes_cost(server: Server, scenes: Server) -> None:
    """And probes are answered meanwhile, in the best of three tries."""
    body = b'{"instances":[' + b'"a",' * 2_000_000 + b'"a"]}'
    for one in (server, scenes):
        slowest = []
        for _ in range(3):
            with little_memory(one, len(body) + 100 * MIB), probed(one) as delays:
                refuse(one, f"/v1/models/{one.model}:predict", body, 1.0)
            slowest.append(max(delays))
            if slowest[-1] < 0.1:
                break
        assert min(slowest) < 0.1, slowest


def test_what_was_refused_is_not_kept(server: Server, scenes: Server) -> None:
    with little_memory(scenes, 60 * MIB):
        for _ in range(20):
            httpx.post(f"{scenes.url}/v1/completions", json={"prompt": LONG})
    with little_memory(server, 60 * MIB):
        for _ in range(20):
            httpx.post(f"{server.url}/v1/images/generations", json={"prompt": LONG})
