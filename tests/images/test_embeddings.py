"""Textual inversions, over HTTP: prompts say their words, alone, weighted and among strangers; a
prompt without them is drawn as if they were not there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from atelier.errors import CheckpointError
from atelier.images.model import ImageModel
from atelier.images.request import ImageRequest
from atelier.settings import Settings
from tests.gallery import Exhibit, difference, draw_bare, showing
from tests.tiny_adapters import bare, layers, lora, write
from tests.tiny_pipelines import (
    TEXT_WIDTH,
    stable_diffusion_1,
    stable_diffusion_3,
    stable_diffusion_xl,
)

FIELDS: dict[str, Any] = {
    "num_inference_steps": 2,
    "width": 32,
    "height": 32,
    "guidance_scale": 7.0,
    "seed": 3,
}


def vectors(count: int, seed: int, width: int = TEXT_WIDTH) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) * 3


RING, CUP = vectors(1, 1), vectors(3, 2)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`ring` of one vector in diffusers' layout, `cup` of three in A1111's, `mug` in ComfyUI's for
    two encoders."""
    root = tmp_path_factory.mktemp("words")
    (root / "ring").mkdir()
    save_file({"<ring-toy>": RING[0]}, root / "ring/learned_embeds.safetensors")
    save_file({"emb_params": CUP}, root / "cup.safetensors")
    save_file({"clip_l": CUP, "clip_g": CUP + 1}, root / "mug.safetensors")
    return root


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stable_diffusion_1(tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="module")
def sd(checkpoint: Path, files: Path) -> Iterator[Exhibit]:
    words = [f"ring={files / 'ring'}", str(files / "cup.safetensors")]
    with showing(checkpoint, embeddings=words, warmup="off") as exhibit:
        yield exhibit


def taught(checkpoint: Path) -> Any:
    """The pipeline of diffusers that knows the words."""
    pipeline = bare(checkpoint)
    pipeline.load_textual_inversion(RING, token="<ring>")
    pipeline.load_textual_inversion(CUP, token="<cup>")
    return pipeline


PROMPTS = ("a <ring> on a table", "a cat", "<cup> beside a <ring>", "two rings")


def test_words_draw_what_diffusers_draws_with_them_among_strangers(
    sd: Exhibit, checkpoint: Path
) -> None:
    pipeline = taught(checkpoint)
    arguments = {name: value for name, value in FIELDS.items() if name != "seed"}
    expected = [draw_bare(pipeline, 3, prompt=one, **arguments) for one in PROMPTS]
    mixed = sd.draw(*({"prompt": one} for one in PROMPTS), **FIELDS)
    for prompt, one, other in zip(PROMPTS, mixed, expected, strict=True):
        assert difference(one, other) <= 1, prompt
        unknown = draw_bare(bare(checkpoint), 3, prompt=prompt, **arguments)
        assert (difference(other, unknown) > 1) == ("<" in prompt), prompt
    assert sd.tally.shared["denoise"] > 1
    assert sd.model.metadata()["embeddings"] == ["<cup>", "<ring>"]


def test_a_word_of_several_vectors_can_be_weighted(sd: Exhibit) -> None:
    prompts = [
        {"prompt": "a <cup> here"},
        {"prompt": "a (<cup>:1.0) here", "prompt_syntax": "weighted"},
        {"prompt": "a (<cup>:1.6) here", "prompt_syntax": "weighted"},
    ]
    plain, even, heavy = sd.draw(*prompts, **FIELDS)
    assert difference(plain, even) == 0
    assert difference(plain, heavy) > 1


def test_a_word_counts_as_many_tokens_as_it_has_vectors(sd: Exhibit) -> None:
    lengths = sd.model._preparation._lengths
    assert lengths.tokens("<cup>")["CLIP"] == lengths.tokens("<ring>")["CLIP"] + 2
    pipeline = sd.model._family.base
    fitting = ImageRequest(prompt="a" * 72 + " <cup>")
    assert lengths.cuts(pipeline, fitting) == {}
    [told] = lengths.cuts(pipeline, ImageRequest(prompt="a" * 73 + " <cup>")).values()
    assert "was not read" in told


def test_a_model_of_two_encoders_learns_a_word_in_both(tmp_path: Path, files: Path) -> None:
    checkpoint = stable_diffusion_xl(tmp_path)
    pipeline = bare(checkpoint)
    pipeline.load_textual_inversion(CUP, token="<mug>")
    pipeline.load_textual_inversion(
        CUP + 1, token="<mug>", tokenizer=pipeline.tokenizer_2, text_encoder=pipeline.text_encoder_2
    )
    arguments = {name: value for name, value in FIELDS.items() if name != "seed"}
    expected = draw_bare(pipeline, 3, prompt="a <mug>", **arguments)
    with showing(checkpoint, embeddings=[str(files / "mug.safetensors")], warmup="off") as exhibit:
        drawn, _ = exhibit.draw({"prompt": "a <mug>"}, {"prompt": "a mug"}, **FIELDS)
    assert difference(drawn, expected) <= 1


def loading(checkpoint: Path, word: str) -> None:
    ImageModel(
        Settings(model_id=str(checkpoint), device="cpu", embeddings=[word], warmup="off")
    ).load()


def test_what_does_not_go_with_the_model_stops_the_start_in_words(
    checkpoint: Path, files: Path, tmp_path: Path
) -> None:
    wide = tmp_path / "wide.safetensors"
    save_file({"emb_params": vectors(2, 4, 48)}, wide)
    module = bare(checkpoint).unet
    write(tmp_path / "ink.safetensors", "lora_unet_", module, layers(module, "attn1.to_q"), lora)
    for word, told in (
        (str(wide), r"EMBEDDINGS: wide: .* another family: emb_params has the shape \[2, 48\]"),
        (str(tmp_path / "ink.safetensors"), "ink is no textual inversion: .*set it in LORA_PATHS"),
        (f"one={tmp_path}", "one must be one .safetensors file, .* has ink.safetensors, wide"),
    ):
        with pytest.raises(CheckpointError, match=told):
            loading(checkpoint, word)
    with pytest.raises(CheckpointError, match="it must have clip_l and clip_g, and has emb_params"):
        loading(stable_diffusion_xl(tmp_path), str(files / "cup.safetensors"))
    with pytest.raises(CheckpointError, match="StableDiffusion3Pipeline takes no textual invers"):
        loading(stable_diffusion_3(tmp_path), str(files / "cup.safetensors"))
