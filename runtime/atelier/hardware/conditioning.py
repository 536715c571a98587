"""What controls and image prompts take of a device, all the time: their weights, and what a control
hands to the denoiser at every step of a guided picture."""

from __future__ import annotations

from collections.abc import Mapping

from atelier.hardware.account import shapes_of
from atelier.hardware.dtypes import BYTES
from atelier.hardware.fit import GUIDED_ROWS
from atelier.sources.checkpoint import controls, image_prompts, upscaler
from atelier.sources.checkpoint.contents import Checkpoint
from atelier.sources.conditioning import Conditioning


def conditioning_bytes(
    conditioning: Conditioning, checkpoint: Checkpoint, dtype: str
) -> Mapping[str, int]:
    """Bytes by the setting that brings them; upscalers work on a tile at a time."""
    size, found = BYTES[dtype], {}
    if conditioning.controls:
        shapes = shapes_of(checkpoint)
        handed = max(one.residuals for one in conditioning.controls) * shapes.width
        cells = GUIDED_ROWS * shapes.tokens(shapes.native_pixels)
        weights = sum(one.component.parameters for one in conditioning.controls)
        found[controls.VARIABLE] = size * (weights + handed * cells)
    if conditioning.image_prompts:
        encoders = {one.encoder: one.encoder_parameters for one in conditioning.image_prompts}
        adapters = sum(one.parameters for one in conditioning.image_prompts)
        found[image_prompts.VARIABLE] = size * (adapters + sum(encoders.values()))
    if conditioning.upscalers:
        found[upscaler.VARIABLE] = sum(one.bytes for one in conditioning.upscalers)
    return found
