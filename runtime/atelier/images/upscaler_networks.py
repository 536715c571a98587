"""The networks of upscalers: ESRGAN's, as Real-ESRGAN has it, and the compact one. Written here
since the library that has them all needs torchvision, whose wheels are built for one torch each."""

from __future__ import annotations

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from atelier.errors import CheckpointError
from atelier.sources.checkpoint.upscaler import (
    VARIABLE,
    UpscalerFile,
    in_new_names,
    plain_name,
)

RESIDUAL = 0.2
"""Share of a block's output that is added to its input (arXiv:1809.00219, section 3.1)."""

SLOPE = 0.2


def _conv(inner: int, outer: int) -> nn.Conv2d:
    return nn.Conv2d(inner, outer, 3, padding=1)


class DenseBlock(nn.Module):
    """Five convolutions, each of which sees all before it."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        for index in range(5):
            outer = growth if index < 4 else width
            setattr(self, f"conv{index + 1}", _conv(width + index * growth, outer))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        seen = [rows]
        for index in range(1, 5):
            made = self.get_submodule(f"conv{index}")(torch.cat(seen, 1))
            seen.append(functional.leaky_relu(made, SLOPE))
        last: torch.Tensor = self.get_submodule("conv5")(torch.cat(seen, 1))
        return rows + RESIDUAL * last


class ResidualDenseBlocks(nn.Module):
    """Three dense blocks around which a residual goes."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (DenseBlock(width, growth) for _ in range(3))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.rdb3(self.rdb2(self.rdb1(rows)))
        return rows + RESIDUAL * made


class RRDBNet(nn.Module):
    """rows x 3 x height x width in 0..1 to the same, `scale` times as large."""

    def __init__(self, file: UpscalerFile) -> None:
        super().__init__()
        width = file.width
        self.shuffle = file.shuffle
        self.ups = (file.scale * file.shuffle).bit_length() - 1
        self.conv_first = _conv(3 * file.shuffle**2, width)
        self.body = nn.Sequential(
            *(ResidualDenseBlocks(width, file.growth) for _ in range(file.blocks))
        )
        self.conv_body = _conv(width, width)
        for index in range(self.ups):
            setattr(self, f"conv_up{index + 1}", _conv(width, width))
        self.conv_hr = _conv(width, width)
        self.conv_last = _conv(width, 3)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        if self.shuffle > 1:
            rows = functional.pixel_unshuffle(rows, self.shuffle)
        first = self.conv_first(rows)
        rows = first + self.conv_body(self.body(first))
        for index in range(1, self.ups + 1):
            rows = functional.interpolate(rows, scale_factor=2, mode="nearest")
            rows = functional.leaky_relu(self.get_submodule(f"conv_up{index}")(rows), SLOPE)
        made: torch.Tensor = self.conv_last(functional.leaky_relu(self.conv_hr(rows), SLOPE))
        return made


class CompactNet(nn.Module):
    """SRVGGNet: plain convolutions at the picture's size, whose result is added to it."""

    def __init__(self, file: UpscalerFile) -> None:
        super().__init__()
        self.scale = file.scale
        layers: list[nn.Module] = [_conv(3, file.width), nn.PReLU(file.width)]
        for _ in range(file.blocks):
            layers += [_conv(file.width, file.width), nn.PReLU(file.width)]
        self.body = nn.Sequential(*layers, _conv(file.width, 3 * file.scale**2))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        made = functional.pixel_shuffle(self.body(rows), self.scale)
        return made + functional.interpolate(rows, scale_factor=self.scale, mode="nearest")


def read_network(file: UpscalerFile) -> nn.Module:
    """The network with its weights, in float32.

    Raises:
        CheckpointError: a tensor is missing, is too many or has another shape.
    """
    network = RRDBNet(file) if file.kind == "rrdb" else CompactNet(file)
    tensors = {plain_name(name): one.float() for name, one in load_file(file.path).items()}
    named = {new: tensors[old] for old, new in in_new_names(tensors).items()}
    try:
        network.load_state_dict(named)
    except RuntimeError as error:
        raise CheckpointError(f"{VARIABLE}: {file.path.name} cannot be loaded: {error}") from None
    return network.eval().requires_grad_(False)
