"""Adapters in a group of two processes: calls with them are shared, and draw what one process
draws with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.gallery import Exhibit, Pixels, difference, showing
from tests.images.test_adapters import FIELDS, save_adapter
from tests.images.test_sharded_groups import in_a_group
from tests.tiny_adapters import bare, denoiser, layers, loha, lokr, write
from tests.tiny_pipelines import stable_diffusion_1

SELECTIONS = (
    {},
    {"ink": 1.0},
    {"ink": 0.5, "oil": -0.7},
    {"woven": 1.0},
    {"bent": 0.8, "ink": 0.3},
    {"words": 1.0, "oil": 1.0},
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stable_diffusion_1(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`ink` and `oil` are LoRA of the denoiser, `words` of the text encoder; `woven` is a LoHa,
    `bent` a LoKr."""
    root = tmp_path_factory.mktemp("loras")
    save_adapter(checkpoint, root, "ink.safetensors", 1)
    save_adapter(checkpoint, root, "oil.safetensors", 2)
    save_adapter(checkpoint, root, "words.safetensors", 3, text=True)
    unet = denoiser(bare(checkpoint))
    names = layers(unet, "to_q", "to_v", "conv1")
    write(root / "woven.safetensors", "lora_unet_", unet, names, loha)
    write(root / "bent.safetensors", "lora_unet_", unet, names, lokr)
    return root


def request(seed: int, lora: dict[str, float]) -> dict[str, Any]:
    return FIELDS | {"seed": seed, "lora": lora}


def draw_all(shown: Exhibit) -> list[Pixels]:
    """Each selection alone, twice around; then strangers at once."""
    lone = [shown.draw(request(5, one))[0] for one in (*SELECTIONS, *SELECTIONS)]
    return lone + shown.draw(*(request(seed, one) for seed, one in enumerate(SELECTIONS)))


@pytest.fixture(scope="module")
def expected(checkpoint: Path, folder: Path) -> list[Pixels]:
    with showing(checkpoint, lora_paths=[str(folder)]) as plain:
        drawn = draw_all(plain)
    plainly = drawn[0]
    assert all(difference(one, plainly) > 3 for one in drawn[1 : len(SELECTIONS)])
    return drawn


@pytest.mark.parametrize("shares", ["auto", "true"])
@pytest.mark.parametrize("kept", [8, 2])
def test_a_group_draws_with_adapters_what_one_process_draws(
    shares: str,
    kept: int,
    checkpoint: Path,
    folder: Path,
    expected: list[Pixels],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "atelier.images.sharing")
    with in_a_group(
        checkpoint, lora_paths=[str(folder)], max_loras=kept, shard_weights=shares
    ) as shown:
        pictures = draw_all(shown)
    for picture, one in zip(pictures, expected, strict=True):
        assert difference(picture, one) <= 1
    said = [one.getMessage() for one in caplog.records]
    assert not [line for line in said if "not shared" in line]
    # Of each selection one guided call is compared, two rows at this size; and the warm-up's.
    assert len([line for line in said if "2 x 4x16x16 by rows: shared" in line]) == len(SELECTIONS)
