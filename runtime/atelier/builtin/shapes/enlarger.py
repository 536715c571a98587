"""The upscaler's network: a compact SRVGGNet as Real-ESRGAN has it (arXiv:2107.10833), which
`UPSCALERS=builtin/shapes/x2` serves through the same code as any other.

Written with torch alone, since what serves it is above this package.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from atelier.builtin.shapes.resolution import SCALE

WEIGHTS = Path(__file__).parent / "x2" / "model.safetensors"
WIDTH, BLOCKS = 32, 6
CONTRAST = 3.0  # of the first kernels, which at first see differences alone


def build_network() -> nn.Sequential:
    """Convolutions at the small picture's size; what comes out of the last is added to the picture
    with every pixel repeated. It begins with that picture, and blind to flat colour, which most of
    a picture of shapes is: kernels of the first convolution sum to 0, biases are 0."""
    layers: list[nn.Module] = [nn.Conv2d(3, WIDTH, 3, padding=1), nn.PReLU(WIDTH)]
    for _ in range(BLOCKS):
        layers += [nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.PReLU(WIDTH)]
    last = nn.Conv2d(WIDTH, 3 * SCALE**2, 3, padding=1)
    nn.init.zeros_(last.weight)
    network = nn.Sequential(*layers, last)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
        first = network.get_parameter("0.weight")
        first.sub_(first.mean((2, 3), keepdim=True)).mul_(CONTRAST)
    return network


def enlarge(network: nn.Sequential, rows: torch.Tensor) -> torch.Tensor:
    """Pictures (N, 3, height, width) in 0..1, `SCALE` times as large."""
    repeated = F.interpolate(rows, scale_factor=SCALE, mode="nearest")
    return F.pixel_shuffle(network(rows), SCALE) + repeated


@torch.no_grad()
def enlarged(network: nn.Sequential, picture: Image.Image) -> Image.Image:
    """One picture, `SCALE` times as large."""
    rows = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)[None] / 255.0
    made = (enlarge(network, rows).clamp(0.0, 1.0) * 255.0).round().byte()
    return Image.fromarray(made[0].permute(1, 2, 0).numpy())


def save_network(network: nn.Sequential, file: Path) -> None:
    """In float16, under the names that the loader of UPSCALERS knows."""
    tensors = {
        f"body.{name}": one.detach().half().contiguous()
        for name, one in network.state_dict().items()
    }
    save_file(tensors, file, metadata={"format": "pt"})


def load_network(file: Path = WEIGHTS) -> nn.Sequential:
    """What `save_network` wrote, in float32."""
    network = build_network()
    tensors = load_file(file)
    network.load_state_dict(
        {name.removeprefix("body."): one.float() for name, one in tensors.items()}
    )
    return network.eval().requires_grad_(False)
