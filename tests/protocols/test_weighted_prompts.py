"""Weighted and long prompts over HTTP: what weights change, what they leave bit for bit, that a
long prompt's second half is drawn, and that neighbours notice nothing."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import diffusers
import httpx
import pytest

from atelier.errors import InvalidRequest
from atelier.images.request import ImageRequest
from atelier.images.weighted_prompts import weighted_prompts
from atelier.images.weighted_syntax import plain_text, read_weights
from tests.conftest import Server, StartServer
from tests.gallery import difference, pixels
from tests.protocols.pictures import striped
from tests.tiny_flux import flux_2_klein
from tests.tiny_pipelines import stable_diffusion_xl

SMALL = {"num_inference_steps": 3, "width": 64, "height": 64, "seed": 7}
WEIGHTED = {"prompt_syntax": "weighted"}
LONG = "a cat on a hill, " * 8
"""One token a letter: more than twice what CLIP reads at once."""


@pytest.fixture(scope="module")
def sdxl(start_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    checkpoint = stable_diffusion_xl(tmp_path_factory.mktemp("sdxl"))
    with start_server(model_id=str(checkpoint)) as running:
        yield running


@pytest.fixture(params=["sd1", "sdxl"])
def either(request: pytest.FixtureRequest) -> Server:
    return request.getfixturevalue("server" if request.param == "sd1" else "sdxl")


def ask(server: Server, prompt: str, **fields: Any) -> httpx.Response:
    body = {"instances": [SMALL | {"prompt": prompt} | fields]}
    return httpx.post(f"{server.url}/v1/models/{server.model}:predict", json=body, timeout=60)


def draw(server: Server, prompt: str, **fields: Any) -> Any:
    answer = ask(server, prompt, **fields)
    assert answer.status_code == 200, answer.text
    return pixels(base64.b64decode(answer.json()["predictions"][0]["image"]["b64"]))


def test_weights_of_one_change_nothing(either: Server) -> None:
    plain = draw(either, "a red cat, big")
    for text in ("a red cat, big", "a (red:1.0) cat, big", "(a (red)1 cat:1), (big)1.0"):
        assert difference(draw(either, text, **WEIGHTED), plain) == 0
    literal = draw(either, "a (red) cat :)")
    assert difference(draw(either, "a (red) cat :)", **WEIGHTED), literal) == 0
    assert difference(draw(either, r"a \(red\) cat :\)", **WEIGHTED), literal) == 0


def test_weights_change_the_picture_by_as_much(either: Server) -> None:
    plain = draw(either, "a red cat")
    little, much, less = (
        difference(draw(either, f"a (red:{weight}) cat", **WEIGHTED), plain)
        for weight in (1.05, 3, 0.3)
    )
    assert 0 < little < much and less > 0
    assert difference(draw(either, "a (red:3) cat"), plain) > 0  # plain: it is text
    same = draw(either, "a (red)3 cat", **WEIGHTED)
    assert difference(same, draw(either, "a (red:3) cat", **WEIGHTED)) == 0
    negative = draw(either, "a cat", negative_prompt="(dog:2)", **WEIGHTED)
    assert difference(negative, draw(either, "a cat", negative_prompt="dog")) > 0


def test_a_long_prompts_second_half_is_drawn(either: Server) -> None:
    ends = "a dog", "blue!"
    plain = [ask(either, LONG + end).json()["predictions"][0] for end in ends]
    assert plain[0]["image"] == plain[1]["image"] and "warnings" in plain[0]
    answers = [ask(either, LONG + end, **WEIGHTED).json()["predictions"][0] for end in ends]
    assert answers[0]["image"] != answers[1]["image"]
    assert "warnings" not in answers[0]
    weighted = draw(either, f"{LONG}(a dog:2)", **WEIGHTED, negative_prompt="x" * 100)
    assert weighted.shape == (64, 64, 3)


def test_a_neutral_embedding_is_what_the_pipeline_encodes(either: Server) -> None:
    """The way through compel, with weights that are next to 1, gives the pipeline's own picture."""
    for negative in ({}, {"negative_prompt": "a dog"}):
        own = draw(either, "a red cat", **negative)
        through = draw(either, "(a red cat:1.000001)", **WEIGHTED, **negative)
        assert difference(own, through) <= 1


def test_several_pictures_and_edits_have_weights_too(either: Server) -> None:
    answer = ask(either, "a (red:2) cat", num_images_per_prompt=2, **WEIGHTED)
    first, second = answer.json()["predictions"][0]["images"]
    alone = draw(either, "a (red:2) cat", **WEIGHTED | {"seed": 8})
    assert difference(pixels(base64.b64decode(second["b64"])), alone) <= 1
    assert first["b64"] != second["b64"]
    picture = {"image": base64.b64encode(striped()).decode(), "strength": 0.9}
    plain, weighted = (
        ask(either, "a (red:3) cat", **picture, **more).json()["predictions"][0]["image"]["b64"]
        for more in ({}, WEIGHTED)
    )
    assert plain != weighted


def test_neighbours_do_not_disturb_each_other(either: Server) -> None:
    wishes: list[tuple[str, dict[str, Any]]] = [
        ("a cat", {}),
        ("a (cat:2)", WEIGHTED),
        (LONG + "a dog", WEIGHTED),
        ("a (dog)0.5", WEIGHTED | {"negative_prompt": "cat"}),
        ("a dog", {"num_inference_steps": 2}),
        ("a (cat:2)", {}),
    ]
    with ThreadPoolExecutor(len(wishes)) as pool:
        together = list(pool.map(lambda wish: draw(either, wish[0], **wish[1]), wishes))
    for (prompt, fields), picture in zip(wishes, together, strict=True):
        assert difference(picture, draw(either, prompt, **fields)) <= 1


@pytest.mark.parametrize(
    ("prompt", "fields", "words"),
    [
        ("a (a:9)", {}, "prompt: at character 3: a weight of 9; at most 5"),
        ("(b)2, ((a:3)b:2)", {}, "prompt: at character 7: a weight of 6; at most 5"),
        ("(a:1.1) b " * 100, {}, "prompt: more than 64 parts with a weight"),
        ("(" * 40, {}, "prompt: at character 32 parentheses are nested more than 32 deep"),
        ("a " * 1000, {}, "prompt: 1000 tokens of CLIP; weighted prompts have at most 600"),
        ("a", {"negative_prompt": "(a:9)"}, "negative_prompt: at character 1: a weight of 9"),
        ("a", {"clip_skip": 1}, "clip_skip: it does not go with prompt_syntax=weighted"),
        ("a", {"prompt_syntax": "comfy"}, "'plain' or 'weighted'"),
    ],
)
def test_what_cannot_be_weighted_is_refused(
    server: Server, prompt: str, fields: dict[str, Any], words: str
) -> None:
    answer = ask(server, prompt, **WEIGHTED | fields)
    assert answer.status_code == 400 and words in answer.json()["error"]


def test_another_family_says_that_it_has_no_weights(tmp_path: Path) -> None:
    pipeline = diffusers.DiffusionPipeline.from_pretrained(flux_2_klein(tmp_path))
    request = ImageRequest.model_validate({"prompt": "a (cat:2)"} | WEIGHTED)
    told = r"Diffusion 1, 2, XL, 3 and 3\.5 and for FLUX\.1; this is Flux2KleinPipeline"
    with pytest.raises(InvalidRequest, match=told):
        weighted_prompts(pipeline, request)


def test_images_routes_take_the_field(server: Server) -> None:
    body = {"prompt": "a (red:3) cat", "size": "64x64", "steps": 3, "seed": 7} | WEIGHTED
    answer = httpx.post(f"{server.url}/v1/images/generations", json=body).json()
    picture = pixels(base64.b64decode(answer["data"][0]["b64_json"]))
    assert difference(picture, draw(server, "a (red:3) cat", **WEIGHTED)) == 0


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a (cat:1.3) on", [("a ", 1), ("cat", 1.3), (" on", 1)]),
        ("(a, b)0.8 c", [("a, b", 0.8), (" c", 1)]),
        ("((a:1.2) b:1.5)c", [("a", 1.8), (" b", 1.5), ("c", 1)]),
        ("(plain) :) (open", [("(plain) :) (open", 1)]),
        ("(2020)1990s", [("(2020)1990s", 1)]),
        ("(a)1.5, (b)2.", [("a", 1.5), (", ", 1), ("b", 2), (".", 1)]),
        (r"\(a:1.2\) \x", [(r"(a:1.2) \x", 1)]),
        ("(:1.5)", []),
        ("", []),
    ],
)
def test_weights_are_read(text: str, parts: list[tuple[str, float]]) -> None:
    found = read_weights(text, "prompt")
    assert [part.text for part in found] == [text for text, _ in parts]
    assert [part.weight for part in found] == pytest.approx([weight for _, weight in parts])


def test_a_filter_reads_what_is_left_without_weights() -> None:
    """Weights cannot hide a word from the list."""
    assert plain_text(read_weights("bl(oo:1.1)d bl((o:2)o:0.5)d", "prompt")) == "blood blood"


def test_any_text_is_read_at_once() -> None:
    for text in (")" * 20_000, "(a:1)" * 4000, ("(" * 30 + "a" + ":1)" * 30) * 150, ": " * 9000):
        assert plain_text(read_weights(text, "prompt")) is not None
    with pytest.raises(InvalidRequest, match="nested more than 32 deep"):
        read_weights("(" * 20_000, "prompt")
