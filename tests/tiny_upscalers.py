"""Upscalers of random weights in the layouts that people have, and ESRGAN's network as its authors
describe it, to compare with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from atelier.images.upscaler_networks import read_network
from atelier.sources.checkpoint.upscaler import inspect_upscaler

WIDTH, GROWTH, BLOCKS = 8, 4, 2


def esrgan(file: Path, old: bool = False, shuffle: int = 1, prefix: str = "") -> Path:
    """An RRDBNet that enlarges 4 / `shuffle` times, in Real-ESRGAN's names or, `old`, in
    ESRGAN's."""
    torch.manual_seed(1)
    shapes: dict[str, tuple[int, int]] = {"conv_first": (WIDTH, 3 * shuffle**2)}
    for block in range(BLOCKS):
        for dense in (1, 2, 3):
            for index in range(5):
                outer = GROWTH if index < 4 else WIDTH
                name = f"body.{block}.rdb{dense}.conv{index + 1}"
                shapes[name] = (outer, WIDTH + index * GROWTH)
    for name in ("conv_body", "conv_up1", "conv_up2", "conv_hr"):
        shapes[name] = (WIDTH, WIDTH)
    shapes["conv_last"] = (3, WIDTH)
    tensors = {}
    for name, (outer, inner) in shapes.items():
        told = old_name(name) if old else name
        tensors[f"{prefix}{told}.weight"] = torch.randn(outer, inner, 3, 3) / (9 * inner) ** 0.5
        tensors[f"{prefix}{told}.bias"] = torch.rand(outer) * 0.3
    save_file(tensors, file)
    return file


def old_name(name: str) -> str:
    """A layer of an RRDBNet in ESRGAN's first names."""
    tops = {"conv_first": "model.0", "conv_body": f"model.1.sub.{BLOCKS}", "conv_up1": "model.3",
            "conv_up2": "model.6", "conv_hr": "model.8", "conv_last": "model.10"}  # fmt: skip
    if name in tops:
        return tops[name]
    _, block, dense, conv = name.split(".")
    return f"model.1.sub.{block}.RDB{dense[-1]}.{conv}.0"


def compact(file: Path, scale: int = 2) -> Path:
    """A compact SRVGGNet of two inner convolutions."""
    torch.manual_seed(2)
    tensors = {}
    sizes = [(WIDTH, 3), (WIDTH, WIDTH), (WIDTH, WIDTH), (3 * scale**2, WIDTH)]
    for index, (outer, inner) in enumerate(sizes):
        tensors[f"body.{2 * index}.weight"] = torch.randn(outer, inner, 3, 3) * 0.1
        tensors[f"body.{2 * index}.bias"] = torch.zeros(outer)
        if index < 3:
            tensors[f"body.{2 * index + 1}.weight"] = torch.full((outer,), 0.2)
    save_file(tensors, file)
    return file


def whole(file: Path, picture: Any) -> Any:
    """A picture in grey levels of 255, enlarged in one piece."""
    network = read_network(inspect_upscaler("whole", file))
    rows = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        made = network(rows).clamp(0, 1)[0].permute(1, 2, 0)
    return (made * 255).round().to(torch.uint8).numpy()
