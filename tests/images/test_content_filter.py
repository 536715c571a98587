"""What the filters look at: scores equal those of transformers' own processors, words are found in
any spelling, long prompts are read to their end, and what a filter takes stands in the plan."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    CLIPConfig,
    CLIPImageProcessor,
    ConvNextImageProcessor,
    ViTImageProcessor,
)

from atelier.errors import CheckpointError, ContentRefused, PlanError, SettingsError
from atelier.events import Failed
from atelier.events import Image as Picture
from atelier.hardware.choice import OptimizationManager, plan
from atelier.hardware.machine import Device
from atelier.images.classifiers import PictureClassifier, PromptClassifier
from atelier.images.content_filter import ContentFilter, blurred
from atelier.images.model import ImageModel
from atelier.images.request import ImageRequest
from atelier.images.word_list import WordList
from atelier.settings import Settings
from atelier.sources.checkpoint.classifier import classifiers
from atelier.sources.checkpoint.folder import inspect
from atelier.units import gib
from tests.tiny_classifiers import picture_classifier, prompt_classifier
from tests.tiny_pipelines import FAMILIES

MIB = 2**20
PROCESSORS = {
    "a fixed size": lambda: ViTImageProcessor(size={"height": 32, "width": 32}),
    "the shorter side, then the middle": lambda: CLIPImageProcessor(
        size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}
    ),
    "the middle of an enlarged one": lambda: ConvNextImageProcessor(
        size={"shortest_edge": 32}, crop_pct=0.875
    ),
    "without the middle's size reached": lambda: CLIPImageProcessor(
        do_resize=False, crop_size={"height": 32, "width": 32}
    ),
}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prompt_classifier(tmp_path_factory.mktemp("prompts"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return picture_classifier(tmp_path_factory.mktemp("pictures"))


def photographs() -> Iterator[np.ndarray[Any, Any]]:
    """Smooth pictures, as drawn ones are, wide, tall and small."""
    generator = np.random.default_rng(3)
    for width, height in ((96, 64), (64, 96), (128, 128), (24, 40), (33, 31)):
        coarse = generator.integers(0, 255, (6, 8, 3), dtype=np.uint8)
        yield np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("kind", PROCESSORS)
def test_pictures_are_prepared_as_transformers_prepares_them(tmp_path: Path, kind: str) -> None:
    folder = picture_classifier(tmp_path, PROCESSORS[kind]())
    own = PictureClassifier(
        classifiers(Settings(safety_checker=str(folder), safety_labels=["nsfw"]))["SAFETY_CHECKER"],
        "cpu",
    )
    processor = AutoImageProcessor.from_pretrained(folder)
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    for picture in photographs():
        with torch.no_grad():
            given = processor(Image.fromarray(picture), return_tensors="pt")
            theirs = model(**given).logits.softmax(-1)
            rows = own.prepare(torch.from_numpy(picture.copy())[None].float() / 255)
            ours = own.scores(rows)
        assert rows["pixel_values"].shape == given["pixel_values"].shape
        assert (rows["pixel_values"] - given["pixel_values"]).abs().mean() < 0.01
        assert (ours - theirs).abs().max() < 0.05


def test_scores_that_are_no_numbers_count(pictures: Path) -> None:
    settings = Settings(safety_checker=str(pictures), safety_labels=["nsfw=0.9", "normal=1"])
    own = PictureClassifier(classifiers(settings)["SAFETY_CHECKER"], "cpu")
    scores = torch.tensor([[0.95, 0.05], [0.05, 0.95], [math.nan, math.nan]])
    assert own.flags(scores) == [(), ("nsfw",), ("nsfw", "normal")]


def test_labels_of_which_several_hold_are_scored_one_by_one(tmp_path: Path) -> None:
    folder = picture_classifier(tmp_path, problem_type="multi_label_classification")
    settings = Settings(safety_checker=str(folder), safety_labels=["nsfw"])
    own = PictureClassifier(classifiers(settings)["SAFETY_CHECKER"], "cpu")
    scores = own.scores(own.prepare(torch.rand(3, 32, 32, 3)))
    assert scores.shape == (3, 2) and not torch.allclose(scores.sum(-1), torch.ones(3), atol=0.01)


CALM = "a cat on the hill the dog on a hill "


@pytest.mark.parametrize("before", [0, 5, 12, 60])
def test_a_long_prompt_is_read_to_its_end(prompts: Path, before: int) -> None:
    """The classifier has 64 places; the word stands in any part, and at every border."""
    settings = Settings(prompt_checker=str(prompts), prompt_labels=["violence=0.9"])
    own = PromptClassifier(classifiers(settings)["PROMPT_CHECKER"], "cpu")
    calm = own.prepare([CALM * (before + 1)])
    assert not any(own.flags(own.scores(calm)))
    told = own.prepare([CALM * before + " blood " + CALM])
    assert ("violence",) in own.flags(own.scores(told))
    assert len(told["input_ids"]) == 1 if before < 5 else len(told["input_ids"]) > 1


WORDS = WordList(["Blood", "naked  child", "café", "ein Satz mit fünf Wörtern"])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("BLOOD!", "blood"),
        ("a bloodhound, bloody", None),
        ("a naked, CHILD", "naked child"),
        ("naked and a child", None),
        ("\uff22\uff2c\uff2f\uff2f\uff24", "blood"),
        ("bl\u200bood", "blood"),
        ("cafe\u0301", "cafe"),
        ("ein satz: mit FÜNF (Wörtern)", "ein satz mit funf wortern"),
        ("", None),
    ],
)
def test_words_are_found_in_any_spelling(text: str, found: str | None) -> None:
    assert WORDS.find(text) == found


def test_every_field_that_asks_to_see_something_is_looked_at(tmp_path: Path) -> None:
    listed = tmp_path / "words.txt"
    listed.write_text("# refused\n\nblood\n")
    told: list[tuple[str, str, str]] = []
    own = ContentFilter(
        Settings(prompt_blocklist=str(listed)), "cpu", lambda *what: told.append(what)
    )
    for fields in ({"prompt": "blood"}, {"prompt": "a", "prompt_2": "the blood"}):
        with pytest.raises(ContentRefused, match=r"^prompt(_2)?: .* 'blood'; leave it out"):
            own.guard(ImageRequest.model_validate(fields))
    assert told == [("prompt", "list", "block")] * 2
    for fields in ({"prompt": "a", "negative_prompt": "blood"}, {"prompt": "", "n": 1}):
        assert own.guard(ImageRequest.model_validate(fields)) is None


def test_a_blurred_picture_keeps_its_colours_alone() -> None:
    picture = torch.zeros(64, 96, 3)
    picture[:, :48] = 1
    stripes = torch.arange(96) % 4 < 2
    picture[:32, :, 1] = stripes.float()
    made = blurred(picture)
    assert made.shape == picture.shape
    assert made[40:, :30].mean() > 0.95 and made[40:, 60:].mean() < 0.05
    assert (made[:20, :, 1] - 0.5).abs().max() < 0.15  # the stripes are gone


def refused(**settings: Any) -> str:
    with pytest.raises((SettingsError, CheckpointError)) as caught:
        ContentFilter(Settings(**settings), "cpu", lambda *what: None)
    return caught.value.message


def test_what_cannot_filter_is_refused_at_start(
    tmp_path: Path, pictures: Path, prompts: Path
) -> None:
    checker = str(pictures)
    assert "there is no config.json" in refused(safety_checker=str(tmp_path))
    assert "must be a model of transformers whose class ends with ForImageCl" in refused(
        safety_checker=str(prompts), safety_labels=["x"]
    )
    assert "SAFETY_LABELS is empty: name what to stop, as in nsfw=0.7" in refused(
        safety_checker=checker
    )
    assert "names 'nude'; " in (told := refused(safety_checker=checker, safety_labels=["nude"]))
    assert "has the labels normal, nsfw" in told
    assert "nsfw=7; a score is above 0 and at most 1" in refused(
        safety_checker=checker, safety_labels=["nsfw=7"]
    )
    assert "words.txt cannot be read: No such file" in refused(
        prompt_blocklist=str(tmp_path / "words.txt")
    )
    (tmp_path / "words.txt").write_text("# nothing\n")
    assert "has no words" in refused(prompt_blocklist=str(tmp_path / "words.txt"))
    (tmp_path / "words.txt").write_bytes(b"\xff\xfe")
    assert "not text in UTF-8" in refused(prompt_blocklist=str(tmp_path / "words.txt"))


def test_the_plan_counts_the_filters_and_says_when_they_do_not_fit(
    tiny_checkpoint: Path, pictures: Path, prompts: Path
) -> None:
    both = Settings(
        safety_checker=str(pictures),
        safety_labels=["nsfw"],
        prompt_checker=str(prompts),
        prompt_labels=["violence"],
    )
    device = Device("cuda", 0, "a GPU", (8, 0), 8 << 30, 8 << 30, True, False)
    checkpoint = inspect(tiny_checkpoint)
    bare = OptimizationManager(device, Settings()).plan(checkpoint)
    made = OptimizationManager(device, both).plan(checkpoint)
    reserved = sum(made.reserved_bytes.values())
    assert set(made.reserved_bytes) == {"SAFETY_CHECKER", "PROMPT_CHECKER"}
    assert 700 * MIB < reserved < 800 * MIB
    assert bare.budget_bytes - made.budget_bytes == reserved
    assert f"SAFETY_CHECKER {gib(made.reserved_bytes['SAFETY_CHECKER'])}" in made.table()
    sizes_of = OptimizationManager(device, both)
    from atelier.hardware.account import sizes_of as account

    small = replace(device, free_bytes=700 * MIB)
    with pytest.raises(PlanError, match=r"of it by SAFETY_CHECKER, .* of it by PROMPT_CHECKER"):
        plan(account(checkpoint), small, sizes_of.wishes(checkpoint))


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stable Diffusion with a checker of its own that finds fault with every picture."""
    folder = FAMILIES["sd15"](tmp_path_factory.mktemp("checked"))
    bare = StableDiffusionPipeline.from_pretrained(folder)
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
              "num_attention_heads": 2, "image_size": 32, "patch_size": 8}  # fmt: skip
    torch.manual_seed(1)
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=8))
    checker.concept_embeds_weights.data[:] = -2  # below any similarity
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    own = {"safety_checker": checker, "feature_extractor": CLIPImageProcessor(**size)}
    whole = StableDiffusionPipeline(**{**bare.components, **own}, requires_safety_checker=True)
    whole.save_pretrained(folder)
    return folder


def drawn(folder: Path, **settings: Any) -> tuple[list[Picture], list[str]]:
    """Pictures of two requests at once, and the errors."""
    model = ImageModel(Settings(model_id=str(folder), device="cpu", **settings))
    model.load()

    async def draw() -> tuple[list[Picture], list[str]]:
        wanted = [{"prompt": "a cup", "seed": seed, "num_inference_steps": 2} for seed in (1, 2)]
        streams = [await model.submit(ImageRequest.model_validate(one)) for one in wanted]
        events = [event for stream in streams async for event in stream]
        failed = [event.error.message for event in events if isinstance(event, Failed)]
        return [event for event in events if isinstance(event, Picture)], failed

    try:
        return asyncio.run(draw())
    finally:
        model.close()


def test_what_the_pipelines_own_checker_finds_is_told(checked: Path) -> None:
    """Black as in diffusers where no setting says more; else what the setting says."""
    black, _ = drawn(checked)
    assert [(set(one.pixels), one.flags) for one in black] == [({0}, ("unsafe",))] * 2
    flagged, _ = drawn(checked, safety_checker="own", safety_action="flag")
    assert [one.flags for one in flagged] == [("unsafe",)] * 2
    assert all(len(set(one.pixels)) > 50 for one in flagged)
    assert flagged[0].pixels != flagged[1].pixels
    none, errors = drawn(checked, safety_checker="own")
    assert not none and len(errors) == 2
    assert "it was classified as unsafe; change the prompt or the seed" in errors[0]


def test_an_own_checker_that_is_not_there_ends_the_start(tiny_checkpoint: Path) -> None:
    with pytest.raises(SettingsError, match=r"SAFETY_CHECKER=own: .* brings no safety_checker"):
        drawn(tiny_checkpoint, safety_checker="own")
    with pytest.raises(SettingsError, match="SAFETY_CHECKER=own knows no labels"):
        drawn(tiny_checkpoint, safety_checker="own", safety_labels=["nsfw"])
