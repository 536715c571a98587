"""Finished pictures made larger by a network beside the model, behind a gate: called from requests'
greenlets, tile by tile, its calls are batched across requests, proven, cancelled and watched for
memory by the engine like those of the pipeline's own modules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from atelier.errors import InvalidRequest, shown
from atelier.images.interception import Gate, Stage
from atelier.images.request import ImageRequest
from atelier.images.sizes import native_size
from atelier.images.upscaler_networks import read_network
from atelier.sources.checkpoint.upscaler import OVERLAP, TILE, UpscalerFile


class Upscaler:
    """One network on its device."""

    def __init__(self, file: UpscalerFile, device: str) -> None:
        """
        Raises:
            CheckpointError: its weights do not fit its network.
        """
        self.file = file
        self._device = torch.device(device)
        self._network = read_network(file).to(self._device)
        self.gate = Gate(f"upscaler {file.name}", self._network, "forward", Stage.UPSCALE)
        self.gate.put_up()

    def enlarged(self, picture: torch.Tensor) -> torch.Tensor:
        """A picture of height x width x channels in 0..1, `scale` times as large. A fourth channel
        is enlarged without the network.

        Tiles overlap by more than the network's surroundings matter, and only their middles are
        kept, so that no seam is seen. They are of one size, moved inward at the edges.
        """
        rows = picture.permute(2, 0, 1)[None].to(self._device, torch.float32)
        scale, (high, wide) = self.file.scale, rows.shape[2:]
        folded = (0, -wide % self.file.shuffle, 0, -high % self.file.shuffle)
        rows = functional.pad(rows, folded, mode="replicate") if any(folded) else rows
        made = rows.new_empty(1, 3, rows.shape[2] * scale, rows.shape[3] * scale)
        for top, upper, lower in cuts(rows.shape[2]):
            for left, first, last in cuts(rows.shape[3]):
                drawn = self._network(rows[:, :3, top : top + TILE, left : left + TILE])
                made[..., upper * scale : lower * scale, first * scale : last * scale] = drawn[
                    ...,
                    (upper - top) * scale : (lower - top) * scale,
                    (first - left) * scale : (last - left) * scale,
                ]
        made = made.clamp(0, 1)
        if rows.shape[1] > 3:
            rest = functional.interpolate(rows[:, 3:], made.shape[2:], mode="bilinear")
            made = torch.cat([made, rest], 1)
        return made[0, :, : high * scale, : wide * scale].permute(1, 2, 0)


def cuts(length: int) -> Iterator[tuple[int, int, int]]:
    """Tiles along an edge: where each begins, and from where to where it is kept."""
    if length <= TILE:
        yield 0, 0, length
        return
    kept = 0
    while kept < length:
        begin = min(max(0, kept - OVERLAP), length - TILE)
        until = length if begin + TILE >= length else begin + TILE - OVERLAP
        yield begin, kept, until
        kept = until


@dataclass(frozen=True)
class Enlargement:
    """What a request wants: a network, and how much larger its picture is to be."""

    upscaler: Upscaler
    scale: int

    def of(self, pixels: torch.Tensor) -> torch.Tensor:
        """Rows x height x width x channels, made larger one by one. For the request's greenlet."""
        height, width = (side * self.scale for side in pixels.shape[1:3])
        made = torch.stack([self.upscaler.enlarged(one) for one in pixels])
        if made.shape[1:3] == (height, width):
            return made
        rows = functional.interpolate(
            made.permute(0, 3, 1, 2), (height, width), mode="bicubic", antialias=True
        )
        return rows.clamp(0, 1).permute(0, 2, 3, 1)


def enlarged(pixels: torch.Tensor, wanted: Enlargement | None) -> torch.Tensor:
    """The pictures as large as is wanted."""
    return wanted.of(pixels) if wanted else pixels


class Upscalers:
    """Those of one model, by name."""

    def __init__(self, files: Sequence[UpscalerFile], device: str, most_pixels: int) -> None:
        self._all = {file.name: Upscaler(file, device) for file in files}
        self._most = most_pixels

    @property
    def names(self) -> list[str]:
        """What requests can name."""
        return sorted(self._all)

    @property
    def scales(self) -> dict[str, int]:
        """How many times larger each makes a picture at most, by name."""
        return {name: self._all[name].file.scale for name in self.names}

    @property
    def gates(self) -> list[Gate]:
        """Before the networks."""
        return [one.gate for one in self._all.values()]

    def chosen(
        self, request: ImageRequest, pipeline: Any, arguments: dict[str, Any]
    ) -> Enlargement | None:
        """What enlarges this request's pictures; None if nothing is to.

        Raises:
            InvalidRequest: no such upscaler, or pictures above MAX_UPSCALED_PIXELS.
        """
        if request.upscale is None:
            if request.upscaler is not None:
                raise InvalidRequest("upscaler: it needs upscale, 2 or 4", "upscaler")
            return None
        upscaler = self._named(request)
        native = native_size(pipeline)
        width, height = arguments.get("width") or native[0], arguments.get("height") or native[1]
        count = request.num_images_per_prompt
        pixels = count * width * height * max(request.upscale, upscaler.file.scale) ** 2
        if pixels > self._most:
            several = f"{count} x " if count > 1 else ""
            raise InvalidRequest(
                f"upscale: {several}{width} x {height} pixels become {pixels:,} by"
                f" {upscaler.file.name}, above MAX_UPSCALED_PIXELS={self._most}",
                "upscale",
            )
        return Enlargement(upscaler, request.upscale)

    def _named(self, request: ImageRequest) -> Upscaler:
        names = ", ".join(self.names) or "none: UPSCALERS is empty"
        if request.upscaler is not None and request.upscaler not in self._all:
            raise InvalidRequest(
                f"upscaler: {shown(request.upscaler)} is not here; available: {names}", "upscaler"
            )
        able = [
            one
            for name, one in self._all.items()
            if request.upscaler in (None, name) and one.file.scale >= (request.upscale or 0)
        ]
        if not able:
            raise InvalidRequest(
                f"upscale: nothing here enlarges {request.upscale} times; available: {names}",
                "upscale",
            )
        if len(able) > 1:
            exact = [one for one in able if one.file.scale == request.upscale]
            able = exact or able
        if len(able) > 1:
            raise InvalidRequest(f"upscaler: name one of {names}", "upscaler")
        return able[0]
