"""Pictures made larger, over HTTP: each as its network makes it in one piece, alone and among
strangers; what is too large or unknown is refused in words."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch
from safetensors.torch import load_file, save_file

from atelier.errors import CheckpointError
from atelier.events import Image, Step
from atelier.hardware.choice import OptimizationManager
from atelier.hardware.machine import DeviceManager
from atelier.images.request import ImageRequest
from atelier.images.upscaler_networks import read_network
from atelier.images.upscalers import Upscaler
from atelier.settings import Settings
from atelier.sources.checkpoint.folder import inspect
from atelier.sources.checkpoint.upscaler import TILE, inspect_upscaler
from atelier.sources.conditioning import find_conditioning
from tests.gallery import Exhibit, difference, showing
from tests.tiny_pipelines import stable_diffusion_1
from tests.tiny_upscalers import compact, esrgan, whole

FIELDS: dict[str, Any] = {
    "prompt": "a cat",
    "num_inference_steps": 2,
    "width": 32,
    "height": 48,
    "seed": 3,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("upscalers")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stable_diffusion_1(tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="module")
def sharp(folder: Path) -> Path:
    return esrgan(folder / "sharp.safetensors")


@pytest.fixture(scope="module")
def soft(folder: Path) -> Path:
    return compact(folder / "soft.safetensors")


@pytest.fixture(scope="module")
def exhibit(checkpoint: Path, sharp: Path, soft: Path) -> Iterator[Exhibit]:
    given = [str(sharp), f"soft={soft}"]
    with showing(checkpoint, upscalers=given, max_upscaled_pixels=1024 * 1024) as shown:
        yield shown


def test_each_network_enlarges_as_it_does_in_one_piece_among_strangers(
    exhibit: Exhibit, sharp: Path, soft: Path
) -> None:
    wanted: list[dict[str, Any]] = [
        {},
        {"upscale": 4},
        {"upscale": 4, "seed": 4},
        {"upscale": 2},
        {"upscale": 2, "upscaler": "sharp"},
        {"upscale": 4, "width": 208, "height": 40},
    ]
    lone = [exhibit.draw(FIELDS | one)[0] for one in wanted]
    mixed = exhibit.draw(*(FIELDS | one for one in wanted))
    for one, other in zip(lone, mixed, strict=True):
        assert difference(one, other) <= 1
    assert lone[0].shape == (48, 32, 3)
    assert difference(lone[1], whole(sharp, lone[0])) <= 1
    assert difference(lone[3], whole(soft, lone[0])) <= 1
    assert lone[4].shape == (96, 64, 3)
    assert lone[5].shape == (160, 832, 3)
    for _ in range(2):  # the first time, stacked is compared with alone
        exhibit.draw(*(FIELDS | {"upscale": 4, "seed": seed} for seed in (1, 2, 3)))
    assert exhibit.tally.shared["upscale"] == 2
    assert exhibit.model.metadata()["upscalers"] == {"sharp": 4, "soft": 2}


def test_tiles_make_the_picture_of_one_piece(sharp: Path, folder: Path) -> None:
    torch.manual_seed(5)
    folded = esrgan(folder / "folded.safetensors", shuffle=2)
    for file, height, width in ((sharp, TILE + 1, 40), (sharp, 24, 2 * TILE + 30),
                                (folded, 45, TILE + 7)):  # fmt: skip
        picture = torch.rand(height, width, 3)
        upscaler = Upscaler(inspect_upscaler("one", file), "cpu")
        with torch.no_grad():
            tiled = upscaler.enlarged(picture)
            rows = picture.permute(2, 0, 1)[None]
            even = torch.nn.functional.pad(rows, (0, -width % 2, 0, -height % 2), mode="replicate")
            made = read_network(upscaler.file)(even if file == folded else rows).clamp(0, 1)[0]
        scale = upscaler.file.scale
        expected = made.permute(1, 2, 0)[: height * scale, : width * scale]
        assert tiled.shape == (height * scale, width * scale, 3)
        assert (tiled - expected).abs().max() <= 1 / 255


def test_both_names_of_a_network_are_one_network(sharp: Path, folder: Path) -> None:
    old = esrgan(folder / "old.safetensors", old=True)
    prefixed = esrgan(folder / "prefixed.safetensors", prefix="params_ema.")
    picture = torch.rand(1, 3, 20, 20)
    with torch.no_grad():
        one, two, three = (
            read_network(inspect_upscaler("one", file))(picture) for file in (sharp, old, prefixed)
        )
    assert torch.equal(one, two)
    assert torch.equal(one, three)
    assert inspect_upscaler("one", old).scale == 4
    assert inspect_upscaler("one", esrgan(folder / "half.safetensors", shuffle=2)).scale == 2


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"upscale": 3}, "upscale: 3 is not valid"),
        ({"upscaler": "soft"}, "upscaler: it needs upscale"),
        ({"upscale": 4, "upscaler": "soft"}, "nothing here enlarges 4 times; available: sharp"),
        ({"upscale": 2, "upscaler": "gone"}, "'gone' is not here; available: sharp, soft"),
        ({"upscale": 4, "width": 512, "height": 512},
         "512 x 512 pixels become 4,194,304 by sharp, above MAX_UPSCALED_PIXELS=1048576"),
        ({"upscale": 4, "width": 256, "height": 256, "num_images_per_prompt": 2},
         "2 x 256 x 256 pixels become 2,097,152 by sharp, above MAX_UPSCALED_PIXELS=1048576"),
    ],
)  # fmt: skip
def test_what_cannot_be_enlarged_is_refused(
    exhibit: Exhibit, fields: dict[str, Any], told: str
) -> None:
    answer = exhibit.post(FIELDS | fields)
    assert answer.status_code == 400
    assert told in answer.json()["error"]


def test_one_that_is_cancelled_half_way_leaves_the_next_right(exhibit: Exhibit) -> None:
    [expected] = exhibit.draw(FIELDS | {"upscale": 4, "width": 208})

    async def cancelled() -> None:
        request = ImageRequest(**FIELDS | {"upscale": 4, "width": 208, "height": 200})
        stream = await exhibit.model.submit(request)
        async for event in stream:
            if isinstance(event, Step) and event.index == event.total:
                break  # its steps are over, its tiles are not
        stream.cancel()
        assert not [event for event in stream._waiting if isinstance(event, Image)]

    asyncio.run(cancelled())
    assert difference(exhibit.draw(FIELDS | {"upscale": 4, "width": 208})[0], expected) == 0


def test_a_picture_that_was_sent_is_enlarged(exhibit: Exhibit, sharp: Path) -> None:
    [drawn] = exhibit.draw(FIELDS)
    file = io.BytesIO()
    PIL.Image.fromarray(drawn).save(file, "PNG")
    sent = {"image": base64.b64encode(file.getvalue()).decode(), "prompt": ""}
    [made, stranger] = exhibit.draw(sent | {"task": "upscale", "upscale": 4}, FIELDS)
    assert difference(made, whole(sharp, drawn)) <= 1
    assert difference(stranger, drawn) <= 1
    for fields, told in (
        ({"strength": 0.5, "upscale": 2}, "strength: it has no meaning where nothing is drawn"),
        ({}, "upscale: is missing"),
        ({"upscale": 2, "image": [sent["image"]] * 2}, "image: to be enlarged, exactly one"),
    ):
        answer = exhibit.post(sent | {"task": "upscale"} | fields)
        assert (answer.status_code, told in answer.text) == (400, True), answer.text


def test_the_plan_counts_the_networks(checkpoint: Path, sharp: Path, soft: Path) -> None:
    settings = Settings(model_id=str(checkpoint), device="cpu", upscalers=[str(sharp), str(soft)])
    found = inspect(checkpoint)
    beside = find_conditioning(settings, found)
    device = DeviceManager(settings).select()
    plan = OptimizationManager(device, settings, conditioning=beside).plan(found)
    told = plan.reserved_bytes["UPSCALERS"]
    assert told == sum(one.bytes for one in beside.upscalers)
    assert told > sum(one.numel() * 4 for one in load_file(sharp).values())


def test_what_is_no_upscaler_is_said_by_its_header(folder: Path, sharp: Path) -> None:
    save_file({"conv.weight": torch.zeros(2, 2)}, folder / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"no network that is read here.*'conv\.weight'"):
        inspect_upscaler("other", folder / "other.safetensors")
    pickle = folder / "pickles"
    pickle.mkdir()
    (pickle / "x4.pth").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"pickles \(\.pth\) are not read"):
        inspect_upscaler("x4", pickle)
    tensors = load_file(sharp)
    del tensors["conv_hr.weight"]
    save_file(tensors, folder / "torn.safetensors")
    with pytest.raises(CheckpointError, match=r"(?s)torn\.safetensors cannot be loaded.*conv_hr"):
        read_network(inspect_upscaler("torn", folder / "torn.safetensors"))
