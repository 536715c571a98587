"""Whether a file of LORA_PATHS is an adapter for the model at hand, told from its header alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atelier.errors import CheckpointError
from atelier.sources.checkpoint.headers import StoredTensor, read_header

OTHER_KINDS = {
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "oft_": "OFT",
}
"""Marks in tensor names of kinds that diffusers does not read."""

LORA = re.compile(r"lora[._]|\.lora\.")
INVERSION = re.compile(r"clip_[lg]|t5\w*|emb_params|string_to_param.*|<.*>")
"""Names of tensors in textual inversions: ComfyUI's, A1111's and diffusers'."""

CROSS_ATTENTION = re.compile(r"attn2[._]to_[kv].*(lora[._]A|lora[._]down)")
"""Layers whose input is the text encoder's output, so that their width tells the family."""

TRANSFORMERS_OWN = re.compile(
    r"^transformer\.|(double|single|joint)_blocks|single_transformer_blocks"
)
UNETS_OWN = re.compile(r"^unet\.|^lora_unet_(down|up|mid|input|output|middle)_blocks?")


def fault_of(path: Path, pipeline: Any) -> str:
    """Why the file cannot be used with this pipeline; empty if nothing speaks against it."""
    try:
        tensors = read_header(path).tensors
    except CheckpointError as error:
        return error.message
    return _kind(tensors) or _misfit(tensors, pipeline)


def _kind(tensors: Mapping[str, StoredTensor]) -> str:
    for mark, kind in OTHER_KINDS.items():
        if any(mark in name for name in tensors):
            return f"it is a {kind} adapter, which is not read here: convert it to LoRA"
    if not any(LORA.search(name) for name in tensors):
        if tensors and all(INVERSION.fullmatch(name) for name in tensors):
            return "it is a textual inversion (an embedding), not a LoRA adapter"
        return "it holds no LoRA weights"
    if all(name.startswith("base_model.model.") for name in tensors):
        return (
            "it is laid out for one module, as PEFT saves it, and does not say for which: save it"
            " with the pipeline's save_lora_weights"
        )
    return ""


def _misfit(tensors: Mapping[str, StoredTensor], pipeline: Any) -> str:
    name = type(pipeline).__name__
    for part, own in (("unet", UNETS_OWN), ("transformer", TRANSFORMERS_OWN)):
        if getattr(pipeline, part, None) is None and any(map(own.search, tensors)):
            return f"it was made for a {part}, and {name} has none"
    wanted = getattr(
        getattr(getattr(pipeline, "unet", None), "config", None), "cross_attention_dim", None
    )
    widths = {
        one.shape[1]
        for name, one in tensors.items()
        if len(one.shape) == 2 and CROSS_ATTENTION.search(name)
    }
    if isinstance(wanted, int) and widths and wanted not in widths:
        return (
            f"it was made for another family: its cross attention takes {min(widths)} numbers a"
            f" token, {name}'s takes {wanted}"
        )
    return ""
