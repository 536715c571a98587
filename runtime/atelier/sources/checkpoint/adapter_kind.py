"""Which kind of adapter a file holds, told from the names of its tensors, and whether that kind can
be read."""

from __future__ import annotations

import re
from collections.abc import Collection

OTHER_KINDS = {"hada_": "LoHa", "lokr_": "LoKr", "oft_": "OFT"}
"""Marks in tensor names of kinds that diffusers does not read."""

LORA = re.compile(r"lora[._]|\.lora\.|dora_scale")
INVERSION = re.compile(r"clip_[lg]|t5\w*|emb_params|string_to_param.*|<.*>")
"""Names of tensors in textual inversions: ComfyUI's, A1111's and diffusers'."""


def is_adapter(names: Collection[str]) -> bool:
    """Whether most tensors are an adapter's, of any kind."""
    marked = sum(bool(LORA.search(name)) or _other(name) != "" for name in names)
    return bool(names) and marked * 2 > len(names)


def unreadable(names: Collection[str]) -> str:
    """Why no model can use a file with these tensors as an adapter; empty if one might."""
    kinds = {kind for name in names if (kind := _other(name))}
    if kinds:
        return f"it is a {min(kinds)} adapter, which is not read here: convert it to LoRA"
    if not any(LORA.search(name) for name in names):
        if names and all(INVERSION.fullmatch(name) for name in names):
            return "it is a textual inversion (an embedding), not a LoRA adapter"
        return "it holds no LoRA weights"
    if all(name.startswith("base_model.model.") for name in names):
        return (
            "it is laid out for one module, as PEFT saves it, and does not say for which: save it"
            " with the pipeline's save_lora_weights"
        )
    return ""


def _other(name: str) -> str:
    return next((kind for mark, kind in OTHER_KINDS.items() if mark in name), "")
