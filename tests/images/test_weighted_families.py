"""Weighted and long prompts of the families with T5, over HTTP: as compel's own parts put together
make them, alone and among strangers; weights of 1 change nothing."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from compel import Compel, ReturnedEmbeddingsType
from PIL import Image
from torch.nn import functional

from tests.gallery import Exhibit, Pixels, difference, draw_bare, pixels, showing
from tests.tiny_adapters import bare
from tests.tiny_flux import FAMILIES as FURTHER
from tests.tiny_pipelines import FAMILIES

MAKERS = FAMILIES | FURTHER
WEIGHTED = {"prompt_syntax": "weighted"}
T5_READS = 64
FIELDS: dict[str, Any] = {
    "num_inference_steps": 3,
    "width": 48,
    "height": 32,
    "seed": 7,
    "max_sequence_length": T5_READS,
}
LONG = "a cat on a hill, " * 8
"""One token a letter: more than twice what T5 is given here, and nearly twice what CLIP reads."""


@pytest.fixture(scope="module", params=["sd3", "sd35", "flux"])
def shown(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Exhibit, Path]]:
    checkpoint = MAKERS[request.param](tmp_path_factory.mktemp(request.param))
    with showing(checkpoint, warmup="off") as exhibit:
        yield request.param, exhibit, checkpoint


with_t5 = pytest.mark.parametrize("shown", ["sd3", "flux"], indirect=True)


def wish(prompt: str, **fields: Any) -> dict[str, Any]:
    return FIELDS | {"prompt": prompt} | fields


def guided(family: str) -> dict[str, Any]:
    """What makes negative prompts matter."""
    return {"true_cfg_scale": 3.0} if family == "flux" else {}


def test_weights_of_one_change_nothing(shown: tuple[str, Exhibit, Path]) -> None:
    family, exhibit, _ = shown
    negative = {"negative_prompt": "a dog"} | guided(family)
    plain, other = exhibit.draw(wish("a red cat, big"), wish("a red cat, big", **negative))
    texts = ("a red cat, big", "a (red:1.0) cat, big", "(a (red)1 cat:1), (big)1.0")
    for drawn in exhibit.draw(*(wish(text, **WEIGHTED) for text in texts)):
        assert difference(drawn, plain) == 0
    [drawn] = exhibit.draw(wish(texts[1], **WEIGHTED | negative))
    assert difference(drawn, other) == 0


def test_a_neutral_embedding_is_what_the_pipeline_encodes(
    shown: tuple[str, Exhibit, Path],
) -> None:
    """The way through compel, with weights that are next to 1, gives the pipeline's own picture."""
    family, exhibit, _ = shown
    for more in ({}, {"negative_prompt": "a dog"} | guided(family)):
        own, through = exhibit.draw(
            wish("a red cat", **more), wish("(a red cat:1.000001)", **WEIGHTED | more)
        )
        assert difference(own, through) <= 1


def test_a_long_prompts_second_half_is_drawn(shown: tuple[str, Exhibit, Path]) -> None:
    family, exhibit, _ = shown
    ends = "a dog", "blue!"
    plain = exhibit.draw(*(wish(LONG + end) for end in ends))
    assert difference(*plain) == 0
    answer = exhibit.post(*(wish(LONG + end, **WEIGHTED) for end in ends)).json()["predictions"]
    assert answer[0]["image"] != answer[1]["image"]
    cut = "prompt: CLIP reads 77 tokens; what follows was not read by it: "
    told = [one.get("warnings", "") for one in answer]
    assert [cut in str(one) for one in told] == [family == "flux"] * 2
    assert "T5" not in str(told)


def test_weights_and_strangers_are_drawn_as_each_alone(shown: tuple[str, Exhibit, Path]) -> None:
    family, exhibit, _ = shown
    wanted = [
        wish("a cat"),
        wish("a (cat:2)", **WEIGHTED),
        wish(LONG + "a dog", **WEIGHTED),
        wish("a (dog)0.5", **WEIGHTED | {"negative_prompt": "(cat)2"} | guided(family)),
        wish("a (dog)1.5", **WEIGHTED, num_inference_steps=2),
        wish("a (cat:2)"),
    ]
    alone = [exhibit.draw(one)[0] for one in wanted]
    exhibit.tally.shared.clear()
    for one, other in zip(exhibit.draw(*wanted), alone, strict=True):
        assert difference(one, other) <= 1
    assert exhibit.tally.shared["denoise"] > 1
    for other in (alone[0], alone[5]):
        assert difference(alone[1], other) > 0


@with_t5
def test_several_pictures_and_edits_have_weights_too(shown: tuple[str, Exhibit, Path]) -> None:
    family, exhibit, _ = shown
    fields = WEIGHTED | {"negative_prompt": "(dog)2"} | guided(family)
    answer = exhibit.post(wish("a (red:2) cat", num_images_per_prompt=2, **fields))
    assert answer.status_code == 200, answer.text
    first, second = answer.json()["predictions"][0]["images"]
    [alone] = exhibit.draw(wish("a (red:2) cat", **fields | {"seed": 8}))
    assert difference(_decoded(second), alone) <= 1
    assert first["b64"] != second["b64"]
    file = io.BytesIO()
    Image.fromarray(alone).save(file, "PNG")
    edit = {"image": base64.b64encode(file.getvalue()).decode(), "strength": 0.9}
    plain, weighted = exhibit.draw(
        wish("a (red:3) cat", **edit), wish("a (red:3) cat", **edit, **WEIGHTED)
    )
    assert difference(plain, weighted) > 0


def _decoded(told: dict[str, Any]) -> Pixels:
    return pixels(base64.b64decode(told["b64"]))


@with_t5
@pytest.mark.parametrize("weight", [1.7, 0.4])
def test_a_weight_is_what_compel_makes_of_it(
    shown: tuple[str, Exhibit, Path], weight: float
) -> None:
    family, exhibit, checkpoint = shown
    pipeline = bare(checkpoint)
    for one in ("tokenizer_2", "tokenizer_3"):
        if "T5" in type(getattr(pipeline, one, None)).__name__:
            getattr(pipeline, one).model_max_length = T5_READS
    text = f"a (red){weight} cat"
    arguments = {name: FIELDS[name] for name in ("num_inference_steps", "width", "height")} | (
        by_compel_3(pipeline, text) if family == "sd3" else by_compel_flux(pipeline, text)
    )
    [drawn] = exhibit.draw(wish(text, **WEIGHTED))
    assert difference(drawn, draw_bare(pipeline, 7, **arguments)) <= 1


def by_compel_flux(pipeline: Any, text: str) -> dict[str, Any]:
    from compel import CompelForFlux

    with torch.no_grad():
        made = CompelForFlux(pipeline)(text)
    return {"prompt_embeds": made.embeds, "pooled_prompt_embeds": made.pooled_embeds}


def by_compel_3(pipeline: Any, text: str) -> dict[str, Any]:
    """compel has no wrapper for Stable Diffusion 3: its parts, in the order of SD3's paper."""
    clips = Compel(
        tokenizer=[pipeline.tokenizer, pipeline.tokenizer_2],
        text_encoder=[pipeline.text_encoder, pipeline.text_encoder_2],
        returned_embeddings_type=ReturnedEmbeddingsType.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED,
        requires_pooled=[True, True],
        truncate_long_prompts=False,
    )
    t5 = Compel(tokenizer=pipeline.tokenizer_3, text_encoder=pipeline.text_encoder_3)
    found: dict[str, Any] = {}
    with torch.no_grad():
        for name, one in (("", text), ("negative_", "")):
            embeds, _ = clips(one)
            last = t5(one)
            embeds = functional.pad(embeds, (0, last.shape[-1] - embeds.shape[-1]))
            found[f"{name}prompt_embeds"] = torch.cat([embeds, last], 1)
            plain = one.replace("(", "").partition(")")[0] + " cat" if one else ""
            found[f"{name}pooled_prompt_embeds"] = torch.cat(
                [each.get_pooled_embeddings([plain]) for each in providers(clips)], -1
            )
    return found


def providers(compel: Any) -> list[Any]:
    return compel.conditioning_provider.embedding_providers


@with_t5
def test_odd_texts_with_weights_are_drawn(shown: tuple[str, Exhibit, Path]) -> None:
    """Blanks, words of the tokenizers themselves and signs that they drop."""
    _, exhibit, _ = shown
    for text in ("a ( :0.5) b", "(</s>:0.5) a", "a (<pad>)0.4", "(<|endoftext|>:1.4) b", "()0.5",
                 "(\u200b:0.3)a", "(ü)0.5 (日本:2)"):  # fmt: skip
        answer = exhibit.post(wish(text, **WEIGHTED, num_inference_steps=1))
        assert answer.status_code == 200, (text, answer.text)


@pytest.mark.parametrize("shown", ["flux"], indirect=True)
def test_what_t5_cannot_be_given_is_refused(shown: tuple[str, Exhibit, Path]) -> None:
    _, exhibit, _ = shown
    answer = exhibit.post(wish("a " * 1200, **WEIGHTED))
    assert answer.status_code == 400
    assert "tokens of T5; weighted prompts have at most 1000" in answer.text
    answer = exhibit.post(wish("a", **WEIGHTED, prompt_2="b"))
    assert "prompt_2: it does not go with prompt_syntax=weighted" in answer.text
