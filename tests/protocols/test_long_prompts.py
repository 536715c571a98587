"""Prompts that text encoders cut: the answer of every protocol says what was not read."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import diffusers
import httpx
import openai
import pytest
from transformers import CLIPTokenizer

from atelier.images.prompt_length import PromptLengths
from atelier.images.request import ImageRequest
from tests.conftest import Server
from tests.gallery import difference, pixels
from tests.protocols.pictures import FAST, SIZE
from tests.tiny_pipelines import flux_1, stable_diffusion_3, stable_diffusion_xl

SMALL = {"num_inference_steps": 3, "width": 64, "height": 64, "seed": 7}
PLACES = 75
"""Of 77, between the two that CLIP puts at the ends."""


@pytest.fixture(scope="module")
def words(tiny_checkpoint: Path) -> tuple[str, str]:
    """A text that fills all places of CLIP, and one that is a token longer."""
    tokenizer = CLIPTokenizer.from_pretrained(tiny_checkpoint / "tokenizer")
    assert tokenizer.model_max_length == PLACES + 2
    text = "a"
    while len(tokenizer(text, truncation=False)["input_ids"]) < PLACES + 2:
        text += " a"
    assert len(tokenizer(text, truncation=False)["input_ids"]) == PLACES + 2
    return text, f"{text} a"


def generate(server: Server, **fields: Any) -> dict[str, Any]:
    body = {"prompt": "a", "size": SIZE} | FAST | fields
    answer = httpx.post(f"{server.url}/v1/images/generations", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def drawn(answer: dict[str, Any]) -> Any:
    return pixels(base64.b64decode(answer["data"][0]["b64_json"]))


def test_a_prompt_that_fits_says_nothing(server: Server, words: tuple[str, str]) -> None:
    assert "warnings" not in generate(server, prompt=words[0])


def test_every_protocol_tells_what_was_cut(server: Server, words: tuple[str, str]) -> None:
    said = "prompt: CLIP reads 77 tokens; what follows was not read by it: 'a'"
    whole, longer = (generate(server, prompt=text) for text in words)
    assert longer["warnings"] == [said]
    assert difference(drawn(whole), drawn(longer)) == 0
    body = {"instances": [{"prompt": words[1]} | SMALL, {"prompt": "a"} | SMALL]}
    first, second = httpx.post(f"{server.url}/v1/models/{server.model}:predict", json=body).json()[
        "predictions"
    ]
    assert first["warnings"] == [said] and "warnings" not in second
    inputs = [{"name": "prompt", "datatype": "BYTES", "shape": [1], "data": [words[1]]}]
    answer = httpx.post(
        f"{server.url}/v2/models/{server.model}/infer",
        json={"inputs": inputs, "parameters": SMALL},
    )
    assert answer.json()["parameters"]["warnings"] == said
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    [last] = client.images.generate(prompt=words[1], size=SIZE, stream=True, extra_body=FAST)
    assert last.model_dump()["warnings"] == [said]


def test_what_is_to_be_left_out_is_cut_too(server: Server, words: tuple[str, str]) -> None:
    told = generate(server, negative_prompt=f"{words[1]} cat")["warnings"]
    assert told == [
        "negative_prompt: CLIP reads 77 tokens; what follows was not read by it: 'a cat'"
    ]


def test_a_very_long_rest_is_shown_in_short(server: Server) -> None:
    [told] = generate(server, prompt="cat " * 4000)["warnings"]
    assert len(told) < 200 and "..." in told


LONG = "a cat on a hill " * 40


@pytest.mark.parametrize(
    ("make", "fields", "expected"),
    [
        (stable_diffusion_xl, {"prompt": LONG}, ["prompt: CLIP reads 77"]),
        (
            stable_diffusion_xl,
            {"prompt": "a", "prompt_2": LONG},
            ["prompt_2: CLIP reads 77"],
        ),
        (
            stable_diffusion_3,
            {"prompt": LONG},
            ["prompt: CLIP reads 77", "prompt: T5 reads 256"],
        ),
        (
            flux_1,
            {"prompt": LONG, "max_sequence_length": 128},
            ["prompt: CLIP reads 77", "prompt: T5 reads 128"],
        ),
        (flux_1, {"prompt": "a cat"}, []),
    ],
    ids=["sdxl", "sdxl's second", "sd3", "flux", "short"],
)
def test_every_encoder_of_a_family_is_counted(
    tmp_path: Path, make: Any, fields: dict[str, Any], expected: list[str]
) -> None:
    pipeline = diffusers.DiffusionPipeline.from_pretrained(make(tmp_path))
    told = PromptLengths(pipeline).cuts(pipeline, ImageRequest.model_validate(fields))
    assert [one.partition(" tokens")[0] for one in told.values()] == expected
