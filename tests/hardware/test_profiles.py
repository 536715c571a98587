"""Every profile against the memory of the GPUs that it names: pictures by the plan, embedded
language models by the plan of their cache, child engines by the weights and one long conversation.

A card is taken to have nine tenths of its nominal size, the least that a profile accepts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from transformers import Gemma3TextConfig

from atelier import profiles
from atelier.hardware.account import ModelSizes
from atelier.hardware.choice import plan
from atelier.settings import Settings, load_settings
from atelier.text.embedded.capacity import cache_budget, plan_capacity, split_by_window
from atelier.text.embedded.slots import ring_size
from atelier.text.embedded.windows import layer_windows
from atelier.units import GIB
from tests.hardware.test_memory_plan import AUTO, FLUX, SD35M, SDXL, gpu

CONTEXT_GIB = 0.5
"""What an opened CUDA context takes."""

PICTURES: dict[str, ModelSizes] = {"sdxl": SDXL, "sd-3.5-medium": SD35M, "flux.1-dev": FLUX}

GEMMA_3_1B = Gemma3TextConfig(
    hidden_size=1152,
    num_hidden_layers=26,
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=256,
    sliding_window=512,
    vocab_size=262_144,
    max_position_embeddings=32_768,
)
EMBEDDED: dict[str, tuple[Any, int]] = {"gemma-3-1b-it": (GEMMA_3_1B, 999_885_952)}
"""The published configuration, and how many parameters there are."""


@dataclass(frozen=True)
class Published:
    """A model of a child engine: GiB of its weights, bytes of a token's keys and values in 16 bits,
    and whether GPUs that share a layer share those too."""

    weights_gib: float
    token_bytes: int
    divided: bool = True


def keys(layers: int, heads: int, width: int) -> int:
    return 2 * layers * heads * width * 2


CHILDREN = {
    "qwen3-1.7b": Published(3.8, keys(28, 8, 128)),
    "qwen3-8b": Published(15.3, keys(36, 8, 128)),
    "qwen3-32b-awq-2x24g": Published(18.1, keys(64, 8, 128)),
    "qwen3-vl-32b-awq-2x24g": Published(19.5, keys(64, 8, 128)),
    # its attention keeps one latent of 512 + 64 numbers a layer, on every GPU
    "glm-4.7-flash-awq-2x24g": Published(18.5, 47 * 576 * 2, divided=False),
    # a writer of 9 and a denoiser of 7 thousand million parameters
    "glm-image-sglang": Published(32.0, keys(40, 2, 128)),
}

WORKING_GIB = 1.5
"""Activations, graphs and the context of a child engine."""


def test_every_profile_is_checked() -> None:
    assert sorted([*PICTURES, *EMBEDDED, *CHILDREN]) == profiles.names()


def settings_of(name: str) -> tuple[Settings, float]:
    profile = profiles.read(name)
    return load_settings(profile=name), 0.9 * profile.gpu_gib


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_profile_is_resident_with_its_whole_batch(name: str) -> None:
    settings, gib = settings_of(name)
    wishes = replace(
        AUTO,
        dtype=settings.dtype,
        component_dtypes={"vae": "float32"} if settings.dtype == "float16" else {},
        quantization=settings.quantization,
        rows=settings.max_batch_size,
    )
    made = plan(PICTURES[name], gpu(name, gib, (8, 6)), wishes)
    assert (made.placement, made.quantization) == ("resident", "none"), made.table()
    assert made.max_rows >= settings.max_batch_size, made.table()


@pytest.mark.parametrize("name", EMBEDDED)
def test_an_embedded_profile_has_room_for_its_sequences(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, gib = settings_of(name)
    config, parameters = EMBEDDED[name]
    assert (settings.dtype, settings.quantization) == ("bfloat16", "none")
    left = gib * GIB - CONTEXT_GIB * GIB - 2 * parameters
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(left), int(gib * GIB)))
    budget = cache_budget(settings, torch.device("cuda"))
    windows = layer_windows(config)
    limit = settings.max_model_len or config.max_position_embeddings
    ring = ring_size(max(one or 0 for one in windows), limit)
    layer = 2 * config.num_key_value_heads * config.head_dim * 2
    whole, windowed = split_by_window([layer] * config.num_hidden_layers, windows, ring)
    made = plan_capacity(settings, "cuda", config.max_position_embeddings, whole, budget, windowed)
    assert (made.slots, made.context) == (settings.max_num_seqs, settings.max_model_len)


@pytest.mark.parametrize("name", CHILDREN)
def test_a_profile_of_a_child_engine_has_room_for_one_long_conversation(name: str) -> None:
    settings, gib = settings_of(name)
    model, gpus = CHILDREN[name], profiles.read(name).gpus
    assert settings.tensor_parallel_size * settings.pipeline_parallel_size == gpus
    share = settings.memory_fraction or 0.9
    tokens = (settings.max_model_len or 0) * model.token_bytes / GIB
    needed = model.weights_gib / gpus + tokens / (gpus if model.divided else 1) + WORKING_GIB
    assert needed < share * gib, f"{needed:.1f} of {share * gib:.1f} GiB"
