"""The built-in model: its grammar, its checker against drawn pictures, and its weights against the
checker."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
    StableDiffusion3Pipeline,
)
from PIL import Image, ImageDraw

import atelier.builtin.shapes
from atelier.builtin.shapes.checker import check, look
from atelier.builtin.shapes.evaluate import held_out_cases, make_pictures
from atelier.builtin.shapes.prompts import WORDS, describe, inverted, parse, vary
from atelier.builtin.shapes.rasterizer import draw
from atelier.builtin.shapes.scene import Relation, Thing, combinations, is_held_out, random_scene

FOLDER = Path(atelier.builtin.shapes.__file__).parent
FAST = {"num_inference_steps": 20, "guidance_scale": 4.0, "max_sequence_length": 32}


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusion3Pipeline:
    pipeline = DiffusionPipeline.from_pretrained(FOLDER)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_sentence_of_the_grammar_is_read_back_as_its_scene() -> None:
    rng = random.Random(1)
    for _ in range(3000):
        scene = vary(random_scene(rng), rng)
        assert parse(describe(scene, rng)) == scene


def test_a_prompt_says_what_it_says() -> None:
    scene = parse("a large crimson disc on top of a tiny blue box on a yellow background")
    assert scene.things == (Thing("red", "circle", "large"), Thing("blue", "square", "small"))
    assert scene.relations == (Relation(0, "above", 1),)
    assert scene.background == "yellow"
    assert parse("below a heart, a star").things == (Thing(None, "star"), Thing(None, "heart"))


def test_a_word_outside_the_grammar_is_named() -> None:
    with pytest.raises(ValueError, match="'cat' in 'a red cat' is not a word"):
        parse("a red cat")


def test_the_split_holds_out_a_tenth_and_ignores_which_way_a_relation_is_told() -> None:
    rng = random.Random(2)
    scenes = [random_scene(rng, count=2) for _ in range(3000)]
    assert 0.08 < sum(map(is_held_out, scenes)) / len(scenes) < 0.12
    for scene in scenes:
        assert list(combinations(scene)) == list(combinations(inverted(scene)))


def test_training_scenes_and_test_scenes_share_no_combination() -> None:
    rng = random.Random(3)
    trained = {c for _ in range(2000) for c in combinations(random_scene(rng, held_out=False))}
    asked = [set(combinations(case.scene)) for case in held_out_cases(600)]
    assert all(combination - trained for combination in asked)


def test_the_checker_accepts_drawn_pictures_and_refuses_them_for_other_scenes() -> None:
    rng = random.Random(4)
    scenes = [random_scene(rng) for _ in range(120)]
    pictures = draw(scenes, seed=0)
    assert all(check(picture, scene) for picture, scene in zip(pictures, scenes, strict=True))
    for picture, scene, other in zip(pictures, scenes, scenes[1:], strict=False):
        assert set(combinations(scene)) & set(combinations(other)) or not check(picture, other)


@pytest.mark.parametrize(
    ("wrong", "aspect"),
    [
        ("a green circle above a blue square on a white background", "colour"),
        ("a red star above a blue square on a white background", "shape"),
        ("a red circle below a blue square on a white background", "relation"),
        ("a red circle left of a blue square on a white background", "relation"),
        ("a small red circle above a blue square on a white background", "size"),
        ("a red circle above a blue square on a pink background", "background"),
        ("a red circle on a white background", "count"),
    ],
)
def test_the_checker_says_which_aspect_is_wrong(wrong: str, aspect: str) -> None:
    right = "a large red circle above a blue square on a white background"
    picture = draw([parse(right)], seed=1)[0]
    assert check(picture, right)
    verdict = check(picture, wrong)
    aspects = ("count", "colour", "shape", "size", "relation", "background")
    assert [name for name in aspects if not getattr(verdict, name)] == [aspect]


def test_the_checker_knows_noise_and_unknown_colours_for_what_they_are() -> None:
    noise = Image.fromarray(
        np.random.default_rng(0).integers(0, 255, (128, 128, 3), dtype=np.uint8)
    )
    assert not check(noise, "a red circle")
    brown = Image.new("RGB", (128, 128), (250, 250, 250))
    ImageDraw.Draw(brown).ellipse((40, 40, 90, 90), fill=(120, 90, 60))
    (thing,), background = look(brown)
    assert (thing.shape, thing.colour, background) == ("circle", None, "white")


def test_every_word_of_the_grammar_is_one_token_and_no_text_is_lost(
    pipeline: StableDiffusion3Pipeline,
) -> None:
    tokenizer = pipeline.tokenizer
    assert all(len(tokenizer(word)["input_ids"]) == 3 for word in WORDS)
    for text in ("a sks circle", "zwx", "tschüss 世界"):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids[1:-1]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_the_weights_fit_their_budget() -> None:
    """The model's own, and those of the control and the upscaler that come with it."""
    sizes = {path: path.stat().st_size for path in FOLDER.rglob("*.safetensors")}
    for folder, most in (("edges", 6_000_000), ("x2", 500_000)):
        beside = [path for path in sizes if path.parent.name == folder]
        assert 0 < sum(map(sizes.pop, beside)) < most
    assert 0 < sum(sizes.values()) < 16_000_000


def test_held_out_prompts_come_out_right(pipeline: StableDiffusion3Pipeline) -> None:
    cases = [case for case in held_out_cases(12) if len(case.scene.things) < 3]
    pictures = make_pictures(pipeline, cases, steps=20, guidance=4.0, batch=4, zeros=32)
    verdicts = [check(picture, case.scene) for picture, case in zip(pictures, cases, strict=True)]
    assert sum(map(bool, verdicts)) >= len(cases) - 1


def test_the_default_call_shows_the_prompt(pipeline: StableDiffusion3Pipeline) -> None:
    prompt = "a large red circle above a small blue square on a yellow background"
    picture = pipeline(prompt, generator=seeded(0)).images[0]
    assert picture.size == (128, 128)
    assert check(picture, prompt)


def test_the_same_seed_gives_the_same_picture_and_another_seed_another(
    pipeline: StableDiffusion3Pipeline,
) -> None:
    first, again, other = (
        np.asarray(pipeline("a green star", generator=seeded(s), **FAST).images[0])
        for s in (5, 5, 6)
    )
    assert (first == again).all()
    assert (first != other).any()


def test_a_negative_prompt_keeps_its_colour_away(pipeline: StableDiffusion3Pipeline) -> None:
    noise = torch.randn(9, 16, 16, 16, generator=seeded(0))

    def reds(negative: str) -> int:
        call = {**FAST, "negative_prompt": [negative] * 9, "latents": noise}
        pictures = pipeline(["a circle"] * 9, **call).images
        return sum(any(thing.colour == "red" for thing in look(picture)[0]) for picture in pictures)

    assert reds("") >= 2
    assert reds("red") == 0


def drawn(prompt: str, seed: int = 3) -> Image.Image:
    return draw([parse(prompt)], seed)[0]


def test_image_to_image_recolours_and_keeps_the_place(pipeline: StableDiffusion3Pipeline) -> None:
    start = drawn("a large red circle on a white background")
    to_image = StableDiffusion3Img2ImgPipeline.from_pipe(pipeline)
    to_image.set_progress_bar_config(disable=True)
    prompt = "a large orange circle on a white background"
    result = to_image(prompt, image=start, strength=0.8, generator=seeded(1), **FAST).images[0]
    assert check(result, prompt)
    ((before,), _), ((after,), _) = look(start), look(result)
    assert abs(before.x - after.x) < 12 and abs(before.y - after.y) < 12


def test_inpainting_changes_what_the_mask_covers_and_keeps_the_rest(
    pipeline: StableDiffusion3Pipeline,
) -> None:
    start = drawn("a large red circle above a blue square on a white background")
    circle = next(thing for thing in look(start)[0] if thing.shape == "circle")
    mask = Image.new("L", start.size, 0)
    reach = circle.extent + 4
    box = (circle.x - reach, circle.y - reach, circle.x + reach, circle.y + reach)
    ImageDraw.Draw(mask).rectangle(box, fill=255)
    inpaint = StableDiffusion3InpaintPipeline.from_pipe(pipeline)
    inpaint.set_progress_bar_config(disable=True)
    prompt = "a large green circle above a blue square on a white background"
    result = inpaint(
        prompt, image=start, mask_image=mask, strength=0.75, generator=seeded(1), **FAST
    ).images[0]
    assert check(result, prompt)
    outside = np.asarray(mask) == 0
    difference = np.abs(np.asarray(result).astype(int) - np.asarray(start).astype(int)).max(axis=-1)
    assert (difference[outside] < 40).mean() > 0.98
