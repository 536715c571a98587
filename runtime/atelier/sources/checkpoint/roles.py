"""What the parts of a pipeline are for, by their names: one table for the memory plan and the
engine."""

from __future__ import annotations

from typing import Literal

Role = Literal["denoiser", "text_encoder", "image_encoder", "vae", "other"]

_CONTAINS: tuple[tuple[str, Role], ...] = (
    ("text_encoder", "text_encoder"),
    ("language", "text_encoder"),
    ("image_encoder", "image_encoder"),
    ("safety_checker", "image_encoder"),
    ("vision", "image_encoder"),
    ("feature", "image_encoder"),
)
_BEGINS: tuple[tuple[tuple[str, ...], Role], ...] = (
    (("vae", "vqvae", "vqgan", "movq"), "vae"),
    (("transformer", "unet", "denoiser", "prior", "decoder", "model"), "denoiser"),
)


def role_of(name: str) -> Role:
    """What a component of this name does; encoders first, since `prior_text_encoder` is one."""
    for part, role in _CONTAINS:
        if part in name:
            return role
    for beginnings, role in _BEGINS:
        if name.startswith(beginnings):
            return role
    return "other"
