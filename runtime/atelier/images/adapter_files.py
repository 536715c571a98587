"""Whether a file of LORA_PATHS is an adapter for the model at hand, told from its header alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atelier.errors import CheckpointError
from atelier.sources.checkpoint.adapter_kind import unreadable
from atelier.sources.checkpoint.headers import StoredTensor, read_header

CROSS_ATTENTION = re.compile(r"attn2[._]to_[kv].*(lora[._]A|lora[._]down)")
"""Layers whose input is the text encoder's output, so that their width tells the family."""

TRANSFORMERS_OWN = re.compile(
    r"^transformer\.|(double|single|joint)_blocks|single_transformer_blocks"
)
UNETS_OWN = re.compile(r"^unet\.|^lora_unet_(down|up|mid|input|output|middle)_blocks?")


def fault_of(path: Path, pipeline: Any) -> str:
    """Why the file cannot be used with this pipeline; empty if nothing speaks against it."""
    return fault_in(path) or _misfit(read_header(path).tensors, pipeline)


def fault_in(path: Path) -> str:
    """Why the file cannot be used with any; empty if nothing speaks against it."""
    try:
        return unreadable(read_header(path).tensors)
    except CheckpointError as error:
        return error.message


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
