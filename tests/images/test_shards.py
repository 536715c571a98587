"""A module in shares: two processes hold half of it each, and compute what one does with the
whole."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from torch import nn
from transformers import T5Config, T5EncoderModel

from atelier.errors import GenerationFailed
from atelier.images.parallel import join
from atelier.images.shards import LEAST, MOST, ShardedModule, blocks_of, in_turn
from tests.processes import CONTEXT
from tests.tiny_pipelines import flux_1

SDXL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
T5_XXL = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}


def flux() -> nn.Module:
    return FluxTransformer2DModel(guidance_embeds=True)


def sd3() -> nn.Module:
    return SD3Transformer2DModel(sample_size=128, pos_embed_max_size=192)


def sdxl() -> nn.Module:
    return UNet2DConditionModel(**SDXL)


def t5() -> nn.Module:
    return T5EncoderModel(T5Config(**T5_XXL, feed_forward_proj="gated-gelu"))


@pytest.mark.parametrize(
    ("make", "kinds"),
    [
        (flux, {"FluxTransformerBlock", "FluxSingleTransformerBlock"}),
        (sd3, {"JointTransformerBlock"}),
        (sdxl, {"BasicTransformerBlock", "ResnetBlock2D", "Upsample2D"}),
        (t5, {"T5Block"}),
    ],
)
def test_blocks_of_published_models_are_small_and_nearly_everything(
    make: Callable[[], nn.Module], kinds: set[str]
) -> None:
    with torch.device("meta"):
        module = make()
    blocks = blocks_of(module)
    whole = size_of(module)
    assert kinds <= {type(block).__name__ for block in blocks}
    assert all(LEAST * whole < size_of(block) <= MOST * whole for block in blocks)
    assert sum(map(size_of, blocks)) > 0.95 * whole
    inside = [id(part) for block in blocks for part in block.modules()]
    assert len(inside) == len(set(inside))  # none is in another


def size_of(module: nn.Module) -> int:
    return sum(one.numel() for one in module.parameters())


def test_a_weight_with_two_owners_is_in_no_block() -> None:
    tied = nn.Sequential(*(nn.Linear(8, 8) for _ in range(3)))
    tied[2].weight = tied[0].weight  # type: ignore[assignment]
    assert blocks_of(tied) == [tied[1]]


def test_ranks_read_their_weights_in_turn(tmp_path: Path) -> None:
    said: list[str] = []

    def other() -> None:
        with in_turn(tmp_path):
            said.append("other")

    waiting = Thread(target=other)
    with in_turn(tmp_path):
        waiting.start()
        waiting.join(0.2)
        said.append("first")
    waiting.join()
    assert said == ["first", "other"]


def in_two_processes(work: Callable[[int, Path], Any], folder: Path) -> list[Any]:
    """What both ranks of a group of two say."""
    pipes = [CONTEXT.Pipe() for _ in range(2)]
    processes = [
        CONTEXT.Process(target=_rank, args=(pipe[1], work, rank, folder), daemon=True)
        for rank, pipe in enumerate(pipes)
    ]
    for process, pipe in zip(processes, pipes, strict=True):
        process.start()
        pipe[1].close()
    said = [pipe[0].recv() for pipe in pipes]
    for process in processes:
        process.join(10)
    failed = [one for one in said if isinstance(one, str)]
    assert not failed, failed[0]
    return said


def _rank(
    connection: Connection, work: Callable[[int, Path], Any], rank: int, folder: Path
) -> None:
    try:
        join(folder / "store", rank, 2, "cpu")
        with torch.no_grad():
            connection.send(work(rank, folder))
    except BaseException:
        connection.send(traceback.format_exc())
    os._exit(0)


def _in_halves(rank: int, folder: Path) -> dict[str, Any]:
    torch.set_num_threads(1)
    module = FluxTransformer2DModel.from_pretrained(folder / "flux-1" / "transformer").eval()
    whole = sum(one.nbytes for one in module.parameters())
    expected = [module(**arguments(seed, seed + 1)).sample for seed in (1, 2)]
    shapes = {name: one.shape for name, one in module.named_parameters()}
    sharded = ShardedModule(module, "cpu")
    between = sharded.bytes
    assert any(one.isnan().all() for one in module.parameters())  # most of it is not here
    assert {name: one.shape for name, one in module.named_parameters()} == shapes
    try:
        sharded.call(**arguments(1, 1) | {"encoder_hidden_states": torch.zeros(1, 4, 7)})
    except RuntimeError as error:
        fault = str(error)
    try:
        module(**arguments(1, 1))
    except GenerationFailed as error:
        alone = str(error)
    results = [sharded.call(**arguments(seed, seed + 1)).sample for seed in (1, 2, 1)]
    equal = [torch.equal(one, results[index % 2]) for index, one in enumerate(expected)]
    equal.append(torch.equal(results[0], results[2]))
    return {
        "whole": whole,
        "between": [between, sharded.bytes],
        "equal": equal,
        "close": float((results[0] - expected[0]).abs().max()),
        "fault": fault,
        "alone": alone,
    }


def arguments(seed: int, rows: int) -> dict[str, torch.Tensor]:
    """Of the tiny FLUX.1."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "hidden_states": torch.randn(rows, 16, 16, generator=generator),
        "encoder_hidden_states": torch.randn(rows, 4, 32, generator=generator),
        "pooled_projections": torch.randn(rows, 32, generator=generator),
        "timestep": torch.full((rows,), 0.5),
        "guidance": torch.full((rows,), 3.5),
        "img_ids": torch.zeros(16, 3),
        "txt_ids": torch.zeros(4, 3),
    }


def test_two_processes_hold_half_each_and_compute_the_same(tmp_path: Path) -> None:
    flux_1(tmp_path)
    for said in in_two_processes(_in_halves, tmp_path):
        assert said["equal"] == [True] * 3, said["close"]
        assert "mat1 and mat2" in said["fault"]  # and the calls after it were right
        assert "called by itself" in said["alone"]
        for held in said["between"]:
            assert 0.5 * said["whole"] < held < 0.6 * said["whole"]
