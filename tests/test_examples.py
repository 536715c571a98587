"""Every program in examples/, run as a reader would, against servers of the built-in models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image

from atelier.builtin.shapes.checker import look
from tests.conftest import ROOT, Server, StartServer

EXAMPLES = ROOT / "examples"
SHAPES = ROOT / "runtime" / "atelier" / "builtin" / "shapes"
PICTURES = {
    "curl.sh": ["curl.png"],
    "openai_picture.py": ["openai_picture.png"],
    "kserve_client.py": ["kserve_0.png", "kserve_1.png"],
    "triton_client.py": ["triton_client.png"],
    "lora.py": ["plain.png", "adapted.png"],
    "job.py": ["job.png"],
    "edit_with_mask.py": ["drawn.png", "edited.png"],
    "control_edges.py": ["controlled.png", "drawn.png"],
    "upscale.sh": ["large.png", "small.png"],
}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of random weights for the built-in picture model."""
    torch.manual_seed(1)
    pipeline = StableDiffusion3Pipeline.from_pretrained(SHAPES)
    pipeline.transformer.add_adapter(
        LoraConfig(r=4, lora_alpha=16, target_modules=["to_q", "to_v"], init_lora_weights=False)
    )
    folder = tmp_path_factory.mktemp("lora")
    layers = get_peft_model_state_dict(pipeline.transformer)
    StableDiffusion3Pipeline.save_lora_weights(
        folder, transformer_lora_layers=layers, weight_name="ink.safetensors"
    )
    return folder / "ink.safetensors"


@pytest.fixture(scope="module")
def shapes(start_server: StartServer, adapter: Path) -> Iterator[Server]:
    with start_server(
        model_id="builtin/shapes",
        model_name="shapes",
        lora_paths=str(adapter),
        controlnets="edges=builtin/shapes/edges",
        upscalers="builtin/shapes/x2",
    ) as running:
        yield running


def run(example: str, server: Server, folder: Path, *arguments: str) -> str:
    """Run one in `folder`; its standard output."""
    file = EXAMPLES / example
    command = [str(file)] if file.suffix == ".sh" else [sys.executable, str(file), *arguments]
    address = {"ATELIER_URL": server.url, "ATELIER_GRPC": server.grpc}
    done = subprocess.run(
        command, cwd=folder, env=os.environ | address, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_run() -> None:
    programs = {path.name for path in EXAMPLES.iterdir() if path.name != "README.md"}
    assert programs == {*PICTURES, "chat_with_tools.py"}
    page = (EXAMPLES / "README.md").read_text()
    assert [name for name in programs if f"[{name}]({name})" not in page] == []


@pytest.mark.parametrize("example", PICTURES)
def test_an_example_leaves_its_pictures(example: str, shapes: Server, tmp_path: Path) -> None:
    run(example, shapes, tmp_path, *(["ink"] if example == "lora.py" else []))
    made = {path.name: np.asarray(Image.open(path)) for path in tmp_path.iterdir()}
    assert sorted(made) == sorted(PICTURES[example])
    assert all(picture.std() > 5 for picture in made.values())
    if example == "lora.py":
        assert np.abs(made["plain.png"].astype(int) - made["adapted.png"]).max() > 3
    if example == "edit_with_mask.py":
        half = made["drawn.png"].shape[1] // 2
        left, right = (
            np.abs(made["drawn.png"].astype(int) - made["edited.png"])[:, part].mean()
            for part in (slice(0, half), slice(half, None))
        )
        assert right > 2 * left
    if example == "control_edges.py":
        places = [
            sorted((one.shape, round(one.x / 8), round(one.y / 8)) for one in look(picture)[0])
            for picture in (Image.open(tmp_path / name) for name in sorted(made))
        ]
        assert places[0] == places[1]
    if example == "upscale.sh":
        assert (made["small.png"].shape, made["large.png"].shape) == ((128, 128, 3), (256, 256, 3))


def test_a_chat_ends_in_a_tool_call(scenes: Server, tmp_path: Path) -> None:
    name, arguments = run("chat_with_tools.py", scenes, tmp_path).split(" ", 1)
    assert name == "draw"
    assert "red" in json.loads(arguments)["prompt"]


def test_a_setting_that_the_server_does_not_read_is_named_at_start(
    start_server: StartServer,
) -> None:
    with start_server(
        model_id="builtin/scenes", model_name="scenes", max_steps="9", warmup="off"
    ) as running:
        log = running.log.read_text()
    assert "set, but not read by this server (text): MAX_STEPS" in log
