"""Which sizes a pipeline draws, and the nearest to one that it does not draw."""

from __future__ import annotations

import math
import random
from types import SimpleNamespace

import pytest
import torch
from diffusers import AuraFlowTransformer2DModel, CogView3PlusTransformer2DModel
from diffusers.models.embeddings import PatchEmbed

from atelier.errors import InvalidRequest
from atelier.images.sizes import MOST_STRETCHED, DrawableSizes, longest_side

SMALL = DrawableSizes(multiple=16, longest=256, pixels=2**22)
LARGE = DrawableSizes(multiple=8, longest=None, pixels=2**20)


@pytest.mark.parametrize(
    ("sizes", "asked", "near"),
    [
        (SMALL, (128, 128), (128, 128)),
        (SMALL, (1024, 1024), (256, 256)),
        (SMALL, (1024, 1792), (144, 256)),
        (SMALL, (250, 250), (256, 256)),
        (SMALL, (1, 1), (16, 16)),
        (SMALL, (65536, 16), (256, 16)),
        (LARGE, (1000, 1000), (1000, 1000)),
        (LARGE, (1003, 1003), (1000, 1000)),
        (LARGE, (2048, 2048), (1024, 1024)),
        (LARGE, (2048, 1024), (1448, 724)),
        (LARGE, (65536, 8), (512, 8)),
    ],
)
def test_the_nearest_size_keeps_the_ratio(
    sizes: DrawableSizes, asked: tuple[int, int], near: tuple[int, int]
) -> None:
    assert sizes.nearest(*asked) == tuple(
        round(side / sizes.multiple) * sizes.multiple for side in near
    )


def test_the_nearest_size_is_always_one_that_is_drawn() -> None:
    rng = random.Random(7)
    for _ in range(2000):
        multiple = rng.choice([8, 16, 32])
        longest = rng.choice([None, 8 * multiple, 100 * multiple])
        sizes = DrawableSizes(multiple, longest, rng.randint(multiple**2, 2**22))
        asked = rng.randint(1, 99_999), rng.randint(1, 99_999)
        near = sizes.nearest(*asked)
        sizes.check(*near, "size")
        assert sizes.nearest(*near) == near
        roomy = min(near) >= 4 * multiple
        if roomy and max(asked) <= MOST_STRETCHED * min(asked):
            off = math.log(near[0] / near[1]) - math.log(asked[0] / asked[1])
            assert abs(off) < math.log(1 + multiple / min(near))


@pytest.mark.parametrize(
    ("asked", "field", "words"),
    [
        ((33, 32), "width", "33 is not divisible by 16"),
        ((32, 33), "height", "33 is not divisible by 16"),
        ((512, 256), "size", "512 x 256 is larger than this model draws"),
    ],
)
def test_a_refusal_names_the_side_the_sizes_and_the_nearest(
    asked: tuple[int, int], field: str, words: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        SMALL.check(*asked, "size")
    assert refused.value.field == field
    said = refused.value.message
    assert said.startswith(f"{field}: {words}; this model draws sides divisible by 16")
    assert "none beyond 256" in said and "the nearest is" in said


def test_an_input_picture_is_scaled_to_the_longest_side_but_a_thin_one_is_not() -> None:
    assert SMALL.like(250, 100) == (240, 96)
    assert SMALL.like(600, 400) == (256, 176)
    assert SMALL.like(1, 1_048_576) == (16, 1_048_576)
    with pytest.raises(InvalidRequest, match="larger than"):
        SMALL.check(*SMALL.like(1, 1_048_576), "image")


def pipeline(transformer: torch.nn.Module) -> SimpleNamespace:
    return SimpleNamespace(transformer=transformer, vae_scale_factor=8)


class CutPositions(torch.nn.Module):
    """A denoiser that cuts its positions as Stable Diffusion 3 does."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(patch_size=2)
        self.pos_embed = PatchEmbed(
            height=8, width=8, patch_size=2, in_channels=4, embed_dim=8, pos_embed_max_size=24
        )


def test_the_longest_side_is_that_of_the_table_of_positions() -> None:
    """24 positions of 2 x 8 pixels. AuraFlow counts all positions, CogView 3 those of a side."""
    assert longest_side(pipeline(CutPositions())) == 24 * 16
    heads = {"num_attention_heads": 2, "attention_head_dim": 8}
    aura = AuraFlowTransformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1,
        joint_attention_dim=8, caption_projection_dim=16, pos_embed_max_size=64, **heads,
    )  # fmt: skip
    assert longest_side(pipeline(aura)) == 8 * 16
    cogview = CogView3PlusTransformer2DModel(
        patch_size=2, in_channels=4, num_layers=1, out_channels=4, text_embed_dim=8,
        time_embed_dim=8, condition_dim=4, pos_embed_max_size=12, **heads,
    )  # fmt: skip
    assert longest_side(pipeline(cogview)) == 12 * 16
    assert longest_side(pipeline(torch.nn.Linear(1, 1))) is None
    assert longest_side(SimpleNamespace(unet=torch.nn.Linear(1, 1))) is None
